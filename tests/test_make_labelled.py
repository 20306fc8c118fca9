"""Manifests to labelled files: windows, classes, splits, regression; every bad row is named by line and column."""

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from dataset_maker import make_labelled
from errors import InputError
from maker_helpers import noise, raw_of, run_maker, save

PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)
HEADER = "path,start,stop,label,split,subject\n"
LONG = "path,start,stop,target_0,target_1,split,subject\n"
RATE = 200  # Hz


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


def make(folder: Path, *words: Any) -> int:
    """Run the maker on the folder's manifest."""
    return run_maker(make_labelled, "--manifest", folder / "m.csv", "--output", folder / "out.hdf5", *PLAIN, *words)


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
    shown = capsys.readouterr()
    assert "2 segments that reach beyond" in shown.out and "2 segments without room for a window" in shown.out
    assert "1 segments outside" in shown.out and "ends at 12 s" in shown.err
    assert "2 subjects are on more than one side: 1, 2" in shown.err and shown.err.count("single class") == 2
    wanted = {
        "train": [("a", s * 300, 0) for s in range(6)] + [("b", 400, 1), ("b", 700, 1)],
        "val": [("a", 201, 1)],
        "test": [("b", 1800, 0)],
    }
    with h5py.File(tmp_path / "out.hdf5") as file:
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
    assert make(tmp_path, "--classes", "left hip") == 2
    assert make(tmp_path, "--classes", "left hip", "right hip") == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file.attrs["task"] == "regression" and list(file.attrs["classes"]) == ["left hip", "right hip"]
        assert file["train"]["label"].dtype == np.float32 and file["train"]["eeg"].shape == (2, 2, 400)
        np.testing.assert_array_equal(file["train"]["label"][:], [[100, -0.25], [3, 0.5]])
        np.testing.assert_array_equal(file["val"]["label"][:], [[0.5, 1]])


@pytest.mark.parametrize(
    ("labels", "words", "classes"),
    [
        ("b a b", (), ["a", "b"]),
        ("10 9 -1.5", (), ["-1.5", "9", "10"]),
        ("10 9 x", (), ["10", "9", "x"]),
        ("b b", ("b", "a"), ["b", "a"]),
        ("b a", ("a", "b", "c"), ["a", "b", "c"]),  # c may come in other files, or be misspelt: a warning
        ("a a", (), "only label"),
        ("1 1.0 2", (), "two spellings"),
        ("a c", ("a", "b"), "line 3, column label: 'c'"),
        ("a b", ("a", "b", "a"), "twice"),
    ],
)
def test_classes_are_sorted_as_numbers_or_texts_or_as_wanted_or_refused(
    labels: str, words: tuple[str, ...], classes: Any, capsys: pytest.CaptureFixture
) -> None:
    column = pd.Series(labels.split(), index=range(2, 2 + len(labels.split())))  # by lines
    with pytest.raises(InputError, match=classes) if isinstance(classes, str) else nullcontext():
        assert make_labelled.choose_classes(column, words, "m.csv") == classes
    assert ("warning: --classes c:" in capsys.readouterr().err) == ("c" in words and "c" not in column.to_list())


@pytest.mark.parametrize(
    ("stops", "window", "stride", "wanted"),
    [
        ([5.1, 5.2], None, None, (4, 4)),
        ([np.inf], 16, 0.05, (16, 0.05)),
        ([4.9999999999], None, 1.0, (4, 1)),  # as a sum of decimals may be
        ([5.1, 6.0], None, None, "--window is needed, .* from 4 to 5 s"),
        ([5.0, np.inf], None, None, "from 4 to inf s"),
        ([5.0], 17, None, "--window 17"),
        ([5.0], None, 0.0, "--stride 0"),
    ],
)
def test_the_window_is_the_segments_whole_seconds_or_given_or_refused(
    stops: list[float], window: int | None, stride: float | None, wanted: Any
) -> None:
    table = pd.DataFrame({"start": 1.0, "stop": stops})
    with pytest.raises(InputError, match=wanted) if isinstance(wanted, str) else nullcontext():
        assert make_labelled.choose_window(table, window, stride) == wanted


