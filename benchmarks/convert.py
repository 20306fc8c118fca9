"""How fast the maker converts recordings, against a plain single-process MNE loop that does the same steps.

`python benchmarks/convert.py --input FOLDER [--jobs 2] [--repeats 3] [--json FILE]`. Whole processes are timed, start
included, in turn, so that a noisy machine disturbs both alike; the ratio of the medians counts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import h5py
import measuring

from errors import ArgumentParser, InputError, UsageError, run_script
from files import write_json

PROJECT = Path(__file__).resolve().parents[1]
PLAIN = """
import sys, h5py, mne
from pathlib import Path
with h5py.File(sys.argv[2], "w") as file:
    for path in sorted(Path(sys.argv[1]).rglob("*.edf")):
        raw = mne.io.read_raw(path, verbose="error")
        raw.drop_channels([name for name in raw.ch_names if name in ("EEG A2-A1", "ECG ECG")])
        raw.load_data(verbose="error")
        raw.filter(0.1, 75.0, verbose="error")
        raw.notch_filter(50.0, verbose="error")
        raw.resample(200.0, verbose="error")
        eeg = (raw.get_data() * 1e6).astype("float32")
        data = file.create_group(path.stem).create_dataset("eeg", data=eeg, chunks=(len(eeg), 200))
        data.attrs["chOrder"] = raw.ch_names
"""


def seconds(name: str, command: list[str]) -> float:
    """Run a command and return how long it took. Raises InputError with its last line if it fails."""
    start = time.monotonic()
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise InputError(f"{name} cannot convert the recordings in --input: {lines[-1]}")
    return time.monotonic() - start


def hours(folder: Path) -> float:
    """Hours of EEG in the HDF5 files of a folder."""
    samples = 0
    for path in folder.glob("*.hdf5"):
        with h5py.File(path) as file:
            samples += sum(group["eeg"].shape[1] for group in file.values())
    return samples / 200 / 3600


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time both in turn."""
    maker = [sys.executable, str(PROJECT / "dataset_maker" / "make_h5dataset_for_pretrain.py")]
    source = str(args.input.absolute())
    times: dict[str, list[float]] = {"plain": [], "maker": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.repeats):
            plain, output = Path(folder) / f"plain{turn}", Path(folder) / f"maker{turn}"
            plain.mkdir()
            script = [sys.executable, "-c", PLAIN, source, str(plain / "all.hdf5")]
            times["plain"].append(seconds("the plain loop", script))
            flags = ["--input", source, "--output", str(output), "--jobs", str(args.jobs)]
            times["maker"].append(seconds("the maker", maker + flags))
        length = hours(output)
        assert abs(hours(plain) - length) < 1e-9, "both must convert the same recordings"
    spreads = {name: measuring.spread(values) for name, values in times.items()}
    return {
        "machine": measuring.hardware("cpu"),
        "settings": {"jobs": args.jobs, "repeats": args.repeats},
        "hours": length,
        "seconds": spreads,
        "hours_a_minute": {name: 60 * length / found["median"] for name, found in spreads.items()},
        "ratio_of_medians": spreads["maker"]["median"] / spreads["plain"]["median"],
    }


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="EDF recordings, such as eegmat")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    measuring.add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Measure, print, write the JSON."""
    measuring.check_flags(args, "jobs", "repeats")
    if not any(args.input.rglob("*.edf")):
        raise UsageError(f"--input {args.input}: no EDF files (*.edf) in this folder; name one that has them")
    found = measure(args)
    for name, spread in found["seconds"].items():
        times = f"{spread['median']:6.1f} s ({spread['low']:.1f} to {spread['high']:.1f})"
        print(f"{name:6} {times}, {found['hours_a_minute'][name]:5.1f} hours of EEG a minute")
    print(f"ratio  {found['ratio_of_medians']:6.2f} with --jobs {args.jobs}, {found['hours']:.2f} hours of EEG")
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_script(main, get_args())
