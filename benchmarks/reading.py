"""What was tried for reading windows: batches as the product makes them and otherwise, of the same windows in turn.

`python benchmarks/reading.py [--size_gb 2] [--folder DIR] [--repeats 7] [--json FILE]` prints Markdown: microseconds a
window of 32 electrodes x 8 s, one process, the file in the cache (medians and ranges of rounds). `--show FILE` prints
a file's numbers. Not here: loaders and loading processes (`data.py`).
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measuring
from data import warm
from data_files import Geometry, make_file

from eeg_data.pretraining import UNIT, MontageWindows, to_units
from eeg_data.pretraining_files import SAMPLING_RATE, read_recordings
from errors import ArgumentParser, run_script
from files import check_writable, write_json

GEOMETRY = Geometry(32, 8)
BATCH = 64
Batches = list[list[tuple[str, int]]]  # of each window, its recording and its first sample
Read = Callable[[str, int], np.ndarray]  # a window, (N, time) in uV


def get_args() -> argparse.Namespace:
    """Flags of the benchmark."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--size_gb", type=float, default=2.0, help="of the file")
    parser.add_argument("--folder", type=Path, help="where the file is kept (default: a temporary one, removed)")
    parser.add_argument("--windows", type=int, default=2048, help="of a round")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    measuring.add_results(parser)
    return parser.parse_args()


