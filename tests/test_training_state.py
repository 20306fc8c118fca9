"""Resuming: bit-equal, whatever loads the data; what is refused, what is one warning; which file is the best one."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from data_helpers import differences
from run_helpers import CLASSIFIER, call, checkpoint, contents, labelled_file, log, log_lines, predictions
from training import checkpoints
from training.metrics import BestEpoch
from training.state import TrainingState

EPOCHS = 3


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_file(tmp_path_factory.mktemp("task") / "task.hdf5", counts={"train": 8, "val": 6, "test": 5})


def train(folder: Path, task: Path, *words: Any, epochs: int = EPOCHS) -> int:
    flags = ["--output_dir", folder, "--dataset", task, "--epochs", epochs, "--drop_path", 0.3, "--save_ckpt_freq", 1]
    return call("run_class_finetuning", *CLASSIFIER, *flags, *words)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, task: Path) -> Path:
    """Return the folder of a run with drop path that was never stopped; data are loaded in the same process."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(folder, task) == 0
    return folder


def copy_of(straight: Path, folder: Path, *, ended: bool = True) -> Path:
    """Copy the finished run; ended=False: as it was after its first epoch."""
    shutil.copytree(straight, folder)
    if not ended:
        shutil.copy(folder / "checkpoint-0.pth", folder / "checkpoint.pth")
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    """Compare weights, optimizer, log and predictions of two finished runs to the last bit."""
    states = [checkpoint(folder / "checkpoint.pth") for folder in (one, other)]
    assert differences(*({part: state[part] for part in ("model", "optimizer")} for state in states)) == []
    assert differences(log_lines(one), log_lines(other)) == [] and len(log(one)) == EPOCHS
    for split in ("val", "test"):
        both = [predictions(folder / f"predictions-{split}.npz") for folder in (one, other)]
        assert differences(*both) == []


