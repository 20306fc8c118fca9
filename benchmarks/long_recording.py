"""A recording of a day through the maker: time, the largest process's memory, file sizes.

`python benchmarks/long_recording.py [--hours 24] [--electrodes 32] [--rate 256] [--folder DIR] [--json FILE]`. A
synthetic EDF is written, converted and removed. 24 h take 1.4 GB and 2.2 GB of disk. `--show FILE` prints what a file
holds.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measuring
import numpy as np

from errors import ArgumentParser, InputError, run_script
from files import check_writable, write_json

_NAMES = """
Fp1 Fp2 F7 F3 Fz F4 F8 T3 C3 Cz C4 T4 T5 P3 Pz P4 T6 O1 O2 A1 A2 Fpz Oz AF3 AF4 FC1 FC2 FC5 FC6 CP1 CP2 CP5 CP6
PO3 PO4 F1 F2 C1 C2 P1 P2
"""
NAMES = _NAMES.split()
REPEATED = 600  # s of noise that the recording repeats, each time with another gain
UNIT = 0.1  # uV a count
SCALE = 2 ** (10 if sys.platform == "linux" else 0)  # bytes in a unit of ru_maxrss
# Starts a command and prints the largest process's peak. In a process of its own, because a new process's peak begins
# with what the one held that starts it, and this one holds the recording's noise and torch.
WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def edf_header(electrodes: int, records: int, rate: int) -> bytes:
    """Return the header of an EDF with records of 1 s, its patient and recording left blank."""
    fixed = ["0", "", "", "01.01.85", "00.00.00", str(256 * (electrodes + 1)), "", str(records), "1", str(electrodes)]
    signals = [
        ([f"EEG {name}-REF" for name in NAMES[:electrodes]], 16),
        ([""] * electrodes, 80),  # transducer
        (["uV"] * electrodes, 8),
        ([f"{-32768 * UNIT:g}"] * electrodes, 8),
        ([f"{32767 * UNIT:g}"] * electrodes, 8),
        (["-32768"] * electrodes, 8),
        (["32767"] * electrodes, 8),
        ([""] * electrodes, 80),  # filters
        ([str(rate)] * electrodes, 8),
        ([""] * electrodes, 32),
    ]
    text = "".join(value.ljust(width) for value, width in zip(fixed, (8, 80, 80, 8, 8, 8, 44, 8, 8, 4), strict=True))
    return (text + "".join(value.ljust(width) for values, width in signals for value in values)).encode("ascii")


def write_edf(path: Path, hours: float, electrodes: int, rate: int) -> None:
    """Write a recording of 1 / f noise of about 30 uV, `REPEATED` seconds at a time."""
    generator = np.random.default_rng(0)
    spectrum = np.fft.rfft(generator.standard_normal((electrodes, REPEATED * rate)))
    spectrum /= np.sqrt(np.fft.rfftfreq(REPEATED * rate, 1 / rate).clip(0.1))
    noise = np.fft.irfft(spectrum)  # (N, time)
    noise = noise.reshape(electrodes, REPEATED, rate).transpose(1, 0, 2) * (30 / UNIT / noise.std())
    left = round(hours * 3600)  # s
    with path.open("wb") as file:
        file.write(edf_header(electrodes, left, rate))
        while left > 0:
            gains = generator.uniform(0.5, 1.5, (electrodes, 1))
            counts = np.clip(np.rint(noise[:left] * gains), -32768, 32767)  # (seconds, N, rate)
            file.write(counts.astype("<i2").tobytes())
            left -= REPEATED


def convert(source: Path, output: Path) -> tuple[float, int]:
    """Convert with the maker; return the seconds and the largest process's peak bytes. Raises InputError."""
    maker = Path(__file__).resolve().parents[1] / "dataset_maker" / "make_h5dataset_for_pretrain.py"
    command = [sys.executable, str(maker), "--input", str(source), "--output", str(output), "--jobs", "1"]
    watched = [sys.executable, "-c", WATCH, *command, "--time_limit", "36000"]
    began = time.monotonic()
    ended = subprocess.run(watched, stdout=subprocess.PIPE, text=True)
    took = time.monotonic() - began
    if ended.returncode:
        raise InputError("the maker failed: see its message above")
    return took, int(ended.stdout) * SCALE


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--electrodes", type=int, default=32, choices=range(1, len(NAMES) + 1), metavar="N")
    parser.add_argument("--rate", type=int, default=256, help="Hz")
    parser.add_argument("--folder", type=Path, help="where the files are written for the time being")
    measuring.add_results(parser)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write, convert, remove."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, output = Path(folder) / "long.edf", Path(folder) / "out"
        write_edf(source, args.hours, args.electrodes, args.rate)
        seconds, peak = convert(source, output)
        (made,) = output.glob("*.hdf5")
        sizes = {"edf_bytes": source.stat().st_size, "hdf5_bytes": made.stat().st_size}
    settings = {name: getattr(args, name) for name in ("hours", "electrodes", "rate")}
    machine = measuring.hardware("cpu")
    return {"machine": machine, "settings": settings, "seconds": seconds, "peak_bytes": peak, **sizes}


def lines(found: dict[str, Any]) -> list[str]:
    """What a --json file says, for people."""
    hours, electrodes, rate = (found["settings"][name] for name in ("hours", "electrodes", "rate"))
    seconds = found["seconds"]
    return [
        f"{hours:g} h, {electrodes} electrodes, {rate} Hz: EDF {found['edf_bytes'] / 1e9:.2f} GB",
        f"{seconds:.1f} s: {hours / seconds * 60:.2f} hours of EEG a minute",
        f"largest process {found['peak_bytes'] / 1e9:.2f} GB, HDF5 {found['hdf5_bytes'] / 1e9:.2f} GB",
    ]


def main(args: argparse.Namespace) -> None:
    """Measure, print, write the JSON."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "long_recording.py", lines)))
        return
    measuring.check_numbers(args, "hours", "rate")
    if args.folder is not None:
        check_writable(args.folder, "--folder")
    found = measure(args)
    print("\n".join(lines(found)))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_script(main, get_args())
