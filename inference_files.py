"""What `run_inference.py` writes: HDF5, NPZ or CSV by suffix, batch by batch, whole or not there.

Everything goes into a temporary HDF5 file first, in which a recording is a group of arrays; NPZ and CSV are made of it
piece by piece, so memory does not grow with a recording's length. Nothing of a recording but its file's name, its
electrodes and times is kept.
"""

import csv
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import h5py
import numpy as np

from errors import UsageError
from files import check_file, written_aside
from hdf5_files import written
from recordings import Windows

SUFFIXES = (".npz", ".hdf5", ".h5", ".csv")
ROWS = 64  # windows copied at a time
RESULTS = ("codes", "features", "probabilities", "amplitude_error", "phase_error")  # that CSV tables hold
AXES = ("window", "electrode", "second")  # of arrays by patch


def check_output(path: Path) -> None:
    """Raise UsageError if results cannot be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output {path}: the name must end with one of {', '.join(SUFFIXES)}, which say what is written"
        )
    check_file(path)


class Results:
    """The results of all recordings of one call, on their way into a file."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        """description: of how they were made; plain JSON values."""
        self._folder = tempfile.TemporaryDirectory()
        self._file = h5py.File(Path(self._folder.name) / "results.hdf5", "w", track_order=True)
        for name, value in description.items():
            self._file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)

    def __enter__(self) -> "Results":
        """Results that go away with their temporary file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file."""
        with suppress(OSError, RuntimeError):  # on a full disk, of which a write has told already
            self._file.close()
        self._folder.cleanup()

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self._file)

    def begin(self, windows: Windows) -> h5py.Group:
        """A place for the results of these windows, under the recording's name (numbered, if there is one already)."""
        name, number = windows.name, 1
        while name in self._file:
            number += 1
            name = f"{windows.name}-{number}"
        group = self._file.create_group(name, track_order=True)
        group.attrs["electrodes"] = list(windows.electrodes)
        group.attrs["window_seconds"] = windows.samples / 200
        group["start_seconds"] = windows.starts
        if windows.labels is not None:
            group["label"] = windows.labels
            group["recording"] = list(windows.recordings)
            group.attrs["classes"] = list(windows.classes)
        return group

    @staticmethod
    def name(group: h5py.Group) -> str:
        """What a recording is called in the file."""
        return str(group.name).removeprefix("/")

    @staticmethod
    def add(group: h5py.Group, part: slice, arrays: Mapping[str, np.ndarray], total: int) -> None:
        """Write what some windows gave. total: windows of the recording."""
        for name, array in arrays.items():
            if name not in group:
                group.create_dataset(name, (total, *array.shape[1:]), array.dtype)
            group[name][part] = array

    def remove(self, group: h5py.Group) -> None:
        """Forget a recording that failed on the way."""
        del self._file[group.name]

    def write(self, path: Path) -> None:
        """Write everything as the suffix of the path says."""
        self._file.flush()
        with written_aside(path) as part:
            if path.suffix.lower() == ".npz":
                _write_npz(self._file, part)
            elif path.suffix.lower() == ".csv":
                with part.open("w", newline="", encoding="utf-8") as text:
                    _write_csv(self._file, text)
                self._write_recordings(path)
            else:
                with written(), h5py.File(part, "w", track_order=True) as file:
                    file.attrs.update(self._file.attrs)
                    for name in self._file:
                        self._file.copy(name, file)

    def _write_recordings(self, path: Path) -> None:
        """The table of whole recordings, beside that of their windows."""
        rows = [
            [f"{place}/{name}" if "recording" in group else name, *values]
            for place, group in self._file.items()
            if "recording_probabilities" in group
            for name, values in zip(
                group["recordings"].asstr()[()], group["recording_probabilities"][()].tolist(), strict=True
            )
        ]
        if rows:
            outputs = next(iter(self._file.values())).attrs["outputs"]
            with written_aside(recordings_path(path)) as part, part.open("w", newline="", encoding="utf-8") as text:
                csv.writer(text).writerows([["recording", *outputs], *rows])


def recordings_path(path: Path) -> Path:
    """Where the CSV table of whole recordings goes: beside that of windows, `path`."""
    return path.with_name(f"{path.stem}-recordings{path.suffix}")


