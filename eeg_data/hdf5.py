"""Find, open and read HDF5 files. Each process has its own handles; damage is reported as one InputError.

Windows of data that are stored as they are (`Blocks`) are read past HDF5, several threads at a time. HDF5 reads all
other data, one thread at a time, with the same values.
Works without torch. `pretraining_files.py` and `labelled_files.py` say what the two kinds of files hold.
"""

import io
import math
import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from errors import InputError, printable

SUFFIXES = (".hdf5", ".h5")
OPEN_FILES, OPEN_DATASETS = 128, 1024  # that a process keeps; a data set takes 40 KB and at most CHUNK_CACHE
CHUNK_CACHE = 2**17  # bytes: a usual chunk is read in one piece; more gains nothing where windows are shuffled
CHUNK_SLOTS = 11
UNIT = 100.0  # uV: files hold microvolts, models see EEG / 100
DIVISOR = np.full((), UNIT, np.float32)  # spares NumPy a conversion a window
STORED = {"<f4": h5py.h5t.IEEE_F32LE, "<f2": h5py.h5t.IEEE_F16LE}  # types that are read past HDF5
_room = threading.local()  # what a thread reads into before it is divided


@contextmanager
def readable(where: Any, way_out: str = "make the file again") -> Iterator[None]:
    """Turn what h5py raises on damaged bytes into an InputError; it begins with `where` and quotes nothing else."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # KeyError, RuntimeError, OverflowError, MemoryError, ...: no list is complete
        reason = f"{type(error).__name__}; missing, damaged, cut short, or a lost link"
        raise InputError(f"{where}: cannot be read ({reason}): {way_out}") from None


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file once a process, read-only and without locks (network file systems).

    Raises InputError if it cannot be read.
    """
    if _open_file.cache_info().currsize >= OPEN_FILES or _open_dataset.cache_info().currsize >= OPEN_DATASETS:
        close_files()  # all at once: HDF5 keeps a file open as long as a data set of it
    return _open_file(path, os.getpid())  # a forked process must not share handles


def open_dataset(path: Path, name: str) -> h5py.Dataset:
    """Open a data set once a process: opening it again costs more than reading a window of it.

    Raises InputError as `open_file` does, for missing sources, and for a file that was cut short since it was opened.
    """
    dataset, handle, size = _open_dataset(path, name, os.getpid())
    if os.fstat(handle).st_size < size:  # HDF5 reads zeros where a file ends too early
        raise InputError(f"{path} was cut short since it was opened: make it again")
    return dataset


@cache
def _open_file(path: Path, process: int) -> h5py.File:
    with readable(path, "name a file that a maker has made, or make it again"):
        return h5py.File(path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=CHUNK_SLOTS)


@cache
def _open_dataset(path: Path, name: str, process: int) -> tuple[h5py.Dataset, int, int]:
    """Return a data set with the handle and the size of its file."""
    dataset = open_file(path)[name]
    if dataset.is_virtual:  # its sources may have gone since it was listed
        check_stored(dataset, f"{path}, {printable(name)}")
    file = dataset.file.id  # another file behind an external link
    return dataset, file.get_vfd_handle(), file.get_filesize()


def close_files() -> None:
    """Forget all files and data sets, so that changed ones are opened again."""
    for known in (_open_dataset, _open_file, _open_raw, find_blocks):
        known.cache_clear()


