"""Recordings on their way to a trained model: windows of EEG at 200 Hz in uV, read when they are needed.

What MNE reads goes through the makers' pipeline, unless `prepared` says that it has been through one. Arrays and our
HDF5 files are taken as they are. Works without torch.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import joblib
import mne
import numpy as np
from scipy import fft

from dataset_maker.pipeline import FilterSettings, Pipeline, electrodes_of, prepare, read
from dataset_maker.recording import RawRecording
from dataset_maker.recording import of_raw as of_recording
from dataset_maker.sources import RECORDINGS, find_files, plain_name, unique_names
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import LabelledFile, is_labelled, read_labelled, read_samples
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE, Recording, default_window, read_recordings
from eeg_data.quality import UNUSABLE, Quality, SignalScan
from eeg_data.verdicts import judged
from electrodes import LISTED, canonical_name, resolve
from errors import InputError, UsageError, printable
from files import DiskArray

logger = logging.getLogger(__name__)

KINDS = (*RECORDINGS, *SUFFIXES)  # of files that are read
IN_MEMORY = 64 << 20  # bytes; a longer prepared signal goes into a temporary file
BLOCK_BYTES = 64 << 20  # of a recording in float64; a longer one is filtered in blocks


@dataclass(frozen=True)
class Options:
    """How recordings become windows."""

    pipeline: Pipeline = field(default_factory=lambda: Pipeline(block_bytes=BLOCK_BYTES))
    prepared: bool = False  # True: MNE's data have been filtered and resampled to 200 Hz
    scale: float | None = None  # in place of the pipeline's
    window: int | None = None  # s; None: as many as 256 patches allow, 16 at most
    stride: float | None = None  # s; None: the window

    def __post_init__(self) -> None:
        """Raise UsageError for values that are not allowed."""
        window, rate = self.window, self.pipeline.filter.sampling_rate
        if window is not None and not (isinstance(window, Integral) and 1 <= window <= MAX_SECONDS):
            raise UsageError(f"--window {window}: allowed are 1 to {MAX_SECONDS} whole seconds")
        if self.stride is not None and not 1 / SAMPLING_RATE <= self.stride < math.inf:
            raise UsageError(f"--stride {self.stride:g}: must be a number of seconds from {1 / SAMPLING_RATE:g}")
        if self.scale is not None:
            object.__setattr__(self, "pipeline", replace(self.pipeline, scale=self.scale))
        if not self.prepared and rate != SAMPLING_RATE:
            raise UsageError(f"a pipeline to {rate or 'the rate of the source'}: the models take {SAMPLING_RATE} Hz")


@dataclass(frozen=True)
class Windows:
    """Windows of one recording, or of a labelled split, in order."""

    where: str  # for messages
    name: str
    electrodes: tuple[str, ...]
    samples: int  # of a window
    starts: np.ndarray  # (W,) float64, s from the recording's start
    read: Callable[[int], np.ndarray]  # number -> (N, samples) float32 in uV
    recordings: Sequence[str] = ()  # of each window, if they are of several
    subjects: Sequence[str] = ()  # of each window, where the file says it
    centring: Any = None  # of predictions: training.centring.Centring
    labels: np.ndarray | None = None  # (W,) class numbers or (W, outputs) targets
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def batch(self, first: int, stop: int) -> np.ndarray:
        """Consecutive windows, (windows, N, samples) float32 in uV."""
        return np.stack([self.read(number) for number in range(first, min(stop, len(self)))])


def cut(
    recording: Recording,
    read: Callable[[int, int], np.ndarray],
    quality: Quality,
    options: Options,
    where: str,
    *,
    factor: np.float32 = np.float32(1),  # noqa: B008 (a constant)
    is_piece: bool = False,
) -> Windows:
    """Cut a signal into windows that touch no unusable second.

    recording: its name, electrodes and length. read: (first sample, samples) -> (N, samples) float32. quality: of the
    signal. factor: on the values. is_piece: by default a window is no longer than the signal.
    Raises InputError for a signal shorter than a window, and if no window is left.
    """
    electrodes, length = recording.montage, recording.length
    window = options.window * SAMPLING_RATE if options.window else default_window(len(electrodes))
    if is_piece and not options.window:
        window = max(1, min(window, length) // SAMPLING_RATE) * SAMPLING_RATE
    stride = round(min(options.stride * SAMPLING_RATE, length)) if options.stride else window
    if length < window:
        raise InputError(
            f"{where}: lasts {length / SAMPLING_RATE:.2f} s, a window {window // SAMPLING_RATE} s: choose a shorter "
            "--window (at least 1 s), or leave it out"
        )
    runs, left_out = replace(recording, valid=quality.valid).windows(window, stride)
    numbers = np.concatenate([np.empty(0, int), *(np.arange(run.start, run.stop) for run in runs)])
    touch = f"unusable seconds ({UNUSABLE})"
    if not len(numbers):
        raise InputError(
            f"{where}: all windows of {window // SAMPLING_RATE} s touch {touch}: choose a shorter --window, or leave "
            "bad electrodes out with --drop (of our HDF5 files when they are made)"
        )
    if left_out:
        total = left_out + len(numbers)
        logger.warning("%s: %d of %d windows touch %s and are left out.", where, left_out, total, touch)
    first = numbers * stride

    def read_window(number: int) -> np.ndarray:
        return read(int(first[number]), window) * factor

    return Windows(where, recording.name, electrodes, window, first / SAMPLING_RATE, read_window)


def unit_factor(options: Options, quality: Quality, where: str) -> np.float32:
    """Return the factor on the values. Warns of odd scales, raises InputError for amplitudes that no EEG in uV has."""
    scale = options.pipeline.scale
    for text in judged(quality, where, scaled=scale is not None):
        logger.warning("%s", text)
    return np.float32(scale or 1)


# MNE's objects and arrays


def of_raw(raw: mne.io.BaseRaw, options: Options) -> Windows:
    """Windows of an MNE recording, which is not changed. Raises InputError if it cannot be used."""
    return prepared_windows(of_recording(raw.copy(), unit=options.pipeline.unit), options, "recording", "recording")


def of_epochs(epochs: mne.BaseEpochs, options: Options) -> Windows:
    """Windows of MNE epochs, as many as fit into each; they start at the times of `epochs.events`."""
    data, prepared = epochs.get_data(copy=True), list[str]()  # before the events are read: this drops bad epochs
    rate = getattr(epochs, "_raw_sfreq", None) or epochs.info["sfreq"]  # of the events, also after resampling

    def piece(number: int) -> Windows:
        raw, where = mne.io.RawArray(data[number], epochs.info, verbose="error"), f"epochs, epoch {number}"
        return prepared_windows(RawRecording(raw, where), options, where, "epochs", pieces=prepared)

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
    pieces = np.asarray(eeg if eeg.ndim == 3 else eeg[None])
    _, rows, length = pieces.shape
    if electrodes is None or len(electrodes) != rows:
        count = "no" if electrodes is None else len(electrodes)
        raise InputError(f"array: {count} electrode names for {rows} rows of EEG: name them with electrodes=[...]")
    resolution = resolve(list(electrodes), where="array")
    for note in resolution.notes:
        logger.warning("array: %s.", note)
    if resolution.dropped:
        raise InputError(f"array: not EEG by their names: {', '.join(resolution.dropped)}; leave these rows out")
    names = tuple(resolution.kept.values())
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        bad = np.argwhere(~np.isfinite(pieces.astype(np.float32, copy=False)))
    if len(bad):
        raise InputError(
            f"array: {len(bad)} values are NaN or infinite, the first one of {names[bad[0][1]]} at "
            f"{bad[0][2] / SAMPLING_RATE:.2f} s: interpolate them, or cut that stretch out"
        )
    scan = SignalScan(names, SAMPLING_RATE)
    for eeg in pieces:
        scan.add(eeg)
    quality = replace(scan.result(), valid=np.ones(math.ceil(length / SAMPLING_RATE), bool))
    factor = unit_factor(options, quality, "array")

    def piece(number: int) -> Windows:
        def read(start: int, samples: int) -> np.ndarray:
            return pieces[number, :, start : start + samples].astype(np.float32, copy=False)

        whole = Recording(Path(), "array", names, length)
        return cut(whole, read, quality, options, "array", factor=factor, is_piece=True)

    return _joined(piece, np.arange(len(pieces)) * length / SAMPLING_RATE, "array")


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
    )


def prepared_windows(
    recording: RawRecording, options: Options, where: str, name: str, *, pieces: list[str] | None = None
) -> Windows:
    """Filter and resample a recording, or a piece of it, in place, and cut it.

    pieces: those that were prepared before; this one is added.
    """
    pipeline, rate = options.pipeline, float(recording.raw.info["sfreq"])
    if options.prepared:
        if not math.isclose(rate, SAMPLING_RATE, rel_tol=1e-6):
            raise InputError(
                f"{where}: sampled at {rate:g} Hz, the models take {SAMPLING_RATE} Hz: leave --prepared out, or "
                "resample it"
            )
        pipeline = replace(pipeline, filter=FilterSettings(None, None, None, None))
    if pieces is not None:  # as the makers treat epochs: MNE would keep a part of their offset
        pipeline = replace(pipeline, resample="polyphase")
    try:
        with fft.set_workers(joblib.cpu_count()):
            prepared = prepare(recording, pipeline, store=_store)
    except OSError as error:  # errors of the recording's own file are InputError
        raise UsageError(
            f"temporary files cannot be written in {tempfile.gettempdir()} ({error.strerror or error}): free space, or "
            "name another folder in the environment variable TMPDIR"
        ) from error
    if not pieces:  # the notes on the other epochs are the same
        _log_notes(prepared.report, where)
    if pieces is not None:
        pieces.append(where)
    signal = Recording(Path(), name, tuple(prepared.electrodes), prepared.length)

    def read(start: int, samples: int) -> np.ndarray:
        return prepared.eeg[:, start : start + samples]

    quality = replace(prepared.quality, valid=prepared.unbroken)
    return cut(signal, read, quality, options, where, is_piece=pieces is not None)


def _log_notes(report: dict[str, Any], where: str) -> None:
    """Log a pipeline's warnings and notes, and the channels that are left out and that nobody listed."""
    for warning in report["warnings"]:
        logger.warning("%s", warning)
    for note in report["notes"]:
        logger.warning("%s: %s.", where, note)
    dropped = report["dropped"]  # channel -> reason
    for reason in dict.fromkeys(dropped.values()):
        names = [name for name, its in dropped.items() if its == reason]
        # A known electrode that its file calls a muscle or nothing at all is probably EEG.
        level = logging.WARNING if any(canonical_name(name) is not None for name in names) else logging.INFO
        if reason != LISTED:
            logger.log(level, "%s: left out, %s: %s.", where, reason, ", ".join(map(printable, names)))


