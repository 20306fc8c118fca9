"""Manifests to labelled files: windows, classes, splits, regression; every bad row is named by line and column."""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from dataset_maker import make_labelled, manifest
from errors import InputError, UsageError
from maker_helpers import noise, raw_of, run_maker, save

PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0, "--jobs", 1)
HEADER = "path,start,stop,label,split,subject\n"
RATE = 200  # Hz

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
(SNIPPET,) = [code for code in README.split("```")[1::2] if code.startswith("python\nimport csv\nimport mne\n")]
SNIPPET = SNIPPET.removeprefix("python\n")


def write_manifest(path: Path, *rows: str, header: str = HEADER) -> Path:
    """Write a manifest; rows without line ends."""
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def recordings(folder: Path, **seconds: float) -> dict[str, np.ndarray]:
    """Write FIF recordings of two electrodes at 200 Hz; return name -> (2, time) in uV."""
    signals = {}
    for seed, (name, length) in enumerate(seconds.items()):
        signals[name] = noise(2, length, RATE, seed)
        raw_of(["C3", "C4"], RATE, signals[name]).save(folder / f"{name}_raw.fif", fmt="double", verbose="error")
    return signals


def make(folder: Path, *words: Any, filters: tuple[Any, ...] = PLAIN) -> int:
    """Run the maker on the folder's manifest."""
    return run_maker(make_labelled, "--manifest", folder / "m.csv", "--output", folder / "out.hdf5", *filters, *words)


def test_the_readme_snippet_makes_motor_imagery(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "eegmmidb").symlink_to(shared / "eegmmidb")
    monkeypatch.chdir(tmp_path)
    exec(SNIPPET, {})
    events: dict[str, list[tuple[float, str]]] = {}  # by an EDF+ reader of our own: run -> onset and name
    for run, split in (("04", "train"), ("08", "val"), ("12", "test")):
        text = (shared / "eegmmidb" / f"S001R{run}.edf").read_bytes()
        found = [part.split(b"\x14")[:2] for part in text.replace(b"\x00", b"\n").splitlines() if b"\x14T" in part]
        times = [(float(time.split(b"\x15")[0]), name.decode()) for time, name in found]
        events[split] = [(time, name) for time, name in times if name in ("T1", "T2")]
    words = ("--manifest", "imagery.csv", "--output", "data/Imagery.hdf5", "--notch", 60, "--jobs", 2)
    assert run_maker(make_labelled, *words) == 0
    with h5py.File("data/Imagery.hdf5") as file:
        assert list(file.attrs["classes"]) == ["left fist", "right fist"] and file.attrs["task"] == "binary"
        assert len(file.attrs["chOrder"]) == 64 and file.attrs["name"] == "Imagery"
        for split, wanted in events.items():
            group = file[split]
            assert group["eeg"].shape == (len(wanted), 64, 800)  # 4.1 and 4.2 s each: one window of 4 s
            assert group["label"][:].tolist() == [int(name == "T2") for _, name in wanted]
            assert set(group["subject"].asstr()) == {"S001"}
        run = mne.io.read_raw_edf(shared / "eegmmidb" / "S001R04.edf", preload=True, verbose="error")
        run.filter(0.1, 75, verbose="error").notch_filter(60, verbose="error").resample(200, verbose="error")
        for eeg, (onset, _) in zip(file["train"]["eeg"], events["train"], strict=True):
            first = int(np.ceil(round(onset * 200, 6)))
            np.testing.assert_allclose(eeg, run.get_data()[:, first : first + 800] * 1e6, atol=1e-3)


