"""Recordings that are found, their names, and splits by subject: sizes, independence of order, seeds, folds."""

from collections import Counter
from pathlib import Path

import pytest

from dataset_maker import sources
from errors import InputError, UsageError

NAMES = [f"s{index:03d}" for index in range(23)]


@pytest.mark.parametrize(("number", "train"), [(1, 0), (23, 18), (1385, 1108)])
def test_four_fifths_rounded_down_train_the_first_names_or_those_of_a_seed(number: int, train: int) -> None:
    names = [f"{index:04d}" for index in range(number)]
    first = dict.fromkeys(names[:train], "train") | dict.fromkeys(names[train:], "val")
    assert sources.train_or_val(names) == sources.train_or_val(iter(names[::-1] * 3)) == first
    assert Counter(sources.train_or_val(names, 0).values()) == Counter(train=train, val=number - train)


def test_a_seeds_split_follows_from_the_names_and_the_seed_alone() -> None:
    assert sources.train_or_val(NAMES, 3) == sources.train_or_val(NAMES[::-1] + NAMES, 3)
    wanted = dict(zip("abcdef", ("train", "val", "val", "train", "train", "train"), strict=True))
    assert sources.train_or_val("abcdef", 1) == wanted  # written down once: it must hold on any machine
    assert len({tuple(sorted(sources.train_or_val(NAMES, seed).items())) for seed in range(20)}) == 20


def test_every_subject_is_tested_once_and_validates_once_over_the_folds() -> None:
    cuts = [sources.folds(NAMES[::-1], 5, fold) for fold in range(5)]
    for name in NAMES:
        assert Counter(cut[name] for cut in cuts) == {"train": 3, "val": 1, "test": 1}
    assert sources.folds("abcd", 3, 2) == {"a": "val", "b": "train", "c": "test", "d": "val"}
    for number, fold in ((2, 0), (24, 0), (5, 5)):
        with pytest.raises(UsageError, match="--fold"):
            sources.folds(NAMES, number, fold)


def test_recordings_are_found_once_and_later_parts_of_split_ones_never(tmp_path: Path) -> None:
    names = ["b.EDF", "sub/a_raw.fif", "sub/a_raw-1.fif", "x_split-01_raw.fif", "x_split-02_raw.fif", "y-2.fif"]
    for name in [*names, ".hidden.edf", "sub/._b.edf", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "z.edf").symlink_to(tmp_path / "b.EDF")
    (tmp_path / "broken.edf").symlink_to(tmp_path / "nowhere")
    wanted = ["b.EDF", "broken.edf", "sub/a_raw.fif", "x_split-01_raw.fif", "y-2.fif"]
    paths = sources.find_files([tmp_path, tmp_path / "b.EDF"])
    assert [str(path.relative_to(tmp_path)) for path in paths] == wanted
    for path in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=path.name):
            sources.find_files([path])
