"""BIDS data sets that mne-bids writes: raw EEG alone, sidecars by inheritance, labels from their tables."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pandas as pd
import pytest

from dataset_maker import make_h5dataset_for_pretrain, make_labelled, sidecars
from maker_helpers import noise, opened, run_maker, save

mne_bids = pytest.importorskip("mne_bids", reason="mne-bids is missing: pip install -r requirements-peers.txt")
NAMES = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4"]
GROUPS = ["A"] * 8 + ["C"] * 7 + ["F"] * 4 + ["n/a"]  # of sub-001 to sub-020
RATE, SECONDS, MAINS = 250, 6, 60
PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)
UNKNOWN, NO_EDF_TYPE, WRONG_UNIT = "sub-020", "HEOG", "sub-002"


def write(
    root: Path, subject: str, *, task: str = "eyesclosed", bad: tuple[str, ...] = (), rate: int = RATE, **entities: str
) -> Path:
    """Write a recording of 6 s with mains of 60 Hz and three events, as mne-bids does; return its path."""
    eeg = noise(len(NAMES) + 1, SECONDS, rate, seed=int(subject))
    eeg += 20 * np.sin(2 * np.pi * MAINS * np.arange(eeg.shape[1]) / rate)
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info([*NAMES, NO_EDF_TYPE], rate, ["eeg"] * 8 + ["eog"]), verbose=40)
    raw.info["line_freq"], raw.info["bads"] = MAINS, list(bad)
    raw.set_annotations(mne.Annotations([0.5, 2, 4.5], [1.0, 2.5, 0.0], ["go", "stop", "go"]))
    path = mne_bids.BIDSPath(subject=subject, task=task, root=root, datatype="eeg", **entities)
    options: dict[str, Any] = {"format": "EDF", "allow_preload": True, "verbose": "error"}
    return Path(mne_bids.write_raw_bids(raw, path, **options).fpath)


def people(root: Path, **columns: list[Any]) -> None:
    """Replace participants.tsv. columns: of sub-001, sub-002, ..."""
    codes = [f"sub-{number:03d}" for number in range(1, 1 + len(next(iter(columns.values()))))]
    pd.DataFrame({"participant_id": codes, **columns}).to_csv(root / "participants.tsv", sep="\t", index=False)


@pytest.fixture(scope="module")
def dementia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 20 subjects as in ds004504, with what such data sets have: derivatives, a bad channel, a wrong unit."""
    root = tmp_path_factory.mktemp("bids") / "ds004504"
    for number in range(1, 21):
        write(root, f"{number:03d}", bad=("C3",) if number == 1 else ())
    people(root, Group=GROUPS, Age=[*range(50, 69), "n/a"])
    for name in ("derivatives", "sourcedata"):
        shutil.copytree(root / "sub-001", root / name / "sub-001")
    edf = next(root.glob(f"{WRONG_UNIT}/eeg/*.edf"))
    edf.write_bytes(edf.read_bytes().replace(b"uV      ", b"mV      "))  # of the header
    # What all recordings have in common stands once, at the top: BIDS' inheritance.
    common = {"PowerLineFrequency": MAINS, "EEGReference": "linked mastoids"}
    (root / "task-eyesclosed_eeg.json").write_text(json.dumps(common))
    for path in root.glob("sub-*/eeg/*_eeg.json"):
        path.write_text(json.dumps({"EEGReference": "Cz"} if "sub-001" in path.name else {"TaskName": "eyesclosed"}))
    shutil.move(next(root.glob("sub-003/eeg/*_channels.tsv")), root / "task-eyesclosed_channels.tsv")
    return root


def make(root: Path, output: Path, *words: Any) -> int:
    """Run make_labelled on a BIDS data set."""
    return run_maker(make_labelled, "--bids", root, "--output", output, *words)