def test_segments_give_windows_by_stride_with_their_own_splits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    signals = recordings(tmp_path, a=10, b=12)
    write_manifest(
        tmp_path / "m.csv",
        "a_raw.fif,,,left,train,1",  # 10 s: windows at 0, 1.5, ..., 7.5
        "./a_raw.fif,1.0025,3.0025,right,val,1",  # between samples: begins at 201
        "b_raw.fif,2,6.9,right,train,2",  # at 2, 3.5 (5 would end at 7)
        "b_raw.fif,11,20,left,test,2",  # beyond the end: 11 to 12 is too short
        "b_raw.fif,9,20,left,test,2",  # cut at 12: windows at 9
        "b_raw.fif,12,14,left,test,2",  # begins beyond
        "b_raw.fif,1,2.9,left,test,3",  # shorter than a window
    )
    assert make(tmp_path, "--window", 2, "--stride", 1.5, "--name", "Try") == 0
    said = capsys.readouterr()
    for count in ("1 segments that begin beyond", "2 segments that reach beyond", "2 segments shorter than a window"):
        assert count in said.out
    doubts = ["val has a single class", "test has a single class", "2 subjects are on more than one side: 1, 2"]
    assert said.err.splitlines() == [f"warning: {doubt}" for doubt in doubts]  # of jobs, too, warnings go there
    with h5py.File(tmp_path / "out.hdf5") as file:
        wanted = {
            "train": [("a", s * 300, 0) for s in range(6)] + [("b", 400, 1), ("b", 700, 1)],
            "val": [("a", 201, 1)],
            "test": [("b", 1800, 0)],
        }
        assert file.attrs["name"] == "Try" and file.keys() == wanted.keys()
        for split, rows in wanted.items():
            group = file[split]
            assert group["label"][:].tolist() == [label for *_, label in rows]
            eeg = np.stack([signals[name][:, start : start + 400] for name, start, _ in rows])
            np.testing.assert_allclose(group["eeg"][:], eeg, atol=1e-3)
            assert list(group["subject"].asstr()) == [{"a": "1", "b": "2"}[name] for name, *_ in rows]
        made = json.loads(file.attrs["made"])
        assert made["source"] == "manifest" and made["split"] == "the manifest's" and made["seed"] is None


def test_regression_keeps_targets_in_order_and_names_them(tmp_path: Path) -> None:
    recordings(tmp_path, a=8)
    header = "subject,split,target_1,target_0,stop,start,path\n"  # in any order
    rows = ["7,train,-0.25,1e2,2,0,a_raw.fif", "7,train,0.5,3,4,2,a_raw.fif", "7,val,1,.5,8,6,a_raw.fif"]
    write_manifest(tmp_path / "m.csv", *rows, header=header)
    assert make(tmp_path, "--classes", "left hip", "right hip") == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file.attrs["task"] == "regression" and list(file.attrs["classes"]) == ["left hip", "right hip"]
        assert file["train"]["label"].dtype == np.float32 and file["train"]["eeg"].shape == (2, 2, 400)
        np.testing.assert_array_equal(file["train"]["label"][:], [[100, -0.25], [3, 0.5]])
        np.testing.assert_array_equal(file["val"]["label"][:], [[0.5, 1]])


@pytest.mark.parametrize(
    ("labels", "wanted", "classes"),
    [
        (["b", "a", "b"], None, ["a", "b"]),
        (["10", "9", "-1.5"], None, ["-1.5", "9", "10"]),
        (["10", "9", "x"], None, ["10", "9", "x"]),
        (["b", "a"], ["b", "a"], ["b", "a"]),
        (["b", "b"], ["b", "a"], ["b", "a"]),
    ],
)
def test_classes_are_sorted_as_numbers_or_texts_or_as_wanted(
    labels: list[str], wanted: list[str] | None, classes: list[str]
) -> None:
    segments = [manifest.Segment(2, Path("a"), 0, None, label, "train", "1") for label in labels]
    assert make_labelled.choose_classes(segments, wanted, "m.csv") == classes


@pytest.mark.parametrize(
    ("labels", "wanted", "message"),
    [
        (["1", "1.0", "2"], None, "one number in two spellings"),
        (["a", "a"], None, "the only label is 'a'"),
        (["a", "c"], ["a", "b"], "line 3, column label: 'c' is not among --classes a b"),
        (["a", "b"], ["a", "b", "a"], "names one twice"),
    ],
)
def test_classes_that_cannot_be_are_refused(labels: list[str], wanted: list[str] | None, message: str) -> None:
    segments = [manifest.Segment(2 + i, Path("a"), 0, None, label, "train", "1") for i, label in enumerate(labels)]
    with pytest.raises(InputError, match=message):
        make_labelled.choose_classes(segments, wanted, "m.csv")


@pytest.mark.parametrize(
    ("lengths", "window", "stride", "found"),
    [
        ([4.1, 4.2], None, None, (4, 4)),
        ([4.1, 5.0], 2, None, (2, 2)),
        ([None], 16, 0.05, (16, 0.05)),
        ([3.9999999999], None, 1.0, (4, 1)),  # as a sum of decimals may be
    ],
)
def test_the_window_is_the_segments_whole_seconds_or_given(
    lengths: list[float | None], window: int | None, stride: float | None, found: tuple[int, float]
) -> None:
    segments = [manifest.Segment(2, Path("a"), 1, n and 1 + n, "x", "train", "1") for n in lengths]
    assert make_labelled.choose_window(segments, window, stride) == found