def test_a_run_resumed_with_a_loading_thread_ends_as_one_that_never_stopped(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder = copy_of(straight, tmp_path / "run", ended=False)
    assert train(folder, task, "--num_workers", 1) == 0
    assert_same_run(straight, folder)


def test_the_selected_epochs_predictions_come_back_from_an_earlier_checkpoint(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder = copy_of(straight, tmp_path / "run")
    for split in ("val", "test"):
        (folder / f"predictions-{split}.npz").unlink()
    assert train(folder, task, "--resume", folder / "checkpoint-1.pth") == 0
    assert_same_run(straight, folder)


def test_of_several_damaged_checkpoints_each_is_named_and_the_newest_whole_one_is_continued(
    tmp_path: Path, task: Path, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(straight, tmp_path / "run")
    damaged = [folder / name for name in ("checkpoint.pth", "checkpoint-2.pth")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    assert train(folder, task) == 0
    warnings = [record.message for record in caplog.records if "falling back" in record.message]
    assert sorted(map(str, damaged)) == sorted(text.split(" ")[0] for text in warnings)
    assert_same_run(straight, folder)


def test_a_file_of_resume_is_the_way_out_of_a_folder_whose_checkpoints_are_all_damaged_and_stay_as_they_are(
    tmp_path: Path, task: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kept = copy_of(straight, tmp_path / "run"), tmp_path / "kept.pth"
    shutil.copy(folder / "checkpoint-1.pth", kept)
    for path in folder.glob("checkpoint*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    before = contents(folder)
    assert train(folder, task) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "damaged" in line and str(folder) in line and contents(folder) == before
    assert train(folder, task, "--resume", kept) == 0
    assert_same_run(straight, folder)


def only_warning(caplog: pytest.LogCaptureFixture, word: str) -> str:
    (text,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and word in r.getMessage()]
    return text


def test_other_flags_data_versions_and_device_are_one_warning_that_names_them(
    tmp_path: Path, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(straight, tmp_path / "run", ended=False)
    other = labelled_file(tmp_path / "other.hdf5", counts={"train": 12, "val": 6, "test": 5})
    state = checkpoint(folder / "checkpoint.pth")
    state["settings"] |= {"code version": "0.0.1+edited", "device": "cuda", "processes": 2}
    torch.save(state, folder / "checkpoint.pth")
    assert train(folder, other, "--lr", 1e-4, "--select_by", "accuracy") == 0
    text = only_warning(caplog, "other settings")
    for part in ("--lr is 0.0001 (before: 0.0005)", "--select_by is accuracy", "train data", "edited", "device is cpu"):
        assert part in text
    assert "processes is 1 (before: 2)" in text
    assert [line["epoch"] for line in log(folder)] == [0, 1, 2]


@pytest.mark.parametrize("older", [False, True])
def test_a_run_with_the_same_settings_continues_without_a_word_and_one_of_an_older_version_with_a_warning(
    older: bool, tmp_path: Path, task: Path, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(straight, tmp_path / "run", ended=False)
    if older:
        state = checkpoint(folder / "checkpoint.pth")
        del state["settings"]
        best = state["extras"]["best"]
        state["extras"]["selected"] = {key: best.pop(key) for key in ("logits", "last")}
        torch.save(state, folder / "checkpoint.pth")
    assert train(folder, task, "--update_freq", 1, "--total_batch_size", 4, "--clip_grad", 0, "--nb_classes", 1) == 0
    assert "other settings" not in caplog.text and ("not compared" in caplog.text) == older
    assert_same_run(straight, folder)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--opt", "sgd"], "AdamW, not SGD"),
        (["--use_cls"], "another architecture"),
        (["--model_ema"], "holds no model_ema"),
    ],
)
def test_another_optimizer_or_architecture_is_refused_even_anyway(
    words: list[str], part: str, tmp_path: Path, task: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(straight, tmp_path / "run", ended=False)
    assert train(folder, task, *words, "--resume_anyway") == 1
    assert part in capsys.readouterr().err.splitlines()[-1]


class Killed(BaseException):
    pass


@contextmanager
def dying(owner: Any, method: str, when: Any) -> Iterator[None]:
    """Let a run die before a call for which `when(*arguments)` is true."""
    original = getattr(owner, method)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            raise Killed
        return original(*arguments, **options)

    with patch.object(owner, method, wrapped), pytest.raises(Killed):
        yield


def stop_inside_the_first_epoch(folder: Path, task: Path) -> None:
    with dying(TrainingState, "_end_step", lambda state, _: state.step == 1):
        train(folder, task, "--save_every_minutes", 1e-9)
    assert checkpoint(folder / "checkpoint.pth")["step"] == 1


@pytest.mark.parametrize("change", ["batch", "data", "processes"])
def test_inside_an_epoch_other_windows_are_refused_and_resume_anyway_begins_the_epoch_again(
    change: str, tmp_path: Path, task: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    stop_inside_the_first_epoch(folder, task)
    data = labelled_file(tmp_path / "b.hdf5", counts={"train": 12, "val": 6, "test": 5}) if change == "data" else task
    if change == "processes":
        state = checkpoint(folder / "checkpoint.pth")
        state["settings"]["processes"] = 2
        torch.save(state, folder / "checkpoint.pth")
    words = ["--batch_size", 2] if change == "batch" else []
    named = {"batch": "--batch_size is 2", "data": "train data", "processes": "processes is 1"}[change]
    assert train(folder, data, *words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert named in error and "--resume_anyway" in error
    assert train(folder, data, *words, "--resume_anyway") == 0
    assert "epoch 0 begins again" in caplog.text
    assert [line["epoch"] for line in log(folder)] == [0, 1, 2]
    steps = {"batch": 4, "data": 3, "processes": 2}[change]
    assert checkpoint(folder / "checkpoint.pth")["update"]["step"] == steps * EPOCHS


def test_inside_an_epoch_other_flags_are_only_a_warning(
    tmp_path: Path, task: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop_inside_the_first_epoch(tmp_path, task)
    state = checkpoint(tmp_path / "checkpoint.pth")
    state["settings"]["--update_freq"] = state["settings"].pop("micro-batches")  # as older versions had it
    torch.save(state, tmp_path / "checkpoint.pth")
    assert train(tmp_path, task, "--clip_grad", 1) == 0
    text = only_warning(caplog, "other settings")
    assert "--clip_grad is 1.0 (before: None)" in text and "update_freq" not in text
    assert "begins again" not in caplog.text


def best_epochs(folder: Path) -> dict[str, int]:
    """Return which epochs the files of selected epochs are of."""
    return {path.name: checkpoint(path)["epoch"] for path in folder.glob("checkpoint-best*.pth")}


@contextmanager
def selecting(*epochs: int) -> Iterator[None]:
    """Let each of these epochs have a better validation score than all before, and others a bad one."""
    original = BestEpoch.update

    def update(best: BestEpoch, epoch: int, stats: dict[str, float]) -> bool:
        return original(best, epoch, {**stats, "val_roc_auc": 1.0 + epoch if epoch in epochs else 0.0})

    with patch.object(BestEpoch, "update", update):
        yield


SELDOM = ("--save_ckpt_freq", 2)  # checkpoint-1.pth only: the selected epochs 0 and 2 have no other file


def test_a_run_that_is_killed_around_its_best_checkpoint_ends_with_the_selected_epochs(
    tmp_path: Path, task: Path
) -> None:
    folder = tmp_path / "run"
    with selecting(0, 2):
        with dying(checkpoints, "save", lambda state, path: state["epoch"] == 2):
            train(folder, task, *SELDOM)
        assert best_epochs(folder) == {"checkpoint-best.pth": 0}, "epoch 2 does not count yet"
        with dying(checkpoints, "copy", lambda _, target: target.name == "checkpoint-best.pth"):
            train(folder, task, *SELDOM)
        assert best_epochs(folder) == {"checkpoint-best.pth": 0} and checkpoint(folder / "checkpoint.pth")["epoch"] == 2
        assert train(folder, task, *SELDOM) == 0  # trains nothing
        assert best_epochs(folder)["checkpoint-best.pth"] == 2


def test_a_run_that_goes_back_sets_the_best_checkpoint_of_a_later_epoch_aside(tmp_path: Path, task: Path) -> None:
    with selecting(0, 2):
        assert train(tmp_path, task) == 0
        back = ["--resume", tmp_path / "checkpoint-1.pth"]
        assert train(tmp_path, task, *back, epochs=2) == 0  # trains nothing
        assert best_epochs(tmp_path) == {"checkpoint-best.previous.pth": 2, "checkpoint-best.pth": 0}
        assert checkpoint(tmp_path / "checkpoint.previous.pth")["epoch"] == 2, "the newest state is kept"
        assert train(tmp_path, task, *back) == 0
        assert best_epochs(tmp_path)["checkpoint-best.pth"] == 2


def test_a_world_size_without_a_rank_is_one_process_that_sees_all_data(
    tmp_path: Path, task: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters export it
    assert train(tmp_path / "run", task) == 0
    assert_same_run(straight, tmp_path / "run")


def test_only_the_last_numbered_checkpoints_are_kept_where_asked_and_a_new_run_sets_the_old_ones_files_aside(
    tmp_path: Path, task: Path
) -> None:
    assert train(tmp_path, task, "--keep_last", 2) == 0
    assert {path.name for path in tmp_path.glob("checkpoint-[0-9]*")} == {"checkpoint-1.pth", "checkpoint-2.pth"}
    state = checkpoint(tmp_path / "checkpoint-1.pth")
    assert {"model", "optimizer", "epoch", "scaler", "args", "stage"} <= state.keys() and state["epoch"] == 1
    old, best = (tmp_path / "log.txt").read_text(), best_epochs(tmp_path)["checkpoint-best.pth"]
    assert train(tmp_path, task, "--no_auto_resume", "--no_save_ckpt", epochs=1) == 0
    assert [line["epoch"] for line in log(tmp_path)] == [0] and (tmp_path / "log.previous.txt").read_text() == old
    assert best_epochs(tmp_path) == {"checkpoint-best.previous.pth": best}
    assert checkpoint(tmp_path / "checkpoint.pth")["epoch"] == 2, "--no_save_ckpt writes none"