def test_one_command_makes_a_labelled_file_of_a_tree_of_twenty_subjects(
    dementia: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert make(dementia, tmp_path / "a.hdf5", "--target", "participants.tsv:Group", "--window", 2) == 1
    shown = capsys.readouterr()
    report = json.loads((tmp_path / "a.report.json").read_text())
    (left_out,) = report["left_out"]  # mV for uV: no EEG has these amplitudes
    assert WRONG_UNIT in left_out["path"] and "factor 0.001" in left_out["reason"]
    assert "1 rows" in shown.out and report["made"]["rows_without_label"] == 1  # sub-020
    assert report["dropped_channels"] == {"not EEG by its type in channels.tsv": {NO_EDF_TYPE: 18}}
    notes = {"mains, by PowerLineFrequency: 60 Hz": 18, "reference, by EEGReference: linked mastoids": 17}
    assert notes.items() <= report["notes"].items() and report["notes"]["marked as bad, interpolated: C3"] == 1
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert (file.attrs["task"], list(file.attrs["classes"])) == ("multiclass", ["A", "C", "F"])
        assert json.loads(file.attrs["made"])["filter"]["notch"] == MAINS
        columns = [np.concatenate([group[key][:] for group in file.values()]) for key in ("subject", "label")]
        sides = {split: set(group["subject"].asstr()) for split, group in file.items()}
        eeg = np.concatenate([group["eeg"][:] for group in file.values()])
    found = Counter(zip(columns[0].astype(str), columns[1], strict=True))
    wanted = {(f"{n:03d}", "ACF".index(group)): 3 for n, group in enumerate(GROUPS, 1) if group != "n/a" and n != 2}
    assert found == wanted
    assert [len(sides[split]) for split in ("train", "val", "test")] == [12, 2, 4]  # sub-002 is a third of val
    mains = np.abs(np.fft.rfft(eeg)[..., 2 * MAINS]).max() / eeg.shape[-1] * 2  # uV
    assert mains < 10, mains


def test_the_pretraining_maker_takes_raw_eeg_alone_and_the_tables_above(
    dementia: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--input", dementia, "--output", tmp_path / "out", "--subjects", "sub-001", "003", "--task", "eyesclosed")
    assert run_maker(make_h5dataset_for_pretrain, *words) == 0
    made = {name: eeg for file in opened(tmp_path / "out").values() for name, eeg in file.items()}
    assert made.keys() == {f"sub-{code}_task-eyesclosed_eeg" for code in ("001", "003")}
    electrodes = [name.upper() for name in NAMES]
    for code, wanted in (("001", [name for name in electrodes if name != "C3"]), ("003", electrodes)):
        eeg = made[f"sub-{code}_task-eyesclosed_eeg"]
        assert list(eeg.attrs["chOrder"]) == wanted and eeg.attrs["notch"] == MAINS
    for words in (("--subjects", "1"), ("--session", "2"), ("--task", "eyesopen")):
        assert run_maker(make_h5dataset_for_pretrain, "--input", dementia, "--output", tmp_path / "b", *words) == 2
        assert f"{words[0]} {words[1]}: not in" in capsys.readouterr().err


def test_numbers_of_subjects_are_a_regression_unless_they_are_named_as_classes(dementia: Path, tmp_path: Path) -> None:
    words = ("--target", "participants.tsv:Age", "--window", 3, "--subjects", *(f"{n:03d}" for n in (1, 3, 4, 5, 20)))
    assert make(dementia, tmp_path / "age.hdf5", *words, "--folds", 4, "--fold", 3) == 0
    with h5py.File(tmp_path / "age.hdf5") as file:
        assert (file.attrs["task"], list(file.attrs["classes"])) == ("regression", ["Age"])
        ages = {split: sorted(set(group["label"][:, 0])) for split, group in file.items()}
    assert ages == {"train": [52, 53], "val": [50], "test": [54]}
    classes = ("--classes", 54, 53, 52, 50, "--folds", 4, "--fold", 3)
    assert make(dementia, tmp_path / "classes.hdf5", *words, *classes) == 0
    with h5py.File(tmp_path / "classes.hdf5") as file:
        assert list(file.attrs["classes"]) == ["54", "53", "52", "50"] and set(file["train"]["label"][:]) == {1, 2}


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        (("--onset", 0.5), {"go": [1.0], "stop": [2.5]}),  # the last go ends behind the recording
        (("--stride", 0.5), {"go": [0.5], "stop": [2.0, 2.5]}),
    ],
)
def test_events_give_windows_from_their_onsets_on(words: tuple[Any, ...], starts: Any, tmp_path: Path) -> None:
    root = tmp_path / "ds"
    for subject in ("1", "2", "3"):
        path = write(root, subject, task="gonogo", session="x", rate=200)
    table = path.with_name(path.name.replace("_eeg.edf", "_events.tsv"))
    table.write_text(table.read_text() + "5\tn/a\tn/a\t7\t1\nn/a\t1\tgo\t1\t1\n1\t1\tother\t9\t250\n")
    flags = ("--target", "events.tsv:trial_type", "--window", 2, "--classes", "stop", "go", *PLAIN)
    raw = mne.io.read_raw_edf(path, preload=True, verbose="error").crop(tmin=1)  # so its clock begins at 1 s
    raw.save(path.with_suffix(".fif"), fmt="double", verbose="error")
    path.unlink()
    assert make(root, tmp_path / "a.hdf5", *flags, *words) == 0
    eeg = raw.get_data(NAMES) * 1e6
    with h5py.File(tmp_path / "a.hdf5") as file:
        (group,) = (group for group in file.values() if "3" in group["subject"].asstr()[:])
        mine = group["subject"].asstr()[:] == "3"
        labels = np.array(["stop", "go"])[group["label"][:][mine]]
        windows = group["eeg"][:][mine]
    wanted = [(label, eeg[:, round(at * 200) :][:, :400]) for label, ats in starts.items() for at in ats]
    assert len(windows) == len(wanted) and Counter(labels) == Counter(label for label, _ in wanted)
    for label, cut in wanted:
        assert min(np.abs(window - cut).max() for window in windows[labels == label]) < 1e-3, label


