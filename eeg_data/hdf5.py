"""Finding HDF5 files that others made and opening them: own handles, nothing followed out of them, damage in one line.

README, "Data files". Without torch, so that dataset makers can use it. What the two kinds of files hold is in
`pretraining_files.py` and `labelled_files.py`.
"""

import functools
import math
import os
import re
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5i, h5l, h5o

from errors import InputError

SUFFIXES = (".hdf5", ".h5")
OPEN_FILES = 64  # handles a process keeps
OPEN_DATASETS = 1024  # likewise, of all its files; each takes some 40 KB and at most CHUNK_CACHE
CHUNK_CACHE = 2**17  # bytes: a usual chunk is read in one piece; more gains nothing where windows are shuffled
CHUNK_SLOTS = 11
MAX_CHUNK = 2**28  # bytes: a chunk that is larger than this and than its file is a forged one
SEARCHED = 2**22  # bytes: larger files are not searched for damaged heaps
HEAP = b"GCOL\x01\0\0\0"  # begins a heap of texts
UNDECODED = re.compile("[\ud800-\udfff]")  # what h5py makes of bytes that are no text
WAY_OUT = "data files must hold all their data themselves: copy it in, or make the file again"
_checked: set[tuple[Path, int, int]] = set()  # files of this process that keep to themselves: path, bytes, changed


class _Datasets(dict[str, h5py.Dataset]):
    """Open data sets of one file by name; a class of its own, because a plain dict takes no weak references."""

    def __init__(self, file: h5py.File) -> None:
        """None yet of this open file."""
        super().__init__()
        self.handle = file.id.get_vfd_handle()
        self.size = os.fstat(self.handle).st_size

    def was_cut(self) -> bool:
        """Whether the file is shorter than it was: HDF5 reads as zeros what is missing."""
        return os.fstat(self.handle).st_size < self.size


_opened: deque[tuple["weakref.ref[_Datasets]", str]] = deque()  # data sets of this process, in the order of opening


@contextmanager
def readable(where: Any, way_out: str = "make the file again") -> Iterator[None]:
    """Turn whatever h5py raises on damaged bytes into an InputError that says where and quotes nothing of the file.

    where: opens the message, or gives what does, where that takes longer to say than there is to read.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # KeyError, RuntimeError, OverflowError, MemoryError, ...: no list is complete
        where = where() if callable(where) else where
        raise InputError(f"{where}: cannot be read ({type(error).__name__}; damaged or cut short): {way_out}") from None


def printable(text: str | bytes) -> str:
    """Text of a file for people: what a terminal cannot show, or would obey, is escaped."""
    known = text if isinstance(text, str) else text.decode(errors="surrogateescape")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in known)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: Path, pid: int) -> tuple[h5py.File, _Datasets]:
    """A process's own handle, read-only and without locks (network file systems); pid keeps forks apart."""
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=CHUNK_SLOTS)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; give the path of one that a maker has made") from error
    except Exception as error:  # not only OSError where the first bytes are damaged
        raise InputError(f"{path} is no readable HDF5 file (damaged or cut short): make it again") from error
    with readable(path):
        state = path.stat()
        seen = (path, state.st_size, state.st_mtime_ns)
        if seen not in _checked:
            check(file, path)
            _checked.add(seen)
        return file, _Datasets(file)


def check(file: h5py.File, path: Path) -> None:
    """Raise InputError for a file that leads elsewhere, or on which HDF5 would hang or crash."""
    with readable(path):
        _check_heaps(path, path.stat().st_size)
        _check_all_is_inside(file, path)


def open_file(path: Path) -> h5py.File:
    """This process's handle of an HDF5 file, opened once. Raises InputError if it cannot be read or leads elsewhere.

    Refused, before anything is followed: external, user-defined and dangling links, external storage, and virtual
    data sets of other files. Otherwise a data file could show any HDF5 file that its reader may read.
    """
    return _open(path, os.getpid())[0]


def open_dataset(path: Path, name: str) -> h5py.Dataset:
    """A data set of such a file, which stays open: to find it again costs more than to read a window of it.

    Beyond OPEN_DATASETS the one that has been open for longest is closed, and all of a file's with the file. Raises
    InputError as `open_file` does, and for a file that was cut short since it was opened.
    """
    file, datasets = _open(path, os.getpid())
    if datasets.was_cut():
        raise InputError(f"{path} was cut short since it was opened: make it again")
    if name not in datasets:
        if len(_opened) >= OPEN_DATASETS:
            of_file, first = _opened.popleft()
            if (others := of_file()) is not None:  # else its file is closed
                others.pop(first, None)
        datasets[name] = file[name]
        _opened.append((weakref.ref(datasets), name))
    return datasets[name]


