"""`run_inference.py` writes what the Python interface returns, and survives bad recordings and full disks."""

import json
import resource
import tracemalloc
from collections.abc import Callable
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
from data_helpers import TRIO, signal, write_labelled, write_pretraining
from errors import InputError
from inference import output, plots, recordings
from inference.recordings import Windows
from inference_helpers import CLASSIFIER, DATA, MASKED, NAMES, TINY_MODELS, random_module, read, rows, saved
from maker_helpers import noise, raw_of, save
from run_helpers import call

ARRAYS = {
    "tokenize": ["codes"],
    "embed": ["features"],
    "reconstruct": ["codes", "amplitude", "predicted_amplitude", "phase_error", "predicted_signal"],
    "predict": ["probabilities"],
}
Infer = Callable[..., int]
Text = Callable[[], str]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint for each verb."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = saved(folder / "t.pth", random_module(TINY_MODELS["tokenizer"], n_code=64, code_dim=8))
    masked = saved(folder / "masked.pth", random_module(MASKED, vocab_size=64))
    classifier = saved(folder / "c.pth", random_module(CLASSIFIER, num_classes=1), data_set=DATA)
    stage1 = dict.fromkeys(("tokenize", "histogram", "reconstruct"), tokenizer)
    return {**stage1, "embed": masked, "predict": classifier}


@pytest.fixture
def infer(checkpoints: dict[str, Path]) -> Infer:
    """Run a verb on one or several recordings; return its exit code."""

    def run(verb: str, inputs: Path | list[Path], output: Path, *words: Any, checkpoint: Path | None = None) -> int:
        inputs = inputs if isinstance(inputs, list) else [inputs]
        path = checkpoint or checkpoints[verb]
        return call("run_inference", verb, "--checkpoint", path, "--input", *inputs, "--output", output, *words)

    return run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("recordings") / "night_raw.fif", NAMES, seconds=9)


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Text:
    """Return the only error line of a command."""

    def error() -> str:
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    return error


def has_ink(path: Path) -> bool:
    """Whether a PNG of some size shows something."""
    pixels = image.imread(path)
    return min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02


# What is written


@pytest.mark.parametrize("verb", ARRAYS)
def test_arrays_are_those_of_the_python_interface(
    checkpoints: dict[str, Path], infer: Infer, recording: Path, tmp_path: Path, verb: str
) -> None:
    raw = mne.io.read_raw(recording, verbose="error")
    expected = getattr(inference.load(checkpoints[verb]), verb)(raw, window=2, stride=1)
    for path in (tmp_path / "out.npz", tmp_path / "out.hdf5"):
        assert infer(verb, recording, path, "--window", 2, "--stride", 1, "--batch_size", 3) == 0
        for name in ARRAYS[verb]:
            np.testing.assert_allclose(read(path, "night_raw", name), getattr(expected, name), atol=1e-5)
        np.testing.assert_array_equal(read(path, "night_raw", "start_seconds"), np.arange(8))
        assert read(path, "night_raw", "start_seconds").dtype == np.float64
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("pool", ["patches", "electrodes", "mean"])
def test_a_csv_row_is_a_patch_an_electrode_or_a_window(
    infer: Infer, recording: Path, tmp_path: Path, pool: str
) -> None:
    for path in (tmp_path / "o.csv", tmp_path / "o.npz"):
        assert infer("embed", recording, path, "--window", 2, "--pool", pool) == 0
    table, features = rows(tmp_path / "o.csv"), read(tmp_path / "o.npz", "night_raw", "features")
    for row, (window, *place) in zip(table, np.ndindex(features.shape[:-1]), strict=True):
        where = [TRIO[place[0]], *map(str, place[1:])] if place else []
        assert [*row.values()][:-200] == ["night_raw", f"{2.0 * window}", *where]
        values = [float(row[f"f{number}"]) for number in range(200)]
        np.testing.assert_allclose(values, features[(window, *place)], atol=1e-5)


