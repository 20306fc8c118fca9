"""What a pre-training HDF5 file holds: its recordings, their valid seconds, their windows.

Without torch, so that `dataset_maker.inspect_data` can use it; batches are made in `eeg_data.py`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from eeg_data.hdf5 import Attributes, check_size, open_dataset, open_file, printable, readable
from eeg_data.quality import Quality
from errors import InputError

SAMPLING_RATE = 200  # Hz; a patch is one second
MAX_SECONDS = 16  # of a window: rows of the models' time embedding
MAX_TOKENS = 256  # patches a window in the paper: sets the default window

Stretches = tuple[tuple[int, int], ...]  # first and one past the last, in order, apart


def default_window(electrodes: int) -> int:
    """Samples of the longest window with at most 256 patches, between 1 and 16 s."""
    return max(1, min(MAX_SECONDS, MAX_TOKENS // electrodes)) * SAMPLING_RATE


def window_range(length: int, window: int, stride: int, start: float = 0, end: float = 1) -> range:
    """Indices of a recording's windows between the fractions `start` and `end` of it. Lengths in samples."""
    n = max(0, (length - window) // stride + 1)
    return range(int(n * start), int(n * end))


def seconds_of(length: int) -> int:
    """Seconds that so many samples touch; the last may be a part of one."""
    return -(-length // SAMPLING_RATE)


def stretches(bad: np.ndarray) -> Stretches:
    """Where a row of booleans is true."""
    places = np.flatnonzero(np.diff(bad.astype(np.int8), prepend=0, append=0))
    return tuple((int(first), int(end)) for first, end in places.reshape(-1, 2))


def covered(parts: Stretches, length: int) -> np.ndarray:
    """Back from `stretches`: (length,) bool."""
    row = np.zeros(length, bool)
    for first, end in parts:
        row[first:end] = True
    return row


@dataclass(frozen=True)
class Recording:
    """One recording of a pre-training file."""

    path: Path
    name: str
    montage: tuple[str, ...]
    length: int  # samples
    invalid: Stretches | None = None  # seconds that cannot be used; None: the file does not say

    @property
    def where(self) -> str:
        """File and recording, for messages."""
        return f"{self.path}, recording {printable(self.name)}"

    def read(self, start: int, samples: int) -> np.ndarray:
        """Part of the signal, (N, samples) float32 in uV."""
        place = readable(lambda: f"{self.where}, sample {start}", "make the file again or leave it out")
        with place, np.errstate(over="ignore"):  # float64 beyond float32 is infinite to a model, too
            eeg = open_dataset(self.path, f"{self.name}/eeg")[:, start : start + samples]
            return eeg.astype(np.float32, copy=False)

    def windows(self, window: int, stride: int, start: float = 0, end: float = 1) -> tuple[list[range], int]:
        """Runs of indices of the windows that touch no invalid second, and how many windows do touch one.

        window, stride in samples; window i begins at sample i * stride. start, end: as for `window_range`.
        """
        rest = window_range(self.length, window, stride, start, end)
        runs, number = [], len(rest)
        for first, last in self.invalid or ():
            before = max(0, (first * SAMPLING_RATE - window) // stride + 1)  # the first window that reaches into it
            after = -(-last * SAMPLING_RATE // stride)  # the first one that begins behind it
            runs.append(range(rest.start, min(rest.stop, before)))
            rest = range(max(rest.start, after), rest.stop)
        kept = [run for run in (*runs, rest) if run]
        return kept, number - sum(map(len, kept))

    def blocks(self, values: int = 2**22) -> Iterator[np.ndarray]:
        """The signal from start to end in pieces, (N, t) float32 in uV. values: about how many at once."""
        step = max(SAMPLING_RATE, values // len(self.montage) // SAMPLING_RATE * SAMPLING_RATE)
        for start in range(0, self.length, step):
            yield self.read(start, min(step, self.length - start))

    def quality(self) -> Quality | None:
        """What the maker's scan of this recording found, None where the file does not say."""
        with readable(self.where):
            text = Attributes(self.where, open_file(self.path)[f"{self.name}/eeg"]).get("quality")
        if text is None:
            return None
        try:
            return Quality.from_json(text, ~covered(self.invalid or (), seconds_of(self.length)))
        except InputError as error:
            raise InputError(f"{self.where}: {error}: make the file again") from None


def read_recordings(path: Path) -> list[Recording]:
    """Recordings of a pre-training file. Raises InputError if the file is not of that format or not at 200 Hz."""
    file = open_file(path)
    with readable(path):
        names = list(file)
    if not names:
        raise InputError(f"{path} holds no recordings: leave it out or make it again")
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: a recording's name is no text: make the file again")
    montages: dict[tuple[str, ...], tuple[str, ...]] = {}  # each once: there may be 100 000 recordings
    return [_read_recording(file, path, name, montages) for name in names]


def _read_recording(
    file: h5py.File, path: Path, name: str, montages: dict[tuple[str, ...], tuple[str, ...]]
) -> Recording:
    where = f"{path}, recording {printable(name)}"
    with readable(where):
        group = file[name]
        eeg = group.get("eeg") if isinstance(group, h5py.Group) else None
        if not isinstance(eeg, h5py.Dataset) or eeg.ndim != 2 or eeg.dtype.kind not in "fiu":
            raise InputError(
                f"{path} is no pre-training file: `{printable(name)}` holds no dataset `eeg` (electrodes, time) of "
                "numbers; make it with dataset_maker/make_h5dataset_for_pretrain.py"
            )
        attributes = Attributes(where, eeg, group)
        montage, rate = attributes.names("chOrder"), attributes.number("rsFreq")
        if len(montage) != eeg.shape[0]:
            raise InputError(f"{where}: {len(montage)} electrode names for {eeg.shape[0]} rows of EEG")
        if rate != SAMPLING_RATE:
            raise InputError(
                f"{where}: sampled at {rate:g} Hz, all files of a run must be at {SAMPLING_RATE} Hz: convert it with "
                f"--rsfreq {SAMPLING_RATE}"
            )
        check_size(eeg, where)
        length = int(eeg.shape[1])
        return Recording(path, name, montages.setdefault(montage, montage), length, _read_invalid(group, where, length))


def _read_invalid(group: h5py.Group, where: str, length: int) -> Stretches | None:
    if "valid" not in group:
        return None
    valid = group["valid"]
    check_valid(valid, where, (seconds_of(length),), f"one value for each second of {length} samples")
    return stretches(~valid[()].astype(bool))


def check_valid(valid: object, where: str, shape: Sequence[int], what: str) -> None:
    """Raise InputError if `valid` is no dataset of booleans of this shape."""
    if isinstance(valid, h5py.Dataset) and valid.dtype.kind in "biu" and valid.shape == tuple(shape):
        return check_size(valid, where)
    found = getattr(valid, "shape", "no dataset")
    raise InputError(f"{where}: `valid` is {found}; expected {tuple(shape)}, {what}: make the file again")


def by_montage(recordings: Sequence[Recording]) -> list[list[Recording]]:
    """Recordings grouped by montage, montages in a fixed order."""
    ordered = sorted(recordings, key=lambda recording: recording.montage)
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda recording: recording.montage)]
