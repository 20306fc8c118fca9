"""A windows data set of braindecode becomes a labelled file that stage 3 takes."""

import warnings
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from dataset_maker.from_braindecode import from_braindecode
from eeg_data.labelled_files import read_labelled
from errors import InputError
from maker_helpers import NAMES, noise, raw_of
from run_helpers import CLASSIFIER, call

ONSETS = [2, 8, 14, 26]  # s


@pytest.fixture(scope="module")
def braindecode() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("braindecode", reason="braindecode is missing: pip install -r benchmarks/requirements.txt")
        import braindecode.datasets
        import braindecode.preprocessing
    return braindecode


def windows_of(braindecode: Any, subjects: int = 3, **options: Any) -> Any:
    """Return windows of 2 s, two in each trial of 4 s; recordings of 30 s at 250 Hz, with an EOG channel."""
    parts = []
    for subject in range(subjects):
        raw = raw_of([*NAMES, "EOG"], 250, noise(4, 30, 250, seed=subject), ["eeg"] * 3 + ["eog"])
        raw.set_annotations(mne.Annotations(ONSETS, 4.0, ["left", "right"] * 2))
        parts.append(braindecode.datasets.RawDataset(raw, description={"subject": subject + 1, "session": "A"}))
    options = {"window_size_samples": 500, "window_stride_samples": 500, "mapping": {"left": 4, "right": 7}} | options
    whole = braindecode.datasets.BaseConcatDataset(parts)
    return braindecode.preprocessing.create_windows_from_events(whole, **options)


def test_samples_are_the_windows_of_what_mne_filters_and_stage_3_takes_them(braindecode: Any, tmp_path: Path) -> None:
    data = windows_of(braindecode)
    data.set_description({"split": ["test", "train", "val"]})
    path = from_braindecode(data, tmp_path / "Mine.hdf5")
    with h5py.File(path) as groups:
        for subject, split in enumerate(["test", "train", "val"]):
            raw = data.datasets[subject].raw.copy().pick("eeg").filter(0.1, 75, verbose="error")
            eeg = raw.notch_filter(50, verbose="error").resample(200, verbose="error").get_data() * 1e6
            starts = [200 * (onset + second) for onset in ONSETS for second in (0, 2)]
            expected = np.stack([eeg[:, start : start + 400] for start in starts])
            np.testing.assert_allclose(groups[split]["eeg"], expected, atol=1e-3)
            assert groups[split]["label"][:].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
            assert set(groups[split]["subject"].asstr()) == {str(subject + 1)}
            assert set(groups[split]["recording"].asstr()) == {f"{subject + 1}-A-{subject}"}
    file = read_labelled(path)
    assert (file.task, list(file.classes), list(file.montage)) == ("binary", ["left", "right"], ["C3", "CZ", "C4"])
    assert call("run_class_finetuning", *CLASSIFIER, "--dataset", path, "--output_dir", tmp_path / "run") == 0


def test_targets_that_are_no_whole_numbers_are_a_regression_and_subjects_are_split(
    braindecode: Any, tmp_path: Path
) -> None:
    data = windows_of(braindecode, 5)
    for number, part in enumerate(data.datasets):
        part.metadata["target"] = number + 0.5
    with h5py.File(from_braindecode(data, tmp_path / "a.hdf5", classes=["age"], seed=3)) as file:
        assert file.attrs["task"] == "regression" and file.attrs["classes"].tolist() == ["age"]
        whose = {split: set(group["subject"].asstr()) for split, group in file.items()}
        assert {split: len(names) for split, names in whose.items()} == {"train": 3, "val": 1, "test": 1}
        for split, group in file.items():
            np.testing.assert_array_equal(
                group["label"][:, 0], [float(s) - 0.5 for s in group["subject"].asstr()], split
            )


def test_targets_that_are_texts_are_the_classes(braindecode: Any, tmp_path: Path) -> None:
    data = windows_of(braindecode)
    for part, target in zip(data.datasets, ("old", "young", "old"), strict=True):
        part.metadata["target"] = target
    with h5py.File(from_braindecode(data, tmp_path / "a.hdf5")) as file:
        labels = {str(g["subject"].asstr()[0]): set(g["label"][:].tolist()) for g in file.values()}
        assert file.attrs["classes"].tolist() == ["old", "young"] and labels == {"1": {0}, "2": {1}, "3": {0}}


def test_what_cannot_become_samples_is_one_line_and_writes_nothing(braindecode: Any, tmp_path: Path) -> None:
    split = windows_of(braindecode)
    split.set_description({"split": ["test", "train", "dev"]})
    untold = windows_of(braindecode)
    untold.datasets[1].metadata["target"] = np.nan
    cases = {
        "no target .NaN.": (untold, {}),
        "use_mne_epochs": (windows_of(braindecode, use_mne_epochs=True), {}),
        "1 to 16 whole seconds": (windows_of(braindecode, window_size_samples=300, window_stride_samples=300), {}),
        "2 subjects cannot be split": (windows_of(braindecode, 2), {}),
        "split 'dev': allowed are train, val, test": (split, {}),
        "3 classes .a, b, c. for the targets .4, 7.": (windows_of(braindecode), {"classes": ["a", "b", "c"]}),
    }
    for text, (data, options) in cases.items():
        with pytest.raises(InputError, match=text):
            from_braindecode(data, tmp_path / "a.hdf5", **options)
    volts = windows_of(braindecode)
    for part in volts.datasets:
        part.raw.load_data().apply_function(lambda x: x * 1e6)  # as braindecode's examples do
    with pytest.raises(InputError, match="--scale"):
        from_braindecode(volts, tmp_path / "a.hdf5")
    assert not list(tmp_path.iterdir())
