"""Which subject goes into which split: pure functions of the names, the same on every machine.

Names are sorted first, so neither the order of files on a disk nor of arguments matters. The paper gives the counts
of its splits, not the names; `published` gives the counts of `published_splits.json`.
"""

import random
from collections.abc import Iterable

from errors import UsageError

TRAIN_FRACTION = 0.8  # of the subjects that are not test
MIN_FOLDS = 3  # one each for test, val and train


def _first_part_trains(names: list[str]) -> dict[str, str]:
    """Return name -> split for names in this order: the first int(0.8 n) train, the rest val."""
    cut = int(TRAIN_FRACTION * len(names))
    return {name: "train" if index < cut else "val" for index, name in enumerate(names)}


def published(subjects: Iterable[str]) -> dict[str, str]:
    """Return subject -> `train` or `val`: names sorted, the first 80 % (rounded down) train, the rest val."""
    return _first_part_trains(sorted(set(subjects)))


def disjoint(subjects: Iterable[str], seed: int) -> dict[str, str]:
    """Return subject -> `train` or `val`: as `published`, but names are shuffled after sorting, by the seed alone."""
    generator = random.Random(seed)  # its random() is the one stream that Python promises never to change
    return _first_part_trains(sorted(sorted(set(subjects)), key=lambda _: generator.random()))


def folds(subjects: Iterable[str], number: int, fold: int) -> dict[str, str]:
    """Return subject -> split for cross-validation by subject.

    Sorted names are dealt in turn into `number` folds; fold `fold` (from 0) is test, the next one (after the last the
    first) val, all others train. Raises UsageError for fewer than three folds, more folds than subjects, no such fold.
    """
    names = sorted(set(subjects))
    if not MIN_FOLDS <= number <= len(names):
        allowed = f"from {MIN_FOLDS} (test, val, train) to the number of subjects, {len(names)}"
        raise UsageError(f"--folds {number}: must be {allowed}")
    if not 0 <= fold < number:
        raise UsageError(f"--fold {fold}: must be from 0 to {number - 1} with --folds {number}")
    special = {fold: "test", (fold + 1) % number: "val"}
    return {name: special.get(index % number, "train") for index, name in enumerate(names)}
