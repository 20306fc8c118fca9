"""`--seeds`: each seed is an ordinary run, resumed as one; and `--eval` prints what training logged."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import optim_factory
import run_class_finetuning
from data_helpers import script_args
from recovery import assert_same_training, log_lines
from run_helpers import CLASSIFIER, ROOT, call, checkpoint, labelled_file, log, predictions, start
from seeds import flags_of

EPOCHS = 2


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small binary set that goes by a published name."""
    return labelled_file(tmp_path_factory.mktemp("task") / "TUAB.hdf5", counts={"train": 12, "val": 9, "test": 10})


def words(task: Path, folder: Path, *more: Any) -> list[Any]:
    flags = ["--dataset", task, "--output_dir", folder, "--epochs", EPOCHS, "--drop_path", 0.3, "--lr", "3e-3"]
    return [*CLASSIFIER, *flags, "--save_ckpt_freq", 1, *more]


@pytest.fixture(scope="module")
def both(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of two seeds that were never stopped."""
    folder = tmp_path_factory.mktemp("both")
    assert call("run_class_finetuning", *words(task, folder, "--seeds", 0, 1, "--log_dir", folder / "log")) == 0
    return folder


@pytest.fixture
def copied(both: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a copy of these runs."""
    shutil.copytree(both, tmp_path / "copy")
    yield tmp_path / "copy"


def said(caplog: pytest.LogCaptureFixture, start_of_line: str) -> dict[str, str]:
    """Return the printed metrics of the one line that starts so, as text."""
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith(start_of_line)]
    return dict(re.findall(r"(\w+) ([-\d.]+|nan)", line.partition(": ")[2]))


def printed(line: dict[str, Any], split: str) -> dict[str, str]:
    """Return what a line of log.txt holds of a set as `--eval` prints it."""
    values = {name.removeprefix(f"{split}_"): value for name, value in line.items() if name.startswith(f"{split}_")}
    return {name: "nan" if value is None else f"{value:.4f}" for name, value in values.items()}


# Several seeds


def test_a_seed_is_bit_for_bit_the_run_that_its_own_command_gives(both: Path, task: Path, tmp_path: Path) -> None:
    assert call("run_class_finetuning", *words(task, tmp_path, "--seed", 1)) == 0
    assert_same_training(tmp_path, both / "seed-1")
    assert log_lines(both / "seed-0") != log_lines(both / "seed-1"), "seeds differ"
    assert sorted(path.name for path in both.iterdir()) == ["log", "seed-0", "seed-1"]
    assert len(list((both / "log" / "seed-1").glob("events*"))) == 1
    flags = json.loads((both / "seed-1" / "environment.json").read_text())["flags"]
    assert (flags["seed"], flags["seeds"]) == (1, None)


def test_the_same_command_skips_finished_seeds_and_prints_the_table(
    copied: Path, task: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.suffix in (".pth", ".npz", ".txt")}
    caplog.set_level("INFO")
    with patch.object(optim_factory.Update, "__call__", side_effect=AssertionError("a finished seed was trained")):
        assert call("run_class_finetuning", *words(task, copied, "--seeds", 0, 1, "--log_dir", copied / "log")) == 0
    assert {path: path.read_bytes() for path in before} == before
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("LaBraM-Base") and "0.8140 \u00b1 0.0019" in line for line in lines)
    assert any(line.startswith("here (2 runs)") for line in lines)
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("seed-")}
    for seed in (0, 1):
        every = log(copied / f"seed-{seed}")
        best = max(every, key=lambda line: line["val_roc_auc"])
        names = ("val_roc_auc", "test_accuracy", "test_balanced_accuracy", "test_pr_auc", "test_roc_auc")
        assert rows[f"seed-{seed}"][1:] == [str(best["epoch"]), *(f"{best[name]:.4f}" for name in names)]


