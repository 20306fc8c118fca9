"""Check what a tokenizer is fed: recordings as given, and under the usual mistakes (`run_inference.py check`).

A tokenizer's error shows a wrong scale, but neither a wrong rate (slower signals have spectra that are easier to
predict) nor electrodes in a wrong order (docs/inference.md has the numbers). These two are judged by the EEG itself.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import mne
import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly, welch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from dataset_maker.bads import PLACES
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import InputError
from inference.recordings import Windows

logger = logging.getLogger(__name__)

PAIRS = 4  # of consecutive windows that are taken of a recording, evenly spread
SCALES = (1.0, 0.01, 100.0)
# Factor on the stated rate, and Hz where the alpha rhythm, at 8 to 13 Hz, then appears.
RATES = {1.0: (7.5, 13.2), 0.5: (15.0, 26.4), 2.0: (3.75, 6.6)}
LIKELY = (1.0, 200.0)  # uV: median of |EEG| between 0.1 and 75 Hz
NEIGHBOURHOOD = 1.7  # a rhythm stands out of the spectrum at this many times less and more Hz
SMOOTH = 0.25  # of a frequency, by which the spectrum is smoothed: noise has no rhythm
PROMINENT = 0.05  # log10 of power times frequency
SHUFFLES = 99
LEAST_PLACES = 6  # electrodes with a known place


@dataclass
class Findings:
    """What `measure` has found in each recording."""

    errors: dict[str, list[float]] = field(default_factory=dict)  # variant -> mean of amplitude's and phase's error
    medians: list[float] = field(default_factory=list)  # of |EEG|, uV
    spectra: list[np.ndarray] = field(default_factory=list)  # log10 of power, means over the electrodes
    alike: list[tuple[float, float]] = field(default_factory=list)  # likeness of neighbours, the most by chance


def variants(windows: Windows) -> Iterator[tuple[str, Windows]]:
    """Yield windows as given and under each mistake, by name. windows: consecutive pairs."""
    order = np.random.default_rng(0).permutation(len(windows.electrodes))
    for scale in SCALES:
        yield _scaled(scale), _changed(windows, partial(np.multiply, np.float32(scale)))
    yield "half the rate", _changed(windows, partial(resample_poly, up=2, down=1, axis=1))
    yield "twice the rate", _changed(windows, partial(resample_poly, up=1, down=2, axis=1))
    yield "electrodes shuffled", _changed(windows, partial(np.take, indices=order, axis=0))


def _changed(windows: Windows, change: Callable[[np.ndarray], np.ndarray]) -> Windows:
    """Join consecutive pairs, change them, (N, time) -> (N, other time), and cut them again."""
    eeg = [change(np.hstack([windows.read(i), windows.read(i + 1)])) for i in range(0, len(windows) - 1, 2)]
    cut = np.concatenate([np.split(part, part.shape[1] // windows.samples, axis=1) for part in eeg])
    return replace(windows, starts=np.arange(len(cut), dtype=float), read=lambda i: cut[i].astype(np.float32))


def _scaled(scale: float) -> str:
    return "as given" if scale == 1 else f"x {scale:g}"


def measure(error_of: Callable[[Windows], float], windows: Windows, into: Findings) -> None:
    """Add one recording. error_of: of a tokenizer. Raises InputError if there are fewer than two windows."""
    if len(windows) < 2:
        raise InputError(f"{windows.where}: gives {len(windows)} window; check needs two: choose a shorter --window")
    firsts = np.unique(np.linspace(0, len(windows) - 2, PAIRS).astype(int))
    numbers = np.stack([firsts, firsts + 1], axis=1).ravel()
    chosen = replace(windows, starts=windows.starts[numbers], read=lambda i: windows.read(int(numbers[i])))
    for name, variant in variants(chosen):
        into.errors.setdefault(name, []).append(error_of(variant))
    eeg = np.hstack([chosen.read(i) for i in range(len(chosen))]).astype(np.float64)  # (N, time)
    into.medians.append(float(np.median(np.abs(eeg))))
    power = welch(eeg, SAMPLING_RATE, nperseg=4 * SAMPLING_RATE)[1]
    into.spectra.append(np.log10(power + 1e-30).mean(axis=0))
    if likeness := _likeness(eeg, windows.electrodes):
        into.alike.append(likeness)


def _likeness(eeg: np.ndarray, electrodes: tuple[str, ...]) -> tuple[float, float] | None:
    """Return how well nearness of two electrodes says how alike they are, and the most under random orders.

    eeg: (N, time). Both are rank correlations over pairs. None where too few places are known.
    """
    montage = next(name for name in PLACES if name in mne.channels.get_builtin_montages())
    known = mne.channels.make_standard_montage(montage).get_positions()["ch_pos"]
    known = {name.upper(): place for name, place in known.items()}
    rows = [row for row, name in enumerate(electrodes) if name in known and eeg[row].std() > 0]
    if len(rows) < LEAST_PLACES:
        return None
    near = -squareform(pdist([known[electrodes[row]] for row in rows]))
    pairs, alike, draw = np.triu_indices(len(rows), 1), np.corrcoef(eeg[rows]), np.random.default_rng(0)
    orders = [np.arange(len(rows)), *(draw.permutation(len(rows)) for _ in range(SHUFFLES))]
    own, *others = (float(spearmanr(near[pairs], alike[np.ix_(order, order)][pairs])[0]) for order in orders)
    return own, max(others)


def rhythm(spectra: list[np.ndarray]) -> float | None:
    """Return the Hz of the most prominent rhythm between 3.75 and 26.4 Hz, or None. spectra: log10 of power."""
    step = 0.02
    hz = np.exp(np.arange(np.log(2), np.log(48), step))
    grid = np.linspace(0, SAMPLING_RATE / 2, len(spectra[0]))
    level = np.interp(hz, grid, np.mean(spectra, axis=0)) + np.log10(hz)
    level = uniform_filter1d(level, round(SMOOTH / step))
    n = round(np.log(NEIGHBOURHOOD) / step)
    height = np.minimum(level[n:-n] - level[: -2 * n], level[n:-n] - level[2 * n :])
    inside = hz[n:-n]
    height[(inside < RATES[2.0][0]) | (inside > RATES[0.5][1])] = -np.inf
    return float(inside[height.argmax()]) if height.max() > PROMINENT else None


def report(found: Findings, *, scale: float = 1.0) -> list[str]:
    """Log a table and what it says; return what is wrong with the recordings, each with its way out.

    scale: factor that they have had already.
    """
    errors = {name: float(np.mean(values)) for name, values in found.errors.items()}
    logger.info("%d recording(s); the tokenizer reconstructs their spectra with an error of", len(found.medians))
    for name, error in errors.items():
        logger.info("  %.4f %s", error, name)
    logger.info("(slower signals always have smaller errors, so the error says nothing of the rate)")
    wrong = (
        _of_scale(errors, float(np.mean(found.medians)), scale),
        _of_rate(found.spectra),
        _of_electrodes(found.alike),
    )
    return [text for text in wrong if text]


def _of_scale(errors: dict[str, float], median: float, scale: float) -> str:
    likely = [factor for factor in SCALES if LIKELY[0] <= factor * median <= LIKELY[1]]
    best = min(likely or SCALES, key=lambda factor: errors[_scaled(factor)])
    among = "" if likely else f"; none gives a median |EEG| of {LIKELY[0]:g} to {LIKELY[1]:g} uV"
    logger.info("scale: median |EEG| %.3g uV; fits best: %s%s", median, _scaled(best), among)
    return "" if best == 1 else f"the values fit better x {best:g}: --scale {best * scale:g}"


def _of_rate(spectra: list[np.ndarray]) -> str:
    hz = rhythm(spectra) or 0.0
    best = next((factor for factor, (low, high) in RATES.items() if low <= hz <= high), None)
    if best is None:
        logger.info("rate: cannot tell, no rhythm stands out where alpha would be")
        return ""
    logger.info("rate: the most prominent rhythm has %.1f Hz; fits best: %s", hz, _scaled(best))
    return (
        "" if best == 1 else f"the rate fits better x {best:g} (alpha would be at {hz:.1f} Hz): correct the recordings"
    )


def _of_electrodes(alike: list[tuple[float, float]]) -> str:
    if not alike:
        logger.info("electrodes: cannot tell, fewer than %d have a place that is known", LEAST_PLACES)
        return ""
    shuffled = sum(own <= most for own, most in alike)
    text = (
        "electrodes: near ones are alike, rank correlation %.2f (in random orders at most %.2f); as given in %d of %d"
    )
    logger.info(text, *np.mean(alike, axis=0), len(alike) - shuffled, len(alike))
    wrong = "electrodes fit no better than in random orders: correct the channels' names (--rename)"
    return wrong if 2 * shuffled >= len(alike) else ""
