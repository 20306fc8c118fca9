"""Numbers on their way to people: weighted means, log.txt, bad steps and TensorBoard after a stop."""

import json
import math
from pathlib import Path

import pytest
import torch

from data_helpers import only_line, process_group
from errors import UsageError
from run_helpers import scalars
from training import log as module
from training.log import MetricLog, RunLog, append, list_windows


def test_means_are_weighted_by_the_number_of_samples() -> None:
    log = MetricLog()
    log.add({"loss": torch.tensor(1.0), "accuracy": 0.5}, n=3)
    log.add({"loss": torch.tensor(5.0)}, n=1)
    log.add({"grad_norm": torch.tensor(7.0, dtype=torch.bfloat16, requires_grad=True)})
    with process_group():
        assert log.means() == {"loss": 2.0, "accuracy": 0.5, "grad_norm": 7.0}
    assert log.mean("loss") == 2.0 and math.isnan(log.mean("missing"))


def test_means_join_processes_by_weight_even_where_one_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gather", lambda own: [own, {}, {"loss": (30.0, 3.0), "other": (4.0, 2.0)}])
    log = MetricLog()
    log.add({"loss": 2.0}, n=1)
    assert log.means() == {"loss": 8.0, "other": 2.0}


def test_a_log_forgets_a_skipped_step() -> None:
    log = MetricLog()
    log.add({"loss": 1.0})
    log.commit()
    log.add({"loss": math.nan})
    log.count("codes", torch.ones(2))
    log.take()
    log.commit()
    assert log.mean("loss") == 1.0 and log.total("codes", 2).tolist() == [0, 0]


def epochs(path: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


def test_a_continued_run_logs_every_epoch_once_in_both_places(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tmp_path / "board")
    for epoch in range(4):
        log.add_epoch(epoch, {"train_loss": 10.0 + epoch, "epoch": epoch, "val_auc": math.nan})
    again = RunLog(tmp_path, tmp_path / "board")
    again.cut(2, 5)  # the checkpoint is inside epoch 2
    assert epochs(tmp_path / "log.txt") == [0, 1]
    again.add_epoch(2, {"train_loss": 22.0, "epoch": 2})
    assert epochs(tmp_path / "log.txt") == [0, 1, 2]
    found = scalars(tmp_path / "board")
    assert {step: value for (tag, step), value in found.items() if tag == "train_loss"} == {0: [10], 1: [11], 2: [22]}
    assert not any(tag == "val_auc" for tag, _ in found)


def test_bad_steps_are_cut_to_the_step_and_half_a_line_to_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, None)
    places = [(0, 3), (1, 4), (1, 5), (2, 0)]
    for epoch, step in places:
        append(log.bad_steps, {"epoch": epoch, "step": step})
    with log.bad_steps.open("a") as file:
        file.write('{"epoch": 0, "st')
    log.cut(1, 5)
    lines = [json.loads(line) for line in log.bad_steps.read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == places[:2]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(UsageError) as error:
        RunLog(tmp_path, None).add_epoch(0, {"epoch": 0, "train_loss": 1.0})
    only_line(error, tmp_path / "log.txt", "cannot be written")


def test_the_first_three_windows_of_a_bad_step_are_named_or_those_that_are_not_finite() -> None:
    window = {"file": "a.hdf5", "recording": "r", "start_seconds": 12.5, "largest_uv": 312345.0, "finite": True}
    sample = {"file": "t.hdf5", "recording": "q", "sample": 7, "largest_uv": 0.0, "finite": False}
    text = list_windows([window, {**window, "file": "second"}, {**window, "start_seconds": 3}, {**window, "file": "x"}])
    assert "a.hdf5, r, at 12.5 s (largest 3.12e+05 uV)" in text and "at 3 s" in text
    assert "second" in text and "x, r" not in text
    assert list_windows([window, sample, window]).startswith("t.hdf5, q, sample 7 (")
