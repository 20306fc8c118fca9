"""log.txt, bad_steps.jsonl and TensorBoard after a stop: no line twice, none missing."""

import json
import math
from pathlib import Path

import pytest

from data_helpers import only_line
from errors import UsageError
from recovery import scalars
from training.run_log import RunLog, named


def opened(folder: Path, **options: bool) -> RunLog:
    return RunLog(folder, folder / "board", visible=options.get("visible", True))


def epochs(path: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


def test_a_continued_run_logs_every_epoch_once_in_both_places(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.begin()
    for epoch in range(4):
        log.epoch(epoch, {"train_loss": 10.0 + epoch, "epoch": epoch, "val_auc": math.nan})
    again = opened(tmp_path)
    again.cut(2, 5)  # the checkpoint is inside epoch 2
    assert epochs(tmp_path / "log.txt") == [0, 1]
    again.epoch(2, {"train_loss": 22.0, "epoch": 2})
    assert epochs(tmp_path / "log.txt") == [0, 1, 2]
    found = scalars(tmp_path / "board")
    assert {step: value for (tag, step), value in found.items() if tag == "train_loss"} == {
        0: [10],
        1: [11],
        2: [22],
    }
    assert not any(tag == "val_auc" for tag, _ in found)


def test_bad_steps_are_cut_to_the_step_and_half_a_line_to_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path)
    places = [(0, 3), (1, 4), (1, 5), (2, 0)]
    for epoch, step in places:
        log.bad_step({"epoch": epoch, "step": step})
    with log.bad_steps.open("a") as file:
        file.write('{"epoch": 0, "st')
    log.cut(1, 5)
    lines = [json.loads(line) for line in log.bad_steps.read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == places[:2]


def test_a_new_run_sets_the_old_files_aside(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.epoch(0, {"epoch": 0})
    log.bad_step({"epoch": 0, "step": 1})
    log.begin()
    assert {path.name for path in tmp_path.glob("*.*")} == {"log.previous.txt", "bad_steps.previous.jsonl"}


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = opened(tmp_path, visible=False)
    log.begin()
    log.epoch(0, {"epoch": 0})
    log.bad_step({"epoch": 0, "step": 0})
    log.cut(0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(UsageError) as error:
        opened(tmp_path).epoch(0, {"epoch": 0})
    only_line(error, tmp_path / "log.txt", "cannot be written", "free space")


def test_the_first_three_windows_of_a_bad_step_are_named() -> None:
    window = {"file": "a.hdf5", "recording": "r", "start_seconds": 12.5, "largest_uv": 312345.0, "finite": True}
    sample = {"file": "t.hdf5", "recording": "q", "sample": 7, "largest_uv": 0.0, "finite": False}
    text = named([window, {**window, "file": "second"}, {**window, "start_seconds": 3}, {**window, "file": "fourth"}])
    assert "a.hdf5, r, at 12.5 s (largest 3.12e+05 uV)" in text and "at 3 s" in text
    assert "second" in text and "fourth" not in text
    assert named([window, sample, window]) == "t.hdf5, q, sample 7 (holds values that are not finite)"
