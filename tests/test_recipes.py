"""The public data sets of docs/recipes.md, each from a small tree with the files that it is downloaded as."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.signal import resample_poly

from dataset_maker import make_recipe
from maker_helpers import edf_of, noise, run_maker

PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)
RATE = 200
SYSTEM_10_20 = ["FP1", "FP2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8"]
SYSTEM_10_20 += ["T3", "T4", "T5", "T6", "FZ", "CZ", "PZ"]
DERIVATIONS = ["FP1-F7", "F7-T7", "T7-P7", "P7-O1", "FP2-F8", "F8-T8", "T8-P8", "P8-O2"]
DERIVATIONS += ["FP1-F3", "F3-C3", "C3-P3", "P3-O1", "FP2-F4", "F4-C4", "C4-P4", "P4-O2"]
VIGILANCE = ["FT7", "FT8", "T7", "T8", "TP7", "TP8"]
VIGILANCE += ["CP1", "CP2", "P1", "PZ", "P2", "PO3", "POZ", "PO4", "O1", "OZ", "O2"]


def make(recipe: str, root: Path, *words: Any, code: int = 0) -> Path:
    """Run the maker without filters; return the file it wrote."""
    output = root.parent / f"{recipe}.hdf5"
    assert run_maker(make_recipe, recipe, "--root", root, "--output", output, *PLAIN, *words) == code
    return output


def recorded(path: Path, names: Sequence[str], seconds: int, marks: Sequence[str] = ()) -> np.ndarray:
    """Write an EDF file of noise; return its values (N, time) in uV. marks: annotations half a second into each one."""
    counts = np.round(noise(len(names), seconds, RATE, seed=sum(path.name.encode())) * 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    if marks:
        options: dict[str, Any] = {"onsets": range(seconds), "reserved": "EDF+C", "remark": marks}
        edf_of(path, dict(zip(names, counts, strict=True)), **options)
    else:  # also of two signals with one name
        edf_of(path, {str(number): row for number, row in enumerate(counts)}, label=list(names), seconds=seconds)
    return counts / 10


def test_a_task_of_eegmmidb_is_called_after_its_run_and_lasts_4_s_from_its_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, eeg = tmp_path / "eegmmidb", {}
    marks = ["T0", "", "T1", "", "", "", "T2", "", "", "", "T1", ""]  # at 0.5 s, 2.5 s, ...; the last has no 4 s
    recorded(root / "S002" / "S002R04.edf", ["Fc5.", "C3..", "Cz.."], 12)  # without annotations
    for name in ("S001R03", "S001R04", "S001R06", "S070R12", "S071R14", "S090R08", "S109R10"):
        eeg[name] = recorded(root / name[:4] / f"{name}.edf", ["Fc5.", "C3..", "Cz.."], len(marks), marks)
    with h5py.File(make("eegmmidb", root)) as file:
        assert file.attrs["classes"].tolist() == ["left fist", "right fist", "both fists", "both feet"]
        rows = {
            split: list(zip(group["recording"].asstr(), group["label"], strict=True)) for split, group in file.items()
        }
        assert rows["train"] == [
            (f"S{n}", label)
            for n, labels in (("001R04", (0, 1)), ("001R06", (2, 3)), ("070R12", (0, 1)))
            for label in labels
        ]
        assert rows["val"] == [("S071R14", 2), ("S071R14", 3)]
        assert rows["test"] == [("S090R08", 0), ("S090R08", 1), ("S109R10", 2), ("S109R10", 3)]
        np.testing.assert_allclose(file["val"]["eeg"][1], eeg["S071R14"][:, 1300:2100], atol=1e-3)
    shown = capsys.readouterr()
    assert "PhysioNet: 654 recordings, here 7; 109 subjects, here 5" in shown.out
    assert "9837 samples, here 12" in shown.out and "6 trials that reach beyond their recording" in shown.out
    assert "1 other files of this format are not read: S001R03.edf" in shown.out
    assert "S002R04.edf: 0 trials, expected are 15" in shown.err
    recorded(root / "copy" / "S001R04.edf", ["Fc5.", "C3..", "Cz.."], 12)
    assert run_maker(make_recipe, "eegmmidb", "--root", root, "--output", tmp_path / "b.hdf5") == 1
    assert "have one name; name the folder of one copy" in capsys.readouterr().err


def test_the_real_recordings_of_a_person_give_her_ninety_tasks(shared: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.hdf5"
    assert run_maker(make_recipe, "eegmmidb", "--root", shared / "eegmmidb", "--output", output, *PLAIN) == 0
    with h5py.File(output) as file:
        assert file["train"]["eeg"].shape == (90, 64, 800)
        assert np.bincount(file["train"]["label"]).tolist() == [23, 22, 21, 24]


def test_the_mains_of_a_recipe_are_removed_unless_a_flag_says_others(tmp_path: Path) -> None:
    marks = ["T1", *[""] * 11]
    recorded(tmp_path / "in" / "S001R04.edf", ["C3", "Cz"], 12, marks)
    recorded(tmp_path / "in" / "S001R06.edf", ["C3", "Cz"], 12, marks)
    for words, hz in (((), 60), (("--notch", 50), 50)):
        output = tmp_path / f"{hz}.hdf5"
        assert run_maker(make_recipe, "eegmmidb", "--root", tmp_path / "in", "--output", output, *words) == 0
        with h5py.File(output) as file:
            assert json.loads(file.attrs["made"])["filter"]["notch"] == hz


def test_people_of_mumtaz_are_split_by_number_and_their_task_recording_is_not_used(tmp_path: Path) -> None:
    names = [f"EEG {name}-LE" for name in SYSTEM_10_20]
    eeg = {}
    for person in ("H S1", "H S2", "MDD S1", "MDD S10"):
        for part in ("EC", "EO", "TASK"):
            name = f"{'6921959_' if person == 'H S2' and part == 'EO' else ''}{person} {part}"
            more = ["EEG A2-A1", "EEG 23A-23R"]
            eeg[name] = recorded(tmp_path / "in" / f"{name}.edf", [*names[::-1], *more], 11)
    with h5py.File(make("mumtaz", tmp_path / "in")) as file:
        assert list(file) == ["train"] and len(file["train"]["label"]) == 16
        group = file["train"]
        by_label = set(zip(group["subject"].asstr(), group["label"], strict=True))
        assert by_label == {("H S1", 0), ("H S2", 0), ("MDD S1", 1), ("MDD S10", 1)}
        (first, *_) = np.flatnonzero(group["recording"].asstr()[:] == "MDD_S10_EO")
        places = [names[::-1].index(f"EEG {name}-LE") for name in file.attrs["chOrder"]]
        np.testing.assert_allclose(group["eeg"][first + 1], eeg["MDD S10 EO"][places, 1000:2000], atol=1e-3)
    everybody = [f"H S{n}" for n in range(1, 31) if n not in (12, 23)] + [f"MDD S{n}" for n in range(1, 35)]
    sides = make_recipe.RECIPES["mumtaz"].split(everybody)
    count = [
        [list(sides.get(n, "train") for n in everybody if n[0] == g).count(s) for g in "HM"]
        for s in ("train", "val", "test")
    ]
    assert count == [[19, 24], [4, 5], [5, 5]] and sides["H S30"] == "test" and sides["MDD S25"] == "val"


def block(name: str, *times: tuple[int, int], count: int | None = None) -> str:
    """Return what a summary of CHB-MIT says of a file."""
    lines = [f"File Name: {name}.edf", "File Start Time: 11:42:54"]
    lines += [f"Number of Seizures in File: {len(times) if count is None else count}"]
    for number, (start, end) in enumerate(times, 1):
        which = f" {number}" if len(times) > 1 else ""
        lines += [f"Seizure{which} Start Time:  {start} seconds", f"Seizure{which} End Time: {end} seconds"]
    return "\n".join([*lines, "", ""])


def chb_mit(root: Path, *names: str, more: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Write files of CHB-MIT of 45 s with the sixteen derivations and more channels; return their values."""
    return {n: recorded(root / n[:5] / f"{n}.edf", [*DERIVATIONS, *more], 45) for n in names}


