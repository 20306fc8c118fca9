"""Resumption, whatever loads the data, and what a run refuses to mix."""

import importlib
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from recovery import assert_same_training, differences
from run_helpers import CLASSIFIER, ROOT, call, checkpoint, labelled_file, log, predictions, start
from training import checkpoints
from training.metrics import BestEpoch

EPOCHS = 3


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_file(tmp_path_factory.mktemp("task") / "task.hdf5", counts={"train": 8, "val": 6, "test": 5})


def train(folder: Path, task: Path, *words: Any, epochs: int = EPOCHS, workers: int = 0) -> int:
    flags = ["--output_dir", folder, "--dataset", task, "--epochs", epochs, "--drop_path", 0.3, "--save_ckpt_freq", 1]
    return call("run_class_finetuning", *CLASSIFIER, *flags, "--num_workers", workers, *words)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, task: Path) -> Path:
    """Return the folder of a run with drop path that was never stopped, data loaded in the same process."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(folder, task) == 0
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    """Compare weights, optimizer, log and predictions of two finished runs to the last bit."""
    assert_same_training(one, other)
    assert len(log(one)) == EPOCHS
    for split in ("val", "test"):
        found = [predictions(folder / f"predictions-{split}.npz") for folder in (one, other)]
        assert list(differences(*found)) == []


def test_a_loading_process_that_stays_from_epoch_to_epoch_changes_nothing(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    assert train(tmp_path / "run", task, workers=1) == 0
    assert_same_run(straight, tmp_path / "run")


def test_a_run_resumed_with_a_loading_process_ends_as_one_that_never_stopped(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.copy(folder / "checkpoint-0.pth", folder / "checkpoint.pth")  # a whole file, known by another's digest
    assert train(folder, task, workers=1) == 0
    assert_same_run(straight, folder)


def test_the_selected_epochs_predictions_come_back_from_an_earlier_checkpoint(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    for split in ("val", "test"):
        (folder / f"predictions-{split}.npz").unlink()
    assert train(folder, task, "--resume", folder / "checkpoint-1.pth") == 0
    assert_same_run(straight, folder)


def test_a_file_of_resume_that_is_not_there_is_an_error_and_nothing_else_is_continued(
    tmp_path: Path, task: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    assert train(folder, task, "--resume", folder / "chekpoint-1.pth", "--no_auto_resume") == 1
    assert "chekpoint-1.pth" in capsys.readouterr().err
    assert_same_run(straight, folder)


def test_a_file_of_resume_is_the_way_out_of_a_folder_with_damaged_checkpoints(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder, kept = tmp_path / "run", tmp_path / "kept.pth"
    shutil.copytree(straight, folder)
    shutil.copy(folder / "checkpoint-1.pth", kept)
    for path in folder.glob("checkpoint*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    assert train(folder, task) == 1
    assert train(folder, task, "--resume", kept) == 0
    assert_same_run(straight, folder)


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


class Killed(BaseException):
    pass


def save_but_not(name: str) -> Any:
    """Return a patch with which a run dies where it would write a checkpoint of this name."""
    original = checkpoints.save

    def save(state: Any, path: Path, **options: Any) -> None:
        if path.name == name:
            raise Killed
        original(state, path, **options)

    return patch.object(checkpoints, "save", save)


SELDOM = ("--save_ckpt_freq", 2)  # checkpoint-1.pth only: the selected epochs 0 and 2 have no other file


def test_when_the_selected_epoch_is_trained_again_the_one_before_is_the_best_checkpoint_until_then(
    tmp_path: Path, task: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with selecting(0):
        assert train(folder, task, *SELDOM, epochs=1) == 0
    first = checkpoint(folder / "checkpoint-best.pth")["model"]
    with selecting(0, 2):
        assert train(folder, task, *SELDOM, "--resume_anyway") == 0
        assert best_epochs(folder) == {"checkpoint-best.pth": 2, "checkpoint-best.previous.pth": 0}
        again = ["--resume", folder / "checkpoint-1.pth", "--resume_anyway"]
        assert train(folder, task, *SELDOM, *again, epochs=2) == 0  # begins nothing
        found = checkpoint(folder / "checkpoint-best.pth")
        assert found["epoch"] == 0 and all(torch.equal(value, first[name]) for name, value in found["model"].items())
        assert best_epochs(folder)["checkpoint-best.later.pth"] == 2
        caplog.set_level(logging.INFO)
        assert train(folder, task, *SELDOM, "--eval") == 0 and "epoch 0, val" in caplog.text
        assert train(folder, task, *SELDOM, *again) == 0
        assert best_epochs(folder)["checkpoint-best.pth"] == 2


def test_a_run_that_dies_between_its_best_and_its_latest_checkpoint_goes_on_with_the_best_one_before(
    tmp_path: Path, task: Path
) -> None:
    folder = tmp_path / "run"
    with selecting(0, 2):
        assert train(folder, task, *SELDOM, "--resume_anyway", epochs=2) == 0
        with save_but_not("checkpoint.pth"), pytest.raises(Killed):
            train(folder, task, *SELDOM, "--resume_anyway")
        assert best_epochs(folder)["checkpoint-best.pth"] == 2
        with save_but_not("checkpoint-best.pth"), pytest.raises(Killed):
            train(folder, task, *SELDOM, "--resume_anyway")
        assert best_epochs(folder)["checkpoint-best.pth"] == 0
        assert train(folder, task, *SELDOM, "--resume_anyway") == 0
        assert best_epochs(folder)["checkpoint-best.pth"] == 2


def test_a_new_run_in_the_same_folder_sets_the_best_checkpoint_of_the_old_one_aside(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    old = best_epochs(folder)["checkpoint-best.pth"]
    with save_but_not("checkpoint-best.pth"), pytest.raises(Killed):
        train(folder, task, "--no_auto_resume")
    assert "checkpoint-best.pth" not in best_epochs(folder)
    assert best_epochs(folder)["checkpoint-best.later.pth"] == old


ALOUD: tuple[Any, ...] = ("--select_by", "roc_auc", "--update_freq", 1, "--total_batch_size", 4, "--clip_grad", 0)
ALOUD += ("--weight_decay_end", 0.05, "--layer_scale_init_value", 0.1, "--nb_classes", 1, "--opt", "AdamW")


def test_a_run_goes_on_when_its_defaults_are_said_aloud(
    tmp_path: Path, task: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.copy(folder / "checkpoint-0.pth", folder / "checkpoint.pth")
    assert train(folder, task, *ALOUD) == 0
    assert_same_run(straight, folder)
    assert train(folder, task, "--select_by", "accuracy") == 1
    assert "--select_by accuracy, the checkpoint has roc_auc" in capsys.readouterr().err


def test_averaged_weights_are_not_made_up_for_a_run_that_had_none(
    tmp_path: Path, task: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(straight, tmp_path / "run")
    assert train(tmp_path / "run", task, "--model_ema") == 1
    assert "--model_ema True, the checkpoint has False" in capsys.readouterr().err
    assert train(tmp_path / "run", task, "--model_ema", "--resume_anyway") == 1
    assert "holds no model_ema" in capsys.readouterr().err


def test_an_evaluation_keeps_the_last_epochs_predictions(tmp_path: Path, task: Path, straight: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    before = predictions(folder / "predictions-test.npz")
    assert train(folder, task, "--eval", "--resume", folder / "checkpoint-0.pth") == 0
    after = predictions(folder / "predictions-test.npz")
    assert int(after["epoch"]) == 0 and int(after["last_epoch"]) == EPOCHS - 1
    np.testing.assert_array_equal(after["last_logits"], before["last_logits"])


def test_a_world_size_without_a_rank_is_one_process_that_sees_all_data(
    tmp_path: Path, task: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters export it
    assert train(tmp_path / "run", task) == 0
    assert_same_run(straight, tmp_path / "run")


def numbered(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-[0-9]*")}


@pytest.mark.parametrize(("keep", "left"), [(0, (0, 1, 2)), (1, (2,)), (2, (1, 2)), (9, (0, 1, 2))])
def test_only_the_last_numbered_checkpoints_are_kept_where_asked(
    tmp_path: Path, task: Path, keep: int, left: tuple[int, ...]
) -> None:
    assert train(tmp_path, task, "--keep_last", keep) == 0
    assert numbered(tmp_path) == {f"checkpoint-{n}.pth{end}" for n in left for end in ("", ".sha256")}


def test_another_number_of_processes_continues_between_two_epochs_with_a_warning(
    tmp_path: Path, task: Path, straight: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.copy(folder / "checkpoint-0.pth", folder / "checkpoint.pth")
    words = [*CLASSIFIER, "--output_dir", folder, "--dataset", task, "--epochs", EPOCHS, "--drop_path", 0.3]
    script = [ROOT / "run_class_finetuning.py", *words, "--save_ckpt_freq", 1, "--batch_size", 2]
    ended = start(script, cwd=tmp_path, processes=2)
    assert "made by 1 process(es), now there are 2" in ended.stderr
    assert [line["epoch"] for line in log(folder)] == [0, 1, 2]
    one, two = (checkpoint(name / "checkpoint.pth")["model"] for name in (straight, folder))
    # Drop path differs between processes, so the weights are near and not equal.
    assert any(not torch.equal(value, two[name]) for name, value in one.items())
    assert max(float((value - two[name]).abs().max()) for name, value in one.items()) < 0.05


def test_a_checkpoint_inside_an_epoch_with_other_batches_begins_the_epoch_again(
    tmp_path: Path, task: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    module = importlib.import_module("training_state")
    steps = []

    class Killed(Exception):
        pass

    original = module.TrainingState.save

    def save_and_die(state: Any, *arguments: Any) -> None:
        original(state, *arguments)
        if state.step:
            steps.append((state.epoch, state.step))
            raise Killed

    with patch.object(module.TrainingState, "save", save_and_die), pytest.raises(Killed):
        train(folder, task, "--save_every_minutes", 1e-9)
    assert steps == [(0, 1)] and checkpoint(folder / "checkpoint.pth")["step"] == 1
    assert train(folder, task, "--batch_size", 2) == 1  # refused
    assert train(folder, task, "--batch_size", 2, "--resume_anyway") == 0
    assert "epoch 0 is begun again" in caplog.text
    assert [line["epoch"] for line in log(folder)] == [0, 1, 2]
    assert checkpoint(folder / "checkpoint.pth")["update"]["step"] == 4 * EPOCHS


def test_the_learning_rate_schedule_ends_with_the_last_step(straight: Path) -> None:
    state = checkpoint(straight / "checkpoint.pth")
    steps = 2 * EPOCHS  # eight samples in batches of four
    assert state["update"]["step"] == steps
    last = 1e-6 + 0.5 * (5e-4 - 1e-6) * (1 + math.cos(math.pi * (steps - 1) / steps))  # stage 3's defaults, no warm-up
    rates = {group["lr"] / group["lr_scale"] for group in state["optimizer"]["param_groups"]}
    assert all(rate == pytest.approx(last, rel=1e-9) for rate in rates)
