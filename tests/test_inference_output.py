"""Where results of `run_inference.py` go, under which names, and what a failure leaves behind."""

import errno
import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import mne
import numpy as np
import pytest
from matplotlib import image

import inference
from data_helpers import TRIO, signal, write_labelled, write_pretraining
from inference import output as inference_files
from inference import plots as inference_plots
from inference import recordings
from maker_helpers import noise, raw_of, save
from test_inference import CLASSIFIER, random_module, saved
from test_run_inference import DATA, NAMES, has_ink, read, rows, run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    masked = saved(folder / "masked.pth", random_module("labram_tiny_patch200_1600_8k_vocab", vocab_size=64))
    classifier = saved(folder / "classifier.pth", random_module(CLASSIFIER, num_classes=1), data_set=DATA)
    return {"embed": masked, "predict": classifier}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "night_raw.fif"
    raw_of(NAMES, 200, noise(3, 9, 200)).save(path, fmt="double", verbose="error")
    return path


def test_no_recording_is_overwritten(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_pretraining(tmp_path / "in" / "a.hdf5", TRIO, [signal(3, 800)])
    (tmp_path / "link.hdf5").symlink_to(path)
    before = path.read_bytes()
    for inputs, output in (([path], path), ([path.parent], path), ([path], tmp_path / "link.hdf5")):
        assert run("embed", checkpoints["embed"], inputs, output) == 2
        assert "would overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_folders_in_the_place_of_files_are_said_before_anything_is_computed(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.npz", "a.png"):
        (tmp_path / name).mkdir()
    with patch.object(inference.Model, "batches", side_effect=AssertionError):
        assert run("predict", checkpoints["predict"], [recording], tmp_path / "a.npz") == 2
        assert "a.npz is a folder: name a file" in capsys.readouterr().err
        plot = ["--plot", tmp_path / "a.png"]
        assert run("predict", checkpoints["predict"], [recording], tmp_path / "b.npz", *plot) == 2
    assert "--plot" in (text := capsys.readouterr().err) and "a.png is a folder" in text


def test_recordings_of_one_name_keep_apart(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    paths = [write_pretraining(tmp_path / f"{i}.hdf5", TRIO, [signal(3, 800, seed=i)]) for i in (0, 1)]
    output = tmp_path / "o.csv"
    assert run("predict", checkpoints["predict"], paths, output, "--plot", tmp_path / "p.png") == 0
    names = [row["recording"] for row in rows(tmp_path / "o-recordings.csv")]
    assert len(set(names)) == 2 and {row["recording"] for row in rows(output)} == set(names)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(f"p-{name}.png" for name in names)


def test_a_table_of_labelled_and_other_recordings_leaves_labels_empty(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path
) -> None:
    path = write_labelled(tmp_path / "set.hdf5", {"test": (signal(2, 3, 400), [0, 1])})
    assert run("predict", checkpoints["predict"], [path, recording], tmp_path / "o.csv") == 0
    table = rows(tmp_path / "o.csv")
    assert sorted(row["label"] for row in table) == ["", "", "", "", "0", "1"]
    assert all(float(row["rest"]) + float(row["task"]) == pytest.approx(1, abs=1e-6) for row in table)
    named = {row["recording"] for row in rows(tmp_path / "o-recordings.csv")}
    assert named == {row["recording"] for row in table}, "both tables speak of the same recordings"


def test_hdf5_keeps_the_order_of_the_recordings(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    paths = [save(tmp_path / place / name, NAMES) for place, name in (("a", "z_raw.fif"), ("b", "c_raw.fif"))]
    assert run("predict", checkpoints["predict"], paths, tmp_path / "o.h5") == 0
    with h5py.File(tmp_path / "o.h5") as file:
        assert list(file) == ["z_raw", "c_raw"]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".h5"])
def test_any_class_name_can_be_written_and_drawn(recording: Path, tmp_path: Path, suffix: str) -> None:
    data = DATA | {"task": "multiclass", "classes": ["a,\n\x1b[31mb", r"$\foo$", 'q"\0']}
    checkpoint = saved(tmp_path / "c.pth", random_module(CLASSIFIER, num_classes=3), data_set=data)
    output = tmp_path / f"o{suffix}"
    assert run("predict", checkpoint, [recording], output, "--plot", tmp_path / "p.png") == 0
    assert has_ink(tmp_path / "p.png")
    if suffix == ".csv":
        assert list(rows(output)[0])[2:] == [r"a,\n\x1b[31mb", r"$\foo$", r'q"\x00']


def test_a_name_too_long_for_a_picture_is_cut(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 800), signal(3, 800, seed=1)])
    with h5py.File(path, "a") as file:
        for number, name in enumerate(list(file)):
            file.move(name, "n" * 300 + str(number))
    assert run("predict", checkpoints["predict"], [path], tmp_path / "o.npz", "--plot", tmp_path / "p.png") == 0
    assert len(list(tmp_path.glob("p-nnn*.png"))) == 2


