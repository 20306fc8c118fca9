"""Find recordings that two data sets share, under whatever names and after whatever rates, filters and references.

The digest of a second is the phases, from 2 to 30 Hz, of the difference between two electrodes. Amplitudes, references
and filters without delay do not change it. A second lies around a peak of the signal, so two data sets choose the same
ones wherever their windows begin. Windows of a recording are joined; a second over a seam is like no other.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
from tqdm import tqdm

from dataset_maker.sources import codes_of
from eeg_data.hdf5 import files_below
from eeg_data.labelled_files import is_labelled, read_labelled, read_samples
from eeg_data.pretraining_files import BLOCK, SAMPLING_RATE, read_recordings
from electrodes import canonical_name
from errors import InputError, first_few

Pair = tuple[str, ...]  # two electrodes, or one
# Far from the eyes, as blinks look alike.
PAIRS: tuple[Pair, ...] = (("C3", "O2"), ("C4", "O1"), ("F3", "P4"), ("FZ", "PZ"))
USED = 2  # pairs of a recording: one that lacks an electrode still shares a pair with another
PEAKS = (2.0, 12.0)  # Hz of the signal whose peaks are taken
PHASES = np.arange(2, 31)  # Hz
EQUAL = 0.9  # correlation of two digests
LEAST = 3  # equal seconds of two recordings: that many no two different ones of eegmat have
TABLES, BITS = 4, 24  # of hashes: seconds are compared if one of four has 24 equal bits
COMMON = 1000  # seconds of one hash: more are an artefact that all recordings have, and are not compared
ROWS = 1024  # that are compared at a time
SHOWN = 12  # equal recordings


class Contents(NamedTuple):
    """What a data set holds."""

    recordings: list[str]
    subjects: set[str]  # by their codes
    errors: list[str]  # of files that cannot be read
    digests: dict[Pair, tuple[np.ndarray, np.ndarray]]  # (seconds, 2 * phases), and numbers of their recordings


def digests_of(eeg: np.ndarray) -> np.ndarray:
    """Return the digests of the seconds around peaks. eeg: (time,) at 200 Hz -> (seconds, 2 * phases) float16."""
    half, band = SAMPLING_RATE // 2, scipy.signal.firwin(101, PEAKS, pass_zero=False, fs=SAMPLING_RATE)
    smooth = scipy.signal.oaconvolve(np.pad(eeg, half), band, mode="same")[half:-half]
    size = np.abs(smooth)
    (at,) = np.nonzero((size == scipy.ndimage.maximum_filter1d(size, SAMPLING_RATE + 1)) & (size > 0))
    at = at[(at > half) & (at < len(eeg) - half)]
    before, here, after = (size[at + step] for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros(len(at)), where=bend != 0)  # of the peak, in samples
    cut = eeg[at[:, None] + np.arange(-half, half)] * np.sign(smooth[at])[:, None]  # reversed polarity is the same
    cut = (cut - cut.mean(axis=1, keepdims=True)) * np.hanning(SAMPLING_RATE)
    waves = np.fft.rfft(cut)[:, PHASES] * np.exp(2j * np.pi * PHASES * (0.5 + shift[:, None] / SAMPLING_RATE))
    waves /= np.maximum(np.abs(waves), np.finfo(float).tiny)
    return np.concatenate([waves.real, waves.imag], axis=1).astype(np.float16)


def _rows(montage: Sequence[str]) -> dict[str, int]:
    return {canonical_name(name) or name: row for row, name in enumerate(montage)}


def odd_pairs(paths: Iterable[Path]) -> set[Pair]:
    """Return a pair of electrodes for each montage below the paths that has none of PAIRS."""
    found = set[Pair]()
    for file in (file for path in paths for file in files_below(path)):
        with suppress(InputError):
            montages = {tuple(sorted(_rows(montage))) for _, _, montage, _ in _recordings(file)}
            found |= {tuple(sorted({m[0], m[-1]})) for m in montages if not any(set(pair) <= {*m} for pair in PAIRS)}
    return found


def contents(path: Path, odd: Collection[Pair]) -> Contents:
    """Read what the HDF5 files below a path hold. odd: pairs of electrodes in addition to PAIRS."""
    whole, parts = Contents([], set(), [], {}), defaultdict[Pair, list[tuple[np.ndarray, int]]](list)
    for file in files_below(path):
        try:
            for name, subjects, montage, pieces in _recordings(file):
                rows = _rows(montage)
                pairs = [pair for pair in PAIRS if rows.keys() >= set(pair)][:USED]
                pairs += [pair for pair in odd if rows.keys() >= set(pair)]
                cuts = [[eeg[rows[a]] - sum(eeg[rows[b]] for b in other) for a, *other in pairs] for eeg in pieces]
                for pair, cut in zip(pairs, zip(*cuts, strict=True), strict=True):
                    eeg = np.nan_to_num(np.concatenate(cut), posinf=0, neginf=0)
                    parts[pair].append((digests_of(eeg), len(whole.recordings)))
                whole.recordings.append(name)
                whole.subjects.update(subjects)
        except InputError as error:
            whole.errors.append(str(error))
    for pair, found in parts.items():
        numbers = np.repeat([number for _, number in found], [len(rows) for rows, _ in found])
        whole.digests[pair] = np.concatenate([rows for rows, _ in found]), numbers
    return whole


def _recordings(file: Path) -> Iterator[tuple[str, set[str], Sequence[str], Iterable[np.ndarray]]]:
    """Yield name, codes of subjects, montage and consecutive pieces of the signal, (N, time), of each recording."""
    if not is_labelled(file):
        for recording in read_recordings(file):
            step, length = max(1, BLOCK // len(recording.montage)), recording.length
            pieces = (recording.read(at, min(step, length - at)) for at in range(0, length, step))
            yield recording.name, codes_of(recording.name), recording.montage, pieces
        return
    labelled = read_labelled(file)
    for samples in (read_samples(labelled, split) for split in labelled.splits):
        groups = defaultdict[str, list[int]](list)
        for number, name in enumerate(samples.recordings.tolist()):
            groups[name].append(number)
        for name, numbers in groups.items():
            yield name, set(samples.subjects[numbers].tolist()), labelled.montage, map(samples.read, numbers)


def compare(a: Contents, b: Contents) -> dict[tuple[int, int], tuple[int, int]]:
    """Return which recordings of two data sets are equal: numbers -> equal seconds, and all seconds of that of `b`."""
    equal: dict[tuple[int, int], tuple[int, int]] = {}
    for pair in a.digests.keys() & b.digests.keys():
        (rows_a, of_a), (rows_b, of_b) = a.digests[pair], b.digests[pair]
        matches = np.concatenate([np.empty((2, 0), int), *_matches(rows_a, rows_b)], axis=1)
        seconds = np.unique(np.stack([of_a[matches[0]], matches[1]]), axis=1)  # of b, each once for a recording of a
        totals = np.bincount(of_b, minlength=len(b.recordings))
        for (one, other), count in Counter(zip(seconds[0].tolist(), of_b[seconds[1]].tolist(), strict=True)).items():
            if count >= max(LEAST, equal.get((one, other), (0,))[0]):
                equal[one, other] = count, int(totals[other])
    return equal


def _matches(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of equal digests in a and b, (2, matches), some of them several times."""
    centre = (a.sum(0, dtype=float) + b.sum(0, dtype=float)) / max(len(a) + len(b), 1)  # all have a peak in the middle
    generator = np.random.default_rng(0)

    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows - centre
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    def hashed(rows: np.ndarray) -> np.ndarray:
        parts = np.array_split(rows, len(rows) // ROWS + 1)
        return np.concatenate([((part - centre) @ planes > 0) @ (1 << np.arange(BITS)) for part in parts])

    for _ in range(TABLES):
        planes = generator.standard_normal((a.shape[1], BITS))
        keys, wanted = hashed(a), hashed(b)
        order = np.argsort(keys)
        first, last = (np.searchsorted(keys[order], wanted, side=side) for side in ("left", "right"))
        counts = np.where(last - first > COMMON, 0, last - first)
        for start in range(0, len(b), ROWS):
            some, begin = counts[start : start + ROWS], first[start : start + ROWS]
            of_b = np.repeat(np.arange(start, start + len(some)), some)
            of_a = order[np.repeat(begin - np.cumsum(some) + some, some) + np.arange(len(of_b))]
            alike = np.einsum("ij,ij->i", unit(a[of_a]), unit(b[of_b])) > EQUAL
            yield np.stack([of_a[alike], of_b[alike]])


def report(paths: Sequence[Path], shared: set[str]) -> Iterator[str]:
    """Yield lines on what each two data sets share; adds to `shared` the equal recordings of the first of the two."""
    bar = tqdm(paths, "comparing", unit="data set", leave=False, disable=not sys.stderr.isatty())
    odd = odd_pairs(paths)
    sets = [(path, contents(path, odd)) for path in bar]
    yield from (f"warning: not compared: {error}" for _, one in sets for error in one.errors)
    for (path, one), (other_path, other) in combinations(sets, 2):
        both = f"{path} and {other_path}"
        if names := sorted(one.subjects & other.subjects):
            yield f"warning: {both}: {len(names)} names of subjects are in both: {first_few(names)}"
        if not one.digests.keys() & other.digests.keys():
            if not one.errors and not other.errors:  # which are said
                yield f"warning: {both}: signals not compared: no pair of electrodes that is looked at is in both"
            continue
        equal = compare(one, other)
        for (a, b), (seconds, total) in sorted(equal.items(), key=lambda item: -item[1][0])[:SHOWN]:
            yield f"{one.recordings[a]} = {other.recordings[b]}: {seconds} of {total} seconds are equal"
        shared |= {one.recordings[a] for a, _ in equal}
        text = (
            f"{both}: {len({b for _, b in equal})} of {len(other.recordings)} recordings of the second are in the first"
        )
        yield f"warning: {text}" if equal else text
