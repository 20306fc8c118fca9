"""What was tried inside the models: each operation as the product does it and otherwise, timed in turn.

`python benchmarks/choices.py [--groups NAME ...] [--repeats 7] [--json FILE]` prints Markdown: time, how many times as
long as the product's way (medians and ranges of rounds), and the peak of memory of each way above what its process held
before (not of the allocator's settings). Every group has a process of its own, and each way another for its memory.
`--show FILE` prints a file's numbers.
Not here: the operations themselves (`formulations.py`), whole steps beside other libraries (`speed.py`).
"""

import argparse
import logging
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring
import torch
from entrants import Setting, entrants
from formulations import GROUPS, TINY, Size

from errors import ArgumentParser, run_script
from files import write_json

# The C library's allocator, told never to give memory back: its settings are read when a process starts.
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
ALLOCATOR = {"allocator, tokenizer step": "a", "allocator, pre-training step": "c"}  # group -> case of `speed.py`
USUAL, KEPT = "the system's settings", f"`{' '.join(f'{k}={v}' for k, v in KEEPING.items())}`"


def get_args() -> argparse.Namespace:
    """Flags of the benchmark."""
    parser = ArgumentParser(description=__doc__)
    names = [*GROUPS, *ALLOCATOR]
    parser.add_argument("--groups", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--repeats", type=int, default=7, help="rounds; of the allocator, at most 3")
    measuring.add_results(parser)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a check that everything runs")
    return parser.parse_args()


def timed(group: str, size: Size, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way's rounds."""
    return measuring.rounds(GROUPS[group](size), repeats, "cpu")


def peak(group: str, size: Size, way: str) -> int:
    """Bytes that a way takes at most."""
    step = GROUPS[group](size)[way]
    return measuring.peak_memory(step, "cpu")


def training_step(case: str, tiny: bool) -> float:
    """Seconds of one training step of the product, after one to warm up."""
    logging.disable(logging.WARNING)
    setting = Setting(case, 32, 8, "base", 2 if tiny else 16 if case == "a" else 8, "cpu", "fp32", tiny)
    with ExitStack() as stack:
        return measuring.rounds(entrants(setting, 1, stack, only="ours"), 1, "cpu")["ours"][0]


def measure(group: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a group, the product's way first."""
    size = TINY if args.tiny else Size()
    peaks: dict[str, int] = {}
    if case := ALLOCATOR.get(group):
        seconds: dict[str, list[float]] = {USUAL: [], KEPT: []}
        for _ in range(min(3, args.repeats)):
            for name, found in seconds.items():
                settings = KEEPING if name == KEPT else {}
                found.append(measuring.alone(training_step, case, args.tiny, environment=settings))
    else:
        seconds = measuring.alone(timed, group, size, args.repeats)
        peaks = {way: measuring.alone(peak, group, size, way) for way in seconds}
    rows = measuring.compared(seconds)
    return [{"group": group, **row, **({"peak_bytes": peaks[row["way"]]} if peaks else {})} for row in rows]


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: a row a way, the product's in bold."""
    lines = ["| operation | way | ms | times as long | peak MB |", "| --- | --- | --- | --- | --- |"]
    for row in found["rows"]:
        way, longer = measuring.compared_cells(row)
        group = "" if longer else row["group"]
        memory = f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else ""
        lines.append(f"| {group} | {way} | {1e3 * row['seconds']['median']:.1f} | {longer} | {memory} |")
    return lines


def main(args: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "choices.py", table)))
        return
    measuring.check_numbers(args, "repeats")
    machine = measuring.hardware("cpu")
    rows: list[dict[str, Any]] = []
    for group in args.groups:
        found = measure(group, args)
        print("\n".join(table({"rows": found})[2 * bool(rows) :]), flush=True)
        rows += found
    size = TINY if args.tiny else Size()
    print(
        f"{size.windows} windows of {size.electrodes} electrodes x {size.seconds} s, {torch.get_num_threads()} threads"
    )
    if args.json:
        write_json(args.json, {"machine": machine, "size": asdict(size), "repeats": args.repeats, "rows": rows})


if __name__ == "__main__":
    run_script(main, get_args())