class Chunks:
    """Where the chunks of a file lie, found once: each holds a second of all electrodes."""

    def __init__(self, file: h5py.File, geometry: Geometry) -> None:
        """Look at every recording."""
        self.shape = (geometry.electrodes, SAMPLING_RATE)
        self.addresses: dict[str, list[int]] = {}
        for name in file:
            signal = file[name]["eeg"]
            found: dict[int, int] = {}
            signal.id.chunk_iter(lambda chunk, found=found: found.__setitem__(chunk.chunk_offset[1], chunk.byte_offset))
            self.addresses[name] = [found[start] for start in sorted(found)]

    def of(self, name: str, start: int, seconds: int) -> list[int]:
        """Addresses of a window's chunks."""
        return self.addresses[name][start // SAMPLING_RATE : start // SAMPLING_RATE + seconds]


def stacked(read: Read, windows: list[tuple[str, int]]) -> Tensor:
    """Windows read one by one, then put together, then divided."""
    eeg = torch.from_numpy(np.stack([read(*window) for window in windows])) / UNIT
    return eeg.unflatten(2, (-1, SAMPLING_RATE))


def in_place(read: Read, windows: list[tuple[str, int]]) -> Tensor:
    """As the product puts batches together: each window divided into its place."""
    return to_units((read(*window) for window in windows), len(windows))


def direct(file: h5py.File, geometry: Geometry, windows: list[tuple[str, int]]) -> Tensor:
    """Windows read into their places in the batch, which is then divided."""
    eeg = np.empty((len(windows), geometry.electrodes, geometry.seconds * SAMPLING_RATE), np.float32)
    for place, (name, start) in zip(eeg, windows, strict=True):
        file[name].read_direct(place, np.s_[:, start : start + eeg.shape[2]])
    eeg /= UNIT
    return torch.from_numpy(eeg).unflatten(2, (-1, SAMPLING_RATE))


def ways(path: Path, geometry: Geometry) -> dict[str, Callable[[list[tuple[str, int]]], Tensor]]:
    """Return what makes a batch of windows, by name, the product's first."""
    length = geometry.seconds * SAMPLING_RATE
    recordings = {recording.name: recording for recording in read_recordings(path)}
    usual, uncached = h5py.File(path, "r", locking=False), h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    signals, bare = ({name: file[name]["eeg"] for name in file} for file in (usual, uncached))
    chunks, handle = Chunks(usual, geometry), os.open(path, os.O_RDONLY)
    mapped = np.memmap(path, np.uint8, "r")
    stored = 4 * geometry.electrodes * SAMPLING_RATE

    def product(name: str, start: int) -> np.ndarray:
        return recordings[name].read(start, length)

    def low_level(name: str, start: int) -> np.ndarray:
        found = np.empty((geometry.electrodes, length), np.float32)
        space = bare[name].id.get_space()
        space.select_hyperslab((0, start), found.shape)
        bare[name].id.read(h5py.h5s.create_simple(found.shape), space, found)
        return found

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([part.view(np.float32).reshape(chunks.shape) for part in parts], axis=1)

    def by_chunk(name: str, start: int) -> np.ndarray:
        seconds = range(start, start + length, SAMPLING_RATE)
        raw = (signals[name].id.read_direct_chunk((0, second))[1] for second in seconds)
        return joined([np.frombuffer(chunk, np.uint8) for chunk in raw])

    def by_map(name: str, start: int) -> np.ndarray:
        return joined([mapped[place : place + stored] for place in chunks.of(name, start, geometry.seconds)])

    def by_address(name: str, start: int) -> np.ndarray:
        places = chunks.of(name, start, geometry.seconds)
        if places[-1] - places[0] == (len(places) - 1) * stored:  # one after the other: one piece
            return joined(
                np.split(np.frombuffer(os.pread(handle, len(places) * stored, places[0]), np.uint8), len(places))
            )
        return joined([np.frombuffer(os.pread(handle, stored, place), np.uint8) for place in places])

    return {
        "data sets stay open, each window divided into its place": partial(in_place, product),
        "read, put together, then divided": partial(stacked, product),
        "data sets found by name each time": partial(in_place, lambda n, s: usual[n]["eeg"][:, s : s + length]),
        "HDF5's own chunk cache": partial(in_place, lambda n, s: signals[n][:, s : s + length]),
        "no chunk cache": partial(in_place, lambda n, s: bare[n][:, s : s + length]),
        "`read_direct` into the batch": partial(direct, signals, geometry),
        "low-level `read` of a hyperslab": partial(in_place, low_level),
        "`read_direct_chunk`": partial(in_place, by_chunk),
        "a memory map": partial(in_place, by_map),
        "chunks by their addresses, past HDF5": partial(in_place, by_address),
    }


def draw(path: Path, geometry: Geometry, windows: int) -> Batches:
    """Draw batches of windows at random."""
    found = MontageWindows(read_recordings(path), window=geometry.seconds * SAMPLING_RATE)
    order = np.random.default_rng(0).integers(len(found), size=(max(1, windows // BATCH), min(BATCH, windows)))
    return [[(place[0].name, place[1]) for place in map(found.locate, batch)] for batch in order.tolist()]


def measure(path: Path, geometry: Geometry, windows: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of every way, seconds a window."""
    batches = draw(path, geometry, windows)
    warm(path)
    steps = {name: partial(_all, make, batches) for name, make in ways(path, geometry).items()}
    seconds = measuring.rounds(steps, repeats, "cpu")
    return measuring.compared(seconds, key="seconds_a_window", count=sum(map(len, batches)))


def _all(make: Callable[[list[tuple[str, int]]], Tensor], batches: Batches) -> None:
    for batch in batches:
        make(batch)


def table(found: dict[str, Any]) -> list[str]:
    """Markdown: a row a way, the product's in bold."""
    lines = ["| reading | us a window | times as long |", "| --- | --- | --- |"]
    for row in found["rows"]:
        way, longer = measuring.compared_cells(row)
        lines.append(f"| {way} | {1e6 * row['seconds_a_window']['median']:.0f} | {longer} |")
    return lines


def main(args: argparse.Namespace) -> None:
    """Make the file, measure, print the table, write the JSON."""
    if args.show:
        print("\n".join(measuring.of_results(args.show, "reading.py", table)))
        return
    measuring.check_numbers(args, "size_gb", "windows", "repeats")
    if args.folder is not None:
        check_writable(args.folder, "--folder")
    report: dict[str, Any] = {"machine": measuring.hardware("cpu"), "size_gb": args.size_gb, "windows": args.windows}
    with tempfile.TemporaryDirectory() as temporary:
        path = make_file(args.folder or Path(temporary), "pretraining", GEOMETRY, "float32", args.size_gb * 1e9)
        report["rows"] = measure(path, GEOMETRY, args.windows, args.repeats)
    print("\n".join(table(report)))
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    run_script(main, get_args())
