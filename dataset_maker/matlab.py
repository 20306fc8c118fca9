"""EEGLAB's signal inside a `.set`, read in pieces.

MNE reads it as a whole: 3 hours of 32 electrodes at 250 Hz, 0.35 GB in the file, take 1.7 GB. In files of MATLAB 5 that
are not compressed, as EEGLAB and SciPy write them, the signal lies in one piece. Those of MATLAB 7.3 are HDF5. Format:
MathWorks, MAT-File Format.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from unittest.mock import patch

import h5py
import numpy as np

from errors import InputError

MAGIC = b"\x00\x01IM"  # version 1, little endian
MATRIX, STRUCT, NUMBERS = 14, 2, range(6, 16)  # kind of element, classes of arrays
VALUES = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}  # by kind of element
NAME = "x.set"  # that the file without its signal must have


@dataclass(frozen=True)
class Signal:
    """EEG.data in a file of MATLAB 5: (channels, points), stored point by point."""

    path: Path
    start: int  # byte of the first value
    dtype: str
    shape: tuple[int, int]
    element: tuple[int, int]  # first byte and end of what holds it
    sizes: tuple[int, ...]  # bytes at which sizes are stored that include it

    ndim = 2

    def __getitem__(self, place: tuple[Any, slice]) -> np.ndarray:
        """Return values of rows and of consecutive points, as of an array."""
        (rows, points), channels = place, self.shape[0]
        first, last, _ = points.indices(self.shape[1])
        offset = self.start + first * channels * np.dtype(self.dtype).itemsize
        values = np.fromfile(self.path, self.dtype, (last - first) * channels, offset=offset)
        return values.reshape(channels, -1, order="F")[rows]

    def rest(self) -> bytes:
        """Return the file with the text NAME in place of the signal, which tells MNE that it is in the file itself."""
        text = NAME.encode()  # an array of class 4, shape (1, its length), called data, of bytes in UTF-8
        name = struct.pack("<9I4s2I8s", 6, 8, 4, 0, 5, 8, 1, len(text), 1 | 4 << 16, b"data", 16, len(text), text)
        name = struct.pack("<II", MATRIX, len(name)) + name
        first, end = self.element
        with self.path.open("rb") as file:
            head = bytearray(file.read(first))
            file.seek(end)
            for place in self.sizes:
                (size,) = struct.unpack_from("<I", head, place)
                struct.pack_into("<I", head, place, size - (end - first) + len(name))
            return bytes(head) + name + file.read()


@dataclass(frozen=True)
class HdfSignal:
    """EEG.data in a file of MATLAB 7.3: (channels, points), stored the other way round."""

    path: Path
    name: str  # of the dataset
    shape: tuple[int, int]

    ndim = 2

    def __getitem__(self, place: tuple[Any, slice]) -> np.ndarray:
        """Return values of rows and of consecutive points, as of an array."""
        with h5py.File(self.path) as file:
            return file[self.name][place[1]].T[place[0]]

    def rest(self) -> dict[str, Any]:
        """Return the other fields, with the path in place of the signal, which tells MNE that it is in the file."""
        from pymatreader import read_mat

        fields = read_mat(self.path, ignore_fields=["data"])
        fields = fields.get("EEG", fields)
        return {**fields, "data": str(self.path)}


def find_signal(path: Path) -> Signal | HdfSignal | None:
    """Return where a file holds the values of EEG.data; None if it is compressed, elsewhere, or lacks its reader."""
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            data = next((file[name] for name in ("EEG/data", "data") if name in file), None)
            if data is None or len(data.shape) != 2 or data.dtype.kind not in "fiu" or not find_spec("pymatreader"):
                return None
            name_of_class = data.attrs.get("MATLAB_class", b"")
            return None if name_of_class == b"char" else HdfSignal(path, data.name, data.shape[::-1])
    with path.open("rb") as file, suppress(struct.error):
        if not file.read(128).endswith(MAGIC):
            return None
        place = 128
        while True:  # variables; at the end unpacking fails
            kind, content, _, following = _tag(file, place)
            if kind != MATRIX:
                return None
            group, _, name, fields = _matrix(file, content)
            if name == b"data":
                return _signal(path, file, place, ())
            if name == b"EEG" and group == STRUCT:
                _, at, _, names = _tag(file, fields)
                width = struct.unpack("<i", _bytes(file, at, 4))[0]
                _, at, size, element = _tag(file, names)
                for field in struct.unpack(f"{width}s" * (size // width), _bytes(file, at, size)):
                    if field.rstrip(b"\0") == b"data":
                        return _signal(path, file, element, (place + 4,))
                    element = _tag(file, element)[3]
            place = following
    return None


def open_around(signal: Signal | HdfSignal, read: Callable[[Path], Any]) -> Any:
    """Open the recording of a signal with MNE's reader, which gets the rest of the file and asks for pieces of it.

    Raises InputError where the file's counts contradict.
    """
    if isinstance(signal, HdfSignal):
        rest = signal.rest()
        with patch("mne.io.eeglab.eeglab._readmat", lambda *path, **options: rest):
            raw = read(signal.path)
    else:
        with TemporaryDirectory() as folder:
            Path(folder, NAME).write_bytes(signal.rest())
            raw = read(Path(folder, NAME))
    if not (raw._raw_extras[0] or {}).get("is_embedded"):  # MNE before 1.11 loads everything
        return read(signal.path)
    if signal.shape != (len(raw.ch_names), raw.n_times):
        counts = f"{len(raw.ch_names)} channels of {raw.n_times} samples"
        raise InputError(f"{signal.path}: announces {counts}, but holds {' x '.join(map(str, signal.shape))} values")
    raw._raw_extras[0]["cached_data"] = signal
    raw._filenames = [signal.path]
    return raw


def _signal(path: Path, file: BinaryIO, place: int, sizes: tuple[int, ...]) -> Signal | None:
    _, content, _, following = _tag(file, place)
    group, shape, _, values = _matrix(file, content)
    kind, start, size, _ = _tag(file, values)
    if group not in NUMBERS or kind not in VALUES or len(shape) != 2:
        return None
    if np.prod(shape) * np.dtype(VALUES[kind]).itemsize != size:
        return None
    return Signal(path, start, VALUES[kind], (shape[0], shape[1]), (place, following), sizes)


def _tag(file: BinaryIO, place: int) -> tuple[int, int, int, int]:
    """Return the kind of an element, where its content begins, how many bytes that has, and where the next one is."""
    kind, size = struct.unpack("<II", _bytes(file, place, 8))
    if kind >> 16:  # small: the content is in the tag
        return kind & 0xFFFF, place + 4, kind >> 16, place + 8
    return kind, place + 8, size, place + 8 + size + -size % 8


def _matrix(file: BinaryIO, place: int) -> tuple[int, tuple[int, ...], bytes, int]:
    """Return class, shape and name of an array, and where its values begin."""
    _, flags, _, place = _tag(file, place)
    _, at, size, place = _tag(file, place)
    shape = struct.unpack(f"<{size // 4}i", _bytes(file, at, size))
    _, at, size, place = _tag(file, place)
    return _bytes(file, flags, 1)[0], shape, _bytes(file, at, size), place


def _bytes(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)