@pytest.mark.parametrize(
    ("lengths", "window", "stride", "message"),
    [
        ([4.1, 5.0], None, None, "--window is needed, 1 to 16 s: the segments last from 4.1 to 5 s"),
        ([4.0, None], None, None, "the segments last from 4 to the end"),
        ([20.0], None, None, "--window is needed"),
        ([0.5], None, None, "--window is needed"),
        ([4.0], 17, None, "--window 17"),
        ([4.0], 0, None, "--window 0"),
        ([4.0], None, 0.0, "--stride 0"),
        ([4.0], None, float("nan"), "--stride nan"),
        ([4.0], None, float("inf"), "--stride inf"),
    ],
)
def test_windows_and_strides_that_cannot_be_are_refused(
    lengths: list[float | None], window: int | None, stride: float | None, message: str
) -> None:
    segments = [manifest.Segment(2, Path("a"), 1, n and 1 + n, "x", "train", "1") for n in lengths]
    with pytest.raises(UsageError, match=message):
        make_labelled.choose_window(segments, window, stride)


def test_without_a_column_split_subjects_are_split_by_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recordings(tmp_path, a=4)
    rows = [f"a_raw.fif,{start},{start + 1},{'xy'[start % 2]},{who}" for who in range(10) for start in range(4)]
    write_manifest(tmp_path / "m.csv", *rows, header="path,start,stop,label,subject\n")
    sides = []
    for seed in (3, 3, 4):
        assert make(tmp_path, "--seed", seed) == 0
        with h5py.File(tmp_path / "out.hdf5") as file:
            sides.append({split: set(group["subject"].asstr()) for split, group in file.items()})
            assert json.loads(file.attrs["made"])["seed"] == seed
        (tmp_path / "out.hdf5").unlink()
    assert sides[0] == sides[1] != sides[2]
    assert {split: len(who) for split, who in sides[0].items()} == {"train": 6, "val": 2, "test": 2}
    assert set.union(*sides[0].values()) == {str(who) for who in range(10)}
    write_manifest(tmp_path / "m.csv", *rows[:8], header="path,start,stop,label,subject\n")
    assert make(tmp_path) == 1 and "2 subjects cannot be split" in capsys.readouterr().err


def test_recordings_of_equal_names_stay_apart_and_failed_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for folder in ("one", "two"):
        save(tmp_path / folder / "x_raw.fif", ["CZ", "PZ"], seconds=2)
    save(tmp_path / "other_raw.fif", ["CZ"], seconds=2)
    (tmp_path / "broken.edf").write_bytes(b"0       Jane Roe")
    (tmp_path / "notes.txt").write_text("no recording")
    paths = ("one/x_raw.fif", "two/x_raw.fif", "other_raw.fif", "broken.edf", "notes.txt")
    rows = [f"{path},{at},{at + 1},{'ab'[at]},train,1" for path in paths for at in (0, 1)]
    write_manifest(tmp_path / "m.csv", *rows)
    assert make(tmp_path) == 1
    with h5py.File(tmp_path / "out.hdf5") as file:
        one, again, two, too = file["train"]["recording"].asstr()
        assert one == again != two == too and {one[:-6], two[:-6]} == {"x_raw-"}
        assert list(file.attrs["chOrder"]) == ["CZ", "PZ"]
    errors = capsys.readouterr().err
    assert all(path in errors for path in paths[2:]) and "3 of 5 recordings were left out" in errors
    assert "Jane" not in errors


def test_rename_and_drop_are_obeyed(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["E1", "E2", "CZ"], seconds=4)
    (tmp_path / "map.json").write_text('{"E1": "C3"}')
    write_manifest(tmp_path / "m.csv", "a_raw.fif,0,1,x,train,1", "a_raw.fif,1,2,y,train,1")
    assert make(tmp_path, "--rename", tmp_path / "map.json", "--drop", "E2") == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert list(file.attrs["chOrder"]) == ["C3", "CZ"]


