"""How fast a step of each stage is, against the straightforward formulation and other libraries.

`python benchmarks/speed.py [--device cpu|cuda] [--json FILE]` times, all entrants of a case in turn:
  a  a step of tokenizer training         d  a step of fine-tuning (one output)
  b  code extraction                      e  embedding
  c  a step of pre-training, tokenisation included
Each case runs in a new process, and each peak memory too, because what was allocated and freed before changes both.
Ratios are of one round; their median counts. Model FLOPs are those of `plain`'s step, the same for all entrants.
`tests/test_plain.py` shows that plain and product compute the same losses.
"""

import argparse
import itertools
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring
import torch
from entrants import CASES, Setting, entrants

from errors import ArgumentParser, run_script
from files import write_json

GEOMETRIES = {"32x8": (32, 8), "23x10": (23, 10)}
BATCHES = {"cpu": {"a": 16, "b": 16, "c": 8, "d": 16, "e": 16}, "cuda": {"a": 128, "b": 128, "c": 64, "d": 64, "e": 64}}
NAMES = {
    "a": "tokenizer, training",
    "b": "codes",
    "c": "pre-training, its tokenisation included",
    "d": "fine-tuning",
    "e": "embedding",
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = ("base", "large", "huge")


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--precision", choices=TYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="letters above (default: all)")
    geometries: dict[str, Any] = {"nargs": "+", "choices": GEOMETRIES, "default": list(GEOMETRIES)}
    parser.add_argument("--geometries", **geometries, help="electrodes x seconds of a window (default: both)")
    parser.add_argument("--models", nargs="+", choices=SIZES, help="sizes (default: all on a GPU, base on a CPU)")
    parser.add_argument("--batch", type=int, help="windows (default: 8 or 16 on a CPU, 64 or 128 on a GPU)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--steps", type=int, help="of a training, timed together (default: 1; 10 on a GPU)")
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--tiny", action="store_true", help="tiny models: a check that everything runs")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a --json file, measure nothing")
    measuring.add_json(parser)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.precision = args.precision or ("bf16" if cuda else "fp32")
    args.models = args.models or (list(SIZES) if cuda else ["base"])
    args.steps = (10 if cuda else 1) if args.steps is None else args.steps
    return args


def settings(args: argparse.Namespace) -> list[Setting]:
    """All settings of the flags. There is no huge tokenizer."""
    place = (args.device, args.precision, args.tiny)
    return [
        Setting(case, *GEOMETRIES[geometry], model, args.batch or BATCHES[args.device][case], *place)
        for model, case, geometry in itertools.product(args.models, args.cases, args.geometries)
        if not (case in "ab" and model == "huge")
    ]


def measure(setting: Setting, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a setting's entrants; returns a row for each."""
    seconds, flops = in_new_process(time_all, setting, args.steps, args.repeats)
    count = setting.batch * (args.steps if setting.case in "acd" else 1)  # windows of a call
    rows = []
    for name, values in seconds.items():
        spread = measuring.spread(values)
        row: dict[str, Any] = {
            **asdict(setting),
            "geometry": f"{setting.electrodes}x{setting.window}",
            "variant": name,
            "seconds": spread,
            "samples_per_second": count / spread["median"],
            "gflops_per_sample": flops / count / 1e9,
        }
        if name == "ours":
            row["times_faster_than"] = {o: measuring.ratio(seconds, o, name) for o in seconds if o != name}
        if not args.no_memory:
            row["peak_bytes"] = in_new_process(peak, setting, name)
        rows.append(row)
    return rows


def in_new_process(task: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a process that has done nothing before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=silence) as process:
        return process.submit(task, *given).result()


def silence() -> None:
    """Keep log lines and warnings out of the table."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def time_all(setting: Setting, steps: int, repeats: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of each entrant's rounds, and the model FLOPs of a call."""
    with ExitStack() as stack:
        found = entrants(setting, steps, stack)
        return measuring.rounds(found, repeats, setting.device), measuring.flops_of(found["plain"])


def peak(setting: Setting, entrant: str) -> int:
    """Peak memory of an entrant's step."""
    with ExitStack() as stack:
        return measuring.peak_memory(entrants(setting, 1, stack, only=entrant)[entrant], setting.device)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A table: a line for each of the product's rows, with its ratios to the others."""
    columns = "step | windows | samples a second | of the best matrix product | times as fast as | peak MB, and plain's"
    lines = [f"| {columns} |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["variant"] != "ours" or row["case"] not in NAMES:
            continue  # older results hold more cases
        place = [row[key] for key in ("case", "geometry", "model")]
        plain = next(r for r in rows if r["variant"] == "plain" and [r["case"], r["geometry"], r["model"]] == place)
        faster = (
            f"{name} {times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f})"
            for name, times in row["times_faster_than"].items()
            if name != "cached"  # a formulation of older results
        )
        name = NAMES[row["case"]] + ("" if row["model"] == "base" else f" ({row['model']})")
        rate = f"{row['samples_per_second']:.1f}"
        memory = f"{row['peak_bytes'] / 1e6:.0f}, {plain['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else ""
        cells = (name, row["geometry"], rate, f"{row['share_of_best_product']:.2f}")
        lines.append(f"| {' | '.join(cells)} | {', '.join(faster)} | {memory} |")
    return lines


def main(args: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    if args.show:
        measuring.print_results(args.show, lambda found: markdown(found["rows"]))
        return
    measuring.check_flags(args, "batch", "repeats", "steps")
    largest = 512 if args.tiny else 4096 if args.device == "cpu" else 16384
    best, rows = 0.0, []
    for setting in settings(args):
        best = max(best, measuring.best_product(args.device, TYPES[args.precision], largest=largest))
        rows += measure(setting, args)
        print(f"{NAMES[setting.case]}, {setting.electrodes}x{setting.window}, {setting.model}: measured", flush=True)
    for row in rows:
        row["share_of_best_product"] = row["gflops_per_sample"] * 1e9 * row["samples_per_second"] / best
    print("\n".join(markdown(rows)))
    print(f"best matrix product {best / 1e9:.0f} GFLOP/s, {args.precision}")
    if args.json:
        machine = {"best_product_flops": best, **measuring.hardware(args.device)}
        write_json(args.json, {"machine": machine, "precision": args.precision, "rows": rows})


if __name__ == "__main__":
    run_script(main, get_args())
