"""Checkpoint files: whole or as they were, read without executing anything, recognised, errors of one line."""

import argparse
import errno
import hashlib
import io
import math
import os
import zipfile
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
from errors import InputError, UsageError
from layers import load_strictly
from training import checkpoints

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "epoch": 3, "scaler": None, "args": {"lr": 5e-4}}
SIZE_OF_STAGE = {
    "tokenizer": next(name for name in modeling_vqnsp.SIZES if "tiny" in name),
    "pretraining": next(name for name in modeling_pretrain.SIZES if "tiny" in name),
    "classifier": next(name for name in modeling_finetune.SIZES if "tiny" in name),
}


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def weights_of(stage: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return create_model(SIZE_OF_STAGE[stage]).state_dict()


FILES = ["checkpoint.pth", "checkpoint.pth.sha256"]

# Writing


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.1)
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    checkpoints.save({**STATE, "optimizer": optimizer.state_dict()}, path)
    read = checkpoints.read(path)
    assert torch.equal(read["model"]["weight"], STATE["model"]["weight"])
    assert (read["epoch"], read["scaler"], read["args"]) == (3, None, {"lr": 5e-4})
    assert torch.equal(read["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert sorted(os.listdir(tmp_path)) == FILES  # noqa: PTH208 (hidden files count too)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / FILES[1]).read_text() == f"{digest}  checkpoint.pth\n"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"), "PytorchStreamWriter"),
    ],
)
def test_a_write_that_fails_half_way_leaves_the_old_file_whole_and_nothing_else(
    failure: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoints.save(STATE, path)
    old = path.read_bytes()

    def write_half(state: dict[str, Any], file: Path) -> None:
        file.write_bytes(old[: len(old) // 2])
        raise failure

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(UsageError, match=f"checkpoint.pth cannot be written .*{said}.*another folder") as error:
        checkpoints.save({"model": {}}, path)
    assert one_line(error)
    assert path.read_bytes() == old
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES


def test_a_process_that_dies_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoints.save(STATE, path)
    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save({"model": {}}, path)
    assert path.read_bytes() == old


def test_the_new_file_reaches_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("sync"), sync(file))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    checkpoints.save(STATE, tmp_path / "checkpoint.pth")
    assert order[0] == "sync" and "rename" in order and order[-1] == "sync"  # the folder's names, too
    renames = [i for i, what in enumerate(order) if what == "rename"]
    assert all(order[i - 1] == "sync" for i in renames)


@pytest.mark.parametrize("place", ["absent/checkpoint.pth", "file/checkpoint.pth", "folder"])
def test_a_place_that_cannot_be_written_is_a_usage_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=rf"{place} cannot be written .*another folder") as error:
        checkpoints.save(STATE, tmp_path / place)
    assert one_line(error) and UsageError.exit_code == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


# Reading


def test_files_of_the_released_code_with_a_namespace_and_numpy_scalars_load(tmp_path: Path) -> None:
    group = {"lr": np.float64(5e-4), "weight_decay": np.float32(0.05), "step": np.int64(7), "betas": (0.9, 0.98)}
    args = argparse.Namespace(lr=np.float64(5e-4), model="labram_base", opt_betas=[0.9, 0.98], dist_url=None)
    released = {**STATE, "args": args, "optimizer": {"state": {}, "param_groups": [group]}}
    torch.save(released, tmp_path / "released.pth")
    read = checkpoints.read(tmp_path / "released.pth")
    assert read["args"] == args and isinstance(read["args"], argparse.Namespace)
    assert read["optimizer"]["param_groups"] == [group]
    torch.save(released, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert checkpoints.read(tmp_path / "old.pth")["args"] == args


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
    with pytest.raises(InputError, match=r"bad\.pth is no readable checkpoint") as error:
        checkpoints.read(path)
    assert one_line(error) and not (tmp_path / "trace").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "trace").exists(), "the file would not have executed anything: the test shows nothing"


def test_reading_a_file_leaves_the_types_that_torch_trusts_as_they_were(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    checkpoints.save(STATE, tmp_path / "checkpoint.pth")
    checkpoints.read(tmp_path / "checkpoint.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def whole_file() -> bytes:
    written = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(5000.0)}}, written)
    return written.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"not a checkpoint\n" * 50, whole_file()[:-1], whole_file()[:9000], whole_file()[:10]],
    ids=["empty", "zeros", "text", "one byte short", "half", "ten bytes"],
)
def test_a_file_that_is_no_checkpoint_or_cut_short_is_an_error_of_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth is no readable checkpoint") as error:
        checkpoints.read(tmp_path / "bad.pth")
    assert one_line(error)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 5])
