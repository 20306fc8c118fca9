"""Files of noise in the makers' own layout, for `data.py`."""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_maker.pipeline import Prepared
from dataset_maker.writers import LabelledShard, PretrainingShards
from eeg_data.hdf5 import files_below
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE
from eeg_data.quality import Quality, SignalScan
from electrodes import ELECTRODES
from errors import InputError

RECORDING = 600  # s


class Geometry(NamedTuple):
    """Size of a window."""

    electrodes: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> "Geometry":
        """From `32x8`. Raises argparse's error for what no window of the models has."""
        found = re.fullmatch(r"(\d{1,3})x(\d{1,2})", text, re.ASCII)
        size = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not (1 <= size.electrodes <= len(ELECTRODES) and 1 <= size.seconds <= MAX_SECONDS):
            allowed = f"1 to {len(ELECTRODES)} electrodes x 1 to {MAX_SECONDS} seconds, such as 32x8"
            raise argparse.ArgumentTypeError(f"{text!r}: must be {allowed}")
        return size

    @property
    def values(self) -> int:
        """Numbers in a window."""
        return self.electrodes * self.seconds * SAMPLING_RATE

    def __str__(self) -> str:
        """Back to `32x8`."""
        return f"{self.electrodes}x{self.seconds}"


def make_file(folder: Path, kind: str, geometry: Geometry, dtype: str, size: float) -> Path:
    """A file of `size` bytes in the makers' layout; one that is there already is used again."""
    place = folder / f"{kind}-{geometry.electrodes}x{geometry.seconds}-{dtype}-{size / 1e9:g}GB"
    if found := files_below(place) if place.is_dir() else []:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < 1.1 * size:
        raise InputError(f"{folder} has no room for {size / 1e9:g} GB: choose a smaller --size_gb or another --folder")
    place.mkdir(exist_ok=True)
    write = _write_pretraining if kind == "pretraining" else _write_labelled
    return write(place, geometry, dtype, size)


def noise(electrodes: int, seconds: int) -> np.ndarray:
    """Return noise of 20 uV, (N, time) float32."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((electrodes, seconds * SAMPLING_RATE), dtype=np.float32) * 20


def _recordings(size: float, each: int) -> Iterator[int]:
    yield from tqdm(range(max(2, round(size / each))), desc="writing", disable=None, leave=False)


def _scan(eeg: np.ndarray, names: Sequence[str]) -> Quality:
    scan = SignalScan(names, SAMPLING_RATE)
    scan.add(eeg)
    return scan.result()


def _write_pretraining(folder: Path, geometry: Geometry, dtype: str, size: float) -> Path:
    names = list(ELECTRODES[: geometry.electrodes])
    seconds = max(geometry.seconds, min(RECORDING, int(size / 4 / SAMPLING_RATE / geometry.electrodes / 2)))
    eeg = noise(geometry.electrodes, seconds)
    report = {"l_freq": 0.1, "h_freq": 75.0, "notch": 50.0, "source_rate": SAMPLING_RATE, "notes": []}
    quality = _scan(eeg, names)
    item = eeg.size * np.dtype(dtype).itemsize
    with PretrainingShards(folder, "benchmark", made={"source": "noise"}, dtype=dtype) as shards:
        for i in _recordings(size, item):
            dataset = shards.store(f"recording{i:06d}")(names, SAMPLING_RATE, eeg.shape[1])
            dataset[:] = np.roll(eeg, i * SAMPLING_RATE, axis=1)
            shards.finish(Prepared(names, SAMPLING_RATE, eeg.shape[1], dataset, quality, report))
    return files_below(folder)[0]


def _write_labelled(folder: Path, geometry: Geometry, dtype: str, size: float) -> Path:
    names = list(ELECTRODES[: geometry.electrodes])
    description = {"name": "noise", "task": "binary", "classes": ("a", "b"), "electrodes": names}
    count = max(2, min(64, int(size / 4 / geometry.values / 2)))  # samples of a recording
    eeg = noise(geometry.electrodes, geometry.seconds * count)
    quality = _scan(eeg, names)
    samples = np.stack(np.split(eeg, count, axis=1))  # (samples, N, time)
    item = eeg.size * np.dtype(dtype).itemsize
    options: dict[str, Any] = {"description": {**description, "rate": SAMPLING_RATE}, "made": {"source": "noise"}}
    with LabelledShard(folder / "noise.hdf5", dtype=dtype, **options) as shard:
        for i in _recordings(size, item):
            name = f"recording{i:06d}"
            shard.append("train", np.roll(samples, i, axis=2), np.arange(count) % 2, recording=name, subject=name)
            shard.describe("train", quality)
    return folder / "noise.hdf5"