def test_codes_and_errors_are_columns_and_spectra_are_drawn(infer: Infer, recording: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "o.csv", tmp_path / "o.npz"):
        assert infer("reconstruct", recording, path, "--window", 2, "--plot", tmp_path / "s.png") == 0
    assert has_ink(tmp_path / "s.png")
    table = rows(tmp_path / "o.csv")
    columns = {"code": "codes"} | {f"{part}_error": f"{part}_error" for part in ("amplitude", "phase", "signal")}
    for column, name in columns.items():
        values = read(tmp_path / "o.npz", "night_raw", name).ravel()
        np.testing.assert_array_equal(np.array([row[column] for row in table], dtype=values.dtype), values)


def test_histograms_count_the_codes_of_each_recording(
    checkpoints: dict[str, Path], infer: Infer, recording: Path, tmp_path: Path
) -> None:
    other = save(tmp_path / "in" / "day_raw.fif", NAMES, seconds=5.0, seed=3)
    labelled = write_labelled(tmp_path / "in" / "set.hdf5", {"test": (signal(3, 3, 400), [0, 1, 1])})
    inputs = [recording, other, labelled]
    for path in (tmp_path / "o.csv", tmp_path / "o.npz"):
        assert infer("histogram", inputs, path, "--window", 2) == 0
        assert infer("tokenize", inputs, tmp_path / "codes.npz", "--window", 2) == 0
    table, expected = rows(tmp_path / "o.csv"), {}
    for name in ("night_raw", "day_raw", "test"):
        codes = read(tmp_path / "codes.npz", name, "codes")
        owners = read(tmp_path / "codes.npz", "test", "recording") if name == "test" else [name] * len(codes)
        for owner in dict.fromkeys(owners):
            key = f"test/{owner}" if name == "test" else name
            mine = [window for window, of in zip(codes, owners, strict=True) if of == owner]
            expected[key] = {f"code_{k}": str(sum(int((w == k).sum()) for w in mine)) for k in range(64)}
    assert {row.pop("recording"): row for row in table} == expected and len(table) == 4
    model = inference.load(checkpoints["tokenize"])
    counts = model.histogram(mne.io.read_raw(recording, verbose="error"), window=2).histogram
    np.testing.assert_array_equal(read(tmp_path / "o.npz", "night_raw", "histogram"), counts[None])
    assert counts.sum() == 4 * 3 * 2 and counts.max() < 24


