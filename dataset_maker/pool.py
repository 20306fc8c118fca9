"""The processes that read recordings: pebble's pool, or a Dask cluster.

A reader that crashes, hangs or allocates without end on broken bytes costs only the recording at hand: pebble ends a
process after the time limit, starts another one, and tells which call it was. The system enforces the memory limit. On
a cluster both limits are the cluster's. A reader that ends its process with code 0 is noticed by the time limit only.
"""

import argparse
import multiprocessing
import os
import signal
import site
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import joblib
from pebble import ProcessExpired, ProcessPool

from dataset_maker.reasons import NoRecording
from errors import TERMINATED, InputError, Interrupted, UsageError

PROJECT = Path(__file__).resolve().parents[1]
DASK_SECONDS = 30  # to wait for a scheduler's answer
CALLS = 500  # of one process, then a fresh one takes its place: readers may leak memory
LIBRARIES = ["h5py", "joblib", "tqdm", "mne.io.edf", "mne.io._read_raw", "mne.filter", "mne.epochs"]
LIBRARIES += ["scipy.signal", "scipy.stats"]
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # glibc gives large arrays back to the system and gets them anew, zeroed, a dozen times a recording: an eighth of
    # the time. Let it keep them.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}

Submit = Callable[..., Future]  # (function, *arguments)


def add_arguments(parser: argparse.ArgumentParser, *, signals: bool = True) -> None:
    """Declare the flags of every command that works on many recordings. signals: whether it writes any."""
    limits = "a recording that passes a limit is left out; with --dask the limits are the cluster's"
    add = parser.add_argument_group("processes", limits).add_argument
    if signals:
        add("--dtype", choices=("float32", "float16"), default="float32", help="of the signals written")
    add("--jobs", type=int, default=joblib.cpu_count(), metavar="N", help="processes (default: cores)")
    add("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster that does the work instead")
    add("--time_limit", type=float, default=3600.0, metavar="SECONDS", help="for one recording")
    add("--memory_limit", type=float, default=3.0, metavar="GB", help="for one recording, on top of the libraries")


@contextmanager
def processes(args: argparse.Namespace) -> Iterator[Submit]:
    """Yield what submits calls to processes here, or to a Dask cluster.

    Raises UsageError for limits under which nothing can be done, and for a cluster that cannot be reached.
    """
    allowed = {
        "jobs": (args.jobs >= 1, "1 or more"),
        "time_limit": (0 < args.time_limit < float("inf"), "a positive number of seconds"),
        "memory_limit": (0.5 <= args.memory_limit < 1e6, "at least 0.5 GB"),
    }
    for flag, (fits, what) in allowed.items():
        if not fits:
            raise UsageError(f"--{flag} {getattr(args, flag):g}: must be {what}")
    if args.dask:
        with _dask_client(args.dask) as client:
            yield client.get_executor(pure=False).submit
        return
    pool = ProcessPool(args.jobs, CALLS, _start_reader, (args.memory_limit,), _context())
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield lambda function, *arguments: pool.schedule(function, arguments, timeout=args.time_limit)
    finally:
        pool.stop()
        pool.join()
        signal.signal(signal.SIGTERM, before)


def _context() -> BaseContext:
    """Return how processes start: as copies of one with the libraries, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    large = sys.modules.keys() & {"moabb.datasets"}  # imports torch: of a maker that has it, one of the libraries
    multiprocessing.set_forkserver_preload([*LIBRARIES, *large])
    before = dict(os.environ)
    os.environ |= ENVIRONMENT
    forkserver.ensure_running()
    os.environ.clear()
    os.environ |= before
    return multiprocessing.get_context("forkserver")


def result_of(future: Future, path: str) -> dict[str, Any]:
    """Return what a call for the recording `path` returned, or {"error": why it failed}.

    A file without any signal gives {"passed_over": why}. Raises UsageError for what no other recording would escape.
    """
    try:
        return future.result()
    except UsageError:
        raise
    except NoRecording as error:
        return {"passed_over": str(error)}
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
    limit = int(gigabytes * 2**30)
    with suppress(OSError):  # where the system does not tell what is mapped, it has no limit either
        limit += int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # macOS has the limit but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


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