class Blocks(NamedTuple):
    """Where a data set lies in its file: in blocks of (electrodes, samples) values, which follow each other in time."""

    path: Path
    stamp: tuple[int, int]  # of the file when it was looked at
    dtype: str  # a key of STORED
    shape: tuple[int, int]  # of a block
    firsts: "array[int]"  # number of the first block of each run of blocks that touch each other
    offsets: "array[int]"  # of each run: bytes before it

    def read(self, start: int, out: np.ndarray) -> bool:
        """Write the window from sample `start` on into `out`, (N, samples), as `divide_into` does.

        Returns False if HDF5 must read it: the file has changed or ends too early, or the window is no multiple of the
        blocks.
        """
        rows, length = self.shape
        (first, skipped), (whole, rest) = divmod(start, length), divmod(out.shape[1], length)
        file, stamp = _open_raw(self.path)
        if rest or stamp != self.stamp or (stored := self._fetch(file, first, whole + bool(skipped))) is None:
            return False
        blocks, places = stored.swapaxes(0, 1), out.reshape(rows, whole, length)  # (N, blocks, length)
        if not skipped:
            divide_into(places, blocks)
        else:
            divide_into(places[..., :-skipped], blocks[:, :-1, skipped:])
            divide_into(places[..., -skipped:], blocks[:, 1:, :skipped])
        return True

    def _fetch(self, file: io.FileIO, first: int, count: int) -> np.ndarray | None:
        """Read blocks into this thread's memory: (blocks, N, length), valid until its next call. None if cut short.

        A memory map would take two thirds of the time, but where a file is cut short, or its disk fails, it ends the
        process without a word (SIGBUS), and it makes the process look as large as the files.
        """
        values = count * self.shape[0] * self.shape[1]
        size = 2 * values if self.dtype == "<f2" else 4 * values  # bytes
        room: Any = getattr(_room, "bytes", ())
        if len(room) < size:
            room = _room.bytes = np.empty(size, np.uint8)
        each, done, run = size // count, 0, bisect_right(self.firsts, first) - 1
        while done < size:
            number = first + done // each
            touching = self.firsts[run + 1] - number if run + 1 < len(self.firsts) else count
            part = room[done : min(size, done + touching * each)]
            if os.preadv(file.fileno(), [part], self.offsets[run] + (number - self.firsts[run]) * each) < len(part):
                return None
            done, run = done + len(part), run + 1
        return room[:size].view(self.dtype).reshape(count, *self.shape)


@lru_cache(OPEN_FILES)
def _open_raw(path: Path) -> tuple[io.FileIO, tuple[int, int]]:
    """Open a file past HDF5; return it with its stamp. It closes when the cache and all readers have let go of it."""
    file = io.FileIO(path)
    return file, stamp_of(os.fstat(file.fileno()))


def stamp_of(state: os.stat_result) -> tuple[int, int]:
    """Return what tells whether a file has changed."""
    return state.st_size, state.st_mtime_ns


