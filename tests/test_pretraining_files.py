"""Recordings of pre-training files: their valid seconds, the windows that avoid the others, and absurd files."""

import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import layers
from data_helpers import PAIR, TRIO, only_line, signal, write_pretraining
from eeg_data import labelled_files, pretraining_files
from eeg_data.pretraining_files import Recording, by_montage, covered, read_recordings, stretches, window_range
from errors import InputError
from training import metrics


def with_valid(path: Path, valid: Any, samples: int = 1900) -> Path:
    """Write a file of one recording that says which seconds are valid."""
    write_pretraining(path, PAIR, [signal(2, samples)])
    with h5py.File(path, "r+") as file:
        file["recording0/valid"] = valid
    return path


def test_the_formats_numbers_are_the_models_and_the_metrics() -> None:
    assert pretraining_files.SAMPLING_RATE == layers.PATCH_SAMPLES
    assert pretraining_files.MAX_SECONDS == layers.MAX_PATCHES
    assert labelled_files.TASKS == tuple(metrics.METRICS) == tuple(metrics.SELECT_BY)


@pytest.mark.parametrize("row", [[], [1], [0], [1, 1, 0, 1], [0, 0, 1, 1, 0], [1] * 7, [0, 1, 0, 1, 0]])
def test_stretches_say_where_a_row_is_true(row: list[int]) -> None:
    bad = np.array(row, dtype=bool)
    found = stretches(bad)
    assert [i for first, end in found for i in range(first, end)] == np.flatnonzero(bad).tolist()
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(found))
    np.testing.assert_array_equal(covered(found, len(row)), bad)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_a_file_says_which_seconds_are_valid(tmp_path: Path, dtype: type) -> None:
    valid = np.array([1, 1, 0, 0, 1, 1, 1, 0, 1, 0], dtype=dtype)  # 9.5 s
    (recording,) = read_recordings(with_valid(tmp_path / "a.hdf5", valid))
    assert recording.invalid == ((2, 4), (7, 8), (9, 10))
    (silent,) = read_recordings(write_pretraining(tmp_path / "b.hdf5", PAIR, [signal(2, 1900)]))
    assert silent.invalid is None


@pytest.mark.parametrize(
    "valid",
    [np.ones(9, bool), np.ones(11, bool), np.ones((10, 2), bool), np.ones(10), np.array(True), ["x"] * 10],
    ids=lambda value: f"{np.shape(value)}-{np.asarray(value).dtype}",
)
def test_valid_that_is_not_one_boolean_a_second_is_refused(tmp_path: Path, valid: Any) -> None:
    path = with_valid(tmp_path / "a.hdf5", valid)
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, "recording0", "`valid` is", "expected (10,)", "1900 samples", "make the file again")


def test_valid_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    with h5py.File(path, "r+") as file:
        file.create_group("recording0/valid")
    with pytest.raises(InputError, match="`valid` is no dataset"):
        read_recordings(path)