def test_a_signal_in_the_second_seed_is_resumed_by_the_same_command_bit_for_bit(
    both: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, steps = optim_factory.Update.__call__, []

    def stopped(self: Any, loss: Any) -> Any:
        steps.append(1)
        if len(steps) == EPOCHS * 3 + 4:  # of three steps an epoch: the first of the second seed's second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, loss)

    command = words(task, tmp_path, "--seeds", 0, 1)
    with patch.object(optim_factory.Update, "__call__", stopped):
        assert call("run_class_finetuning", *command) == 143
    captured = capsys.readouterr()
    assert "stopped by SIGTERM after step 1 of epoch 1; the same command goes on from here" in captured.err
    assert "here (" not in captured.out, "no table of runs that are not there yet"
    assert len(log(tmp_path / "seed-1")) == 1
    assert call("run_class_finetuning", *command) == 0
    for seed in (0, 1):
        assert_same_training(tmp_path / f"seed-{seed}", both / f"seed-{seed}")


def test_a_seeds_folder_is_continued_by_a_run_of_its_own(copied: Path, both: Path, task: Path) -> None:
    shutil.copy(copied / "seed-1" / "checkpoint-0.pth", copied / "seed-1" / "checkpoint.pth")
    assert call("run_class_finetuning", *words(task, copied / "seed-1", "--seed", 1)) == 0
    assert_same_training(copied / "seed-1", both / "seed-1")


def test_further_seeds_join_the_finished_ones(copied: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run_class_finetuning", *words(task, copied, "--seeds", 0, 1, 7)) == 0
    assert "here (3 runs)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--seeds", 0, 1, 0], "--seeds has 0 twice"),
        (["--seeds", 0, -1], "--seeds -1: allowed are numbers from 0"),
        (["--seeds", 0, 1, "--resume", "x.pth"], "--resume x.pth is of one run, --seeds are several"),
    ],
)
def test_seeds_that_cannot_be_right_are_refused_before_the_first_begins(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[Any], what: str
) -> None:
    assert call("run_class_finetuning", *words(task, tmp_path / "out", *more)) == 2
    err = capsys.readouterr().err
    assert what in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_flags_of_a_seed_leave_the_commands_as_they_are(task: Path, tmp_path: Path) -> None:
    args = script_args(run_class_finetuning, *words(task, tmp_path, "--seeds", 3, 4))
    before = dict(vars(args))
    own = flags_of(args, 4)
    assert (own.seed, own.seeds, own.output_dir, own.log_dir) == (4, None, tmp_path / "seed-4", None)
    assert vars(args) == before
    single = script_args(run_class_finetuning, *words(task, tmp_path / "seed-4", "--seed", 4))
    assert vars(own) == vars(single)


