"""Scan signals: which seconds can be used, which electrodes are flat, saturated, not finite or on another scale than
their fellows, how large the values are. `verdicts` says what follows.

Needs NumPy only: makers, training and `dataset_maker.inspect_data` share it. Signals are (N, time) in uV.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from errors import InputError

FLAT = 0.1  # uV: an electrode that moves less in a second is flat, if it also moves less than
FLAT_SHARE = 0.01  # of the recording's median movement; else signals in volts would all be flat
MIN_PART = 0.1  # s: a shorter last second is never flat
STUCK_SECONDS, STUCK_SAMPLES = 0.01, 3  # an electrode that stays so long at its extreme is saturated
LIKELY = (0.3, 1e3)  # uV: a median of |EEG| outside it is of another unit
OTHER_SCALE = 30  # times larger or smaller than its fellows is an electrode, or a recording, on another scale
MOST_OTHERS = 0.75  # share of the electrodes; if more have another scale than EEG, the whole recording has
FEW = 16  # an electrode, or a recording, is left out of the median that it is compared with
WHOLE_BELOW = 2.0**20  # float32 holds larger values as whole numbers
BLOCK = 2**18  # values scanned at a time: they stay in the processor's cache
UNUSABLE = "not finite, all electrodes flat, marked as bad, or a break"  # why a second is not valid
COUNTS = ("not_finite", "flat", "saturated", "other_scale")

A_DECADE, LOWEST, HIGHEST = 20, -9, 13  # bins of a histogram: 20 a decade from 1e-9 to 1e13 uV
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
    other_scale: dict[str, int] = field(default_factory=dict)  # electrode (x its factor) -> seconds of such recordings
    movement: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))  # (BINS,): of electrodes in seconds
    whole: bool = False  # whether all values are whole numbers, such as raw counts

    @classmethod
    def merged(cls, parts: Iterable["Quality"]) -> "Quality":
        """Add several up; `valid` one after the other."""
        valid, seconds, whole = [np.zeros(0, bool)], 0, []
        histogram, movement = np.zeros((2, BINS), np.int64)
        counts = {key: Counter[str]() for key in COUNTS}
        for part in parts:
            valid.append(part.valid)
            for key in COUNTS:
                counts[key].update(getattr(part, key))
            histogram += part.histogram
            movement += part.movement
            seconds += part.seconds
            whole.append(part.whole)
        found: dict[str, Any] = {"histogram": histogram, "movement": movement, **counts}
        return cls(np.concatenate(valid), **found, seconds=seconds, whole=bool(whole) and all(whole))

    def to_json(self) -> str:
        """Write everything but `valid`."""
        content = {key: getattr(self, key) for key in (*COUNTS, "seconds", "whole")}
        for key in ("histogram", "movement"):
            content[key] = {str(i): int(getattr(self, key)[i]) for i in np.flatnonzero(getattr(self, key))}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: Any, valid: np.ndarray, where: str = "attribute quality") -> "Quality":
        """Read what `to_json` wrote, also before it had all keys.

        Raises InputError, which begins with `where`, for anything else.
        """
        try:
            content = {"other_scale": {}, "movement": {}, "whole": False} | json.loads(text)
            histograms = {key: np.zeros(BINS, np.int64) for key in ("histogram", "movement")}
            for key, histogram in histograms.items():
                for place, count in content[key].items():
                    histogram[int(place)] = count
            parts: dict[str, Any] = histograms | {key: dict(content[key]) for key in COUNTS}
            return cls(valid, **parts, seconds=int(content["seconds"]), whole=bool(content["whole"]))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            raise InputError(f"{where}: quality is no JSON of a scan: make the file again") from None

    def percentile(self, p: float) -> float | None:
        """Return the |uV| that p % of the values do not pass, to the width of a bin (12 %); None without values."""
        return _percentile(self.histogram, p)

    @property
    def median(self) -> float | None:
        """Median of the |uV| that are not 0: those have no unit. None without values."""
        return median_of(self.histogram)


def compared(scans: Iterable[tuple[str, Quality | None]]) -> tuple[Quality, dict[str, float | None]]:
    """Merge the scans of named recordings; also returns the recordings' medians in uV."""
    levels: dict[str, float | None] = {}

    def parts() -> Iterator[Quality]:
        for name, scan in scans:
            if scan is not None:
                levels[name] = scan.median
                yield scan

    return Quality.merged(parts()), levels


