"""The data benchmark: the table says what was measured, slow readers show as slow, the JSON holds everything."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from data_helpers import plain_run
from errors import InputError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "data.py"
sys.path.insert(0, str(SCRIPT.parent))

data = importlib.import_module("data")
data_files = importlib.import_module("data_files")

SMALL = data.Geometry(3, 2)
SIZE = 0.001  # GB


def settings(**changed: Any) -> argparse.Namespace:
    """Return the flags of a tiny run."""
    usual = {"format": "pretraining", "dtype": "float32", "num_workers": [0], "batch_size": 4, "masks": False}
    return argparse.Namespace(**{**usual, "windows": 8, "repeats": 2, **changed})


@pytest.mark.parametrize("text", ["32", "32x", "0x8", "32x0", "32x17", "137x1", "-3x2", "3x2x1"])
def test_a_geometry_that_no_window_has_says_what_is_allowed(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': must be 1 to 136 electrodes x 1 to 16 seconds"):
        data.Geometry.parse(text)
    assert data.Geometry.parse("136x16") == (136, 16)


@pytest.mark.parametrize("kind", ["pretraining", "labelled"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_has_its_size_and_the_makers_layout_and_is_made_once(tmp_path: Path, kind: str, dtype: str) -> None:
    path = data.make_file(tmp_path, kind, SMALL, dtype, 4e6)
    with h5py.File(path) as file:
        signals = [group["eeg"] for group in file.values()]
        assert {d.chunks for d in signals} == {(3, 200) if kind == "pretraining" else (1, 3, 400)}
        assert {d.dtype for d in signals} == {np.dtype(dtype)}
        assert sum(d.nbytes for d in signals) == pytest.approx(4e6, rel=0.1)
    written = path.stat().st_mtime_ns
    assert data.make_file(tmp_path, kind, SMALL, dtype, 4e6) == path and path.stat().st_mtime_ns == written


def test_a_file_without_room_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no room for 1e\\+09 GB: choose a smaller --size_gb"):
        data.make_file(tmp_path, "pretraining", SMALL, "float32", 1e18)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pretraining", "labelled"])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_counted_is_what_was_delivered(tmp_path: Path, kind: str, workers: int) -> None:
    path, run = data.make_file(tmp_path, kind, SMALL, "float32", SIZE * 1e9), plain_run(tmp_path)
    loader = data.real_loader(settings(format=kind), path, SMALL, workers, run)
    once = data.shuffled(loader, run, 5)
    for _ in range(2):
        seconds, values = once()
        assert values * 4 == 5 * 4 * 3 * 400 * 4 and seconds > 0  # batches x windows x electrodes x samples x bytes


@pytest.mark.parametrize("kind", ["pretraining", "labelled"])
def test_sequential_reads_are_of_as_many_bytes_and_go_through_the_whole_file(tmp_path: Path, kind: str) -> None:
    path = data.make_file(tmp_path, kind, SMALL, "float32", SIZE * 1e9)
    for once, most in ((data.sequential(data.eeg_in(path, kind), 50_000), 50_000), (data.plain_read(path), 1 << 23)):
        _, read = once(300_000)
        assert 300_000 <= read < 300_000 + most


def test_a_slower_reader_shows_as_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = data.make_file(tmp_path, "pretraining", SMALL, "float32", SIZE * 1e9), plain_run(tmp_path)
    original = data.MontageWindows.__getitem__
    before = data.measure(settings(), path, SMALL, run)["loader, 0 workers"]
    monkeypatch.setattr(data.MontageWindows, "__getitem__", lambda *args: (time.sleep(0.02), original(*args))[1])
    after = data.measure(settings(), path, SMALL, run)["loader, 0 workers"]
    assert len(before) == len(after) == 2
    assert max(after) <= 1 / 0.02 and np.median(after) < np.median(before)


def test_rows_are_medians_ranges_and_ratios_within_a_round() -> None:
    rates = {"sequential, 1 MiB": [10.0, 20.0, 40.0], "sequential, 8 MiB": [1.0, 1.0, 1.0]}
    rows = data.summarize({**rates, "loader, 0 workers": [5.0, 20.0, 10.0]}, 2_000_000, 5.0)
    best, _, loader = rows
    assert [row["held_against"] for row in rows] == [True, False, False] and best["of_sequential"] == 1
    assert loader["windows_per_second"] == 10 and loader["windows_per_second_range"] == [5, 20]
    assert loader["of_sequential"] == 0.5 and loader["of_sequential_range"] == [0.25, 1.0]
    assert loader["mb_per_second"] == 20 and loader["of_stage"] == 2
    assert data.summarize(rates, 1, None)[0]["of_stage"] is None


def test_a_table_has_at_most_80_columns() -> None:
    rates = {"sequential, 1 MiB": [9_000.0, 99_999.0], "loader, 16 workers": [99_998.0, 99_999.0]}
    stage = {"case": "e", "samples_per_second": 4.5}
    lines = data.table(data.Geometry(32, 10), data.summarize(rates, 204_800, 4.5), stage).splitlines()
    assert len(lines) == 6 and max(map(len, lines)) <= 80
    assert "99998-99999" in lines[3] and lines[-1].startswith("fastest stage: 4.5 windows/s (e)")


def test_the_fastest_stage_is_ours_of_the_same_size_in_the_newest_file(tmp_path: Path) -> None:
    rows = [
        ("a", "32x8", "ours", 5.0),
        ("e", "32x8", "ours", 9.0),
        ("e", "32x8", "plain", 99.0),
        ("e", "23x10", "ours", 7),
    ]
    keys = ("case", "geometry", "variant", "samples_per_second")
    content = {"rows": [dict(zip(keys, row, strict=True)) for row in rows]}
    (tmp_path / "speed.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text(json.dumps({"geometries": []}))
    found = data.fastest_stage(tmp_path, data.Geometry(32, 8))
    assert found == {"file": "speed.json", "case": "e", "samples_per_second": 9.0}
    assert data.fastest_stage(tmp_path, data.Geometry(62, 4)) is None
    assert data.fastest_stage(tmp_path / "absent", data.Geometry(32, 8)) is None


def test_masks_are_made_where_they_are_asked_for(tmp_path: Path) -> None:
    path, run = data.make_file(tmp_path, "pretraining", SMALL, "float32", SIZE * 1e9), plain_run(tmp_path)
    for masks in (False, True):
        batch = next(iter(data.real_loader(settings(masks=masks), path, SMALL, 0, run)))
        assert batch.mask.shape == (4, 6 if masks else 0)
    assert torch.equal(batch.mask.sum(1), torch.full((4,), 3))


def test_the_script_prints_tables_and_writes_its_numbers_without_places(tmp_path: Path) -> None:
    words = ["--size_gb", "0.001", "--geometry", "3x2", "2x1", "--windows", "8", "--batch_size", "4", "--repeats", "2"]
    words += ["--num_workers", "0", "--stage_rate", "3", "--folder", str(tmp_path / "files"), "--masks"]
    command = [sys.executable, str(SCRIPT), *words, "--json", str(tmp_path / "numbers.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "3 electrodes x 2 s" and "2 electrodes x 1 s" in lines
    text = (tmp_path / "numbers.json").read_text()
    assert str(tmp_path) not in text and str(SCRIPT.parents[1]) not in text
    report = json.loads(text)
    assert report.keys() >= {"machine", "settings", "geometries", "load_before", "load_after"}
    for found, (geometry, size) in zip(report["geometries"], [("3x2", 4800), ("2x1", 1600)], strict=True):
        assert found["geometry"] == geometry and found["window_bytes"] == size
        assert found["stage"] == {"case": "--stage_rate", "samples_per_second": 3.0}
        cases = [row["case"] for row in found["rows"]]
        assert cases == ["sequential, 1 MiB", "sequential, 8 MiB", "plain read", "loader, 0 workers"]
        for row in found["rows"]:
            assert len(row["rates"]) == 2 and min(row["rates"]) <= row["windows_per_second"] <= max(row["rates"])
            assert row["mb_per_second"] == pytest.approx(row["windows_per_second"] * size / 1e6)
            assert row["of_stage"] == pytest.approx(row["windows_per_second"] / 3)
