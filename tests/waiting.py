"""Waiting for what other processes do, as long as a busy machine may take: no test's result depends on a pause."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 240  # seconds


def wait_until(there: Callable[[], bool], what: str) -> None:
    """Wait until something is there; fail with what it is if it does not come."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.005)


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    wait_until(path.exists, f"the file {path}")


def status(pid: int) -> dict[str, str]:
    """Return what Linux says of a process, nothing of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def wait_until_gone(pid: int) -> None:
    """Wait until a process has ended, whether or not its parent took note."""
    wait_until(lambda: status(pid).get("State", "X")[0] in "XZ", f"the end of process {pid}")


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children, first come first."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted(int(word) for words in found for word in words)
