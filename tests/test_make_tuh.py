"""TUAB and TUEV: channels, trees, events, and whole conversions of trees made from real recordings."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

import tuh_trees
from dataset_maker import make_TUAB, make_TUEV, tuh
from errors import InputError
from maker_helpers import run_maker
from tuh_trees import TUAB, TUAB_V2, TUEV, Recording

GOLDEN = Path(__file__).parent / "golden" / "tuev_events.npz"


@pytest.fixture(scope="module")
def eegmat(shared: Path) -> Path:
    return shared / "eegmat"


def exact() -> list[str]:
    return [f"EEG {name}-REF" for name in tuh_trees.ORDER]


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


# Channels


def test_the_23_channels_pass_in_any_order_case_and_spacing_beside_every_known_extra() -> None:
    tuh.check_channels([*exact()[::-1], *tuh_trees.EXTRAS], "x")
    tuh.check_channels(
        [f"  {name.lower()} " for name in exact()] + ["eeg 64-ref", "EEG PG2-REF", "Resp  Abdomen-REF"], "x"
    )
    numbers = [name for name in tuh.EXTRAS if name.removeprefix("EEG ").removesuffix("-REF").isdigit()]
    assert numbers == [f"EEG {number}-REF" for number in range(20, 129)] and len(tuh.EXTRAS) == 8 + 14 + 109
    assert list(tuh.ELECTRODES) == tuh_trees.ORDER


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda names: names[1:], "missing 'EEG FP1-REF'"),
        (lambda names: [*names, "EEG 19-REF"], "unexpected 'EEG 19-REF'"),
        (lambda names: ["EEG FP1-LE", *names[1:]], "missing 'EEG FP1-REF'; unexpected 'EEG FP1-LE'"),
        (lambda names: [*names, "EEG OZ-REF"], "unexpected 'EEG OZ-REF'"),
        (lambda names: [f"X{index}" for index in range(9000)], "unexpected 'X0'"),
    ],
)
def test_any_other_set_of_channels_is_refused_and_named(change: Any, text: str) -> None:
    message = refused(tuh.check_channels, change(exact()), "a.edf")
    assert message.startswith("a.edf: ") and text in message and len(message) < 800


# Events


def test_windows_round_events_are_the_golden_ones() -> None:
    golden = np.load(GOLDEN)
    signal = np.random.default_rng(int(golden["signal_seed"])).standard_normal(golden["signal_shape"])
    found = tuh.event_windows(golden["events"], signal.shape[1], float(golden["sampling_rate"]))
    windows = np.stack([signal.take(np.arange(start, start + 1000), axis=1, mode="wrap") for start in found.starts])
    np.testing.assert_array_equal(windows[:, 0], golden["window_first_row"])
    np.testing.assert_array_equal(windows[:, -1], golden["window_last_row"])
    np.testing.assert_array_equal(found.labels, golden["label"][:, 0] - 1)


@pytest.mark.parametrize("rate", [200.0, 199.9])
def test_an_event_begins_at_the_first_sample_at_or_after_its_time(rate: float) -> None:
    generator = np.random.default_rng(0)
    samples = np.arange(4001)
    on_grid = samples / rate
    times = np.concatenate(
        [on_grid, np.nextafter(on_grid, -1), np.nextafter(on_grid, 99), generator.uniform(0, 20, 999)]
    )
    times = np.concatenate([times[times >= 0], generator.integers(0, 4000, 999) / 200, [1e9, 1e308]])
    expected = np.minimum(np.searchsorted(on_grid, times), 3000)  # the grid itself decides
    np.testing.assert_array_equal(tuh.first_samples(times, rate, 3000), expected)


def test_what_is_left_out_wraps_or_repeats_is_counted() -> None:
    rows = [[0, 10, 11, 2], [1, 10, 11, 2], [2, 10, 11, 3], [0, 12, 13, 1], [1, 12, 13, 1], [0, 0.5, 1.5, 6]]
    rows += [[0, 24, 25, 6], [0, 3, 5, 1], [0, 5, 4, 1], [0, 24.5, 25.5, 1], [0, 24.5, 24.5, 1], [0, 1e300, 2e300, 1]]
    found = tuh.event_windows(np.array(rows, float), 5000, 200.0)
    assert found.starts.tolist() == [1600, 1600, 1600, 2000, 2000, -300, 4400] and found.starts.dtype == np.int64
    assert found.labels.tolist() == [1, 1, 2, 0, 0, 5, 5]
    assert found.notes == {
        "events that end after the recording, left out": 2,
        "events that are not 1 s long, left out": 3,
        "windows that wrap round at the recording's edge": 2,
        "windows that come more than once": 2,
        "windows that come with different labels": 1,
    }
    short = tuh.event_windows(np.array(rows, float), 999, 200.0)
    assert not len(short.starts) and short.notes["events in recordings shorter than 5 s, left out"] == 1
    none = tuh.event_windows(np.empty((0, 4)), 5000, 200.0)
    assert none.starts.shape == none.labels.shape == (0,) and none.notes == {}


def test_rows_are_read_with_either_line_end_blank_lines_and_blanks(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(b"\r\n0,0.5,1.5,6\r\n\n 3 , 1.0 ,2.0, 1.0\n  \n22,30,31,2")
    expected = [[0, 0.5, 1.5, 6], [3, 1, 2, 1], [22, 30, 31, 2]]
    np.testing.assert_array_equal(tuh.read_events(tmp_path / "a.rec"), expected)
    (tmp_path / "empty.rec").touch()
    assert tuh.read_events(tmp_path / "empty.rec").shape == (0, 4)
    assert "none.rec: cannot be read" in refused(tuh.read_events, tmp_path / "none.rec")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"0,1,2", "four numbers"),
        (b"0,1,2,Jane Roe", "four numbers"),
        (b"-1,1,2,3", "the channel"),
        (b"inf,1,2,3", "the channel"),
        (b"0,-1,0,3", "start and end"),
        (b"0,1,inf,3", "start and end"),
        (b"0,1,2,0", "the label"),
        (b"0,1,2,nan", "the label"),
    ],
)
def test_a_row_that_is_no_event_is_refused_with_its_line_and_nothing_of_its_text(
    line: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / "a.rec").write_bytes(b"0,1,2,3\n\n" + line + b"\n")
    message = refused(tuh.read_events, tmp_path / "a.rec")
    assert message.startswith(f"{tmp_path / 'a.rec'}, line 3: ") and text in message and "Roe" not in message


# Trees


def touch(root: Path, *names: str) -> Path:
    """Make empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