def _store(electrodes: Sequence[str], rate: float, length: int) -> Any:
    """Return a place for a prepared signal, (N, length) float32: in memory, or on the disk if it is long."""
    shape = len(electrodes), length
    return np.empty(shape, np.float32) if 4 * math.prod(shape) <= IN_MEMORY else DiskArray(shape)


# Files


def find(
    inputs: Sequence[Path], options: Options, *, split: str | None = None
) -> Iterator[tuple[str, Callable[[], Windows]]]:
    """Yield every recording of these files and folders: where it is, and a function that opens it.

    Labelled HDF5 gives one entry a split, or only `split`. The function raises InputError if the recording cannot be
    used. Raises UsageError for options that contradict each other, or that an HDF5 file cannot follow.
    """
    paths = find_files(inputs, KINDS, tell=True)
    raws = [path for path in paths if path.suffix.lower() not in SUFFIXES]
    ready = ["--prepared"] if options.prepared else [str(path) for path in paths if path not in raws]
    default, filters = FilterSettings(), options.pipeline.filter
    flags = [f"--{name}" for name in ("l_freq", "h_freq", "notch") if getattr(filters, name) != getattr(default, name)]
    if ready and flags:
        raise UsageError(f"{' '.join(flags)}: {ready[0]} is EEG that is filtered already: leave one of the two out")
    names = dict(zip(raws, unique_names([path.stem for path in raws], raws), strict=True))
    for path in paths:
        if path in names:
            yield str(path), partial(_open_raw, path, names[path], options)
        else:
            yield from _find_in_hdf5(path, options, split)


