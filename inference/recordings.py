"""Recordings on their way to a trained model: windows of EEG at 200 Hz in uV, read when they are needed.

What MNE reads goes through the pipeline of `dataset_maker`, unless the caller says that it has been through one; arrays
are taken as they are. Files: `recording_files.py`. Without torch.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import joblib
import mne
import numpy as np
from scipy import fft

from dataset_maker.pipeline import LISTED, FilterSettings, Pipeline, check_header, prepare
from eeg_data.hdf5 import printable
from eeg_data.pretraining_files import (
    MAX_SECONDS,
    SAMPLING_RATE,
    Recording,
    default_window,
    seconds_of,
    stretches,
)
from eeg_data.quality import Quality, amplitude_histogram, unit_warnings
from electrodes import canonical_name, resolve
from errors import InputError, UsageError
from inference.temporary_arrays import TemporarySignal

logger = logging.getLogger(__name__)

IN_MEMORY = 64 << 20  # bytes of a prepared signal; a longer one waits in a temporary file
BLOCK_BYTES = 64 << 20  # of a recording in float64 that is filtered as a whole


@dataclass(frozen=True)
class Options:
    """How recordings become windows."""

    pipeline: Pipeline = field(default_factory=lambda: Pipeline(block_bytes=BLOCK_BYTES))
    prepared: bool = False  # True: what MNE reads has been filtered and resampled already
    scale: float | None = None  # factor on the values; None: 1, and amplitudes that no EEG in uV has are refused
    window: int | None = None  # s; None: `usual_window`
    stride: float | None = None  # s; None: the window
    usual_window: int | None = None  # s; a classifier's own; None: as many as 256 patches allow, 16 at most

    def __post_init__(self) -> None:
        """Raise UsageError for values that cannot be."""
        for window in (self.window, self.usual_window):
            if window is not None and not (isinstance(window, Integral) and 1 <= window <= MAX_SECONDS):
                raise UsageError(f"--window {window}: allowed are 1 to {MAX_SECONDS} whole seconds")
        if self.stride is not None and not 1 / SAMPLING_RATE <= self.stride < math.inf:
            raise UsageError(f"--stride {self.stride:g}: must be a number of seconds from {1 / SAMPLING_RATE:g}")
        if self.scale is not None and not 1e-30 <= abs(self.scale) <= 1e30:  # float32 holds it
            raise UsageError(f"--scale {self.scale:g}: must be a number that is not 0, of a size from 1e-30 to 1e30")
        if not self.prepared and self.pipeline.filter.sampling_rate != SAMPLING_RATE:
            rate = self.pipeline.filter.sampling_rate
            raise UsageError(f"a pipeline to {rate or 'the rate of the source'}: the models take {SAMPLING_RATE} Hz")

    @property
    def seconds(self) -> int | None:
        """Of a window; None: as many as fit, for as many electrodes as there are."""
        return self.usual_window if self.window is None else self.window


@dataclass(frozen=True)
class Windows:
    """Windows of one recording, or of a labelled split, in order."""

    where: str  # for messages
    name: str
    electrodes: tuple[str, ...]
    samples: int  # of a window
    starts: np.ndarray  # (W,) float64, s from the recording's start
    read: Callable[[int], np.ndarray]  # number -> (N, samples) float32 in uV
    left_out: int = 0  # windows that touch a second that cannot be used
    recordings: Sequence[str] = ()  # of each window, where they are of several
    labels: np.ndarray | None = None  # (W,) class numbers or (W, outputs) targets
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def batch(self, first: int, stop: int) -> np.ndarray:
        """Some consecutive windows, (windows, N, samples) float32 in uV."""
        return np.stack([self.read(number) for number in range(first, min(stop, len(self)))])


@dataclass(frozen=True)
class Signal:
    """One recording at 200 Hz in uV, from which windows are cut."""

    where: str
    name: str
    electrodes: tuple[str, ...]
    length: int  # samples
    read: Callable[[int, int], np.ndarray]  # first sample, samples -> (N, samples)
    valid: np.ndarray  # (seconds,) bool


def cut(signal: Signal, options: Options) -> Windows:
    """Windows of a recording that touch no second that cannot be used.

    Raises InputError if the recording is shorter than a window or no window is left.
    """
    window = options.seconds * SAMPLING_RATE if options.seconds else default_window(len(signal.electrodes))
    stride = round(min(options.stride * SAMPLING_RATE, signal.length)) if options.stride else window
    if signal.length < window:
        raise InputError(
            f"{signal.where}: lasts {signal.length / SAMPLING_RATE:.2f} s, a window {window // SAMPLING_RATE} s: "
            f"choose a --window of at most {signal.length // SAMPLING_RATE} s"
            if signal.length >= SAMPLING_RATE
            else f"{signal.where}: lasts {signal.length / SAMPLING_RATE:.2f} s, but one patch is 1 s: leave it out"
        )
    recording = Recording(Path(), signal.name, signal.electrodes, signal.length, stretches(~signal.valid))
    runs, left_out = recording.windows(window, stride)
    numbers = np.concatenate([np.arange(run.start, run.stop) for run in runs]) if runs else np.empty(0, int)
    if left_out:
        logger.warning(
            "%s: %d of %d windows touch seconds that cannot be used (not finite, or all electrodes flat) and are left "
            "out.",
            signal.where,
            left_out,
            left_out + len(numbers),
        )
    if not len(numbers):
        raise InputError(
            f"{signal.where}: every window of {window // SAMPLING_RATE} s touches a second that cannot be used (not "
            "finite, or all electrodes flat): choose a shorter --window, or leave electrodes out with --drop (of our "
            "HDF5 files when they are made)"
        )
    first = numbers * stride
    return Windows(
        signal.where,
        signal.name,
        signal.electrodes,
        window,
        first / SAMPLING_RATE,
        lambda number: signal.read(int(first[number]), window),
        left_out,
    )


def of_raw(raw: mne.io.BaseRaw, options: Options, *, where: str = "recording", name: str = "recording") -> Windows:
    """Windows of an MNE recording, which stays as it is. Raises InputError for one that cannot be used."""
    if not raw.preload:  # what is in memory may have more samples than its file, after resampling
        check_header(raw, where)
    return cut(signal_of_raw(raw.copy(), options, set(), where=where, name=name), options)


def signal_of_raw(
    raw: mne.io.BaseRaw, options: Options, told: set[str], *, where: str, name: str, left_out: set[str] | None = None
) -> Signal:
    """raw: may be changed. told: notes that the user has read already; left_out (told if None): the same of channels.

    Both grow.
    """
    pipeline = options.pipeline
    if options.prepared:
        rate = float(raw.info["sfreq"])
        if not math.isclose(rate, SAMPLING_RATE, rel_tol=1e-6):
            raise InputError(
                f"{where}: sampled at {rate:g} Hz, the models take {SAMPLING_RATE} Hz: leave --prepared out, or "
                "resample it"
            )
        pipeline = replace(pipeline, filter=FilterSettings(None, None, None, None))
    with fft.set_workers(joblib.cpu_count()):
        prepared = prepare(raw, pipeline, where=where, store=_store)
    for note in prepared.report["notes"]:
        if note not in told:
            logger.warning("%s: %s.", where, note)
    told.update(prepared.report["notes"])
    _say_left_out(prepared.report["dropped"], told if left_out is None else left_out, where)
    factor = unit_factor(options, prepared.quality, where)
    eeg, electrodes = prepared.eeg, tuple(prepared.electrodes)

    def read(start: int, samples: int) -> np.ndarray:
        return eeg[:, start : start + samples] * factor

    return Signal(where, name, electrodes, prepared.length, read, prepared.quality.valid)


def _say_left_out(dropped: Mapping[str, str], told: set[str], where: str) -> None:
    """Name the channels that nobody asked to leave out, each set of them once.

    dropped: channel -> reason. told: what was said already; grows.
    """
    for reason in (reason for reason in dict.fromkeys(dropped.values()) if reason != LISTED):
        names = [name for name, its in dropped.items() if its == reason]
        text = f"left out, {reason}: {', '.join(map(printable, names))}"
        # A known electrode that its file calls a muscle or nothing at all was probably meant to be EEG.
        odd = any(canonical_name(name) is not None for name in names)
        if text not in told:
            logger.log(logging.WARNING if odd else logging.INFO, "%s: %s.", where, text)
        told.add(text)


def _store(electrodes: Sequence[str], rate: float, length: int) -> Any:
    """Where a prepared signal goes, (N, length) float32: memory, or a temporary file that goes with the last reader."""
    shape = len(electrodes), length
    if 4 * math.prod(shape) <= IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    return TemporarySignal(*shape)


def unit_factor(options: Options, seen: Quality, where: str) -> np.float32:
    """What values are multiplied with. Raises InputError for amplitudes that no EEG in uV has."""
    if options.scale is not None:
        return np.float32(options.scale)
    for text in unit_warnings(seen):
        raise InputError(f"{where}: {text} Give the factor with --scale (1: they are right as they are)")
    return np.float32(1)


def of_epochs(epochs: mne.BaseEpochs, options: Options, *, where: str = "epochs") -> Windows:
    """Windows of MNE epochs: as many as fit into each; times count as those of `epochs.events` do."""
    data = epochs.get_data(copy=True)  # before the events are looked at: reading drops bad epochs
    rate = getattr(epochs, "_raw_sfreq", None) or epochs.info["sfreq"]  # of the events, whatever was resampled since
    told: set[str] = set()

    def signal(number: int) -> Signal:
        raw = mne.io.RawArray(data[number], epochs.info, verbose="error")
        return signal_of_raw(raw, options, told, where=f"{where}, epoch {number}", name="epochs")

    if not len(data):
        raise InputError(f"{where}: there is no epoch")
    openers = [partial(signal, number) for number in range(len(data))]
    return _of_parts(openers, epochs.events[:, 0] / rate + epochs.tmin, options, where)


def _of_parts(openers: Sequence[Callable[[], Signal]], onsets: np.ndarray, options: Options, where: str) -> Windows:
    """Windows of several equally long pieces of one recording, each cut by itself; those without any are left out.

    onsets: (pieces,) s. Raises InputError if no window is left.
    """
    found, failed = list[Windows](), list[InputError]()
    for opener, onset in zip(openers, onsets, strict=True):
        try:
            signal = opener()
            if options.seconds is None:  # the longest whole number of seconds that all have
                longest = min(default_window(len(signal.electrodes)), signal.length) // SAMPLING_RATE
                options = replace(options, window=max(1, longest))
            part = cut(signal, options)
            found.append(replace(part, starts=part.starts + onset))
        except InputError as error:
            failed.append(error)
    if not found:
        raise failed[0]
    if failed:
        logger.warning("%s: %d of %d are left out; the first: %s", where, len(failed), len(openers), failed[0])
    owners = np.repeat(np.arange(len(found)), [len(part) for part in found])
    inside = np.concatenate([np.arange(len(part)) for part in found])
    return replace(
        found[0],
        starts=np.concatenate([part.starts for part in found]),
        read=lambda number: found[owners[number]].read(int(inside[number])),
        left_out=sum(part.left_out for part in found),
    )


def of_array(eeg: np.ndarray, electrodes: Sequence[str] | None, options: Options, *, where: str = "array") -> Windows:
    """Windows of an array in uV at 200 Hz, taken as it is: (N, time), or (pieces, N, time) of one recording.

    Raises InputError for another shape, unknown electrodes, values that are not finite and unlikely units.
    """
    if np.ma.isMaskedArray(eeg) or eeg.ndim not in (2, 3) or eeg.dtype.kind not in "fiu" or not eeg.size:
        raise InputError(
            f"{where}: {type(eeg).__name__} of {eeg.dtype}, shape {eeg.shape}; expected numbers (electrodes, time) or "
            f"(pieces, electrodes, time), in uV at {SAMPLING_RATE} Hz, without a mask"
        )
    names = _canonical(electrodes, eeg.shape[-2], where)
    pieces = np.asarray(eeg if eeg.ndim == 3 else eeg[None])
    with np.errstate(over="ignore"):  # beyond float32 is infinite to a model, too
        bad = np.argwhere(~np.isfinite(pieces.astype(np.float32, copy=False)))
    if len(bad):
        _, row, sample = bad[0]
        raise InputError(
            f"{where}: {len(bad)} values are NaN or infinite, the first one of {names[row]} at "
            f"{sample / SAMPLING_RATE:.2f} s: bridge them, or cut that stretch out"
        )
    length = pieces.shape[-1]
    valid = np.ones(seconds_of(length), bool)
    histogram = np.sum([amplitude_histogram(piece) for piece in pieces], axis=0)
    factor = unit_factor(options, Quality(valid, {}, {}, {}, histogram), where)

    def signal(piece: np.ndarray) -> Signal:
        return Signal(
            where,
            "array",
            names,
            length,
            lambda start, samples: _float32(piece[:, start : start + samples]) * factor,
            valid,
        )

    openers = [partial(signal, piece) for piece in pieces]
    return _of_parts(openers, np.arange(len(pieces)) * length / SAMPLING_RATE, options, where)


def _float32(eeg: np.ndarray) -> np.ndarray:
    return eeg.astype(np.float32, copy=False)


def _canonical(electrodes: Sequence[str] | None, rows: int, where: str) -> tuple[str, ...]:
    if electrodes is None:
        raise InputError(f"{where}: an array does not say which electrodes it is of: name them with electrodes=[...]")
    if len(electrodes) != rows:
        raise InputError(f"{where}: {len(electrodes)} electrode names for {rows} rows of EEG")
    resolution = resolve(list(electrodes), where=where)
    if resolution.dropped:
        raise InputError(f"{where}: not EEG by their names: {', '.join(resolution.dropped)}; leave these rows out")
    return tuple(resolution.kept.values())
