"""What `run_inference.py` writes: HDF5, NPZ or CSV by suffix, batch by batch, whole or not there.

Arrays wait in a temporary file and are copied piece by piece, so memory does not grow with a recording's length.
Nothing of a recording but its file's name, its electrodes and times is kept.
"""

import csv
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import h5py
import numpy as np

from eeg_data.pretraining_files import SAMPLING_RATE
from errors import UsageError
from files import check_file, written_aside
from inference.recordings import Windows
from inference.temporary_arrays import TemporaryArray, reserve, temporary_file

SUFFIXES = (".npz", ".hdf5", ".h5", ".csv")
ROWS = 64  # windows copied at a time
RESULTS = ("codes", "features", "probabilities", "amplitude_error", "phase_error")  # that CSV tables hold
AXES = ("window", "electrode", "second")  # of arrays by patch
HDF5_OVERHEAD = 1 << 16  # bytes a group, more than enough

Array = np.ndarray | TemporaryArray


def check_output(path: Path) -> None:
    """Raise UsageError if results cannot be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output {path}: the name must end with one of {', '.join(SUFFIXES)}, which say what is written"
        )
    check_file(path)


@dataclass
class Entry:
    """The results of one recording, or of a labelled split."""

    name: str
    attributes: dict[str, Any]  # electrodes, window_seconds; classes of the labels, outputs of a prediction
    arrays: dict[str, Array]
    file: IO[bytes]  # where long arrays are

    def add(self, part: slice, arrays: Mapping[str, np.ndarray], total: int) -> None:
        """Take what the next windows gave. total: windows of the recording."""
        for name, array in arrays.items():
            place = self.arrays.setdefault(name, TemporaryArray((total, *array.shape[1:]), array.dtype, self.file))
            assert isinstance(place, TemporaryArray) and place.written == part.start, "windows come in order"
            place.append(array)


class Results:
    """The results of all recordings of one call, on their way into a file."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        """description: of how they were made; plain JSON values."""
        self.description = {
            name: value if isinstance(value, str | int | float) else json.dumps(value)
            for name, value in description.items()
        }
        self.entries: dict[str, Entry] = {}
        self._file = temporary_file()  # one for all: a process may have a thousand open

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.entries)

    def begin(self, windows: Windows) -> Entry:
        """A place for the results of these windows, under the recording's name (numbered, if there is one already)."""
        name, number = windows.name, 1
        while name in self.entries:
            number += 1
            name = f"{windows.name}-{number}"
        attributes = {"electrodes": list(windows.electrodes), "window_seconds": windows.samples / SAMPLING_RATE}
        entry = self.entries[name] = Entry(name, attributes, {"start_seconds": windows.starts}, self._file)
        if windows.labels is not None:
            entry.arrays |= {"label": windows.labels, "recording": np.array(windows.recordings, dtype=str)}
            attributes["classes"] = list(windows.classes)
        return entry

    def remove(self, entry: Entry) -> None:
        """Forget a recording that failed on the way."""
        del self.entries[entry.name]

    def write(self, path: Path) -> None:
        """Write everything as the suffix of the path says."""
        entries = list(self.entries.values())
        with written_aside(path) as part:
            if path.suffix.lower() == ".npz":
                _write_npz(self.description, entries, part)
            elif path.suffix.lower() == ".csv":
                with part.open("w", newline="", encoding="utf-8") as text:
                    _write_csv(entries, text)
                _write_recordings(entries, path)
            else:
                _write_hdf5(self.description, entries, part)


def _write_recordings(entries: Sequence[Entry], path: Path) -> None:
    """The table of whole recordings, beside that of their windows."""
    rows = [
        [f"{entry.name}/{name}" if "recording" in entry.arrays else name, *values.tolist()]
        for entry in entries
        if "recording_probabilities" in entry.arrays
        for name, values in zip(entry.arrays["recordings"][:], entry.arrays["recording_probabilities"][:], strict=True)
    ]
    if rows:
        with written_aside(recordings_path(path)) as part, part.open("w", newline="", encoding="utf-8") as text:
            csv.writer(text).writerows([["recording", *entries[0].attributes["outputs"]], *rows])


def recordings_path(path: Path) -> Path:
    """Where the CSV table of whole recordings goes: beside that of windows, `path`."""
    return path.with_name(f"{path.stem}-recordings{path.suffix}")


