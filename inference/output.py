"""Result files of `run_inference.py`: HDF5, NPZ or CSV by suffix, whole or not there.

Results are streamed into an HDF5 file, a group for each recording; NPZ and CSV are made of it at the end. So memory
does not grow with a recording's length, except by one array for NPZ. Of a recording only its file's name, its
electrodes and its times are kept.
"""

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from eeg_data.pretraining_files import SAMPLING_RATE
from errors import UsageError
from files import check_file, written_aside
from inference.recordings import Windows

SUFFIXES = (".npz", ".hdf5", ".h5", ".csv")
ROWS = 64  # windows copied at a time
CSV_VALUES = ("codes", "features", "probabilities", "amplitude_error", "phase_error", "signal_error")


def check_output(path: Path) -> None:
    """Raise UsageError if results cannot be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output {path}: the name must end with one of {', '.join(SUFFIXES)}")
    check_file(path)


@contextmanager
def results_file(path: Path, description: dict[str, Any]) -> Iterator[h5py.File]:
    """Yield an open HDF5 file for results; at the end they are written to `path` as its suffix says.

    description: how they were made; texts and numbers. On any error `path` stays as it was.
    """
    suffix = path.suffix.lower()
    # HDF5 writes through Python's file: with its own driver the process crashes when the disk is full.
    with (
        written_aside(path) as part,
        part.open("w+b") if suffix in (".hdf5", ".h5") else tempfile.TemporaryFile(dir=path.parent) as disk,
        h5py.File(disk, "w", track_order=True) as file,
    ):
        file.attrs.update(description)
        yield file
        if suffix == ".npz":
            with part.open("wb") as archive:
                np.savez(archive, description=np.array(json.dumps(description)), **dict(_arrays(file)))
        elif suffix == ".csv":
            groups = list(file.values())
            is_histogram = "histogram" in groups[0]
            _write_csv(part, _recording_rows(groups, "histogram") if is_histogram else _window_rows(groups))
            if "recording_probabilities" in groups[0]:
                with written_aside(path.with_name(f"{path.stem}-recordings{path.suffix}")) as table:
                    _write_csv(table, _recording_rows(groups, "recording_probabilities"))


# A group holds the results of one recording, or of a labelled split


def begin(file: h5py.File, windows: Windows) -> h5py.Group:
    """Make a group of the recording's name, numbered if there is one already."""
    name, number = windows.name, 1
    while name in file:
        number += 1
        name = f"{windows.name}-{number}"
    group = file.create_group(name, track_order=True)
    group.attrs.update(electrodes=list(windows.electrodes), window_seconds=windows.samples / SAMPLING_RATE)
    group["start_seconds"] = windows.starts
    if windows.labels is not None:
        group["label"], group["recording"] = windows.labels, list(windows.recordings)
        group.attrs["classes"] = list(windows.classes)
    return group


def name_of(group: h5py.Group) -> str:
    """Name of the recording."""
    return str(group.name).strip("/")


def add_means(group: h5py.Group) -> None:
    """Add the mean probabilities of each recording."""
    owners = _owners(group)
    means = pd.DataFrame(group["probabilities"][:].astype(np.float64)).groupby(owners).mean()
    group["recordings"], group["recording_probabilities"] = list(means.index), means.to_numpy()


def count_codes(group: h5py.Group, codebook_size: int) -> None:
    """Put counts of each recording's codes, (recordings, codes of the codebook) int64, in the place of the codes."""
    names, owners = np.unique(_owners(group), return_inverse=True)
    counts = np.zeros((len(names), codebook_size), np.int64)
    for number, owner in enumerate(owners):
        counts[owner] += np.bincount(group["codes"][number].ravel(), minlength=codebook_size)
    del group["codes"]
    group["recordings"], group["histogram"] = names.tolist(), counts


def _owners(group: h5py.Group) -> Any:
    """Return the recording of each window, of a labelled split without the split's name."""
    return group["recording"].asstr()[:] if "recording" in group else [name_of(group)] * len(group["start_seconds"])


def recordings_of(group: h5py.Group, array: str = "recording") -> list[str]:
    """Recording of each window, or with `recordings` of each mean; of a labelled split `test/recording`."""
    if "recording" not in group:
        return [name_of(group)] * len(group["start_seconds"])
    return [f"{name_of(group)}/{name}" for name in group[array].asstr()[:]]


# NPZ and CSV


def _arrays(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Yield arrays named `recording/array`. Those of numbers stay on the disk until NumPy writes them."""
    for recording, group in file.items():
        for name, value in group.attrs.items():
            yield f"{recording}/{name}", np.array(value.tolist())
        for name, data in group.items():
            text = h5py.check_string_dtype(data.dtype)
            yield f"{recording}/{name}", np.array(data.asstr()[:].tolist()) if text else data


def _write_csv(path: Path, rows: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows(rows)


def _recording_rows(groups: Sequence[h5py.Group], array: str) -> Iterator[list[Any]]:
    """Yield the header and what each recording has in an array."""
    codes = range(groups[0][array].shape[1])  # 8192 names are more than HDF5 takes as an attribute
    yield ["recording", *groups[0].attrs.get("outputs", [f"code_{code}" for code in codes])]
    for group in groups:
        for name, values in zip(recordings_of(group, "recordings"), group[array][:], strict=False):
            yield [name, *values.tolist()]


def _window_rows(groups: Sequence[h5py.Group]) -> Iterator[list[Any]]:
    """Yield the header and a row for each window, each electrode of it or each patch, as the results are."""
    results = [name for name in groups[0] if name in CSV_VALUES]
    are_vectors = results[0] in ("features", "probabilities")  # of a window or a patch; the others are numbers
    if "probabilities" in results:
        columns = list(groups[0].attrs["outputs"])
    elif are_vectors:
        columns = [f"f{number}" for number in range(groups[0]["features"].shape[-1])]
    else:
        columns = ["code" if name == "codes" else name for name in results]
    axes = ["electrode", "second"][: groups[0][results[0]].ndim - 1 - are_vectors]
    labels = max((_label_columns(group) for group in groups), key=len)
    yield ["recording", "start_seconds", *axes, *labels, *columns]
    for group in groups:
        names, starts, electrodes = recordings_of(group), group["start_seconds"][:], group.attrs["electrodes"]
        given = group["label"][:].reshape(len(names), -1).tolist() if "label" in group else [[]] * len(names)
        targets = [[*row, *[""] * (len(labels) - len(row))] for row in given]
        for first in range(0, len(names), ROWS):
            values = [group[name][first : first + ROWS] for name in results]
            for offset, *place in np.ndindex(values[0].shape[: 1 + len(axes)]):
                window, where = first + offset, [electrodes[place[0]], *place[1:]] if place else []
                numbers = [n for array in values for n in np.atleast_1d(array[(offset, *place)]).tolist()]
                yield [names[window], starts[window], *where, *targets[window], *numbers]


def _label_columns(group: h5py.Group) -> list[str]:
    """Names of the labels in a row: one class number, or the targets of a regression."""
    shape = group["label"].shape if "label" in group else (0, 0)
    return ["label"] if len(shape) == 1 else [f"label_{number}" for number in range(shape[1])]
