"""`python -m dataset_maker.inspect_data`: numbers against those taken from the files, marks, the picture, bad files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
def inspect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str, list[dict]]]:
    """Return a function that inspects and gives exit code, text (its blanks joined), errors and reports."""

    def run(*words: Any) -> tuple[int, str, str, list[dict]]:
        capsys.readouterr()
        hdf5.close_files()
        output = tmp_path / "reports" / "report.json"
        code = run_maker(inspect_data, *words, "--json", output)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, " ".join(shown.out.split()), shown.err, json.loads(output.read_text())

    return run


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
    code, text, errors, reports = inspect(tmp_path / "data")
    assert (code, errors, len(reports)) == (0, "", 2)
    trio, pair = sorted(reports, key=lambda report: -len(report["electrodes"]))
    assert pair["kind"] == "pre-training" and pair["electrodes"] == list(PAIR) and len(pair["files"]) == 2
    assert pair["recordings"] == 3 and pair["hours"] == pytest.approx(17_000 / 200 / 3600)
    good = [*valid, np.ones(5, bool)]
    windows = {n: sum(v[k : k + 16].all() for v in good for k in range(0, len(v) - 15, n)) for n in (1, 16)}
    every = sum(max(0, len(v) - 15) for v in good)
    assert pair["windows"] == {
        "seconds": 16,
        "stride_1_s": windows[1],
        "without_overlap": windows[16],
        "left_out": every - windows[1],
        "too_short": 1,
    }
    values = np.abs(np.concatenate([e[np.isfinite(e)] for e in eeg]))
    for p, value in pair["amplitude_uV"].items():
        assert value == pytest.approx(np.percentile(values, float(p.removesuffix(" %"))), rel=0.13), p
    assert (pair["seconds"], pair["invalid_seconds"]) == (85, 2)
    assert pair["flat_seconds"] == {"FP1": 3, "FP2": 1}
    assert (pair["saturated_seconds"], pair["not_finite_seconds"]) == ({"FP2": 1}, {"FP2": 1})
    assert trio["warnings"] == [] and "warning: 2 of 85 seconds (2.4%) cannot be used" in text
    assert "FP1 3 (3.5%), FP2 1 (1.2%)" in text and f"stride 1 s: {windows[1]}" in text


def test_a_labelled_set_of_shards_is_described_split_by_split(tmp_path: Path, inspect: Any) -> None:
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
    code, text, errors, reports = inspect(tmp_path / "set")
    assert (code, errors) == (0, "") and {report["kind"] for report in reports} == {"pre-training", "labelled"}
    (report,) = [report for report in reports if report["kind"] == "labelled"]
    assert (report["name"], report["task"], len(report["files"])) == ("TUEV", "multiclass", 2)
    for split, copies in (("train", 1), ("val", 2), ("test", 1)):
        entry = report["splits"][split]
        assert entry["samples"] == copies * len(labels[split]) and entry["left_out"] == (split == "val")
        assert entry["recordings"] == -(-len(labels[split]) // 2)
        counts = {name: copies * int((labels[split] == i).sum()) for i, name in enumerate(classes)}
        assert entry["labels"] == counts
    assert [report["splits"][split]["subjects"] for split in labels] == [3, 2, 3]
    assert report["hours"] == pytest.approx(24 * 2 / 3600) and report["windows"] == {"seconds": 2}
    assert "left hand: 4" in text and "not in train: feet (test)" in text
    assert "2 subject(s) are on more than one side of the splits: train-subject0 (train, test)" in text
    assert "published are TUEV v2.0.0: 67436, 15634, 29421" in text


def test_a_regression_is_described_by_its_targets(tmp_path: Path, inspect: Any) -> None:
    y = np.random.default_rng(0).normal(5, 2, (8, 2))
    splits = {"train": (signal(8, 3, 400), y), "val": (signal(0, 3, 400), np.zeros((0, 2)))}
    path = write_labelled(tmp_path / "gait.hdf5", splits, task="regression", classes=("hip", "knee"))
    _, text, _, (report,) = inspect(path)
    for i, name in enumerate(("hip", "knee")):
        values = report["splits"]["train"]["targets"][name]
        assert values == pytest.approx([y[:, i].mean(), y[:, i].std()], rel=1e-5)
        assert report["splits"]["val"]["targets"][name] is None and name in text


def test_a_wrong_unit_and_electrodes_that_training_refuses_are_warned_about(tmp_path: Path, inspect: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", ("FP1", "P4-O2"), [signal(2, 4000) * 1e-6])
    _, text, _, _ = inspect(path)
    assert "warning: " in text and "volts" in text and "--num_electrodes 136" in text


def test_the_makers_scan_is_believed(tmp_path: Path, inspect: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)], valid=[np.arange(20) != 9])
    scan = {"flat": {"FP2": 7}, "saturated": {}, "not_finite": {}, "histogram": {"200": 8000}, "seconds": 20}
    with h5py.File(path, "r+") as file:
        file["recording0/eeg"].attrs["quality"] = json.dumps(scan)
    _, text, _, (report,) = inspect(path)
    assert report["flat_seconds"] == {"FP2": 7} and report["invalid_seconds"] == 1
    assert "warning: 1 electrode(s) are flat" in text


# Marks


def signals_of(path: Path) -> dict[str, bytes]:
    """Return the stored bytes of all signals of a pre-training file, chunk by chunk."""
    with h5py.File(path, locking=False) as file:
        return {
            f"{name}/{i}": group["eeg"].id.read_direct_chunk(group["eeg"].id.get_chunk_info(i).chunk_offset)[1]
            for name, group in file.items()
            for i in range(group["eeg"].id.get_num_chunks())
        }


def test_marks_make_training_leave_broken_seconds_out_and_leave_signals_alone(
    tmp_path: Path, inspect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    path = write_pretraining(folder / "a.hdf5", PAIR, [broken(), signal(2, 4000)], dtype=np.float64)
    path.chmod(0o640)
    own = write_pretraining(folder / "b.hdf5", PAIR, [signal(2, 4000)], valid=[np.arange(20) != 2])
    (tmp_path / "link.hdf5").symlink_to(path)
    before, theirs = signals_of(path), own.read_bytes()
    _, text, _, (report,) = inspect(folder)
    assert "--mark" in text and report["invalid_seconds"] == 3 and report["windows"]["left_out"] == 3
    code, text, errors, _ = inspect(tmp_path / "link.hdf5", own, "--mark")
    assert (code, errors) == (0, "") and text.count("marked now") == 1
    assert (tmp_path / "link.hdf5").is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert signals_of(path) == before and own.read_bytes() == theirs
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.hdf5", "b.hdf5"]
    hdf5.close_files()
    marked = read_recordings(path)
    assert [np.flatnonzero(~recording.valid).tolist() for recording in marked] == [BROKEN, []]
    assert marked[0].quality().flat == {"FP1": 3, "FP2": 1}  # type: ignore[union-attr]
    loaders = pretraining_loaders("--train_data", folder, "--time_window", 1, "--batch_size", 1)
    assert len(loaders.train) == 45 - 2 + 20 + 20 - 1 and "--mark" not in caplog.text
    content, inode = path.read_bytes(), path.stat().st_ino
    _, text, _, (report,) = inspect(folder, "--mark")
    assert "marked now" not in text and "--mark" not in text and report["invalid_seconds"] == 3
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
    parts = {split: read_samples(file, split)[0] for split in file.splits}
    assert np.argwhere(~parts["train"].valid).tolist() == [[2, 1]]  # type: ignore[operator]
    assert np.argwhere(~parts["val"].valid).tolist() == [[0, 0]]  # type: ignore[operator]
    assert parts["val"].quality is not None and parts["val"].quality.flat == {"C3": 1, "CZ": 1, "C4": 1}
    assert parts["test"].valid is not None and parts["test"].valid.shape == (0, 2)


def test_marking_that_is_stopped_leaves_the_file_and_goes_on_later(
    tmp_path: Path, inspect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_pretraining(tmp_path / "data" / f"{name}.hdf5", PAIR, [broken()]) for name in "abc"]
    content, copy, left = paths[1].read_bytes(), shutil.copy2, iter((True, False))

    def stopped(source: Any, target: Any) -> None:
        copy(source, target)
        if not next(left):
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy2", stopped)
    with pytest.raises(KeyboardInterrupt):
        for path in paths:
            inspect_data.mark_file(path)
    monkeypatch.undo()
    assert paths[1].read_bytes() == content and len(list((tmp_path / "data").iterdir())) == 3
    first = paths[0].stat().st_ino
    _, text, _, _ = inspect(tmp_path / "data", "--mark")
    assert text.count("marked now") == 2
    assert paths[0].stat().st_ino == first


def test_recordings_of_other_files_are_not_marked_through_a_link(tmp_path: Path, inspect: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken()])
    with h5py.File(tmp_path / "links.hdf5", "w") as file:
        file["someone"] = h5py.ExternalLink("a.hdf5", "/recording0")
    content = path.read_bytes()
    code, _, errors, _ = inspect(tmp_path / "links.hdf5", "--mark")
    assert code == 1 and str(path) in errors and path.read_bytes() == content


# The command


def test_files_that_cannot_be_read_are_named_the_others_are_described_and_the_exit_code_is_1(
    tmp_path: Path, inspect: Any
) -> None:
    write_pretraining(tmp_path / "data" / "good.hdf5", PAIR, [signal(2, 4000)])
    (tmp_path / "data" / "bad.hdf5").write_bytes(b"EEG")
    for name, classes in (("x", ("a", "b")), ("y", ("b", "a"))):
        path = tmp_path / "data" / f"{name}.hdf5"
        with h5py.File(write_labelled(path, {"train": (signal(2, 3, 400), [0, 1])}, classes=classes), "r+") as file:
            file.attrs["name"] = "same"
    code, _, errors, reports = inspect(tmp_path / "data", tmp_path / "nowhere")
    assert code == 1 and [report["kind"] for report in reports] == ["pre-training"]
    lines = errors.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    for line, part in zip(lines, ("bad.hdf5", "classes", "nowhere"), strict=True):
        assert part in line


def test_an_output_that_cannot_be_written_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    (tmp_path / "file").write_text("no folder")
    for flag in ("--plot", "--json"):
        assert run_maker(inspect_data, path, flag, tmp_path / "file" / "x") == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_the_picture_has_a_row_a_set(tmp_path: Path, inspect: Any) -> None:
    first = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 8000)])
    second = write_labelled(tmp_path / "b.hdf5", {"train": (signal(6, 3, 400), np.arange(6) % 2)})
    picture = tmp_path / "pictures" / "look.png"
    heights = []
    for paths in ((first,), (first, second)):
        assert inspect(*paths, "--plot", picture)[0] == 0
        pixels = plt.imread(picture)
        assert pixels.shape[1] > 1000 and pixels[..., :3].min() < 0.3
        heights.append(pixels.shape[0])
    assert heights[1] > 1.6 * heights[0] and [path.name for path in picture.parent.iterdir()] == ["look.png"]


@pytest.mark.parametrize("kind", ["not finite", "too short", "empty split"])
def test_odd_data_can_be_described_and_drawn(tmp_path: Path, inspect: Any, kind: str) -> None:
    eeg = {"not finite": np.full((2, 4000), np.nan), "too short": signal(2, 300)}
    if kind == "empty split":
        path = write_labelled(tmp_path / "a.hdf5", {"train": (signal(0, 3, 400), np.zeros(0, int))})
    else:
        path = write_pretraining(tmp_path / "a.hdf5", PAIR, [eeg[kind]])
    code, text, errors, _ = inspect(path, "--plot", tmp_path / "look.png")
    assert (code, errors) == (0, "") and text.startswith(str(path))
    assert plt.imread(tmp_path / "look.png").size > 10_000


@pytest.mark.parametrize("command", [["dataset_maker/inspect_data.py"], ["-m", "dataset_maker.inspect_data"]], ids=str)
def test_it_starts_by_its_path_and_as_a_module_without_torch_and_help_loads_no_library(
    tmp_path: Path, command: list[str]
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    watch = "import sys, atexit; atexit.register(lambda: print('LOADED', [m for m in {} if m in sys.modules]))\n"
    (tmp_path / "sitecustomize.py").write_text(watch.format(("torch", "mne", "matplotlib", "h5py", "numpy")))
    environment = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for word, loaded in ((str(path), "['h5py', 'numpy']"), ("--help", "[]")):
        done = subprocess.run(
            [sys.executable, *command, word], cwd=REPOSITORY, capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "") and f"LOADED {loaded}" in done.stdout
        assert done.stdout.startswith("usage" if word == "--help" else f"{path}: pre-training, 2 electrode(s)")
