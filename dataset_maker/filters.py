"""Band-pass, notch and resampling with MNE's filters, for a whole recording or block by block.

MNE designs two FIR filters for `raw.filter(l_freq, h_freq)` and `raw.notch_filter(notch)`. Here they become one kernel,
designed once for each sampling rate. The recording's ends continue by odd reflection, as in MNE, so both ways agree to
rounding. A whole recording is resampled by `mne.filter.resample`, as by `raw.resample`: one FFT over its whole length.

A long recording is filtered with the same kernel in overlapping blocks, which changes nothing, and resampled by
`scipy.signal.resample_poly`. Output k lies at k / new_rate seconds, exactly. MNE rounds the length of its FFT, which
moves its outputs by up to half a sample. Where it does not, the two agree to 0.005 uV for EEG of 50 uV (tests).
Each stretch of a recording with breaks goes the same way, alone; one shorter than the kernel continues otherwise.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

import mne
import numpy as np
import scipy  # its parts load when they are used, so that --help is quick

NOTCH_EDGE = 0.5  # Hz: half of `mne.filter.notch_filter`'s trans_bandwidth
ROWS = 8  # channels that are filtered together: more take more memory and are not faster
LOW_PASS_END = 1.25  # MNE's low-pass at f Hz ends at 1.25 f
PASSED = 0.98  # of the lower Nyquist frequency passes a block's resampling unchanged, if no low-pass ends before
ATTENUATION = 100.0  # dB of that resampling beyond the cut-off
DENOMINATORS = (1_000, 10_000, 100_000)  # of the ratio of two rates; larger ones take longer kernels
MOST_DRIFT = 0.001  # samples that a ratio may be off at the end of the recording

Read = Callable[[int, int], np.ndarray]  # (start, stop) -> (N, stop - start)


@lru_cache(maxsize=32)
def kernel(rate: float, l_freq: float | None, h_freq: float | None, notch: float | None) -> np.ndarray:
    """Return one FIR kernel for MNE's band-pass and then its notch, in Hz (None: no such stage).

    It is symmetric and of odd length.
    """
    joined = np.ones(1)
    if l_freq or h_freq:
        joined = mne.filter.create_filter(None, rate, l_freq or None, h_freq or None, verbose="error")
    if notch:
        half = notch / 400 + NOTCH_EDGE  # MNE's notch is notch / 200 wide
        edges = {"l_trans_bandwidth": NOTCH_EDGE, "h_trans_bandwidth": NOTCH_EDGE}
        stop = mne.filter.create_filter(None, rate, notch + half, notch - half, verbose="error", **edges)
        joined = scipy.signal.convolve(joined, stop)
    return joined


def changes_rate(rate: float, new_rate: float) -> bool:
    """Whether `raw.resample(new_rate)` does anything to a recording at `rate` Hz: it ignores a difference of 1e-6."""
    return not np.isclose(new_rate, rate, rtol=1e-6, atol=0)


def output_length(samples: int, rate: float, new_rate: float) -> int:
    """Return the length that `raw.resample(new_rate)` gives a recording of `samples` at `rate` Hz."""
    return max(round(new_rate / rate * samples), 1) if changes_rate(rate, new_rate) else samples


def _mirrored(eeg: np.ndarray, before: int, after: int) -> np.ndarray:
    """Continue eeg (N, time) by odd reflection at its ends."""
    return np.pad(eeg, ((0, 0), (before, after)), mode="reflect", reflect_type="odd")


def _continued(eeg: np.ndarray, before: int, after: int) -> np.ndarray:
    """Continue a short eeg (N, time): the line that fits it goes on, what is left by even reflection, repeatedly.

    Odd reflection would make the values at its ends the zero of a high-pass: 4 s cut out of EEG of 12 uV err by 10 uV
    so, by 1 uV here. MNE's reflection ends in zeros, which leaves a part of an amplifier's offset.
    """
    time = np.arange(-before, eeg.shape[1] + after) - (eeg.shape[1] - 1) / 2
    inside = time[before : before + eeg.shape[1]]
    slope = eeg @ inside / max(inside @ inside, 1.0)
    rest = np.pad(eeg - np.outer(slope, inside), ((0, 0), (before, after)), mode="reflect")
    return rest + np.outer(slope, time)


def _apply(eeg: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Filter eeg (N, time + len(taps) - 1); returns the (N, time) in its middle."""
    if len(taps) == 1:
        return eeg
    groups = (eeg[start : start + ROWS] for start in range(0, len(eeg), ROWS))
    return np.concatenate([scipy.signal.oaconvolve(group, taps[None], mode="valid", axes=1) for group in groups])


