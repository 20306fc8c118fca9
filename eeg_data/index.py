"""Remember what the pre-training files of a folder hold, in a hidden file beside them: opening each takes far longer.

An entry counts only as long as its file has the size and the time of its last change that it had. Files that HDF5 must
read (`hdf5.find_blocks`) have none. Works without torch.
"""

import json
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from eeg_data.hdf5 import Blocks, close_files, files_below, find_blocks, stamp_of
from eeg_data.pretraining_files import Recording, read_recordings, seconds_of
from errors import InputError
from files import written_aside

NAME, FORMAT = ".labram-index.json", 1
TICK = 0.05  # s; a file that changes twice within a clock's tick may have the same time


def list_recordings(paths: Sequence[Path], *, write: bool) -> list[Recording]:
    """List the recordings of files, in their order; from indices where these are up to date.

    write: whether to write the others anew, where the folder allows it. Raises InputError as `read_recordings` does.
    """
    recordings: list[Recording] = []
    indices: dict[Path, dict[str, Any]] = {}
    changed: set[Path] = set()
    montages: dict[tuple[str, ...], tuple[str, ...]] = {}  # each once: there may be 100 000 recordings
    for path in paths:
        folder = path.parent
        if folder not in indices:
            indices[folder] = _read(folder)
        index = indices[folder]
        known = _known(path, index.get(path.name), montages)
        if known is None:
            stamp = _stamp(path, wait=write)
            known = read_recordings(path)
            if entry := _entry(known, stamp):  # finding blocks for every window would take longer than reading it
                known = _known(path, entry, montages) or known
                index[path.name] = entry
                changed.add(folder)
        recordings += known
    for folder in changed if write else ():
        files = {name: entry for name, entry in indices[folder].items() if (folder / name).exists()}
        with suppress(InputError, OSError), written_aside(folder / NAME) as part:
            part.write_text(json.dumps({"format": FORMAT, "files": files}))
    return recordings


def index_folder(folder: Path) -> None:
    """Bring the indices of a folder up to date, unless a file of it cannot be read; close its files."""
    with suppress(InputError):
        list_recordings(files_below(folder), write=True)
    close_files()


def _read(folder: Path) -> dict[str, Any]:
    """Read an index: name of a file -> entry. Empty if there is none, or it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / NAME).read_text())
        if content["format"] == FORMAT:
            return dict(content["files"])
    return {}


def _stamp(path: Path, *, wait: bool) -> tuple[int, int] | None:
    """Return the stamp of a file, None if it is not there. wait: until a later change would show."""
    with suppress(OSError):
        stamp = stamp_of(path.stat())
        time.sleep(min(max(0.0, TICK - (time.time() - stamp[1] / 1e9)), TICK) if wait else 0)
        return stamp
    return None


def _entry(recordings: Sequence[Recording], stamp: tuple[int, int] | None) -> dict[str, Any] | None:
    """Describe a file by its recordings. None if HDF5 must read it, or if it has changed since it had the stamp."""
    rows = []
    for each in recordings:
        blocks = find_blocks(each.path, f"{each.name}/eeg")
        if blocks is None or blocks.stamp != stamp or not isinstance(each.stored_scan, str | None):
            return None
        valid = None if each.valid is None else np.packbits(each.valid).tobytes().hex()
        places = [blocks.dtype, blocks.shape, blocks.firsts.tolist(), blocks.offsets.tolist()]
        rows.append([each.name, each.montage, each.length, valid, each.stored_scan, places])
    return {"stamp": stamp, "recordings": rows}


def _known(path: Path, entry: Any, montages: dict[tuple[str, ...], tuple[str, ...]]) -> list[Recording] | None:
    """Return a file's recordings by its entry; None if there is none, or the file has changed."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if entry is None or tuple(entry["stamp"]) != (stamp := stamp_of(path.stat())):
            return None
        recordings = []
        for name, electrodes, length, bits, scan, (dtype, shape, firsts, offsets) in entry["recordings"]:
            montage = tuple(electrodes)
            packed = None if bits is None else np.frombuffer(bytes.fromhex(bits), np.uint8)
            valid = None if packed is None else np.unpackbits(packed, count=seconds_of(length)).astype(bool)
            blocks = Blocks(path, stamp, dtype, tuple(shape), array("q", firsts), array("q", offsets))
            about = montages.setdefault(montage, montage), length, valid, dtype == "<f2", scan, blocks
            recordings.append(Recording(path, name, *about))
        return recordings
    return None
