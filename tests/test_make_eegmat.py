"""MentalArithmetic: the published counts on the real recordings, folds, and incomplete copies."""

import json
from argparse import Namespace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dataset_maker import make_eegmat
from maker_helpers import edf, run_maker

REST, TASK = 1, 2  # as files are numbered
PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)


def write(folder: Path, subject: int, part: int) -> Path:
    """Write a recording as they are in eegmat, at 200 Hz."""
    names = [f"EEG {name.replace('FP', 'Fp').replace('Z', 'z')}" for name in make_eegmat.DATA_SET.electrodes or ()]
    return edf(folder / f"Subject{subject:02d}_{part}.edf", [*names, "EEG A2-A1", "ECG ECG"])


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


def test_the_published_split_follows_from_the_numbers_of_subjects(tmp_path: Path) -> None:
    for name in ("Subject27_1.edf", "Subject28_2.edf", "Subject35_1.edf", "Subject36_1.edf", "SubjectX_1.edf"):
        (tmp_path / name).touch()
    _, tasks = make_eegmat.find_recordings(Namespace(root=tmp_path, folds=None, fold=None))
    splits = {task["recording"]: (task["split"], task["label"]) for task in tasks}
    assert splits == {"Subject27_1": ("train", 0), "Subject28_2": ("val", 1), "Subject35_1": ("test", 0)}


def test_folds_cut_by_subject_and_need_both_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "eegmat"
    for subject in range(4):
        for part in (REST, TASK):
            write(root, subject, part)
    words = ("--root", root, "--output", tmp_path / "out.hdf5", *PLAIN)
    for folds in (("--folds", 4), ("--fold", 1), ("--folds", 0, "--fold", 0), ("--folds", 5, "--fold", 0)):
        assert run_maker(make_eegmat, *words, *folds) == 2
    assert "--folds 5" in capsys.readouterr().err and not (tmp_path / "out.hdf5").exists()
    assert run_maker(make_eegmat, *words, "--folds", 4, "--fold", 3) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        subjects = {split: sorted(set(group["subject"].asstr())) for split, group in file.items()}
        assert subjects == {"test": ["Subject03"], "val": ["Subject00"], "train": ["Subject01", "Subject02"]}
        assert json.loads(file.attrs["made"])["split"] == "fold 3 of 4"


def test_a_folder_without_recordings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--root", tmp_path / "in", "--output", tmp_path / "out.hdf5")
    assert run_maker(make_eegmat, *words) == 1 and f"--root {tmp_path / 'in'}" in capsys.readouterr().err


def test_an_output_of_another_suffix_is_refused_and_a_version_is_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for part in (REST, TASK):
        write(tmp_path / "in", 0, part)
    words = ("--root", tmp_path / "in", *PLAIN, "--output")
    assert run_maker(make_eegmat, *words, tmp_path / "out.hdf") == 2
    assert "a file ends in .hdf5 or .h5" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1
    assert run_maker(make_eegmat, *words, tmp_path / "out-1.0") == 0 and list((tmp_path / "out-1.0").glob("*.hdf5"))
