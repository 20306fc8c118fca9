"""Runs that are killed end, by the same command, as if they had not; bad values, unreadable files, full disks, signals.

Runs of one process stay in the tests' own; what concerns several takes copies of a process that has imported all, but
for one test by torchrun. LABRAM_SOAK: at how many random moments the runs of each stage are stopped.
"""

import copy
import itertools
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch

from data_helpers import differences
from eeg_data.batches import TrainingBatches
from optim_factory import Update
from ranks import TESTS, Ended, Fault, launch, smaller_sizes
from run_helpers import (
    CLASSIFIER,
    MASKED,
    RATE,
    TOKENIZER,
    call,
    checkpoint,
    differing,
    labelled_file,
    log_lines,
    pretraining_file,
    scalars,
    start,
)
from training import checkpoints

OFTEN = ("--save_every_minutes", 1e-5)  # after every step
STAGES = ("tokenizer", "masked", "classifier")
EPOCHS = {"tokenizer": 4, "masked": 3, "classifier": 4}
STEPS = 5  # an epoch, of two processes with batches of 4
PLACES = ("step", "save", "replace", "evaluate")
MOMENTS = 4  # at which a run is stopped
RUNS = -(-int(os.environ.get("LABRAM_SOAK", "4")) // MOMENTS)  # of each stage
NO_SCALARS = ("epoch", "n_parameters")  # of a line of log.txt
WORKERS = [["--num_workers", number] for number in ("0", "0", "1")]  # of the attempts of stage 2
WINDOW = 2  # seconds
WINDOWS = [20, 13]  # of the two montages in their order; the first 12 are of train/a.hdf5's first recording


def write_data(folder: Path) -> None:
    """Write what the runs train and evaluate on: two montages and a task, 5 steps an epoch each."""
    pretraining_file(folder / "train" / "a.hdf5", seconds=(24, 16))
    pretraining_file(folder / "train" / "b.hdf5", seconds=(26,), electrodes=("FP1", "O2", "T3"), seed=4)
    pretraining_file(folder / "val" / "a.hdf5", seconds=(14,), seed=5)
    pretraining_file(folder / "val" / "b.hdf5", seconds=(10,), electrodes=("FP1", "O2", "T3"), seed=6)
    labelled_file(folder / "task.hdf5", counts={"train": 38, "val": 14, "test": 10})


def command(stage: str, data: Path, output: Path, *words: Any) -> tuple[str, list[Any]]:
    """Return the script and the flags of a stage; stages 2 and 3 begin with `tokenizer.pth` and `masked.pth`."""
    pretraining = ["--train_data", data / "train", "--val_data", data / "val"]
    # A learning rate at which codes die, so that the revival has something to do.
    one = [*TOKENIZER, *pretraining, "--lr", 0.06]
    two = [*MASKED, *pretraining, "--tokenizer_weight", data / "tokenizer.pth", "--drop_path", 0.1]
    two += ["--batch_size", 2, "--gradient_accumulation_steps", 2, "--clip_grad", 3]
    three = [*CLASSIFIER, "--dataset", data / "task.hdf5", "--finetune", data / "masked.pth", "--drop_path", 0.1]
    three += ["--model_ema", "--model_ema_decay", 0.9]
    scripts = {"run_vqnsp_training": one, "run_labram_pretraining": two, "run_class_finetuning": three}
    script, own = list(scripts.items())[STAGES.index(stage)]
    common = ["--epochs", EPOCHS[stage], "--save_ckpt_freq", 2]
    return script, [*own, *common, "--output_dir", output / "run", "--log_dir", output / "board", *words]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and for each stage a folder with a run that was never stopped."""
    folder = tmp_path_factory.mktemp("references")
    write_data(folder)
    for stage in STAGES:
        launch(*command(stage, folder, folder / stage), folder / stage)
        (folder / f"{stage}.pth").symlink_to(folder / stage / "run" / "checkpoint.pth")
    return folder


def planned(stage: str, n: int, *, seed: int) -> list[Fault]:
    """Return n faults of a run at random moments in rising order, each certain to happen once the ones before have.

    Every second one strikes late enough in an epoch for a checkpoint inside it to be there.
    """
    random = np.random.default_rng((seed, *map(ord, stage)))
    total = STEPS * EPOCHS[stage]
    edges = np.linspace(1, total - 1, n + 1).round().astype(int)
    places = np.concatenate([random.permutation(PLACES) for _ in range(-(-n // len(PLACES)))])
    faults: list[Fault] = []
    for number, (low, high, place) in enumerate(zip(edges[:-1], edges[1:], places[:n].tolist(), strict=True)):
        moments = range(low, max(low + 1, high))
        late = [step for step in moments if step % STEPS >= STEPS - 2]
        after = int(random.choice(late if late and number % 2 == 0 else moments))
        last_epoch = after >= total - STEPS
        fault = {"at": "step" if last_epoch and place == "evaluate" else place, "after": after, "signal": "SIGKILL"}
        fault["ranks"] = [int(random.integers(2))]
        if place in ("save", "replace"):
            fault |= {"ranks": [0], "number": int(random.integers(1, 3 if last_epoch else 4))}  # rank 0 writes
        if fault["at"] in ("step", "replace"):
            fault["behind"] = bool(random.integers(2))
        if place in ("step", "evaluate") and random.random() < 0.4:
            fault["signal"] = str(random.choice(["SIGTERM", "SIGUSR1"]))
        faults.append(fault)
    return faults


def test_the_runs_have_what_could_differ(references: Path) -> None:
    assert log_lines(references / "tokenizer" / "run")[-1]["train_revived"] > 0, "no code was revived"
    best = checkpoint(references / "classifier.pth")["extras"]
    assert "model_ema" in best and best["best"]["epoch"] is not None
    for stage in STAGES:
        lines = log_lines(references / stage / "run")
        assert [line["epoch"] for line in lines] == list(range(EPOCHS[stage]))
        assert len({line["train_loss"] for line in lines}) == EPOCHS[stage], "nothing was learnt"


@pytest.mark.parametrize(("stage", "number"), list(itertools.product(STAGES, range(RUNS))))
def test_a_run_stopped_at_random_moments_ends_as_one_that_never_stopped(
    stage: str, number: int, tmp_path: Path, references: Path
) -> None:
    faults, words = planned(stage, MOMENTS, seed=number), WORKERS if stage == "masked" else ()
    same = command(stage, references, tmp_path, *OFTEN)
    ended = launch(*same, tmp_path, faults=faults, words=words, restarts=MOMENTS)
    assert len(list(tmp_path.glob("fault-*"))) == MOMENTS, "not every fault happened: this test would prove less"
    assert differing(references / stage, tmp_path) == []
    names, expected = ({path.name for path in (one / "run").iterdir()} for one in (tmp_path, references / stage))
    assert names == expected
    starts = ended.starts()
    assert len(starts) == MOMENTS + 1 and starts[0] == (0, 0)
    assert sum(step > 0 for _, step in starts) >= MOMENTS // 2, starts
    assert starts == sorted(starts)


def test_torchrun_starts_a_run_again_whose_process_was_killed(tmp_path: Path, references: Path) -> None:
    fault = {"at": "step", "after": 8, "ranks": [1], "signal": "SIGKILL"}
    script, flags = command("classifier", references, tmp_path, *OFTEN)
    request = {"script": script, "flags": list(map(str, flags)), "folder": str(tmp_path), "faults": [fault]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    start([TESTS / "ranks.py", tmp_path / "request.json"], cwd=tmp_path, processes=2, PET_MAX_RESTARTS="1")
    assert Ended([], tmp_path).starts()[1] > (1, 0)
    assert differing(references / "classifier", tmp_path) == []


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_shows_the_numbers_of_the_log_each_once(stage: str, references: Path) -> None:
    lines = log_lines(references / stage / "run")
    logged = {(name, line["epoch"]): value for line in lines for name, value in line.items() if name not in NO_SCALARS}
    assert scalars(references / stage / "board") == {key: [np.float32(value)] for key, value in logged.items()}


def test_a_run_whose_machine_died_ends_by_the_same_command_as_if_it_had_not(tmp_path: Path, references: Path) -> None:
    same = command("classifier", references, tmp_path, *OFTEN)
    fault = {"at": "step", "after": 3, "ranks": [0, 1], "signal": "SIGKILL"}
    assert launch(*same, tmp_path, faults=[fault], check=False).codes == [[-signal.SIGKILL] * 2]
    assert launch(*same, tmp_path, faults=[fault]).starts()[-1] > (0, 0)
    assert differing(references / "classifier", tmp_path) == []


@pytest.mark.nightly
def test_three_processes_resume_exactly_although_their_sums_depend_on_the_order_of_gradients(
    tmp_path: Path, references: Path
) -> None:
    # torch gives gradients other places in their exchange after the first step, so that a sum's rounding may change.
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words: list[Any] = ["--batch_size", 2]
    launch(*command("classifier", references, whole, *words), whole, processes=3)
    faults: list[Fault] = [
        {"at": "step", "after": 3, "behind": True, "ranks": [2], "signal": "SIGKILL"},
        {"at": "step", "after": 11, "ranks": [1], "signal": "SIGTERM"},
    ]
    same = command("classifier", references, cut, *words, *OFTEN)
    ended = launch(*same, cut, processes=3, faults=faults, restarts=2)
    assert all(step > 0 for _, step in ended.starts()[1:])
    assert differing(whole, cut) == []


def test_the_comparison_sees_a_single_bit(references: Path) -> None:
    state, other = (checkpoint(references / "classifier.pth") for _ in range(2))
    assert differences(state, other) == []
    weight = other["optimizer"]["state"][0]["exp_avg"]
    weight.view(-1).numpy().view("uint8")[0] ^= 1
    assert differences(state, other) == [".optimizer.state.0.exp_avg"]


def poisoned(folder: Path, stage: str, *, window: int, references: Path) -> dict[str, Any]:
    """Write data of which one window is not finite; returns how it is to be named.

    window: of the first recording, or a sample.
    """
    write_data(folder)
    for before in STAGES[: STAGES.index(stage)]:
        (folder / f"{before}.pth").symlink_to(references / f"{before}.pth")
    if stage == "classifier":
        path = folder / "task.hdf5"
        with h5py.File(path, "r+") as file:
            group = file["train"]
            group["eeg"][window, 1, 30] = np.nan
            return {"file": str(path), "recording": group["recording"][window].decode(), "sample": window}
    path = folder / "train" / "a.hdf5"
    with h5py.File(path, "r+") as file:
        file["recording0"]["eeg"][1, window * WINDOW * RATE + 30] = np.nan
    return {"file": str(path), "recording": "recording0", "start_seconds": float(window * WINDOW)}


def bad_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of bad_steps.jsonl."""
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


def train(stage: str, folder: Path, *words: Any) -> int:
    """Run a stage on a folder's data in this process, for two epochs."""
    script, flags = command(stage, folder, folder, "--epochs", 2, *words)
    with smaller_sizes():
        return call(script, *flags)


def snapshot(update: Update) -> Any:
    """Return a copy of weights, codebook, and the optimizer's moments."""
    return copy.deepcopy((dict(update.model.module.state_dict()), update.optimizer.state_dict()["state"]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_window_that_is_not_finite_is_named_and_its_step_changes_nothing(
    stage: str, tmp_path: Path, references: Path
) -> None:
    named = poisoned(tmp_path, stage, window=5, references=references)
    original, changed = Update.__call__, []

    def watched(update: Update, *arguments: Any) -> bool:
        before = snapshot(update)
        complete = original(update, *arguments)
        if complete and not update.taken:
            changed.append(differences(before, snapshot(update)))
        return complete

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
    named = poisoned(tmp_path, "tokenizer", window=5, references=tmp_path)
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
    words = ["--dataset", tmp_path / "task.hdf5", "--output_dir", tmp_path / "run"]
    assert call("run_class_finetuning", *CLASSIFIER, *words) == 1
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


def test_a_bad_step_of_one_process_is_skipped_by_all_and_resumed_like_any(tmp_path: Path, references: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    poisoned(tmp_path, "tokenizer", window=window_of(1, after=1), references=references)
    launch(*command("tokenizer", tmp_path, whole), whole)
    (bad, *_) = bad_steps(whole / "run")
    faults: list[Fault] = [{"at": "step", "after": bad["step"] + 2, "ranks": [0], "signal": "SIGKILL"}]
    launch(*command("tokenizer", tmp_path, cut, *OFTEN), cut, faults=faults, restarts=1)
    assert differing(whole, cut) == []
    assert bad_steps(cut / "run") == bad_steps(whole / "run")
    assert [line["train_skipped_steps"] for line in log_lines(cut / "run")] == [1] * 4


def test_a_window_that_one_process_cannot_read_ends_all_with_that_processs_line(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = pretraining_file(tmp_path / "train" / "a.hdf5", seconds=(24, 16), compression="gzip")
    with h5py.File(path) as file:  # a chunk is a second
        place = file["recording0/eeg"].id.get_chunk_info(window_of(1, after=2) * WINDOW).byte_offset
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\xff" * 64)
    ended = launch(*command("tokenizer", tmp_path, tmp_path, *OFTEN), tmp_path, check=False)
    assert ended.codes in ([[1, 1]], [[-signal.SIGTERM, 1]]), "the other one may be ended as torchrun does it"
    (line,) = ended.errors()
    assert line.startswith("[process 1] error: ") and str(path) in line and "recording0" in line
    assert "Traceback" not in ended.stderr()
    assert checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] > 0, "what was trained before is kept"


@pytest.mark.parametrize(
    ("limit", "file", "words"),  # limit: bytes of the largest file that can be written
    [(300_000, "checkpoint.pth", OFTEN), pytest.param(2_800, "predictions-val.npz", (), marks=pytest.mark.nightly)],
)
def test_a_full_disk_ends_all_with_a_line_and_the_same_command_goes_on_when_there_is_room(
    limit: int, file: str, words: Sequence[Any], tmp_path: Path, references: Path
) -> None:
    fault = {"at": "step", "after": STEPS + 3, "ranks": [0], "limit": limit}
    same = command("classifier", references, tmp_path, *words)
    ended = launch(*same, tmp_path, faults=[fault], check=False)
    assert ended.codes[0][0] == 2, ended.stderr()
    (line,) = ended.errors()
    assert str(tmp_path / "run" / file) in line and "cannot be written" in line
    assert "Traceback" not in ended.stderr()
    assert checkpoints.read(tmp_path / "run" / "checkpoint.pth")["epoch"] == 0, "the checkpoint from before is whole"
    assert not list((tmp_path / "run").glob(".*.part")), "half a file fills the disk that is full"
    launch(*same, tmp_path, faults=[fault])
    assert differing(references / "classifier", tmp_path) == []


def test_a_signal_to_one_process_stops_all_after_a_checkpoint_and_nothing_is_lost(
    tmp_path: Path, references: Path
) -> None:
    faults: list[Fault] = [
        {"at": "step", "after": 3, "ranks": [1], "signal": "SIGTERM"},
        {"at": "evaluate", "after": 8, "ranks": [1], "signal": "SIGUSR1"},
        {"at": "step", "after": 13, "ranks": [0], "signal": "SIGINT"},
    ]
    same = command("classifier", references, tmp_path)
    ended = launch(*same, tmp_path, faults=faults, restarts=3)
    assert ended.codes == [[143, 143], [143, 143], [130, 130], [0, 0]], ended.stderr()
    assert "Traceback" not in ended.stderr()
    for attempt, fault in enumerate(faults):
        (line,) = [line for line in ended.stderr(attempt).splitlines() if line.startswith("stopped by ")]
        assert f"stopped by {fault['signal']} after step " in line
    # Without --save_every_minutes: what is inside an epoch was saved on the way out, at most two steps later.
    places = [epoch * STEPS + step for epoch, step in ended.starts()]
    for fault, place in zip(faults, places[1:], strict=True):
        assert fault["after"] < place, "the steps before the signal are lost"
    assert places[1] <= 3 + 3 and places[3] <= 13 + 3
    assert differing(references / "classifier", tmp_path) == []


def test_a_signal_to_the_whole_job_stops_a_run_with_loading_threads_after_a_checkpoint(
    tmp_path: Path, references: Path
) -> None:
    fault = {"at": "step", "after": 3, "ranks": [0], "job": True, "signal": "SIGTERM"}
    same = command("classifier", references, tmp_path, "--num_workers", 2)
    ended = launch(*same, tmp_path, processes=1, faults=[fault], check=False)
    assert ended.codes == [[143]] and checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] == 4
    assert "stopped by SIGTERM after step" in ended.stderr() and not ended.errors()