def _pieces(data: Array) -> Iterator[np.ndarray]:
    for first in range(0, len(data), ROWS):
        yield data[first : first + ROWS]


def _write_hdf5(description: Mapping[str, Any], entries: Sequence[Entry], path: Path) -> None:
    """A group for each recording. Raises OSError where there is no room: HDF5 itself may crash on a full disk."""
    size = sum(array.nbytes for entry in entries for array in entry.arrays.values())
    reserve(path.parent, size + HDF5_OVERHEAD * (1 + len(entries)))
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs.update(description)
        for entry in entries:
            group = file.create_group(entry.name, track_order=True)
            group.attrs.update(entry.attributes)
            for name, array in entry.arrays.items():
                text = array.dtype.kind == "U"
                data = group.create_dataset(name, array.shape, h5py.string_dtype() if text else array.dtype)
                for number, piece in enumerate(_pieces(array)):
                    data[number * ROWS : number * ROWS + len(piece)] = piece.astype(object) if text else piece


def _write_npz(description: Mapping[str, Any], entries: Sequence[Entry], path: Path) -> None:
    """Arrays named `recording/array`, as `numpy.load` reads them, and `description`, a JSON text."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        _copy_array(archive, "description", np.array(json.dumps(dict(description))))
        for entry in entries:
            for name, value in [*entry.attributes.items(), *entry.arrays.items()]:
                array = value if isinstance(value, TemporaryArray) else np.asarray(value)
                _copy_array(archive, f"{entry.name}/{name}", array)


def _copy_array(archive: zipfile.ZipFile, name: str, data: Array) -> None:
    """Copy an array piece by piece."""
    header = {"descr": np.lib.format.dtype_to_descr(data.dtype), "fortran_order": False, "shape": data.shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in _pieces(data) if data.ndim else [np.asarray(data)]:
            member.write(np.ascontiguousarray(piece).tobytes())


def _write_csv(entries: Sequence[Entry], text: TextIO) -> None:
    """One table: a row for each window, each electrode of it or each patch, as the results are."""
    writer = csv.writer(text)
    tables = [_Table(entry) for entry in entries]
    labels = max((table.label_columns for table in tables), key=len)  # recordings without a label leave them empty
    writer.writerow([*tables[0].places, *labels, *tables[0].columns()])
    for table in tables:
        writer.writerows(table.rows(len(labels)))


class _Table:
    """A recording's results as rows."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.data = {key: value for key, value in entry.arrays.items() if key in RESULTS}
        self.depth = 3 if "codes" in self.data else self.data["features"].ndim - 1 if "features" in self.data else 1
        labels = entry.arrays.get("label")
        self.labels = None if labels is None else labels[:]
        self.label_columns = [] if self.labels is None else ["label"]
        if self.labels is not None and self.labels.ndim > 1:  # targets of a regression
            self.label_columns = [f"label_{number}" for number in range(self.labels.shape[1])]
        self.places = ["recording", "start_seconds", *AXES[1 : self.depth]]

    def columns(self) -> list[str]:
        """Names of the values."""
        found: list[str] = []
        for key, data in self.data.items():
            if key == "probabilities":
                found += [str(name) for name in self.entry.attributes["outputs"]]
            elif key == "features":
                found += [f"f{number}" for number in range(data.shape[-1])]
            else:
                found.append("code" if key == "codes" else key)
        return found

    def rows(self, labels_wide: int) -> Iterator[list[Any]]:
        """In the order of windows, electrodes and seconds. labels_wide: columns for labels."""
        starts, electrodes = self.entry.arrays["start_seconds"][:], self.entry.attributes["electrodes"]
        names = self.entry.arrays["recording"][:] if "recording" in self.entry.arrays else None
        for first in range(0, len(starts), ROWS):
            pieces = [self.data[key][first : first + ROWS] for key in self.data]
            for offset in range(len(pieces[0])):
                window = first + offset
                name = self.entry.name
                place = [name if names is None else f"{name}/{names[window]}", starts[window]]
                end = [] if self.labels is None else [*np.ravel(self.labels[window]).tolist()]
                end += [""] * (labels_wide - len(end))
                for inner in np.ndindex(*pieces[0].shape[1 : self.depth]):
                    axes: list[Any] = [electrodes[inner[0]]] if inner else []
                    axes += [inner[1]] if len(inner) > 1 else []
                    values = [value for piece in pieces for value in np.ravel(piece[offset][inner]).tolist()]
                    yield [*place, *axes, *end, *values]
