"""TUAB and TUEV: channels, trees, events, and whole conversions of trees with faults of each kind."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from dataset_maker import make_TUAB, make_TUEV, tuh
from errors import InputError
from maker_helpers import edf, run_maker

GOLDEN = Path(__file__).parent / "golden" / "tuev_events.npz"
_NAMES = "FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T3 T4 T5 T6 A1 A2 FZ CZ PZ T1 T2"
ORDER = _NAMES.split()
CHANNELS = [f"EEG {name}-REF" for name in ORDER]
EXTRAS = ["EEG EKG1-REF", "IBI", "PHOTIC-REF", "EEG 128-REF", "PULSE RATE", "RESP ABDOMEN-REF"]


@dataclass(frozen=True)
class Recording:
    """A file of a tree. path: within it, without suffix; split: None where it must be left out, for `reason`."""

    path: str
    subject: str
    split: str | None
    label: int = 0
    seconds: int = 25
    fault: str = ""
    reason: str = ""
    rows: str | None = None  # of its .rec file; None: it has none
    windows: tuple[tuple[int, int], ...] = ()  # TUEV: first sample at 200 Hz and label of each

    def write(self, root: Path) -> None:
        """Write the EDF file, its channels in any order, and the `.rec` file."""
        names = np.random.default_rng(sum(self.path.encode())).permutation([*CHANNELS, *EXTRAS])
        labels = ["EEG FOO-REF" if name == "EEG T1-REF" and self.fault == "channels" else str(name) for name in names]
        texts = {"pmax": "nan"} if self.fault == "nan" else {}
        path = edf(root / f"{self.path}.edf", labels, rate=250, seconds=self.seconds, **texts)
        if self.fault == "cut":
            path.write_bytes(path.read_bytes()[:1256])
        if self.rows is not None:
            path.with_suffix(".rec").write_bytes(self.rows.encode())


CUT = {"fault": "cut", "reason": "cannot be read"}
OTHER = {"fault": "channels", "reason": "missing ['EEG T1-REF'], unexpected ['EEG FOO-REF']"}
NORMAL, ABNORMAL = "train/normal/01_tcp_ar", "train/abnormal/01_tcp_ar"
TUAB = [
    Recording(f"{NORMAL}/aaaaaaaa_s001_t000", "aaaaaaaa", "train", 0),
    Recording(f"{NORMAL}/aaaaaaab_s001_t000", "aaaaaaab", None, 0, **CUT),
    Recording(f"{NORMAL}/aaaaaaac_s001_t000", "aaaaaaac", "train", 0, seconds=31),
    Recording(f"{NORMAL}/aaaaaaac_s002_t001", "aaaaaaac", "train", 0, seconds=8),  # too short for a window
    Recording(f"{NORMAL}/aaaaaaad_s001_t000", "aaaaaaad", None, 0, fault="nan"),
    Recording(f"{NORMAL}/aaaaaaaf_s001_t000", "aaaaaaaf", "val", 0),  # the fifth of five normal subjects
    Recording(f"{ABNORMAL}/aaaaaaae_s001_t000", "aaaaaaae", None, 1, **OTHER),
    Recording(f"{ABNORMAL}/aaaaaaaf_s002_t000", "aaaaaaaf", "train", 1),  # the second of three abnormal subjects
    Recording(f"{ABNORMAL}/aaaaaaag_s001_t000", "aaaaaaag", "val", 1),
    Recording("eval/normal/01_tcp_ar/aaaaaaah_s001_t000", "aaaaaaah", "test", 0),
    Recording("eval/abnormal/01_tcp_ar/aaaaaaaa_s009_t000", "aaaaaaaa", "test", 1),  # as in train: kept and reported
]
# Rows are given in any order, per channel; blanks and both kinds of line ends occur in copies of the corpus.
REPEATED = "0,10.0000,11.0000,2\n1,10.0000,11.0000,2\n\n2,10.0000,11.0000,3\r\n5,4.3,5.3,6\n"
EDGES = "3,0.5,1.5,5\n3,24.0000,25.0000,6\n"  # of 25 s: the first window begins before, the second ends after it
SPOILT = "4,7.0,9.5,1\n4,24.5,25.5,1\n4,12.003,13.003,4\n"  # two seconds and a half; beyond the end; between samples
AT_REPEATED, AT_EDGES = ((1600, 1), (1600, 1), (1600, 2), (460, 5)), ((-300, 4), (4400, 5))
TUEV = [
    Recording("train/aaaaaaar/aaaaaaar_00000001", "aaaaaaar", "train", rows=REPEATED, windows=AT_REPEATED),
    Recording("train/aaaaaaar/aaaaaaar_00000002", "aaaaaaar", "train", rows=SPOILT, windows=((2001, 3),)),
    Recording("train/aaaaaaas/aaaaaaas_00000001", "aaaaaaas", None, rows=REPEATED, **CUT),
    Recording("train/aaaaaaat/aaaaaaat_00000001", "aaaaaaat", None, rows=REPEATED, **OTHER),
    Recording("train/aaaaaaav/aaaaaaav_00000001", "aaaaaaav", None, reason=".rec: cannot be read"),
    Recording("train/aaaaaaav/aaaaaaav_00000002", "aaaaaaav", None, rows="1,2.0,3.0,1\n1,2.0,3.0,7\n", reason="line 2"),
    Recording("train/aaaaaaav/aaaaaaav_00000003", "aaaaaaav", "val", rows=EDGES, windows=AT_EDGES),
    Recording("eval/000/bckg_000_a_", "000", "test", rows="0,5,6,6\n", windows=((600, 5),)),
    Recording("eval/001/spsw_001_a_", "001", "test", seconds=4, rows="0,1.0,2.0,1\n"),  # shorter than a window
]


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


# Channels


def test_the_23_channels_pass_in_any_order_case_and_spacing_beside_every_known_extra() -> None:
    tuh.check_channels([*CHANNELS[::-1], *EXTRAS], "x")
    others = ["eeg 64-ref", "EEG PG2-REF", "Resp  Abdomen-REF"]
    tuh.check_channels([f"  {name.lower()} " for name in CHANNELS] + others, "x")
    assert list(tuh.ELECTRODES) == ORDER and len(tuh.EXTRAS) == 8 + 14 + 109


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (CHANNELS[1:], "missing ['EEG FP1-REF']"),
        ([*CHANNELS, "EEG 19-REF"], "unexpected ['EEG 19-REF']"),
        (["EEG FP1-LE", *CHANNELS[1:]], "missing ['EEG FP1-REF'], unexpected ['EEG FP1-LE']"),
        ([f"X{index}" for index in range(9000)], "unexpected ['X0'"),
    ],
)
def test_any_other_set_of_channels_is_refused_and_named(names: list[str], text: str) -> None:
    message = refused(tuh.check_channels, names, "a.edf")
    assert message.startswith("a.edf: ") and text in message and len(message) < 800


# Events


def test_windows_round_events_are_the_golden_ones() -> None:
    golden = np.load(GOLDEN)
    signal = np.random.default_rng(int(golden["signal_seed"])).standard_normal(golden["signal_shape"])
    windowed = tuh.event_windows(golden["events"], signal.shape[1], float(golden["sampling_rate"]))
    windows = np.stack([signal.take(np.arange(start, start + 1000), axis=1, mode="wrap") for start in windowed.starts])
    np.testing.assert_array_equal(windows[:, 0], golden["window_first_row"])
    np.testing.assert_array_equal(windows[:, -1], golden["window_last_row"])
    np.testing.assert_array_equal(windowed.labels, golden["label"][:, 0] - 1)


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
    windowed = tuh.event_windows(np.array(rows, float), 5000, 200.0)
    assert windowed.starts.tolist() == [1600, 1600, 1600, 2000, 2000, -300, 4400] and windowed.starts.dtype == np.int64
    assert windowed.labels.tolist() == [1, 1, 2, 0, 0, 5, 5]
    assert windowed.notes == {
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


@pytest.mark.parametrize("line", ["0,1,2", "0,1,2,Jane Roe", "-1,1,2,3", "0,-1,0,3", "0,1,inf,3", "0,1,2,0"])
def test_a_row_that_is_no_event_is_refused_with_its_line_and_nothing_of_its_text(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_text(f"0,1,2,3\n\n{line}\n")
    message = refused(tuh.read_events, tmp_path / "a.rec")
    assert message.startswith(f"{tmp_path / 'a.rec'}, line 3: ") and "Roe" not in message


# Trees


def touch(root: Path, *names: str) -> Path:
    """Make empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