@cache
def find_blocks(path: Path, name: str) -> Blocks | None:
    """Find the blocks of a data set (N, time) or (samples, N, time). None for data that HDF5 must read.

    These are data that are not little-endian float32 or float16, compressed, virtual, behind a link to another file,
    incomplete, or in chunks of a part of the electrodes.
    """
    data = open_file(path)[name]  # not kept open, as `open_dataset` does: HDF5 is not needed again
    file, plan, kind = data.file, data.id.get_create_plist(), data.id.get_type()
    dtype = next((key for key, stored in STORED.items() if kind.equal(stored)), None)
    elsewhere = data.is_virtual or plan.get_external_count() or not path.samefile(file.filename)
    if dtype is None or elsewhere or plan.get_nfilters() or file.userblock_size or not hasattr(os, "preadv"):
        return None
    (rows, time), chunks = data.shape[-2:], data.chunks
    if chunks is None:  # one sample behind the other
        length, places = time, np.array([data.id.get_offset() or -1] if data.ndim == 3 else [-1])
        firsts = np.zeros(1, np.int64)
    else:
        axis, length = 3 - data.ndim, chunks[-1]
        if chunks != ((rows, length) if axis else (1, rows, time)):
            return None
        every = np.full(-(-data.shape[axis] // chunks[axis]), -1)  # bytes before each block
        data.id.chunk_iter(lambda chunk: every.__setitem__(chunk.chunk_offset[axis] // chunks[axis], chunk.byte_offset))
        firsts = np.flatnonzero(np.append(True, np.diff(every) != rows * length * kind.get_size())[: len(every)])
        places = every if -1 in every else every[firsts]
    if not len(places) or -1 in places:
        return None
    stamp = stamp_of(os.fstat(file.id.get_vfd_handle()))
    return Blocks(path, stamp, dtype, (rows, length), array("q", firsts), array("q", places))


def divide_into(out: np.ndarray, values: np.ndarray) -> None:
    """Write values / UNIT into `out`, float32; into float16 the values, float16 themselves, as they are."""
    if out.dtype == np.float16:
        np.copyto(out, values, casting="no")
    else:
        np.divide(values, DIVISOR, out=out, dtype=np.float32)


def read_signal(path: Path, name: str, place: Any, where: str, dtype: Any = np.float32) -> np.ndarray:
    """Read a part of a data set; dtype=None: as stored. place: NumPy's index; where: begins an InputError's message."""
    with readable(where, "make the file again or leave it out"), np.errstate(over="ignore"):
        # float64 beyond float32 is infinite to a model, too
        values = open_dataset(path, name)[place]
        return values if dtype is None else values.astype(dtype, copy=False)


def read_window(
    path: Path,
    name: str,
    place: Any,
    start: int,
    out: np.ndarray,
    where: Callable[[], str],
    blocks: Blocks | None = None,
) -> None:
    """Read a window into `out`, (N, samples), as `divide_into` writes it. place, where: as for `read_signal`.

    start: the window's first sample, where samples of a labelled set follow each other; blocks: if they are known.
    """
    try:
        blocks = blocks or find_blocks(path, name)
        done = blocks is not None and blocks.read(start, out)
    except Exception:  # HDF5 will meet it, too, and name it
        done = False
    if not done:
        values = read_signal(path, name, place, where(), None if out.dtype == np.float16 else np.float32)
        divide_into(out, values)


def check_stored(dataset: h5py.Dataset, where: str) -> None:
    """Raise InputError for a data set that is only partly there: HDF5 reads zeros in the place of the rest."""
    with readable(where):
        if dataset.is_virtual:
            own = Path(dataset.file.filename)
            for source in dataset.virtual_sources():
                path = own if source.file_name == "." else own.parent / source.file_name
                origin = f"{where} shows {printable(source.dset_name)} of {printable(path)}"
                with readable(origin, "put it back, or make the file again"), h5py.File(path, locking=False) as file:
                    check_stored(file[source.dset_name], where)
            return
        shape, file_size = dataset.shape or (), dataset.file.id.get_filesize()
        size = math.prod(shape) * dataset.dtype.itemsize  # bytes; exact, NumPy's integers would overflow
        if dataset.chunks is None:
            complete = dataset.shape is None or dataset.id.get_storage_size() >= size
        else:  # counting chunks takes long, so only of those that must be compressed
            chunks = math.prod(-(-n // chunk) for n, chunk in zip(shape, dataset.chunks, strict=True))
            complete = size <= file_size or dataset.id.get_num_chunks() >= chunks
    if not complete:
        raise InputError(f"{where}: only a part of it was written, its maker was stopped: make the file again")


def find_files(paths: Sequence[Path], flag: str) -> list[Path]:
    """Find HDF5 files among files and folders, sorted. Raises InputError where a path has none."""
    found = {path: files_below(path) for path in paths}
    for path, files in found.items():
        if not files:
            raise InputError(
                f"no data found at {path}: {flag} takes HDF5 files ({', '.join(SUFFIXES)}) or folders of them; "
                "make them with dataset_maker/make_h5dataset_for_pretrain.py"
            )
    every = (file for files in found.values() for file in files)
    return sorted({Path(os.path.realpath(file)) if file.exists() else file.absolute() for file in every})


def files_below(path: Path) -> list[Path]:
    """Find the HDF5 files in a folder and its folders, each once, sorted; also broken symlinks, which will not open.

    The only file below a file is the file itself.
    """
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = sorted(file for file in visible_files(path) if file.suffix.lower() in SUFFIXES)
    each = {os.path.realpath(file): file for file in files if file.is_file() or not file.exists()}
    return list(each.values())


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and those below, linked folders too. Hidden files are skipped (`._a.edf` of a Mac).

    Raises InputError for a folder that may not be read: skipping it would make a smaller data set without a word.
    """
    seen = set()  # linked folders may form a circle
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        state = Path(place).stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be searched ({error.strerror}); open it, or name other folders")


def attribute(key: str, where: str, *owners: Any) -> Any:
    """Return an attribute of the first owner that has it. Raises InputError, which begins with `where`, if none has."""
    for owner in owners:
        if key in owner.attrs:
            return owner.attrs[key]
    raise InputError(f"{where}: attribute {key} is missing; make the file with dataset_maker")


def texts(value: Any) -> tuple[str, ...]:
    """Convert one or more texts, stored as bytes or as text."""
    return tuple(text.decode() if isinstance(text, bytes) else str(text) for text in np.atleast_1d(value).ravel())
