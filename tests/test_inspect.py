"""`python -m dataset_maker.inspect_data`: every number against one taken from the files, the picture, bad files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib import pyplot as plt

from data_helpers import PAIR, TRIO, signal, write_labelled, write_pretraining
from dataset_maker import inspect_data
from maker_helpers import run_maker

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def looked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str, list[dict]]]:
    """Return a function that inspects and gives exit code, text, errors and reports."""

    def run(*words: Any) -> tuple[int, str, str, list[dict]]:
        capsys.readouterr()
        output = tmp_path / "reports" / "report.json"
        code = run_maker(inspect_data, *words, "--json", output)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err, json.loads(output.read_text())

    return run


def row(text: str, title: str) -> list[str]:
    """Return the words of a row of the text."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {title} ")]
    return line.removeprefix(f"  {title}").split()


def test_a_pretraining_folder_is_described_montage_by_montage(tmp_path: Path, looked: Any) -> None:
    eeg = [signal(2, 9000), signal(2, 7000, seed=1), signal(2, 1000, seed=2)]
    eeg[0][1, 4100] = np.nan
    eeg[1][:, 1200:1400] = 7
    eeg[1][0, 2000:2400] = 0
    eeg[1][1, 3000:3010] = 999
    write_pretraining(tmp_path / "data" / "a.hdf5", PAIR, eeg[:2])
    write_pretraining(tmp_path / "data" / "b" / "b.hdf5", PAIR, eeg[2:], dtype=np.float64, as_bytes=True)
    write_pretraining(tmp_path / "data" / "c.h5", TRIO, [signal(3, 3300)])
    code, text, errors, reports = looked(tmp_path / "data")
    assert (code, errors) == (0, "") and len(reports) == 2
    trio, pair = reports if reports[0]["electrodes"] == list(TRIO) else reports[::-1]
    assert pair["kind"] == "pre-training" and pair["electrodes"] == list(PAIR) and len(pair["files"]) == 2
    assert pair["recordings"] == 3 and pair["hours"] == pytest.approx(17_000 / 200 / 3600)
    bad = [np.zeros(45, bool), np.zeros(35, bool), np.zeros(5, bool)]
    bad[0][20] = bad[1][6] = True
    windows = {
        stride: sum(not b[k : k + 16].any() for b in bad for k in range(0, len(b) - 15, stride)) for stride in (1, 16)
    }
    every = sum(max(0, len(b) - 15) for b in bad)
    assert pair["windows"] == {
        "seconds": 16,
        "stride_1_s": windows[1],
        "without_overlap": windows[16],
        "left_out": every - windows[1],
        "too_short": 1,
    }
    values = np.abs(np.concatenate([e[np.isfinite(e)] for e in eeg]))
    for p, found in pair["amplitude_uV"].items():
        assert found == pytest.approx(np.percentile(values, float(p)), rel=0.13), p
    assert (pair["seconds"], pair["invalid_seconds"]) == (85, 2)
    assert pair["flat_seconds"] == {"FP1": 3, "FP2": 1}
    assert (pair["saturated_seconds"], pair["not_finite_seconds"]) == ({"FP2": 1}, {"FP2": 1})
    assert trio["warnings"] == [] and len(pair["warnings"]) == 2
    assert "warning: 2 of 85 seconds (2.4%) cannot be used" in text
    assert "FP1 3 (3.5%), FP2 1 (1.2%)" in text and f"{windows[1]} with a stride of 1 s" in text


