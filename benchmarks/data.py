"""How fast shuffled windows come through the real loader, against sequential and plain reads of the same bytes.

`python benchmarks/data.py [--size_gb 4] [--folder DIR] [--json FILE]`. A pre-training file of noise is made
once (in --folder it stays, else it is removed), its pages are brought into the cache, then all cases are timed in turn,
so that a noisy machine disturbs them alike. Ratios are of one round. `--show FILE` prints the table of a --json file.
"""

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring

from devices import find_device
from eeg_data.batches import TrainingBatches
from eeg_data.loader import Loader, make_loader
from eeg_data.pretraining import PretrainingDataset
from eeg_data.pretraining_files import SAMPLING_RATE, Windows, read_recordings
from electrodes import ELECTRODES
from errors import ArgumentParser, InputError, UsageError, run_script
from files import check_writable, write_json, written_aside
from utils import Run

RECORDING = 600  # s of a recording in the file
PIECES = (1 << 20, 1 << 23)  # bytes of a sequential read; the faster one counts
PAGE = 1024  # float32 values of a page of memory


def make_file(args: argparse.Namespace, folder: Path) -> Path:
    """Write a pre-training file; one that is there already is used again. Raises InputError without room."""
    size = args.size_gb * 1e9
    path = folder / f"{args.electrodes}x{args.seconds}-{args.dtype}-{args.size_gb:g}GB.hdf5"
    if path.is_file():
        return path
    if shutil.disk_usage(folder).free < 1.1 * size:
        raise InputError(f"{folder} has no room for {args.size_gb:g} GB: lower --size_gb, or name another --folder")
    second = args.electrodes * SAMPLING_RATE * np.dtype(args.dtype).itemsize  # bytes
    seconds = max(args.seconds, min(RECORDING, int(size / second / 2)))
    shape = (args.electrodes, seconds * SAMPLING_RATE)
    noise = 20 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)  # uV
    attributes = {"chOrder": ELECTRODES[: args.electrodes], "rsFreq": float(SAMPLING_RATE)}
    with written_aside(path) as part, h5py.File(part, "w") as file:
        for i in tqdm(range(max(2, round(size / second / seconds))), desc="writing", disable=None, leave=False):
            group = file.create_group(f"recording{i:06d}")
            data = group.create_dataset("eeg", shape, args.dtype, chunks=(args.electrodes, SAMPLING_RATE))
            data[:] = np.roll(noise, i * SAMPLING_RATE, axis=1)
            data.attrs.update(attributes)
            group["valid"] = np.ones(seconds, bool)
    return path


def real_loader(args: argparse.Namespace, path: Path, workers: int, run: Run) -> Loader:
    """Build the loader of stages 1 and 2."""
    windows = Windows(read_recordings(path), window=args.seconds * SAMPLING_RATE)
    batches = TrainingBatches([len(windows)], args.batch_size, seed=0)
    flags = argparse.Namespace(num_workers=workers, pin_mem=True)
    return make_loader(PretrainingDataset([windows], seed=0), batches, flags, run)


def shuffled(loader: Loader, run: Run, batches: int) -> Callable[[], tuple[float, int]]:
    """Return a function that reads so many batches of another epoch; it returns seconds and float32 values."""
    plan, epochs = cast(TrainingBatches, loader.batch_sampler), itertools.count()
    ahead = 2  # batches that are made before the clock starts

    def read() -> tuple[float, int]:
        # The end of an epoch, so that threads have nothing to do while another case is timed.
        plan.set_epoch(next(epochs), max(0, plan.steps - ahead - batches))
        stream = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), ahead + batches)
        for _ in range(ahead):
            next(stream)
        values, start = 0, time.perf_counter()
        for batch in stream:
            placed = batch.to(run)
            placed.eeg.flatten()[::PAGE].sum()  # touches all of its memory, as every user does
            values += placed.eeg.numel()
        measuring.synchronize(run.device.type)
        return time.perf_counter() - start, values

    return read