def _open_raw(path: Path, name: str, options: Options) -> Windows:
    return prepared_windows(read(path, options.pipeline), options, str(path), name)


def _find_in_hdf5(path: Path, options: Options, split: str | None) -> Iterator[tuple[str, Callable[[], Windows]]]:
    """Yield the recordings or splits of one file; a damaged file is one entry that fails when it is opened."""
    try:
        labelled = read_labelled(path) if is_labelled(path) else None
        recordings = [] if labelled is not None else read_recordings(path)
    except InputError as error:
        yield str(path), partial(_failed, error)
        return
    for recording in recordings:
        yield recording.where, partial(_open_recording, recording, options)
    if labelled is not None:
        if options.stride is not None or options.window not in (None, labelled.seconds):
            raise UsageError(
                f"{path}: its windows are its samples of {labelled.seconds} s: give --window {labelled.seconds} and no "
                "--stride, or the recordings that the file was made of"
            )
        for name in (split,) if split else labelled.splits:
            yield f"{path}, group {name}", partial(_open_split, labelled, name, options)


def _failed(error: InputError) -> Windows:
    raise error


def _open_recording(recording: Recording, options: Options) -> Windows:
    names, rows = _kept(recording.montage, options, recording.where)
    quality = recording.quality() or recording.scan()

    def read(start: int, samples: int) -> np.ndarray:
        return recording.read(start, samples)[rows]

    kept = replace(recording, name=plain_name(recording.name), montage=names)
    return cut(kept, read, quality, options, recording.where, factor=unit_factor(options, quality, recording.where))