CORPUS = [f"{part}/{name}/01_tcp_ar/s_{part}{name}.edf" for part in tuh.PARTS for name in tuh.TUAB.classes]


def test_the_root_or_its_edf_is_found_and_any_other_folder_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"v3.0.1/edf/{name}" for name in CORPUS)) / "v3.0.1"
    assert tuh.find_root(root, make_TUAB.TREE) == tuh.find_root(root / "edf", make_TUAB.TREE) == root / "edf"
    for folder in (tmp_path, tmp_path / "nowhere"):
        message = refused(tuh.find_root, folder, make_TUAB.TREE)
        assert str(folder) in message and make_TUAB.TREE in message


def test_a_class_without_recordings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    touch(tmp_path / "in", *CORPUS[1:], "train/normal/x.txt", "train/abnormal/03_tcp_ar_a/s_x.edf")
    words = ["--root", tmp_path / "in", "--output", tmp_path / "out" / "a.hdf5"]
    assert run_maker(make_TUAB, *words) == 1 and not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert str((tmp_path / "in" / CORPUS[0]).parent) in line and "--root" in line


def arguments(root: Path, **options: Any) -> argparse.Namespace:
    return argparse.Namespace(root=root, **{"split": "published", "seed": 0} | options)


def test_version_2_of_tuab_is_read_from_its_deeper_folders(tmp_path: Path) -> None:
    names = [f"{part}/{name}" for part in ("train", "eval") for name in ("normal", "abnormal")]
    deeper = "01_tcp_ar/076/{0}/s003_2012_10_14/{0}_t000.edf"
    touch(tmp_path, *(f"{name}/{deeper.format(f'0000767{n}')}" for n, name in enumerate(names)), "train/normal/x.txt")
    _, tasks = make_TUAB.find_recordings(arguments(tmp_path))
    assert [(task["subject"], task["split"], task["label"]) for task in tasks] == [
        *(("00007670", "val", 0), ("00007671", "val", 1), ("00007672", "test", 0), ("00007673", "test", 1)),
    ]


