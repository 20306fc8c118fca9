"""The benchmarks of loading and of the makers: what they count is what was delivered."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest

from data_helpers import plain_run
from errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

data = importlib.import_module("data")
convert = importlib.import_module("convert")
long_recording = importlib.import_module("long_recording")


def run(module: Any, *words: Any) -> None:
    with patch.object(sys, "argv", [module.__file__, *map(str, words)]):
        module.main(module.get_args())


def settings(**changed: Any) -> argparse.Namespace:
    usual = {"electrodes": 3, "seconds": 2, "size_gb": 0.001, "dtype": "float32", "num_workers": [0]}
    return argparse.Namespace(**{**usual, "batch_size": 4, "windows": 8, "repeats": 2, **changed})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_has_its_size_and_the_makers_layout_and_is_made_once(tmp_path: Path, dtype: str) -> None:
    wanted = settings(dtype=dtype, size_gb=0.004)
    path = data.make_file(wanted, tmp_path)
    with h5py.File(path) as file:
        signals = [group["eeg"] for group in file.values()]
        assert {d.chunks for d in signals} == {(3, 200)} and {d.dtype for d in signals} == {np.dtype(dtype)}
        assert sum(d.nbytes for d in signals) == pytest.approx(4e6, rel=0.1)
    written = path.stat().st_mtime_ns
    assert data.make_file(wanted, tmp_path) == path and path.stat().st_mtime_ns == written
    with pytest.raises(InputError, match="--size_gb"):
        data.make_file(settings(size_gb=1e9), tmp_path)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_what_is_counted_is_what_was_delivered(tmp_path: Path, workers: int) -> None:
    path, here = data.make_file(settings(), tmp_path), plain_run(tmp_path)
    read = data.shuffled(data.real_loader(settings(), path, workers, here), here, 5)
    for _ in range(2):
        seconds, values = read()
        assert values == 5 * 4 * 3 * 400 and seconds > 0  # batches x windows x electrodes x samples
    assert 300_000 <= data.sequential(path, 50_000)(300_000)[1] < 350_000
    assert 300_000 <= data.plain_read(path)(300_000)[1] <= 300_000 + path.stat().st_size


def test_rows_are_medians_ranges_and_ratios_within_a_round() -> None:
    rates = {"sequential, 1 MiB": [10.0, 20.0, 40.0], "sequential, 8 MiB": [1.0, 1.0, 1.0]}
    best, _, loader = data.summarize({**rates, "loader, 0 workers": [5.0, 20.0, 10.0]}, 2_000_000)
    assert best["held_against"] and best["of_sequential"] == 1 and not loader["held_against"]
    assert loader["windows_per_second"] == 10 and loader["windows_per_second_range"] == [5, 20]
    assert loader["of_sequential"] == 0.5 and loader["of_sequential_range"] == [0.25, 1.0]
    assert loader["mb_per_second"] == 20


def test_the_loading_benchmark_writes_its_rows_and_shows_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size_gb", "0.001", "--electrodes", 3, "--seconds", 2, "--windows", 8, "--batch_size", 4, "--repeats", 2]
    run(data, *words, "--num_workers", 0, "--folder", tmp_path / "files", "--json", tmp_path / "numbers.json")
    printed = capsys.readouterr().out
    text = (tmp_path / "numbers.json").read_text()
    assert str(tmp_path) not in text, "places of this machine"
    (found,) = json.loads(text)["geometries"]
    assert found["geometry"] == "3x2" and found["window_bytes"] == 4800
    cases = [row["case"] for row in found["rows"]]
    assert cases == ["sequential, 1 MiB", "sequential, 8 MiB", "plain read", "loader, 0 workers"]
    run(data, "--show", tmp_path / "numbers.json")
    assert capsys.readouterr().out == printed


@pytest.mark.nightly
def test_the_makers_benchmarks_measure_the_maker_alone(tmp_path: Path) -> None:
    held = np.ones(60_000_000)  # 480 MB of this process, not of the maker
    words = ["--hours", 0.01, "--electrodes", 2, "--folder", tmp_path / "place", "--json", tmp_path / "long.json"]
    run(long_recording, *words)
    found = json.loads((tmp_path / "long.json").read_text())
    assert found["edf_bytes"] == 256 * 3 + 36 * 2 * 256 * 2 and found["hdf5_bytes"] > 36 * 2 * 200 * 4
    assert 30e6 < found["peak_bytes"] < held.nbytes and not list((tmp_path / "place").iterdir())
    (tmp_path / "edf").mkdir()
    long_recording.write_edf(tmp_path / "edf/a.edf", 0.01, 2, 250)
    run(convert, "--input", tmp_path / "edf", "--jobs", 1, "--repeats", 1, "--json", tmp_path / "convert.json")
    found = json.loads((tmp_path / "convert.json").read_text())
    seconds = {name: values["median"] for name, values in found["seconds"].items()}
    assert found["hours_a_minute"]["maker"] == pytest.approx(0.6 / seconds["maker"])
    assert found["ratio_of_medians"] == pytest.approx(seconds["maker"] / seconds["plain"])