def _check_heaps(path: Path, size: int) -> None:
    """Raise InputError for a heap of texts with an entry that leads nowhere: HDF5 (2.0 and before) never ends on it.

    Small files only, which are read in no time. Source: HDF5 file format specification, section III.E, global heap.
    """
    content = path.read_bytes() if size <= SEARCHED else b""
    place = content.find(HEAP)
    while place >= 0:
        entry = place + 16
        end = place + int.from_bytes(content[place + 8 : place + 16], "little")
        while entry + 16 <= min(end, size):
            number = int.from_bytes(content[entry : entry + 2], "little")
            length = int.from_bytes(content[entry + 8 : entry + 16], "little")
            taken = 16 + -(-length // 8) * 8 if number else length
            if not 16 <= taken <= end - entry:
                raise InputError(f"{path}: its texts cannot be read (damaged): make the file again")
            entry += taken
        place = content.find(HEAP, place + 1)


def _check_all_is_inside(file: h5py.File, path: Path) -> None:
    """Raise InputError for anything that leads out of the file; every group and data set is looked at once."""
    root: Any = file.id
    todo, seen, soft = [(root, b"/", b"")], set(), []  # where to open, what, and what the whole is called
    virtual: list[tuple[bytes, list[bytes]]] = []  # a virtual data set, and what it shows
    while todo:
        parent, name, place = todo.pop()
        group = h5g.open(parent, name)
        address = h5o.get_info(group).addr
        if address in seen:  # hard links may form a circle
            continue
        seen.add(address)
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info, links=links: links.append((name, info.type)), info=True)
        for name, kind in links:
            whole = place + b"/" + name
            if kind == h5l.TYPE_SOFT:
                soft.append(whole)
            elif kind != h5l.TYPE_HARD:
                what = "an external link" if kind == h5l.TYPE_EXTERNAL else "a user-defined link"
                _refuse(path, whole, what)
            elif (type_of := h5o.get_info(group, name).type) == h5o.TYPE_GROUP:
                todo.append((group, name, whole))
            elif type_of == h5o.TYPE_DATASET:
                dataset = h5d.open(group, name)
                if what := _storage_elsewhere(dataset):
                    _refuse(path, whole, what)
                if sources := _shown(dataset):
                    virtual.append((whole, sources))
    for whole in soft:  # last: now nothing that they can lead to is outside
        if not _leads_somewhere(file, whole):
            _refuse(path, whole, "a link to nothing")
    for whole, sources in virtual:
        if not all(_holds_data(file, source) for source in sources):  # on a circle of them HDF5 crashes
            _refuse(path, whole, "a virtual data set of virtual or missing ones")


def _refuse(path: Path, place: bytes, what: str) -> None:
    raise InputError(f"{path}: `{printable(place.lstrip(b'/'))}` is {what}; {WAY_OUT}")


def _storage_elsewhere(dataset: h5d.DatasetID) -> str:
    """What a data set's storage is if it is in other files, else nothing. Opens none of them."""
    plan = dataset.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL:
        sources = {plan.get_virtual_filename(i) for i in range(plan.get_virtual_count())}
        return "a virtual data set of other files" if sources - {"."} else ""
    return "a data set with external storage" if plan.get_external_count() else ""


def _shown(dataset: h5d.DatasetID) -> list[bytes]:
    """Names of the data sets that a virtual one of this file shows."""
    plan = dataset.get_create_plist()
    if plan.get_layout() != h5d.VIRTUAL:
        return []
    return [os.fsencode(plan.get_virtual_dsetname(i)) for i in range(plan.get_virtual_count())]


def _holds_data(file: h5py.File, place: bytes) -> bool:
    try:
        return h5d.open(file.id, place).get_create_plist().get_layout() != h5d.VIRTUAL
    except Exception:  # nothing there, a circle of links, or a damaged one
        return False


def _leads_somewhere(file: h5py.File, place: bytes) -> bool:
    try:
        return bool(h5o.exists_by_name(file.id, place))
    except Exception:  # a circle of links, or a damaged one
        return False