def test_predictions_are_written_for_every_window_and_recording(
    infer: Infer, recording: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save(tmp_path / "in" / "day_raw.fif", NAMES, seconds=4.0, seed=3)
    labelled = write_labelled(tmp_path / "in" / "set.hdf5", {"test": (signal(3, 3, 400), [0, 1, 1])})
    with caplog.at_level("INFO"):
        assert infer("predict", [recording, other, labelled], tmp_path / "out.csv") == 0
        assert infer("predict", labelled, tmp_path / "one.npz", "--split", "test") == 0
    table, means = rows(tmp_path / "out.csv"), rows(tmp_path / "out-recordings.csv")
    assert [row["label"] for row in table] == [""] * 6 + ["0", "1", "1"], "recordings without labels leave them empty"
    assert {row["recording"] for row in means} == {row["recording"] for row in table}
    assert len(means) == 4, "two recordings of the labelled file"
    assert read(tmp_path / "one.npz", "test", "label").tolist() == [0, 1, 1]
    assert read(tmp_path / "one.npz", "test", "recording_probabilities").shape == (2, 2)
    for row in means:
        windows = [float(line["task"]) for line in table if line["recording"] == row["recording"]]
        assert float(row["task"]) == pytest.approx(np.mean(windows), abs=1e-6)
        assert float(row["rest"]) + float(row["task"]) == pytest.approx(1, abs=1e-6)
    assert f"night_raw, 4 windows: rest {float(means[0]['rest']):.3f}, task" in caplog.text


def test_targets_of_a_regression_are_columns(infer: Infer, tmp_path: Path) -> None:
    splits = {"test": (signal(2, 3, 400), np.array([[0.5, 1], [2, 3]], np.float32))}
    path = write_labelled(tmp_path / "a.hdf5", splits, task="regression", classes=("x", "y"))
    assert infer("embed", path, tmp_path / "out.csv", "--pool", "mean") == 0
    assert [(row["label_0"], row["label_1"]) for row in rows(tmp_path / "out.csv")] == [("0.5", "1.0"), ("2.0", "3.0")]
    other = write_labelled(tmp_path / "b.hdf5", {"test": (signal(1, 3, 400), [1])})
    assert infer("embed", [path, other], tmp_path / "out.csv", "--pool", "mean") == 0
    last = rows(tmp_path / "out.csv")[-1]
    assert (last["label_0"], last["label_1"]) == ("1", "") and float(last["f0"]) != float(last["f1"])


def test_a_file_describes_how_it_was_made(infer: Infer, recording: Path, tmp_path: Path) -> None:
    for name in ("a.hdf5", "a.npz"):
        assert infer("embed", recording, tmp_path / name, "--pool", "mean", "--notch", 60, "--window", 2) == 0
    with h5py.File(tmp_path / "a.hdf5") as file, np.load(tmp_path / "a.npz") as arrays:
        assert file.attrs["checkpoint"] == "masked.pth" and file.attrs["pool"] == "mean"
        assert json.loads(file.attrs["pipeline"]) == {"l_freq": 0.1, "h_freq": 75.0, "notch": 60.0}
        assert file["night_raw"].attrs["electrodes"].tolist() == arrays["night_raw/electrodes"].tolist() == list(TRIO)
        assert json.loads(str(arrays["description"]))["checkpoint"] == "masked.pth"


@pytest.mark.parametrize("suffix", [".csv", ".h5"])
def test_any_class_name_can_be_written_and_drawn(infer: Infer, recording: Path, tmp_path: Path, suffix: str) -> None:
    data = DATA | {"task": "multiclass", "classes": ["a,\n\x1b[31mb", r"$\foo$", 'q"\0']}
    checkpoint = saved(tmp_path / "c.pth", random_module(CLASSIFIER, num_classes=3), data_set=data)
    out = tmp_path / f"o{suffix}"
    assert infer("predict", recording, out, "--plot", tmp_path / "p.png", checkpoint=checkpoint) == 0
    if suffix == ".csv":
        assert list(rows(out)[0])[2:] == [r"a,\n\x1b[31mb", r"$\foo$", r'q"\x00']


# Many recordings


def test_recordings_that_fail_do_not_stop_the_others(
    infer: Infer, tmp_path: Path, error_of: Text, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "in" / "s1" / "rest_raw.fif", NAMES)
    save(tmp_path / "in" / "s2" / "rest_raw.fif", NAMES, seed=2)
    for broken in ("t.edf", "t.hdf5"):
        (tmp_path / "in" / broken).write_bytes(b"no recording")
    save(tmp_path / "in" / "u_raw.fif", ["C3", "E7"])
    for name in ("x", "y"):
        write_pretraining(tmp_path / "in" / f"{name}.hdf5", TRIO, [signal(3, 1000), signal(3, 300)])
    assert infer("tokenize", tmp_path / "in", tmp_path / "o.h5", "--window", 2) == 1
    assert "5 of 9 recordings are left out of" in error_of()
    assert [r.message.count("left out: ") for r in caplog.records if r.levelname == "ERROR"] == [1] * 5
    assert "'E7'" in caplog.text and "lasts 1.50 s, a window 2 s" in caplog.text
    with h5py.File(tmp_path / "o.h5") as file:
        names = list(file)
    assert len(names) == 4 and names[2:] == ["recording0", "recording0-2"], "in the order of the paths"
    assert all(name.startswith("rest_raw-") for name in names[:2])


def test_if_no_recording_can_be_used_nothing_is_written(infer: Infer, tmp_path: Path, error_of: Text) -> None:
    bad = save(tmp_path / "in" / "a_raw.fif", ["E7"])
    short = save(tmp_path / "in" / "b_raw.fif", NAMES, seconds=1.0)
    for inputs, error in (([bad], "'E7'"), ([bad, short], "none of 2 recordings")):
        assert infer("tokenize", inputs, tmp_path / "out.npz") == 1
        assert error in error_of()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_recording_that_fails_on_the_way_leaves_no_trace(infer: Infer, tmp_path: Path) -> None:
    good = write_pretraining(tmp_path / "in" / "good.hdf5", TRIO, [signal(3, 1200)])
    bad = write_pretraining(tmp_path / "in" / "bad.hdf5", TRIO[:2], [signal(2, 1600)])
    batch, contents = Windows.batch, []

    def failing(self: Windows, first: int, stop: int) -> np.ndarray:
        if "bad" in self.where and first:
            raise InputError("damaged here")
        return batch(self, first, stop)

    for inputs in ([bad, good], [good]):
        words = ["--batch_size", 1, "--window", 2, "--plot", tmp_path / "p.png"]
        with patch.object(Windows, "batch", failing):
            assert infer("embed", inputs, tmp_path / "o.npz", *words) == len(inputs) - 1
        contents.append([(tmp_path / name).read_bytes() for name in ("o.npz", "p.png")])
    assert contents[0] == contents[1]


# Memory and disks


def test_memory_does_not_grow_with_a_recordings_length(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "IN_MEMORY", 1 << 18)
    monkeypatch.setattr(run_inference, "BLOCK_BYTES", 1 << 20)
    peaks = []
    for minutes in (4, 20):
        path = tmp_path / f"{minutes}_raw.fif"
        raw_of(NAMES, 200, noise(3, 60 * minutes, 200)).save(path, fmt="single", verbose="error")
        tracemalloc.start()
        assert infer("tokenize", path, tmp_path / "out.csv") == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20), peaks