CORPUS = [f"{part}/{name}/01_tcp_ar/s_{part}{name}.edf" for part in tuh.PARTS for name in make_TUAB.DATA_SET.classes]


def test_the_root_or_its_edf_is_found_and_any_other_folder_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"v3.0.1/edf/{name}" for name in CORPUS)) / "v3.0.1"
    assert tuh.find_root(root, make_TUAB.TREE) == tuh.find_root(root / "edf", make_TUAB.TREE) == root / "edf"
    for folder in (tmp_path, root / "edf" / "train", tmp_path / "nowhere"):
        message = refused(tuh.find_root, folder, make_TUAB.TREE)
        assert str(folder) in message and make_TUAB.TREE in message


@pytest.mark.parametrize("lacking", [0, 3])
def test_a_class_without_recordings_is_refused(lacking: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = [name for index, name in enumerate(CORPUS) if index != lacking]
    touch(tmp_path / "in", *names, "train/normal/x.txt", "train/abnormal/03_tcp_ar_a/s_x.edf")
    words = ["--root", tmp_path / "in", "--output", tmp_path / "out" / "a.hdf5"]
    assert run_maker(make_TUAB, *words) == 1 and not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert str((tmp_path / "in" / CORPUS[lacking]).parent) in line and "--root" in line


def arguments(root: Path, **options: Any) -> argparse.Namespace:
    return argparse.Namespace(root=root, **{"split": "published", "seed": 0} | options)


@pytest.mark.parametrize("tree", [TUAB, TUAB_V2])
def test_recordings_get_their_folders_class_their_names_subject_and_its_split(
    tree: list[Recording], tmp_path: Path
) -> None:
    touch(tmp_path, *(f"{recording.path}.edf" for recording in tree), f"{tree[0].path}.txt", ".x/._y.edf")
    _, tasks = make_TUAB.find_recordings(arguments(tmp_path))
    assert [task["path"] for task in tasks] == [str(tmp_path / f"{recording.path}.edf") for recording in tree]
    assert [(task["subject"], task["label"]) for task in tasks] == [(part.subject, part.label) for part in tree]
    for task, recording in zip(tasks, tree, strict=True):
        assert recording.split in (None, task["split"])


def test_the_disjoint_split_of_tuab_leaves_no_subject_on_two_sides(tmp_path: Path) -> None:
    names = [f"train/normal/01_tcp_ar/s{index:02d}_t0.edf" for index in range(15)]
    names += [f"train/abnormal/01_tcp_ar/s{index:02d}_t0.edf" for index in range(5, 20)]
    touch(tmp_path, *names, *CORPUS[2:])

    def found(**options: Any) -> list[dict[str, Any]]:
        return make_TUAB.find_recordings(arguments(tmp_path, **options))[1]

    published, disjoint = found(), found(split="disjoint")
    both = {(task["subject"], task["split"]) for task in published if task["subject"] in ("s11", "s12", "s16", "s17")}
    assert both == {("s11", "train"), ("s12", "val"), ("s12", "train"), ("s16", "train"), ("s17", "val")}
    sides = {split: {task["subject"] for task in disjoint if task["split"] == split} for split in ("train", "val")}
    assert len(sides["train"]) == 16 and len(sides["val"]) == 4 and not sides["train"] & sides["val"]
    assert sides["val"] != {"s16", "s17", "s18", "s19"}
    assert disjoint == found(split="disjoint") != found(split="disjoint", seed=1)


def test_tuev_subjects_are_folders_so_a_file_in_none_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{recording.path}.edf" for recording in TUEV))
    _, tasks = make_TUEV.find_recordings(arguments(tmp_path))
    assert [task["subject"] for task in tasks] == [recording.subject for recording in TUEV]
    assert tasks[0]["also"] == [str(tmp_path / f"{TUEV[0].path}.rec")]
    touch(tmp_path, "train/x.edf")
    assert "x.edf: lies in no subject's folder" in refused(make_TUEV.find_recordings, arguments(tmp_path))


# Conversions

Samples = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Made:
    """What a maker left behind."""

    code: int
    printed: str
    root: Path
    attributes: dict[str, Any]
    samples: Samples
    report: dict[str, Any]


def convert(maker: ModuleType, root: Path, output: Path, capsys: pytest.CaptureFixture, *words: Any) -> Made:
    code = run_maker(maker, "--root", root, "--output", output, *words)
    captured = capsys.readouterr()
    with h5py.File(output) as file:
        attributes = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in file.attrs.items()}
        samples = {
            split: {key: column.asstr()[:] if column.dtype == object else column[:] for key, column in group.items()}
            for split, group in file.items()
        }
    report = json.loads(output.with_name(f"{output.stem}.report.json").read_text())
    return Made(code, captured.out + captured.err, root, attributes, samples, report)


