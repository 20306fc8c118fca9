"""How a recording of a day goes through the maker: time, the largest process's memory, file sizes.

`python benchmarks/long_recording.py [--hours 24] [--electrodes 32] [--rate 256] [--folder DIR] [--json FILE]` writes a
synthetic EDF, converts it and removes both files. 24 h take 1.4 GB and 2.2 GB of disk.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring
import numpy as np

from electrodes import ELECTRODES
from errors import ArgumentParser, InputError, run_script
from files import check_writable, write_json

REPEATED = 600  # s of noise that the recording repeats, each time with another gain
UNIT = 0.1  # uV of one digital step
SCALE = 1024 if sys.platform == "linux" else 1  # bytes in a unit of ru_maxrss
# Starts a command and prints the peak of the largest process. A new process's peak begins with what its parent held,
# and this process holds the noise and torch.
WATCH = """
import ctypes, os, resource, subprocess, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the pool's processes are counted here
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def edf_header(electrodes: int, seconds: int, rate: int) -> bytes:
    """Header of an EDF with records of 1 s; patient and recording are left blank."""
    fixed = ["0", "", "", "01.01.85", "00.00.00", str(256 * (electrodes + 1)), "", str(seconds), "1", str(electrodes)]
    text = "".join(value.ljust(width) for value, width in zip(fixed, (8, 80, 80, 8, 8, 8, 44, 8, 8, 4), strict=True))
    names = [f"EEG {name}-REF".ljust(16) for name in ELECTRODES[:electrodes]]
    low, high = f"{-32768 * UNIT:g}", f"{32767 * UNIT:g}"
    # transducer, unit, physical range, digital range, filters, samples of a record, reserved
    signal = (("", 80), ("uV", 8), (low, 8), (high, 8), ("-32768", 8), ("32767", 8), ("", 80), (str(rate), 8), ("", 32))
    return (text + "".join(names) + "".join(value.ljust(width) * electrodes for value, width in signal)).encode()


def write_edf(path: Path, hours: float, electrodes: int, rate: int) -> None:
    """Write a recording of 1 / f noise of about 30 uV."""
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
    flags = ["--input", str(source), "--output", str(output), "--jobs", "1", "--time_limit", "36000"]
    start = time.monotonic()
    command = [sys.executable, "-c", WATCH, sys.executable, str(maker), *flags]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise InputError("the maker failed: see its message above")
    return time.monotonic() - start, int(ended.stdout) * SCALE


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write, convert, remove."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, output = Path(folder) / "long.edf", Path(folder) / "out"
        write_edf(source, args.hours, args.electrodes, args.rate)
        seconds, peak = convert(source, output)
        (made,) = output.glob("*.hdf5")
        sizes = {"edf_bytes": source.stat().st_size, "hdf5_bytes": made.stat().st_size}
    settings = {name: getattr(args, name) for name in ("hours", "electrodes", "rate")}
    found = {"machine": measuring.hardware("cpu"), "settings": settings, "seconds": seconds, "peak_bytes": peak}
    return found | sizes


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--electrodes", type=int, default=32, choices=range(1, 65), metavar="1-64")
    parser.add_argument("--rate", type=int, default=256, help="Hz")
    parser.add_argument("--folder", type=Path, help="where the files are written for the time being")
    measuring.add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Measure, print, write the JSON."""
    measuring.check_flags(args, "hours", "rate")
    if args.folder is not None:
        check_writable(args.folder, "--folder")
    found = measure(args)
    edf, hdf5, peak = (found[name] / 1e9 for name in ("edf_bytes", "hdf5_bytes", "peak_bytes"))
    print(f"{args.hours:g} h, {args.electrodes} electrodes, {args.rate} Hz: EDF {edf:.2f} GB, HDF5 {hdf5:.2f} GB")
    print(f"{found['seconds']:.1f} s: {args.hours / found['seconds'] * 60:.2f} hours of EEG a minute")
    print(f"largest process {peak:.2f} GB")
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_script(main, get_args())
