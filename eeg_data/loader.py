"""Load batches: threads read the next one, straight into its memory, while the last one is trained on.

There are no loading processes: while a thread reads or divides, other Python code runs. A batch is a function of its
keys alone, whatever the number of threads.
"""

import argparse
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_data.batches import EvaluationBatches, Key, TrainingBatches
from eeg_data.hdf5 import UNIT
from electrodes import ELECTRODES, PUBLISHED_ELECTRODES
from layers import PATCH_SAMPLES
from utils import Run, add_switch

logger = logging.getLogger(__name__)

Plan = TrainingBatches | EvaluationBatches

BUFFERS = 2  # batches in memory: the one in use and the next
PATIENCE = 10  # ms that a thread waits for the loop to let go of its last batch


def _references(buffers: Sequence[np.ndarray]) -> list[int]:
    return [sys.getrefcount(buffer) for buffer in buffers]


FREE = _references([np.empty(0)])[0]  # references to a buffer that no batch uses; versions of Python count differently


class Loader:
    """The batches of a plan, in its order.

    dataset: has the methods shape, half, read and batch of `PretrainingDataset`, or `parts` that have them, of which a
    batch is of one. threads: that read; 0: the caller reads, between two batches. pinned: page-locked memory. half:
    float16 files stay float16, in uV, until `on_device` widens them.
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: Plan,
        *,
        threads: int = 0,
        pinned: bool = False,
        half: bool = False,
    ) -> None:
        self.dataset, self.batch_sampler, self.pinned, self.half = dataset, batch_sampler, pinned, half
        self.threads = threads
        self._buffers: list[np.ndarray] = []  # (bytes,) each; a batch on a CPU is a view of one
        if threads:
            self._first, self._others = ThreadPoolExecutor(1, "loader"), ThreadPoolExecutor(threads, "loader")

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches. An error of a window is raised where its batch would come."""
        if not self.threads:
            yield from map(self._load, self.batch_sampler)
            return
        keys = iter(self.batch_sampler)
        coming = [self._first.submit(self._load, first) for first in itertools.islice(keys, 1)]
        while coming:
            batch = coming.pop().result()
            coming = [self._first.submit(self._load, following) for following in itertools.islice(keys, 1)]
            yield batch

    def _load(self, keys: Sequence[Key]) -> Any:
        parts = getattr(self.dataset, "parts", None)
        dataset: Any = parts[keys[0][1]] if parts else self.dataset
        rows, samples = dataset.shape(keys)
        dtype = torch.float16 if self.half and dataset.half(keys) else torch.float32
        eeg = self._memory((len(keys), rows, samples), dtype)
        windows, masks, n = eeg.numpy(), [None] * len(keys), max(1, self.threads)

        def read(first: int) -> None:
            for i in range(first, len(keys), n):
                masks[i] = dataset.read(keys[i], windows[i])

        others = [self._others.submit(read, first) for first in range(1, n)]
        read(0)
        for other in others:
            other.result()
        batch = dataset.batch(keys, eeg.unflatten(-1, (-1, PATCH_SAMPLES)), masks)
        return batch._make(part.pin_memory() for part in batch) if self.pinned else batch  # the EEG stays as it is

    def _memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory that no earlier batch uses any more. New pages would cost as much as reading."""
        if self.pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=True)  # torch reuses it when all copies from it are done
        size = math.prod(shape) * dtype.itemsize  # bytes
        for _ in range(PATIENCE):
            used = [references > FREE for references in _references(self._buffers)]
            for i in range(len(used)):  # a variable for the buffer would count as a user of it
                if not used[i] and len(self._buffers[i]) >= size:
                    return torch.from_numpy(self._buffers[i][:size]).view(dtype).view(shape)
            if sum(used) < BUFFERS or not self.threads:  # what is free is too small; or who holds it waits for us
                break
            time.sleep(1e-3)
        self._buffers = [*itertools.compress(self._buffers, used), np.empty(size, np.uint8)][-BUFFERS:]
        return torch.from_numpy(self._buffers[-1][:]).view(dtype).view(shape)


@dataclass(frozen=True)
class Loaders:
    """Loaders of a training; `val` is None where there is nothing to evaluate on."""

    train: Loader
    val: Loader | None
    test: Loader | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.train.batch_sampler.steps  # type: ignore[union-attr]

    @property
    def evaluation(self) -> dict[str, Loader]:
        """The sets to evaluate on."""
        return {name: loader for name, loader in (("val", self.val), ("test", self.test)) if loader is not None}

    def summary(self) -> dict[str, Any]:
        """Describe the data of each set."""
        sets = {"train": self.train, **self.evaluation}
        return {f"{name} data": loader.dataset.summary() for name, loader in sets.items()}


def batch_size(text: str) -> int | None:
    """Read --batch_size: a number, or None for auto. Raises ArgumentTypeError."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, and not auto") from None


