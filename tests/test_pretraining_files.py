"""Recordings of pre-training files: golden windows, valid seconds, and files that are none."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import layers
from data_helpers import PAIR, TRIO, counting, only_line, signal, write_pretraining
from eeg_data import hdf5, labelled_files, pretraining_files
from eeg_data.pretraining_files import Recording, Windows, default_window, read_recordings
from errors import InputError
from training import metrics

GOLDEN = json.loads((Path(__file__).parent / "golden" / "windows.json").read_text())


def test_the_formats_numbers_are_the_models_and_the_metrics() -> None:
    assert pretraining_files.SAMPLING_RATE == layers.PATCH_SAMPLES
    assert pretraining_files.MAX_SECONDS == layers.MAX_PATCHES
    assert labelled_files.TASKS == tuple(metrics.METRICS) == tuple(metrics.SELECT_BY)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['window']}-{case['stride']}")
def test_windows_are_those_of_the_released_dataset(tmp_path: Path, case: dict) -> None:
    recordings = []
    for name, lengths in GOLDEN["recording_lengths"].items():
        eeg = [counting(2, length) for length in lengths]
        file = write_pretraining(tmp_path / f"{name}.hdf5", (b"FP1", b"FP2"), eeg, dtype=np.float64)
        recordings += read_recordings(file)
    ends = {"start": case["start"], "end": case["end"]}
    windows = Windows(recordings, window=case["window"], stride=case["stride"], **ends)
    assert len(windows) == case["len"] == len(case["first_samples"])
    eeg = [windows[i] for i in range(len(windows))]
    assert [float(window[0, 0]) for window in eeg] == case["first_samples"]
    for window in eeg:
        assert window.shape == (2, case["window"]) and window.dtype == np.float32
        assert (np.diff(window) == 1).all() and (window[1] - window[0] == 100_000).all()


def test_the_default_window_holds_at_most_256_patches_and_16_seconds() -> None:
    for electrodes, seconds in ((1, 16), (16, 16), (17, 15), (19, 13), (32, 8), (64, 4), (128, 2), (136, 1)):
        assert default_window(electrodes) == seconds * 200


def test_windows_are_those_that_touch_no_invalid_second() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        length, window, stride = int(rng.integers(1, 9000)), int(rng.integers(1, 17)) * 200, int(rng.integers(1, 900))
        ends = (0.0, 1.0) if seed % 2 else (0.25, 0.8)
        bad = rng.random(-(-length // 200)) < rng.choice([0, 0.05, 0.3, 1])
        recording = Recording(Path("a"), "r", PAIR, length, ~bad)
        touched = np.repeat(bad, 200)
        n = max(0, (length - window) // stride + 1)
        every = list(range(int(n * ends[0]), int(n * ends[1])))
        expected = [i for i in every if not touched[i * stride : i * stride + window].any()]
        runs, left_out = recording.windows(window, stride, *ends)
        assert [i for run in runs for i in run] == expected
        assert left_out == len(every) - len(expected)
        assert len(runs) <= np.count_nonzero(np.diff(bad)) + 1


def test_a_recording_without_windows_between_others_is_stepped_over(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, n) for n in (100, 400, 150, 100, 200, 50)])
    windows = Windows(read_recordings(path), window=200)
    assert [windows.locate(i)[0].name for i in range(len(windows))] == ["recording1", "recording1", "recording4"]
    assert windows.too_short == 4
    with pytest.raises(IndexError):
        windows.locate(len(windows))


def test_memory_of_windows_grows_with_recordings_not_with_windows() -> None:
    valid = np.arange(50_000) % 1000 != 5
    recordings = [Recording(Path("a"), f"r{i}", PAIR, 10**7, valid) for i in range(100)]  # 14 hours each
    windows = Windows(recordings, window=400, stride=20)
    assert len(windows) > 4 * 10**7 and sum(part.nbytes for part in windows.runs) < 200_000
    assert windows.locate(len(windows) - 1) == (recordings[-1], 10**7 - 400)


def test_a_file_says_which_seconds_are_valid(tmp_path: Path) -> None:
    valid = np.array([1, 1, 0, 0, 1, 1, 1, 0, 1, 0], np.uint8)  # 9.5 s
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1900)] * 2, valid=[valid])
    marked, silent = read_recordings(path)
    assert marked.valid.tolist() == valid.astype(bool).tolist() and silent.valid is None


@pytest.mark.parametrize("valid", [np.ones(9, bool), np.ones((10, 2), bool), np.ones(10), ["x"] * 10], ids=type)
def test_valid_that_is_not_one_boolean_a_second_is_refused(tmp_path: Path, valid: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1900)], valid=[valid])
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, "recording0", "`valid`", "(10,)")


@pytest.mark.parametrize("owner", ["recording0/eeg", "recording0"])  # of a maker, of `inspect_data --mark`
def test_the_makers_scan_is_read_and_nonsense_is_refused(tmp_path: Path, owner: str) -> None:
    scan = {"flat": {"FP1": 2}, "saturated": {}, "not_finite": {}, "histogram": {"180": 9}, "seconds": 10}
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1900)], valid=[np.arange(10) != 3])
    (recording,) = read_recordings(path)
    assert recording.quality() is None
    for content in (json.dumps(scan), "{}"):
        hdf5.close_files()
        with h5py.File(path, "r+") as file:
            file[owner].attrs["quality"] = content
        (recording,) = read_recordings(path)
        if content != "{}":
            quality: Any = recording.quality()
            assert quality.flat == {"FP1": 2} and quality.histogram[180] == 9
            assert quality.valid.tolist() == [i != 3 for i in range(10)]
    with pytest.raises(InputError) as error:
        recording.quality()
    only_line(error, path, "recording0", "quality")


def test_a_scan_reads_the_whole_signal_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eeg = signal(2, 1930)
    eeg[0, 333] = np.nan
    (recording,) = read_recordings(write_pretraining(tmp_path / "a.hdf5", PAIR, [eeg]))
    monkeypatch.setattr(pretraining_files, "BLOCK", 900)
    scan = recording.scan()
    assert (scan.not_finite, scan.histogram.sum()) == ({"FP1": 1}, eeg.size - 1)
    assert np.flatnonzero(~scan.valid).tolist() == [1]


def test_names_are_shared_and_attributes_of_the_group_count_where_the_eeg_has_none(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 200)] * 4)
    with h5py.File(path, "r+") as file:
        for group in file.values():
            group.attrs["chOrder"] = group["eeg"].attrs.pop("chOrder")
    recordings = read_recordings(path)
    assert {r.montage for r in recordings} == {TRIO} and len({id(r.montage) for r in recordings}) == 1


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("someone", signal(2, 400), "someone"),
        ("someone/eeg", signal(4, 2, 400), "someone"),
        ("someone/eeg", np.full((2, 400), b"EEG"), "someone"),
        (b"\x1b[31mred/x", 1, r"\x1b[31mred"),
        ("", None, "no recordings"),
        ("three names", None, "3 electrode names for 2 rows"),
    ],
)
def test_a_file_that_is_no_pretraining_file_is_one_line_of_plain_text(
    tmp_path: Path, name: Any, value: Any, part: str
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(2, 400)] if name == "three names" else [])
    with h5py.File(path, "r+") as file:
        if value is not None:
            file[name] = value
    with pytest.raises(InputError) as error:
        read_recordings(path)
    assert "\x1b" not in only_line(error, path, part)
