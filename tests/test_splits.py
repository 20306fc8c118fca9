"""Splits by subject: sizes, independence of order, what a seed changes, folds."""

from collections import Counter

import pytest

from dataset_maker import splits
from errors import UsageError

NAMES = [f"s{index:03d}" for index in range(23)]


@pytest.mark.parametrize(("number", "train"), [(0, 0), (1, 0), (2, 1), (5, 4), (9, 7), (10, 8), (23, 18), (1385, 1108)])
def test_four_fifths_rounded_down_train(number: int, train: int) -> None:
    names = [f"{index:04d}" for index in range(number)]
    for split in (splits.published(names), splits.disjoint(names, 0)):
        assert Counter(split.values())["train"] == train and Counter(split.values())["val"] == number - train


def test_the_published_split_takes_the_first_names_whatever_their_order_and_number() -> None:
    expected = dict.fromkeys(NAMES[:18], "train") | dict.fromkeys(NAMES[18:], "val")
    assert splits.published(NAMES) == splits.published(iter(NAMES[::-1] * 3)) == expected


def test_the_disjoint_split_follows_from_the_names_and_the_seed_alone() -> None:
    assert splits.disjoint(NAMES, 3) == splits.disjoint(NAMES[::-1] + NAMES, 3)
    assert splits.disjoint(["a", "b", "c", "d", "e", "f"], 1) == {  # written down once: it must hold on any machine
        "a": "train",
        "b": "val",
        "c": "val",
        "d": "train",
        "e": "train",
        "f": "train",
    }
    different = {tuple(sorted(splits.disjoint(NAMES, seed).items())) for seed in range(20)}
    assert len(different) == 20
    often = Counter(
        name for seed in range(400) for name, split in splits.disjoint(NAMES, seed).items() if split == "val"
    )
    assert all(400 * 5 / 23 - 45 < often[name] < 400 * 5 / 23 + 45 for name in NAMES)  # 87 expected, five deviations


def test_every_subject_is_tested_once_and_validates_once_over_the_folds() -> None:
    cuts = [splits.folds(NAMES[::-1], 5, fold) for fold in range(5)]
    for name in NAMES:
        assert Counter(cut[name] for cut in cuts) == {"train": 3, "val": 1, "test": 1}
    assert splits.folds("abcd", 3, 2) == {"a": "val", "b": "train", "c": "test", "d": "val"}
    sizes = [Counter(cut.values())["test"] for cut in cuts]
    assert sizes == [5, 5, 5, 4, 4]


@pytest.mark.parametrize(("number", "fold"), [(2, 0), (0, 0), (-3, 0), (24, 0), (5, 5), (5, -1)])
def test_impossible_folds_are_wrong_usage(number: int, fold: int) -> None:
    with pytest.raises(UsageError, match="--fold"):
        splits.folds(NAMES, number, fold)
