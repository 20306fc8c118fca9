"""Labelled files and folders of shards: what belongs together, which samples they hold, and absurd files."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_helpers import TRIO, only_line, signal, write_labelled
from dataset_maker.making import published_counts
from eeg_data.hdf5 import close_files
from eeg_data.labelled_files import DATASETS, SPLITS, labelled_path, read_labelled, read_samples, split_warnings
from errors import InputError


def two_classes(n: int, seed: int = 0, seconds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    return signal(n, 3, 200 * seconds, seed=seed), np.arange(n, dtype=np.int64) % 2


def shard(path: Path, *, splits: Any = None, name: str = "tasks", **options: Any) -> Path:
    """Write a shard of the set `tasks`."""
    write_labelled(path, {"train": two_classes(3)} if splits is None else splits, **options)
    with h5py.File(path, "r+") as file:
        file.attrs["name"] = name
    return path


@pytest.mark.parametrize(
    ("task", "classes", "labels", "outputs"),
    [
        ("binary", ("normal", "abnormal"), [0, 1], 1),
        ("multiclass", ("a", "b", "c", "d", "e", "f"), [5, 0], 6),
        ("regression", ("valence", "arousal"), [[0.5, 1], [2, -3.0]], 2),
    ],
)
def test_a_file_describes_itself(tmp_path: Path, task: str, classes: tuple, labels: list, outputs: int) -> None:
    path = write_labelled(tmp_path / "own.hdf5", {"train": (two_classes(2)[0], labels)}, task=task, classes=classes)
    file = read_labelled(path)
    assert (file.outputs, file.task, file.classes) == (outputs, task, classes)
    assert (file.name, file.montage, file.splits, file.seconds) == ("own", TRIO, ("train",), 2)
    assert (file.path, file.shards) == (path, (path,))
    read = read_samples(file, "train").labels
    assert read.dtype == (np.float32 if task == "regression" else np.int64) and read.tolist() == labels


def test_a_folder_is_the_set_of_its_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shard(folder / "b.h5", splits={"val": two_classes(2, 1), "train": two_classes(4, 2)})
    shard(folder / "a.hdf5", splits={"train": two_classes(3, 3)})
    shard(folder / "c" / "a.hdf5", splits={"test": two_classes(1, 4)})
    shard(folder / "d.hdf5", splits={}, name="empty")  # it fits any
    shard(folder / ".b.hdf5.making" / "x.hdf5", name="other")
    file = read_labelled(folder)
    assert (file.name, file.path, file.splits, file.montage, file.seconds) == ("tasks", folder, SPLITS, TRIO, 2)
    assert [path.relative_to(folder).as_posix() for path in file.shards] == ["a.hdf5", "b.h5", "c/a.hdf5"]
    train = read_samples(file, "train")
    assert (len(train), [len(read_samples(file, split)) for split in SPLITS[1:]]) == (7, [2, 1])
    expected = np.concatenate([two_classes(3, 3)[0], two_classes(4, 2)[0]])
    for sample in range(7):
        np.testing.assert_array_equal(train.read(sample), expected[sample])
    assert train.place(5) == (folder / "b.h5", 2)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("name", {"name": "others"}),
        ("task", {"task": "multiclass"}),
        ("classes", {"classes": ("task", "rest")}),
        ("montage", {"names": ("C3", "C4", "CZ")}),
        ("seconds", {"splits": {"train": two_classes(3, seconds=3)}}),
    ],
)
def test_files_of_a_folder_that_are_no_shards_of_one_set_are_named(tmp_path: Path, what: str, other: Any) -> None:
    paths = [shard(tmp_path / "a.hdf5"), shard(tmp_path / "b.hdf5", **other)]
    with pytest.raises(InputError) as error:
        read_labelled(tmp_path)
    only_line(error, *paths, what)


def test_a_known_name_is_its_file_or_else_its_folder_and_a_path_is_itself(tmp_path: Path) -> None:
    for name in DATASETS:
        shard(tmp_path / name / "0.hdf5")
        assert labelled_path(name, tmp_path) == tmp_path / name
        path = shard(tmp_path / f"{name}.hdf5")
        assert labelled_path(name, tmp_path) == path
        assert labelled_path(str(tmp_path / name), Path("elsewhere")) == tmp_path / name
    for dataset in ("TUAB", "folder/missing.hdf5"):
        with pytest.raises(InputError) as error:
            labelled_path(dataset, tmp_path / "empty")
        only_line(error, dataset, "--dataset", *DATASETS)


def test_labels_of_any_type_of_number_become_whole_numbers_and_targets_may_have_one_axis(tmp_path: Path) -> None:
    for kind in (np.uint8, np.float64, bool):
        splits = {"train": (two_classes(4)[0], np.array([0, 1, 1, 0], kind))}
        labels = read_samples(read_labelled(write_labelled(tmp_path / "a.hdf5", splits)), "train").labels
        assert labels.dtype == np.int64 and labels.tolist() == [0, 1, 1, 0]
        close_files()
    splits = {"train": (signal(2, 3, 400), np.array([1.5, 2.5])), "val": (signal(0, 3, 400), np.ones(0))}
    file = read_labelled(write_labelled(tmp_path / "b.hdf5", splits, task="regression", classes=["x"]))
    assert [read_samples(file, split).labels.shape for split in file.splits] == [(2, 1), (0, 1)]


def test_a_scan_judges_the_samples_of_a_recording_as_one_signal(tmp_path: Path) -> None:
    eeg = signal(40, 3, 400)
    eeg[2:4] *= 1e-3  # a recording that moves little, but all the time
    eeg[5, 1, 250] = np.inf
    eeg[37, :, :200] = 3
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg, [0, 1] * 20)})
    with h5py.File(path, "r+") as file:  # recordings of 2, 2, 2, and 34 samples
        file["train/recording"][:] = [f"r{min(i // 2, 3)}" for i in range(40)]
    scan = read_samples(read_labelled(path), "train").quality()
    bad = np.argwhere(~scan.valid.reshape(40, 2)).tolist()
    assert bad == [[5, 1], [37, 0]] and scan.not_finite == {"CZ": 1}


def test_subjects_on_two_sides_and_classes_that_a_split_lacks_are_warned_about(tmp_path: Path) -> None:
    labels = {"train": np.array([0, 2, 1]), "val": np.array([0, 0]), "test": np.array([1, 2, 2])}
    subjects = {"train": ["a", "b", "b"], "val": ["b", "c"], "test": ["b", "c", "d"]}
    splits = {split: (signal(len(y), 3, 400), y) for split, y in labels.items()}
    path = write_labelled(tmp_path / "a.hdf5", splits, task="multiclass", classes=["x", "y", "z"])
    with h5py.File(path, "r+") as content:
        for split, names in subjects.items():
            content[split]["subject"][:] = names
    file = read_labelled(path)
    sides, val, test = split_warnings({split: read_samples(file, split) for split in SPLITS})
    assert sides.startswith("2 subject(s)") and "b (train, val, test), c (val, test)" in sides
    assert val.startswith("val ") and val.endswith(": y, z.") and test.startswith("test ") and test.endswith(": x.")
    clean = {"train": two_classes(4), "val": two_classes(2), "test": two_classes(0)}
    file = read_labelled(write_labelled(tmp_path / "b.hdf5", clean))
    assert split_warnings({split: read_samples(file, split) for split in SPLITS}) == []


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"leave_out": ["rsFreq"]}, ["rsFreq"]),
    ({"leave_out": ["subject"]}, ["group train", "subject"]),
    ({"task": "ranking"}, ["ranking", "binary, multiclass, regression"]),
    ({"classes": ["one"]}, ["1 classes"]),
    ({"rate": 250}, ["250 Hz"]),
    ({"rate": "200 Hz"}, ["attribute rsFreq"]),
    ({"splits": {"training": two_classes(2)}}, ["train, val, test"]),
    ({"splits": {"train": two_classes(2), "val": (signal(2, 2, 400), [0, 1])}}, ["group val", "(samples, 3, time)"]),
    *(({"splits": {"train": (signal(*s), [0, 1])}}, ["group train"]) for s in ((2, 400), (2, 3, 300), (2, 3, 0))),
    ({"splits": {"train": (signal(2, 3, 400), [0, 1, 1])}}, ["group train", "`label`", "2 numbers"]),
    ({"splits": {"train": two_classes(2), "val": two_classes(2, seconds=3)}}, ["[2, 3]"]),
    *(
        ({"splits": {"train": (signal(2, 3, 400), y)}, "task": "regression", "classes": ["x", "y"]}, ["group train"])
        for y in ([[0.5, np.nan], [1, 2]], [[0.5], [1.0]], [[1.0, 2, 3], [1, 2, 3]])
    ),
    ({"column": ("label", np.array([0, 0.5, 1, 1]))}, ["label 0.5"]),
    ({"column": ("label", np.array([0, 1, 2, 1]))}, ["label 2"]),
    ({"column": ("label", np.ones((4, 2)))}, ["group train"]),
    ({"column": ("recording", np.arange(4))}, ["group train"]),
    ({"column": ("eeg", h5py.Empty("f4"))}, ["group train"]),
    ({"column": ("valid", np.ones((4, 3), bool))}, ["group train", "(4, 2)"]),
]


@pytest.mark.parametrize(("changes", "parts"), BAD)
def test_a_file_that_is_no_labelled_file_is_one_line(tmp_path: Path, changes: dict, parts: list[str]) -> None:
    options = {"splits": {"train": two_classes(4)}, **changes}
    name, value = options.pop("column", (None, None))
    options.setdefault("leave_out", [name])
    path = write_labelled(tmp_path / "a.hdf5", options.pop("splits"), **options)
    if name is not None:
        with h5py.File(path, "r+") as file:
            file["train"][name] = value
    with pytest.raises(InputError) as error:
        read_samples(read_labelled(path), "train")
    only_line(error, path, *parts)


def test_the_published_sizes_are_those_of_the_paper(shared: Path) -> None:
    sizes = json.loads((shared / "paper_numbers.json").read_text())["published_split_sizes"]
    sizes["SEED-V"] = json.loads((shared / "seed_v.json").read_text())["windows_16_subjects"]
    counts = {
        key: row
        for name in ("TUAB", "TUEV", "MentalArithmetic", "SEED-V")
        for key, row in published_counts(name).items()
    }
    assert {key: list(row.values()) for key, row in counts.items()} == sizes
