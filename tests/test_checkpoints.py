"""Checkpoint files: whole or as they were, read without executing anything, never other weights."""

import argparse
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import create_model
from torch import Tensor, nn

import modeling_finetune
import modeling_pretrain
import modeling_vqnsp
from data_helpers import differences, only_line
from errors import InputError, UsageError
from layers import load_strictly
from run_helpers import checkpoint
from training import checkpoints

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 3, "scaler": None, "args": {"lr": 5e-4}}
SIZES = {
    "tokenizer": modeling_vqnsp.SIZES,
    "pretraining": modeling_pretrain.SIZES,
    "classifier": modeling_finetune.SIZES,
}


def weights_of(stage: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return create_model(next(name for name in SIZES[stage] if "tiny" in name)).state_dict()


def test_the_new_file_reaches_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("sync"), sync(file))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    checkpoints.save(STATE, tmp_path / "checkpoint.pth")
    assert order == ["sync", "rename"]


@pytest.mark.parametrize("place", ["absent/checkpoint.pth", "folder"])
def test_a_place_that_cannot_be_written_is_a_usage_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as error:
        checkpoints.save(STATE, tmp_path / place)
    only_line(error, place, "cannot be written")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_files_of_the_released_code_with_a_namespace_and_numpy_scalars_load(tmp_path: Path) -> None:
    group = {"lr": np.float64(5e-4), "weight_decay": np.float32(0.05), "step": np.int64(7), "betas": (0.9, 0.98)}
    args = argparse.Namespace(lr=np.float64(5e-4), model="labram_base", opt_betas=[0.9, 0.98], dist_url=None)
    released = {**STATE, "args": args, "optimizer": {"state": {}, "param_groups": [group]}}
    for name, zipped in (("released.pth", True), ("old.pth", False)):
        torch.save(released, tmp_path / name, _use_new_zipfile_serialization=zipped)
        read = checkpoints.read(tmp_path / name)
        assert read["args"] == args and isinstance(read["args"], argparse.Namespace)
        assert read["optimizer"]["param_groups"] == [group]


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_scalars_load_as_numpy_1_and_numpy_2_pickle_them(module: str, tmp_path: Path) -> None:
    written = io.BytesIO()
    torch.save({"model": {}, "lr": np.float64(2.5)}, written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(tmp_path / "file.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                own = next(m for m in (b"numpy._core", b"numpy.core") if m + b".multiarray" in data)
                data = data.replace(own + b".multiarray", module.encode() + b".multiarray")
                assert module.encode() + b".multiarray\nscalar" in data
            target.writestr(name, data)
    assert checkpoints.read(tmp_path / "file.pth")["lr"] == 2.5


class Executes:
    """Pickled, it runs a command when it is read by an unpickler that allows everything."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_execute_code_is_refused_and_does_not(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({**STATE, "args": Executes(tmp_path / "trace")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as error:
        checkpoints.read(path)
    only_line(error, path)
    assert not (tmp_path / "trace").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "trace").exists(), "the file would not have executed anything: the test shows nothing"


def test_what_is_no_checkpoint_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    words = {"empty.pth": "no readable checkpoint", "text.pth": "plain tensors", "list.pth": "list"}
    for name, word in {**words, ".": "folder"}.items():
        with pytest.raises(InputError) as error:
            checkpoints.read(tmp_path / name)
        only_line(error, tmp_path / name, word)


@pytest.mark.parametrize(
    ("missing", "there", "way_out"),
    [
        (
            "labram-base.pth",
            ["labram_base/checkpoint-49.pth", "labram_base/checkpoint.pth", "vqnsp/checkpoint.pth"],
            "cp checkpoints/labram_base/checkpoint.pth checkpoints/labram-base.pth",
        ),
        ("vqnspp.pth", ["vqnsp.pth"], "checkpoints/vqnsp.pth"),
        ("vqnsp.pth", ["entirely_else/checkpoint.pth"], "train the stage before or correct the path"),
        ("https://host/vqnsp.pth", ["vqnsp.pth"], "download it and name the file on this machine"),
    ],
)
def test_a_missing_file_names_the_way_out(
    missing: str, there: list[str], way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in there:
        path = Path("checkpoints") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(InputError) as error:
        checkpoints.read(missing if "://" in missing else f"./checkpoints/{missing}")
    assert only_line(error, Path(missing).name).endswith(way_out)


# Damaged files: refused, or equal; never other weights

COPIES = 50  # of each kind of damage
VALUES = 8  # of a tensor that are kept, so that every part of a file's structure is hit, not its numbers only
Damage = Callable[[bytes, np.random.Generator], bytes]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a checkpoint with small tensors and what else checkpoints hold."""
    model = nn.ModuleList(nn.Linear(VALUES // 2, 2) for _ in range(12))
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    checkpoints.save({**STATE, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return path


def truncated(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(len(content)))]


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """Flip a bit: every second time in the last tenth, the archive's list of contents."""
    start = int(random.integers(2)) * len(content) * 9 // 10
    place, changed = int(random.integers(start, len(content))), bytearray(content)
    changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def same(one: Any, other: Any) -> bool:
    return not differences(one, other)


@pytest.mark.parametrize("damage", [truncated, flipped])
def test_a_damaged_file_is_refused_or_holds_what_the_whole_one_does(
    damage: Damage, small: Path, tmp_path: Path
) -> None:
    whole, state, refused = small.read_bytes(), checkpoint(small), 0
    path = tmp_path / "copy.pth"
    for number in range(COPIES):
        path.write_bytes(damage(whole, np.random.default_rng(1000 + number)))
        try:
            assert same(checkpoints.read(path), state), number
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused == COPIES if damage is truncated else refused > COPIES // 4


def test_a_flipped_bit_of_a_weight_is_refused_though_torch_alone_would_load_it(small: Path, tmp_path: Path) -> None:
    state, changed = checkpoint(small), bytearray(small.read_bytes())
    weight = next(value for value in state["model"].values() if value.numel() == VALUES).numpy().tobytes()
    changed[changed.index(weight)] ^= 1
    path = tmp_path / "copy.pth"
    path.write_bytes(changed)
    assert not same(checkpoint(path), state)
    with pytest.raises(InputError, match="damaged"):
        checkpoints.read(path)


def test_a_part_that_is_marked_as_a_folder_is_refused(small: Path, tmp_path: Path) -> None:
    """A single bit of the archive's list of contents, for which torch leaves a tensor uninitialised."""
    changed = bytearray(small.read_bytes())
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", changed)]
    assert len(entries) > 10
    changed[entries[len(entries) // 2] + 38] ^= 0x10  # of its external attributes
    path = tmp_path / "copy.pth"
    path.write_bytes(changed)
    with pytest.raises(InputError, match="damaged"):
        checkpoints.read(path)


@pytest.mark.parametrize(("key", "prefix"), [("model", "module."), ("module", ""), (None, "")])
def test_weights_are_found_under_model_or_module_or_alone_without_ddp_prefix(key: str | None, prefix: str) -> None:
    weights = {f"{prefix}head.weight": torch.ones(2), f"{prefix}blocks.0.module.bias": torch.zeros(1)}
    found = checkpoints.model_state({key: weights, "epoch": 1} if key else weights, "file.pth")
    assert list(found) == ["head.weight", "blocks.0.module.bias"]
    assert torch.equal(found["head.weight"], torch.ones(2))


@pytest.mark.parametrize("state", [{"model": {"weight": 3}}, {"epoch": 3}])
def test_a_dict_without_weights_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        checkpoints.model_state(state, "file.pth")
    only_line(error, "file.pth is no checkpoint of LaBraM")


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_each_stage_is_recognised_and_refused_where_another_is_needed(stage: str) -> None:
    weights = weights_of(stage)
    assert checkpoints.stage_of(weights) == stage
    checkpoints.check_stage(weights, [stage], "file.pth")
    others = [other for other in checkpoints.STAGES if other != stage]
    with pytest.raises(InputError) as error:
        checkpoints.check_stage(weights, others, "file.pth")
    held, needed = only_line(error).split("; needed here: ")
    assert held == f"file.pth holds {checkpoints.STAGES[stage]}"
    assert all(checkpoints.STAGES[other] in needed for other in others) and checkpoints.STAGES[stage] not in needed


def test_strict_loading_sets_every_weight_or_names_the_first_keys_that_do_not_fit() -> None:
    model = nn.Linear(3, 2)
    given = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    load_strictly(model, given, where="f")
    assert torch.equal(model.weight, given["weight"]) and torch.equal(model.bias, given["bias"])
    wrong = {"weight": torch.zeros(5, 3), "k": torch.ones(1)}
    with pytest.raises(InputError) as error:
        load_strictly(model, wrong, where="f")
    assert all(part in only_line(error) for part in ("f: another architecture: ", '"bias"', '"k"', "[5, 3]", "[2, 3]"))