@pytest.fixture(scope="module")
def in_two_processes(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Train two seeds under torchrun, then evaluate them; return the folder and both outputs."""
    folder = tmp_path_factory.mktemp("torchrun")
    command = [ROOT / "run_class_finetuning.py", *words(task, folder / "out", "--batch_size", 2, "--seeds", 0, 1)]
    trained = start(command, cwd=folder, processes=2)
    evaluated = start([*command, "--eval"], cwd=folder, processes=2)
    return folder / "out", [trained.stdout, evaluated.stdout, evaluated.stderr]


def test_two_processes_go_through_the_seeds_together_and_print_one_table(
    in_two_processes: tuple[Path, list[str]],
) -> None:
    folder, (trained, evaluated, _) = in_two_processes
    for out in (trained, evaluated):
        assert out.count("here (2 runs)") == 1 and out.count("seed-1 ") == 1
    for seed in (0, 1):
        assert len(log(folder / f"seed-{seed}")) == EPOCHS
        environment = json.loads((folder / f"seed-{seed}" / "environment.json").read_text())
        assert environment["hardware"]["processes"] == 2


def test_an_evaluation_by_two_processes_prints_what_training_logged(in_two_processes: tuple[Path, list[str]]) -> None:
    folder, (*_, err) = in_two_processes
    shown = [line for line in err.splitlines() if re.match(r"epoch \d+, (val|test): ", line)]
    expected = []
    for seed in (0, 1):
        best = checkpoint(folder / f"seed-{seed}" / "checkpoint-best.pth")["epoch"]
        line = log(folder / f"seed-{seed}")[best]
        for split in ("val", "test"):
            values = ", ".join(f"{name} {value}" for name, value in printed(line, split).items())
            expected.append(f"epoch {best}, {split}: {values}")
    assert shown == expected


# An evaluation of a checkpoint


@pytest.mark.parametrize("name", ["checkpoint-best.pth", "checkpoint.pth", "checkpoint-0.pth", "checkpoint-1.pth"])
def test_eval_prints_what_training_logged_of_that_checkpoint(
    both: Path, task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("INFO")
    path = both / "seed-1" / name
    epoch = checkpoint(path)["epoch"]
    assert call("run_class_finetuning", *words(task, tmp_path, "--eval", "--resume", path)) == 0
    line = log(both / "seed-1")[epoch]
    for split in ("val", "test"):
        assert said(caplog, f"epoch {epoch}, {split}:") == printed(line, split)
    assert int(predictions(tmp_path / "predictions-test.npz")["epoch"]) == epoch


def test_eval_with_averaged_weights_prints_what_training_logged(
    task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged = ["--model_ema", "--model_ema_decay", 0.5]
    assert call("run_class_finetuning", *words(task, tmp_path / "run", *averaged)) == 0
    caplog.set_level("INFO")
    for name in ("checkpoint-best.pth", "checkpoint-0.pth", "checkpoint.pth"):
        caplog.clear()
        path = tmp_path / "run" / name
        epoch = checkpoint(path)["epoch"]
        own = words(task, tmp_path / name, "--eval", "--resume", path)
        assert call("run_class_finetuning", *own, *averaged) == 0
        for split in ("val", "test"):
            assert said(caplog, f"epoch {epoch}, {split}:") == printed(log(tmp_path / "run")[epoch], split)
    caplog.clear()
    assert call("run_class_finetuning", *own) == 0
    assert "averaged weights it also holds: --model_ema takes them" in caplog.text
    assert said(caplog, f"epoch {epoch}, val:") != printed(log(tmp_path / "run")[epoch], "val")


def test_eval_of_several_seeds_takes_each_ones_selected_epoch(
    copied: Path, task: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        (copied / f"seed-{seed}" / "predictions-test.npz").unlink()
    caplog.set_level("INFO")
    assert call("run_class_finetuning", *words(task, copied, "--seeds", 0, 1, "--eval")) == 0
    out = capsys.readouterr().out
    assert "here (2 runs)" in out and "note:" not in out, "predictions are there again and agree with the log"
    for seed in (0, 1):
        best = checkpoint(copied / f"seed-{seed}" / "checkpoint-best.pth")["epoch"]
        assert f"Evaluating {copied / f'seed-{seed}' / 'checkpoint-best.pth'}." in caplog.text
        assert int(predictions(copied / f"seed-{seed}" / "predictions-test.npz")["epoch"]) == best


def test_eval_of_several_seeds_on_another_set_is_refused_and_changes_nothing(
    copied: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.hdf5"
    other.write_bytes(task.read_bytes())
    before = (copied / "seed-0" / "predictions-test.npz").read_bytes()
    assert call("run_class_finetuning", *words(other, copied, "--seeds", 0, 1, "--eval")) == 2
    assert f"on the set of their training, --dataset {task}" in capsys.readouterr().err
    assert (copied / "seed-0" / "predictions-test.npz").read_bytes() == before


def test_a_checkpoint_of_no_whole_epoch_is_said_to_be(
    both: Path, task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = checkpoint(both / "seed-0" / "checkpoint-0.pth") | {"step": 2}
    torch.save(state, tmp_path / "inside.pth")
    assert call("run_class_finetuning", *words(task, tmp_path, "--eval", "--resume", tmp_path / "inside.pth")) == 0
    assert "was written after step 2 of an epoch, so training has no metrics of it" in caplog.text
