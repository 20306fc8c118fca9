"""What was tried: every way computes the same as the product's, and the tables say which is the product's."""

import importlib
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch

from errors import InputError, UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

choices = importlib.import_module("choices")
data_files = importlib.import_module("data_files")
formulations = importlib.import_module("formulations")
measuring = importlib.import_module("measuring")
reading = importlib.import_module("reading")


def run(module: Any, *words: Any) -> None:
    with patch.object(sys, "argv", [module.__file__, *map(str, words)]):
        module.main(module.get_args())


@pytest.mark.parametrize("group", formulations.GROUPS)
def test_every_way_computes_what_the_product_computes(group: str) -> None:
    if "compiled" in group and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler")
    (_, kept), *others = formulations.GROUPS[group](formulations.TINY).items()
    ours = kept()
    largest = max(float(x.abs().max()) for x in ours)  # of all: the gradient of k's norm's bias is 0 but for rounding
    assert largest > 0
    for _, tried in others:
        for mine, other in zip(ours, tried(), strict=True):
            assert mine.shape == other.shape
            torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-5 * largest)


@pytest.fixture
def noise(tmp_path: Path) -> tuple[Path, Any]:
    geometry = data_files.Geometry(3, 2)
    return data_files.make_file(tmp_path, "pretraining", geometry, "float32", 1e6), geometry


def test_every_way_of_reading_gives_the_file_s_values_in_units_of_100_uv(noise: tuple[Path, Any]) -> None:
    path, geometry = noise
    (batch,) = reading.draw(path, geometry, 5)
    with h5py.File(path, locking=False) as file:
        known = np.stack([file[name]["eeg"][:, start : start + 400] for name, start in batch]) / 100
    made = reading.ways(path, geometry)
    assert len(made) == 10 and len(set(batch)) > 1
    for name, make in made.items():
        found = make(batch)
        assert found.dtype == torch.float32, name
        np.testing.assert_allclose(found.numpy(), known.reshape(5, 3, 2, 200), rtol=1e-6, err_msg=name)


def test_windows_are_drawn_from_all_of_the_file_in_batches(noise: tuple[Path, Any]) -> None:
    path, geometry = noise
    batches = reading.draw(path, geometry, 3 * reading.BATCH)
    assert [len(batch) for batch in batches] == [reading.BATCH] * 3
    with h5py.File(path, locking=False) as file:
        lengths = {name: file[name]["eeg"].shape[1] for name in file}
    drawn = {place for batch in batches for place in batch}
    assert {name for name, _ in drawn} == set(lengths)
    assert all(0 <= start <= lengths[name] - 400 for name, start in drawn)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (choices, ("--tiny", "--groups", "norm of q")),
        (reading, ("--size_gb", "0.02", "--windows", "64")),
    ],
    ids=["choices", "reading"],
)
def test_the_table_of_a_results_file_is_what_was_printed(
    module: Any, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    run(module, *words, "--repeats", "1", "--json", path)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    run(module, "--show", path)
    assert capsys.readouterr().out.splitlines() == printed
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == len(printed) - 2
    for row, line in zip(rows, printed[2:], strict=True):
        assert ("times_as_long" not in row) == ("**" in line)  # the product's way
        seconds = row.get("seconds") or row["seconds_a_window"]
        assert seconds["repeats"] == 1 and 0 < seconds["median"] < math.inf


def test_times_as_long_are_those_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        measuring,
        "alone",
        lambda task, *given: {"ours": [1.0, 2.0], "other": [3.0, 4.0]} if task is choices.timed else 7,
    )
    ours, other = choices.measure("attention", choices.argparse.Namespace(tiny=True, repeats=2))
    assert "times_as_long" not in ours and other["times_as_long"] == {"median": 2.5, "low": 2, "high": 3, "repeats": 2}
    assert ours["peak_bytes"] == other["peak_bytes"] == 7


def test_the_allocator_s_settings_reach_the_process_that_is_measured() -> None:
    assert measuring.alone(os.getenv, "MALLOC_MMAP_MAX_", environment=choices.KEEPING) == "0"
    assert measuring.alone(os.getenv, "MALLOC_MMAP_MAX_") is None


@pytest.mark.parametrize("module", [choices, reading], ids=["choices", "reading"])
def test_wrong_flags_and_files_are_one_line(module: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--repeats 0: allowed are numbers above 0"):
        run(module, "--repeats", "0")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match=f"is no results file of {Path(module.__file__).name}"):
        run(module, "--show", tmp_path / "bad.json")


def test_the_allocator_is_measured_with_and_without_its_settings_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def alone(task: Any, case: str, tiny: bool, *, environment: dict[str, str]) -> float:
        asked.append((case, environment))
        return 2.0 if environment else 1.0

    monkeypatch.setattr(measuring, "alone", alone)
    usual, kept = choices.measure("allocator, pre-training step", choices.argparse.Namespace(tiny=True, repeats=7))
    assert asked == [("c", {}), ("c", choices.KEEPING)] * 3
    assert usual["seconds"]["median"] == 1 and kept["times_as_long"]["median"] == 2 and "peak_bytes" not in kept


def test_a_step_of_training_takes_time() -> None:
    assert 0 < measuring.alone(choices.training_step, "a", True) < math.inf


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(InputError, match="a process that measures was killed, most likely for want of memory"):
        measuring.alone(signal.raise_signal, signal.SIGKILL)
