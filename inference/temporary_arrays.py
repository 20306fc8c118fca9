"""Arrays that are too large for memory, in temporary files that go with them: plain bytes, written in order.

Not HDF5, which can end the process where a disk is full: here that is an ordinary OSError at the write.
"""

import math
import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np


class TemporaryArray:
    """An array (length, ...) that grows along its first axis; slices of it are read back."""

    def __init__(self, shape: Sequence[int], dtype: Any, file: IO[bytes] | None = None) -> None:
        """shape: what it has when it is whole; file: shared by many arrays, of which each has pieces of it."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._row = self.dtype.itemsize * math.prod(self.shape[1:])  # bytes
        self._file = temporary_file() if file is None else file
        self._ends = [0]  # of the pieces along the first axis
        self._places: list[int] = []  # of the pieces in the file

    def __len__(self) -> int:
        """Length of the whole."""
        return self.shape[0]

    @property
    def written(self) -> int:
        """How much of the first axis is there."""
        return self._ends[-1]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the whole."""
        return self._row * self.shape[0]

    def append(self, rows: np.ndarray) -> None:
        """Write what comes next, (n, ...). Raises OSError if there is no room."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self._file.flush()
        self._places.append(place)
        self._ends.append(self.written + len(rows))

    def __getitem__(self, part: slice) -> np.ndarray:
        """Some of it, from a first to a last place."""
        first, stop, step = part.indices(self.written)
        assert step == 1, "only whole stretches"
        data = bytearray()
        for number in range(bisect_right(self._ends, first) - 1, len(self._places)):
            begin, end = max(first, self._ends[number]), min(stop, self._ends[number + 1])
            if begin >= end:
                break
            self._file.seek(self._places[number] + (begin - self._ends[number]) * self._row)
            data += self._file.read((end - begin) * self._row)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


def temporary_file() -> IO[bytes]:
    """A file without a name, which goes when nobody needs it any longer."""
    return tempfile.TemporaryFile()


class TemporarySignal:
    """A signal (N, samples) float32 that is written and read along its time, as a NumPy array would be."""

    def __init__(self, electrodes: int, samples: int) -> None:
        """Room for a signal."""
        self.shape = electrodes, samples
        self._values = TemporaryArray((samples, electrodes), np.float32)

    def __setitem__(self, place: tuple[slice, slice], eeg: np.ndarray) -> None:
        """Write the next samples. place: all electrodes, and where they are."""
        assert place[0] == slice(None) and place[1].start == self._values.written, "blocks come in order"
        self._values.append(eeg.T)

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Some samples, (N, n) float32. place: all electrodes, and from where to where."""
        assert place[0] == slice(None)
        return np.ascontiguousarray(self._values[place[1]].T)


def reserve(folder: Path, size: int) -> None:
    """Raise OSError if a folder's disk has no room for so many bytes, where the system can tell."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
