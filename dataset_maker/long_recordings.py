"""Filter and resample a recording block by block, equal to MNE on the whole of it, in the memory of a few blocks.

The whole-recording steps are `raw.filter(l_freq, h_freq)`, `raw.notch_filter(notch)`, `raw.resample(new_rate)` with
MNE's defaults. Filters: a block is read with a margin of half the filters' length on both sides, so the margins of
neighbours together exceed that length; the recording's true ends are continued as MNE continues them.

Resampling: MNE mirrors the recording at its ends up to a power of two, `length`, and resamples that by one FFT. A
block has to repeat three things. Output k lies at k * length / round(length * ratio): neither at the nominal ratio nor
counted from the recording's start. The mirrored ends count, and so does the seam, the step from the last padded sample
to the first, which are neighbours to the FFT. And the FFT cuts at the lower of the two Nyquist frequencies without a
transition: that response falls off as 1 / time, so no overlap is ever long enough. It is therefore split into a
response with a smooth edge, which ends within OVERLAP and is applied in blocks, and the rest, a band of a fraction of
a Hz around the cut-off, which is collected at a few samples a second before the first block is made. Where a low-pass
has emptied that band (LEAK; 75 Hz does at 250, 256, 500, 512, 1000 Hz), only the seam is left in it. Otherwise (no
low-pass; 75 Hz at 151 to 201 Hz) the whole recording is, for this, read and filtered one more time.

Agreement with MNE, the two ends included (tests): filters 1e-9 uV; resampling 0.005 uV for noise of 50 uV, white or
like EEG, and 1e-4 uV where the whole band is collected.

Not done here: MNE filters what lies between annotations `edge` and `bad_acq_skip` apart, here all is one signal. A NaN
spoils what lies near it in its electrode, or all of that electrode if it gets into the band at the cut-off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, factorial, log2, pi

import numpy as np
from scipy import fft, signal, sparse
from scipy.special import ndtr

from dataset_maker.filters import apply_fir, changes_rate, kernels, output_length, resample

OVERLAP = 30.0  # s on both sides of a block that is resampled; half of it would double the width of _CutOffBand
EDGE = 4.3 / (2 * pi)  # the smooth edge's standard deviation * OVERLAP: its response has decayed to exp(-4.3**2 / 2)
REACH = 5.0  # standard deviations after which the smooth edge counts as 0 or 1 (3e-7)
LEAK = 10 ** (-55 / 20)  # what a low-pass may leave at the cut-off: 50 uV of white noise then err by 0.0006 uV (rms)
PRECISION = 1e-7  # of the series in the drift of a block's own grid against MNE's
PART = 2**14  # samples spread at once
TAPS = 14  # coarse samples that a sample is spread to, of a Gaussian that has decayed to 1e-5 there
WIDTH = 1.25  # the Gaussian's standard deviation in coarse samples

Read = Callable[[int, int], np.ndarray]  # (start, stop) -> (N, stop - start)


def process_blocks(
    read: Read,
    samples: int,
    rate: float,
    *,
    l_freq: float | None,
    h_freq: float | None,
    notch: float | None,
    new_rate: float | None,
    block_samples: int,
) -> Iterator[np.ndarray]:
    """Yield consecutive blocks (N, t) float64 of the filtered, resampled signal, `output_length` samples in all.

    read: (start, stop) -> (N, stop - start) float64 of the source, in any unit and order of calls, never changed.
    samples, rate: of the source, rate in Hz. l_freq, h_freq, notch, new_rate: Hz; None leaves a stage out.
    block_samples: source samples a block, raised to the overlaps' length if less: 60 s and the filters' length (40 s
    with the defaults). A recording of one block is resampled by one FFT. Memory: about (5 * N + 20) * 8 bytes *
    (block_samples + overlaps), and for resampling at most 1 / 8 byte * N * samples.
    Raises ValueError for an empty recording and whatever MNE raises.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}, but a recording has at least 1")
    filters = _Filters(rate, l_freq, h_freq, notch)
    resampled = new_rate is not None and changes_rate(rate, new_rate)
    overlap = ceil(OVERLAP * rate) if resampled else 0
    block = max(block_samples, 2 * (overlap + filters.margin))

    def filtered(start: int, stop: int) -> np.ndarray:
        first, last = max(start - filters.margin, 0), min(stop + filters.margin, samples)
        return filters(read(first, last))[:, start - first : stop - first]  # (N, stop - start)

    if not resampled:
        yield from (filtered(start, stop) for start, stop in _ranges(samples, block))
    elif samples <= block:
        yield resample(filtered(0, samples), rate, float(new_rate or 0))
    else:
        block = ceil(samples / ceil(samples / block))  # all alike: a short last one would cost as much as the others
        grid = _Grid.of(samples, rate, float(new_rate or 0), overlap)
        padded = _Padded(filtered, grid)
        band = _CutOffBand(padded, grid, block, everywhere=filters.gain(grid.band() * rate) > LEAK)
        yield from _resampled(padded, grid, block, band)