def add_loader_arguments(group: Any) -> None:
    """Add the flags of every loader."""
    add = group.add_argument
    words = "rows of the electrode table; the larger one for the last eight (bipolar) names"
    choices = (PUBLISHED_ELECTRODES, len(ELECTRODES))
    add("--num_electrodes", type=int, default=PUBLISHED_ELECTRODES, choices=choices, help=words)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(8, cores // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    words = "windows a process and micro-batch; auto: as many as a GPU holds, and micro-batches for --total_batch_size"
    add("--batch_size", type=batch_size, metavar="N", help=words)
    add("--num_workers", type=int, default=workers, help="threads of each process that read ahead (0: none)")
    add_switch(group, "pin_mem", default=True, help="page-locked memory on the way to a GPU")
    add("--overfit_batch", action="store_true", help="train on the first batch only: a check that learning works")


def training_batches(
    sizes: Sequence[int],
    args: argparse.Namespace,
    run: Run,
    accumulation: int,
    *,
    order: str = "interleaved",
    weights: Sequence[float] | None = None,
) -> TrainingBatches:
    """Plan this process's batches. sizes: windows of each montage; weights: of `TrainingBatches`."""
    return TrainingBatches(
        sizes,
        args.batch_size,
        seed=args.seed,
        rank=run.rank,
        processes=run.processes,
        accumulation=accumulation,
        interleaved=order == "interleaved",
        overfit_batch=args.overfit_batch,
        weights=weights,
    )


def make_loader(dataset: Any, batches: Plan, args: argparse.Namespace, run: Run) -> Loader:
    """Make a loader of these batches for a run's device."""
    cuda = run.device.type == "cuda"
    return Loader(dataset, batches, threads=args.num_workers, pinned=args.pin_mem and cuda, half=cuda)


def on_device(eeg: Tensor, run: Run) -> Tensor:
    """Move EEG to the run's device and type. float16 is in uV and widened there, to units of 100 uV."""
    if eeg.dtype == torch.float16:
        eeg = eeg.to(run.device, non_blocking=True).float()
        eeg = eeg / torch.full((), UNIT, device=run.device)  # by a number torch would multiply by its rounded inverse
    return run.place(eeg)


def extent(eeg: np.ndarray) -> dict[str, Any]:
    """Return a window's largest value in uV, and whether all are finite."""
    finite = np.isfinite(eeg)
    return {"largest_uv": float(np.abs(eeg[finite]).max(initial=0)), "finite": bool(finite.all())}


def warn_unmarked(paths: set[Path], flag: str) -> None:
    """Warn of files without `valid`: training takes all of their windows."""
    if paths:
        logger.warning(
            f"{flag}: {len(paths)} file(s) do not say which seconds are valid (such as {min(paths)}), so every window "
            "of them is used; to leave broken seconds out, run python -m dataset_maker.inspect_data --mark PATH"
        )