FULL = [(".npz", 60_000, "o.npz"), (".h5", 3000, "o.h5"), (".h5", 60_000, "o.h5"), (".csv", 200, "o.csv")]


@pytest.mark.parametrize(("suffix", "room", "what"), [*FULL, (".h5", 9999, "temporary files")])
def test_results_that_find_no_room_are_named_and_leave_the_old_file(
    infer: Infer,
    recording: Path,
    tmp_path: Path,
    suffix: str,
    room: int,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    error_of: Text,
) -> None:
    monkeypatch.setattr(recordings, "IN_MEMORY", 0 if what == "temporary files" else recordings.IN_MEMORY)
    path = tmp_path / f"o{suffix}"
    path.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # as on a disk that is full then
    try:
        assert infer("reconstruct", recording, path, "--window", 1) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{what} cannot be written" in error_of()
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_ctrl_c_leaves_nothing_and_says_so(
    infer: Infer, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch.object(output, "add_means", side_effect=KeyboardInterrupt):
        assert infer("predict", recording, tmp_path / "o.npz") == 130
    assert "begins anew" in capsys.readouterr().err and not list(tmp_path.iterdir())


# Pictures


def test_predictions_are_drawn_for_each_recording(infer: Infer, recording: Path, tmp_path: Path) -> None:
    labelled = write_labelled(tmp_path / "set.hdf5", {"test": (signal(4, 3, 400), [0, 1, 1, 0])})
    plot = ["--plot", tmp_path / "p.png"]
    assert infer("predict", [recording, labelled], tmp_path / "out.csv", *plot) == 0
    assert has_ink(tmp_path / "p-night_raw.png") and has_ink(tmp_path / "p-test.png")
    assert infer("predict", recording, tmp_path / "out.csv", *plot, "--stride", 0.5) == 0
    assert has_ink(tmp_path / "p.png")


def test_a_map_of_features_is_drawn_from_all_windows(
    infer: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_labelled(tmp_path / "set.hdf5", {"test": (signal(60, 3, 200), [0] * 30 + [1] * 30)})
    figures, save_figure = [], plots._save
    monkeypatch.setattr(plots, "POINTS", 20)
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save_figure(figure, path)))
    assert infer("embed", path, tmp_path / "o.h5", "--plot", tmp_path / "t.png") == 0
    points = {line.get_label(): len(line.get_offsets()) for line in figures[0].axes[0].collections}
    assert sum(points.values()) == 20 and len(points) == 2 and min(points.values()) >= 4
    assert has_ink(tmp_path / "t.png")