@pytest.mark.parametrize("seed", range(30))
def test_windows_are_those_that_touch_no_invalid_second(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length, window, stride = int(rng.integers(1, 9000)), int(rng.integers(1, 17)) * 200, int(rng.integers(1, 900))
    ends = sorted(rng.choice([0, 0.19, 0.5, 0.73, 1], 2)) if seed % 2 else [0, 1]
    bad = rng.random(-(-length // 200)) < rng.choice([0.05, 0.3, 0.9])
    recording = Recording(Path("a"), "r", PAIR, length, stretches(bad))
    touched = np.repeat(bad, 200)  # the samples of invalid seconds
    every = list(window_range(length, window, stride, *ends))
    expected = [i for i in every if not touched[i * stride : i * stride + window].any()]
    runs, left_out = recording.windows(window, stride, *ends)
    assert [i for run in runs for i in run] == expected
    assert left_out == len(every) - len(expected)
    assert len(runs) <= len(recording.invalid or ()) + 1 and all(runs)


def test_a_recording_comes_in_blocks_of_whole_seconds(tmp_path: Path) -> None:
    eeg = signal(2, 1930)
    (recording,) = read_recordings(write_pretraining(tmp_path / "a.hdf5", PAIR, [eeg]))
    blocks = list(recording.blocks(values=900))
    assert [block.shape[1] for block in blocks] == [400] * 4 + [330]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), eeg)


def test_what_the_maker_saw_is_read_and_nonsense_is_refused(tmp_path: Path) -> None:
    path = with_valid(tmp_path / "a.hdf5", np.arange(10) != 3)
    (recording,) = read_recordings(path)
    assert recording.quality() is None
    seen = {"flat": {"FP1": 2}, "saturated": {}, "not_finite": {}, "histogram": {"180": 9}, "seconds": 10}
    for text, good in ((json.dumps(seen), True), ("{}", False), (3.5, False)):
        other = with_valid(tmp_path / f"{good}-{len(str(text))}.hdf5", np.arange(10) != 3)
        with h5py.File(other, "r+") as file:
            file["recording0/eeg"].attrs["quality"] = text
        (recording,) = read_recordings(other)
        if good:
            quality = recording.quality()
            assert quality is not None and quality.flat == {"FP1": 2} and quality.histogram[180] == 9
            assert quality.valid.tolist() == [i != 3 for i in range(10)]
        else:
            with pytest.raises(InputError) as error:
                recording.quality()
            only_line(error, other, "recording0", "no JSON of a scan", "make the file again")


def test_recordings_of_one_montage_share_its_names(tmp_path: Path) -> None:
    recordings = read_recordings(write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 200)] * 4))
    assert len({id(recording.montage) for recording in recordings}) == 1
    assert [[r.name for r in group] for group in by_montage(recordings)] == [[f"recording{i}" for i in range(4)]]


def of_texts(group: h5py.Group) -> h5py.Dataset:
    return group.create_dataset("eeg", data=np.full((2, 400), b"EEG"))


def of_records(group: h5py.Group) -> h5py.Dataset:
    return group.create_dataset("eeg", data=np.zeros((2, 400), dtype=[("a", "f4")]))


def of_complex_numbers(group: h5py.Group) -> h5py.Dataset:
    return group.create_dataset("eeg", data=np.zeros((2, 400), dtype=complex))


def of_no_shape(group: h5py.Group) -> h5py.Dataset:
    return group.create_dataset("eeg", data=h5py.Empty("f4"))


@pytest.mark.parametrize("make", [of_texts, of_records, of_complex_numbers, of_no_shape])
def test_eeg_that_is_no_table_of_numbers_is_refused(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        make(file.create_group("someone")).attrs.update(chOrder=list(PAIR), rsFreq=200.0)
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, "someone", "no pre-training file")


def test_a_recording_that_claims_more_than_its_file_holds_is_refused_when_it_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("someone/eeg", (2, 10**13), "f4", chunks=(2, 200))
        data.attrs.update(chOrder=list(PAIR), rsFreq=200.0)
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, "someone", "claims 80,000,000,000,000 bytes")


@pytest.mark.parametrize("rate", ["fast", [200.0, 200.0], np.nan, 0, 3 + 4j, None], ids=str)
def test_an_absurd_rate_is_refused(tmp_path: Path, rate: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)], leave_out=["rsFreq"])
    with h5py.File(path, "r+") as file:
        file["recording0/eeg"].attrs["rsFreq"] = h5py.Empty("f4") if rate is None else rate
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, "recording0")


def test_a_name_that_is_no_text_is_refused_and_one_that_a_terminal_would_obey_is_shown_escaped(tmp_path: Path) -> None:
    for name, parts in ((b"\xff\xfe", ["no text"]), (b"\x1b[31mred", ["\\x1b[31mred"])):
        path = tmp_path / f"{len(name)}.hdf5"
        with h5py.File(path, "w") as file:
            file.create_group(name)
        with pytest.raises(InputError) as error:
            read_recordings(path)
        assert "\x1b" not in only_line(error, path, *parts)


def test_attributes_of_the_group_count_where_the_eeg_has_none(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)], leave_out=["chOrder", "rsFreq"])
    with h5py.File(path, "r+") as file:
        file["recording0"].attrs.update(chOrder=list(PAIR), rsFreq=200)
    assert read_recordings(path)[0].montage == PAIR
