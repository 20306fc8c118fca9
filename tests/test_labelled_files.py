"""Labelled files and folders of shards: what belongs together, which samples they hold, and absurd files."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_helpers import PAIR, TRIO, only_line, signal, write_labelled
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

REPOSITORY = Path(__file__).resolve().parents[1]


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


def edited(path: Path, **datasets: Any) -> Path:
    """Replace datasets of the training split."""
    with h5py.File(path, "r+") as file:
        for key, value in datasets.items():
            if key in file["train"]:
                del file["train"][key]
            if value is not None:
                file["train"][key] = value
    return path


def test_a_file_is_a_set_of_one_shard(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(3), "val": two_classes(2)})
    file = read_labelled(path)
    assert (file.path, file.shards, file.splits) == (path, (path,), ("train", "val"))


def test_a_folder_is_the_set_of_its_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shard(folder / "b.h5", splits={"val": two_classes(2, 1), "train": two_classes(4, 2)})
    shard(folder / "a.hdf5", splits={"train": two_classes(3, 3)})
    shard(folder / "c" / "a.hdf5", splits={"test": two_classes(1, 4)})
    (folder / "report.json").write_text("{}")
    shard(folder / ".b.hdf5.making" / "x.hdf5", name="other")
    file = read_labelled(folder)
    assert (file.name, file.path, file.splits, file.montage) == ("tasks", folder, SPLITS, TRIO)
    assert [path.relative_to(folder).as_posix() for path in file.shards] == ["a.hdf5", "b.h5", "c/a.hdf5"]
    parts = {split: read_samples(file, split) for split in SPLITS}
    assert {split: [len(part) for part in found] for split, found in parts.items()} == {
        "train": [3, 4],
        "val": [2],
        "test": [1],
    }
    np.testing.assert_array_equal(read_eeg(parts["train"][1].path, "train", 2), two_classes(4, 2)[0][2])
    np.testing.assert_array_equal(read_eeg(parts["train"][1].path, "train", 1, 3), two_classes(4, 2)[0][1:3])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"name": "others"}, "the attribute name"),
        ({"task": "multiclass"}, "the attribute task"),
        ({"classes": ("task", "rest")}, "the attribute classes"),
        ({"names": ("C3", "C4", "CZ")}, "the attribute chOrder"),
        ({"splits": {"train": two_classes(3, seconds=3)}}, "the length of their windows"),
    ],
)
def test_files_of_a_folder_that_are_no_shards_of_one_set_are_named(tmp_path: Path, other: dict, what: str) -> None:
    paths = [shard(tmp_path / "set" / "a.hdf5"), shard(tmp_path / "set" / "b.hdf5", **other)]
    with pytest.raises(InputError) as error:
        read_labelled(tmp_path / "set")
    only_line(error, *paths, what, "folders of their own")


def test_a_shard_without_samples_fits_any_and_a_set_without_any_is_none(tmp_path: Path) -> None:
    shard(tmp_path / "set" / "a.hdf5", splits={})
    with pytest.raises(InputError, match="none of the groups train, val, test"):
        read_labelled(tmp_path / "set")
    shard(tmp_path / "set" / "b.hdf5")
    assert read_labelled(tmp_path / "set").seconds == 2


def test_a_known_name_is_its_file_or_else_its_folder(tmp_path: Path) -> None:
    for name in DATASETS:
        shard(tmp_path / name / "0.hdf5")
        assert labelled_path(name, tmp_path) == tmp_path / name
        path = shard(tmp_path / f"{name}.hdf5")
        assert labelled_path(name, tmp_path) == path
        assert labelled_path(str(tmp_path / name), Path("elsewhere")) == tmp_path / name


def test_a_folder_without_files_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "TUAB").mkdir()
    for dataset in ("TUAB", str(tmp_path / "TUAB")):
        with pytest.raises(InputError) as error:
            labelled_path(dataset, tmp_path)
        only_line(error, "no data found at", tmp_path / "TUAB", "--dataset", *DATASETS)
    with pytest.raises(InputError, match="holds no labelled HDF5 files"):
        read_labelled(tmp_path / "TUAB")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int16])
def test_eeg_of_other_types_is_read_alike(tmp_path: Path, dtype: type) -> None:
    eeg, labels = np.round(two_classes(4)[0]), np.arange(4) % 2
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg.astype(dtype), labels)})
    assert read_eeg(path, "train", 2).dtype == np.float32
    np.testing.assert_array_equal(read_eeg(path, "train", 2), eeg[2])


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float64, bool])
def test_labels_of_any_type_of_number_become_whole_numbers(tmp_path: Path, kind: type) -> None:
    path = edited(write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4)}), label=np.array([0, 1, 1, 0], kind))
    (part,) = read_samples(read_labelled(path), "train")
    assert part.labels.dtype == np.int64 and part.labels.tolist() == [0, 1, 1, 0]


def test_an_empty_split_of_a_regression_is_read(tmp_path: Path) -> None:
    splits = {"train": (signal(2, 3, 400), np.ones((2, 2))), "val": (signal(0, 3, 400), np.ones((0, 2)))}
    file = read_labelled(write_labelled(tmp_path / "a.hdf5", splits, task="regression", classes=("x", "y")))
    assert read_samples(file, "val")[0].labels.shape == (0, 2)


@pytest.mark.parametrize(
    "damage",
    [
        {"label": np.array([b"0", b"1", b"0", b"1"])},
        {"label": np.zeros(4, dtype=[("a", "i4")])},
        {"label": np.zeros(4, dtype=complex)},
        {"label": np.array(1)},
        {"label": h5py.Empty("i8")},
        {"eeg": h5py.Empty("f4")},
        {"eeg": np.zeros((4, 3, 400), dtype=complex)},
        {"recording": np.arange(4)},
        {"subject": np.array(["a"], dtype=object)},
        {"valid": np.ones((4, 3), bool)},
        {"valid": np.ones((3, 2), bool)},
        {"valid": np.ones(4, bool)},
        {"valid": np.ones((4, 2))},
        {"subject": np.array([b"\xff"] * 4)},
    ],
    ids=lambda damage: f"{next(iter(damage))}-{next(iter(damage.values()))!s:.20}",
)
def test_absurd_datasets_are_refused(tmp_path: Path, damage: dict) -> None:
    path = edited(write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4)}), **damage)
    with pytest.raises(InputError) as error:
        read_samples(read_labelled(path), "train")
    only_line(error, path, "group train")


@pytest.mark.parametrize(
    ("key", "shape", "kind"),
    [
        ("eeg", (10**6, 3, 400), "f4"),
        ("label", (2, 10**9), "i8"),
        ("recording", (2,), "S1000000000"),
        ("subject", (2,), "S1000000000"),
    ],
)
def test_a_column_that_claims_more_than_its_file_holds_is_refused(
    tmp_path: Path, key: str, shape: tuple[int, ...], kind: str
) -> None:
    whole = {"eeg": ((3, 200), "f4"), "label": ((), "i1"), "recording": ((), "S1"), "subject": ((), "S1")}
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)}, leave_out=whole)
    with h5py.File(path, "r+") as file:
        for name, (rest, dtype) in whole.items():
            if name != key:
                file["train"][name] = np.zeros((shape[0], *rest), dtype)
        file["train"].create_dataset(key, shape, kind)
    with pytest.raises(InputError) as error:
        read_labelled(path)
    only_line(error, path, f"group train, `{key}`: claims")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("task", 3),
        ("task", ["binary", "binary"]),
        ("classes", [1, 2]),
        ("classes", "rest"),
        ("chOrder", 5.0),
        ("rsFreq", "fast"),
        ("rsFreq", [200, 200]),
        ("name", 7),
    ],
)
def test_absurd_attributes_are_refused(tmp_path: Path, attribute: str, value: Any) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)})
    with h5py.File(path, "r+") as file:
        file.attrs[attribute] = value
    with pytest.raises(InputError) as error:
        read_labelled(path)
    only_line(error, path)


def test_a_split_that_is_no_group_and_a_column_that_is_one_are_refused(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)})
    with h5py.File(path, "r+") as file:
        file["val"] = np.zeros(3)
    with pytest.raises(InputError, match="group val: needs eeg"):
        read_labelled(path)
    other = edited(write_labelled(tmp_path / "b.hdf5", {"train": two_classes(2)}), label=None)
    with h5py.File(other, "r+") as file:
        file.create_group("train/label")
    with pytest.raises(InputError, match="group train: needs eeg"):
        read_labelled(other)


def test_the_published_sizes_are_those_of_the_paper(shared: Path) -> None:
    sizes = published_sizes()
    paper = json.loads((shared / "paper_numbers.json").read_text())["published_split_sizes"]
    seed = json.loads((shared / "seed_v.json").read_text())["windows_16_subjects"]
    assert sizes == {**paper, "SEED-V": seed}
    assert all(any(key.split(" ")[0] == name for key in sizes) for name in DATASETS)


def test_electrodes_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (signal(2, 2, 400), [0, 1])}, names=PAIR)
    assert read_labelled(path).montage == PAIR
