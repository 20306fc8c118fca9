"""Result files of `run_inference.py`: HDF5, NPZ or CSV by suffix, whole or not there.

Arrays wait in a temporary file and are copied piece by piece, so memory does not grow with a recording's length.
Of a recording only its file's name, its electrodes and its times are kept.
"""

import csv
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from eeg_data.pretraining_files import SAMPLING_RATE
from errors import UsageError
from files import check_file, written_aside
from inference.recordings import DiskArray, Windows, reserve

SUFFIXES = (".npz", ".hdf5", ".h5", ".csv")
ROWS = 64  # windows copied at a time
CSV_VALUES = ("codes", "features", "probabilities", "amplitude_error", "phase_error")
HDF5_OVERHEAD = 1 << 16  # bytes a group, more than enough

Array = np.ndarray | DiskArray


def check_output(path: Path) -> None:
    """Raise UsageError if results cannot be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--output {path}: the name must end with one of {', '.join(SUFFIXES)}")
    check_file(path)


@dataclass
class Entry:
    """The results of one recording, or of a labelled split."""

    name: str
    attributes: dict[str, Any]  # electrodes, window_seconds; classes of the labels, outputs of a prediction
    arrays: dict[str, Array]
    file: IO[bytes]  # of the arrays on the disk

    def add(self, part: slice, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the arrays of some windows."""
        windows = len(self.arrays["start_seconds"])
        for name, array in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = DiskArray((windows, *array.shape[1:]), array.dtype, self.file)
            self.arrays[name][part] = array

    @property
    def recordings(self) -> list[str]:
        """Name of each window's recording."""
        if "recording" not in self.arrays:
            return [self.name] * len(self.arrays["start_seconds"])
        return [f"{self.name}/{name}" for name in self.arrays["recording"][:]]

    def add_means(self) -> None:
        """Add the mean probabilities of each recording."""
        names, owners = np.unique(self.arrays.get("recording", self.recordings)[:], return_inverse=True)
        probabilities = self.arrays["probabilities"][:]
        sums = np.zeros((len(names), probabilities.shape[1]))
        np.add.at(sums, owners, probabilities)
        self.arrays |= {"recordings": names, "recording_probabilities": sums / np.bincount(owners)[:, None]}


class Results:
    """The results of all recordings of one command."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        """description: how they were made; plain JSON values."""
        self.description = {
            name: value if isinstance(value, str | int | float) else json.dumps(value)
            for name, value in description.items()
        }
        self.entries: dict[str, Entry] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it goes with the results)

    def begin(self, windows: Windows) -> Entry:
        """Make an entry of the recording's name, numbered if there is one already; `keep` adds it to the results."""
        name, number = windows.name, 1
        while name in self.entries:
            number += 1
            name = f"{windows.name}-{number}"
        attributes = {"electrodes": list(windows.electrodes), "window_seconds": windows.samples / SAMPLING_RATE}
        entry = Entry(name, attributes, {"start_seconds": windows.starts}, self._file)
        if windows.labels is not None:
            entry.arrays |= {"label": windows.labels, "recording": np.array(windows.recordings, dtype=str)}
            attributes["classes"] = list(windows.classes)
        return entry

    def keep(self, entry: Entry) -> None:
        """Add an entry to the results."""
        self.entries[entry.name] = entry

    def write(self, path: Path) -> None:
        """Write everything as the suffix of the path says."""
        entries = list(self.entries.values())
        with written_aside(path) as part:
            if path.suffix.lower() == ".npz":
                _write_npz(self.description, entries, part)
            elif path.suffix.lower() == ".csv":
                _write_csv(part, _window_rows(entries))
                if "recording_probabilities" in entries[0].arrays:
                    with written_aside(path.with_name(f"{path.stem}-recordings{path.suffix}")) as table:
                        _write_csv(table, _recording_rows(entries))
            else:
                _write_hdf5(self.description, entries, part)