def test_a_window_of_chb_mit_that_touches_a_seizure_has_its_label_and_chb21_is_chb01(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "chbmit"
    eeg = chb_mit(root, "chb01_01", "chb01_46", "chb21_01", more=["T8-P8", "FZ-CZ", "ECG", "-", "."])
    eeg |= chb_mit(root, "chb01_02", "chb22_01", "chb24_02", more=["FC1-Ref", "CP6-Ref", "VNS"])  # one T8-P8
    parts = block("chb01_01", (20, 40)), block("chb01_02", (9, 11), (25, 28)), block("chb01_46")
    (root / "chb01" / "chb01-summary.txt").write_text("Channel 1: FP1-F7\n\n" + "".join(parts))
    for case in ("chb21", "chb22"):
        (root / case / f"{case}-summary.txt").write_text(block(f"{case}_01"))
    (root / "chb24" / "chb24-summary.txt").write_text(block("chb24_01", (1, 2)))  # not chb24_02
    with h5py.File(make("chb-mit", root)) as file:
        train = file["train"]
        labels = {
            name: train["label"][train["recording"].asstr()[:] == name].tolist() for name in eeg if "chb01" in name
        }
        assert labels == {"chb01_01": [0, 0, 1, 1], "chb01_46": [0] * 4, "chb01_02": [1, 1, 1, 0]}
        assert list(file.attrs["chOrder"]) == DERIVATIONS
        np.testing.assert_allclose(train["eeg"][4], eeg["chb01_02"][:16, :2000], atol=1e-3)
        assert {split: set(group["subject"].asstr()) for split, group in file.items()} == {
            **{"train": {"chb01"}, "val": {"chb01", "chb22"}, "test": {"chb24"}}
        }
    shown = capsys.readouterr()
    assert "1 subjects are on more than one side: chb01" in shown.err and "share a name" not in shown.err
    assert "1 recordings: not in the summary" in shown.out


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (block("chb01_01", (5, 9), count=2), "does not say clearly"),
        (block("chb01_01", (9, 5)), "does not say clearly"),
        (block("chb01_01", (5, 9)).replace("Seizure End", "End"), "does not say clearly"),
        (block("chb01_01", (5, 9)) + block("chb01_01"), "does not say clearly"),
        (block("chb01_01", (50, 60)), "ends before 50 s"),
        (None, "cannot be read"),
    ],
)
def test_a_recording_of_chb_mit_with_unclear_seizures_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, part: str
) -> None:
    root = tmp_path / "chbmit"
    chb_mit(root, "chb01_01", "chb02_01")
    (root / "chb02" / "chb02-summary.txt").write_text(block("chb02_01", (5, 9)))
    if text:
        (root / "chb01" / "chb01-summary.txt").write_text(text)
    with h5py.File(make("chb-mit", root, code=1)) as file:
        assert set(file["train"]["recording"].asstr()) == {"chb02_01"}
    assert part in capsys.readouterr().err