def test_a_file_that_holds_something_else_than_a_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=rf"bad\.pth is no checkpoint: it holds a {type(content).__name__}") as error:
        checkpoints.read(tmp_path / "bad.pth")
    assert one_line(error)


def test_a_folder_in_place_of_a_file_is_not_said_to_be_absent(tmp_path: Path) -> None:
    (tmp_path / "vqnsp").mkdir()
    with pytest.raises(InputError, match=r"vqnsp.* folder") as error:
        checkpoints.read(tmp_path / "vqnsp")
    assert "does not exist" not in one_line(error)


@pytest.mark.parametrize(
    ("missing", "there", "way_out"),
    [
        ("vqnsp.pth", ["vqnsp/checkpoint.pth"], "cp checkpoints/vqnsp/checkpoint.pth checkpoints/vqnsp.pth"),
        (
            "labram-base.pth",
            ["labram_base/checkpoint-49.pth", "labram_base/checkpoint.pth", "vqnsp/checkpoint.pth"],
            "cp checkpoints/labram_base/checkpoint.pth checkpoints/labram-base.pth",
        ),
        ("vqnsp.pth", ["vqnsp/checkpoint-19.pth"], "cp checkpoints/vqnsp/checkpoint-19.pth checkpoints/vqnsp.pth"),
        ("vqnspp.pth", ["vqnsp.pth"], "checkpoints/vqnsp.pth"),
        ("vqnsp.pth", [], "train the stage before"),
        ("vqnsp.pth", ["entirely_else/checkpoint.pth"], "train the stage before"),
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
        checkpoints.read(f"./checkpoints/{missing}")
    assert one_line(error).startswith(f"checkpoint checkpoints/{missing} does not exist; ")
    assert one_line(error).endswith(way_out) or (way_out.startswith("train") and way_out in one_line(error))


def test_a_missing_file_in_a_missing_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/vqnsp\.pth does not exist; train the stage before") as error:
        checkpoints.read(tmp_path / "absent" / "vqnsp.pth")
    assert one_line(error)


# Weights and stages


SCORES = {"val_roc_auc": 0.75, "test_pr_auc": math.nan}


def selected(epoch: int, *, of: int | None = None, step: int = 0, scores: Any = None) -> dict[str, Any]:
    """Return a checkpoint of the end of an epoch (or a step in the one after) that had selected the epoch `of`."""
    best = {"epoch": epoch if of is None else of, "stats": scores or SCORES, "waited": 0}
    return {"model": {"w": 1.0 * epoch}, "epoch": epoch, "step": step, "extras": {"best": best}}


def test_the_selected_epochs_checkpoint_stays(tmp_path: Path) -> None:
    checkpoints.save(selected(3), tmp_path / "checkpoint-best.pth")
    before = (tmp_path / "checkpoint-best.pth").stat().st_mtime_ns
    checkpoints.settle_best(tmp_path, selected(5, of=3, step=2))
    assert (tmp_path / "checkpoint-best.pth").stat().st_mtime_ns == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize(
    "name", ["checkpoint-best.previous.pth", "checkpoint.pth", "checkpoint.previous.pth", "checkpoint-3.pth"]
)
def test_the_selected_epochs_checkpoint_is_found_again_under_any_name(name: str, later: bool, tmp_path: Path) -> None:
    checkpoints.save(selected(3), tmp_path / name)
    if later:
        checkpoints.save(selected(7), tmp_path / "checkpoint-best.pth")
    checkpoints.settle_best(tmp_path, selected(5, of=3))
    assert checkpoints.read(tmp_path / "checkpoint-best.pth")["epoch"] == 3
    aside = tmp_path / "checkpoint-best.later.pth"
    assert checkpoints.read(aside)["epoch"] == 7 if later else not aside.exists()


@pytest.mark.parametrize(
    "other",
    [
        selected(3, scores={"val_roc_auc": 0.5, "test_pr_auc": math.nan}),  # another run's
        selected(3, step=1),
        selected(4, of=3),
        {"model": {"w": 1.0}, "epoch": 3},
        {"model": {"w": 1.0}, "epoch": 3, "step": 0, "extras": {"best": None}},
    ],
)
def test_no_other_checkpoint_is_taken_for_the_selected_epochs(other: dict[str, Any], tmp_path: Path) -> None:
    for name in ("checkpoint-best.pth", "checkpoint-best.previous.pth", "checkpoint.pth", "checkpoint-3.pth"):
        checkpoints.save(other, tmp_path / name)
    checkpoints.settle_best(tmp_path, selected(5, of=3))
    assert not (tmp_path / "checkpoint-best.pth").exists()
    assert checkpoints.read(tmp_path / "checkpoint-best.later.pth")["epoch"] == other["epoch"]


@pytest.mark.parametrize("key", ["model", "module", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_under_model_or_module_or_alone_without_ddp_prefix(key: str | None, prefix: str) -> None:
    weights = {f"{prefix}head.weight": torch.ones(2), f"{prefix}blocks.0.module.bias": torch.zeros(1)}
    found = checkpoints.model_state({key: weights, "epoch": 1} if key else weights, "file.pth")
    assert list(found) == ["head.weight", "blocks.0.module.bias"]
    assert torch.equal(found["head.weight"], torch.ones(2))


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"model": {"weight": 3}}, {"model": None}, {"epoch": 3}])
def test_a_dict_without_weights_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"file\.pth is no checkpoint of LaBraM") as error:
        checkpoints.model_state(state, "file.pth")
    assert one_line(error)


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_each_stage_is_recognised_and_refused_where_another_is_needed(stage: str) -> None:
    weights = weights_of(stage)
    assert checkpoints.stage_of(weights) == stage
    checkpoints.check_stage(weights, [stage], "file.pth")
    checkpoints.check_stage(weights, list(checkpoints.STAGES), "file.pth")
    others = [other for other in checkpoints.STAGES if other != stage]
    with pytest.raises(InputError) as error:
        checkpoints.check_stage(weights, others, "file.pth")
    said, needed = one_line(error).split("; needed here: ")
    assert said == f"file.pth holds {checkpoints.STAGES[stage]}"
    assert all(checkpoints.STAGES[other] in needed for other in others) and checkpoints.STAGES[stage] not in needed


