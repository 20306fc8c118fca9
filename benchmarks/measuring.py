"""How the benchmarks measure: interleaved rounds, peak memory, the machine's best matrix product and bandwidth.

And what they have in common: the flags of a results file, what it says of the machine, its table printed again.
"""

import argparse
import ctypes
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from errors import InputError, UsageError
from files import check_file, code_version

LIBRARIES = ("torch", "timm", "numpy", "braindecode", "vector-quantize-pytorch", "h5py", "mne", "scipy")
Found = TypeVar("Found")


def add_results(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup, show: Any = None) -> None:
    """Declare --json and --show. show: a group for --show, of flags of which one has to be given."""
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write all numbers here")
    text = "measure nothing, print the Markdown of a --json file"
    (show or parser).add_argument("--show", type=Path, default=None, metavar="FILE", help=text)


def of_results(path: Path, script: str, make: Callable[[Any], Found]) -> Found:
    """What `make` finds in the results file of a script. Raises InputError if the file is none."""
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(
            f"{path} is no results file of {script} ({type(error).__name__}: {error}): make one with "
            f"python benchmarks/{script} --json FILE"
        ) from error


def check_numbers(args: argparse.Namespace, *names: str) -> None:
    """Raise UsageError for a flag of these not above 0, a GPU that is not there, a --json that cannot be written."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} {value}: allowed are numbers above 0")
    if getattr(args, "device", "cpu").startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {args.device}: no GPU was found; use --device cpu")
    if args.json is not None:
        check_file(args.json.absolute(), "--json")


def wait(device: str) -> None:
    """Let a GPU come to the end of its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rounds(
    steps: Mapping[str, Callable[[], object]], repeats: int, device: str, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, by name: all in turn, so that a noisy machine disturbs them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-warm_up, repeats):
        for name, step in steps.items():
            wait(device)
            began = time.perf_counter()
            step()
            wait(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest, and how many."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long one took as another, round by round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def alone(task: Callable[..., Found], *given: Any, environment: Mapping[str, str] = MappingProxyType({})) -> Found:
    """What a task finds in a process that has done nothing before. Raises InputError if the process is killed.

    environment: variables that the process has beside its own.
    """
    spawned = multiprocessing.get_context("spawn")
    try:
        with patch.dict(os.environ, environment), ProcessPoolExecutor(1, spawned) as process:
            return process.submit(task, *given).result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that measures was killed, most likely for want of memory: free some, or measure less"
        ) from error


def compared(seconds: Mapping[str, list[float]], *, key: str = "seconds", count: int = 1) -> list[dict[str, Any]]:
    """Rows of ways of doing the same: name, seconds of each of `count` things, how many times as long as the first."""
    kept = next(iter(seconds))
    rows = []
    for way, values in seconds.items():
        row = {"way": way, key: spread([value / count for value in values])}
        rows.append(row | ({} if way == kept else {"times_as_long": ratio(seconds, way, kept)}))
    return rows


def compared_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    """Markdown of such a row: its name, in bold if it is the first one's, and how many times as long it took."""
    if (times := row.get("times_as_long")) is None:
        return f"**{row['way']}**", ""
    return row["way"], f"{times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f})"


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Bytes that two calls took at most above what the process held before (on a CPU: Linux only)."""
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    trim_heap()
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    step()
    step()
    return resident(highest=True) - before


def trim_heap() -> None:
    """Return freed memory to the system, where the C library can: a step could take it and hold nothing more."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)


def resident(*, highest: bool = False) -> int:
    """Bytes of memory that this process holds, or has held at most."""
    name = "VmHWM" if highest else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def best_product(device: str, dtype: torch.dtype, *, largest: int = 4096) -> float:
    """FLOP/s of the fastest square matrix product."""
    best = 0.0
    size = 512
    while size <= largest:
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        seconds = rounds({"product": lambda a=a, b=b: a @ b}, 5, device)["product"]  # type: ignore[misc]
        best = max(best, 2 * size**3 / min(seconds))
        size *= 2
    return best


def bandwidth(device: str, *, size: int = 2**28) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = rounds({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * size / min(seconds)


def flops_of(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, as torch counts them."""
    # A fused attention of CPUs is not counted; taken apart it is two matrix products, which are.
    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, each on its own: what they would move without caches."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation happen, and count."""
        found = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, found))
            self.bytes += sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))
        return found


def traffic_of(step: Callable[[], object]) -> int:
    """Bytes that the operations of a call read and write."""
    with Traffic() as traffic:
        step()
    return traffic.bytes


def hardware(device: str) -> dict[str, Any]:
    """Date, machine and versions of a result."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"{cpu}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
