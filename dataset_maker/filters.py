"""MNE's filters and resampling, applied to all channels together: two to three times as fast, equal to rounding.

The kernels are designed by MNE (`mne.filter.create_filter`), once for each rate; MNE's own methods design them anew for
every recording and take one channel after the other. Edges are continued as MNE does, by odd reflection.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import mne
import numpy as np
from scipy import fft

NOTCH_EDGE = 0.5  # Hz: half of `mne.filter.notch_filter`'s trans_bandwidth


@lru_cache(maxsize=32)
def kernels(rate: float, l_freq: float | None, h_freq: float | None, notch: float | None) -> tuple[np.ndarray, ...]:
    """Return the FIR kernels of `raw.filter(l_freq, h_freq)` and then `raw.notch_filter(notch)`, all in Hz.

    Each is symmetric, of odd length; a stage that is None or 0 has none.
    """
    found = []
    if l_freq or h_freq:
        found.append(mne.filter.create_filter(None, rate, l_freq or None, h_freq or None, verbose="error"))
    if notch:
        half = notch / 400 + NOTCH_EDGE  # MNE's notch is notch / 200 wide
        edges = {"l_trans_bandwidth": NOTCH_EDGE, "h_trans_bandwidth": NOTCH_EDGE}
        found.append(mne.filter.create_filter(None, rate, notch + half, notch - half, verbose="error", **edges))
    return tuple(found)


def changes_rate(rate: float, new_rate: float) -> bool:
    """Whether `raw.resample(new_rate)` does anything to a recording at `rate` Hz: it ignores a difference of 1e-6."""
    return not np.isclose(new_rate, rate, rtol=1e-6, atol=0)


def output_length(samples: int, rate: float, new_rate: float | None) -> int:
    """Return the length that `raw.resample(new_rate)` gives a recording of `samples` at `rate` Hz."""
    if new_rate is None or not changes_rate(rate, new_rate):
        return samples
    return max(round(new_rate / rate * samples), 1)


def _reflected(eeg: np.ndarray, before: int, after: int) -> np.ndarray:
    """Continue eeg (N, time) at both ends by odd reflection, and by zeros where it is too short for that."""
    reach = eeg.shape[1] - 1
    left, right = min(before, reach), min(after, reach)
    parts = [
        np.zeros((len(eeg), before - left)),
        2 * eeg[:, :1] - eeg[:, left:0:-1],
        eeg,
        2 * eeg[:, -1:] - eeg[:, -2 : -right - 2 : -1],
        np.zeros((len(eeg), after - right)),
    ]
    return np.concatenate(parts, axis=1)


def apply_fir(eeg: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter eeg (N, time) with a symmetric kernel of odd length, without delay; by overlap-save FFTs.

    In as many threads as `scipy.fft.set_workers` says, each with some of the channels.
    """
    threads = min(fft.get_workers(), len(eeg))
    filtered = np.empty_like(eeg)
    if threads == 1:
        _filter_into(filtered, eeg, kernel)
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = (np.array_split(whole, threads) for whole in (filtered, eeg))
            list(pool.map(_filter_into, *parts, [kernel] * threads))
    return filtered


def _filter_into(filtered: np.ndarray, eeg: np.ndarray, kernel: np.ndarray) -> None:
    edge, samples = len(kernel) - 1, eeg.shape[1]
    padded = _reflected(eeg, edge // 2, edge // 2)  # what the outputs depend on
    size = min(1 << int(np.ceil(np.log2(4 * len(kernel)))), fft.next_fast_len(padded.shape[1], real=True))
    spectrum, step = fft.rfft(kernel, size), size - edge
    for start in range(0, samples, step):
        product = fft.rfft(padded[:, start : start + size], size)
        product *= spectrum
        piece = fft.irfft(product, size, overwrite_x=True)
        count = min(step, samples - start)
        filtered[:, start : start + count] = piece[:, edge : edge + count]


def resample(eeg: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample eeg (N, time) by one FFT of its whole length, as `raw.resample(new_rate)`: (N, round(time * ratio))."""
    ratio, samples = new_rate / rate, eeg.shape[1]
    length = output_length(samples, rate, new_rate)
    padded = 1 << int(np.ceil(np.log2(samples + 2 * min(samples // 8, 100))))  # as MNE's npad="auto"
    before = (padded - samples) // 2
    new = max(round(ratio * padded), 1)
    first = round(ratio * before)
    spectrum = fft.rfft(_reflected(eeg, before, padded - samples - before))
    used = min(padded, new)
    if used % 2 == 0:  # the highest frequency of the shorter one stands for two
        spectrum[:, used // 2] *= 2 if new < padded else 0.5
    return fft.irfft(spectrum * (new / padded), new)[:, first : first + length]