def _write_hdf5(description: Mapping[str, Any], entries: Sequence[Entry], path: Path) -> None:
    """Write a group for each recording. Raises OSError if the disk is full, where HDF5 itself may crash."""
    size = sum(array.nbytes for entry in entries for array in entry.arrays.values())
    with tempfile.TemporaryFile(dir=path.parent) as file:
        reserve(file, 0, size + HDF5_OVERHEAD * (1 + len(entries)))
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs.update(description)
        for entry in entries:
            group = file.create_group(entry.name, track_order=True)
            group.attrs.update(entry.attributes)
            for name, array in entry.arrays.items():
                text = array.dtype.kind == "U"
                data = group.create_dataset(name, array.shape, h5py.string_dtype() if text else array.dtype)
                for first in range(0, len(array), ROWS):
                    piece = array[first : first + ROWS]
                    data[first : first + ROWS] = piece.astype(object) if text else piece


def _write_npz(description: Mapping[str, Any], entries: Sequence[Entry], path: Path) -> None:
    """Write arrays named `recording/array`, as `numpy.load` reads them, and `description`, a JSON text."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        _add_array(archive, "description", np.array(json.dumps(dict(description))))
        for entry in entries:
            for name, value in entry.attributes.items():
                _add_array(archive, f"{entry.name}/{name}", np.array(value))
            for name, array in entry.arrays.items():
                _add_array(archive, f"{entry.name}/{name}", array)


def _add_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for first in range(0, len(array) if array.shape else 1, ROWS):
            member.write((array[first : first + ROWS] if array.shape else array[()]).tobytes())


def _write_csv(path: Path, rows: Iterator[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows(rows)


def _recording_rows(entries: Sequence[Entry]) -> Iterator[list[Any]]:
    """Yield the header and the mean probabilities of each recording."""
    yield ["recording", *entries[0].attributes["outputs"]]
    for entry in entries:
        for name, values in zip(entry.arrays["recordings"][:], entry.arrays["recording_probabilities"][:], strict=True):
            yield [f"{entry.name}/{name}" if "recording" in entry.arrays else name, *values.tolist()]


def _window_rows(entries: Sequence[Entry]) -> Iterator[list[Any]]:
    """Yield the header and a row for each window, each electrode of it or each patch, as the results are."""
    labels = max((_label_columns(entry) for entry in entries), key=len)  # recordings without a label leave them empty
    axes = ["electrode", "second"][: _values(entries[0], slice(1))[0].ndim - 2]
    yield ["recording", "start_seconds", *axes, *labels, *_value_columns(entries[0])]
    for entry in entries:
        names, starts, electrodes = entry.recordings, entry.arrays["start_seconds"][:], entry.attributes["electrodes"]
        for first in range(0, len(starts), ROWS):
            values = _values(entry, slice(first, first + ROWS))
            for offset, *place in np.ndindex(values[0].shape[:-1]):
                window = first + offset
                label = np.ravel(entry.arrays["label"][window]).tolist() if "label" in entry.arrays else []
                label += [""] * (len(labels) - len(label))
                where = [electrodes[place[0]], *place[1:]] if place else []
                numbers = [number for array in values for number in array[(offset, *place)].tolist()]
                yield [names[window], starts[window], *where, *label, *numbers]


def _values(entry: Entry, part: slice) -> list[np.ndarray]:
    """Results of some windows, (windows, [N, [A,]] values) each."""
    arrays = ((name, array[part]) for name, array in entry.arrays.items() if name in CSV_VALUES)
    return [array if name in ("features", "probabilities") else array[..., None] for name, array in arrays]


def _value_columns(entry: Entry) -> list[str]:
    """Names of the values in a row."""
    if "probabilities" in entry.arrays:
        return list(entry.attributes["outputs"])
    if "features" in entry.arrays:
        return [f"f{number}" for number in range(entry.arrays["features"].shape[-1])]
    return ["code" if name == "codes" else name for name in entry.arrays if name in CSV_VALUES]


def _label_columns(entry: Entry) -> list[str]:
    """Names of the labels in a row: one class number, or the targets of a regression."""
    shape = entry.arrays["label"].shape if "label" in entry.arrays else (0, 0)
    return ["label"] if len(shape) == 1 else [f"label_{number}" for number in range(shape[1])]
