"""Work on recordings in a process of its own with a time and a memory limit.

A reader that crashes, hangs or allocates without end on broken bytes costs only the recording at hand. The process
(`worker.py`) is kept from one recording to the next, because starting it takes longer than most recordings. Requests
and answers are lines of JSON: nothing that such a process says is executed here.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import InputError, UsageError

PROJECT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).resolve().with_name("worker.py")
START_SECONDS = 300.0  # for a process to load its libraries, on a machine that does much else
LEAVE_SECONDS = 5.0  # for an idle process to end by itself
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # glibc gives large arrays back to the system and gets them anew, zeroed, a dozen times a recording: an eighth of
    # the time. Let it keep them.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


@dataclass(frozen=True)
class Limits:
    """What one recording may take."""

    seconds: float = 3600.0
    gigabytes: float = 4.0  # of address space, of which about 1 is the libraries'

    def __post_init__(self) -> None:
        """Raise UsageError for limits under which nothing can be done."""
        if not 0 < self.seconds <= threading.TIMEOUT_MAX:
            most = f"{threading.TIMEOUT_MAX:.0f} at most"
            raise UsageError(f"--time_limit {self.seconds:g}: must be a positive number of seconds, {most}")
        if not 1.5 <= self.gigabytes < 1e6:
            raise UsageError(f"--memory_limit {self.gigabytes:g}: must be at least 1.5 GB, the libraries need about 1")


class Died(InputError):
    """The process is gone, and with it what it had not finished."""


class Sandbox:
    """One limited process. `call` is not for several threads at once."""

    def __init__(self, limits: Limits) -> None:
        """Start the process; its libraries load while others work."""
        self.limits = limits
        self._ready = self._timed_out = False
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(limits.gigabytes)],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # readers warn there, and may quote headers
            text=True,
            encoding="utf-8",
        )

    def _kill(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _line(self, seconds: float) -> str:
        """Return the next answer; an empty or broken line if the process ends, or is ended after these seconds."""
        assert self._process.stdout, "a pipe"
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        try:
            return self._process.stdout.readline()
        finally:
            timer.cancel()

    def call(self, method: str, **arguments: Any) -> Any:
        """Return what `Worker.<method>(**arguments)` returns there.

        Raises the InputError it raises; Died if the process crashed or passed a limit; UsageError for what no other
        recording would escape: no disk space, a process that does not start.
        """
        assert self._process.stdin, "a pipe"
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            if self._ready:
                raise Died(self._reason()) from None
        if not self._ready:  # loading its libraries is not the recording's time
            self._ready = self._line(START_SECONDS).endswith("\n")
            if not self._ready:
                code = self._end()
                raise UsageError(
                    f"the process that reads recordings does not start (exit code {code}): raise --memory_limit, or "
                    f"see what `{sys.executable} {WORKER} {self.limits.gigabytes:g}` says"
                )
        line = self._line(self.limits.seconds)
        if not line.endswith("\n"):
            raise Died(self._reason())
        answer = json.loads(line)
        if answer.get("died"):
            self.close()
            raise Died(self._too_large())
        if "stop" in answer:
            raise UsageError(answer["stop"])
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["result"]

    def _too_large(self) -> str:
        return f"needs more than {self.limits.gigabytes:g} GB of memory; raise --memory_limit if it is sound"

    def _reason(self) -> str:
        """Why the process ended without an answer."""
        code = self._end()
        if self._timed_out:
            return f"takes more than {self.limits.seconds:g} s; raise --time_limit if it is sound"
        return f"makes its reader crash (exit code {code})"

    def _end(self) -> int:
        self._process.kill()
        return self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process can take another request."""
        return self._process.poll() is None

    def leave(self) -> None:
        """Let an idle process end by itself, as it does when there are no more requests; end it if it does not."""
        assert self._process.stdin, "a pipe"
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_SECONDS if self._ready else 0)
        self.close()

    def close(self) -> None:
        """End the process."""
        self._end()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe, "a pipe"
            with suppress(OSError):  # what was left in the pipe has nowhere to go
                pipe.close()


_idle: "queue.LifoQueue[Sandbox]" = queue.LifoQueue()


@contextmanager
def sandbox(limits: Limits) -> Iterator[Sandbox]:
    """Yield a process that nobody else uses; it is kept for the next one unless it died."""
    box = None
    while box is None:
        try:
            box = _idle.get_nowait()
        except queue.Empty:
            box = Sandbox(limits)
        if not box.alive or box.limits != limits:
            box.leave()
            box = None
    try:
        yield box
    except BaseException:
        box.close()  # in whatever state it is
        raise
    if box.alive:
        _idle.put(box)


@atexit.register
def close_all() -> None:
    """Let the idle processes end."""
    while not _idle.empty():
        _idle.get_nowait().leave()
