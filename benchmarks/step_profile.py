"""Where the time of a step goes: torch's profile of one step of each entrant of a case of `speed.py`, in groups.

`python benchmarks/step_profile.py --case a [--entrants ours plain] [--geometry 32x8] [--repeats 3] [--json FILE]`
prints seconds of each group (self time of the operations, medians over steps, each entrant in a process of its own);
`--show FILE` prints those of a file.
"""

import argparse
import logging
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measuring
import torch
from entrants import CASES, Setting, entrants
from speed import GEOMETRIES
from torch.profiler import ProfilerActivity, profile

from errors import ArgumentParser, UsageError, run_script
from files import write_json

# Operations by the beginning of their names; the first fit counts.
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation"),
    "attention, fused": ("aten::_scaled_dot_product", "aten::_flash_attention"),
    "softmax": ("aten::_softmax", "aten::_log_softmax"),
    "LayerNorm, GroupNorm": ("aten::native_layer_norm", "aten::native_group_norm"),
    "GELU, tanh": ("aten::gelu", "aten::tanh"),
    "convolutions": ("aten::convolution", "aten::mkldnn_convolution", "aten::_slow_conv", "aten::thnn_conv"),
    "spectrum": ("aten::_fft", "aten::angle", "aten::abs"),
    "optimizer, clipping": ("aten::_fused_adam", "aten::_foreach", "aten::linalg_vector_norm", "Optimizer"),
    "copies, cat, fills": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::clone"),
    "sums, arithmetic": ("aten::sum", "aten::mul", "aten::add", "aten::sub", "aten::div", "aten::mean", "aten::std"),
}


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=("a", "b", "c", "d", "e"), default="a", help="as in speed.py")
    parser.add_argument("--entrants", nargs="+", default=["ours", "plain"], metavar="NAME")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="32x8")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    measuring.add_results(parser)
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a check that everything runs")
    return parser.parse_args()


def group_of(operation: str) -> str:
    """Name of an operation's group."""
    return next((name for name, begins in GROUPS.items() if operation.startswith(begins)), "everything else")


def profiled(setting: Setting, entrant: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each group in each of some steps, after one to warm up."""
    logging.disable(logging.WARNING)
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        step = entrants(setting, 1, stack, entrant)[entrant]
        step()
        for number in range(repeats):
            with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
                step()
            sums = Counter[str]()
            for event in seen.key_averages():
                sums[group_of(event.key)] += event.self_cpu_time_total / 1e6
            for name, seconds in sums.items():
                found.setdefault(name, [0.0] * repeats)[number] = seconds
    return found


def table(report: dict[str, Any]) -> list[str]:
    """Markdown: a row a group, a column an entrant, the largest groups first."""
    found = {
        entrant: {group: spread["median"] for group, spread in groups.items()}
        for entrant, groups in report["seconds"].items()
    }
    names = sorted(
        {name for groups in found.values() for name in groups}, key=lambda n: -found[next(iter(found))].get(n, 0)
    )
    lines = [f"| seconds a step | {' | '.join(found)} |", f"| --- |{' --- |' * len(found)}"]
    lines += [f"| {name} | {' | '.join(f'{groups.get(name, 0):.3f}' for groups in found.values())} |" for name in names]
    totals = " | ".join(f"{sum(groups.values()):.3f}" for groups in found.values())
    return [*lines, f"| together | {totals} |"]


def main(args: argparse.Namespace) -> None:
    """Profile, print, write the JSON."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "step_profile.py", table)))
        return
    if min(args.batch, args.repeats) < 1:
        raise UsageError("--batch and --repeats must be at least 1")
    if unknown := [name for name in args.entrants if name not in CASES[args.case]]:
        raise UsageError(f"--entrants {unknown[0]}: allowed in case {args.case} are {', '.join(CASES[args.case])}")
    measuring.check_numbers(args)
    electrodes, window = GEOMETRIES[args.geometry]
    setting = Setting(args.case, electrodes, window, "base", args.batch, "cpu", "fp32", args.tiny)
    report: dict[str, Any] = {"machine": measuring.hardware("cpu"), "settings": asdict(setting), "seconds": {}}
    for entrant in args.entrants:
        seconds = measuring.alone(profiled, setting, entrant, args.repeats)
        report["seconds"][entrant] = {name: measuring.spread(values) for name, values in seconds.items()}
    print("\n".join(table(report)))
    print(f"{args.case}, {args.geometry} s, batch {args.batch}, {torch.get_num_threads()} threads, fp32")
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    run_script(main, get_args())