def _percentile(histogram: np.ndarray, p: float) -> float | None:
    upto = np.cumsum(histogram)
    if not upto[-1]:
        return None
    rank = max(p / 100 * upto[-1], 1)
    place = int(np.searchsorted(upto, rank))
    if place in (0, BINS - 1):  # these have one edge only
        return 0.0 if place == 0 else float(EDGES[-1])
    low, high = EDGES[place - 1 : place + 1]
    return float(low * (high / low) ** ((rank - upto[place - 1]) / histogram[place]))


def median_of(histogram: np.ndarray) -> float | None:
    """Return the median of a histogram's values, without those in its lowest bin."""
    return _percentile(np.concatenate([[0], histogram[1:]]), 50)


def _pieces(eeg: np.ndarray) -> Iterator[np.ndarray]:
    """Cut a signal into pieces that stay in the processor's cache. eeg: (N, t) -> (N, some samples) float32."""
    step = max(1, BLOCK // max(1, len(eeg)))
    for start in range(0, eeg.shape[1], step):
        with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 is infinite to a model, too
            piece = np.ascontiguousarray(eeg[:, start : start + step], dtype=np.float32)
        yield piece


def amplitude_histogram(eeg: np.ndarray) -> np.ndarray:
    """Count each electrode's finite |uV| in the histogram's bins, (N, BINS). eeg: (N, t) uV."""
    counts = np.zeros(len(eeg) * BINS, np.int64)
    first = BINS * np.arange(len(eeg), dtype=np.float32)[:, None]  # bin of each electrode
    for piece in _pieces(eeg):
        finite = np.isfinite(piece)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 is in the lowest bin
            places = np.log10(np.abs(piece))
            places *= A_DECADE
            np.floor(places, out=places)
            places += 1 - A_DECADE * LOWEST
        np.clip(places, 0, BINS - 1, out=places)
        places += first
        places = places.ravel() if finite.all() else places[finite]
        counts += np.bincount(places.astype(np.intp), minlength=len(counts))
    return counts.reshape(len(eeg), BINS)


def unlike(levels: Mapping[str, float]) -> dict[str, float]:
    """Return which are on another scale than their fellows: name -> how many times the fellows' median.

    levels: name of an electrode, or a recording -> its median |uV|. Fellows are the others with the amplitudes of EEG;
    if hardly any has them, nothing tells which scale is right, and none is returned.
    """
    fellows = {name: level for name, level in levels.items() if LIKELY[0] <= level <= LIKELY[1]}
    if len(fellows) < max((1 - MOST_OTHERS) * len(levels), 1):
        return {}
    usual, factors = np.median(list(fellows.values())), {}
    for name, level in levels.items():
        if len(fellows) <= FEW:  # of many, one more or less does not count
            usual = np.median([other for its, other in fellows.items() if its != name] or [level])
        factors[name] = level / float(usual)
    return {name: factor for name, factor in factors.items() if _is_other(factor)}


def with_factor(name: str, factor: float) -> str:
    """Return a name and the power of ten nearest to its factor."""
    return f"{name} (x 1e{round(math.log10(factor))})"


def _is_other(factor: float) -> bool:
    return not 1 / OTHER_SCALE < factor < OTHER_SCALE


class SignalScan:
    """Scan one signal piece by piece; how it is cut changes nothing. Memory grows with its seconds.

    electrodes: names of the rows; rate: samples a second, maybe a fraction; amplitudes: whether to fill the histogram,
    which takes most of the time; marked: (seconds,) bool, which ones are known to be bad and say nothing of the unit.
    """

    def __init__(
        self, electrodes: Sequence[str], rate: float, *, amplitudes: bool = True, marked: np.ndarray | None = None
    ) -> None:
        self.electrodes, self.rate, self.amplitudes, self.marked = list(electrodes), float(rate), amplitudes, marked
        self._run = max(STUCK_SAMPLES, math.ceil(STUCK_SECONDS * self.rate))  # samples
        self._seconds = 0  # whole ones so far
        self._rest = np.empty((len(self.electrodes), 0), np.float32)  # of the second that is not whole yet
        self._parts: list[tuple[np.ndarray, ...]] = []  # of whole seconds, as `_extremes` gives them
        self._moved = [np.empty((2, 0))]  # of their seconds: the electrodes' largest and median movement, uV
        self._histogram = np.zeros((len(self.electrodes), BINS), np.int64)
        self._whole = True

    def add(self, eeg: np.ndarray) -> None:
        """Scan the next samples. eeg: (N, t) uV, any t."""
        if self.amplitudes:
            self.count(eeg)
        for piece in _pieces(eeg):
            if self._whole:
                small = piece[np.abs(piece) < WHOLE_BELOW]
                self._whole = bool((small == np.rint(small)).all())
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

    def count(self, eeg: np.ndarray) -> None:
        """Add the amplitudes of eeg, (N, t) uV, to the histogram."""
        self._histogram += amplitude_histogram(eeg)

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
        found: dict[str, Any] = dict(
            zip(COUNTS, map(self._by_electrode, (~finite, flat, stuck & finite & ~flat)), strict=False)
        )
        if self.marked is not None:
            judged &= ~self.marked[: len(valid)]
        other = self._other_scale(moved, judged).items()
        found["other_scale"] = {with_factor(name, factor): len(valid) for name, factor in other}
        found |= {"histogram": self._histogram.sum(axis=0), "seconds": len(valid), "whole": self._whole}
        return Quality(valid, **found, movement=amplitude_histogram(moved[judged & ~flat][None])[0])

    def _other_scale(self, moved: np.ndarray, judged: np.ndarray) -> dict[str, float]:
        """Return the electrodes on another scale than their fellows, and how many times as large they are.

        A wrong unit changes amplitudes and movement alike. An offset changes the one, noise of mains before the filter
        the other. moved, judged: (N, seconds) uV and bool.
        """
        levels = dict(zip(self.electrodes, map(median_of, self._histogram), strict=True))
        factors = unlike({name: level for name, level in levels.items() if level})
        if not factors:
            return {}
        movements = {
            name: float(np.median(row[its])) if its.any() else 0.0
            for name, row, its in zip(self.electrodes, moved, judged, strict=True)
        }
        alike = [movement for name, movement in movements.items() if name not in factors] or [*movements.values()]
        usual = float(np.median(alike))
        other = {}
        for name, factor in factors.items():
            movement = movements[name] / usual if usual else 0.0  # 0: it is flat, which is said already
            if movement and _is_other(movement) and (movement > 1) == (factor > 1):
                other[name] = factor
        return other

    def usable(self, eeg: np.ndarray, at: int, rate: float) -> np.ndarray:
        """Return the samples in usable seconds of the filtered signal, eeg (N, t) from sample `at` on, rate in Hz.

        The others (filtered noise of electrodes that were taken off) say nothing of the unit.
        """
        seconds = ((at + np.arange(eeg.shape[1])) / rate).astype(np.int64)
        # As far as it was scanned by now. `result` would take longer with every block: a tenth of a day's conversion.
        largest, median = np.concatenate(self._moved, axis=1)
        valid = np.isfinite(largest) & (largest > _flat_up_to(median[np.isfinite(median)]))
        if self.marked is not None:
            valid &= ~self.marked[: len(valid)]
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