def sequential(path: Path, piece: int) -> Callable[[int], tuple[float, int]]:
    """Return a function that reads so many bytes through h5py, one piece after the other; seconds and bytes."""
    file = h5py.File(path, "r", locking=False)
    signals = [group["eeg"] for group in file.values()]
    second = signals[0].nbytes // signals[0].shape[1] * SAMPLING_RATE  # bytes, a chunk
    step = max(1, piece // second) * SAMPLING_RATE
    pieces = itertools.cycle([(signal, start) for signal in signals for start in range(0, signal.shape[1], step)])

    def read(size: int) -> tuple[float, int]:
        done, start = 0, time.perf_counter()
        while done < size:
            signal, first = next(pieces)
            done += signal[:, first : first + step].nbytes
        return time.perf_counter() - start, done

    return read


def plain_read(path: Path) -> Callable[[int], tuple[float, int]]:
    """Return a function that reads so many bytes of the file as they lie there, without HDF5; seconds and bytes."""
    file, room = path.open("rb", buffering=0), bytearray(PIECES[-1])

    def read(size: int) -> tuple[float, int]:
        done, start = 0, time.perf_counter()
        while done < size:
            amount = file.readinto(room) or file.seek(0)
            done += amount
        return time.perf_counter() - start, done

    return read


def measure(args: argparse.Namespace, path: Path, run: Run) -> dict[str, list[float]]:
    """Windows a second of every case in every round; of sequential reads: windows of as many bytes."""
    batches = max(1, args.windows // args.batch_size)
    values = args.electrodes * args.seconds * SAMPLING_RATE  # of a window
    stored = values * np.dtype(args.dtype).itemsize  # bytes
    size = batches * args.batch_size * stored
    loaders = {
        f"loader, {n} workers": shuffled(real_loader(args, path, n, run), run, batches) for n in args.num_workers
    }
    reads = {f"sequential, {piece >> 20} MiB": sequential(path, piece) for piece in PIECES}
    reads["plain read"] = plain_read(path)
    reads["plain read"](path.stat().st_size)  # into the cache
    rates: dict[str, list[float]] = {name: [] for name in (*reads, *loaders)}
    for turn in tqdm(range(args.repeats + 1), desc="measuring", disable=None, leave=False):
        timed = {name: (read(size), stored) for name, read in reads.items()}
        timed |= {name: (read(), values) for name, read in loaders.items()}
        for name, ((seconds, amount), each) in timed.items():
            if turn:  # the first round warms up
                rates[name].append(amount / each / seconds)
    return rates


def summarize(rates: dict[str, list[float]], stored: int) -> list[dict[str, Any]]:
    """Rows of the table. stored: bytes of a window in the file."""
    names = [name for name in rates if name.startswith("sequential")]
    best = max(names, key=lambda name: statistics.median(rates[name]))
    rows = []
    for case, values in rates.items():
        middle = statistics.median(values)
        ratios = [value / held for value, held in zip(values, rates[best], strict=True)]
        rows.append(
            {
                "case": case,
                "windows_per_second": middle,
                "windows_per_second_range": [min(values), max(values)],
                "mb_per_second": middle * stored / 1e6,
                "of_sequential": statistics.median(ratios),
                "of_sequential_range": [min(ratios), max(ratios)],
                "held_against": case == best,
                "rates": values,
            }
        )
    return rows


def markdown(report: dict[str, Any]) -> list[str]:
    """The table of a --json file."""
    found = report["geometries"][0]
    size = f"{found['geometry'].replace('x', ' x ')} s, {found['file_bytes'] / 1e9:.0f} GB"
    lines = [f"| {size} | windows/s | range | MB/s | of sequential (range) |", "|---" * 5 + "|"]
    for row in found["rows"]:
        name = row["case"] + (" (held against)" if row["held_against"] else "")
        low, high = row["windows_per_second_range"]
        near, far = row["of_sequential_range"]
        rates = f"{row['windows_per_second']:.0f} | {low:.0f} to {high:.0f} | {row['mb_per_second']:.0f}"
        lines.append(f"| {name} | {rates} | {row['of_sequential']:.2f} ({near:.2f} to {far:.2f}) |")
    return lines


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--size_gb", type=float, default=4.0, help="of the file")
    parser.add_argument("--folder", type=Path, help="where the file is kept (default: a temporary one, removed)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the file")
    parser.add_argument("--electrodes", type=int, choices=range(1, 137), default=32, metavar="1-136")
    parser.add_argument("--seconds", type=int, choices=range(1, 17), default=8, metavar="1-16", help="of a window")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2], help="loading threads")
    parser.add_argument("--batch_size", type=int, default=64, help="windows of a batch")
    parser.add_argument("--windows", type=int, default=4096, help="of a round")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--device", default="cpu", help="where batches go; cuda: through page-locked memory")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a --json file, measure nothing")
    measuring.add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    if args.show:
        measuring.print_results(args.show, markdown)
        return
    measuring.check_flags(args, "size_gb", "batch_size", "windows", "repeats")
    if min(args.num_workers) < 0:
        raise UsageError(f"--num_workers {min(args.num_workers)}: allowed are numbers from 0")
    run = Run(find_device(args.device), 0, 1, 0, Path(), None, torch.float32)
    if args.folder is not None:
        check_writable(args.folder, "--folder")
    settings = {key: value for key, value in vars(args).items() if key not in ("folder", "json", "show")}
    with tempfile.TemporaryDirectory() as temporary:
        path = make_file(args, args.folder or Path(temporary))
        stored = args.electrodes * args.seconds * SAMPLING_RATE * np.dtype(args.dtype).itemsize
        found = {"geometry": f"{args.electrodes}x{args.seconds}", "window_bytes": stored}
        found |= {"file_bytes": path.stat().st_size, "rows": summarize(measure(args, path, run), stored)}
    report = {"machine": measuring.hardware(args.device), "load": os.getloadavg(), "settings": settings}
    report["geometries"] = [found]
    print("\n".join(markdown(report)))
    if args.json is not None:
        write_json(args.json, report)


if __name__ == "__main__":
    run_script(main, get_args())
