"""Files are whole or absent, a labelled file holds what was appended, and joined files what one writer would write."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dataset_maker.pipeline import Prepared
from dataset_maker.writers import DataSet, LabelledShard, PretrainingShard, Windows, cut, join, valid_seconds
from eeg_data.quality import BINS, Quality, SignalScan
from errors import InputError
from maker_helpers import noise

NOTE = "no notch at 50 Hz: the source has 100 Hz"
REPORT = {"source_rate": 200.0, "l_freq": 0.1, "h_freq": 75.0, "notch": None, "notes": [NOTE]}


def prepared(eeg: np.ndarray, data: Any = None) -> Prepared:
    """Return a recording of the electrodes CZ, PZ after the pipeline; data: where its signal is written."""
    electrodes = ["CZ", "PZ"][: len(eeg)]
    scan = SignalScan(electrodes, 200)
    scan.add(eeg)
    return Prepared(electrodes, 200.0, eeg.shape[1], eeg if data is None else data, scan.result(), REPORT)


def add(shard: PretrainingShard, name: str, eeg: np.ndarray) -> None:
    """Write a recording as the pipeline does."""
    data = shard.store(name)(["CZ", "PZ"][: len(eeg)], 200.0, eeg.shape[1])
    data[:] = eeg
    shard.finish(prepared(eeg, data))


def labelled(path: Path, classes: str = "ab", *, regression: bool = False, dtype: str = "float32") -> LabelledShard:
    """Return a writer of one-electrode samples of a second."""
    data_set = DataSet("X", list(classes), window=1, electrodes=["CZ"], regression=regression)
    return LabelledShard(path, data_set, made={"seed": 3}, dtype=dtype)


def test_a_failed_writer_leaves_nothing_and_keeps_the_older_file(tmp_path: Path) -> None:
    with PretrainingShard(tmp_path / "a.hdf5", made={}) as shard:
        add(shard, "a", noise(1, 2, 200))
    older = (tmp_path / "a.hdf5").read_bytes()
    with pytest.raises(KeyboardInterrupt), PretrainingShard(tmp_path / "a.hdf5", made={}) as shard:
        add(shard, "b", noise(1, 2, 200))
        raise KeyboardInterrupt
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [older]


def test_a_pre_training_file_describes_its_recording(tmp_path: Path) -> None:
    eeg = noise(2, 2.5, 200)
    eeg[:, 200:400] = 5.0  # no electrode moves
    with PretrainingShard(tmp_path / "a.hdf5", made={"source": "tests"}) as shard:
        add(shard, "a", eeg)
    with h5py.File(tmp_path / "a.hdf5") as file:
        data = file["a/eeg"]
        np.testing.assert_array_equal(data[:], eeg.astype(np.float32))
        assert data.chunks == (2, 200) and list(data.attrs["chOrder"]) == ["CZ", "PZ"] and data.attrs["notes"] == NOTE
        numbers = {key: data.attrs[key] for key in ("rsFreq", "lFreq", "hFreq", "notch", "sourceFreq")}
        assert numbers == {"rsFreq": 200, "lFreq": 0.1, "hFreq": 75, "notch": 0, "sourceFreq": 200}
        assert file["a/valid"][:].tolist() == [True, False, True]
        assert json.loads(data.attrs["quality"])["flat"] == {"CZ": 1, "PZ": 1}
        assert json.loads(file.attrs["made"])["source"] == "tests"


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"r: labels \[1, 2\]"), labelled(tmp_path / "x") as writer:
        writer.append("train", np.zeros((2, 1, 200)), [1, 2], recording="r", subject="s", valid=np.ones((2, 1), bool))
    assert not list(tmp_path.iterdir())


def listed(path: Path) -> dict[str, Any]:
    """Return name -> values, layout and attributes of all groups and datasets of a file."""
    content: dict[str, Any] = {}
    with h5py.File(path) as file:

        def add(name: str, item: Any) -> None:
            values = (item[:].tolist(), item.dtype, item.chunks) if isinstance(item, h5py.Dataset) else None
            content[name] = values, {key: str(value) for key, value in item.attrs.items()}

        add("", file)
        file.visititems(add)
    return content


@pytest.mark.parametrize(("dtype", "regression"), [("float32", False), ("float16", True)])
def test_joined_samples_are_the_file_that_one_writer_would_have_made(
    tmp_path: Path, dtype: str, regression: bool
) -> None:
    recordings = [prepared(noise(1, 4, 200, seed)) for seed in range(3)]
    labels = np.array([[0.5, 1], [2, 3], [4, 5], [6, 7]]) if regression else np.array([0, 1, 1, 0])
    windows = Windows(np.arange(4) * 200, labels, splits=["train", "val", "train", "train"])
    for name, inside in {"whole": range(3), "1": range(2), "2": (2,)}.items():
        with labelled(tmp_path / f"{name}.hdf5", regression=regression, dtype=dtype) as writer:
            for number in inside:
                task = {"path": "x", "recording": f"r{number}", "subject": "s"}
                counts = writer.append_windows(recordings[number], windows, task=task)
                wanted = {"train": {"0": 2, "1": 1}, "val": {"1": 1}}
                assert counts == ({"train": {"all": 3}, "val": {"all": 1}} if regression else wanted)
    join([tmp_path / "1.hdf5", tmp_path / "2.hdf5"], tmp_path / "x.hdf5")
    assert listed(tmp_path / "x.hdf5") == listed(tmp_path / "whole.hdf5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert json.loads(file["train"].attrs["notes"]) == {NOTE: 3}
        assert file["train/label"].dtype == (np.float32 if regression else np.int64)
        assert file["val/label"][:].tolist() == [labels[1].tolist()] * 3


def test_joined_recordings_are_the_file_that_one_writer_would_have_made(tmp_path: Path) -> None:
    for name, inside in {"whole": "ab", "1": "a", "2": "b"}.items():
        with PretrainingShard(tmp_path / f"{name}.hdf5", made={"seed": 3}) as shard:
            for recording in inside:
                add(shard, recording, noise(2, 3, 200, ord(recording)))
    join([tmp_path / "1.hdf5", tmp_path / "2.hdf5"], tmp_path / "x.hdf5")
    assert listed(tmp_path / "x.hdf5") == listed(tmp_path / "whole.hdf5")


@pytest.mark.parametrize("starts", [[0, 1, 199, 200, 400, 600], [-150, -200, 900, 1100, 960, 780]])
@pytest.mark.parametrize("first", [True, False])
def test_a_second_of_a_window_is_valid_if_none_of_its_samples_lies_in_an_invalid_one(
    starts: list[int], first: bool
) -> None:
    length = 1130  # the last second is a part of one
    valid = np.array([first, True, False, True, True, not first])
    eeg = np.arange(length, dtype=float)[None]
    recording = Prepared(["CZ"], 200.0, length, eeg, Quality(valid, {}, {}, {}, np.zeros(BINS, int), len(valid)), {})
    windows = (np.array(starts)[:, None] + np.arange(400)) % length  # wrapping round the ends
    expected = np.repeat(valid, 200)[windows].reshape(len(starts), 2, 200).all(axis=2)
    np.testing.assert_array_equal(valid_seconds(recording, np.array(starts), 400), expected)
    for start, window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(cut(recording, start, 400)[0], window)
