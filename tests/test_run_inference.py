"""`run_inference.py` writes what the Python interface returns, and survives bad recordings."""

import csv
import json
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import mne
import numpy as np
import pytest
from matplotlib import image

import inference
import run_inference
from data_helpers import TINY, TRIO, signal, write_labelled, write_pretraining
from errors import run_script
from inference import output as inference_files
from inference import recordings
from maker_helpers import noise, raw_of, save
from test_inference import CLASSIFIER, random_module, saved

NAMES = ["C3", "Cz", "C4"]
ARRAYS = {
    "tokenize": ["codes"],
    "embed": ["features"],
    "reconstruct": ["codes", "amplitude", "predicted_amplitude", "phase_error"],
    "predict": ["probabilities"],
}
DATA = {"name": "Odd", "task": "binary", "classes": ["rest", "task"], "electrodes": list(TRIO), "window_seconds": 2}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = saved(folder / "tokenizer.pth", random_module(TINY, n_code=64, code_dim=8))
    masked = saved(folder / "masked.pth", random_module("labram_tiny_patch200_1600_8k_vocab", vocab_size=64))
    classifier = saved(folder / "classifier.pth", random_module(CLASSIFIER, num_classes=1), data_set=DATA)
    return {"tokenize": tokenizer, "reconstruct": tokenizer, "embed": masked, "predict": classifier}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "night_raw.fif"
    raw_of(NAMES, 200, noise(3, 9, 200)).save(path, fmt="double", verbose="error")
    return path


