"""Judge signals: which seconds can be used, which electrodes are flat, saturated or not finite, which unit it may be.

Needs NumPy only: makers, training and `dataset_maker.inspect_data` share it. Signals are (N, time) in uV.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from errors import InputError

FLAT = 0.1  # uV: an electrode that moves less in a second is flat, if it also moves less than
FLAT_SHARE = 0.01  # of the recording's median movement; else signals in volts would all be flat
MIN_PART = 0.1  # s: a shorter last second is never flat
STUCK_SECONDS, STUCK_SAMPLES = 0.01, 3  # an electrode that stays so long at its extreme is saturated
MANY_INVALID, MANY_FLAT, MANY_SATURATED = 0.01, 0.1, 0.01  # shares of the seconds that are warned about
VOLTS, LIKELY = 3e-4, (0.3, 1e3)  # uV: a median of |EEG| outside LIKELY is of another unit, below VOLTS of volts
BLOCK = 2**18  # values scanned at a time: they stay in the processor's cache
COUNTS = ("not_finite", "flat", "saturated")

A_DECADE, LOWEST, HIGHEST = 20, -9, 7  # bins of the histogram: 20 a decade from 1e-9 to 1e7 uV
EDGES = 10 ** (np.arange(A_DECADE * LOWEST, A_DECADE * HIGHEST + 1) / A_DECADE)  # below and above them is one bin each
BINS = len(EDGES) + 1


@dataclass(frozen=True, eq=False)
class Quality:
    """Result of a scan of one recording, or of several with the same electrodes. Seconds are whole numbers."""

    valid: np.ndarray  # (seconds,) bool: all electrodes are finite and not all are flat; the last may be incomplete
    not_finite: dict[str, int]  # electrode -> seconds with NaN or infinity
    flat: dict[str, int]  # electrode -> seconds in which it does not move
    saturated: dict[str, int]  # electrode -> seconds in which it sticks to its largest or smallest value
    histogram: np.ndarray  # (BINS,) int64: how many finite |uV| are below EDGES[0], between them, above the last
    seconds: int  # that were counted; more than len(valid) where only parts were kept

    @classmethod
    def merged(cls, parts: Iterable["Quality"]) -> "Quality":
        """Add several up; `valid` one after the other."""
        valid, histogram, seconds = [np.zeros(0, bool)], np.zeros(BINS, np.int64), 0
        counts = {key: Counter[str]() for key in COUNTS}
        for part in parts:
            valid.append(part.valid)
            for key in COUNTS:
                counts[key].update(getattr(part, key))
            histogram += part.histogram
            seconds += part.seconds
        return cls(np.concatenate(valid), **counts, histogram=histogram, seconds=seconds)

    def to_json(self) -> str:
        """Write everything but `valid`."""
        content = {key: getattr(self, key) for key in (*COUNTS, "seconds")}
        content["histogram"] = {str(i): int(self.histogram[i]) for i in np.flatnonzero(self.histogram)}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: Any, valid: np.ndarray, where: str = "attribute quality") -> "Quality":
        """Read what `to_json` wrote. Raises InputError, which begins with `where`, for anything else."""
        try:
            content = json.loads(text)
            histogram = np.zeros(BINS, np.int64)
            for place, count in content["histogram"].items():
                histogram[int(place)] = count
            counts = {key: dict(content[key]) for key in COUNTS}
            return cls(valid, **counts, histogram=histogram, seconds=int(content["seconds"]))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            raise InputError(f"{where}: quality is no JSON of a scan: make the file again") from None

    def percentile(self, p: float) -> float | None:
        """Return the |uV| that p % of the values do not pass, to the width of a bin (12 %); None without values."""
        upto = np.cumsum(self.histogram)
        if not upto[-1]:
            return None
        rank = max(p / 100 * upto[-1], 1)
        place = int(np.searchsorted(upto, rank))
        if place in (0, BINS - 1):  # these have one edge only
            return 0.0 if place == 0 else float(EDGES[-1])
        low, high = EDGES[place - 1 : place + 1]
        return float(low * (high / low) ** ((rank - upto[place - 1]) / self.histogram[place]))


def _pieces(eeg: np.ndarray) -> Iterator[np.ndarray]:
    """Cut a signal into pieces that stay in the processor's cache. eeg: (N, t) -> (N, some samples) float32."""
    step = max(1, BLOCK // max(1, len(eeg)))
    for start in range(0, eeg.shape[1], step):
        with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 is infinite to a model, too
            piece = np.ascontiguousarray(eeg[:, start : start + step], dtype=np.float32)
        yield piece


def amplitude_histogram(eeg: np.ndarray) -> np.ndarray:
    """Count the finite |uV| in the histogram's bins, (BINS,). eeg: (N, t) uV."""
    counts = np.zeros(BINS, np.int64)
    for piece in _pieces(eeg):
        with np.errstate(divide="ignore"):  # 0 is in the lowest bin
            steps = np.floor(A_DECADE * np.log10(np.abs(piece[np.isfinite(piece)])))
        places = np.clip(steps - A_DECADE * LOWEST + 1, 0, BINS - 1).astype(np.intp)
        counts += np.bincount(places, minlength=BINS)
    return counts


class SignalScan:
    """Scan one signal piece by piece; how it is cut changes nothing. Memory grows with its seconds.

    electrodes: names of the rows; rate: samples a second, maybe a fraction; amplitudes: whether to fill the histogram,
    which takes most of the time.
    """

    def __init__(self, electrodes: Sequence[str], rate: float, *, amplitudes: bool = True) -> None:
        self.electrodes, self.rate, self.amplitudes = list(electrodes), float(rate), amplitudes
        self._run = max(STUCK_SAMPLES, math.ceil(STUCK_SECONDS * self.rate))  # samples
        self._seconds = 0  # whole ones so far
        self._rest = np.empty((len(self.electrodes), 0), np.float32)  # of the second that is not whole yet
        self._parts: list[tuple[np.ndarray, ...]] = []  # of whole seconds, as `_extremes` gives them
        self._moved = [np.empty((2, 0))]  # of their seconds: the electrodes' largest and median movement, uV
        self._histogram = np.zeros(BINS, np.int64)

    def add(self, eeg: np.ndarray) -> None:
        """Scan the next samples. eeg: (N, t) uV, any t."""
        if self.amplitudes:
            self._histogram += amplitude_histogram(eeg)
        for piece in _pieces(eeg):
            unscanned = np.concatenate([self._rest, piece], axis=1)
            most = int(unscanned.shape[1] / self.rate) + 1  # seconds that begin in it
            seconds = np.arange(self._seconds, self._seconds + most + 1)
            starts = np.ceil(np.round(seconds * self.rate, 6)).astype(np.int64)  # first samples
            starts -= starts[0]
            starts = starts[starts <= unscanned.shape[1]]
            if whole := len(starts) - 1:
                self._parts.append(_extremes(unscanned, starts, self._run))
                moved = _movement(*self._parts[-1][:2])
                self._moved.append(np.stack([moved.max(axis=0), np.median(moved, axis=0)]))
                self._seconds += whole
            self._rest = unscanned[:, starts[-1] :].copy()

    def result(self) -> Quality:
        """Judge all samples up to now."""
        parts, rest = list(self._parts), self._rest.shape[1]
        if rest:
            parts.append(_extremes(self._rest, np.array([0, rest]), self._run))
        if not parts:
            return Quality.merged(())
        low, high, at_low, at_high = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
        moved = _movement(low, high)
        finite = np.isfinite(moved)
        judged = finite.copy()
        if 0 < rest < MIN_PART * self.rate:
            judged[:, -1] = False
        flat = judged & (moved <= _flat_up_to(moved[judged]))
        lowest = np.where(finite, low, np.inf).min(axis=1, keepdims=True)  # (N, 1): of the whole recording
        highest = np.where(finite, high, -np.inf).max(axis=1, keepdims=True)
        stuck = (at_low & (low == lowest)) | (at_high & (high == highest))
        valid = finite.all(axis=0) & ~flat.all(axis=0)
        not_finite, flats, saturated = map(self._by_electrode, (~finite, flat, stuck & finite & ~flat))
        return Quality(valid, not_finite, flats, saturated, self._histogram.copy(), len(valid))

    def usable(self, eeg: np.ndarray, at: int, rate: float) -> np.ndarray:
        """Return the samples in usable seconds of the filtered signal, eeg (N, t) from sample `at` on, rate in Hz.

        The others (filtered noise of electrodes that were taken off) say nothing of the unit.
        """
        seconds = ((at + np.arange(eeg.shape[1])) / rate).astype(np.int64)
        # As far as it was scanned by now. `result` would take longer with every block: a tenth of a day's conversion.
        largest, median = np.concatenate(self._moved, axis=1)
        valid = np.isfinite(largest) & (largest > _flat_up_to(median[np.isfinite(median)]))
        return eeg if valid.all() else eeg[:, valid[np.minimum(seconds, len(valid) - 1)]]

    def _by_electrode(self, bad: np.ndarray) -> dict[str, int]:
        """Count the bad seconds of each electrode that has any. bad: (N, seconds) bool."""
        return {name: int(n) for name, n in zip(self.electrodes, bad.sum(axis=1), strict=True) if n}


def _movement(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return how much electrodes move in each second, uV. All are (N, seconds)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return high - low


def _flat_up_to(moved: np.ndarray) -> float:
    """Return the movement in a second, uV, up to which an electrode is flat. moved: all movements, any shape."""
    return min(FLAT, FLAT_SHARE * float(np.median(moved))) if moved.size else 0.0


def _extremes(eeg: np.ndarray, starts: np.ndarray, run: int) -> tuple[np.ndarray, ...]:
    """Return each second's smallest and largest value, and whether it stays there `run` samples: (N, seconds) each.

    eeg: (N, t) float32; starts: (seconds + 1,) first samples, the last one is the end.
    """
    eeg, lengths = eeg[:, : starts[-1]], np.diff(starts)
    fits = np.repeat(starts[1:], lengths) - np.arange(starts[-1]) >= run  # samples are left in the second
    extremes, stays = [], []
    for find in (np.minimum, np.maximum):
        extremes.append(find.reduceat(eeg, starts[:-1], axis=1))
        stay = eeg == np.repeat(extremes[-1], lengths, axis=1)
        reach = 1  # samples over which it is known to stay
        while reach < run:
            step = min(reach, run - reach)
            stay[:, :-step] &= stay[:, step:]
            reach += step
        stays.append(np.logical_or.reduceat(stay & fits, starts[:-1], axis=1))
    return *extremes, *stays


def warnings(quality: Quality) -> list[str]:
    """Return warnings about signals that should be EEG in uV: full sentences with numbers."""
    texts = unit_warnings(quality)
    seconds, invalid = len(quality.valid), int((~quality.valid).sum())
    if invalid > MANY_INVALID * seconds:
        texts.append(
            f"{invalid} of {seconds} seconds ({invalid / seconds:.1%}) cannot be used: an electrode is not finite in "
            "them, or all electrodes are flat."
        )
    for counts, limit, what in (
        (quality.flat, MANY_FLAT, "are flat"),
        (quality.saturated, MANY_SATURATED, "stick to their largest or smallest value"),
    ):
        if bad := {name: n for name, n in counts.items() if n > limit * quality.seconds}:
            shares = worst_first(bad, quality.seconds)
            texts.append(f"{len(bad)} electrode(s) {what} in more than {limit:.0%} of the seconds: {shares}.")
    return texts


def unit_warnings(quality: Quality) -> list[str]:
    """Return a warning if the amplitudes say that the unit is not uV."""
    median = replace(quality, histogram=np.concatenate([[0], quality.histogram[1:]])).percentile(50)  # 0 has no unit
    if median is None or LIKELY[0] <= median <= LIKELY[1]:
        return []
    if median < VOLTS:
        unit = "volts: multiply them by 1e6"
    elif median < LIKELY[0]:
        unit = "millivolts: multiply them by 1000"
    else:
        unit = "raw counts or nanovolts: convert them to microvolts"
    return [f"Half of all values are within {median:.2g} uV of zero, which no EEG is; they are probably {unit}."]


def first_few(words: Sequence[str], most: int = 5) -> str:
    """Join the first few of a list, and say how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def worst_first(counts: Mapping[str, int], seconds: int) -> str:
    """Return the electrodes with most bad seconds, and their share. counts: electrode -> bad seconds."""
    worst = sorted(counts, key=lambda name: -counts[name])
    return first_few([f"{name} {counts[name]} s ({counts[name] / seconds:.1%})" for name in worst])
