"""Labelled files and folders of shards: what belongs together, which samples they hold, and absurd files."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_helpers import TRIO, only_line, signal, write_labelled
from eeg_data.labelled_files import (
    DATASETS,
    SPLITS,
    labelled_path,
    published_sizes,
    read_eeg,
    read_labelled,
    read_samples,
)
from errors import InputError


def two_classes(n: int, seed: int = 0, seconds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    return signal(n, 3, 200 * seconds, seed=seed), np.arange(n, dtype=np.int64) % 2


def shard(path: Path, **options: Any) -> Path:
    """Write a shard of the set `tasks`."""
    splits = options.pop("splits", {"train": two_classes(3)})
    name = options.pop("name", "tasks")
    write_labelled(path, splits, **options)
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
    (part,) = read_samples(file, "train")
    assert part.labels.dtype == (np.float32 if task == "regression" else np.int64) and part.labels.tolist() == labels


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
    parts = {split: read_samples(file, split) for split in SPLITS}
    sizes = {split: [len(part) for part in own] for split, own in parts.items()}
    assert sizes == {"train": [3, 4], "val": [2], "test": [1]}
    np.testing.assert_array_equal(read_eeg(parts["train"][1].path, "train", 2), two_classes(4, 2)[0][2])
    np.testing.assert_array_equal(read_eeg(parts["train"][1].path, "train", 1, 3), two_classes(4, 2)[0][1:3])


def test_files_of_a_folder_that_are_no_shards_of_one_set_are_named(tmp_path: Path) -> None:
    others: dict[str, dict[str, Any]] = {
        "name": {"name": "others"},
        "task": {"task": "multiclass"},
        "classes": {"classes": ("task", "rest")},
        "montage": {"names": ("C3", "C4", "CZ")},
        "seconds": {"splits": {"train": two_classes(3, seconds=3)}},
    }
    for what, other in others.items():
        paths = [shard(tmp_path / what / "a.hdf5"), shard(tmp_path / what / "b.hdf5", **other)]
        with pytest.raises(InputError) as error:
            read_labelled(tmp_path / what)
        only_line(error, *paths, what)


def test_a_known_name_is_its_file_or_else_its_folder_and_a_path_is_itself(tmp_path: Path) -> None:
    for name in DATASETS:
        shard(tmp_path / name / "0.hdf5")
        assert labelled_path(name, tmp_path) == tmp_path / name
        path = shard(tmp_path / f"{name}.hdf5")
        assert labelled_path(name, tmp_path) == path
        assert labelled_path(str(tmp_path / name), Path("elsewhere")) == tmp_path / name
    assert labelled_path(str(path), Path("elsewhere")) == path


def test_data_that_are_not_there_are_one_line_with_the_known_names(tmp_path: Path) -> None:
    (tmp_path / "TUEV").mkdir()
    wanted = {"TUAB": tmp_path / "TUAB.hdf5", "TUEV": tmp_path / "TUEV", "folder/missing.hdf5": "folder/missing.hdf5"}
    for dataset, path in wanted.items():
        with pytest.raises(InputError) as error:
            labelled_path(dataset, tmp_path)
        only_line(error, path, "--dataset", *DATASETS)


def test_labels_of_any_type_of_number_become_whole_numbers(tmp_path: Path) -> None:
    for kind in (np.uint8, np.float64, bool):
        splits = {"train": (two_classes(4)[0], np.array([0, 1, 1, 0], kind))}
        (part,) = read_samples(read_labelled(write_labelled(tmp_path / f"{kind.__name__}.hdf5", splits)), "train")
        assert part.labels.dtype == np.int64 and part.labels.tolist() == [0, 1, 1, 0]


def test_a_regression_may_have_one_axis_or_an_empty_split(tmp_path: Path) -> None:
    splits = {"train": (signal(2, 3, 400), [1.5, 2.5]), "val": (signal(0, 3, 400), np.ones(0))}
    file = read_labelled(write_labelled(tmp_path / "a.hdf5", splits, task="regression", classes=["x"]))
    assert [read_samples(file, split)[0].labels.shape for split in file.splits] == [(2, 1), (0, 1)]


def test_a_scan_judges_the_samples_of_a_recording_as_one_signal(tmp_path: Path) -> None:
    eeg = signal(8, 3, 400)
    eeg[2:4] *= 1e-3  # a recording that moves little, but all the time
    eeg[5, 1, 250] = np.inf
    eeg[7, :, :200] = 3
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg, [0, 1] * 4)})
    (part,) = read_samples(read_labelled(path), "train")
    assert part.valid is None and part.quality is None
    scan = part.scan(TRIO, 2)
    bad = np.argwhere(~scan.valid.reshape(8, 2)).tolist()
    assert bad == [[5, 1], [7, 0]] and scan.not_finite == {"CZ": 1}


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"leave_out": ["rsFreq"]}, ["rsFreq"]),
    ({"leave_out": ["subject"]}, ["group train", "subject"]),
    ({"task": "ranking"}, ["ranking", "binary, multiclass, regression"]),
    ({"classes": ["one"]}, ["1 classes"]),
    ({"rate": 250}, ["250 Hz"]),
    ({"splits": {"training": two_classes(2)}}, ["train, val, test"]),
    ({"splits": {"train": two_classes(2), "val": (signal(2, 2, 400), [0, 1])}}, ["group val", "(samples, 3, time)"]),
    *(({"splits": {"train": (signal(*s), [0, 1])}}, ["group train"]) for s in ((2, 400), (2, 3, 300), (2, 3, 0))),
    ({"splits": {"train": (signal(2, 3, 400), [0, 1, 1])}}, ["group train", "3 values for 2 samples"]),
    ({"splits": {"train": two_classes(2), "val": two_classes(2, seconds=3)}}, ["[2, 3]"]),
]


def test_a_file_that_is_no_labelled_file_is_one_line(tmp_path: Path) -> None:
    for number, (changes, parts) in enumerate(BAD):
        options = {"splits": {"train": two_classes(4)}, **changes}
        path = write_labelled(tmp_path / f"{number}.hdf5", options.pop("splits"), **options)
        with pytest.raises(InputError) as error:
            read_labelled(path)
        only_line(error, path, *parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", np.array([0, 0.5, 1, 1])),
        ("label", np.array([0, 1, 2, 1])),
        ("label", np.ones((4, 2))),
        ("recording", np.arange(4)),
        ("eeg", h5py.Empty("f4")),
        ("valid", np.ones((4, 3), bool)),
    ],
    ids=str,
)
def test_absurd_datasets_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4)}, leave_out=[name])
    with h5py.File(path, "r+") as file:
        file["train"][name] = value
    with pytest.raises(InputError) as error:
        read_samples(read_labelled(path), "train")
    only_line(error, path, "group train")


def test_regression_targets_that_are_not_finite_or_not_as_many_as_outputs_are_refused(tmp_path: Path) -> None:
    for number, labels in enumerate(([[0.5, np.nan], [1, 2]], [[0.5], [1.0]], [[1.0, 2, 3], [1, 2, 3]])):
        splits = {"train": (signal(2, 3, 400), np.array(labels))}
        path = write_labelled(tmp_path / f"{number}.hdf5", splits, task="regression", classes=["x", "y"])
        with pytest.raises(InputError) as error:
            read_samples(read_labelled(path), "train")
        only_line(error, path, "group train", "2 finite numbers")


def test_the_published_sizes_are_those_of_the_paper(shared: Path) -> None:
    sizes = published_sizes()
    paper = json.loads((shared / "paper_numbers.json").read_text())["published_split_sizes"]
    seed = json.loads((shared / "seed_v.json").read_text())["windows_16_subjects"]
    assert sizes == {**paper, "SEED-V": seed}
    assert all(any(key.split(" ")[0] == name for key in sizes) for name in DATASETS)