def run(verb: str, checkpoint: Path, inputs: Sequence[Any], output: Path, *words: Any) -> int:
    """Run the command as a user does; return its exit code."""
    line = [verb, "--checkpoint", checkpoint, "--input", *inputs, "--output", output, *words]
    with patch.object(sys, "argv", ["run_inference.py", *map(str, line)]):
        try:
            run_script(run_inference.main, run_inference.get_args())
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def read(path: Path, recording: str, name: str) -> np.ndarray:
    """An array of a written file, by other means than the product's."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file[f"{recording}/{name}"]
    with h5py.File(path) as file:
        return file[f"{recording}/{name}"][()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# What is written


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".h5"])
@pytest.mark.parametrize("verb", list(ARRAYS))
def test_arrays_are_those_of_the_python_interface(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, verb: str, suffix: str
) -> None:
    output = tmp_path / f"out{suffix}"
    assert run(verb, checkpoints[verb], [recording], output, "--window", 2, "--stride", 1, "--batch_size", 3) == 0
    raw = mne.io.read_raw(recording, verbose="error")
    expected = getattr(inference.load(checkpoints[verb]), verb)(raw, window=2, stride=1)
    for name in ARRAYS[verb]:
        np.testing.assert_allclose(read(output, "night_raw", name), getattr(expected, name), atol=1e-5)
    np.testing.assert_array_equal(read(output, "night_raw", "start_seconds"), np.arange(8))
    assert sorted(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(("pool", "count"), [("patches", 4 * 3 * 2), ("electrodes", 4 * 3), ("mean", 4)])
def test_a_csv_row_is_a_patch_an_electrode_or_a_window(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, pool: str, count: int
) -> None:
    output = tmp_path / "out.csv"
    assert run("embed", checkpoints["embed"], [recording], output, "--window", 2, "--pool", pool) == 0
    table = rows(output)
    raw = mne.io.read_raw(recording, verbose="error")
    features = inference.load(checkpoints["embed"]).embed(raw, window=2, pool=pool).features
    assert len(table) == count and {row["recording"] for row in table} == {"night_raw"}
    found = np.array([[float(row[f"f{i}"]) for i in range(200)] for row in table])
    np.testing.assert_allclose(found, features.reshape(-1, 200), atol=1e-5)
    starts = [float(row["start_seconds"]) for row in table]
    assert starts == np.repeat([0, 2, 4, 6], count // 4).tolist()
    if pool != "mean":
        assert [row["electrode"] for row in table[: 3 * (count // 12) : count // 12]] == ["C3", "CZ", "C4"]
    if pool == "patches":
        assert [row["second"] for row in table[:4]] == ["0", "1", "0", "1"]


def test_predictions_are_written_for_every_window_and_recording(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save(tmp_path / "in" / "day_raw.fif", NAMES, seconds=4.0, seed=3)
    assert recording < other, "results are in the order of the paths"
    with caplog.at_level("INFO"):
        assert run("predict", checkpoints["predict"], [recording, other], tmp_path / "out.csv") == 0
    table, whole = rows(tmp_path / "out.csv"), rows(tmp_path / "out-recordings.csv")
    assert [row["recording"] for row in table] == ["night_raw"] * 4 + ["day_raw"] * 2
    for row in whole:
        windows = [float(line["task"]) for line in table if line["recording"] == row["recording"]]
        assert float(row["task"]) == pytest.approx(np.mean(windows), abs=1e-6)
        assert float(row["rest"]) + float(row["task"]) == pytest.approx(1, abs=1e-6)
    assert f"night_raw, 4 windows: rest {float(whole[0]['rest']):.3f}, task" in caplog.text


def test_a_labelled_file_gives_labels_and_means_of_its_recordings(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    splits = {"train": (signal(4, 3, 400), [0, 1, 1, 0]), "test": (signal(3, 3, 400, seed=1), [1, 0, 1])}
    path = write_labelled(tmp_path / "set.hdf5", splits)
    with h5py.File(path) as file:
        names = file["test/recording"].asstr()[()].tolist()
    output = tmp_path / "out.npz"
    assert run("predict", checkpoints["predict"], [path], output, "--split", "test") == 0
    assert read(output, "test", "label").tolist() == [1, 0, 1]
    assert read(output, "test", "recording").tolist() == names
    probabilities = read(output, "test", "probabilities")
    for name, value in zip(
        read(output, "test", "recordings"), read(output, "test", "recording_probabilities"), strict=True
    ):
        mine = [p for p, owner in zip(probabilities, names, strict=True) if owner == name]
        np.testing.assert_allclose(value, np.mean(mine, axis=0), atol=1e-6)
    assert run("predict", checkpoints["predict"], [path], tmp_path / "out.csv") == 0
    assert [row["label"] for row in rows(tmp_path / "out.csv")] == list("0110101")


def test_targets_of_a_regression_are_columns(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    targets = np.array([[0.5, 1], [2, 3]], np.float32)
    path = write_labelled(
        tmp_path / "a.hdf5", {"test": (signal(2, 3, 400), targets)}, task="regression", classes=("x", "y")
    )
    assert run("embed", checkpoints["embed"], [path], tmp_path / "out.csv", "--pool", "mean") == 0
    assert [(row["label_0"], row["label_1"]) for row in rows(tmp_path / "out.csv")] == [("0.5", "1.0"), ("2.0", "3.0")]


def test_a_file_says_how_it_was_made(checkpoints: dict[str, Path], recording: Path, tmp_path: Path) -> None:
    words = ["--pool", "mean", "--notch", 60, "--window", 2]
    assert run("embed", checkpoints["embed"], [recording], tmp_path / "a.hdf5", *words) == 0
    assert run("embed", checkpoints["embed"], [recording], tmp_path / "a.npz", *words) == 0
    with h5py.File(tmp_path / "a.hdf5") as file, np.load(tmp_path / "a.npz") as arrays:
        assert file.attrs["checkpoint"] == "masked.pth" and file.attrs["pool"] == "mean"
        assert json.loads(file.attrs["pipeline"]) == {"l_freq": 0.1, "h_freq": 75.0, "notch": 60.0}
        assert file["night_raw"].attrs["electrodes"].tolist() == list(TRIO)
        assert json.loads(str(arrays["description"]))["checkpoint"] == "masked.pth"
        assert arrays["night_raw/electrodes"].tolist() == list(TRIO)


# Many recordings


def test_a_recording_that_fails_does_not_stop_the_others(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "in" / "a_raw.fif", NAMES)
    (tmp_path / "in" / "b.edf").write_bytes(b"no recording")
    save(tmp_path / "in" / "c_raw.fif", ["C3", "E7"])
    save(tmp_path / "in" / "d_raw.fif", NAMES)
    write_pretraining(tmp_path / "in" / "e.hdf5", TRIO, [signal(3, 1000), signal(3, 300)])
    assert run("tokenize", checkpoints["tokenize"], [tmp_path / "in"], tmp_path / "out.npz", "--window", 2) == 1
    assert "error: 3 of 6 recordings are left out of" in capsys.readouterr().err
    assert [r.message.count("left out: ") for r in caplog.records if r.levelname == "ERROR"] == [1, 1, 1]
    assert "unknown electrode names: 'E7'" in caplog.text and "lasts 1.50 s, a window 2 s" in caplog.text
    with np.load(tmp_path / "out.npz") as file:
        assert {name.split("/")[0] for name in file} == {"description", "a_raw", "d_raw", "recording0"}


def test_recordings_of_one_name_are_kept_apart(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for folder in ("s1", "s2"):
        save(tmp_path / "in" / folder / "rest_raw.fif", NAMES, seed=len(folder))
    assert run("tokenize", checkpoints["tokenize"], [tmp_path / "in"], tmp_path / "out.csv", "--window", 2) == 0
    assert len({row["recording"] for row in rows(tmp_path / "out.csv")}) == 2


def test_where_nothing_can_be_used_nothing_is_written(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = save(tmp_path / "in" / "a_raw.fif", ["E7"])
    assert run("tokenize", checkpoints["tokenize"], [bad], tmp_path / "out.npz") == 1
    assert "unknown electrode names: 'E7'" in capsys.readouterr().err
    other = save(tmp_path / "in" / "b_raw.fif", NAMES, seconds=1.0)
    assert run("tokenize", checkpoints["tokenize"], [bad, other], tmp_path / "out.npz") == 1
    assert "error: none of 2 recordings could be used, nothing is written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_command_that_breaks_leaves_the_old_file_and_nothing_else(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npz"
    assert run("tokenize", checkpoints["tokenize"], [recording], output, "--window", 2) == 0
    before = output.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inference_files, "_copy_array", full)
    assert run("tokenize", checkpoints["tokenize"], [recording], output, "--window", 2) == 2
    assert output.read_bytes() == before and list(tmp_path.iterdir()) == [output]


def test_memory_does_not_grow_with_a_recordings_length(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "IN_MEMORY", 1 << 18)
    monkeypatch.setattr(run_inference, "BLOCK_BYTES", 1 << 20)
    peaks = []
    for minutes in (4, 20):
        path = tmp_path / f"{minutes}_raw.fif"
        raw_of(NAMES, 200, noise(3, 60 * minutes, 200)).save(path, fmt="single", verbose="error")
        tracemalloc.start()
        assert run("tokenize", checkpoints["tokenize"], [path], tmp_path / "out.csv") == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20), peaks


# Pictures


def has_ink(path: Path) -> bool:
    """Whether a PNG of some size shows something."""
    pixels = image.imread(path)
    return min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02


def test_a_prediction_is_drawn_for_each_recording(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path
) -> None:
    other = save(tmp_path / "day_raw.fif", NAMES)
    words = ["--plot", tmp_path / "p.png", "--stride", 0.5]
    assert run("predict", checkpoints["predict"], [recording], tmp_path / "out.csv", *words) == 0
    assert has_ink(tmp_path / "p.png")
    assert run("predict", checkpoints["predict"], [recording, other], tmp_path / "out.csv", *words) == 0
    assert has_ink(tmp_path / "p-day_raw.png") and has_ink(tmp_path / "p-night_raw.png")


def test_spectra_are_drawn(checkpoints: dict[str, Path], recording: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "out.npz", tmp_path / "s.png"
    assert run("reconstruct", checkpoints["reconstruct"], [recording], out, "--plot", plot, "--window", 2) == 0
    assert has_ink(plot)


def test_the_features_of_a_labelled_file_are_drawn(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "set.hdf5", {"test": (signal(12, 3, 400), [0, 1] * 6)})
    plot = tmp_path / "t.png"
    assert run("embed", checkpoints["embed"], [path], tmp_path / "out.h5", "--plot", plot) == 0
    assert has_ink(plot)


# What is refused


@pytest.mark.parametrize(
    ("verb", "words", "says"),
    [
        ("tokenize", ["--window", "0"], "--window 0: allowed are 1 to 16"),
        ("tokenize", ["--window", "two"], "invalid int value"),
        ("tokenize", ["--stride", "-1"], "--stride -1"),
        ("tokenize", ["--batch_size", "0"], "--batch_size 0"),
        ("tokenize", ["--scale", "0"], "--scale 0"),
        ("tokenize", ["--output", "out.txt"], "must end with one of .npz, .hdf5, .h5, .csv"),
        ("tokenize", ["--output", "/dev/null/out.npz"], "--output /dev/null cannot be written"),
        ("tokenize", ["--plot", "a.png"], "unrecognized arguments"),
        ("predict", ["--plot", "a.jpg"], "must end with .png"),
        ("predict", ["--device", "abacus"], "--device abacus is no device"),
        ("embed", ["--pool", "time"], "invalid choice: 'time'"),
        ("predict", ["--checkpoint", "missing.pth"], "missing.pth"),
        ("predict", ["--split", "all"], "invalid choice: 'all'"),
        ("predict", ["--input", "nowhere"], "nowhere: does not exist; correct --input"),
        ("embed", ["--split", "val"], "--split val: is for labelled HDF5, and none that can be read is in --input"),
        ("embed", ["--prepared", "--notch", "60"], "--notch: --prepared says that signals are filtered already"),
    ],
)
def test_bad_words_are_one_line(
    checkpoints: dict[str, Path],
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(verb, checkpoints[verb], [recording], tmp_path / "out.npz", *words) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--window", 1), ("--stride", 1), ("--notch", 60), ("--l_freq", 0)], ids=str)
def test_flags_that_a_labelled_file_cannot_follow_are_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[Any, ...]
) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (signal(2, 3, 400), [0, 1])})
    assert run("predict", checkpoints["predict"], [path], tmp_path / "out.npz", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {words[0]}") and "leave the flag out" in lines[0]
    assert not (tmp_path / "out.npz").exists()


def test_a_split_of_recordings_without_labels_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 1000)])
    assert run("embed", checkpoints["embed"], [path], tmp_path / "out.npz", "--split", "val") == 2
    assert capsys.readouterr().err.startswith("error: --split val: is for labelled HDF5")
    assert not (tmp_path / "out.npz").exists()


def test_flags_that_a_file_of_ours_can_follow_are_followed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 1000)])
    words = ["--window", 3, "--stride", 1, "--drop", TRIO[1], "--notch", 50]  # as without the last
    assert run("tokenize", checkpoints["tokenize"], [path], tmp_path / "out.npz", *words) == 0
    assert read(tmp_path / "out.npz", "recording0", "codes").shape == (3, 2, 3)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert json.loads(str(file["description"]))["pipeline"] == "as it is", "it was filtered when the file was made"


def test_a_checkpoint_of_another_stage_is_one_line(
    checkpoints: dict[str, Path], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", checkpoints["tokenize"], [recording], tmp_path / "out.npz") == 2
    assert "tokenizer of stage 1" in capsys.readouterr().err


def test_signals_in_volts_are_one_line_and_a_factor_is_the_way_out(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v_raw.fif"
    raw_of(NAMES, 200, noise(3, 4, 200) * 1e-6).save(path, fmt="double", verbose="error")
    words = ["--window", 2]
    assert run("tokenize", checkpoints["tokenize"], [path], tmp_path / "out.npz", *words) == 1
    assert "probably volts: multiply them by 1e6. Give the factor with --scale" in capsys.readouterr().err
    assert run("tokenize", checkpoints["tokenize"], [path], tmp_path / "out.npz", *words, "--scale", "1e6") == 0


def test_nothing_of_a_header_reaches_an_output(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    raw = raw_of(NAMES, 200, noise(3, 4, 200))
    raw.info["subject_info"] = {"last_name": "Zimmermannova", "his_id": "PZIMMER1", "birthday": None}
    raw.info["description"] = raw.info["experimenter"] = "Zimmermannova"
    path = tmp_path / "in" / "r_raw.fif"
    path.parent.mkdir()
    raw.save(path, verbose="error")
    for suffix in inference_files.SUFFIXES:
        assert (
            run("predict", checkpoints["predict"], [path], tmp_path / f"o{suffix}", "--plot", tmp_path / "p.png") == 0
        )
    written = [file.read_bytes() for file in tmp_path.iterdir() if file.is_file()]
    assert len(written) == 6 and not any(b"ZIMMER" in data.upper() for data in written)
    with np.load(tmp_path / "o.npz") as arrays:
        assert not any("zimmer" in str(arrays[name]).lower() for name in arrays)


def test_every_verb_explains_itself_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], *([verb] for verb in ARRAYS), ["export"]):
        monkeypatch.setattr(sys, "argv", ["run_inference.py", *words, "--help"])
        with pytest.raises(SystemExit):
            run_inference.get_args()
        text = capsys.readouterr().out
        assert text.startswith("usage: run_inference.py") and max(map(len, text.splitlines())) <= 80
