"""Find recordings in files and folders, and open their windows: what MNE reads, and our HDF5 files as they are.

Works without torch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_maker.pipeline import FilterSettings, check_header, read_raw
from dataset_maker.sources import RECORDINGS, find_files, plain_name, unique_names
from eeg_data.hdf5 import SUFFIXES, open_file, readable
from eeg_data.labelled_files import LabelledFile, read_labelled, read_samples
from eeg_data.pretraining_files import SAMPLING_RATE, Recording, read_recordings
from electrodes import resolve
from errors import InputError, UsageError, printable
from inference.recordings import Options, Windows, cut, prepared_windows, unit_factor

logger = logging.getLogger(__name__)

KINDS = (*RECORDINGS, *SUFFIXES)  # of files that are read

Opener = Callable[[], Windows]


def find(inputs: Sequence[Path], options: Options, *, split: str | None = None) -> Iterator[tuple[str, Opener]]:
    """Yield every recording of these files and folders: where it is, and a function that opens it.

    Labelled HDF5 gives one entry a split, or only `split`. The function raises InputError if the recording cannot be
    used. Raises UsageError for options that contradict each other, or that an HDF5 file cannot follow.
    """
    paths = find_files(inputs, KINDS)
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
    raw = read_raw(path)
    check_header(raw, str(path))
    return prepared_windows(raw, options, str(path), name)


def _find_in_hdf5(path: Path, options: Options, split: str | None) -> Iterator[tuple[str, Opener]]:
    """Yield the recordings or splits of one file; a damaged file is one entry that fails when it is opened."""
    try:
        file = open_file(path)
        with readable(path):
            labelled = "task" in file.attrs
        description = read_labelled(path) if labelled else None
        recordings = [] if labelled else read_recordings(path)
    except InputError as error:
        yield str(path), partial(_failed, error)
        return
    for recording in recordings:
        yield recording.where, partial(_open_recording, recording, options)
    if description is not None:
        if options.stride is not None or options.window not in (None, description.seconds):
            raise UsageError(
                f"--window and --stride: the windows of {path} are its samples of {description.seconds} s: leave the "
                "flags out, or give the recordings that the file was made of"
            )
        for name in (split,) if split else description.splits:
            yield f"{path}, group {name}", partial(_open_split, description, name, options)


def _failed(error: InputError) -> Windows:
    raise error


def _open_recording(recording: Recording, options: Options) -> Windows:
    where = recording.where
    names, rows = _kept(recording.montage, options, where)
    quality = recording.quality()
    if quality is None or recording.invalid is None:  # the file does not say
        quality = recording.scan()
    factor = unit_factor(options, quality, where)

    def read(start: int, samples: int) -> np.ndarray:
        return recording.read(start, samples)[rows] * factor

    return cut(options, where, plain_name(recording.name), names, recording.length, read, valid=quality.valid)


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

    def read(number: int) -> np.ndarray:
        return usable.read(number)[rows] * factor

    recordings = sorted(set(usable.recordings))
    plain = dict(zip(recordings, unique_names(recordings, [Path(name) for name in recordings]), strict=True))
    return Windows(
        where,
        split,
        names,
        file.seconds * SAMPLING_RATE,
        np.zeros(len(usable)),
        read,
        usable.left_out,
        [plain[name] for name in usable.recordings],
        usable.labels,
        file.classes,
    )


def _kept(montage: Sequence[str], options: Options, where: str) -> tuple[tuple[str, ...], Any]:
    """Electrodes of an HDF5 file after --drop and --rename, and their rows: an index into the first axis.

    Seconds that a dropped electrode made unusable stay unusable: the file does not say which one it was.
    """
    names = list(montage)
    kept = resolve(names, rename=options.pipeline.rename, drop=options.pipeline.drop, where=where).kept
    if len(kept) == len(names):
        return tuple(kept.values()), slice(None)
    logger.warning("%s: left out: %s.", where, ", ".join(printable(name) for name in names if name not in kept))
    return tuple(kept.values()), [row for row, name in enumerate(names) if name in kept]
