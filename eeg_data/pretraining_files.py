"""What a pre-training HDF5 file holds: its recordings, their valid seconds, their windows.

Works without torch. `pretraining.py` makes batches of it.
"""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eeg_data.hdf5 import Blocks, attribute, check_stored, open_file, read_signal, read_window, readable, texts
from eeg_data.quality import Quality, SignalScan
from errors import InputError, printable

SAMPLING_RATE = 200  # Hz; a patch is one second
MAX_SECONDS = 16  # of a window: rows of the models' time embedding
MAX_TOKENS = 256  # patches a window in the paper: sets the default window
BLOCK = 2**22  # values that a scan reads at once
GLANCES = 32  # windows that training looks at of files that no scan has seen


def default_window(electrodes: int) -> int:
    """Return the samples of the longest window with at most 256 patches, between 1 and 16 s."""
    return max(1, min(MAX_SECONDS, MAX_TOKENS // electrodes)) * SAMPLING_RATE


def seconds_of(length: int) -> int:
    """Count the seconds that so many samples touch; the last may be a part of one."""
    return -(-length // SAMPLING_RATE)


@dataclass(frozen=True)
class Recording:
    """One recording of a pre-training file."""

    path: Path
    name: str
    montage: tuple[str, ...]
    length: int  # samples
    valid: np.ndarray | None = field(default=None, compare=False)  # (seconds,) bool; None: the file does not say
    half: bool = False  # whether the file holds float16
    stored_scan: Any = field(default=None, compare=False, repr=False)  # attribute `quality`; None: the file has none
    blocks: Blocks | None = field(default=None, compare=False, repr=False)  # None: the file says where they lie

    @property
    def where(self) -> str:
        """File and recording, for messages."""
        return f"{self.path}, recording {printable(self.name)}"

    def read(self, start: int, samples: int) -> np.ndarray:
        """Read a part of the signal, (N, samples) float32 in uV."""
        place = np.s_[:, start : start + samples]
        return read_signal(self.path, f"{self.name}/eeg", place, f"{self.where}, sample {start}")

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Read the window from a sample on into `out`, (N, samples): float32 in units of 100 uV, or float16 in uV."""
        place = np.s_[:, start : start + out.shape[1]]
        read_window(
            self.path, f"{self.name}/eeg", place, start, out, lambda: f"{self.where}, sample {start}", self.blocks
        )

    def windows(self, window: int, stride: int, start: float = 0, end: float = 1) -> tuple[list[range], int]:
        """Find runs of indices of the windows that touch no invalid second, and count the windows that touch one.

        window, stride in samples; window i begins at sample i * stride. start, end: fractions of the recording.
        """
        every = max(0, (self.length - window) // stride + 1)
        indices = range(int(every * start), int(every * end))
        if self.valid is None:
            return [indices] if indices else [], 0
        first = np.arange(indices.start, indices.stop) * stride  # samples
        invalid = np.concatenate([[0], np.cumsum(~self.valid)])  # seconds before each one
        usable = invalid[first // SAMPLING_RATE] == invalid[-(-(first + window) // SAMPLING_RATE)]
        edges = np.flatnonzero(np.diff(usable, prepend=False, append=False)) + indices.start
        return [range(*run) for run in edges.reshape(-1, 2).tolist()], len(usable) - int(usable.sum())

    def quality(self) -> Quality | None:
        """Return what a scan of this recording saw, None where the file does not say."""
        if self.stored_scan is None or self.valid is None:
            return None
        return Quality.from_json(self.stored_scan, self.valid, self.where)

    def scan(self) -> Quality:
        """Scan the whole signal, block by block; which seconds are valid says the file where it can."""
        scan = SignalScan(self.montage, SAMPLING_RATE)
        step = max(1, BLOCK // len(self.montage))  # samples
        for start in range(0, self.length, step):
            scan.add(self.read(start, min(step, self.length - start)))
        result = scan.result()
        return result if self.valid is None else replace(result, valid=self.valid)

    def glance(self) -> Quality:
        """Scan a window in the middle. Of one that cannot be read training says so when it comes to it."""
        scan, samples = SignalScan(self.montage, SAMPLING_RATE), min(self.length, default_window(len(self.montage)))
        with suppress(InputError):
            scan.add(self.read((self.length - samples) // 2, samples))
        return scan.result()


class Windows:
    """Windows of one montage without an invalid second, as long as 256 patches allow unless `window` is given.

    window and stride in samples; start and end as fractions of each recording.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        *,
        window: int | None = None,
        stride: int = SAMPLING_RATE,
        start: float = 0,
        end: float = 1,
    ) -> None:
        self.recordings, self.stride = list(recordings), stride
        self.montage = self.recordings[0].montage
        self.window = window or default_window(len(self.montage))
        self.half = all(recording.half for recording in self.recordings)
        windows = [recording.windows(self.window, stride, start, end) for recording in self.recordings]
        self.left_out = sum(invalid for _, invalid in windows)  # windows that touch an invalid second
        self.too_short = sum(r.length < self.window for r in self.recordings)
        # Runs of windows, not windows: memory grows with recordings and their seconds.
        runs = [(which, run.start, len(run)) for which, (kept, _) in enumerate(windows) for run in kept]
        owners, firsts, lengths = np.array(runs, dtype=np.int64).reshape(-1, 3).T
        self.runs = owners, firsts, np.cumsum(lengths)  # recording, its first window, number of windows up to its end
        self._runs = [part.data for part in self.runs]  # for single numbers NumPy takes four times as long

    def __len__(self) -> int:
        return int(self.runs[2].max(initial=0))

    def locate(self, index: int) -> tuple[Recording, int]:
        """Find the recording and the first sample of a window."""
        owners, firsts, ends = self._runs
        run = bisect_right(ends, index)
        number = firsts[run] + index - (ends[run - 1] if run else 0)
        return self.recordings[owners[run]], number * self.stride

    def __getitem__(self, index: int) -> np.ndarray:
        """Read a window, (N, window) float32 in uV."""
        recording, start = self.locate(index)
        return recording.read(start, self.window)


def read_recordings(path: Path) -> list[Recording]:
    """List the recordings of a pre-training file. Raises InputError if it is none, or not at 200 Hz."""
    file = open_file(path)
    with readable(path):
        names = list(file)
    if not names:
        raise InputError(f"{path} holds no recordings: leave it out or make it again")
    montages: dict[tuple[str, ...], tuple[str, ...]] = {}  # each once: there may be 100 000 recordings
    return [_read_recording(file, path, name, montages) for name in names]


def _read_recording(
    file: h5py.File, path: Path, name: str, montages: dict[tuple[str, ...], tuple[str, ...]]
) -> Recording:
    where = f"{path}, recording {printable(name)}"
    with readable(where):
        group = file[name]
        eeg = group["eeg"] if isinstance(group, h5py.Group) and "eeg" in list(group) else None
        if not isinstance(eeg, h5py.Dataset) or eeg.ndim != 2 or eeg.dtype.kind not in "fiu":
            raise InputError(
                f"{path} is no pre-training file: `{printable(name)}` holds no dataset `eeg` (electrodes, time) of "
                "numbers; make it with dataset_maker/make_h5dataset_for_pretrain.py"
            )
        montage = texts(attribute("chOrder", where, eeg, group))
        if len(montage) != eeg.shape[0]:
            raise InputError(f"{where}: {len(montage)} electrode names for {eeg.shape[0]} rows of EEG")
        check_rate(where, eeg, group)
        check_stored(eeg, where)
        length = int(eeg.shape[1])
        valid = read_valid(group, where, (seconds_of(length),))
        scan = next((owner.attrs["quality"] for owner in (eeg, group) if "quality" in owner.attrs), None)
        half, montage = eeg.dtype == np.float16, montages.setdefault(montage, montage)
        return Recording(path, name, montage, length, valid, half, scan)


def check_rate(where: str, *owners: h5py.HLObject) -> None:
    """Raise InputError unless the attribute rsFreq, of the first owner that has it, is the models' rate."""
    with readable(f"{where}, attribute rsFreq"):
        rate = float(np.squeeze(attribute("rsFreq", where, *owners)))
    if rate != SAMPLING_RATE:
        raise InputError(
            f"{where}: sampled at {rate:g} Hz, the models take {SAMPLING_RATE} Hz; make it again with dataset_maker"
        )


def read_valid(group: h5py.Group, where: str, shape: Sequence[int]) -> np.ndarray | None:
    """Read the optional data set `valid`, one value a second, as bool. Raises InputError for another shape or type."""
    if "valid" not in group:
        return None
    valid = group["valid"]
    if not isinstance(valid, h5py.Dataset) or valid.dtype.kind not in "biu" or valid.shape != tuple(shape):
        stored = getattr(valid, "shape", "no dataset")
        raise InputError(f"{where}: `valid` is {stored}; expected {tuple(shape)}, one value a second: make it again")
    return valid[()].astype(bool)


def by_montage(recordings: Sequence[Recording]) -> list[list[Recording]]:
    """Group recordings by montage, montages in a fixed order."""
    ordered = sorted(recordings, key=lambda recording: recording.montage)
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda recording: recording.montage)]