def _open_split(file: LabelledFile, split: str, options: Options) -> Windows:
    """Windows of a split: its samples."""
    where = f"{file.path}, group {split}"
    if split not in file.splits:
        raise InputError(f"{file.path}: has no group {split}, only {', '.join(file.splits)}; correct --split")
    samples = read_samples(file, split)
    quality = samples.quality()
    names, rows = _kept(file.montage, options, where)
    usable = replace(samples, valid=quality.valid.reshape(samples.valid.shape)).usable()
    if not len(usable):
        raise InputError(f"{where}: no sample can be used: make the file again")
    if usable.left_out:
        logger.warning("%s: %d samples touch unusable seconds and are left out.", where, usable.left_out)
    factor = unit_factor(options, quality, where)
    recordings = sorted(set(usable.recordings))
    plain = dict(zip(recordings, unique_names(recordings, [Path(name) for name in recordings]), strict=True))
    return Windows(
        where,
        split,
        names,
        file.seconds * SAMPLING_RATE,
        starts=np.zeros(len(usable)),
        read=lambda number: usable.read(number)[rows] * factor,
        recordings=[plain[name] for name in usable.recordings],
        subjects=list(usable.subjects),
        labels=usable.labels,
        classes=file.classes,
    )


def _kept(montage: Sequence[str], options: Options, where: str) -> tuple[tuple[str, ...], list[int]]:
    """Electrodes of an HDF5 file after --drop and --rename, and their rows.

    Seconds that a dropped electrode made unusable stay unusable: the file does not say which one it was.
    """
    names = list(montage)
    kept = electrodes_of(names, replace(options.pipeline, cap=None), where).kept
    if len(kept) < len(names):
        logger.warning("%s: left out: %s.", where, ", ".join(printable(name) for name in names if name not in kept))
    return tuple(kept.values()), [row for row, name in enumerate(names) if name in kept]
