"""Runs that are killed end, by the same command, as if they had not; bad values, unreadable files, full disks, signals.

Runs of one process stay in the tests' own; what concerns several goes through torchrun.
LABRAM_SOAK: at how many random moments the runs of each stage are stopped.
"""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch

from eeg_data.batches import TrainingBatches
from optim_factory import Update
from recovery import (
    EPOCHS,
    STEPS,
    Fault,
    data,
    differences,
    job,
    log_lines,
    planned,
    reference,
    scalars,
    unequal,
    usual,
)
from run_helpers import ELECTRODES, RATE, ROOT, call, checkpoint, kill_tree, labelled_file
from training import checkpoints
from waiting import wait_for

OFTEN = ("--save_every_minutes", 1e-5)  # after every step
STAGES = ("tokenizer", "masked", "classifier")
MOMENTS = 4  # at which a run is stopped
RUNS = -(-int(os.environ.get("LABRAM_SOAK", "4")) // MOMENTS)  # of each stage
NO_SCALARS = ("epoch", "n_parameters")  # of a line of log.txt
WORKERS = [["--num_workers", number] for number in ("0", "1")]  # of the attempts of stage 2
WINDOW = 2  # seconds
WINDOWS = [20, 13]  # of the two montages in their order; the first 12 are of train/a.hdf5's first recording


def test_the_runs_have_what_could_differ() -> None:
    assert log_lines(reference("tokenizer") / "run")[-1]["train_revived"] > 0, "no code was revived"
    best = checkpoint(reference("classifier") / "run" / "checkpoint.pth")["extras"]
    assert "model_ema" in best and best["best"]["epoch"] is not None
    for stage in STAGES:
        lines = log_lines(reference(stage) / "run")
        assert [line["epoch"] for line in lines] == list(range(EPOCHS[stage]))
        assert len({line["train_loss"] for line in lines}) == EPOCHS[stage], "nothing was learnt"


@pytest.mark.parametrize(("stage", "number"), list(itertools.product(STAGES, range(RUNS))))
def test_a_run_stopped_at_random_moments_ends_as_one_that_never_stopped(
    stage: str, number: int, tmp_path: Path
) -> None:
    words = WORKERS if stage == "masked" else ()
    ended = usual(stage, *OFTEN, faults=planned(stage, MOMENTS, seed=number), words=words).run(tmp_path)
    assert ended.struck() == MOMENTS, "not every fault happened: this test would prove less"
    assert unequal(reference(stage), tmp_path) == []
    names, expected = ({path.name for path in (one / "run").iterdir()} for one in (tmp_path, reference(stage)))
    assert names == expected
    starts = ended.starts()
    assert len(starts) == MOMENTS + 1 and starts[0] == (0, 0)
    assert sum(step > 0 for _, step in starts) >= MOMENTS // 2, starts
    places = [epoch * STEPS + step for epoch, step in starts]
    assert places == sorted(places)


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_shows_the_numbers_of_the_log_each_once(stage: str) -> None:
    lines = log_lines(reference(stage) / "run")
    logged = {(name, line["epoch"]): value for line in lines for name, value in line.items() if name not in NO_SCALARS}
    assert scalars(reference(stage) / "board") == {key: [np.float32(value)] for key, value in logged.items()}


def test_a_run_whose_machine_died_ends_by_the_same_command_as_if_it_had_not(tmp_path: Path) -> None:
    def die(pid: int) -> None:
        wait_for(tmp_path / "notes" / "fault-0")  # process 0 has halted itself, so that the run cannot end before
        kill_tree(pid)  # torchrun and all processes

    fault = {"at": "step", "after": 3, "rank": 0, "signal": "SIGSTOP"}
    same = usual("classifier", *OFTEN, faults=[fault], restarts=0)
    assert same.run(tmp_path, during=die, check=False).code == -signal.SIGKILL
    again = same.run(tmp_path)
    assert again.starts()[-1] > (0, 0)
    assert unequal(reference("classifier"), tmp_path) == []


@pytest.mark.nightly
def test_three_processes_resume_exactly_although_their_sums_depend_on_the_order_of_gradients(tmp_path: Path) -> None:
    # torch gives gradients other places in their exchange after the first step, so that a sum's rounding may change.
    words: list[Any] = ["--batch_size", 2]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    usual("classifier", *words, processes=3).run(whole)
    faults: list[Fault] = [
        {"at": "step", "after": 3, "behind": True, "rank": 2, "signal": "SIGKILL"},
        {"at": "step", "after": 11, "rank": 1, "signal": "SIGTERM"},
    ]
    ended = usual("classifier", *words, *OFTEN, processes=3, faults=faults).run(cut)
    assert all(step > 0 for _, step in ended.starts()[1:])
    assert unequal(whole, cut) == []


def test_the_comparison_sees_a_single_bit() -> None:
    whole = reference("classifier")
    state = checkpoint(whole / "run" / "checkpoint.pth")
    other = checkpoint(whole / "run" / "checkpoint.pth")
    assert list(differences(state, other)) == []
    weight = other["optimizer"]["state"][0]["exp_avg"]
    weight.view(-1).numpy().view("uint8")[0] ^= 1
    assert len(list(differences(state, other))) == 1


def poisoned(folder: Path, stage: str, *, window: int) -> dict[str, Any]:
    """Write data of which one window is not finite though the file calls it valid; returns how it is to be named.

    window: of the first recording, or a sample.
    """
    data(folder)
    for before in ("tokenizer", "masked"):
        if stage != "tokenizer" and (before == "tokenizer" or stage == "classifier"):
            (folder / f"{before}.pth").symlink_to(reference(before) / "run" / "checkpoint.pth")
    if stage == "classifier":
        path = folder / "task.hdf5"
        with h5py.File(path, "r+") as file:
            group = file["train"]
            group["eeg"][window, 1, 30] = np.nan
            group["valid"] = np.ones((len(group["eeg"]), WINDOW), bool)
            return {"file": str(path), "recording": group["recording"][window].decode(), "sample": window}
    path = folder / "train" / "a.hdf5"
    with h5py.File(path, "r+") as file:
        for group in file.values():
            group["valid"] = np.ones(-(-group["eeg"].shape[1] // RATE), bool)
        file["recording0"]["eeg"][1, window * WINDOW * RATE + 30] = np.nan
    return {"file": str(path), "recording": "recording0", "start_seconds": float(window * WINDOW)}


def bad_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of bad_steps.jsonl."""
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


def train(stage: str, folder: Path, *words: Any) -> int:
    """Run a stage on a folder's data in this process, for two epochs."""
    one = job(stage, folder, *words)
    return call(one.script, *one.flags, "--epochs", 2, "--output_dir", folder / "run")


def snapshot(update: Update) -> Any:
    """Return a copy of weights, codebook, and the optimizer's moments."""
    return copy.deepcopy((dict(update.model.module.state_dict()), update.optimizer.state_dict()["state"]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_window_that_is_not_finite_is_named_and_its_step_changes_nothing(stage: str, tmp_path: Path) -> None:
    named = poisoned(tmp_path, stage, window=5)
    original, changed = Update.__call__, []

    def watched(update: Update, *arguments: Any) -> bool:
        before = snapshot(update)
        taken = original(update, *arguments)
        if update.skipped:
            changed.append(list(differences(before, snapshot(update))))
        return taken

    with patch.object(Update, "__call__", watched):
        assert train(stage, tmp_path) == 0
    assert changed == [[], []]
    lines = bad_steps(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        culprits = [window for window in line["windows"] if not window["finite"]]
        assert len(culprits) == 1 and line["windows"][0] == culprits[0]
        assert named.items() <= culprits[0].items()
    assert [line["train_skipped_steps"] for line in log_lines(tmp_path / "run")] == [1, 1]
    weights = checkpoint(tmp_path / "run" / "checkpoint.pth")["model"]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_with_nonfinite_stop_the_run_ends_before_the_step_changes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = poisoned(tmp_path, "tokenizer", window=5)
    assert train("tokenizer", tmp_path, "--nonfinite", "stop", *OFTEN) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and named["file"] in lines[0] and named["recording"] in lines[0]
    (step,) = bad_steps(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pth"
    assert step["step"] > 0, "there is nothing to be kept before the first step: choose another window"
    assert (checkpoint(path)["epoch"], checkpoint(path)["step"]) == (step["epoch"] - 1, step["step"])
    # The same command comes to the same step.
    assert train("tokenizer", tmp_path, "--nonfinite", "stop", *OFTEN) == 1
    assert bad_steps(tmp_path / "run") == [step]


def test_after_ten_bad_steps_in_a_row_a_run_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled_file(tmp_path / "task.hdf5", counts={"train": 48, "val": 4})
    with h5py.File(tmp_path / "task.hdf5", "r+") as file:
        file["train"]["eeg"][:, 0, 0] = np.nan
        file["train"]["valid"] = np.ones((48, WINDOW), bool)
    words = ["--dataset", tmp_path / "task.hdf5", "--output_dir", tmp_path / "run", "--device", "cpu"]
    words += ["--model", "labram_tiny_patch200_200", "--num_workers", 0, "--batch_size", 4, "--epochs", 1]
    assert call("run_class_finetuning", *words) == 1
    assert len(bad_steps(tmp_path / "run")) == 10
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "10 in a row" in line and str(tmp_path / "task.hdf5") in line


def window_of(rank: int, *, after: int) -> int:
    """Return a window of train/a.hdf5's first recording that only this one of two processes reads, after some steps."""
    batches = TrainingBatches(WINDOWS, 4, seed=0, rank=rank, processes=2)
    for batch in list(batches)[after:]:
        for _, montage, window in batch:
            if montage == 0 and window < 12:
                return window
    raise AssertionError("no such window: choose another step")


def test_a_bad_step_of_one_process_is_skipped_by_all_and_resumed_like_any(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    poisoned(tmp_path, "tokenizer", window=window_of(1, after=1))
    job("tokenizer", tmp_path).run(whole)
    (bad, *_) = bad_steps(whole / "run")
    faults: list[Fault] = [{"at": "step", "after": bad["step"] + 2, "rank": 0, "signal": "SIGKILL"}]
    job("tokenizer", tmp_path, *OFTEN, faults=faults).run(cut)
    assert unequal(whole, cut) == []
    assert bad_steps(cut / "run") == bad_steps(whole / "run")
    assert [line["train_skipped_steps"] for line in log_lines(cut / "run")] == [1] * 4


def test_a_window_that_one_process_cannot_read_ends_all_with_that_processs_line(tmp_path: Path) -> None:
    data(tmp_path)
    path = tmp_path / "train" / "a.hdf5"
    window = window_of(1, after=2)
    with h5py.File(path, "r+") as file:
        eeg = file["recording0"]["eeg"][()]
        attributes = dict(file["recording0"]["eeg"].attrs)
        del file["recording0"]["eeg"]
        packed = file["recording0"].create_dataset("eeg", data=eeg, chunks=(len(ELECTRODES), RATE), compression="gzip")
        packed.attrs.update(attributes)
        for group in file.values():
            group["valid"] = np.ones(-(-group["eeg"].shape[1] // RATE), bool)
        place = packed.id.get_chunk_info(window * WINDOW).byte_offset
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\xff" * 64)
    ended = job("tokenizer", tmp_path, *OFTEN, restarts=0).run(tmp_path, check=False)
    assert ended.code == 1
    assert ended.codes() in ({0: 1, 1: 1}, {1: 1}), "the other one may be ended by torchrun"
    (line,) = ended.errors()
    assert line.startswith("[process 1] error: ") and str(path) in line and "recording0" in line
    assert "Traceback" not in ended.said()
    assert checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] > 0, "what was trained before is kept"


@pytest.mark.nightly
def test_a_killed_loading_process_ends_the_run_and_torchrun_starts_it_again(tmp_path: Path) -> None:
    fault = {"at": "step", "after": 6, "rank": 1, "worker": True, "signal": "SIGKILL"}
    ended = usual("classifier", *OFTEN, "--num_workers", 1, faults=[fault]).run(tmp_path)
    assert ended.codes(0) in ({0: 1, 1: 1}, {1: 1})
    (line,) = ended.errors(0)
    assert line.startswith("[process 1] error: ") and "loading process" in line
    assert "Traceback" not in ended.said(0)
    assert unequal(reference("classifier"), tmp_path) == []


@pytest.mark.parametrize(
    ("limit", "file", "words"),  # limit: bytes of the largest file that can be written; the log of stderr stays below
    [(1_000_000, "checkpoint.pth", OFTEN), pytest.param(2_800, "predictions-val.npz", (), marks=pytest.mark.nightly)],
)
def test_a_full_disk_ends_all_with_a_line_and_the_same_command_goes_on_when_there_is_room(
    limit: int, file: str, words: Sequence[Any], tmp_path: Path
) -> None:
    fault = {"at": "step", "after": STEPS + 3, "rank": 0, "limit": limit}
    same = usual("classifier", *words, faults=[fault], restarts=0)
    ended = same.run(tmp_path, check=False)
    assert ended.code == 1 and ended.codes()[0] == 2, ended.said()
    (line,) = ended.errors()
    assert str(tmp_path / "run" / file) in line and "cannot be written" in line
    assert "Traceback" not in ended.said()
    assert checkpoints.read(tmp_path / "run" / "checkpoint.pth")["epoch"] == 0, "the checkpoint from before is whole"
    assert not list((tmp_path / "run").glob(".*.part")), "half a file fills the disk that is full"
    same.run(tmp_path)
    assert unequal(reference("classifier"), tmp_path) == []


def test_a_signal_to_one_process_stops_all_after_a_checkpoint_and_nothing_is_lost(tmp_path: Path) -> None:
    faults: list[Fault] = [
        {"at": "step", "after": 3, "rank": 1, "signal": "SIGTERM"},
        {"at": "evaluate", "after": 8, "rank": 1, "signal": "SIGUSR1"},
        {"at": "step", "after": 13, "rank": 0, "signal": "SIGINT"},
    ]
    ended = usual("classifier", faults=faults).run(tmp_path)
    for attempt, (name, code) in enumerate([("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)]):
        assert ended.codes(attempt) == {0: code, 1: code}, ended.said(attempt)
        (line,) = [line for line in ended.said(attempt).splitlines() if line.startswith("stopped by ")]
        assert f"stopped by {name} after step " in line and "Traceback" not in ended.said(attempt)
    # Without --save_every_minutes: what is inside an epoch was saved on the way out, at most two steps later.
    places = [epoch * STEPS + step for epoch, step in ended.starts()]
    for fault, place in zip(faults, places[1:], strict=True):
        assert fault["after"] < place, "the steps before the signal are lost"
    assert places[1] <= 3 + 3 and places[3] <= 13 + 3
    assert unequal(reference("classifier"), tmp_path) == []


def test_a_signal_to_the_whole_job_stops_a_run_with_loading_processes_after_a_checkpoint(tmp_path: Path) -> None:
    same = usual("classifier", "--num_workers", 2, *OFTEN, "--epochs", 100)  # it must not end before
    command = [sys.executable, ROOT / f"{same.script}.py", *same.flags, "--output_dir", tmp_path / "run"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*map(str, command)], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            wait_for(tmp_path / "run" / "checkpoint.pth")
            os.killpg(run.pid, signal.SIGTERM)
            err = run.communicate(timeout=120)[1]
        finally:
            kill_tree(run.pid)
    assert run.returncode == 143, err
    assert "stopped by SIGTERM after step" in err and "error: " not in err