def process_whole(eeg: np.ndarray, rate: float, taps: np.ndarray, new_rate: float) -> np.ndarray:
    """Filter and resample eeg (N, time) float64, at least as long as the kernel, as MNE does."""
    eeg = _apply(_mirrored(eeg, len(taps) // 2, len(taps) // 2), taps)
    return (
        mne.filter.resample(eeg, new_rate, rate, npad="auto", verbose="error") if changes_rate(rate, new_rate) else eeg
    )


def process_blocks(
    read: Read,
    samples: int,
    rate: float,
    taps: np.ndarray,
    new_rate: float,
    *,
    h_freq: float | None,
    block_samples: int,
    stretch: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield consecutive blocks (N, t) float64 of the filtered, resampled signal, `output_length` samples in all.

    read: gives samples start to stop of the source, (N, stop - start), asked for in order with overlaps.
    samples, rate: of the source, rate in Hz. taps: of `kernel`. h_freq: its low-pass, Hz. block_samples: source samples
    of a block, raised to the overlap's length. stretch: first sample and end of the only part that is read, at least
    one sample; the blocks hold the outputs that lie in it. One shorter than the kernel is one block (`_continued`).
    """
    first, last = stretch or (0, samples)
    is_short = stretch is not None and last - first < len(taps)
    extend = _continued if is_short else _mirrored
    up, down, smoothing = 1, 1, np.ones(1)
    if changes_rate(rate, new_rate):
        ratio = _ratio(rate, new_rate, samples)
        up, down = ratio.numerator, ratio.denominator
        smoothing = _resampling_kernel(rate, new_rate, up, h_freq)
    overlap = down * -(-(len(smoothing) // 2 // up + 1) // down) if up != down else 0  # source samples
    margin = overlap + len(taps) // 2
    least = last - first + down if is_short else margin
    step = down * -(-max(block_samples, least, 1) // down)  # a whole number of outputs
    skip = overlap // down * up
    length = output_length(samples, rate, new_rate)
    begin, end = (min(-(-sample * up // down), length) for sample in (first, last))  # of the outputs
    end = length if last == samples else end
    for start in range(first // down * down, last, step):  # an output lies on each start
        low, high = start - margin, start + step + margin
        eeg = read(max(low, first), min(high, last))
        eeg = _apply(extend(eeg, max(first - low, 0), max(min(high, last + margin) - last, 0)), taps)
        if up != down:
            eeg = scipy.signal.resample_poly(eeg, up, down, axis=1, window=smoothing)
        at = start // down * up
        yield eeg[:, skip + max(begin - at, 0) : skip + min(step // down * up, end - at)]


def _ratio(rate: float, new_rate: float, samples: int) -> Fraction:
    """Return new_rate / rate as a ratio of small numbers, good to MOST_DRIFT samples over the recording."""
    exact = Fraction(new_rate) / Fraction(rate)
    ratios = [exact.limit_denominator(most) for most in DENOMINATORS]
    return next((ratio for ratio in ratios if abs(ratio - exact) * samples <= MOST_DRIFT), ratios[-1])


@lru_cache(maxsize=8)
def _resampling_kernel(rate: float, new_rate: float, up: int, h_freq: float | None) -> np.ndarray:
    """Return resample_poly's FIR filter: it passes what the low-pass left and stops at its mirror frequency."""
    nyquist = min(rate, new_rate) / 2
    passed = min(PASSED * nyquist, (nyquist + LOW_PASS_END * h_freq) / 2 if h_freq else nyquist)
    count, beta = scipy.signal.kaiserord(ATTENUATION, 2 * (nyquist - passed) / (rate * up / 2))
    return scipy.signal.firwin(count | 1, nyquist, window=("kaiser", beta), fs=rate * up)