def test_weights_of_something_else_are_refused_by_their_first_keys() -> None:
    weights = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).state_dict()
    assert checkpoints.stage_of(weights) is None
    with pytest.raises(InputError, match=r"no LaBraM model \(first keys: 0\.weight, 0\.bias, 1\.weight\)"):
        checkpoints.check_stage(weights, ["classifier"], "file.pth")


def test_weights_of_the_right_stage_are_read_from_a_distributed_run(tmp_path: Path) -> None:
    model = create_model(SIZE_OF_STAGE["classifier"], depth=1)
    weights = model.state_dict()
    checkpoints.save({"model": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "file.pth")
    read = checkpoints.read_model(tmp_path / "file.pth", stage="classifier")
    assert read.keys() == weights.keys() and all(torch.equal(read[key], weights[key]) for key in weights)
    with pytest.raises(InputError, match=r"file\.pth holds a classifier.*needed here: a tokenizer"):
        checkpoints.read_model(tmp_path / "file.pth", stage="tokenizer")


# Strict loading


def test_strict_loading_sets_every_weight_and_returns_what_it_was_told_to_ignore() -> None:
    model = nn.Linear(3, 2)
    given = {"weight": torch.ones(2, 3), "bias": torch.zeros(2), "extra.a": torch.ones(1), "extra.b": torch.ones(1)}
    model.unused_published_keys = ("extra.",)
    assert load_strictly(model, given, where="f") == ["extra.a", "extra.b"]
    assert torch.equal(model.weight, given["weight"]) and torch.equal(model.bias, given["bias"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": torch.ones(5, 3)}, r"weight is \(5, 3\), the model has \(2, 3\)"),
        ({"other": torch.ones(1)}, "other is not in the model"),
        ({"bias": None}, "bias is missing"),
        ({f"k{i}": torch.ones(1) for i in range(5)}, r"k0 .*k1 .*k2 is not in the model \(\+2 more\)"),
    ],
)
def test_strict_loading_names_the_first_keys_that_do_not_fit_and_loads_nothing(
    change: dict[str, Tensor | None], named: str
) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    given = {"weight": torch.ones(2, 3), "bias": torch.zeros(2), **change}
    with pytest.raises(InputError, match=f"file.pth into m: another architecture: {named}") as error:
        load_strictly(model, {k: v for k, v in given.items() if v is not None}, where="file.pth into m")
    assert one_line(error) and torch.equal(model.weight, before)
