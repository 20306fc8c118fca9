"""`python -m dataset_maker.inspect_data`: numbers against those taken from the files, marks, the picture, bad files."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
from matplotlib import pyplot as plt

from data_helpers import PAIR, TRIO, pretraining_loaders, signal, write_labelled, write_pretraining
from dataset_maker import inspect_data
from eeg_data import hdf5
from eeg_data.labelled_files import read_labelled, read_samples
from eeg_data.pretraining_files import read_recordings
from maker_helpers import run_maker

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that inspects and gives exit code, text (its blanks joined) and errors."""

    def run(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        hdf5.close_files()
        code = run_maker(inspect_data, *words)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, " ".join(shown.out.split()), shown.err

    return run


def described(path: Path) -> list[Any]:
    """Return the reports of all sets below a path."""
    hdf5.close_files()
    return list(inspect_data.describe(path))


def broken(samples: int = 9000) -> np.ndarray:
    """Return noise with a NaN, a second in which all electrodes are flat, and an electrode that is flat or sticks."""
    eeg = signal(2, samples)
    eeg[1, 4100] = np.nan
    eeg[:, 1200:1400] = 7
    eeg[0, 2000:2400] = 0
    eeg[1, 3000:3010] = 999
    return eeg


BROKEN = [6, 20]  # seconds that cannot be used


def test_a_pretraining_folder_is_described_montage_by_montage(tmp_path: Path, inspect: Any) -> None:
    eeg = [broken(), signal(2, 7000, seed=1), signal(2, 1000, seed=2)]
    valid = [~np.isin(np.arange(45), BROKEN), np.ones(35, bool)]
    write_pretraining(tmp_path / "data" / "a.hdf5", PAIR, eeg[:2], valid=valid)
    write_pretraining(tmp_path / "data" / "b" / "b.hdf5", PAIR, eeg[2:], dtype=np.float64)
    write_pretraining(tmp_path / "data" / "c.h5", TRIO, [signal(3, 3300)])
    trio, pair = sorted(described(tmp_path / "data"), key=lambda one: -len(one.electrodes))
    good = [*valid, np.ones(5, bool)]
    windows = {n: sum(v[k : k + 16].all() for v in good for k in range(0, len(v) - 15, n)) for n in (1, 16)}
    every = sum(max(0, len(v) - 15) for v in good)
    counts = {"seconds": 16, "stride 1 s": windows[1], "without overlap": windows[16], "left out": every - windows[1]}
    assert pair.report["windows"] == {**counts, "recordings too short": 1}
    assert (pair.electrodes, pair.report["recordings"], pair.report["hours"]) == (PAIR, 3, 85 / 3600)
    values = np.abs(np.concatenate([e[np.isfinite(e)] for e in eeg]))
    for p, value in pair.report["amplitude, uV"].items():
        assert value == pytest.approx(np.percentile(values, float(p.removesuffix(" %"))), rel=0.13), p
    assert pair.report["seconds"] == {"scanned": 85, "invalid": 2}
    kinds = [pair.report[kind] for kind in ("flat", "saturated", "not finite")]
    assert kinds == ["FP1 3 s (3.5%), FP2 1 s (1.2%)", "FP2 1 s (1.2%)", "FP2 1 s (1.2%)"]
    assert trio.warnings == [] and any("2 of 85 seconds (2.4%) cannot be used" in text for text in pair.warnings)
    code, text, errors = inspect(tmp_path / "data")
    assert (code, errors) == (0, "") and "warning: 2 of 85 seconds" in text and f"stride 1 s: {windows[1]}" in text


def test_a_labelled_set_of_shards_is_described_split_by_split(tmp_path: Path) -> None:
    labels = {"train": np.arange(11) % 3 % 2, "val": np.arange(5) % 2, "test": np.array([0, 2, 2])}
    splits = {split: (signal(len(y), 3, 400, seed=i), y) for i, (split, y) in enumerate(labels.items())}
    classes = ("rest", "left hand", "feet")
    write_labelled(tmp_path / "set" / "TUEV.hdf5", splits, task="multiclass", classes=classes)
    other = write_labelled(tmp_path / "set" / "b.hdf5", {"val": splits["val"]}, task="multiclass", classes=classes)
    with h5py.File(other, "r+") as file:
        file.attrs["name"] = "TUEV"
        file["val/valid"] = np.arange(10).reshape(5, 2) != 6
    with h5py.File(tmp_path / "set" / "TUEV.hdf5", "r+") as file:
        file["test/subject"][:2] = ["train-subject0", "train-subject2"]
    write_pretraining(tmp_path / "set" / "a.hdf5", PAIR, [signal(2, 4000)])
    _, one = described(tmp_path / "set")
    assert "TUEV" in one.title and "multiclass" in one.title and "2 file(s)" in one.title
    for split, copies, subjects in (("train", 1, 3), ("val", 2, 2), ("test", 1, 3)):
        y = labels[split]
        assert one.report[split] == {
            "samples": copies * len(y),
            "left out": int(split == "val"),
            "recordings": -(-len(y) // 2),
            "subjects": subjects,
            "labels": {name: copies * int((y == i).sum()) for i, name in enumerate(classes)},
        }
    assert one.report["hours"] == pytest.approx(24 * 2 / 3600)
    assert any("2 subject(s)" in text and "train-subject0 (train, test)" in text for text in one.warnings)


def test_a_regression_is_described_by_its_targets(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(5, 2, (8, 2))
    splits = {"train": (signal(8, 3, 400), y), "val": (signal(0, 3, 400), np.zeros((0, 2)))}
    path = write_labelled(tmp_path / "gait.hdf5", splits, task="regression", classes=("hip", "knee"))
    (one,) = described(path)
    for i, name in enumerate(("hip", "knee")):
        values = {"mean": y[:, i].mean(), "std": y[:, i].std()}
        assert one.report["train"]["targets"][name] == pytest.approx(values, rel=1e-5)
    assert one.report["val"]["targets"] == {}


def test_a_wrong_unit_and_electrodes_that_training_refuses_are_warned_about(tmp_path: Path, inspect: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", ("FP1", "P4-O2"), [signal(2, 4000) * 1e-6])
    _, text, _ = inspect(path)
    assert "warning: " in text and "volts" in text and "--num_electrodes 136" in text


def stored_bytes(path: Path) -> list[bytes]:
    """Return the stored bytes of all signals of a pre-training file, chunk by chunk."""
    with h5py.File(path, locking=False) as file:
        signals = [group["eeg"].id for group in file.values()]
        chunks = [(eeg, eeg.get_chunk_info(i).chunk_offset) for eeg in signals for i in range(eeg.get_num_chunks())]
        return [eeg.read_direct_chunk(offset)[1] for eeg, offset in chunks]


def test_marks_make_training_leave_broken_seconds_out_and_leave_signals_alone(
    tmp_path: Path, inspect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    path = write_pretraining(folder / "a.hdf5", PAIR, [broken(), signal(2, 4000)], dtype=np.float64)
    path.chmod(0o640)
    own = write_pretraining(folder / "b.hdf5", PAIR, [signal(2, 4000)], valid=[np.arange(20) != 2])
    (tmp_path / "link.hdf5").symlink_to(path)
    before, theirs = stored_bytes(path), own.read_bytes()
    assert "--mark" in inspect(folder)[1]
    code, text, errors = inspect(tmp_path / "link.hdf5", own, "--mark")
    assert (code, errors) == (0, "") and text.count("marked now") == 1
    assert (tmp_path / "link.hdf5").is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert stored_bytes(path) == before and own.read_bytes() == theirs
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.hdf5", "b.hdf5"]
    marked: Any = read_recordings(path)
    assert [np.flatnonzero(~recording.valid).tolist() for recording in marked] == [BROKEN, []]
    assert marked[0].quality().flat == {"FP1": 3, "FP2": 1}
    loaders = pretraining_loaders("--train_data", folder, "--time_window", 1, "--batch_size", 1)
    assert len(loaders.train) == 45 - 2 + 20 + 20 - 1 and "--mark" not in caplog.text
    content, inode = path.read_bytes(), path.stat().st_ino
    _, text, _ = inspect(folder, "--mark")
    assert "marked now" not in text and "--mark" not in text and "invalid: 3" in text
    assert path.read_bytes() == content and path.stat().st_ino == inode


def test_a_labelled_file_is_marked_sample_by_sample(tmp_path: Path, inspect: Any) -> None:
    train, val = signal(5, 3, 400), signal(3, 3, 400, seed=1)
    train[2, 1, 250] = np.inf
    val[0, :, :200] = 3
    splits = {"train": (train, [0, 1, 0, 1, 0]), "val": (val, [0, 1, 0]), "test": (signal(0, 3, 400), np.zeros(0, int))}
    path = write_labelled(tmp_path / "a.hdf5", splits)
    assert inspect(path, "--mark")[0] == 0
    hdf5.close_files()
    file = read_labelled(path)
    parts = {split: read_samples(file, split) for split in file.splits}
    bad = {split: np.argwhere(~samples.valid).tolist() for split, samples in parts.items()}
    assert bad == {"train": [[2, 1]], "val": [[0, 0]], "test": []}
    assert parts["val"].scans[0].flat == {"C3": 1, "CZ": 1, "C4": 1} and not parts["test"].unmarked


def test_marking_that_is_stopped_leaves_the_file_and_goes_on_later(
    tmp_path: Path, inspect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pretraining(tmp_path / "data" / "a.hdf5", PAIR, [broken()])
    content = path.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(inspect_data.Quality, "to_json", Mock(side_effect=KeyboardInterrupt))
        inspect_data.mark_file(path)
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]
    assert "marked now" in inspect(path, "--mark")[1] and path.read_bytes() != content


def test_recordings_of_other_files_are_not_marked_through_a_link(tmp_path: Path, inspect: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken()])
    with h5py.File(tmp_path / "links.hdf5", "w") as file:
        file["someone"] = h5py.ExternalLink("a.hdf5", "/recording0")
    content = path.read_bytes()
    code, _, errors = inspect(tmp_path / "links.hdf5", "--mark")
    assert code == 1 and str(path) in errors and path.read_bytes() == content


def test_files_that_cannot_be_read_are_named_the_others_are_described_and_the_exit_code_is_1(
    tmp_path: Path, inspect: Any
) -> None:
    good = write_pretraining(tmp_path / "data" / "good.hdf5", PAIR, [signal(2, 4000)])
    (tmp_path / "data" / "bad.hdf5").write_bytes(b"EEG")
    for name, classes in (("x", ("a", "b")), ("y", ("b", "a"))):
        path = tmp_path / "data" / f"{name}.hdf5"
        with h5py.File(write_labelled(path, {"train": (signal(2, 3, 400), [0, 1])}, classes=classes), "r+") as file:
            file.attrs["name"] = "same"
    code, text, errors = inspect(tmp_path / "data", tmp_path / "nowhere")
    assert code == 1 and text.startswith(f"{good.parent}: pre-training") and "labelled" not in text
    for line, part in zip(errors.splitlines(), ("bad.hdf5", "classes", "nowhere"), strict=True):
        assert line.startswith("error: ") and part in line


def test_the_picture_has_a_row_a_set_also_of_odd_data_and_a_place_that_cannot_be_written_is_an_error_first(
    tmp_path: Path, inspect: Any
) -> None:
    first = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 8000)])
    others = [
        write_labelled(tmp_path / "b.hdf5", {"train": (signal(6, 3, 400), np.arange(6) % 2)}),
        write_labelled(tmp_path / "empty.hdf5", {"train": (signal(0, 3, 400), np.zeros(0, int))}),
        write_pretraining(tmp_path / "nan.hdf5", PAIR, [np.full((2, 4000), np.nan)]),
        write_pretraining(tmp_path / "short.hdf5", PAIR, [signal(2, 300)]),
    ]
    picture = tmp_path / "pictures" / "look.png"
    heights = []
    for paths in ((first,), (first, *others)):
        code, text, errors = inspect(*paths, "--plot", picture)
        assert (code, errors) == (0, "") and all(str(path) in text for path in paths)
        pixels = plt.imread(picture)
        assert pixels.shape[1] > 1000 and pixels[..., :3].min() < 0.3
        heights.append(pixels.shape[0])
    assert heights[1] > 4 * heights[0] and [path.name for path in picture.parent.iterdir()] == ["look.png"]
    code, text, errors = inspect(first, "--plot", picture / "x")
    assert (code, text, errors.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("command", [["dataset_maker/inspect_data.py"], ["-m", "dataset_maker.inspect_data"]], ids=str)
def test_it_starts_by_its_path_and_as_a_module(command: list[str]) -> None:
    shown = subprocess.check_output([sys.executable, *command, "--help"], cwd=REPOSITORY, text=True)
    assert shown.startswith("usage")
