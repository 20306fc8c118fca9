"""How the benchmarks measure: interleaved rounds, peak memory, the best matrix product, the machine."""

import argparse
import ctypes
import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from errors import InputError, UsageError
from files import check_file, code_version

LIBRARIES = ("torch", "timm", "numpy", "braindecode", "h5py", "mne", "scipy")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare --json."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")


def print_results(path: Path, lines_of: Callable[[Any], list[str]]) -> None:
    """Print the Markdown of a results file. Raises InputError if it is not one of this benchmark."""
    try:
        print("\n".join(lines_of(json.loads(path.read_text(encoding="utf-8")))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"--show {path}: not written by --json of this benchmark ({error})") from error


def check_flags(args: argparse.Namespace, *names: str) -> None:
    """Raise UsageError for a flag of these that is not above 0, a missing GPU, a --json that cannot be written."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value}: allowed are numbers above 0")
    if getattr(args, "device", "cpu").startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {args.device}: no GPU was found; use --device cpu")
    if args.json is not None:
        check_file(args.json.absolute(), "--json")


def synchronize(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rounds(steps: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Time all steps in turn, after one round of warm-up, so that a noisy machine disturbs them alike.

    Returns the seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest value, and their number."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long `slow` took as `fast`, round by round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Bytes that two calls need at most above what the process held before (on a CPU: Linux only)."""
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # else freed memory would hide what a step needs
        trim(0)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    step()
    step()
    return resident(highest=True) - before


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


def flops_of(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, as torch counts them."""
    # torch does not count a fused attention on CPUs; the math backend makes it two matrix products.
    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def hardware(device: str) -> dict[str, Any]:
    """Date, machine and versions of a result."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    cpu = f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "libraries": {one.name: one.version for one in metadata.distributions() if one.name in LIBRARIES},
    }
