"""Shuffled windows through the real loader, beside a sequential read of the same bytes and beside the fastest stage.

`python benchmarks/data.py [--size_gb 4] [--folder DIR] [--json FILE]`. A file in the makers' own layout is made once
(in --folder it stays, else it is removed), the cache is warmed, then everything is timed in turn, so that a noisy
machine disturbs all alike; the ratios of one round are what counts. `--show FILE` prints the tables of a file. Not
here: how the file is made (`data_files.py`), what a stage itself takes (`speed.py`).
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measuring
from data_files import Geometry, make_file

from eeg_data.batches import TrainingBatches
from eeg_data.labelled import LabelledWindows, collate_labelled
from eeg_data.labelled_files import read_labelled
from eeg_data.pretraining import MontageWindows, PretrainingDataset, collate, make_loader
from eeg_data.pretraining_files import SAMPLING_RATE, read_recordings
from errors import ArgumentParser, UsageError, run_script
from files import check_writable, write_json
from modeling_pretrain import random_mask
from utils import Run, find_device

RESULTS = Path(__file__).with_name("results")
PIECES = (1 << 20, 1 << 23)  # bytes of a sequential read; the faster one counts
PAGE = 1024  # float32 values of a page of memory
OF_SEQUENTIAL, OF_STAGE = 0.5, 2.0  # targets


class Sequential(NamedTuple):
    """Where the sequential reads are, which go on from where the last one ended."""

    path: Path
    signals: list[str]  # data sets of EEG, in the order of the file
    time_axis: bool  # whether pieces are cut along time, else along samples


# What is timed: functions that read once more and return seconds and how much it was.


def make_windows(path: Path, kind: str, geometry: Geometry, *, masks: bool) -> tuple[Dataset, int, Any]:
    """Return the data set of a stage, its windows and how they are made a batch."""
    if kind == "labelled":
        windows = LabelledWindows(read_labelled(path), "train")
        return windows, len(windows), collate_labelled
    montage = MontageWindows(read_recordings(path), window=geometry.seconds * SAMPLING_RATE)
    return PretrainingDataset([montage], seed=0, make_mask=one_mask if masks else None), len(montage), collate


def one_mask(patches: int, *, generator: torch.Generator) -> torch.Tensor:
    """Mask of a window, as stage 2 makes it."""
    return random_mask(1, patches, generator=generator)


def real_loader(args: argparse.Namespace, path: Path, geometry: Geometry, workers: int, run: Run) -> DataLoader:
    """Return the loader that a stage would have."""
    windows, count, merge = make_windows(path, args.format, geometry, masks=args.masks)
    flags = argparse.Namespace(num_workers=workers, pin_mem=True)
    return make_loader(windows, TrainingBatches([count], args.batch_size, seed=0), flags, run, merge)


def shuffled(loader: DataLoader, run: Run, batches: int) -> Callable[[], tuple[float, int]]:
    """Return what reads so many batches of another epoch each time; it returns seconds and float32 values."""
    plan, epochs = cast(TrainingBatches, loader.batch_sampler), itertools.count()
    ahead = loader.num_workers * (loader.prefetch_factor or 0) + 1  # made before the clock starts

    def once() -> tuple[float, int]:
        # The end of an epoch: loading processes then have nothing to do while another case is timed.
        plan.set_epoch(next(epochs), max(0, plan.steps - ahead - batches))
        wanted = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), ahead + batches)
        for _ in range(ahead):
            next(wanted)
        values, began = 0, time.perf_counter()
        for batch in wanted:
            placed = batch.to(run)
            placed.eeg.flatten()[::PAGE].sum()  # as whoever uses it, touches all of its memory
            values += placed.eeg.numel()
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began, values

    return once


def sequential(source: Sequential, piece: int) -> Callable[[int], tuple[float, int]]:
    """Return what reads so many bytes through h5py, one piece after the other; it returns seconds and bytes."""
    file = h5py.File(source.path, "r", locking=False)
    signals = [file[name] for name in source.signals]
    step = max(1, piece // (signals[0].nbytes // signals[0].shape[int(source.time_axis)]))
    step = max(1, step // SAMPLING_RATE) * SAMPLING_RATE if source.time_axis else step  # whole chunks
    parts = [(d, start) for d in signals for start in range(0, d.shape[int(source.time_axis)], step)]
    places = itertools.cycle(parts)

    def once(size: int) -> tuple[float, int]:
        done, began = 0, time.perf_counter()
        while done < size:
            dataset, start = next(places)
            done += (dataset[:, start : start + step] if source.time_axis else dataset[start : start + step]).nbytes
        return time.perf_counter() - began, done

    return once


def plain_read(path: Path) -> Callable[[int], tuple[float, int]]:
    """Return what reads so many bytes of the file as they lie there; it returns seconds and bytes."""
    file, room = path.open("rb", buffering=0), bytearray(PIECES[-1])

    def once(size: int) -> tuple[float, int]:
        done, began = 0, time.perf_counter()
        while done < size:
            if not (read := file.readinto(room)):
                file.seek(0)
            done += read or 0
        return time.perf_counter() - began, done

    return once


def eeg_in(path: Path, kind: str) -> Sequential:
    """Where the EEG of a file is."""
    if kind == "labelled":
        return Sequential(path, ["train/eeg"], time_axis=False)
    with h5py.File(path, "r", locking=False) as file:
        return Sequential(path, [f"{name}/eeg" for name in file], time_axis=True)


def warm(path: Path) -> None:
    """Bring a file into the cache."""
    plain_read(path)(path.stat().st_size)


# Rounds, results


def measure(args: argparse.Namespace, path: Path, geometry: Geometry, run: Run) -> dict[str, list[float]]:
    """Rates of every case in every round: windows a second; sequential ones are of windows of as many bytes."""
    batches = max(1, args.windows // args.batch_size)
    stored = geometry.values * np.dtype(args.dtype).itemsize  # bytes of a window in the file
    size = batches * args.batch_size * stored
    source = eeg_in(path, args.format)
    loaders = {
        f"loader, {n} workers": shuffled(real_loader(args, path, geometry, n, run), run, batches)
        for n in args.num_workers
    }
    reads = {f"sequential, {piece >> 20} MiB": sequential(source, piece) for piece in PIECES}
    reads["plain read"] = plain_read(path)
    rates: dict[str, list[float]] = {name: [] for name in (*reads, *loaders)}
    warm(path)
    for turn in tqdm(range(args.repeats + 1), desc="measuring", disable=None, leave=False):
        found = {name: (read(size), stored) for name, read in reads.items()}
        found |= {name: (loaded(), geometry.values) for name, loaded in loaders.items()}
        for name, ((seconds, amount), each) in found.items():
            if turn:  # the first round warms up
                rates[name].append(amount / each / seconds)
    return rates


def summarize(rates: dict[str, list[float]], stored: int, stage: float | None) -> list[dict[str, Any]]:
    """Rows of a geometry. stored: bytes of a window in the file; stage: windows a second that the fastest takes."""
    names = [name for name in rates if name.startswith("sequential")]
    best = max(names, key=lambda name: statistics.median(rates[name]))
    rows = []
    for case, values in rates.items():
        middle = statistics.median(values)
        of_sequential = [value / held for value, held in zip(values, rates[best], strict=True)]
        rows.append(
            {
                "case": case,
                "windows_per_second": middle,
                "windows_per_second_range": [min(values), max(values)],
                "mb_per_second": middle * stored / 1e6,
                "of_sequential": statistics.median(of_sequential),
                "of_sequential_range": [min(of_sequential), max(of_sequential)],
                "of_stage": middle / stage if stage else None,
                "held_against": case == best,
                "rates": values,
            }
        )
    return rows


def fastest_stage(folder: Path, geometry: Geometry) -> dict[str, Any] | None:
    """The fastest of our stages in the newest results of `speed.py`, None if there are none."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        rows = json.loads(path.read_text(encoding="utf-8")).get("rows", [])
        place = {"variant": "ours", "geometry": str(geometry), "model": "base"}
        # Case q, the quantiser alone, takes no windows.
        mine = [row for row in rows if place.items() <= row.items() and row["case"] != "q"]
        if mine:
            best = max(mine, key=lambda row: row["samples_per_second"])
            return {"file": path.name, "case": best["case"], "samples_per_second": best["samples_per_second"]}
    return None


