"""Numbers on their way to people: weighted means, lines and bars, plain JSON."""

import io
import json
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import files
from data_helpers import process_group
from files import plain, write_json
from training import log as progress
from training.log import MetricLog, Progress, duration


class Terminal(io.StringIO):
    """A terminal that remembers what it shows."""

    def isatty(self) -> bool:
        return True


def test_means_are_weighted_by_the_number_of_samples() -> None:
    log = MetricLog()
    log.add({"loss": torch.tensor(1.0), "accuracy": 0.5}, n=3)
    log.add({"loss": torch.tensor(5.0)}, n=1)
    log.add({"grad_norm": 7.0})
    with process_group():
        assert log.means() == {"loss": 2.0, "accuracy": 0.5, "grad_norm": 7.0}
    assert log.mean("loss") == 2.0 and math.isnan(log.mean("missing"))


def test_means_are_summed_in_double_precision() -> None:
    log, values = MetricLog(), np.random.default_rng(0).random(2000).astype(np.float32)
    for value in values:
        log.add({"loss": torch.tensor(value)}, n=2)
    assert log.mean("loss") == pytest.approx(values.astype(np.float64).mean(), rel=1e-13)


def test_half_precision_values_with_a_gradient_can_be_added() -> None:
    log = MetricLog()
    log.add({"loss": torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True)}, n=3)
    assert log.mean("loss") == 0.5


def test_means_join_processes_by_weight_even_where_one_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(gathered: list, own: dict) -> None:
        gathered[:] = [own, {}, {"loss": (30.0, 3.0), "other": (4.0, 2.0)}]

    monkeypatch.setattr(progress.dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(progress.dist, "all_gather_object", gather)
    log = MetricLog()
    log.add({"loss": 2.0}, n=1)
    assert log.means() == {"loss": 8.0, "other": 2.0}


def walk(shown: Progress) -> None:
    for i in range(shown.total):
        shown.step(f"loss {i}.5" if shown.due() else None)
    shown.close()


def test_other_processes_are_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    walk(Progress(False, "epoch 1", 5))
    assert terminal.getvalue() == "" and caplog.text == "" and capfd.readouterr() == ("", "")


def test_without_a_terminal_the_first_and_the_last_step_are_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    walk(Progress(True, "epoch 1", 5))
    assert caplog.messages == ["epoch 1, step 1/5: loss 0.5", "epoch 1, step 5/5: loss 4.5"]
    assert screen.getvalue() == ""


def test_without_a_terminal_a_line_comes_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(True, "epoch 1", 100)
    for _ in range(100):
        shown.step("numbers" if shown.due() else None)
        now[0] += 4
    steps = [int(text.split("step ")[1].split("/")[0]) for text in caplog.messages]
    assert steps == [1, 9, 17, 25, 33, 41, 49, 57, 65, 73, 81, 89, 97, 100]  # every 30 s: every 8 steps of 4 s
    assert shown.close() == 400


def test_on_a_terminal_a_bar_shows_the_numbers_and_no_lines_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    walk(Progress(True, "epoch 7", 3))
    assert "epoch 7" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3600, "1:00:00"), (100 * 3600 + 62, "100:01:02")],
)
def test_a_duration_is_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_flags_and_numbers_become_plain_json() -> None:
    flags = {
        "path": Path("a/b"),
        1: (0.9, math.inf),
        "nested": [{"x": math.nan, "y": np.float64("nan")}],
        "kept": [True, None, "text", 3, 0.5],
    }
    expected = {
        "path": "a/b",
        "1": [0.9, None],
        "nested": [{"x": None, "y": None}],
        "kept": [True, None, "text", 3, 0.5],
    }
    assert plain(flags) == expected and json.loads(json.dumps(plain(flags), allow_nan=False)) == expected


def test_a_json_file_is_replaced_whole_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": [2]})
    assert json.loads(path.read_text()) == {"b": [2]} and list(tmp_path.iterdir()) == [path]

    def stopped(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"c": 3})
    assert json.loads(path.read_text()) == {"b": [2]}


def test_a_json_file_gives_back_names_that_are_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller/\xc3\xa9.edf")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": name}
