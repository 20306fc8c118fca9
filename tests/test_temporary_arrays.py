"""Arrays in temporary files read back what was written, whatever else is written to the same file in between."""

import errno
from pathlib import Path

import numpy as np
import pytest

from inference.temporary_arrays import TemporaryArray, TemporarySignal, reserve, temporary_file


@pytest.mark.parametrize("shape", [(0, 3), (7,), (7, 1), (100, 4, 5)])
@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_any_stretch_is_that_of_the_whole(shape: tuple[int, ...], pieces: int) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    file = temporary_file()
    array, other = TemporaryArray(shape, np.float32, file), TemporaryArray(shape, np.int16, file)
    for piece in np.array_split(values, pieces):
        array.append(piece)
        other.append(np.full_like(piece, 7))
    assert len(array) == len(values) and array.ndim == values.ndim and array.nbytes == values.nbytes
    for first in range(len(values) + 1):
        for stop in {first, first + 1, first + 3, len(values)}:
            np.testing.assert_array_equal(array[first:stop], values[first:stop])
    np.testing.assert_array_equal(other[:], np.full(shape, 7, np.int16))


def test_what_is_not_written_yet_is_not_read() -> None:
    array = TemporaryArray((10, 2), np.float64)
    array.append(np.ones((4, 2)))
    assert array[:].shape == (4, 2) and array.shape == (10, 2) and array.written == 4


def test_a_signal_is_written_and_read_along_its_time() -> None:
    eeg = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    signal = TemporarySignal(3, 1000)
    for start, stop in ((0, 10), (10, 700), (700, 1000)):
        signal[:, start:stop] = eeg[:, start:stop]
    for start, stop in ((0, 1000), (5, 12), (699, 701), (990, 1000)):
        np.testing.assert_array_equal(signal[:, start:stop], eeg[:, start:stop])


def test_more_room_than_there_is_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    reserve(tmp_path, 1000)
    with pytest.raises(OSError) as error:
        reserve(tmp_path, 1 << 60)
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG) and list(tmp_path.iterdir()) == []