def table(geometry: Geometry, rows: Sequence[dict[str, Any]], stage: dict[str, Any] | None) -> str:
    """Lines for people, 80 columns."""
    lines = [f"{geometry.electrodes} electrodes x {geometry.seconds} s"]
    lines += [f"{'':22}{'windows/s':>9}{'range':>14}{'MB/s':>7}{'of sequential':>19}{'of stage':>9}"]
    for row in rows:
        low, high = row["windows_per_second_range"]
        near, far = row["of_sequential_range"]
        ratio = f"{row['of_sequential']:.2f} ({near:.2f}-{far:.2f})"
        stages = f"{row['of_stage']:.0f}x" if row["of_stage"] else "-"
        name, spread = row["case"] + (" *" if row["held_against"] else ""), f"{low:.0f}-{high:.0f}"
        middle = f"{row['windows_per_second']:>9.0f}{spread:>14}{row['mb_per_second']:>7.0f}"
        lines.append(f"{name:22}{middle}{ratio:>19}{stages:>9}")
    best = max((row for row in rows if row["case"].startswith("loader")), key=lambda row: row["of_sequential"])
    lines.append(f"* what ratios are held against; target {OF_SEQUENTIAL:g}, reached {best['of_sequential']:.2f}")
    if stage:
        rate = f"{stage['samples_per_second']:.1f} windows/s ({stage['case']})"
        lines.append(f"fastest stage: {rate}; target {OF_STAGE:g}x, reached {best['of_stage']:.3g}x")
    else:
        lines.append("fastest stage: not known; give --stage_rate, or run benchmarks/speed.py --json")
    return "\n".join(lines)