def derivative(root: Path) -> None:
    (root / sidecars.DESCRIPTION).write_text(json.dumps({"Name": "x", "DatasetType": "derivative"}))


def without_eeg(root: Path) -> None:
    for path in root.glob("sub-*/eeg/*.edf"):
        path.rename(path.with_name(path.name.replace("_eeg", "_ieeg")))


def twice(root: Path) -> None:
    table = root / "participants.tsv"
    table.write_text(table.read_text() + "sub-1\tB\n")


@pytest.mark.parametrize(
    ("change", "target", "code", "message"),
    [
        (None, "scans.tsv:x", 2, "--bids needs participants.tsv:COLUMN"),
        (None, "participants.tsv:group", 1, "no column 'group'; its columns are participant_id, Group"),
        (None, "participants.tsv:Group", 1, "2 subjects cannot be split"),
        (twice, "participants.tsv:Group", 1, "has sub-1 2 times"),
        (derivative, "participants.tsv:Group", 1, "says derivative"),
        (
            lambda root: (root / sidecars.DESCRIPTION).unlink(),
            "participants.tsv:Group",
            1,
            "has no dataset_description",
        ),
        (without_eeg, "participants.tsv:Group", 1, "none of 2 recordings lies in a folder sub-*/eeg"),
        (
            lambda root: [path.rename(root / path.name[4:]) for path in root.glob("sub-*")],
            "events.tsv:value",
            1,
            "none of 0",
        ),
        (lambda root: next(root.glob("sub-1/eeg/*_eeg.json")).write_text("[1"), "events.tsv:value", 1, "_eeg.json"),
    ],
)
def test_what_cannot_be_right_is_one_line(
    change: Callable[[Path], Any] | None,
    target: str,
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    root = tmp_path / "ds"
    for subject in ("1", "2"):
        write(root, subject)
    (root / "participants.tsv").write_text("participant_id\tGroup\nsub-1\tA\nsub-2\tB\n")
    if change:
        change(root)
    assert make(root, tmp_path / "a.hdf5", "--target", target, "--window", 2) == code
    assert message in capsys.readouterr().err


def test_a_link_to_a_file_that_was_not_fetched_is_a_failed_recording_and_other_mains_are_each_recordings_own(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "ds"
    paths = [write(root, subject) for subject in ("1", "2", "3")]
    paths[2].with_suffix(".json").write_text(json.dumps({"PowerLineFrequency": 50}))
    lost = write(root, "4")
    lost.unlink()
    lost.symlink_to("../../.git/annex/objects/x")
    plain = save(tmp_path / "plain" / "x_raw.fif", NAMES).parent
    inputs = ("--input", root, plain)
    assert run_maker(make_h5dataset_for_pretrain, *inputs, "--output", tmp_path / "b", "--task", "eyesclosed") == 2
    assert f"{plain} has no dataset_description.json" in capsys.readouterr().err
    assert run_maker(make_h5dataset_for_pretrain, *inputs, "--output", tmp_path / "out") == 1
    assert lost.name in capsys.readouterr().err
    made = {name: eeg for file in opened(tmp_path / "out").values() for name, eeg in file.items()}
    notches = {name[:5]: eeg.attrs["notch"] for name, eeg in made.items()}
    assert notches == {"sub-1": 60, "sub-2": 60, "sub-3": 50, "x_raw": 50}
    assert run_maker(make_h5dataset_for_pretrain, *inputs, "--output", tmp_path / "b", "--notch", 60) == 1
    assert "--notch 60, but PowerLineFrequency says 50 Hz for 1 recordings" in capsys.readouterr().err


def test_without_mne_bids_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "ds", "1")
    monkeypatch.setattr(sidecars, "find_spec", lambda name: None)
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path / "ds", "--output", tmp_path / "out") == 1
    assert "pip install -r requirements-peers.txt" in capsys.readouterr().err
