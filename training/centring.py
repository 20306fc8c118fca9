"""Use the unlabelled windows of a subject or recording: centre what the head sees by their mean (--center).

--scale_by, of signals, is in `eeg_data/levels.py`.

Subjects differ more than tasks do. Results with any of this are transductive: the mean of an evaluated subject comes
from the windows that are evaluated, without their labels. Works without torch.
"""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eeg_data.levels import OWNERS, owner_numbers, where_of
from errors import UsageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Centring:
    """Which windows are averaged: all of a subject or recording, or in evaluation only the first ones."""

    by: str  # of OWNERS
    windows: int | None = None  # of each, in the order of the file; None: all

    def __str__(self) -> str:
        which = "all windows" if self.windows is None else f"the first {self.windows} windows"
        return f"{which} of each {self.by}"

    def groups(self, dataset: Any) -> np.ndarray:
        """Number the subject or recording of each window, see `owner_numbers`."""
        return owner_numbers(dataset, self.by, flag="--center")

    def check(self, dataset: Any) -> None:
        """Warn of windows that are to be predicted and have no other with them."""
        counts = np.bincount(self.groups(dataset))
        if alone := int((counts == 1).sum()):
            text = "--center %s: %s: %d of %d %ss have one window: minus itself, nothing is left of it to predict from."
            logger.warning(text, self.by, where_of(dataset), alone, len(counts), self.by)

    def centre(self, values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Subtract the mean of their group from values (n, ...) of windows."""
        table = pd.DataFrame(values)
        used = table if self.windows is None else table.groupby(groups).head(self.windows)
        return values - used.groupby(groups[used.index]).mean().loc[groups].to_numpy(values.dtype)

    def announce(self, train: Any) -> None:
        """Log the rule, and warn of what the labels of the training windows (LabelledWindows) say against it."""
        by, groups = self.by, self.groups(train)
        logger.info("--center %s: transductive, %s, without their labels.", by, self)
        places = list(pd.Series(groups).groupby(groups).indices.values())
        alone, first = (
            sum(len(np.unique(train.labels[own[:windows]], axis=0)) == 1 for own in places)
            for windows in (None, self.windows)
        )
        if 2 * alone > len(places):
            text = "--center %s: all windows of %d of %d training %ss have one label, which centring takes away with "
            text += "their mean: it is for %ss that show several classes, in about equal shares."
            logger.warning(text, by, alone, len(places), by, by)
        elif 2 * first > len(places):
            text = "--center_windows %d: these windows of %d of %d training %ss have one label, so their mean is not "
            text += "that of all windows, which the head learns with."
            logger.warning(text, self.windows, first, len(places), by)


def centring_of(flags: Mapping[str, Any]) -> Centring | None:
    """Return the rule of a run's flags, None without --center. Raises UsageError for flags that make no sense."""
    by, windows = flags.get("center") or "none", flags.get("center_windows")
    for name, value in (("center", by), ("scale_by", flags.get("scale_by") or "none")):
        if value not in (*OWNERS, "none"):
            raise UsageError(f"--{name} {value}: allowed are {', '.join(OWNERS)} and none")
    if windows is not None and (by == "none" or windows < 1):
        raise UsageError(f"--center_windows {windows}: allowed are numbers from 1, with --center {' or '.join(OWNERS)}")
    return None if by == "none" else Centring(by, windows)


def words_of(flags: Mapping[str, Any]) -> str:
    """Say how a run used unlabelled windows; empty if it did not."""
    rule, scale_by = centring_of(flags), flags.get("scale_by") or "none"
    parts = [str(rule)] if rule else []
    parts += [f"signals scaled by all windows of each {scale_by}"] if scale_by != "none" else []
    return f"transductive, {' and '.join(parts)}" if parts else ""


def entry(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a classifier's checkpoint says of a run's use of unlabelled windows, next to its data."""
    used = {name: flags[name] for name in ("center", "center_windows", "scale_by")}
    used = {name: value for name, value in used.items() if value not in (None, "none")}
    return {"transductive": used} if used else {}


def add_arguments(parser: argparse.ArgumentParser, *, default: str | None = "none") -> None:
    """Add the flags. default: of --center."""
    add = parser.add_argument_group("subjects (transductive: also uses the unlabelled windows of a test)").add_argument
    words = "the head sees features minus the mean of the windows of the same subject or recording"
    add("--center", choices=(*OWNERS, "none"), default=default, help=words)
    words = "of each, evaluated windows are centred by the mean of the first K (default: of all)"
    add("--center_windows", type=int, metavar="K", help=words)