GOOD = "a.edf,0,1,x,train,1"
LONG = "path,start,stop,target_0,target_1,split,subject\n"
BAD = [
    ("", HEADER, "m.csv: has no rows below its header"),
    ("", "", "line 1: unknown column ''"),
    (GOOD, HEADER.replace(",", ";"), "line 1: columns must be separated by commas"),
    (
        GOOD,
        HEADER.replace("label", "class"),
        "line 1: unknown column 'class'; allowed: path, start, stop, label, split",
    ),
    (GOOD, HEADER.replace("label", "split"), "line 1: the column 'split' is there twice"),
    ("a.edf,0,1,train,1", HEADER.replace("label,", ""), "line 1: neither label nor target_0"),
    ("a.edf,0,1,x,1,train,1", LONG.replace("target_0", "label").replace("1", "0"), "line 1: both label and target_0"),
    ("a.edf,0,1,1,1,train,1", LONG.replace("target_1", "target_2"), "line 1: unknown column 'target_2'"),
    ("0,1,x,train,1", HEADER.replace("path,", ""), "line 1: the column path is missing"),
    ("a.edf,0,1,x,train", HEADER.replace(",subject", ""), "subject is missing; without it nobody can tell"),
    (GOOD + ",2", HEADER, "line 2: 7 values for 6 columns"),
    ("a.edf,0,x,train,1", HEADER, "line 2: 5 values for 6 columns"),
    (f"{GOOD}\n\n\nb.edf,0,1,x,train,1", HEADER, "line 5, column path: is 'b.edf'; there is no such file"),
    (",0,1,x,train,1", HEADER, "line 2, column path: is empty"),
    ("a.edf,-1,1,x,train,1", HEADER, "line 2, column start: is '-1'; expected seconds"),
    ("a.edf,nan,1,x,train,1", HEADER, "line 2, column start: is 'nan'"),
    ("a.edf,1_0,11,x,train,1", HEADER, "line 2, column start: is '1_0'"),
    ('a.edf,"0,5",1,x,train,1', HEADER, "line 2, column start: is '0,5'"),
    ("a.edf,0,1e999,x,train,1", HEADER, "line 2, column stop: is '1e999'"),
    ("a.edf,1e307,,x,train,1", HEADER, "line 2, column start: is '1e307'"),  # 200 times that is infinite
    ("a.edf,1,1,x,train,1", HEADER, "line 2, column stop: is '1'; expected more than the start, 1"),
    ("a.edf,,0,x,train,1", HEADER, "line 2, column stop: is '0'; expected more than the start, 0"),
    ("a.edf,0,1,,train,1", HEADER, "line 2, column label: is empty; expected a class"),
    ("a.edf,0,1,NaN,train,1", HEADER, "line 2, column label: is 'NaN'"),
    ("a.edf,0,1,x,dev,1", HEADER, "line 2, column split: is 'dev'; allowed: train, val, test"),
    ("a.edf,0,1,x,,1", HEADER, "line 2, column split: is empty; allowed: train, val, test"),
    ("a.edf,0,1,x,train,", HEADER, "line 2, column subject: is empty"),
    ("a.edf,0,1,x\x01,train,1", HEADER, "line 2: a control character"),
    ("a.edf,0,1,x\x00,train,1", HEADER, "line 2: "),
    ('a.edf,0,1,"x"y,train,1', HEADER, "line 2: no CSV"),
    ('a.edf,0,1,"x,train,1', HEADER, "no CSV"),
    (f"a.edf,0,1,{'x' * 200_000},train,1", HEADER, "line 2: no CSV"),
    (f"{'x' * 5000},0,1,x,train,1", HEADER, "line 2, column path: is 'xxx"),
    ("a.edf,0,1,1,nan,train,1", LONG, "line 2, column target_1: is 'nan'; expected a number"),
    ("a.edf,0,1,inf,1,train,1", LONG, "line 2, column target_0: is 'inf'"),
    ("a.edf,0,1,1e39,1,train,1", LONG, "line 2, column target_0: is '1e39'"),
    ("a.edf,0,1,1,,train,1", LONG, "line 2, column target_1: is empty"),
]


@pytest.mark.parametrize(("rows", "header", "message"), BAD, ids=lambda text: text[:50])
def test_a_bad_row_is_named_by_line_and_column(tmp_path: Path, rows: str, header: str, message: str) -> None:
    (tmp_path / "a.edf").touch()
    (tmp_path / "m.csv").write_text(header + rows)
    with pytest.raises(InputError) as error:
        manifest.read_manifest(tmp_path / "m.csv")
    assert message in str(error.value) and len(str(error.value)) < 500