def _ranges(length: int, block: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of consecutive blocks of `length` samples; the last may be shorter."""
    return ((start, min(start + block, length)) for start in range(0, length, block))


class _Filters:
    """The band-pass and notch of `filters.py`, applied to pieces."""

    def __init__(self, rate: float, l_freq: float | None, h_freq: float | None, notch: float | None) -> None:
        """rate, edges and mains frequency in Hz; None leaves a stage out."""
        self.rate = rate
        self.kernels = kernels(rate, l_freq, h_freq, notch)
        self.margin = sum(len(kernel) // 2 + 1 for kernel in self.kernels)  # samples

    def __call__(self, eeg: np.ndarray) -> np.ndarray:
        """Return eeg (N, t) filtered; the argument stays as it is."""
        for kernel in self.kernels:
            eeg = apply_fir(eeg, kernel)
        return eeg

    def gain(self, frequencies: np.ndarray) -> float:
        """Return the largest gain at any of these frequencies in Hz, 1 if there is no filter."""
        responses = [signal.freqz(kernel, worN=frequencies, fs=self.rate)[1] for kernel in self.kernels]
        return float(np.abs(np.prod(responses, axis=0)).max())


@dataclass(frozen=True)
class _Grid:
    """How MNE resamples `samples` samples by FFT, all positions counted in source samples from the padding's start."""

    samples: int
    length: int  # with the padding: a power of two
    left: int  # samples of padding before the recording
    new_length: int  # output samples for `length` source samples
    first: int  # first output sample that is kept
    kept: int
    overlap: int  # samples that the smooth edge's response lasts on either side

    @classmethod
    def of(cls, samples: int, rate: float, new_rate: float, overlap: int) -> "_Grid":
        ratio = new_rate / rate
        length = 2 ** ceil(log2(samples + 2 * min(samples // 8, 100)))
        left = (length - samples) // 2
        kept = output_length(samples, rate, new_rate)
        return cls(samples, length, left, max(round(ratio * length), 1), round(ratio * left), kept, overlap)

    @property
    def step(self) -> float:
        """Source samples per output sample."""
        return self.length / self.new_length

    @property
    def cut_off(self) -> float:
        """The lower Nyquist frequency in cycles per source sample."""
        return min(self.length, self.new_length) / (2 * self.length)

    @property
    def edge(self) -> float:
        """The smooth edge's standard deviation in cycles per source sample."""
        return EDGE / self.overlap

    def band(self) -> np.ndarray:
        """Frequencies in cycles per source sample across the smooth edge."""
        return np.linspace(self.cut_off - REACH * self.edge, min(self.cut_off + REACH * self.edge, 0.5), 101)

    def smooth(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the smooth edge's response: 1 below the cut-off, 0.5 at it, 0 above."""
        return ndtr((self.cut_off - frequencies) / self.edge)

    def sharp(self, bins: np.ndarray) -> np.ndarray:
        """Return the response of MNE's FFT at these bins of an FFT of `length`, at the cut-off's own bin included."""
        used = min(self.length, self.new_length)
        at_cut_off = 1.0 if self.new_length < self.length else 0.5
        return np.where(2 * bins < used, 1.0, np.where(2 * bins == used, at_cut_off, 0.0))


class _Padded:
    """The filtered recording with MNE's padding: mirrored through its two end points, and periodic."""

    def __init__(self, filtered: Read, grid: _Grid) -> None:
        """filtered: (start, stop) -> (N, stop - start) within the recording."""
        self.filtered, self.grid = filtered, grid
        self.ends = filtered(0, 1), filtered(grid.samples - 1, grid.samples)  # (N, 1) each

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Return (N, stop - start), positions counted from the padding's start."""
        parts = []
        while start < stop:
            first = start % self.grid.length - self.grid.left
            border = next(end for end in (0, self.grid.samples, self.grid.length - self.grid.left) if first < end)
            last = min(first + stop - start, border)
            parts.append(self._part(first, last))
            start += last - first
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _part(self, first: int, last: int) -> np.ndarray:
        """Return samples that lie all before, all within or all after the recording, counted from its start."""
        if 0 <= first < self.grid.samples:
            return self.filtered(first, last)
        end, centre = (self.ends[0], 0) if first < 0 else (self.ends[1], 2 * (self.grid.samples - 1))
        return 2 * end - self.filtered(centre - last + 1, centre - first + 1)[:, ::-1]


class _CutOffBand:
    """What MNE's sharp edge passes beyond the smooth one: a narrow band, kept at a few samples a second.

    The band around the cut-off is shifted to 0 Hz and gathered on a coarse grid, samples spread by a Gaussian; its
    FFT, cleared of the Gaussian, is exactly the part of the recording's FFT that the smooth edge treats otherwise.
    """

    def __init__(self, padded: _Padded, grid: _Grid, block: int, *, everywhere: bool) -> None:
        """Go once through the padded recording, `block` samples at a time, or only through what surrounds its seam."""
        self.grid = grid
        self.centre = min(grid.length, grid.new_length) // 2  # bin of an FFT of grid.length
        self.coarse = 2 ** int(log2(1 / (3 * REACH * grid.edge)))  # source samples; divides grid.length
        self.points = grid.length // self.coarse
        rows = len(padded.ends[0])
        self.band = np.zeros((rows, self.points + 2 * TAPS), complex)  # periodic, TAPS more on both sides
        pieces = (0, grid.overlap), (grid.length - grid.overlap, grid.length)
        for start, stop in _ranges(grid.length, block) if everywhere else pieces:
            positions = np.arange(start, stop)
            eeg = padded(start, stop)
            if not everywhere:  # fades out: to end at once would be another step
                eeg = eeg * np.cos(pi / 2 * np.minimum(positions, grid.length - positions) / grid.overlap) ** 2
            for part, columns, spread in self._spread(positions):
                self.band[:, columns] += eeg[:, part] @ spread
        weights = self._weights()
        for row in self.band:
            row[TAPS : 2 * TAPS] += row[-TAPS:]
            row[-2 * TAPS : -TAPS] += row[:TAPS]
            row[TAPS:-TAPS] = fft.ifft(fft.fft(row[TAPS:-TAPS]) * weights)
            row[:TAPS], row[-TAPS:] = row[-2 * TAPS : -TAPS], row[TAPS : 2 * TAPS]

    def add_to(self, eeg: np.ndarray, positions: np.ndarray) -> None:
        """Add the band's part of the output to eeg (N, t) at t positions."""
        for part, columns, spread in self._spread(positions):
            eeg[:, part] += 2 * (self.band[:, columns] @ spread.conj().T).real

    def _spread(self, positions: np.ndarray) -> Iterator[tuple[slice, slice, sparse.csr_matrix]]:
        """Yield parts of the positions (t,), columns of `band` they reach, and Gaussian weights (t, columns) for these.

        The weights are turned to the band's centre. In parts, since they take TAPS times the memory of one electrode.
        """
        for start in range(0, len(positions), PART):
            part = positions[start : start + PART]
            columns = np.floor(part / self.coarse).astype(int)[:, None] + np.arange(TAPS) + 1 - TAPS // 2  # (t, TAPS)
            weights = np.exp(-0.5 * ((part[:, None] / self.coarse - columns) / WIDTH) ** 2)
            turned = weights * np.exp(-2j * pi * (self.centre / self.grid.length) * part)[:, None]
            first, stop = int(columns[0, 0]), int(columns[-1, -1]) + 1
            indices = ((columns - first).ravel(), np.arange(len(part) + 1) * TAPS)
            matrix = sparse.csr_matrix((turned.ravel(), *indices), shape=(len(part), stop - first))
            yield slice(start, start + len(part)), slice(first + TAPS, stop + TAPS), matrix

    def _weights(self) -> np.ndarray:
        """Return the coarse FFT's weights: sharp minus smooth, through the Gaussian's response twice."""
        offsets = np.rint(fft.fftfreq(self.points) * self.points).astype(int)  # bins from the centre
        bins = self.centre + offsets
        rest = self.grid.sharp(bins) - self.grid.smooth(bins / self.grid.length)
        rest[np.abs(offsets) > REACH * self.grid.edge * self.grid.length] = 0
        width = WIDTH * self.coarse
        gaussian = width * np.sqrt(2 * pi) * np.exp(-2 * (pi * width * offsets / self.grid.length) ** 2)
        return np.divide(rest * self.coarse, gaussian**2, out=np.zeros(self.points), where=rest != 0)


def _sizes(grid: _Grid, at_least: int) -> tuple[int, int]:
    """Return even FFT sizes before and after resampling whose ratio is MNE's as nearly as the choice allows."""
    sizes: list[tuple[float, int, int]] = []
    size = at_least
    while size <= 1.1 * at_least or not sizes:
        size = fft.next_fast_len(size)
        if size % 2 == 0:
            new_size = 2 * round(size / grid.step / 2)
            sizes.append((round(abs(new_size * grid.step - size), 6), size, new_size))
        size += 1
    return min(sizes)[1:]


def _resampled(padded: _Padded, grid: _Grid, block: int, band: _CutOffBand) -> Iterator[np.ndarray]:
    """Yield blocks of the recording resampled: smooth edge by FFT of each block, plus the band at the cut-off."""
    size, new_size = _sizes(grid, block + 2 * grid.overlap + ceil(8 * max(grid.step, 1)))
    skip = ceil((grid.overlap + 1) * new_size / size)  # outputs that the response of either end of a block spoils
    most = new_size - 2 * skip - 2
    for start in range(0, grid.kept, most):
        count = min(most, grid.kept - start)
        positions = (grid.first + start + np.arange(count)) * grid.step
        begin = int(positions[0]) - grid.overlap
        eeg = _resampled_block(padded(begin, begin + size), positions - begin, grid, new_size, skip)
        band.add_to(eeg, positions)
        yield eeg


def _resampled_block(eeg: np.ndarray, positions: np.ndarray, grid: _Grid, new_size: int, skip: int) -> np.ndarray:
    """Return eeg (N, t) at these positions within it, which lie almost as the outputs skip, skip + 1, ... of an FFT.

    They are the same in the block's middle by a turn of the phases, and elsewhere by a series in what is left.
    """
    size, count = eeg.shape[1], len(positions)
    off = positions - (skip + np.arange(count)) * (size / new_size)
    drift = off - off[count // 2]
    bins = np.arange(min(ceil((grid.cut_off + REACH * grid.edge) * size), size - 1) + 1)
    turns = 2j * pi * bins / size
    response = grid.smooth(bins / size) * np.exp(turns * off[count // 2]) * (new_size / size)
    series = [drift**power / factorial(power) for power in _powers(2 * pi * grid.cut_off * np.abs(drift).max())]
    result = np.empty((len(eeg), count))
    for row, out in zip(eeg, result, strict=True):
        spectrum = _extended(fft.rfft(row), len(bins), size) * response
        out[:] = fft.irfft(_folded(spectrum, new_size // 2), new_size)[skip : skip + count]
        for term in series:
            spectrum *= turns
            out += term * fft.irfft(_folded(spectrum, new_size // 2), new_size)[skip : skip + count]
    return result


def _powers(angle: float) -> range:
    """Return the powers, from 1, that exp(1j * angle) takes to PRECISION."""
    power = 0
    while angle ** (power + 1) / factorial(power + 1) > PRECISION:
        power += 1
    return range(1, power + 1)


def _extended(spectrum: np.ndarray, bins: int, size: int) -> np.ndarray:
    """Return the first bins of a real signal's FFT of an even `size`, with the images beyond Nyquist if they reach."""
    if bins <= len(spectrum):
        return spectrum[:bins]
    return np.concatenate([spectrum, spectrum[size - bins + 1 : size // 2][::-1].conj()])


def _folded(spectrum: np.ndarray, nyquist: int) -> np.ndarray:
    """Return the spectrum (nyquist + 1,) for irfft: bins beyond the output's Nyquist count as their aliases."""
    folded = np.zeros(nyquist + 1, complex)
    folded[: min(len(spectrum), nyquist + 1)] = spectrum[: nyquist + 1]
    beyond = spectrum[nyquist + 1 :]
    folded[nyquist - len(beyond) : nyquist] += beyond[::-1].conj()
    folded[nyquist] *= 2  # irfft counts it once, all others twice
    return folded