# What is refused


@pytest.mark.parametrize(
    ("verb", "words", "error"),
    [
        ("tokenize", "--batch_size 0", "--batch_size 0"),
        ("tokenize", "--output out.txt", ".npz, .hdf5, .h5, .csv"),
        ("tokenize", "--output /dev/null/out.npz", "--output /dev/null cannot be written"),
        ("tokenize", "--plot a.png", "unrecognized arguments"),
        ("predict", "--plot a.jpg", ".png"),
        ("predict", "--device abacus", "--device abacus"),
        ("predict", "--checkpoint missing.pth", "missing.pth"),
        ("predict", "--split test", "--split test"),
        ("predict", "--input nowhere", "nowhere: does not exist; correct --input"),
        ("embed", "--prepared --notch 60", "--notch: --prepared"),
    ],
)
def test_flags_that_are_not_allowed_are_one_line_and_write_nothing(
    infer: Infer,
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    words: str,
    error: str,
    error_of: Text,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert infer(verb, recording, tmp_path / "out.npz", *words.split()) in (1, 2)
    assert error in error_of() and list(tmp_path.iterdir()) == []


def test_no_recording_and_no_folder_is_overwritten(infer: Infer, tmp_path: Path, error_of: Text) -> None:
    path = write_pretraining(tmp_path / "in" / "a.hdf5", TRIO, [signal(3, 800)])
    (tmp_path / "link.hdf5").symlink_to(path)
    for name in ("a.npz", "a.png"):
        (tmp_path / name).mkdir()
    before = path.read_bytes()
    cases: list[tuple[Path, Path, list[Any], str]] = [
        (path.parent, path, [], "would overwrite"),
        (path, tmp_path / "link.hdf5", [], "would overwrite"),
        (path, tmp_path / "a.npz", [], "a.npz is a folder"),
        (path, tmp_path / "b.npz", ["--plot", tmp_path / "a.png"], "a.png is a folder"),
    ]
    for inputs, out, words, error in cases:
        with patch.object(inference.Model, "batches", side_effect=AssertionError):
            assert infer("embed", inputs, out, *words) == 2
        assert error in error_of()
    assert path.read_bytes() == before


def test_nothing_of_a_header_reaches_an_output(infer: Infer, tmp_path: Path) -> None:
    raw = raw_of(NAMES, 200, noise(3, 4, 200))
    raw.info["subject_info"] = {"last_name": "Zimmermannova", "his_id": "PZIMMER1", "birthday": None}
    raw.info["description"] = raw.info["experimenter"] = "Zimmermannova"
    path = tmp_path / "in" / "r_raw.fif"
    path.parent.mkdir()
    raw.save(path, verbose="error")
    for suffix in (".npz", ".h5", ".csv"):
        assert infer("predict", path, tmp_path / f"o{suffix}", "--plot", tmp_path / "p.png") == 0
    written = [file.read_bytes() for file in tmp_path.iterdir() if file.is_file()]
    assert len(written) == 5 and not any(b"ZIMMER" in data.upper() for data in written)
    with np.load(tmp_path / "o.npz") as arrays:
        assert not any("zimmer" in str(arrays[name]).lower() for name in arrays)
