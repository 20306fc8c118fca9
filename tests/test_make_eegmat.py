"""MentalArithmetic: the published counts on the real recordings, and what is refused or said of incomplete copies."""

import json
import shutil
from pathlib import Path

import h5py
import mne
import numpy as np
import pytest

from dataset_maker import make_eegmat
from maker_helpers import noise, run_maker

EXTRAS = ["EEG A2-A1", "ECG ECG"]
REST, TASK = 1, 2  # as files are numbered
PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0, "--jobs", 1)


def write_edf(folder: Path, subject: int, part: int, seconds: int = 11) -> np.ndarray:
    """Write a recording as they are in eegmat, at 200 Hz; return its 19 EEG channels (19, time) in uV."""
    names = [f"EEG {name.replace('FP', 'Fp').replace('Z', 'z')}" for name in make_eegmat.ELECTRODES] + EXTRAS
    eeg = noise(len(names), seconds, 200, seed=10 * subject + part)
    folder.mkdir(exist_ok=True)
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info(names, 200.0, "eeg"), verbose="error")
    path = folder / f"Subject{subject:02d}_{part}.edf"
    mne.export.export_raw(path, raw, physical_range=(-200, 200), verbose="error")
    return eeg[:19]


def test_the_real_recordings_give_the_published_windows(shared: Path, tmp_path: Path) -> None:
    output = tmp_path / "data" / "MentalArithmetic.hdf5"
    assert run_maker(make_eegmat, "--root", shared / "eegmat", "--output", output, "--jobs", 2) == 0
    golden = np.load(Path(__file__).parent / "golden" / "preprocessing.npz")
    with h5py.File(output) as file:
        assert {split: len(group["label"]) for split, group in file.items()} == {"train": 1343, "val": 172}
        assert list(file.attrs["classes"]) == ["rest", "task"] and file.attrs["task"] == "binary"
        subjects = {split: sorted(set(group["subject"].asstr())) for split, group in file.items()}
        assert subjects["train"] == [f"Subject{n:02d}" for n in range(28)]
        assert subjects["val"] == [f"Subject{n:02d}" for n in range(28, 32)]
        names = file["train"]["recording"].asstr()[:]
        np.testing.assert_array_equal(file["train"]["label"][:], [name.endswith("_2") for name in names])
        (mine,) = np.nonzero(names == "Subject00_2")
        eeg = np.concatenate(list(file["train"]["eeg"][mine[0] : mine[-1] + 1]), axis=1)  # its windows in a row
        assert eeg.shape == (19, 12 * 1000)
        kept = [name.replace("EEG ", "").upper() for name in golden["eegmat_channels"]]
        assert kept == list(file.attrs["chOrder"])
        np.testing.assert_allclose(eeg[:6, :200], golden["eegmat_first"], atol=1e-3)
        np.testing.assert_allclose(eeg[:6, 6000:6400], golden["eegmat_middle"], atol=1e-3)


def test_four_more_subjects_under_the_missing_names_make_a_test_group(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "eegmat"
    root.mkdir()
    for new, old in ((0, 0), (28, 28), (32, 1), (33, 2), (34, 3), (35, 5), (36, 6)):
        for part in (REST, TASK):
            shutil.copy(shared / "eegmat" / f"Subject{old:02d}_{part}.edf", root / f"Subject{new:02d}_{part}.edf")
    assert run_maker(make_eegmat, "--root", root, "--output", tmp_path / "out.hdf5", "--jobs", 2) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert sorted(set(file["test"]["subject"].asstr())) == ["Subject32", "Subject33", "Subject34", "Subject35"]
        assert sorted(set(file["train"]["subject"].asstr())) == ["Subject00"]  # and there is no subject 36
        assert np.bincount(file["test"]["label"][:]).tolist() == [4 * 36, 4 * 12]


def test_windows_are_consecutive_and_hold_the_nineteen_electrodes(tmp_path: Path) -> None:
    root = tmp_path / "eegmat"
    eeg = {(subject, part): write_edf(root, subject, part) for subject in (0, 29) for part in (REST, TASK)}
    assert run_maker(make_eegmat, "--root", root, "--output", tmp_path / "out.hdf5", *PLAIN) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        for split, subject in (("train", 0), ("val", 29)):
            group = file[split]
            assert group["label"][:].tolist() == [0, 0, 1, 1]
            windows = [eeg[subject, part][:, start : start + 1000] for part in (REST, TASK) for start in (0, 1000)]
            np.testing.assert_allclose(group["eeg"][:], windows, atol=0.01)  # EDF has 16 bits


def test_folds_cut_by_subject_and_need_both_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "eegmat"
    for subject in range(4):
        for part in (REST, TASK):
            write_edf(root, subject, part, seconds=5)
    words = ("--root", root, "--output", tmp_path / "out.hdf5", *PLAIN)
    assert run_maker(make_eegmat, *words, "--folds", 4) == 2
    assert run_maker(make_eegmat, *words, "--fold", 1) == 2
    assert run_maker(make_eegmat, *words, "--folds", 4, "--fold", 4) == 2
    assert run_maker(make_eegmat, *words, "--folds", 0, "--fold", 0) == 2
    assert run_maker(make_eegmat, *words, "--folds", 5, "--fold", 0) == 2
    assert "--folds 5" in capsys.readouterr().err and not (tmp_path / "out.hdf5").exists()
    assert run_maker(make_eegmat, *words, "--folds", 4, "--fold", 3) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        found = {split: sorted(set(group["subject"].asstr())) for split, group in file.items()}
        assert found == {"test": ["Subject03"], "val": ["Subject00"], "train": ["Subject01", "Subject02"]}
        assert json.loads(file.attrs["made"])["split"] == "fold 3 of 4"


def test_a_missing_half_is_said_and_a_missing_class_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "eegmat"
    assert run_maker(make_eegmat, "--root", root, "--output", tmp_path / "out.hdf5") == 1
    assert "no SubjectNN_1.edf or SubjectNN_2.edf there" in capsys.readouterr().err
    for subject, part in ((0, REST), (1, REST), (28, TASK)):
        write_edf(root, subject, part, seconds=5)
    words = ("--root", root, "--output", tmp_path / "out.hdf5", *PLAIN)
    assert run_maker(make_eegmat, *words) == 1
    errors = capsys.readouterr().err
    assert "no training subject has SubjectNN_2.edf (task)" in errors and not (tmp_path / "out.hdf5").exists()
    write_edf(root, 1, TASK, seconds=5)
    assert run_maker(make_eegmat, *words) == 0
    errors = capsys.readouterr().err
    assert "Subject00: no Subject00_2.edf (task)" in errors and "Subject28: no Subject28_1.edf (rest)" in errors
