"""How much of the model's own rate is left when it embeds a recording from a file: reading and filtering included.

`python benchmarks/embedding.py [--minutes 60] [--electrodes 19] [--rate 500] [--repeats 3] [--json FILE]` writes a
synthetic EDF, then takes turns at embedding it as `run_inference.py embed --pool mean` does, without the start of
Python, and at putting the same windows, prepared, through the model alone. The target is 0.8.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from long_recording import NAMES, write_edf
from measuring import hardware, spread
from timm.models import create_model

import checkpoints
import inference
import run_inference
from errors import ArgumentParser, UsageError, run_script
from files import check_file
from modeling_finetune import SIZES
from recording_files import find
from recordings import Options

MODEL = "labram_base_patch200_200"


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--electrodes", type=int, default=19, choices=range(1, len(NAMES) + 1), metavar="N")
    parser.add_argument("--rate", type=int, default=500, help="Hz")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    return parser.parse_args()


def command(folder: Path) -> argparse.Namespace:
    """The flags of the product's command, as a user gives them."""
    words = ["embed", "--checkpoint", folder / "model.pth", "--input", folder / "hour.edf"]
    words += ["--output", folder / "features.hdf5", "--pool", "mean"]
    before, sys.argv = sys.argv, ["run_inference.py", *map(str, words)]
    try:
        return run_inference.get_args()
    finally:
        sys.argv = before


def timed(step: Callable[[], object]) -> float:
    """Seconds that a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.minutes * 60 < 16 or args.rate < 1 or args.repeats < 1:
        raise UsageError("--minutes must be at least 0.27 (a window of 16 s), --rate and --repeats at least 1")
    if args.model not in SIZES:
        raise UsageError(f"--model {args.model}: allowed are {', '.join(SIZES)}")
    if args.json:
        check_file(args.json, "--json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_edf(folder / "hour.edf", args.minutes / 60, args.electrodes, args.rate)
        checkpoints.save({"model": create_model(args.model).state_dict()}, folder / "model.pth")
        flags = command(folder)
        model = inference.load(flags.checkpoint)
        ((_, opened),) = find(flags.input, Options())
        windows = opened()
        eeg = torch.from_numpy(windows.batch(0, len(windows)))

        def alone() -> None:
            for part in eeg.split(flags.batch_size):
                model.embed(part, electrodes=windows.electrodes, pool="mean", scale=1)

        steps = {"command": lambda: run_inference.infer(flags), "opening": opened, "model": alone}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.repeats):
            for name, step in steps.items():
                seconds[name].append(timed(step))
        share = [one / all_ for one, all_ in zip(seconds["model"], seconds["command"], strict=True)]
    for name, values in seconds.items():
        found = spread(values)
        print(f"{name:8} {found['median']:6.2f} s ({found['low']:.2f} to {found['high']:.2f})")
    patches = len(windows) * args.electrodes * windows.samples // 200
    found = spread(share)
    print(f"{len(windows)} windows of {windows.samples // 200} s, {patches} patches")
    print(f"of the model's own rate: {found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})")
    if args.json:
        numbers = {"seconds": {name: spread(values) for name, values in seconds.items()}, "share": found}
        args.json.write_text(json.dumps({"machine": hardware("cpu"), "patches": patches, **numbers}, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, get_args())
