"""Find and open HDF5 files. Each process has its own handles; damage is reported as one InputError.

Works without torch. `pretraining_files.py` and `labelled_files.py` say what the two kinds of files hold.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from errors import InputError, printable

SUFFIXES = (".hdf5", ".h5")
OPEN_FILES, OPEN_DATASETS = 128, 1024  # that a process keeps; a data set takes 40 KB and at most CHUNK_CACHE
CHUNK_CACHE = 2**17  # bytes: a usual chunk is read in one piece; more gains nothing where windows are shuffled
CHUNK_SLOTS = 11


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
    _open_dataset.cache_clear()
    _open_file.cache_clear()


def read_signal(path: Path, name: str, place: Any, where: str) -> np.ndarray:
    """Read a part of a data set as float32. place: NumPy's index; where: begins the message of an InputError."""
    with readable(where, "make the file again or leave it out"), np.errstate(over="ignore"):
        # float64 beyond float32 is infinite to a model, too
        return open_dataset(path, name)[place].astype(np.float32, copy=False)


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
