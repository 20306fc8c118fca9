"""The processes that read recordings: pebble's pool, or a Dask cluster, as a `concurrent.futures.Executor`.

A reader that crashes, hangs or allocates without end on broken bytes costs only the recording at hand: pebble ends a
process after the time limit, starts another one, and tells which call it was. The memory limit is the system's. On a
cluster both limits are the cluster's own. A reader that ends its process with code 0 is noticed by the time limit only.
"""

import argparse
import multiprocessing
import os
import signal
import site
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import joblib
from pebble import ProcessExpired, ProcessPool

from errors import TERMINATED, InputError, Interrupted, UsageError

PROJECT = Path(__file__).resolve().parents[1]
DASK_SECONDS = 30  # to wait for a scheduler's answer
CALLS = 500  # of one process, then a fresh one takes its place: readers may leak memory
LIBRARIES = ("h5py", "mne.io.edf", "mne.io._read_raw", "mne.filter", "mne.epochs", "scipy.signal", "scipy.stats")
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # glibc gives large arrays back to the system and gets them anew, zeroed, a dozen times a recording: an eighth of
    # the time. Let it keep them.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every maker that works on many recordings."""
    limits = "a recording that passes a limit is left out; with --dask the limits are the cluster's"
    group = parser.add_argument_group("processes", limits)
    group.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the signals written")
    group.add_argument("--jobs", type=int, default=joblib.cpu_count(), metavar="N", help="processes (default: cores)")
    group.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster that does the work instead")
    group.add_argument("--time_limit", type=float, default=Spread.seconds, metavar="SECONDS", help="for one recording")
    group.add_argument("--memory_limit", type=float, default=Spread.gigabytes, metavar="GB", help="for one recording")


@dataclass(frozen=True)
class Spread:
    """Where the work goes, and what one recording may take."""

    jobs: int = 1
    dask: str | None = None
    seconds: float = 3600.0
    gigabytes: float = 3.0  # of address space, beside what the libraries take

    def __post_init__(self) -> None:
        """Raise UsageError for values under which nothing can be done."""
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: must be 1 or more")
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"--time_limit {self.seconds:g}: must be a positive number of seconds")
        if not 0.5 <= self.gigabytes < 1e6:
            raise UsageError(f"--memory_limit {self.gigabytes:g}: must be at least 0.5 GB")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Spread":
        """Take the values of the parsed flags. Raises UsageError."""
        return cls(args.jobs, args.dask, args.time_limit, args.memory_limit)

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        """Yield what runs calls: a pool of processes here, or a Dask cluster. Raises UsageError if there is none."""
        if self.dask:
            with _dask_client(self.dask) as client:
                yield client.get_executor(pure=False)
            return
        pool = Pool(self)
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGTERM, before)


class Pool(Executor):
    """Processes with a time and a memory limit for each call. A call that passes one fails, and only that call."""

    def __init__(self, spread: Spread) -> None:
        """Start the processes; their libraries load while others work."""
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            multiprocessing.set_forkserver_preload([*LIBRARIES])
            before = dict(os.environ)
            os.environ |= ENVIRONMENT
            forkserver.ensure_running()  # every process of the pool is a copy of this one
            os.environ.clear()
            os.environ |= before
        self._seconds = spread.seconds
        self._pool = ProcessPool(spread.jobs, CALLS, _start_reader, (spread.gigabytes,), context)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Call the function in one of the processes."""
        return self._pool.schedule(function, args, kwargs, timeout=self._seconds)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, at once or when all calls are done."""
        if cancel_futures:
            self._pool.stop()
        else:
            self._pool.close()
        self._pool.join()


def result_of(future: Future, path: str) -> dict[str, Any]:
    """Return what a call for the recording `path` returned, or {"error": why it failed}.

    Raises UsageError for what no other recording would escape.
    """
    try:
        return future.result()
    except UsageError:
        raise
    except InputError as error:
        return {"error": str(error)}
    except BrokenProcessPool as error:
        way_out = "raise --memory_limit, or start the same command again"
        raise UsageError(f"the processes that read recordings end before they read any: {way_out}") from error
    except TimeoutError:
        reason = "takes longer than --time_limit; raise it if the recording is sound"
    except ProcessExpired as error:
        reason = f"makes its reader crash (exit code {error.exitcode})"
    except Exception as error:  # of the cluster: its process died
        reason = f"makes its reader crash ({type(error).__name__})"
    return {"error": f"{path}: {reason}"}


def _terminated(number: int, frame: Any) -> None:
    raise Interrupted("stopped; the same command goes on from here", TERMINATED)


def _start_reader(gigabytes: float) -> None:
    """Begin a process of the pool: silent, because readers may quote headers; limited; gone when its maker is."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    threading.Thread(target=_end_with_maker, daemon=True).start()
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold headers
    limit = _address_space() + int(gigabytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # macOS has the limit but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _address_space() -> int:
    """Return the bytes that this process has mapped; 0 where the system does not tell, and has no limit either."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _end_with_maker() -> None:
    parent = multiprocessing.parent_process()
    assert parent, "a process of the pool has one"
    parent.join()
    os._exit(1)


@contextmanager
def _dask_client(address: str) -> Iterator[Any]:
    """Connect to a Dask cluster. Raises UsageError if it cannot be reached."""
    try:
        import distributed
    except ImportError as error:
        raise UsageError(f"--dask {address}: needs `pip install distributed`") from error
    try:
        client = distributed.Client(address, timeout=DASK_SECONDS)
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {address}: no scheduler answers there ({type(error).__name__})") from error
    with client:
        client.run(site.addsitedir, str(PROJECT))  # workers see the project in the same place, as they do the data
        yield client