def test_a_recording_that_fails_on_the_way_leaves_nothing_in_the_next_picture(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    good = write_pretraining(tmp_path / "good.hdf5", TRIO, [signal(3, 1200)])
    bad = write_pretraining(tmp_path / "bad.hdf5", TRIO[:2], [signal(2, 1600)])
    read = recordings.Windows.batch

    def failing(self: recordings.Windows, first: int, stop: int) -> np.ndarray:
        if "bad" in self.where and first:
            raise recordings.InputError("damaged here")
        return read(self, first, stop)

    words = ["--batch_size", 1, "--window", 2]
    pictures = []
    for inputs in ([bad, good], [good]):
        for verb in ("predict", "embed"):
            plot = tmp_path / f"{verb}-{len(inputs)}.png"
            with patch.object(recordings.Windows, "batch", failing):
                code = run(verb, checkpoints[verb], inputs, tmp_path / f"{verb}.npz", *words, "--plot", plot)
            assert code == len(inputs) - 1
            with np.load(tmp_path / f"{verb}.npz") as arrays:
                assert sum(name.endswith("start_seconds") for name in arrays) == 1
            (found,) = tmp_path.glob(f"{verb}-{len(inputs)}*.png")
            pictures.append(image.imread(found))
    for with_bad, without in zip(pictures[:2], pictures[2:], strict=True):
        np.testing.assert_array_equal(with_bad, without)


def test_points_of_a_map_are_drawn_from_all_windows(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_plots, "POINTS", 20)
    path = write_labelled(tmp_path / "set.hdf5", {"test": (signal(60, 3, 200), [0] * 30 + [1] * 30)})
    maps = []
    with patch.object(inference_plots.TSNEPicture, "finish", lambda self: maps.append(self)):
        assert run("embed", checkpoints["embed"], [path], tmp_path / "o.h5", "--plot", tmp_path / "t.png") == 0
    groups = [group for _, group in maps[0].points]
    assert len(groups) == 20 and maps[0].seen == 60 and 4 <= groups.count("task") <= 16


def test_averaged_weights_and_urls_are_taken(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABRAM_CACHE", str(tmp_path / "cache"))
    module: Any = random_module(CLASSIFIER, num_classes=2)
    averaged = {name: value + 0.1 for name, value in module.state_dict().items()}
    path = saved(tmp_path / "a.pth", module, extras={"model_ema": averaged})
    url = f"{path.as_uri()}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
    words = ["--window", 2]
    assert run("embed", path, [recording], tmp_path / "plain.npz", *words) == 0
    assert run("embed", path, [recording], tmp_path / "averaged.npz", *words, "--averaged") == 0
    assert run("embed", url, [recording], tmp_path / "url.npz", *words) == 0  # type: ignore[arg-type]
    plain, other, fetched = (
        read(tmp_path / f"{name}.npz", "night_raw", "features") for name in ("plain", "averaged", "url")
    )
    np.testing.assert_array_equal(plain, fetched)
    expected = inference.load(path, averaged=True).embed(mne.io.read_raw(recording, verbose="error"), window=2)
    np.testing.assert_allclose(other, expected.features, atol=1e-5)
    assert np.abs(plain - other).max() > 0.01
    assert run("embed", saved(tmp_path / "b.pth", module), [recording], tmp_path / "c.npz", "--averaged") == 1
    assert "b.pth" in capsys.readouterr().err


def test_a_full_disk_of_temporary_files_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 20 * 200)])
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch.object(inference_files.Entry, "add", side_effect=full):
        assert run("embed", checkpoints["embed"], [path], tmp_path / "o.npz") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "temporary files cannot be written in" in line and "TMPDIR" in line and not list(tmp_path.glob("o*"))


@contextmanager
def small_disk(room: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_signal_that_finds_no_room_on_the_disk_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recordings, "IN_MEMORY", 1000)
    path = save(tmp_path / "a_raw.fif", NAMES, seconds=300)
    words = ["--pool", "mean", "--window", 10]
    with small_disk(200_000):
        assert run("embed", checkpoints["embed"], [path], tmp_path / "o.npz", *words) == 2
    assert "temporary files cannot be written in" in capsys.readouterr().err
    assert run("embed", checkpoints["embed"], [path], tmp_path / "o.npz", *words) == 0


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".csv"])
def test_results_that_find_no_room_on_the_disk_are_one_line(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write = inference_files.Results.write

    def cramped(self: inference_files.Results, path: Path) -> None:
        with small_disk(8000):
            write(self, path)

    with patch.object(inference_files.Results, "write", cramped):
        assert run("embed", checkpoints["embed"], [recording], tmp_path / f"o{suffix}", "--window", 1) == 2
    assert f"o{suffix} cannot be written (" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_and_says_so(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.object(inference_files.Results, "write", side_effect=KeyboardInterrupt):
        assert run("predict", checkpoints["predict"], [recording], tmp_path / "o.npz") == 130
    assert "stopped; the same command begins anew" in capsys.readouterr().err and not list(tmp_path.iterdir())
