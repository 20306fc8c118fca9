"""Bring the signals of each subject or recording to one level, by a factor for all of its electrodes and windows.

Its level is the median over its windows of their median |uV|; no label is used. Works without torch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from eeg_data.verdicts import TYPICAL
from errors import InputError, UsageError

OWNERS = ("subject", "recording")


def where_of(windows: Any) -> str:
    """Name LabelledWindows or Windows in messages."""
    return str(getattr(windows, "where", None) or f"{windows.path}, group {windows.split}")


def owner_numbers(windows: Any, by: str, *, flag: str) -> np.ndarray:
    """Number the subject or recording of each window of LabelledWindows or Windows, (n,).

    Raises UsageError, which names the flag, if one has no name.
    """
    names = list(getattr(windows, f"{by}s"))
    if len(names) != len(windows) or not all(name.strip() for name in names):
        way_out = f"use {flag} {OWNERS[by == 'subject']}, or leave it out"
        raise UsageError(f"{flag} {by}: {where_of(windows)} does not name the {by} of every window: {way_out}")
    return np.unique(names, return_inverse=True)[1]


def window_levels(read: Callable[[int], np.ndarray], numbers: Iterable[int]) -> np.ndarray:
    """Return the median |uV| of windows, (n,). read: number -> (N, samples) in uV."""
    return np.array([np.median(np.abs(read(number))) for number in numbers], np.float64)


def level_factors(levels: np.ndarray, owners: np.ndarray, where: str) -> np.ndarray:
    """Return the factor that brings each window's owner to TYPICAL, (n,) float32.

    Raises InputError for an owner whose signal is zero.
    """
    medians = pd.Series(levels).groupby(owners).transform("median").to_numpy()  # of windows that are finite
    if (medians == 0).any():
        raise InputError(f"--scale_by: {where}: half of a signal's values are 0, which no factor changes: leave it out")
    return (TYPICAL / medians).astype(np.float32)