def test_the_disjoint_split_of_tuab_leaves_no_subject_on_two_sides(tmp_path: Path) -> None:
    names = [f"train/normal/01_tcp_ar/s{index:02d}_t0.edf" for index in range(15)]
    names += [f"train/abnormal/01_tcp_ar/s{index:02d}_t0.edf" for index in range(5, 20)]
    touch(tmp_path, *names, *CORPUS[2:])

    def sides(**options: Any) -> list[set[str]]:
        _, tasks = make_TUAB.find_recordings(arguments(tmp_path, **options))
        return [{task["subject"] for task in tasks if task["split"] == split} for split in ("train", "val")]

    train, val = sides()
    assert train & val == {"s12", "s13", "s14"}  # normal subjects are cut behind s11, abnormal ones behind s16
    train, val = sides(split="disjoint")
    assert len(train) == 16 and len(val) == 4 and not train & val and val != {"s16", "s17", "s18", "s19"}
    assert [train, val] == sides(split="disjoint") != sides(split="disjoint", seed=1)


# Conversions


def expected_samples(root: Path, tree: list[Recording], seconds: int) -> dict[str, dict[str, np.ndarray]]:
    """Return what must be in the file: MNE alone filters, the tree says where windows lie."""
    columns: dict[str, dict[str, list[Any]]] = {}
    for recording in tree:
        if recording.split is None:
            continue
        raw = mne.io.read_raw_edf(root / f"{recording.path}.edf", preload=True, verbose="error").pick(CHANNELS)
        raw.filter(0.1, 75, verbose="error").notch_filter(50, verbose="error").resample(200, verbose="error")
        consecutive = [(start * 2000, recording.label) for start in range(recording.seconds // 10)]
        for start, label in consecutive if recording.rows is None else recording.windows:
            window = raw.get_data().take(np.arange(start, start + seconds * 200), axis=1, mode="wrap") * 1e6
            sample = {"eeg": window, "label": label, "recording": Path(recording.path).name.rstrip("_")}
            for key, value in (sample | {"subject": recording.subject}).items():
                columns.setdefault(recording.split, {}).setdefault(key, []).append(value)
    return {split: {key: np.array(values) for key, values in each.items()} for split, each in columns.items()}


TUAB_REPORT = {
    "task": "binary",
    "classes": ["normal", "abnormal"],
    "counts": {"recordings shorter than a window of 10 s": 1},
    "subjects_on_two_sides": {"aaaaaaaa": ["train", "test"], "aaaaaaaf": ["train", "val"]},
}
TUEV_REPORT = {
    "task": "multiclass",
    "classes": ["SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG"],
    "subjects_on_two_sides": {},
}


@pytest.mark.parametrize(
    ("maker", "tree", "seconds", "facts"),
    [(make_TUAB, TUAB, 10, TUAB_REPORT), (make_TUEV, TUEV, 5, TUEV_REPORT)],
)
def test_a_tree_becomes_exactly_the_expected_windows_and_faults_cost_their_recordings(
    maker: ModuleType, tree: list[Recording], seconds: int, facts: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    for recording in tree:
        recording.write(tmp_path / "in")
    assert run_maker(maker, "--root", tmp_path / "in", "--output", tmp_path / "a.hdf5") == 1
    expected = expected_samples(tmp_path / "in", tree, seconds)
    report = json.loads((tmp_path / "a.report.json").read_text())
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert list(file.attrs["chOrder"]) == ORDER and file.attrs["rsFreq"] == 200
        assert file.attrs["task"] == facts["task"] and list(file.attrs["classes"]) == facts["classes"]
        assert json.loads(file.attrs["made"])["split"] == "published"
        assert file.keys() == expected.keys() == {"train", "val", "test"}
        for split, columns in expected.items():
            group = file[split]
            assert group["eeg"].dtype == np.float32 and group["label"].dtype == np.int64
            np.testing.assert_allclose(group["eeg"], columns["eeg"], rtol=1e-6, atol=1e-3)
            np.testing.assert_array_equal(group["label"], columns["label"])
            for key in ("recording", "subject"):
                np.testing.assert_array_equal(group[key].asstr()[:], columns[key])
            assert group["valid"].shape == (len(columns["label"]), seconds) and group["valid"][:].all()
            assert report["splits"][split]["samples"] == len(columns["label"])
    printed = "".join(capsys.readouterr())
    faults = {str(tmp_path / f"in/{recording.path}.edf"): recording.reason for recording in tree if not recording.split}
    left_out = {entry["path"]: entry["reason"] for entry in report["left_out"]}
    assert left_out.keys() == faults.keys()
    for path, reason in faults.items():
        assert reason in left_out[path] and path.removesuffix(".edf") in printed  # or the .rec file beside it
    assert {key: report[key] for key in facts} == facts and all(
        name in printed for name in facts["subjects_on_two_sides"]
    )
    assert {name for names in report["dropped_channels"].values() for name in names} == set(EXTRAS)