def test_without_a_column_split_subjects_are_split_by_the_seed(tmp_path: Path) -> None:
    recordings(tmp_path, a=4)
    rows = [f"a_raw.fif,{start},{start + 1},{'xy'[start]},{who}" for who in range(10) for start in (0, 1)]
    manifest = write_manifest(tmp_path / "m.csv", *rows, header="path,start,stop,label,subject\n")
    names = {"manifest": manifest, "output": Path("x.hdf5"), "name": "X"}
    others = ("epochs", "bids", "window", "stride", "classes", "seed", "folds", "fold")
    flags: dict[str, Any] = dict.fromkeys((*others, *make_labelled.FLAGS_OF))
    sides = []
    for seed in (3, 3, 4):
        data_set, tasks = make_labelled.find_recordings(argparse.Namespace(**(flags | names | {"seed": seed})))
        assert data_set.made["seed"] == seed
        sides.append({task["subject"]: {split for *_, split in task["segments"]} for task in tasks})
    assert sides[0] == sides[1] != sides[2] and sides[0].keys() == set(map(str, range(10)))
    assert Counter(split for splits in sides[0].values() for split in splits) == {"train": 6, "val": 2, "test": 2}
    write_manifest(manifest, *rows[:4], header="path,start,stop,label,subject\n")
    with pytest.raises(InputError, match="2 subjects cannot be split"):
        make_labelled.find_recordings(argparse.Namespace(**(flags | names)))


def test_folds_test_every_subject_once_and_need_subjects_without_a_column_split(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recordings(tmp_path, a=4)
    rows = [f"a_raw.fif,{start},{start + 1},{'xy'[start]},{who}" for who in "bac" for start in (0, 1)]
    write_manifest(tmp_path / "m.csv", *rows, header="path,start,stop,label,subject\n")
    for words, reason in ((("--folds", 3), "go together"), (("--folds", 3, "--fold", 0, "--seed", 1), "--seed 1")):
        assert make(tmp_path, *words) == 2 and reason in capsys.readouterr().err
    for fold, (test, val, train) in enumerate(("abc", "bca", "cab")):
        (tmp_path / "out.hdf5").unlink(missing_ok=True)
        assert make(tmp_path, "--folds", 3, "--fold", fold) == 0
        with h5py.File(tmp_path / "out.hdf5") as file:
            subjects = {split: set(group["subject"].asstr()) for split, group in file.items()}
            assert subjects == {"test": {test}, "val": {val}, "train": {train}}
            assert json.loads(file.attrs["made"])["split"] == f"fold {fold} of 3"
    write_manifest(tmp_path / "m.csv", "a_raw.fif,0,1,x,train,1", "a_raw.fif,1,2,y,train,1")
    assert make(tmp_path, "--folds", 3, "--fold", 0) == 2 and "column split" in capsys.readouterr().err


def test_recordings_of_equal_names_stay_apart_and_failed_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "map.json").write_text('{"E1": "PZ"}')
    for folder in ("one", "two"):
        save(tmp_path / folder / "x_raw.fif", ["CZ", "E1", "E2"], seconds=2)
    save(tmp_path / "other_raw.fif", ["CZ"], seconds=2)
    (tmp_path / "broken.edf").write_bytes(b"0       Jane Roe")
    (tmp_path / "notes.txt").write_text("no recording")
    paths = ("one/x_raw.fif", "two/x_raw.fif", "other_raw.fif", "broken.edf", "notes.txt")
    rows = [f"{path},{at},{at + 1},{'ab'[at]},train,1" for path in paths for at in (0, 1)]
    write_manifest(tmp_path / "m.csv", *rows)
    assert make(tmp_path, "--rename", tmp_path / "map.json", "--drop", "E2") == 1
    with h5py.File(tmp_path / "out.hdf5") as file:
        one, again, two, too = file["train"]["recording"].asstr()
        assert one == again != two == too and {one[:-6], two[:-6]} == {"x_raw-"}
        assert list(file.attrs["chOrder"]) == ["CZ", "PZ"]
    errors = capsys.readouterr().err
    assert all(path in errors for path in paths[2:]) and "3 of 5 recordings were left out" in errors
    assert "Jane" not in errors