@pytest.mark.timeout(60)  # every name compared with every other takes minutes
def test_a_header_of_very_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    columns = ",".join(f"target_{number}" for number in range(200_000))
    (tmp_path / "m.csv").write_text(f"path,start,stop,label,{columns},subject\n")
    with pytest.raises(InputError, match="both label and target_0"):
        manifest.read_manifest(tmp_path / "m.csv")


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "a, b.edf").touch()
    text = (
        '\ufeff"path",start,stop,label,split,subject\r\n\r\n"a, b.edf", 0.5 ,,"left ""fist""", Train ,S1\r\n,,,,,\r\n'
    )
    (tmp_path / "m.csv").write_bytes(text.encode())
    segments, targets = manifest.read_manifest(tmp_path / "m.csv")
    assert not targets
    assert segments == [manifest.Segment(3, tmp_path / "a, b.edf", 0.5, None, 'left "fist"', "train", "S1")]


def test_a_manifest_that_is_missing_no_text_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        manifest.read_manifest(tmp_path / "m.csv")
    with pytest.raises(InputError, match="cannot be read"):
        manifest.read_manifest(tmp_path)
    (tmp_path / "m.csv").write_bytes("path,größe".encode("latin-1"))
    with pytest.raises(InputError, match="no UTF-8 text"):
        manifest.read_manifest(tmp_path / "m.csv")
    monkeypatch.setattr(manifest, "MAX_BYTES", 5)
    with pytest.raises(InputError, match="too large for a manifest"):
        manifest.read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("rows", "words", "code", "message"),
    [
        (["a,0,1,x,val,1", "a,1,2,y,val,1"], (), 1, "nothing to train on"),
        (["a,0,1,x,train,1", "a,1,2,y,val,1"], (), 1, "fewer than two labels in train"),
        (["a,0,1,x,train,1", "a,1,2,y,train,1"], ("--seed", 1), 2, "has a column split"),
        (["a,0,1,x,train,1", "a,1,2,y,train,1"], ("--window", 20), 2, "must be from 1 to 16"),
        (["a,9,10,x,train,1", "a,9,10,y,train,1"], (), 1, "no recording gives a sample"),
        (["a,0,1,x,train,1", "a,9,10,y,train,1"], (), 1, "all 1 training samples are of one class, x"),
    ],
)
def test_a_data_set_that_nobody_can_train_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: list[str], words: tuple[Any, ...], code: int, message: str
) -> None:
    recordings(tmp_path, a=3)
    write_manifest(tmp_path / "m.csv", *[row.replace("a,", "a_raw.fif,", 1) for row in rows])
    assert make(tmp_path, *words) == code
    assert message in capsys.readouterr().err and not (tmp_path / "out.hdf5").exists()


def test_names_for_targets_must_be_as_many_as_targets(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.edf").touch()
    write_manifest(tmp_path / "m.csv", "a.edf,0,1,1,2,train,1", header=LONG)
    assert make(tmp_path, "--classes", "hip") == 2
    assert "1 names for the 2 targets" in capsys.readouterr().err


def test_mutated_manifests_end_in_rows_that_csv_reads_too_or_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.edf").touch()
    generator = np.random.default_rng(0)
    whole = (
        HEADER
        + "".join(f'a.edf,{n},{n + 1}.5,"left, {n % 2}",{"train" if n % 3 else "val"},S{n}\r\n' for n in range(6))
    ).encode()
    read = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            data[place] = generator.choice([generator.integers(0, 256), *b'",;.\r\n\x00-e9'])
        del data[generator.integers(len(data) // 2, 2 * len(data)) :]
        (tmp_path / "m.csv").write_bytes(data)
        try:
            segments, targets = manifest.read_manifest(tmp_path / "m.csv")
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 600
            continue
        read += 1
        with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if any(field.strip() for field in row)]
        assert [s.subject for s in segments] == [row[5].strip() for row in rows[1:]] and not targets
    assert read > 20


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a_raw.fif,0,1,x,train,1", "line 3: the same seconds of a_raw.fif as in line 2, with its label; delete one"),
        ("a_raw.fif,0,1,y,test,1", "line 3: the same seconds of a_raw.fif as in line 2, in another split; delete one"),
        ("a_raw.fif,0,1,x,val,2", "line 3: the same seconds of a_raw.fif as in line 2, in another split; delete one"),
    ],
)
def test_the_same_seconds_twice_are_refused_where_they_would_count_twice_or_leak(
    row: str, says: str, tmp_path: Path
) -> None:
    recordings(tmp_path, a=2)
    with pytest.raises(InputError, match=says):
        manifest.read_manifest(write_manifest(tmp_path / "m.csv", "a_raw.fif,0,1,x,train,1", row))
    two = write_manifest(tmp_path / "m.csv", "a_raw.fif,0,1,x,train,1", "a_raw.fif,0,1,none,train,1")
    assert len(manifest.read_manifest(two)[0]) == 2  # one event, two labels
