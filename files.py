"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

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


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a hidden path in the same folder that becomes `path` on success and is removed on any error.

    Its name ends with `.part`, so that no search for finished files takes it for one, even after a kill.
    Raises UsageError if it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path} cannot be written ({reason}): free space or choose another folder") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
