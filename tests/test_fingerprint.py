"""What counts as another run, and in which words."""

import argparse
import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optim_factory
from data_helpers import only_line, plain_run
from errors import InputError
from files import digest_of
from training import adaptation
from training.fingerprint import check_same_run, differences, digest_of_weights, fingerprint, same_batches

FLAGS = {"lr": 5e-4, "batch_size": 4, "num_workers": 2, "output_dir": Path("a"), "seed": 0, "save_every_minutes": 30.0}
DATA = {"train": {"windows": 20, "digest": "abc"}, "val": {"windows": 7, "digest": "def"}}


def made(processes: int = 1, data: Any = None, weights: Any = None, meant: Any = None, **flags: Any) -> dict[str, Any]:
    args, run = argparse.Namespace(**{**FLAGS, **flags}), plain_run(Path(), processes=processes)
    return fingerprint(args, run, data=data or DATA, weights=weights or {}, meant=meant or {})


def test_flags_that_change_no_number_are_not_compared() -> None:
    other = made(num_workers=0, output_dir=Path("b"), save_every_minutes=0.0)
    assert differences(made(), other, inside_epoch=True) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (made(lr=1e-3), ["--lr 0.001, the checkpoint has 0.0005"]),
        (made(new=1), ["--new 1, the checkpoint has None"]),
        (made(data={**DATA, "train": {"windows": 21, "digest": "x"}}), ["train data: windows 21, digest x", "20"]),
        (made(data={"train": DATA["train"]}), ["val data: none", "windows 7"]),
        (made(weights={"tokenizer": "t"}), ["another tokenizer"]),
        (made(lr=1.0, seed=3), ["--lr 1.0", "--seed 3"]),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_each_difference_is_named(other: dict, said: list[str], inside: bool) -> None:
    found = "; ".join(differences(made(), other, inside_epoch=inside))
    assert all(part in found for part in said), found


def test_another_code_or_device_is_a_difference() -> None:
    other = copy.deepcopy(made())
    other["code"]["version"], other["device"] = "edited", "cuda"
    found = "; ".join(differences(made(), other, inside_epoch=False))
    assert "device cuda, the checkpoint has cpu" in found and "code edited" in found


def test_a_default_that_is_said_aloud_is_no_difference_and_another_value_is() -> None:
    silent, aloud, other = (made(rule=said, meant={"rule": said or "usual"}) for said in (None, "usual", "other"))
    assert differences(silent, aloud, inside_epoch=True) == []
    assert differences(silent, other, inside_epoch=True) == ["--rule other, the checkpoint has usual"]


def said(module: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("aloud", "same"),
    [
        (["--clip_grad", "0", "--weight_decay_end", "0.05", "--warmup_steps", "0", "--opt", "AdamW"], True),
        (["--clip_grad", "1"], False),
        (["--weight_decay_end", "0"], False),
        (["--warmup_steps", "7"], False),
        (["--opt", "sgd"], False),
    ],
)
def test_the_optimizers_flags_come_to_the_same_where_they_say_their_defaults(aloud: list[str], same: bool) -> None:
    silent, other = (said(optim_factory, "--weight_decay", "0.05", *words) for words in ([], aloud))
    assert (optim_factory.effective_options(silent, 2) == optim_factory.effective_options(other, 2)) is same
    assert optim_factory.effective_options(silent, 2) != optim_factory.effective_options(silent, 3), (
        "micro-batches, whoever chose them"
    )


def test_the_adapters_flags_come_to_the_same_where_they_say_their_defaults() -> None:
    words = [[], ["--lora_alpha", "8", "--lora_dropout", "0"], ["--lora_alpha", "4"], ["--lora_dropout", "0.1"]]
    silent, aloud, *others = (adaptation.meant(said(adaptation, "--lora", "4", *more)) for more in words)
    assert silent == aloud and silent not in others


def test_another_number_of_processes_is_a_difference_inside_an_epoch_only() -> None:
    other = made(2, batch_size=2)
    assert differences(made(), other, inside_epoch=False) == []
    assert differences(made(), made(batch_size=2), inside_epoch=False) == ["--batch_size 2, the checkpoint has 4"]
    assert "processes 2, the checkpoint has 1" in differences(made(), other, inside_epoch=True)


def test_a_difference_is_refused_with_the_way_out_and_continued_anyway_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InputError) as error:
        check_same_run(made(), made(lr=1.0), Path("c.pth"), inside_epoch=False, anyway=False)
    only_line(error, "c.pth is of another run: --lr 1.0, the checkpoint has 0.0005", "--resume_anyway")
    check_same_run(made(), made(lr=1.0), Path("c.pth"), inside_epoch=False, anyway=True)
    assert "--lr 1.0, the checkpoint has 0.0005" in caplog.text
    with pytest.raises(InputError) as error:
        check_same_run(made(), made(2), Path("c.pth"), inside_epoch=True, anyway=False)
    only_line(error, "processes 2, the checkpoint has 1", "whole epoch", "--resume FILE")


def test_other_processes_between_epochs_are_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_same_run(made(), made(3), Path("c.pth"), inside_epoch=False, anyway=False)
    assert "made by 1 process(es), now there are 3" in caplog.text


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (made(lr=1.0), True),
        (made(batch_size=2), False),
        (made(2), False),
        (made(seed=1), False),
        (made(data={**DATA, "train": {"windows": 20, "digest": "x"}}), False),
        (made(data={**DATA, "val": {"windows": 8, "digest": "x"}}), True),
    ],
)
def test_only_what_decides_the_batches_makes_an_epoch_begin_again(other: dict, same: bool) -> None:
    assert same_batches(made(), other) is same


def test_digests_change_with_every_part() -> None:
    parts: list[Any] = ["a", 1, np.arange(3), ["b"]]
    first = digest_of(parts)
    assert first == digest_of(copy.deepcopy(parts))
    others = [digest_of([*parts[:i], changed, *parts[i + 1 :]]) for i, changed in enumerate(["c", 2, np.arange(4), []])]
    assert len({first, *others}) == 5
    weights = {"x": torch.ones(3), "y": torch.zeros(2, dtype=torch.bfloat16)}
    assert digest_of_weights(weights) != digest_of_weights({**weights, "x": torch.tensor([1.0, 1.0, 1.0000001])})