GOOD = "a.edf,0,1,x,train,1"
BAD = [  # rows, header, what the message says
    ("", HEADER, "no rows"),
    (GOOD.replace(",", ";"), HEADER.replace(",", ";"), "separated by commas"),
    (GOOD, HEADER.replace("label", "gr\udcf6\udcdfe"), "UTF-8"),
    (GOOD, HEADER.replace("label", "class"), "line 1: the column 'class' is unknown"),
    (GOOD, LONG.replace("target_1", "target_2"), "line 1: the column 'target_2' is unknown"),
    ("a.edf,0,1,x,train", HEADER.replace(",subject", ""), "line 1: the column 'subject' is missing"),
    ("a.edf,0,5,1,x,train,1", HEADER, "6 fields in line 2, saw 7"),
    (f"{GOOD}\n\n\nb.edf,0,1,x,train,1", HEADER, "line 5, column path: is 'b.edf'"),
    ('a.edf,"0,5",1,x,train,1', HEADER, "line 2, column start: is '0,5'; expected seconds"),
    ("a.edf,1,1,x,train,1", HEADER, "line 2, column stop: is '1'; expected more"),
    ("a.edf,0,1,NaN,train,1", HEADER, "no row has a label"),
    ("a.edf,0,1,x,train", HEADER, "line 2, column subject"),
    ("a.edf,0,1,1,x,train,1", LONG, "line 2, column target_1: is 'x'; expected a number"),
    (f"{GOOD}\n{GOOD}", HEADER, "line 3, column path: is 'a.edf'; the same seconds"),
    (f"{GOOD}\n{GOOD.replace('train', 'val')}", HEADER, "line 3, column split: is 'val'"),
]


@pytest.mark.parametrize(("rows", "header", "message"), BAD)
def test_a_bad_row_is_named_by_line_and_column(tmp_path: Path, rows: str, header: str, message: str) -> None:
    with pytest.raises(InputError, match="correct --manifest"):  # before it is there
        make_labelled.read_manifest(tmp_path / "m.csv")
    (tmp_path / "a.edf").touch()
    (tmp_path / "m.csv").write_bytes((header + rows).encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        make_labelled.read_manifest(tmp_path / "m.csv")
    assert message in str(error.value) and "m.csv" in str(error.value) and len(str(error.value)) < 500


def test_what_spreadsheets_write_is_read_and_text_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a, b.edf").touch()
    rows = '"a, b.edf", 0.5 ,,"left ""fist""", Train ,007\r\n,,,,,\r\n"a, b.edf", 0.5 ,,none, Train ,007\r\n'
    (tmp_path / "m.csv").write_bytes(f'\ufeff"path",start,stop,label,split,subject\r\n\r\n{rows}'.encode())
    table, targets = make_labelled.read_manifest(tmp_path / "m.csv")
    assert not targets and table.index.tolist() == [3, 5]
    assert table.loc[3].to_list() == [tmp_path / "a, b.edf", 0.5, np.inf, 'left "fist"', "train", "007"]
    assert table.loc[5, "label"] == "none"  # one event, two labels


@pytest.mark.parametrize(
    ("split", "words", "code", "message"),
    [("val", (), 1, "fewer than two labels in train"), ("train", ("--seed", 1), 2, "has a column split")],
)
def test_a_data_set_that_nobody_can_train_on_and_a_needless_seed_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, split: str, words: tuple[Any, ...], code: int, message: str
) -> None:
    recordings(tmp_path, a=3)
    write_manifest(tmp_path / "m.csv", "a_raw.fif,0,1,x,train,1", f"a_raw.fif,1,2,y,{split},1")
    assert make(tmp_path, *words) == code and message in capsys.readouterr().err
