"""How fast the stages are, beside the straightforward formulation and other libraries.

`python benchmarks/speed.py [--device cpu|cuda] [--json FILE]` times, all entrants in turn in one process a case:
  a  a step of tokenizer training         d  a step of fine-tuning (one output)
  b  code extraction                      e  embedding
  c  a step of pre-training, tokenisation included
  q  a step of the quantiser alone, 32768 vectors x 8192 codes
at 32 electrodes x 8 s and 23 x 10 s. Ratios are of the same rounds; what counts is their median. Peak memory is taken
in a process of its own for each entrant, above what it held before the first step. Model FLOPs are those of `plain`'s
step as torch counts them, the same for all entrants; with cached codes, less those of its tokenisation, which is not
done. The losses of both agree (`tests/test_plain.py`).
"""

import argparse
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring
import torch
from entrants import CASES, VECTORS, Setting, entrants

from errors import ArgumentParser, run_script
from files import write_json

GEOMETRIES = {"32x8": (32, 8), "23x10": (23, 10)}
BATCHES = {"cpu": {"a": 16, "b": 16, "c": 8, "d": 16, "e": 16}, "cuda": {"a": 128, "b": 128, "c": 64, "d": 64, "e": 64}}
OURS = ("ours", "cached")  # the product, and with codes from a cache
PLACE = ("case", "geometry", "model")
NAMES = {
    "a": "tokenizer, training",
    "b": "codes",
    "c": "pre-training, its tokenisation included",
    "d": "fine-tuning",
    "e": "embedding",
    "q": "quantiser alone",
    "cached": "pre-training with cached codes",
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def get_args() -> argparse.Namespace:
    """Flags of the benchmark."""
    parser = ArgumentParser(description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=TYPES, default=None, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="letters above (default: all)")
    parser.add_argument(
        "--geometries",
        nargs="+",
        choices=GEOMETRIES,
        default=list(GEOMETRIES),
        help="electrodes x seconds of a window (default: both)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=("base", "large", "huge"),
        default=None,
        help="sizes (default: all on a GPU, base on a CPU)",
    )
    parser.add_argument(
        "--batch", type=int, default=None, help="windows (default: 8 or 16 on a CPU, 64 or 128 on a GPU)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--steps", type=int, default=None, help="of a training, timed together (default: 1; 10 on a GPU)"
    )
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    measuring.add_results(parser)
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a check that everything runs")
    parser.add_argument("--apart", default=None, help=argparse.SUPPRESS)  # for `in_a_process`
    args = parser.parse_args()
    gpu = args.device == "cuda"
    args.precision = args.precision or ("bf16" if gpu else "fp32")
    args.models = args.models or (["base", "large", "huge"] if gpu else ["base"])
    args.steps = args.steps or (10 if gpu else 1)
    return args


def settings(args: argparse.Namespace) -> list[Setting]:
    """What is asked for; the quantiser alone does not depend on windows and models."""
    found = []
    for model in args.models:
        for case in args.cases:
            for geometry in args.geometries[:1] if case == "q" else args.geometries:
                if (case == "q" and model != args.models[0]) or (case in "ab" and model == "huge"):
                    continue
                batch = args.batch or BATCHES[args.device].get(case, 1)
                place = (args.device, args.precision, args.tiny)
                found.append(Setting(case, *GEOMETRIES[geometry], model, batch, *place))
    return found


def samples(setting: Setting, steps: int) -> int:
    """What a call processes: windows, or the quantiser's vectors."""
    if setting.case == "q":
        return 64 * setting.codes if setting.tiny else VECTORS
    return setting.batch * (steps if setting.case in "acd" else 1)


def measure(setting: Setting, args: argparse.Namespace, best: float, copied: float) -> list[dict[str, Any]]:
    """Time a setting's entrants in turn, in a process that has done nothing before; returns a row for each."""
    found = in_a_process("timed", setting=asdict(setting), steps=args.steps, repeats=args.repeats)
    seconds = found["seconds"]
    rows = []
    for name, values in seconds.items():
        spread, flops = measuring.spread(values), found["flops"][name]
        row: dict[str, Any] = {
            **asdict(setting),
            "geometry": f"{setting.electrodes}x{setting.window}",
            "variant": name,
            "seconds": spread,
            "samples_per_second": samples(setting, args.steps) / spread["median"],
            "gflops_per_sample": flops / samples(setting, args.steps) / 1e9,
            "share_of_best_product": flops / spread["median"] / best,
        }
        if name in OURS:
            intensity = flops / found["traffic"][name]
            row["share_of_roofline"] = flops / spread["median"] / min(best, copied * intensity)
            row["times_faster_than"] = {
                other: measuring.ratio(seconds, other, name) for other in seconds if other not in (name, "ours")
            }
        if not args.no_memory:
            row["peak_bytes"] = in_a_process("peak", setting=asdict(setting), entrant=name)
        rows.append(row)
    return rows


def in_a_process(task: str, **given: Any) -> Any:
    """Let a process of its own do a task of APART: what was allocated and freed before changes times and memory."""
    command = [sys.executable, __file__, "--apart", json.dumps({"task": task, "given": given})]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def timed(setting: dict[str, Any], steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of each entrant's rounds and its model FLOPs; bytes that the product's operations read and write."""
    made = Setting(**setting)
    with ExitStack() as stack:
        found = entrants(made, steps, stack)
        seconds = measuring.rounds(found, repeats, made.device)
        flops = dict.fromkeys(found, measuring.flops_of(found["plain"]))
        traffic = {name: measuring.traffic_of(found[name]) for name in OURS if name in found}
    if "cached" in flops:
        with ExitStack() as stack:
            codes = entrants(replace(made, case="b"), 1, stack, only="plain")["plain"]
            flops["cached"] -= steps * measuring.flops_of(codes)
    return {"seconds": seconds, "flops": flops, "traffic": traffic}


def peak(setting: dict[str, Any], entrant: str) -> int:
    """Peak memory of an entrant's step."""
    made = Setting(**setting)
    with ExitStack() as stack:
        return measuring.peak_memory(entrants(made, 1, stack, only=entrant)[entrant], made.device)


APART: dict[str, Callable[..., Any]] = {"timed": timed, "peak": peak}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of at most 80 columns."""
    lines = [
        f"{'':5} {'':6} {'':11} {'samples/s':>9} {'ms':>8} {'(from':>8} {'to)':>8} {'MB':>6} {'best':>4} {'ours':>6}"
    ]
    for row in rows:
        ours = next(r for r in rows if all(r[k] == row[k] for k in PLACE))
        faster = ours["times_faster_than"].get(row["variant"])
        seconds = row["seconds"]
        times = " ".join(f"{1e3 * seconds[k]:8.1f}" for k in ("median", "low", "high"))
        memory = f"{row['peak_bytes'] / 1e6:6.0f}" if "peak_bytes" in row else f"{'':6}"
        place = f"{row['case']} {row['model'][:4]:4}"[:6]
        last = f"{faster['median']:5.2f}x" if faster else ""
        lines.append(
            f"{place:6} {row['geometry']:5} {row['variant']:11} {row['samples_per_second']:9.1f} {times} {memory} "
            f"{row['share_of_best_product']:4.2f} {last}"
        )
    return lines


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The table of the project's README: the product's rows, with the others beside them."""
    head = "step | windows | samples a second | of the best matrix product | times as fast as | peak MB, and plain's"
    lines = [f"| {head} |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["variant"] not in OURS:
            continue
        plain = next(r for r in rows if r["variant"] == "plain" and all(r[k] == row[k] for k in PLACE))
        faster = (
            f"{name} {found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
            for name, found in row["times_faster_than"].items()
            if name not in OURS
        )
        name = NAMES["cached" if row["variant"] == "cached" else row["case"]]
        rate = f"{row['samples_per_second']:.1f}" if row["case"] != "q" else f"{row['samples_per_second']:.0f} vectors"
        memory = f"{row['peak_bytes'] / 1e6:.0f}, {plain['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else ""
        where = row["geometry"] if row["case"] != "q" else ""
        share = f"{row['share_of_best_product']:.2f}"
        size = "" if row["model"] == "base" else f" ({row['model']})"
        lines.append(f"| {name}{size} | {where} | {rate} | {share} | {', '.join(faster)} | {memory} |")
    return lines


def main(args: argparse.Namespace) -> None:
    """Measure, print a table and write the JSON."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "speed.py", lambda found: markdown(found["rows"]))))
        return
    if args.apart:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        asked = json.loads(args.apart)
        print(json.dumps(APART[asked["task"]](**asked["given"])))
        return
    measuring.check_numbers(args, "batch", "repeats", "steps")
    kind = TYPES[args.precision]
    largest = 512 if args.tiny else 4096 if args.device == "cpu" else 16384
    best = measuring.best_product(args.device, kind, largest=largest)
    copied = measuring.bandwidth(args.device)
    rows: list[dict[str, Any]] = []
    for setting in settings(args):
        found = measure(setting, args, best, copied)
        print("\n".join(table(found)[bool(rows) :]), flush=True)
        rows += found
        best = max(best, measuring.best_product(args.device, kind, largest=largest))
    for row in rows:  # against the best product of the whole run
        row["share_of_best_product"] = row["gflops_per_sample"] * 1e9 * row["samples_per_second"] / best
    print(f"best matrix product {best / 1e9:.0f} GFLOP/s, copies {copied / 1e9:.1f} GB/s, {args.precision}")
    if args.json:
        machine = {"best_product_flops": best, "copy_bytes_per_second": copied, **measuring.hardware(args.device)}
        write_json(args.json, {"machine": machine, "precision": args.precision, "rows": rows})


if __name__ == "__main__":
    run_script(main, get_args())