def test_a_labelled_file_is_described_split_by_split(tmp_path: Path, looked: Any) -> None:
    labels = {"train": np.arange(11) % 3 % 2, "val": np.arange(5) % 2, "test": np.array([0, 2, 2])}
    splits = {split: (signal(len(y), 3, 400, seed=i), y) for i, (split, y) in enumerate(labels.items())}
    splits["val"][0][3, 0, 5] = np.nan
    path = write_labelled(tmp_path / "mine.hdf5", splits, task="multiclass", classes=("rest", "left hand", "feet"))
    with h5py.File(path, "r+") as file:
        file["test/subject"][:2] = ["train-subject0", "train-subject2"]
    code, text, errors, (report,) = looked(path)
    assert (code, errors) == (0, "")
    assert (report["kind"], report["name"], report["task"], report["published"]) == (
        "labelled",
        "mine",
        "multiclass",
        None,
    )
    for split, y in labels.items():
        found = report["splits"][split]
        assert found["samples"] == len(y) and found["left_out"] == (split == "val")
        assert found["recordings"] == -(-len(y) // 2)
        assert found["labels"] == {name: int((y == i).sum()) for i, name in enumerate(("rest", "left hand", "feet"))}
    assert [report["splits"][split]["subjects"] for split in labels] == [3, 2, 3]
    assert report["subjects_on_several_sides"] == ["train-subject0", "train-subject2"]
    assert report["hours"] == pytest.approx(19 * 2 / 3600) and report["windows"] == {"seconds": 2}
    assert row(text, "left hand") == [str(int((y == 1).sum())) for y in labels.values()]
    assert row(text, "samples") == ["11", "5", "3"] and row(text, "with invalid seconds") == ["0", "1", "0"]
    said = " ".join(text.split())
    assert "warning: 2 subject(s) are on more than one side of the splits: train-subject0 (train, test)" in said
    assert "not in train: feet (test)" in said


def test_a_regression_is_described_by_its_targets(tmp_path: Path, looked: Any) -> None:
    y = np.random.default_rng(0).normal(5, 2, (8, 2))
    splits = {"train": (signal(8, 3, 400), y), "val": (signal(0, 3, 400), np.zeros((0, 2)))}
    path = write_labelled(tmp_path / "gait.hdf5", splits, task="regression", classes=("hip", "knee"))
    code, text, _, (report,) = looked(path)
    assert code == 0
    for i, name in enumerate(("hip", "knee")):
        mean, deviation = report["splits"]["train"]["targets"][name]
        assert (mean, deviation) == pytest.approx((y[:, i].mean(), y[:, i].std()), rel=1e-5)
        assert report["splits"]["val"]["targets"][name] is None
    assert row(text, "hip, mean (sd)") == [f"{y[:, 0].mean():.3g}", f"({y[:, 0].std():.2g})", "none"]


def test_a_folder_of_shards_is_one_set_and_other_sets_beside_it_are_their_own(tmp_path: Path, looked: Any) -> None:
    for i in range(2):
        path = write_labelled(
            tmp_path / "data" / "set" / f"{i}.hdf5", {"train": (signal(3, 3, 400, seed=i), [0, 1, 0])}
        )
        with h5py.File(path, "r+") as file:
            file.attrs["name"] = "mine"
    write_labelled(tmp_path / "data" / "TUEV.hdf5", {"train": (signal(2, 3, 400), [0, 1])})
    write_pretraining(tmp_path / "data" / "pretrain" / "a.hdf5", PAIR, [signal(2, 4000)])
    code, text, _, reports = looked(tmp_path / "data")
    assert code == 0
    by_name = {report.get("name", report["kind"]): report for report in reports}
    assert by_name.keys() == {"mine", "TUEV", "pre-training"}
    assert len(by_name["mine"]["files"]) == 2 and by_name["mine"]["splits"]["train"]["samples"] == 6
    assert by_name["TUEV"]["published"]["same"] is False
    assert "published are TUEV v2.0.0: 67436, 15634, 29421" in " ".join(text.split())


def test_sizes_like_the_published_ones_are_said(tmp_path: Path, looked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_labelled(tmp_path / "MentalArithmetic.hdf5", {"train": (signal(2, 3, 400), [0, 1])})
    monkeypatch.setattr(inspect_data.inspect_report, "published_sizes", lambda: {"MentalArithmetic": [2, 0, 0]})
    _, text, _, (report,) = looked(path)
    assert report["published"]["same"] is True
    assert "Samples of train, val and test are those published for MentalArithmetic." in " ".join(text.split())


@pytest.mark.parametrize(("unit", "word"), [(1e-6, "volts"), (1e4, "raw counts")])
def test_a_wrong_unit_is_warned_about(tmp_path: Path, looked: Any, unit: float, word: str) -> None:
    code, text, _, _ = looked(write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000) * unit]))
    assert code == 0
    assert word in " ".join(text.split("warning: ")[1].split())


