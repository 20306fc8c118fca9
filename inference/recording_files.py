"""Files and folders to windows for a trained model: what MNE reads, and our HDF5 files, whose EEG is taken as it is.

The windows themselves: `recordings.py`. Without torch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_maker.pipeline import FilterSettings, Pipeline, check_header, read_raw
from dataset_maker.sources import RECORDINGS, find_files, plain_name, unique_names
from eeg_data.hdf5 import SUFFIXES, open_file, printable, readable
from eeg_data.labelled_files import LabelledFile, Samples, UsableSamples, read_eeg, read_labelled, read_samples
from eeg_data.pretraining_files import SAMPLING_RATE, Recording, read_recordings
from electrodes import resolve
from errors import InputError, UsageError
from inference.recordings import Options, Signal, Windows, cut, signal_of_raw, unit_factor

logger = logging.getLogger(__name__)

KINDS = (*RECORDINGS, *SUFFIXES)  # of files that are read

Opener = Callable[[], Windows]


def find(inputs: Sequence[Path], options: Options, *, split: str | None = None) -> Iterator[tuple[str, Opener]]:
    """Every recording of these files and folders: where it is, and what opens it (raising InputError if it cannot).

    Files are what MNE reads, or HDF5 of ours; labelled ones give one entry for each split, or for `split` only. Raises
    UsageError for options that contradict each other, or that a file of ours cannot follow.
    """
    paths = find_files(inputs, KINDS)
    raws = [path for path in paths if path.suffix.lower() not in SUFFIXES]
    if options.prepared and (flags := _filter_flags(options.pipeline.filter)):
        raise UsageError(
            f"{' '.join(flags)}: --prepared says that signals are filtered already: leave one of the two out"
        )
    names = dict(zip(raws, unique_names([path.stem for path in raws], raws), strict=True))
    left_out: set[str] = set()  # the same channels of all recordings are said once
    for path in paths:
        if path in names:
            yield str(path), partial(_open_raw, path, names[path], options, left_out)
        else:
            yield from _find_in_hdf5(path, options, split)


def _open_raw(path: Path, name: str, options: Options, left_out: set[str]) -> Windows:
    raw = read_raw(path)
    check_header(raw, str(path))
    return cut(signal_of_raw(raw, options, set(), where=str(path), name=name, left_out=left_out), options)


def _find_in_hdf5(path: Path, options: Options, split: str | None) -> Iterator[tuple[str, Opener]]:
    """Recordings or splits of one file; a file that cannot be read is one entry that says so when it is opened."""
    if flags := _filter_flags(options.pipeline.filter):
        raise UsageError(
            f"{' '.join(flags)}: {path} holds EEG that is filtered and at {SAMPLING_RATE} Hz already: leave the flag "
            "out, or give the recordings that the file was made of"
        )
    description: LabelledFile | None = None
    recordings: list[Recording] = []
    try:
        file = open_file(path)
        with readable(path):
            labelled = "task" in file.attrs
        if labelled:
            description = read_labelled(path)
        else:
            recordings = read_recordings(path)
    except InputError as error:
        yield str(path), partial(_failed, error)
    for recording in recordings:
        yield recording.where, partial(_open_recording, recording, options)
    if description is not None:
        _check_windows(description, options)
        for name in (split,) if split else description.splits:
            yield f"{path}, group {name}", partial(_open_split, description, name, options)


def _filter_flags(chosen: FilterSettings) -> list[str]:
    """Flags that make filters other than the usual ones."""
    usual = FilterSettings()
    names = ("l_freq", "h_freq", "notch")
    return [f"--{name}" for name in names if getattr(chosen, name) != getattr(usual, name)]


def _check_windows(file: LabelledFile, options: Options) -> None:
    """Raise UsageError where other windows are asked for than the samples of a labelled file, which are its windows."""
    asked = [f"--stride {options.stride:g}"] if options.stride is not None else []
    asked += [f"--window {options.window}"] if options.window not in (None, file.seconds) else []
    if asked:
        raise UsageError(
            f"{' '.join(asked)}: the windows of {file.path} are its samples of {file.seconds} s: leave the flag out, "
            "or give the recordings that the file was made of"
        )


def _failed(error: InputError) -> Windows:
    raise error


def _open_recording(recording: Recording, options: Options) -> Windows:
    names, rows = _kept(recording.montage, options.pipeline, recording.where)
    quality = recording.quality()
    if quality is None or recording.invalid is None:
        quality = recording.scan()
    factor = unit_factor(options, quality, recording.where)

    def read(start: int, samples: int) -> np.ndarray:
        return recording.read(start, samples)[rows] * factor

    name = plain_name(recording.name)
    return cut(Signal(recording.where, name, names, recording.length, read, quality.valid), options)


def _open_split(file: LabelledFile, split: str, options: Options) -> Windows:
    """The samples of a split, which are its windows."""
    where = f"{file.path}, group {split}"
    if split not in file.splits:
        raise InputError(f"{file.path}: has no group {split}, only {', '.join(file.splits)}; correct --split")
    parts = [_scanned(part, file) for part in read_samples(file, split)]
    names, rows = _kept(file.montage, options.pipeline, where)
    usable = UsableSamples(parts)
    if not len(usable):
        raise InputError(f"{where}: no sample can be used: make the file again")
    factor = unit_factor(options, usable.quality, where)

    def read(number: int) -> np.ndarray:
        path, row = usable.place(number)
        return read_eeg(path, split, row)[rows] * factor

    return Windows(
        where,
        split,
        names,
        file.seconds * SAMPLING_RATE,
        np.zeros(len(usable)),
        read,
        usable.left_out,
        _plain_names(usable.recordings),
        usable.labels,
        file.classes,
    )


def _scanned(part: Samples, file: LabelledFile) -> Samples:
    """Add what a scan finds where the file does not say it."""
    if part.valid is not None and part.quality is not None:
        return part
    quality = part.scan(file.montage, file.seconds)
    return replace(part, valid=quality.valid.reshape(len(part), file.seconds), quality=quality)


def _plain_names(recordings: Sequence[str]) -> list[str]:
    """The recording of each sample under a plain name, different ones of different recordings."""
    known = sorted(set(recordings))
    plain = dict(zip(known, unique_names(known, [Path(name) for name in known]), strict=True))
    return [plain[name] for name in recordings]


def _kept(montage: Sequence[str], pipeline: Pipeline, where: str) -> tuple[tuple[str, ...], Any]:
    """Electrodes of a file's EEG under its --drop and --rename, and which rows they are: an index into the first axis.

    Seconds that an electrode made unusable stay so without it: the file does not say which one it was.
    """
    names = list(montage)
    kept = resolve(names, rename=pipeline.rename, drop=pipeline.drop, where=where).kept
    if len(kept) == len(names):
        return tuple(kept.values()), slice(None)
    logger.warning("%s: left out: %s.", where, ", ".join(printable(name) for name in names if name not in kept))
    return tuple(kept.values()), [row for row, name in enumerate(names) if name in kept]
