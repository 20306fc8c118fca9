"""Recordings on their way to a trained model: windows of EEG at 200 Hz in uV, read when they are needed.

MNE recordings and epochs go through the makers' pipeline, unless `prepared` says that they have been through one.
Arrays are taken as they are. Files: `recording_files.py`. Works without torch.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import joblib
import mne
import numpy as np
from scipy import fft

from dataset_maker.pipeline import LISTED, FilterSettings, Pipeline, check_header, prepare
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE, Recording, default_window, stretches
from eeg_data.quality import Quality, amplitude_histogram, unit_warnings
from electrodes import canonical_name, resolve
from errors import InputError, UsageError, printable

logger = logging.getLogger(__name__)

IN_MEMORY = 64 << 20  # bytes; a longer prepared signal goes into a temporary file
BLOCK_BYTES = 64 << 20  # of a recording in float64; a longer one is filtered in blocks

Read = Callable[[int, int], np.ndarray]  # (first sample, samples) -> (N, samples) in uV


@dataclass(frozen=True)
class Options:
    """How recordings become windows."""

    pipeline: Pipeline = field(default_factory=lambda: Pipeline(block_bytes=BLOCK_BYTES))
    prepared: bool = False  # True: MNE's data have been filtered and resampled to 200 Hz
    scale: float | None = None  # factor on the values; None: 1, and amplitudes that no EEG in uV has are refused
    window: int | None = None  # s; None: `usual_window`
    stride: float | None = None  # s; None: the window
    usual_window: int | None = None  # s; a classifier's own; None: as many as 256 patches allow, 16 at most
    logged: set[tuple[str, str]] = field(default_factory=set)  # notes that are not logged again; it grows

    def __post_init__(self) -> None:
        """Raise UsageError for values that are not allowed."""
        for window in (self.window, self.usual_window):
            if window is not None and not (isinstance(window, Integral) and 1 <= window <= MAX_SECONDS):
                raise UsageError(f"--window {window}: allowed are 1 to {MAX_SECONDS} whole seconds")
        if self.stride is not None and not 1 / SAMPLING_RATE <= self.stride < math.inf:
            raise UsageError(f"--stride {self.stride:g}: must be a number of seconds from {1 / SAMPLING_RATE:g}")
        if self.scale is not None and not 1e-30 <= abs(self.scale) <= 1e30:  # float32 holds it
            raise UsageError(f"--scale {self.scale:g}: must be a number that is not 0, of a size from 1e-30 to 1e30")
        rate = self.pipeline.filter.sampling_rate
        if not self.prepared and rate != SAMPLING_RATE:
            raise UsageError(f"a pipeline to {rate or 'the rate of the source'}: the models take {SAMPLING_RATE} Hz")

    def log(self, text: str, where: str, level: int = logging.WARNING, *, of: str = "") -> None:
        """Log a note on a recording, if it was not logged before. of: what it counts for; empty: all recordings."""
        if (of, text) not in self.logged:
            logger.log(level, "%s: %s.", where, text)
        self.logged.add((of, text))


@dataclass(frozen=True)
class Windows:
    """Windows of one recording, or of a labelled split, in order."""

    where: str  # for messages
    name: str
    electrodes: tuple[str, ...]
    samples: int  # of a window
    starts: np.ndarray  # (W,) float64, s from the recording's start
    read: Callable[[int], np.ndarray]  # number -> (N, samples) float32 in uV
    left_out: int = 0  # windows that touch an unusable second
    recordings: Sequence[str] = ()  # of each window, if they are of several
    labels: np.ndarray | None = None  # (W,) class numbers or (W, outputs) targets
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def batch(self, first: int, stop: int) -> np.ndarray:
        """Consecutive windows, (windows, N, samples) float32 in uV."""
        return np.stack([self.read(number) for number in range(first, min(stop, len(self)))])


def cut(
    options: Options,
    where: str,
    name: str,
    electrodes: tuple[str, ...],
    length: int,
    read: Read,
    *,
    valid: np.ndarray | None = None,
    is_piece: bool = False,
) -> Windows:
    """Cut a signal of `length` samples into windows that touch no unusable second.

    valid: (seconds,) bool; None: all are. is_piece: by default a window is no longer than the signal.
    Raises InputError if the signal is shorter than a window or no window is left.
    """
    window = default_window(len(electrodes))
    if seconds := options.window or options.usual_window:
        window = seconds * SAMPLING_RATE
    elif is_piece:
        window = max(1, min(window, length) // SAMPLING_RATE) * SAMPLING_RATE
    stride = round(min(options.stride * SAMPLING_RATE, length)) if options.stride else window
    if length < window:
        raise InputError(
            f"{where}: lasts {length / SAMPLING_RATE:.2f} s, a window {window // SAMPLING_RATE} s: choose a shorter "
            "--window (at least 1 s), or leave it out"
        )
    invalid = () if valid is None else stretches(~valid)
    runs, left_out = Recording(Path(), name, electrodes, length, invalid).windows(window, stride)
    numbers = np.concatenate([np.empty(0, int), *(np.arange(run.start, run.stop) for run in runs)])
    touch = "unusable seconds (not finite, or all electrodes flat)"
    if not len(numbers):
        raise InputError(
            f"{where}: all windows of {window // SAMPLING_RATE} s touch {touch}: choose a shorter --window, or leave "
            "bad electrodes out with --drop (of our HDF5 files when they are made)"
        )
    if left_out:
        total = left_out + len(numbers)
        logger.warning("%s: %d of %d windows touch %s and are left out.", where, left_out, total, touch)
    first = numbers * stride
    return Windows(
        where, name, electrodes, window, first / SAMPLING_RATE, lambda n: read(int(first[n]), window), left_out
    )


def unit_factor(options: Options, quality: Quality, where: str) -> np.float32:
    """Return the factor on the values. Raises InputError for amplitudes that no EEG in uV has."""
    if options.scale is not None:
        return np.float32(options.scale)
    for text in unit_warnings(quality):
        raise InputError(f"{where}: {text} Give the factor with --scale (1: they are right as they are)")
    return np.float32(1)


# MNE's objects and arrays


def of_raw(raw: mne.io.BaseRaw, options: Options) -> Windows:
    """Windows of an MNE recording, which is not changed. Raises InputError if it cannot be used."""
    if not raw.preload:  # data in memory may have more samples than their file, after resampling
        check_header(raw, "recording")
    return prepared_windows(raw.copy(), options, "recording", "recording")


def of_epochs(epochs: mne.BaseEpochs, options: Options) -> Windows:
    """Windows of MNE epochs, as many as fit into each; they start at the times of `epochs.events`."""
    data = epochs.get_data(copy=True)  # before the events are read: this drops bad epochs
    rate = getattr(epochs, "_raw_sfreq", None) or epochs.info["sfreq"]  # of the events, also after resampling

    def piece(number: int) -> Windows:
        raw = mne.io.RawArray(data[number], epochs.info, verbose="error")
        return prepared_windows(raw, options, f"epochs, epoch {number}", "epochs", is_piece=True)

    if not len(data):
        raise InputError("epochs: there is no epoch")
    return _joined(piece, epochs.events[:, 0] / rate + epochs.tmin, "epochs")


def of_array(eeg: np.ndarray, electrodes: Sequence[str] | None, options: Options) -> Windows:
    """Windows of an array in uV at 200 Hz, taken as it is: (N, time), or (pieces, N, time) of one recording.

    Raises InputError for another shape, unknown electrodes, values that are not finite and unlikely units.
    """
    if np.ma.isMaskedArray(eeg) or eeg.ndim not in (2, 3) or eeg.dtype.kind not in "fiu" or not eeg.size:
        raise InputError(
            f"array: {type(eeg).__name__} of {eeg.dtype}, shape {eeg.shape}; expected numbers (electrodes, time) or "
            f"(pieces, electrodes, time), in uV at {SAMPLING_RATE} Hz, without a mask"
        )
    names = _electrodes_of_array(electrodes, eeg.shape[-2])
    pieces = np.asarray(eeg if eeg.ndim == 3 else eeg[None])
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        bad = np.argwhere(~np.isfinite(pieces.astype(np.float32, copy=False)))
    if len(bad):
        raise InputError(
            f"array: {len(bad)} values are NaN or infinite, the first one of {names[bad[0][1]]} at "
            f"{bad[0][2] / SAMPLING_RATE:.2f} s: interpolate them, or cut that stretch out"
        )
    length = pieces.shape[-1]
    histogram = np.sum([amplitude_histogram(piece) for piece in pieces], axis=0)
    factor = unit_factor(options, Quality(np.ones(1, bool), {}, {}, {}, histogram, 1), "array")

    def piece(number: int) -> Windows:
        def read(start: int, samples: int) -> np.ndarray:
            return pieces[number, :, start : start + samples].astype(np.float32, copy=False) * factor

        return cut(options, "array", "array", names, length, read, is_piece=True)

    return _joined(piece, np.arange(len(pieces)) * length / SAMPLING_RATE, "array")


def _electrodes_of_array(electrodes: Sequence[str] | None, rows: int) -> tuple[str, ...]:
    if electrodes is None or len(electrodes) != rows:
        count = "no" if electrodes is None else len(electrodes)
        raise InputError(f"array: {count} electrode names for {rows} rows of EEG: name them with electrodes=[...]")
    resolution = resolve(list(electrodes), where="array")
    if resolution.dropped:
        raise InputError(f"array: not EEG by their names: {', '.join(resolution.dropped)}; leave these rows out")
    return tuple(resolution.kept.values())


def _joined(piece: Callable[[int], Windows], onsets: np.ndarray, where: str) -> Windows:
    """Join the windows of equally long pieces of one recording; pieces without any are left out.

    piece: number -> its windows. onsets: (pieces,) s. Raises InputError if no window is left.
    """
    parts, failed = list[Windows](), list[InputError]()
    for number, onset in enumerate(onsets):
        try:
            part = piece(number)
            parts.append(replace(part, starts=part.starts + onset))
        except InputError as error:
            failed.append(error)
    if not parts:
        raise failed[0]
    if failed:
        logger.warning("%s: %d of %d are left out; the first: %s", where, len(failed), len(onsets), failed[0])
    windows = [(part, number) for part in parts for number in range(len(part))]
    return replace(
        parts[0],
        starts=np.concatenate([part.starts for part in parts]),
        read=lambda number: windows[number][0].read(windows[number][1]),
        left_out=sum(part.left_out for part in parts),
    )


def prepared_windows(
    raw: mne.io.BaseRaw, options: Options, where: str, name: str, *, is_piece: bool = False
) -> Windows:
    """Filter and resample a recording, in place, and cut it."""
    pipeline, rate = options.pipeline, float(raw.info["sfreq"])
    if options.prepared:
        if not math.isclose(rate, SAMPLING_RATE, rel_tol=1e-6):
            raise InputError(
                f"{where}: sampled at {rate:g} Hz, the models take {SAMPLING_RATE} Hz: leave --prepared out, or "
                "resample it"
            )
        pipeline = replace(pipeline, filter=FilterSettings(None, None, None, None))
    try:
        with fft.set_workers(joblib.cpu_count()):
            prepared = prepare(raw, pipeline, where=where, store=_store)
    except OSError as error:  # errors of the recording's own file are InputError
        raise UsageError(
            f"temporary files cannot be written in {tempfile.gettempdir()} ({error.strerror or error}): free space, or "
            "name another folder in the environment variable TMPDIR"
        ) from error
    for note in prepared.report["notes"]:
        options.log(note, where, of=where.partition(", epoch ")[0])  # once for all epochs
    _log_dropped(prepared.report["dropped"], where, options)
    factor, eeg = unit_factor(options, prepared.quality, where), prepared.eeg

    def read(start: int, samples: int) -> np.ndarray:
        return eeg[:, start : start + samples] * factor

    electrodes, valid = tuple(prepared.electrodes), prepared.quality.valid
    return cut(options, where, name, electrodes, prepared.length, read, valid=valid, is_piece=is_piece)


def _log_dropped(dropped: Mapping[str, str], where: str, options: Options) -> None:
    """Name the channels that are left out and that nobody listed. dropped: channel -> reason."""
    for reason in dict.fromkeys(dropped.values()):
        names = [name for name, its in dropped.items() if its == reason]
        # A known electrode that its file calls a muscle or nothing at all is probably EEG.
        odd = any(canonical_name(name) is not None for name in names)
        if reason != LISTED:
            text = f"left out, {reason}: {', '.join(map(printable, names))}"
            options.log(text, where, logging.WARNING if odd else logging.INFO)


def _store(electrodes: Sequence[str], rate: float, length: int) -> Any:
    """Return a place for a prepared signal, (N, length) float32: in memory, or on the disk if it is long."""
    shape = len(electrodes), length
    return np.empty(shape, np.float32) if 4 * math.prod(shape) <= IN_MEMORY else DiskArray(shape)


class DiskArray:
    """An array of float32 in a temporary file, mapped into memory only while a part of it is read or written."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Reserve the room. Raises OSError on a full disk, where a write to a map would end the process."""
        self.shape, self._file = shape, tempfile.TemporaryFile()  # noqa: SIM115 (it goes with the array)
        reserve = getattr(os, "posix_fallocate", lambda file, start, size: os.ftruncate(file, size))
        reserve(self._file.fileno(), 0, 4 * math.prod(shape))

    def _mapped(self) -> np.ndarray:
        return np.memmap(self._file, np.float32, "r+", shape=self.shape)

    def __getitem__(self, place: Any) -> np.ndarray:
        """Return a copy of a part."""
        return np.array(self._mapped()[place])

    def __setitem__(self, place: Any, values: np.ndarray) -> None:
        """Write a part."""
        self._mapped()[place] = values