def _pieces(data: h5py.Dataset) -> Iterator[np.ndarray]:
    for first in range(0, max(len(data), 1), ROWS):
        yield data[first : first + ROWS]


def _as_text(data: np.ndarray) -> np.ndarray:
    """HDF5's texts, which NumPy has as objects, as fixed-width ones, which need no pickle."""
    return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in data])


def _write_npz(file: h5py.File, path: Path) -> None:
    """Arrays named `recording/array`, as `numpy.load` reads them, and `description`, a JSON text."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        _add_array(archive, "description", np.array(json.dumps(dict(file.attrs), default=str)))
        for name, group in file.items():
            for key in ("electrodes", "classes"):
                if key in group.attrs:
                    _add_array(archive, f"{name}/{key}", _as_text(group.attrs[key]))
            _add_array(archive, f"{name}/window_seconds", np.array(group.attrs["window_seconds"]))
            for key, data in group.items():
                if data.dtype.kind == "O":
                    _add_array(archive, f"{name}/{key}", _as_text(data[()]))
                else:
                    _copy_array(archive, f"{name}/{key}", data)


def _add_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w") as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _copy_array(archive: zipfile.ZipFile, name: str, data: h5py.Dataset) -> None:
    """Copy an array piece by piece."""
    header = {"descr": np.lib.format.dtype_to_descr(data.dtype), "fortran_order": False, "shape": data.shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in _pieces(data) if data.ndim else iter([data[()]]):
            member.write(np.ascontiguousarray(piece).tobytes())


def _write_csv(file: h5py.File, text: TextIO) -> None:
    """One table: a row for each window, each electrode of it or each patch, as the results are."""
    writer = csv.writer(text)
    tables = [_Table(name, group) for name, group in file.items()]
    labels = max((table.label_columns for table in tables), key=len)  # recordings without a label leave them empty
    writer.writerow([*tables[0].places, *labels, *tables[0].columns()])
    for table in tables:
        writer.writerows(table.rows(len(labels)))


class _Table:
    """A recording's results as rows."""

    def __init__(self, name: str, group: h5py.Group) -> None:
        self.name, self.group = name, group
        self.data = {key: value for key, value in group.items() if key in RESULTS}
        self.depth = 3 if "codes" in self.data else self.data["features"].ndim - 1 if "features" in self.data else 1
        self.labels = group.get("label")
        several = self.labels is not None and self.labels.ndim > 1  # targets of a regression
        labels = [f"label_{number}" for number in range(self.labels.shape[1])] if several else ["label"]
        self.places = ["recording", "start_seconds", *AXES[1 : self.depth]]
        self.label_columns = labels if self.labels is not None else []

    def columns(self) -> list[str]:
        """Names of the values."""
        found: list[str] = []
        for key, data in self.data.items():
            if key == "probabilities":
                found += [str(name) for name in self.group.attrs["outputs"]]
            elif key == "features":
                found += [f"f{number}" for number in range(data.shape[-1])]
            else:
                found.append("code" if key == "codes" else key)
        return found

    def rows(self, labels_wide: int) -> Iterator[list[Any]]:
        """In the order of windows, electrodes and seconds. labels_wide: columns for labels."""
        starts, electrodes = self.group["start_seconds"][()], [str(name) for name in self.group.attrs["electrodes"]]
        names = self.group["recording"].asstr()[()] if "recording" in self.group else None
        labels = None if self.labels is None else self.labels[()]
        for first in range(0, len(starts), ROWS):
            pieces = [self.data[key][first : first + ROWS] for key in self.data]
            for offset in range(len(pieces[0])):
                window = first + offset
                place = [self.name if names is None else f"{self.name}/{names[window]}", starts[window]]
                end = [] if labels is None else [*np.ravel(labels[window]).tolist()]
                end += [""] * (labels_wide - len(end))
                for inner in np.ndindex(*pieces[0].shape[1 : self.depth]):
                    axes: list[Any] = [electrodes[inner[0]]] if inner else []
                    axes += [inner[1]] if len(inner) > 1 else []
                    values = [value for piece in pieces for value in np.ravel(piece[offset][inner]).tolist()]
                    yield [*place, *axes, *end, *values]