def test_every_eight_seconds_of_seed_vig_have_their_perclos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, values = tmp_path / "SEED-VIG", np.random.default_rng(0).random((4, 3))
    eeg = [noise(17, 24, RATE, seed=number) for number in range(4)]
    for number, stem in enumerate(("1_20151124_noon_2", "4_20151105_noon", "14_20151014_night", "21_20151016_noon")):
        for folder, content in (
            ("Raw_Data", {"EEG": {"data": eeg[number].T, "chn": np.array(["CPZ"]), "sample_rate": 200}}),
            ("perclos_labels", {"perclos": values[number][:, None]}),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            savemat(root / folder / f"{stem}.mat", content)
    with h5py.File(make("seed-vig", root)) as file:
        assert file.attrs["task"] == "regression" and file["train"]["eeg"].shape == (6, 17, 1600)
        assert list(file.attrs["chOrder"]) == VIGILANCE
        np.testing.assert_allclose(file["test"]["label"][:, 0], values[3])
        np.testing.assert_allclose(file["val"]["eeg"][1], eeg[2][:, 1600:3200], rtol=1e-6)
        assert [*file["train"]["subject"].asstr()] == ["1"] * 3 + ["4"] * 3
    shown = capsys.readouterr()
    assert "not read" not in shown.out, "labels are read"
    assert "3 trials, expected are 885" in shown.err and "20355 samples, here 12" in shown.out
    savemat(root / "perclos_labels" / "4_20151105_noon.mat", {"perclos": values[:, :1]})
    savemat(root / "perclos_labels" / "14_20151014_night.mat", {"perclos": [[0.5], [2.5], [0.1]]})
    (root / "perclos_labels" / "1_20151124_noon_2.mat").unlink()
    assert run_maker(make_recipe, "seed-vig", "--root", root, "--output", tmp_path / "b.hdf5", *PLAIN) == 1
    error = capsys.readouterr().err
    assert "its labels are missing, expected in" in error and "for 4 labels is (6400, 17)" in error
    assert "PERCLOS is a share" in error


def test_people_of_ds004504_are_split_within_their_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, groups = tmp_path / "ds004504", "AAAAACCCCCFFFFF"
    names = SYSTEM_10_20
    for number, _ in enumerate(groups, 1):
        stem = f"sub-{number:03d}_task-eyesclosed_eeg"
        recorded(root / f"sub-{number:03d}" / "eeg" / f"{stem}.edf", names, 21)
    (root / "dataset_description.json").write_text('{"Name": "dementia", "BIDSVersion": "1.2.1"}')
    for name in ("sub-001/eeg/sub-001_task-photomark_eeg.edf", "sub-016/eeg/sub-016_task-eyesclosed_eeg.edf"):
        recorded(root / name, names, 21)  # another task; a subject without a row
    rows = [f"sub-{number:03d}\t{group}" for number, group in enumerate(groups, 1)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tGroup", *rows]))
    with h5py.File(make("ds004504", root)) as file:
        assert file.attrs["classes"].tolist() == ["A", "C", "F"]
        sides = {split: {*zip(group["subject"].asstr(), group["label"], strict=True)} for split, group in file.items()}
        assert {len(group["label"]) for group in file.values()} == {18, 6}, "two windows of 10 s each"
    assert sides["train"] == {(f"{n:03d}", label) for label in range(3) for n in range(5 * label + 1, 5 * label + 4)}
    assert sides["val"] == {("004", 0), ("009", 1), ("014", 2)}
    assert "1 recordings are left out, whose subjects have no row" in capsys.readouterr().out


def run_of_2a(starts: Sequence[int], labels: Sequence[int], samples: int, seed: int) -> dict[str, Any]:
    """Return a run of a session of BCI Competition IV 2a as in its .mat files; starts: of its trials."""
    classes = np.array(["left hand", "right hand", "feet", "tongue"], dtype=object)
    return {
        "X": np.random.default_rng(seed).standard_normal((samples, 25)) * 20,
        **{"trial": np.array(starts) + 1, "y": np.array(labels), "fs": 250, "classes": classes},
        **{"artifacts": np.zeros(len(starts)), "gender": "male", "age": 22},
    }


def test_all_runs_of_bci_competition_iv_2a_count_however_many_eye_runs_stand_before_them(tmp_path: Path) -> None:
    pytest.importorskip("moabb", reason="MOABB is missing: pip install -r requirements-peers.txt")
    folder = tmp_path / "MNE-bnci-data" / "~bci" / "database" / "001-2014"
    folder.mkdir(parents=True)
    for number in range(1, 10):
        for session in "TE":
            eyes = 1 if (number, session) == (4, "T") else 3
            runs = [run_of_2a([], [], 500, seed) for seed in range(eyes)]
            runs += [run_of_2a([100, 2100], [1 + seed, 4 - seed], 4000, 10 * number + seed) for seed in range(2)]
            cells = np.empty(len(runs), dtype=object)
            cells[:] = runs
            savemat(folder / f"A0{number}{session}.mat", {"data": cells})
    words = ["dataset_maker/make_moabb.py", "--dataset", "BNCI2014_001", "--split", "published"]
    words += ["--output", tmp_path / "a.hdf5", *PLAIN]
    environment = {**os.environ, "MNE_DATASETS_BNCI_PATH": str(tmp_path), "MOABB_DOWNLOAD_PROVIDER": "upstream"}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "check": True}
    shown = subprocess.run([sys.executable, *map(str, words), "--jobs", "1"], **options)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert {split: len(group["label"]) for split, group in file.items()} == {"train": 40, "val": 16, "test": 16}
        assert set(file["test"]["subject"].asstr()) == {"8", "9"}
        assert file["test"]["label"][:4].tolist() == [0, 3, 1, 2] and file["test"]["eeg"].shape[1:] == (22, 800)
        first = file["test"]["eeg"][0][:, 100:700]
    from_cue = run_of_2a([], [], 4000, 80)["X"][100 + 500 : 100 + 1500, :22].T  # 2 s after the trial's start
    assert np.corrcoef(first.ravel(), resample_poly(from_cue, 4, 5, axis=1)[:, 100:700].ravel())[0, 1] > 0.99
    assert "5184 samples, here 72" in shown.stdout and "5088 samples, here 72" in shown.stdout
    assert "4 trials, expected are 288" in shown.stderr


def test_a_folder_of_another_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    recorded(tmp_path / "in" / "a.edf", ["C3"], 5)
    make("mumtaz", tmp_path / "in", code=1)
    assert "no recording of mumtaz" in capsys.readouterr().err