def expected_samples(root: Path, tree: list[Recording], seconds: int) -> Samples:
    """Return what must be in the file: MNE alone filters, the tree says where windows lie."""
    found: dict[str, dict[str, list[Any]]] = {}
    for recording in tree:
        if recording.split is None:
            continue
        eeg = tuh_trees.expected_signal(root / f"{recording.path}.edf")
        consecutive = [(start * 2000, recording.label) for start in range(recording.seconds // 10)]
        for start, label in consecutive if recording.rows is None else recording.windows:
            columns = found.setdefault(recording.split, {key: [] for key in ("eeg", "label", "recording", "subject")})
            columns["eeg"].append(eeg.take(np.arange(start, start + seconds * 200), axis=1, mode="wrap"))
            for key, value in (("label", label), ("recording", recording.name), ("subject", recording.subject)):
                columns[key].append(value)
    return {split: {key: np.array(values) for key, values in columns.items()} for split, columns in found.items()}


def check(made: Made, tree: list[Recording], seconds: int, dtype: str = "float32") -> None:
    """Compare samples with the expected ones, the report with what the tree says of its faults."""
    expected = expected_samples(made.root, tree, seconds)
    assert list(made.attributes["chOrder"]) == tuh_trees.ORDER and made.attributes["rsFreq"] == 200
    assert made.samples.keys() == expected.keys() == {"train", "val", "test"}
    for split, columns in expected.items():
        found = made.samples[split]
        assert found["eeg"].dtype == dtype and found["label"].dtype == np.int64
        np.testing.assert_allclose(found["eeg"], columns["eeg"], rtol=1e-3 if dtype == "float16" else 1e-6, atol=1e-3)
        for key in ("label", "recording", "subject"):
            np.testing.assert_array_equal(found[key], columns[key])
        assert found["valid"].shape == (len(columns["label"]), seconds) and found["valid"].all()
        assert made.report["splits"][split]["samples"] == len(columns["label"])
    faults = {str(made.root / f"{recording.path}.edf"): recording.reason for recording in tree if not recording.split}
    left_out = {entry["path"]: entry["reason"] for entry in made.report["left_out"]}
    assert left_out.keys() == faults.keys() and made.code == bool(faults)
    for path, reason in faults.items():
        assert reason in left_out[path] and path.removesuffix(".edf") in made.printed  # or the .rec file beside it


def test_a_tree_like_tuab_becomes_exactly_the_expected_windows_twice_the_same(
    eegmat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tuh_trees.build(tmp_path / "tuab", TUAB, eegmat)
    made = convert(make_TUAB, root, tmp_path / "a.hdf5", capsys, "--jobs", 1)
    check(made, TUAB, 10)
    assert made.attributes["task"] == "binary" and list(made.attributes["classes"]) == ["normal", "abnormal"]
    assert made.report["subjects_on_two_sides"] == tuh_trees.TUAB_TWO_SIDES
    assert all(subject in made.printed for subject in tuh_trees.TUAB_TWO_SIDES)
    assert made.report["counts"] == {"recordings shorter than a window of 10 s": 1}
    assert made.report["splits"]["train"]["labels"] == {"normal": 5, "abnormal": 2}
    assert json.loads(made.attributes["made"])["split"] == "published"
    assert made.report["expected_samples"] == {"train": 297103, "val": 75407, "test": 36945}
    dropped = {name for names in made.report["dropped_channels"].values() for name in names}
    assert dropped == set(tuh_trees.EXTRAS)
    again = convert(make_TUAB, root, tmp_path / "b.hdf5", capsys, "--jobs", 2)
    assert made.attributes == again.attributes
    np.testing.assert_equal(made.samples, again.samples)  # to the last bit


def test_a_tree_like_version_2_of_tuab_is_found_below_edf_and_ends_well(
    eegmat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tuh_trees.build(tmp_path / "tuab", TUAB_V2, eegmat)
    made = convert(make_TUAB, root, tmp_path / "a.hdf5", capsys, "--jobs", 2, "--dtype", "float16")
    check(made, TUAB_V2, 10, "float16")
    assert made.report["left_out"] == [] and made.report["subjects_on_two_sides"] == {}
    assert made.report["expected_samples"] is None  # the published counts are of version 3


def test_a_tree_like_tuev_becomes_exactly_the_expected_windows(
    eegmat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tuh_trees.build(tmp_path / "tuev", TUEV, eegmat)
    made = convert(make_TUEV, root, tmp_path / "a.hdf5", capsys, "--jobs", 1)
    check(made, TUEV, 5)
    assert made.attributes["task"] == "multiclass"
    assert list(made.attributes["classes"]) == ["SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG"]
    assert made.report["counts"] == {
        "windows that come more than once": 1,
        "windows that come with different labels": 1,
        "events that end after the recording, left out": 1,
        "events that are not 1 s long, left out": 1,
        "windows that wrap round at the recording's edge": 2,
        "events in recordings shorter than 5 s, left out": 1,
    }


def test_a_linked_recording_has_the_events_beside_the_link(
    eegmat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tree = [TUEV[0], TUEV[7], TUEV[8]]  # one of each split
    root, linked = tuh_trees.build(tmp_path / "tuev", tree, eegmat), tmp_path / "corrected"
    for recording in tree:
        other = linked / f"{recording.path}.edf"
        other.parent.mkdir(parents=True)
        other.symlink_to(root / f"{recording.path}.edf")
        rows = [line.rpartition(",") for line in (recording.rows or "").split()]
        other.with_suffix(".rec").write_text("\n".join(f"{place},{7 - int(label)}" for place, _, label in rows))
    made = convert(make_TUEV, linked, tmp_path / "a.hdf5", capsys)
    for split, columns in expected_samples(root, tree, 5).items():
        np.testing.assert_array_equal(made.samples[split]["label"], 5 - columns["label"])
