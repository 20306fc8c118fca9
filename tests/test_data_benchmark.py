"""The data benchmark: the table says what was measured, slow readers show as slow, the JSON holds everything.

And those of the makers, `convert.py` and `long_recording.py`, at small size.
"""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch

from data_helpers import plain_run
from errors import InputError, UsageError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "data.py"
sys.path.insert(0, str(SCRIPT.parent))

data = importlib.import_module("data")
data_files = importlib.import_module("data_files")
convert = importlib.import_module("convert")
long_recording = importlib.import_module("long_recording")

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


def test_a_slower_reader_shows_as_slower_by_what_it_takes_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = data.make_file(tmp_path, "pretraining", SMALL, "float32", SIZE * 1e9), plain_run(tmp_path)
    original, now = data.MontageWindows.__getitem__, [0.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(data.time, "perf_counter", lambda: (takes(0.01), now[0])[1])
    before = data.measure(settings(), path, SMALL, run)["loader, 0 workers"]
    monkeypatch.setattr(data.MontageWindows, "__getitem__", lambda *args: (takes(0.02), original(*args))[1])
    after = data.measure(settings(), path, SMALL, run)["loader, 0 workers"]
    assert before == pytest.approx([8 / 0.01] * 2) and after == pytest.approx([8 / (0.01 + 8 * 0.02)] * 2)


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


def test_the_markdown_of_a_results_file_has_a_table_a_geometry() -> None:
    rates = {"sequential, 1 MiB": [10.0, 20.0, 40.0], "loader, 0 workers": [5.0, 20.0, 10.0]}
    found = [
        {"geometry": "32x8", "file_bytes": 4_100_000_000, "rows": data.summarize(rates, 2_000_000, 5.0)},
        {"geometry": "23x10", "file_bytes": 1_900_000_000, "rows": data.summarize(rates, 2_000_000, None)},
    ]
    assert data.markdown({"geometries": found}) == [
        "| 32 x 8 s, 4 GB | windows/s | range | MB/s | of sequential (range) | of the fastest stage |",
        "|---|---|---|---|---|---|",
        "| sequential, 1 MiB (held against) | 20 | 10 to 40 | 40 | 1.00 (1.00 to 1.00) | 4 |",
        "| loader, 0 workers | 10 | 5 to 20 | 20 | 0.50 (0.25 to 1.00) | 2 |",
        "",
        "| 23 x 10 s, 2 GB | windows/s | range | MB/s | of sequential (range) | of the fastest stage |",
        "|---|---|---|---|---|---|",
        "| sequential, 1 MiB (held against) | 20 | 10 to 40 | 40 | 1.00 (1.00 to 1.00) | - |",
        "| loader, 0 workers | 10 | 5 to 20 | 20 | 0.50 (0.25 to 1.00) | - |",
    ]


def test_the_fastest_stage_is_ours_of_the_same_size_in_the_newest_file(tmp_path: Path) -> None:
    rows = [
        ("a", "32x8", "ours", 5.0),
        ("e", "32x8", "ours", 9.0),
        ("e", "32x8", "plain", 99.0),
        ("e", "23x10", "ours", 7),
    ]
    keys = ("case", "geometry", "variant", "samples_per_second")
    content = {"rows": [dict(zip(keys, row, strict=True)) | {"model": "base"} for row in rows]}
    content["rows"].append({**content["rows"][1], "model": "large", "samples_per_second": 98.0})
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


# The makers


def run(module: Any, *words: Any) -> None:
    with patch.object(sys, "argv", [module.__file__, *map(str, words)]):
        module.main(module.get_args())


def test_a_long_recordings_file_holds_time_and_memory_and_is_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = np.ones(60_000_000)  # 480 MB of this process are none of the maker's
    words = ["--hours", 0.01, "--electrodes", 2, "--folder", tmp_path / "place"]
    run(long_recording, *words, "--json", tmp_path / "long.json")
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "long.json").read_text())
    assert found["settings"] == {"hours": 0.01, "electrodes": 2, "rate": 256} and "libraries" in found["machine"]
    assert found["edf_bytes"] == 256 * 3 + 36 * 2 * 256 * 2 and found["hdf5_bytes"] > 36 * 2 * 200 * 4
    assert 30e6 < found["peak_bytes"] < held.nbytes and found["seconds"] > 0
    run(long_recording, "--show", tmp_path / "long.json")
    assert capsys.readouterr().out == printed and not list((tmp_path / "place").iterdir())


def test_conversions_are_timed_beside_the_plain_loop_and_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edf").mkdir()
    long_recording.write_edf(tmp_path / "edf/a.edf", 0.01, 2, 250)
    words = ["--input", tmp_path / "edf", "--jobs", 1, "--repeats", 1]
    run(convert, *words, "--json", tmp_path / "convert.json")
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "convert.json").read_text())
    seconds = {name: values["median"] for name, values in found["seconds"].items()}
    assert found["hours"] == pytest.approx(0.01) and found["settings"] == {"jobs": 1, "repeats": 1}
    assert found["hours_a_minute"]["maker"] == pytest.approx(0.6 / seconds["maker"])
    assert found["ratio_of_medians"] == pytest.approx(seconds["maker"] / seconds["plain"])
    assert str(tmp_path) not in (tmp_path / "convert.json").read_text()
    run(convert, "--show", tmp_path / "convert.json")
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        (convert, ["--input", "nowhere"], "--input nowhere: no folder with EDF files"),
        (convert, ["--input", "nowhere", "--repeats", 0], "--repeats 0: allowed are numbers above 0"),
        (long_recording, ["--hours", 0], "--hours 0.0: allowed are numbers above 0"),
        (long_recording, ["--json", "/dev/null/a.json"], "--json /dev/null cannot be written"),
        (data, ["--num_workers", 1, -1], "--num_workers -1: allowed are numbers from 0"),
        (data, ["--device", "abacus"], "--device abacus is no device"),
    ],
)
def test_words_that_cannot_be_right_are_refused_before_anything_is_measured(
    module: Any, words: list[Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        run(module, *words)


def test_a_command_that_fails_is_one_line_with_its_reason(tmp_path: Path) -> None:
    broken = [sys.executable, "-c", "raise ValueError('no EDF file')"]
    with pytest.raises(InputError, match="the plain loop cannot convert what is in --input: ValueError: no EDF file"):
        convert.seconds("the plain loop", broken)
    with patch.object(long_recording.sys, "executable", "false"), pytest.raises(InputError, match="the maker failed"):
        long_recording.convert(tmp_path / "a.edf", tmp_path / "out")


@pytest.mark.parametrize("module", [data, convert, long_recording])
def test_a_file_that_holds_no_results_is_one_line(module: Any, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"geometries": 3, "seconds": 1}'):
        (tmp_path / "x.json").write_text(content)
        name = Path(module.__file__).name
        with pytest.raises(InputError, match=rf"x.json is no results file of {name} .* --json FILE"):
            run(module, "--show", tmp_path / "x.json")