def test_what_the_makers_stored_is_believed_and_not_looked_at_again(tmp_path: Path, looked: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    seen = {"flat": {"FP2": 7}, "saturated": {}, "not_finite": {}, "histogram": {"200": 8000}, "seconds": 20}
    with h5py.File(path, "r+") as file:
        file["recording0/valid"] = np.arange(20) != 9
        file["recording0/eeg"].attrs["quality"] = json.dumps(seen)
    _, text, _, (report,) = looked(path)
    assert report["flat_seconds"] == {"FP2": 7} and report["invalid_seconds"] == 1
    assert "warning: 1 electrode(s) are flat" in text


def test_electrodes_that_training_refuses_are_warned_about(tmp_path: Path, looked: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", ("FP1", "P4-O2"), [signal(2, 4000)])
    code, text, _, _ = looked(path)
    assert code == 0 and "warning: " in text and "--num_electrodes 136" in " ".join(text.split())


def test_every_line_fits_80_columns(tmp_path: Path, looked: Any) -> None:
    classes = tuple(f"a class with a rather long name, number {i}, that goes on" for i in range(30))
    names = [f"{a}{b}" for a in ("C", "CP", "FC", "P") for b in range(1, 7)]
    labels = np.arange(60) % 30
    splits = {split: (signal(60, 24, 200, seed=i), labels) for i, split in enumerate(("train", "val", "test"))}
    path = write_labelled(tmp_path / "a.hdf5", splits, task="multiclass", classes=classes, names=names)
    _, text, _, _ = looked(path)
    lines = text.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    assert sum(line.startswith("  a class with") for line in lines) == 30


def test_a_file_that_cannot_be_read_is_named_the_others_are_described_and_the_exit_code_is_1(
    tmp_path: Path, looked: Any
) -> None:
    write_pretraining(tmp_path / "data" / "good.hdf5", PAIR, [signal(2, 4000)])
    (tmp_path / "data" / "bad.hdf5").write_bytes(b"EEG")
    with h5py.File(tmp_path / "data" / "away.hdf5", "w") as file:
        file["someone"] = h5py.ExternalLink("good.hdf5", "/")
    for name, classes in (("x", ("a", "b")), ("y", ("b", "a"))):
        path = write_labelled(
            tmp_path / "data" / f"{name}.hdf5", {"train": (signal(2, 3, 400), [0, 1])}, classes=classes
        )
        with h5py.File(path, "r+") as file:
            file.attrs["name"] = "same"
    code, _, errors, reports = looked(tmp_path / "data", tmp_path / "nowhere")
    assert code == 1 and [report["kind"] for report in reports] == ["pre-training"]
    lines = errors.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    for line, part in zip(lines, ("external link", "bad.hdf5", "the attribute classes", "nowhere"), strict=True):
        assert part in line


def test_an_output_that_cannot_be_written_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    (tmp_path / "file").write_text("no folder")
    for flag in ("--plot", "--json"):
        assert run_maker(inspect_data, path, flag, tmp_path / "file" / "x") == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_the_picture_has_a_row_a_set_with_traces_and_a_spectrum(tmp_path: Path, looked: Any) -> None:
    time = np.arange(8000) / 200
    alpha = (signal(2, 8000) / 10 + 40 * np.sin(2 * np.pi * 10 * time)).astype(np.float32)
    first = write_pretraining(tmp_path / "a.hdf5", PAIR, [alpha])
    second = write_labelled(tmp_path / "b.hdf5", {"train": (signal(6, 3, 400), np.arange(6) % 2)})
    heights = []
    for paths in ((first,), (first, second)):
        picture = tmp_path / "pictures" / "look.png"
        assert looked(*paths, "--plot", picture)[0] == 0
        pixels = plt.imread(picture)
        assert pixels.shape[1] > 1000 and pixels[..., :3].min() < 0.3
        heights.append(pixels.shape[0])
        assert [path.name for path in picture.parent.iterdir()] == ["look.png"]
    assert heights[1] > 1.6 * heights[0]


@pytest.mark.parametrize("kind", ["constant", "not finite", "too short", "empty split", "one electrode", "volts"])
def test_odd_data_can_be_drawn(tmp_path: Path, looked: Any, kind: str) -> None:
    eeg = {"constant": np.full((2, 4000), 5.0), "not finite": np.full((2, 4000), np.nan), "too short": signal(2, 300)}
    if kind == "empty split":
        splits = {"train": (signal(0, 3, 400), np.zeros(0, int))}
        path = write_labelled(tmp_path / "a.hdf5", splits)
    elif kind == "one electrode":
        path = write_pretraining(tmp_path / "a.hdf5", ("CZ",), [signal(1, 4000)])
    else:
        path = write_pretraining(tmp_path / "a.hdf5", PAIR, [eeg.get(kind, signal(2, 4000) * 1e-6)])
    code, text, errors, _ = looked(path, "--plot", tmp_path / "look.png")
    assert (code, errors) == (0, "") and text.startswith(str(path))
    assert plt.imread(tmp_path / "look.png").size > 10_000


def test_nothing_of_a_file_is_shown_but_what_the_format_knows(tmp_path: Path, looked: Any) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    with h5py.File(path, "r+") as file:
        file.attrs["patient"] = file["recording0"].attrs["name"] = "Jane Roe 1981-02-03"
        file["recording0/eeg"].attrs["notes"] = "Jane Roe"
        file.move("recording0", "Jane Roe\x1b[31m")
    code, text, errors, reports = looked(path)
    assert code == 0 and "Jane" not in text + errors + json.dumps(reports)


def test_it_starts_by_its_path_and_as_a_module_without_torch(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    watch = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, 'LOADED'))\n"
    (tmp_path / "sitecustomize.py").write_text(watch)
    words: list[list[Any]] = [[REPOSITORY / "dataset_maker" / "inspect_data.py"], ["-m", "dataset_maker.inspect_data"]]
    for start in words:
        command = [sys.executable, *map(str, start), str(path)]
        environment = {"PYTHONPATH": str(tmp_path), "LABRAM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{path}: pre-training, 2 electrode(s)") and "False LOADED" in done.stdout
