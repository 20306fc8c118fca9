"""A run that is killed, and started again by the same command, ends as one that was never stopped, to the last bit.

All runs go through torchrun with two or three processes. LABRAM_SOAK: how many random moments for each stage.
"""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recovery import (
    EPOCHS,
    STEPS,
    Fault,
    differences,
    log_lines,
    planned,
    reference,
    scalars,
    unequal,
    usual,
)
from run_helpers import checkpoint, kill_tree
from waiting import wait_for

MOMENTS = 4  # at which a run is stopped
RUNS = -(-int(os.environ.get("LABRAM_SOAK", "4")) // MOMENTS)  # of each stage
NO_SCALARS = ("epoch", "n_parameters")  # of a line of log.txt
STAGES = ("tokenizer", "masked", "classifier")
OFTEN = ("--save_every_minutes", 1e-5)  # after every step
WORKERS = [["--num_workers", number] for number in ("0", "1", "3")]  # of the attempts of stage 2


def test_the_runs_have_what_could_differ() -> None:
    assert log_lines(reference("tokenizer") / "run")[-1]["train_revived"] > 0, "no code was revived"
    best = checkpoint(reference("classifier") / "run" / "checkpoint.pth")["extras"]
    assert "model_ema" in best and best["best"]["epoch"] is not None
    for stage in STAGES:
        lines = log_lines(reference(stage) / "run")
        assert [line["epoch"] for line in lines] == list(range(EPOCHS[stage]))
        assert len({line["train_loss"] for line in lines}) == EPOCHS[stage], "nothing was learnt"


@pytest.mark.parametrize(("stage", "number"), itertools.product(STAGES, range(RUNS)))
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