def markdown(found: dict[str, Any]) -> list[str]:
    """The tables of a --json file: a geometry each, an empty line between them."""
    lines: list[str] = []
    for geometry in found["geometries"]:
        size = f"{geometry['geometry'].replace('x', ' x ')} s, {geometry['file_bytes'] / 1e9:.0f} GB"
        columns = ("windows/s", "range", "MB/s", "of sequential (range)", "of the fastest stage")
        lines += [*([""] if lines else []), f"| {size} | {' | '.join(columns)} |", "|---" * 6 + "|"]
        for row in geometry["rows"]:
            name = row["case"] + (" (held against)" if row["held_against"] else "")
            low, high = row["windows_per_second_range"]
            near, far = row["of_sequential_range"]
            rates = f"{row['windows_per_second']:.0f} | {low:.0f} to {high:.0f} | {row['mb_per_second']:.0f}"
            stage = f"{row['of_stage']:.0f}" if row["of_stage"] else "-"
            lines.append(f"| {name} | {rates} | {row['of_sequential']:.2f} ({near:.2f} to {far:.2f}) | {stage} |")
    return lines


def load_average() -> list[float] | None:
    """How busy the machine is: others' work makes every number smaller."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def get_args() -> argparse.Namespace:
    """Flags; every default runs on a laptop."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size_gb", type=float, default=4.0, help="of the file")
    parser.add_argument("--folder", type=Path, help="where the file is kept (default: a temporary one, removed)")
    parser.add_argument("--format", choices=("pretraining", "labelled"), default="pretraining", help="of the file")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the file")
    parser.add_argument(
        "--geometry",
        type=Geometry.parse,
        nargs="+",
        default=[Geometry(32, 8)],
        metavar="NxSECONDS",
        help="electrodes and length of a window (default: 32x8)",
    )
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2], help="loading processes")
    parser.add_argument("--batch_size", type=int, default=64, help="windows of a batch")
    parser.add_argument("--windows", type=int, default=4096, help="of a round")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--masks", action="store_true", help="also make each window's mask, as in stage 2")
    parser.add_argument("--device", default="cpu", help="where batches are brought; cuda: through page-locked memory")
    parser.add_argument(
        "--stage_rate",
        type=float,
        metavar="RATE",
        help="windows a second of the fastest stage (default: of speed.py's newest file in benchmarks/results)",
    )
    measuring.add_results(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Time every geometry, print tables, write the file of numbers."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "data.py", markdown)))
        return
    measuring.check_numbers(args, "size_gb", "batch_size", "windows", "repeats", "stage_rate")
    if min(args.num_workers) < 0:
        raise UsageError(f"--num_workers {min(args.num_workers)}: allowed are numbers from 0")
    run = Run(find_device(args.device), 0, 1, 0, Path(), None, torch.float32)
    if args.folder is not None:
        check_writable(args.folder, "--folder")
    report: dict[str, Any] = {
        "machine": measuring.hardware(args.device),
        "load_before": load_average(),
        "settings": settings(args),
    }
    report["geometries"] = []
    with tempfile.TemporaryDirectory() as temporary:
        for geometry in args.geometry:
            path = make_file(args.folder or Path(temporary), args.format, geometry, args.dtype, args.size_gb * 1e9)
            stored = geometry.values * np.dtype(args.dtype).itemsize
            given = {"case": "--stage_rate", "samples_per_second": args.stage_rate} if args.stage_rate else None
            stage = given or fastest_stage(RESULTS, geometry)
            rows = summarize(measure(args, path, geometry, run), stored, stage["samples_per_second"] if stage else None)
            print(table(geometry, rows, stage))
            found = {"geometry": str(geometry), "window_bytes": stored, "file_bytes": path.stat().st_size}
            report["geometries"].append({**found, "stage": stage, "rows": rows})
    report["load_after"] = load_average()
    if args.json is not None:
        write_json(args.json, report)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, without places."""
    kept = {key: value for key, value in vars(args).items() if key not in ("folder", "json", "show")}
    return {**kept, "geometry": [str(geometry) for geometry in args.geometry]}


if __name__ == "__main__":
    run_script(main, get_args())
