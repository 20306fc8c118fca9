"""Files that are whole or absent, digests, the code version that every file holds; temporary files."""

import hashlib
import json
import logging
import math
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np

from errors import UsageError

logger = logging.getLogger(__name__)

__version__ = "0.1.0"


@contextmanager
def written(what: str | Path) -> Iterator[None]:
    """Turn a failure to write into a UsageError that names what cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{what} cannot be written ({reason}): free space or choose another folder") from error


def check_writable(folder: Path, flag: str = "--output") -> None:
    """Make the folder if it is missing. Raises UsageError, naming the flag, if it cannot be made or written."""
    with written(f"{flag} {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def check_file(path: Path, flag: str = "--output") -> None:
    """Check that a file can be written. Raises UsageError if its folder cannot be written or it is a folder itself."""
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder: name a file")
    if not _is_special(path):
        check_writable(path.parent, flag)


def _is_special(path: Path) -> bool:
    """True for a device, pipe or socket (/dev/null, /dev/stdout): it is written directly, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a hidden path in the same folder; on success it is renamed to `path`, on any error it is removed.

    The hidden name ends with `.part`, so a search for finished files never matches it, even after a kill.
    A device or pipe is yielded itself. durable: whether the file must survive a power cut.
    Raises UsageError if the file cannot be written.
    """
    if _is_special(path):
        with written(path):
            yield path
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with written(path):
            yield part
            if durable:
                with part.open("rb") as file:
                    os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename a file, if it is there, to NAME.previous.SUFFIX."""
    if path.is_file():
        other = path.with_name(f"{path.stem}.previous{path.suffix}")
        os.replace(path, other)
        logger.warning("%s is now %s.", path, other.name)


def plain(value: Any) -> Any:
    """Convert flags and numbers to JSON values: paths become text, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write a JSON file as a whole. durable: whether it must survive a power cut."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with written_aside(path, durable=durable) as part:
        # File names need not be UTF-8. What is not becomes a JSON escape and reads back the same.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(parts: Iterable[Any]) -> str:
    """Return a short digest of texts, numbers and arrays."""
    import numpy as np  # commands that only print their help do without it

    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return the version, plus the git commit if there is one: `0.1.0+1a2b3c4-dirty`. Never raises."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}" if commit else __version__


@contextmanager
def stand_in(files: Mapping[str, bytes | Path]) -> Iterator[Path]:
    """Make a folder for a reader that insists on names or on a text; yield its first file, which is not kept.

    files: name -> content, or the file that it stands for.
    """
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            if isinstance(content, bytes):
                Path(folder, name).write_bytes(content)
                continue
            try:
                Path(folder, name).symlink_to(content.resolve())
            except OSError:  # Windows gives few people the right to
                shutil.copy(content, Path(folder, name))
        yield Path(folder, next(iter(files)))


class DiskArray:
    """An array of float32 in a temporary file, mapped into memory only while a part of it is read or written.

    Raises OSError on a full disk, where a write to a map would end the process.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self._file = shape, TemporaryFile()  # noqa: SIM115 (it goes with the array)
        reserve = getattr(os, "posix_fallocate", lambda file, start, size: os.ftruncate(file, size))
        reserve(self._file.fileno(), 0, 4 * math.prod(shape))

    def _mapped(self) -> np.ndarray:
        return np.memmap(self._file, np.float32, "r+", shape=self.shape)

    def __getitem__(self, place: Any) -> np.ndarray:
        return np.array(self._mapped()[place])

    def __setitem__(self, place: Any, values: np.ndarray) -> None:
        self._mapped()[place] = values
