"""How much of the model's own rate is left when it embeds a recording from a file: reading and filtering included.

`python benchmarks/embedding.py [--minutes 60] [--electrodes 19] [--rate 250 256 500] [--repeats 3] [--json FILE]`
writes a synthetic EDF for each rate, then takes turns at embedding it as `run_inference.py embed --pool mean` does,
without the start of Python, and at putting the same windows, prepared, through the model alone. The target is 0.8.
`--show FILE` prints the table of a file.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measuring
import torch
from long_recording import NAMES, write_edf
from timm.models import create_model

import inference
import run_inference
from errors import ArgumentParser, UsageError, run_script
from files import write_json
from inference.recording_files import find
from inference.recordings import Options
from modeling_finetune import SIZES
from training import checkpoints

MODEL = "labram_base_patch200_200"


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--electrodes", type=int, default=19, choices=range(1, len(NAMES) + 1), metavar="N")
    parser.add_argument("--rate", type=int, nargs="+", default=[250, 256, 500], help="Hz")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=MODEL)
    measuring.add_results(parser)
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


def measure(args: argparse.Namespace, rate: int, folder: Path) -> dict[str, Any]:
    """Seconds of the command, of its opening of the recording and of the model alone, at a sampling rate."""
    write_edf(folder / "hour.edf", args.minutes / 60, args.electrodes, rate)
    flags = command(folder)
    model = inference.load(flags.checkpoint)
    ((_, opened),) = find(flags.input, Options())
    windows = opened()
    eeg = torch.from_numpy(windows.batch(0, len(windows)))

    def alone() -> None:
        for part in eeg.split(flags.batch_size):
            model.embed(part, electrodes=windows.electrodes, pool="mean", scale=1)

    steps = {"command": lambda: run_inference.infer(flags), "opening": opened, "model": alone}
    seconds = measuring.rounds(steps, args.repeats, "cpu", warm_up=0)
    length = windows.samples // 200
    return {
        "rate": rate,
        "windows": len(windows),
        "window_seconds": length,
        "patches": len(windows) * args.electrodes * length,
        "seconds": {name: measuring.spread(values) for name, values in seconds.items()},
        "share": measuring.ratio(seconds, "model", "command"),
    }


def markdown(found: dict[str, Any]) -> list[str]:
    """The table of a --json file: a row a sampling rate."""
    columns = ("source", "command", "opening: reading, filters, 200 Hz", "model alone", "model alone / command")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        seconds = " | ".join(f"{row['seconds'][name]['median']:.2f}" for name in ("command", "opening", "model"))
        share = f"{row['share']['median']:.2f} ({row['share']['low']:.2f} to {row['share']['high']:.2f})"
        lines.append(f"| {row['rate']} Hz | {seconds} | {share} |")
    return lines


def main(args: argparse.Namespace) -> None:
    """Measure, print, write the JSON."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "embedding.py", markdown)))
        return
    if args.minutes * 60 < 16 or min(args.rate) < 1 or args.repeats < 1:
        raise UsageError("--minutes must be at least 0.27 (a window of 16 s), --rate and --repeats at least 1")
    if args.model not in SIZES:
        raise UsageError(f"--model {args.model}: allowed are {', '.join(SIZES)}")
    measuring.check_numbers(args)
    settings = {name: getattr(args, name) for name in ("model", "minutes", "electrodes", "repeats")}
    report: dict[str, Any] = {"machine": measuring.hardware("cpu"), "settings": settings, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints.save({"model": create_model(args.model).state_dict()}, folder / "model.pth")
        for rate in args.rate:
            row = measure(args, rate, folder)
            report["rows"].append(row)
            print(f"{rate} Hz: {row['windows']} windows of {row['window_seconds']} s, {row['patches']} patches")
    print("seconds, of the target of 0.8 of the model's own rate:", *markdown(report), sep="\n")
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    run_script(main, get_args())