def check_size(dataset: h5py.Dataset, where: str) -> None:
    """Raise InputError for a data set that claims more than its file can hold, before anybody makes room for it."""
    with readable(where):
        file_size = h5i.get_file_id(dataset.id).get_filesize()
        item, shape = dataset.dtype.itemsize, dataset.shape or ()
        claimed = math.prod(shape) * item  # Python's integers: these products may pass any of NumPy's
        # In one piece, it must be there: for what is missing HDF5 gives whatever the memory holds.
        stored = claimed if dataset.id.get_offset() is None else dataset.id.get_storage_size()
        whole = claimed <= file_size and claimed <= stored
        if not whole and (chunks := dataset.chunks):  # compressed, then; a chunk that was never written reads as zeros
            needed = math.prod(-(-length // chunk) for length, chunk in zip(shape, chunks, strict=True))
            whole = dataset.id.get_num_chunks() >= needed and math.prod(chunks) * item <= max(MAX_CHUNK, file_size)
    if not whole:
        raise InputError(
            f"{where}: claims {claimed:,} bytes, which its file of {file_size:,} does not hold: make the file again"
        )


def find_files(paths: Sequence[Path], flag: str) -> list[Path]:
    """HDF5 files among files and folders, sorted. Raises InputError where a path has none."""
    found = []
    for path in paths:
        files = files_below(path) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise InputError(
                f"no data found at {path}: {flag} takes HDF5 files ({', '.join(SUFFIXES)}) or folders of them; "
                "make them with dataset_maker/make_h5dataset_for_pretrain.py"
            )
        found += files
    return sorted({Path(os.path.realpath(file)) if file.exists() else file.absolute() for file in found})


def files_below(folder: Path) -> list[Path]:
    """All HDF5 files in a folder and its folders, sorted; links that lead nowhere too, which do not open."""
    found = (path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if path.is_file() or not path.exists())


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and those below, linked folders too; what is hidden is no data (`._a.edf` of a Mac).

    Raises InputError for a folder that is closed to us: passing over it would make a smaller data set without a word.
    """

    def closed(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be searched ({error.strerror}); open it, or name other folders")

    seen = set()  # linked folders may form a circle
    for place, folders, names in os.walk(folder, onerror=closed, followlinks=True):
        state = Path(place).stat()
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in names if not name.startswith("."))


def names(values: Any) -> tuple[str, ...]:
    """Names from an HDF5 attribute, at least one, stored as bytes or as text. Raises InputError for anything else."""
    found = [value.decode() if isinstance(value, bytes) else value for value in np.atleast_1d(values).ravel()]
    if not found or not all(isinstance(name, str) and not UNDECODED.search(name) for name in found):
        raise InputError("holds no names")
    return tuple(str(name) for name in found)


def text(value: Any) -> str:
    """One text from an HDF5 attribute. Raises ValueError for anything else."""
    (found,) = names(value)
    return found


def number(value: Any) -> float:
    """One number from an HDF5 attribute. Raises ValueError for anything else."""
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "iuf":
        raise ValueError("no number")
    return float(found.ravel()[0])


class Attributes:
    """Attributes of HDF5 objects, the first object that has one wins; what is missing or absurd is an InputError."""

    def __init__(self, where: str, *objects: Any) -> None:
        """where: opens messages; objects: where to look, in this order."""
        self.where, self.objects = where, objects

    def get(self, key: str) -> Any:
        """The value as h5py gives it, None where it is missing. Raises InputError for all but texts and numbers."""
        with readable(f"{self.where}, attribute {key}"):
            for found in self.objects:
                if key in found.attrs:
                    kind = found.attrs.get_id(key).dtype  # not read yet: HDF5 crashes on some damaged kinds of lists
                    if kind.kind not in "biufS" and h5py.check_string_dtype(kind) is None:
                        raise InputError(
                            f"{self.where}: attribute {key} holds neither texts nor numbers; make the file with "
                            "dataset_maker"
                        )
                    return found.attrs[key]
        return None

    def names(self, key: str) -> tuple[str, ...]:
        """Texts of an attribute, at least one."""
        return self._as(names, key, "texts")

    def text(self, key: str) -> str:
        """The one text of an attribute."""
        return self._as(text, key, "one text")

    def number(self, key: str) -> float:
        """The one number of an attribute."""
        return self._as(number, key, "one number")

    def _as(self, read: Any, key: str, what: str) -> Any:
        value = self.get(key)
        if value is None:
            raise InputError(f"{self.where}: attribute {key} is missing; make the file with dataset_maker")
        try:
            return read(value)
        except Exception:  # an attribute can hold anything, and so fail in any way
            raise InputError(
                f"{self.where}: attribute {key} must hold {what}; make the file with dataset_maker"
            ) from None
