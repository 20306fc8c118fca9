"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from errors import UsageError


def check_writable(folder: Path, flag: str = "--output") -> None:
    """Make the folder if need be. Raises UsageError, naming the flag, if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{flag} {folder} cannot be written ({reason}): choose another folder") from error


def check_file(path: Path, flag: str = "--output") -> None:
    """The same for a file's folder. Raises UsageError, too, if there is a folder of the file's name."""
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder: name a file")
    check_writable(path.parent, flag)


@contextmanager
def written_aside(path: Path, *, before: Callable[[Path], None] = lambda part: None) -> Iterator[Path]:
    """Yield a hidden path in the same folder that becomes `path` on success and is removed on any error.

    Its name ends with `.part`, so that no search for finished files takes it for one, even after a kill.
    before: called with it when it is whole and on the disk, before it gets its name.
    Raises UsageError if it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        before(part)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path} cannot be written ({reason}): free space or choose another folder") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the file system can: else a power cut may undo a rename."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file aside, then rename it."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with written_aside(path) as part:
        # Names of files need not be UTF-8: what is none of it goes in as JSON's own escape and comes back the same.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def cache_folder() -> Path:
    """Where scans and fetched checkpoints are kept. Raises RuntimeError for somebody without a home."""
    if chosen := os.environ.get("LABRAM_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "labram"


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
