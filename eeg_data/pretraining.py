"""Make batches of pre-training files: windows, montages, masks, loaders.

What a step sees (order, montage, mask) is a pure function of (seed, epoch, window), so nothing about loaders or workers
needs saving and the number of workers cannot change a result. Source: paper, section 3.2 (windows of at most 256
patches). `pretraining_files.py` says what a file holds.
"""

import argparse
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from eeg_data.batches import EvaluationBatches, Key, TrainingBatches
from eeg_data.hdf5 import find_files
from eeg_data.pretraining_files import GLANCES, MAX_TOKENS, SAMPLING_RATE, Windows, by_montage, read_recordings
from eeg_data.quality import UNUSABLE, Quality, compared
from eeg_data.verdicts import scale_warnings, warnings
from electrodes import ELECTRODES, PUBLISHED_ELECTRODES, embedding_rows
from errors import InputError
from files import digest_of
from layers import MAX_PATCHES, PATCH_SAMPLES
from utils import EXIT_CODES, Run, add_switch

logger = logging.getLogger(__name__)

UNIT = 100.0  # uV: files hold microvolts, models see EEG / 100
DEFAULT_VAL_DATA = Path("data/pretrain_val")

MaskMaker = Callable[..., Tensor]  # (patches, generator=...) -> (1, patches) bool
Sample = tuple[np.ndarray, Tensor, Tensor]  # EEG (N, A*T) in uV, channels (N + 1,), mask (N*A,)


class Batch(NamedTuple):
    """Unlabelled windows of one montage."""

    eeg: Tensor  # (B, N, A, T), units of 100 uV
    channels: Tensor  # (N + 1,): rows of the position embedding, CLS first
    mask: Tensor  # (B, N*A) bool, true = masked; empty where no masks are made

    def to(self, run: Run) -> "Batch":
        """Move the batch to the run's device and type."""
        return Batch(*map(run.place, self))


class PretrainingDataset(Dataset):
    """Windows of all montages by key (epoch, montage, window), with a mask where masks are made.

    make_mask: from a number of patches and a generator to one mask, (1, patches). table_rows: rows of the models'
    position embedding. Raises InputError for electrodes without a row.
    """

    def __init__(
        self,
        montages: Sequence[Windows],
        *,
        seed: int,
        make_mask: MaskMaker | None = None,
        table_rows: int = PUBLISHED_ELECTRODES + 1,
    ) -> None:
        self.montages, self.seed, self.make_mask = list(montages), seed, make_mask
        self.channels = [
            torch.tensor(embedding_rows(m.montage, table_rows=table_rows, where=str(m.recordings[0].path)))
            for m in montages
        ]

    def __getitem__(self, key: Key) -> Sample:
        """Read a window; return it with its channels and a mask."""
        _, montage, window = key
        windows = self.montages[montage]
        mask = torch.empty(0, dtype=torch.bool)
        if self.make_mask is not None:
            state = np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
            mask = self.make_mask(len(windows.montage) * windows.window // PATCH_SAMPLES, generator=generator)[0]
        return windows[window], self.channels[montage], mask

    def summary(self) -> dict[str, Any]:
        """Describe the windows, so that a resumed run can compare them with the saved run's."""
        parts = []
        for windows in self.montages:
            recordings = [(recording.name, recording.length) for recording in windows.recordings]
            digest = digest_of([windows.montage, windows.window, windows.stride, recordings, *windows.runs])
            parts.append({"electrodes": len(windows.montage), "windows": len(windows), "digest": digest})
        return {"windows": sum(part["windows"] for part in parts), "digest": digest_of(parts)}

    @property
    def groups(self) -> list[str]:
        """A short name of each montage, under which its loss is logged: its electrodes, numbered if need be."""
        names = [f"{len(windows.montage)}ch" for windows in self.montages]
        numbers = [f"-{names[: i + 1].count(name)}" if names.count(name) > 1 else "" for i, name in enumerate(names)]
        return list(map("".join, zip(names, numbers, strict=True)))

    def describe(self, key: Key) -> dict[str, Any]:
        """Say where a window is from, and its largest value."""
        recording, start = self.montages[key[1]].locate(key[2])
        place = {"file": str(recording.path), "recording": recording.name, "start_seconds": start / SAMPLING_RATE}
        return {**place, **extent(self.montages[key[1]][key[2]])}


def extent(eeg: np.ndarray) -> dict[str, Any]:
    """Return a window's largest value in uV, and whether all are finite."""
    finite = np.isfinite(eeg)
    return {"largest_uv": float(np.abs(eeg[finite]).max(initial=0)), "finite": bool(finite.all())}


def to_units(windows: Sequence[np.ndarray]) -> Tensor:
    """Stack B windows (N, A*T) in uV -> (B, N, A, T) in units of 100 uV."""
    eeg = np.empty((len(windows), *windows[0].shape), windows[0].dtype)
    for window, place in zip(windows, eeg, strict=True):
        np.divide(window, UNIT, out=place)  # stacked first, the batch would be passed over twice
    return rearrange(torch.from_numpy(eeg), "B N (A T) -> B N A T", T=PATCH_SAMPLES)


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples of one montage."""
    windows, channels, masks = zip(*samples, strict=True)
    return Batch(to_units(windows), channels[0], torch.stack(masks))


@dataclass(frozen=True)
class Loaders:
    """Loaders of a training; `val` is None where there is nothing to evaluate on."""

    train: DataLoader
    val: DataLoader | None
    test: DataLoader | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self.train.batch_sampler.steps  # type: ignore[union-attr]

    def summary(self) -> dict[str, Any]:
        """Describe the data of each set."""
        sets = {"train": self.train, "val": self.val, "test": self.test}
        return {f"{name} data": loader.dataset.summary() for name, loader in sets.items() if loader is not None}  # type: ignore[attr-defined]


def add_loader_arguments(group: Any) -> None:
    """Add the flags of every loader."""
    add = group.add_argument
    words = "rows of the electrode table; the larger one for the last eight (bipolar) names"
    choices = (PUBLISHED_ELECTRODES, len(ELECTRODES))
    add("--num_electrodes", type=int, default=PUBLISHED_ELECTRODES, choices=choices, help=words)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(8, cores // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    add("--batch_size", type=int, help="windows a process and micro-batch")
    add("--num_workers", type=int, default=workers, help="loading processes of each process")
    add_switch(group, "pin_mem", default=True, help="page-locked memory on the way to a GPU")
    add("--overfit_batch", action="store_true", help="train on the first batch only: a check that learning works")


def add_pretraining_arguments(parser: argparse.ArgumentParser, *, window_stride: int) -> None:
    """Add the data flags of stages 1 and 2."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    paths: dict[str, Any] = {"type": Path, "nargs": "+", "metavar": "PATH"}
    words = "HDF5 files or folders of them (default: ./data/pretrain)"
    add("--train_data", **paths, default=[Path("data/pretrain")], help=words)
    add("--val_data", **paths, help="likewise, for evaluation (default: ./data/pretrain_val where it exists)")
    words = f"window of every montage (default: floor({MAX_TOKENS} / electrodes), at most {MAX_PATCHES})"
    add("--time_window", type=int, metavar="SECONDS", help=words)
    words = "from the start of one window to the next's (default: %(default)s)"
    add("--window_stride", type=int, default=window_stride, metavar="SAMPLES", help=words)
    words = "how batches of different montages follow each other; sequential: as in the released code"
    add("--dataset_order", choices=("interleaved", "sequential"), default="interleaved", help=words)
    add_loader_arguments(group)


def _read_data(flag: str, args: argparse.Namespace, run: Run, make_mask: MaskMaker | None) -> PretrainingDataset:
    """Read the windows of all files of a flag, montages in a fixed order. Raises InputError if there are none."""
    paths = getattr(args, flag.removeprefix("--")) or [DEFAULT_VAL_DATA]
    recordings = [recording for path in find_files(paths, flag) for recording in read_recordings(path)]
    window = args.time_window * SAMPLING_RATE if args.time_window else None
    montages = [Windows(group, window=window, stride=args.window_stride) for group in by_montage(recordings)]
    if run.is_main:
        warn_unmarked({r.path for r in recordings if r.valid is None}, flag)
        for windows in montages:
            _warn(windows, f"{flag}, {len(windows.montage)} electrodes")
    usable = [windows for windows in montages if len(windows)]
    if not usable:
        left_out = sum(windows.left_out for windows in montages)
        longest = max(r.length for r in recordings) / SAMPLING_RATE
        raise InputError(
            f"{flag} {paths[0]}: no window can be used: {left_out} touch seconds that cannot be used (see python -m "
            f"dataset_maker.inspect_data), and the longest recording has {longest:g} s: choose a shorter --time_window"
        )
    return PretrainingDataset(usable, seed=args.seed, make_mask=make_mask, table_rows=args.num_electrodes + 1)


def warn_unmarked(paths: set[Path], flag: str) -> None:
    """Warn of files without `valid`: training takes all of their windows."""
    if paths:
        logger.warning(
            f"{flag}: {len(paths)} file(s) do not say which seconds are valid (such as {min(paths)}), so every window "
            "of them is used; to leave broken seconds out, run python -m dataset_maker.inspect_data --mark PATH"
        )


def _warn(windows: Windows, name: str) -> None:
    """Warn of windows of a montage that are left out, and of odd signals."""
    if windows.too_short or windows.left_out:
        logger.warning(
            f"{name}: {windows.too_short} of {len(windows.recordings)} recordings are shorter than the window of "
            f"{windows.window // SAMPLING_RATE} s, {windows.left_out} of {windows.left_out + len(windows)} windows "
            f"touch seconds that cannot be used ({UNUSABLE}): they are left out."
        )
    unseen = []

    def scans() -> Iterator[tuple[str, Quality | None]]:
        for recording in windows.recordings:
            if (scan := recording.quality()) is None:
                unseen.append(recording)
            yield recording.where, scan

    texts = warnings(*compared(scans()))
    few = unseen[:: max(1, len(unseen) // GLANCES)]
    for text in texts + scale_warnings(*compared((recording.where, recording.glance()) for recording in few)):
        logger.warning(f"{name}: {text}")


def worker_context() -> BaseContext:
    """Choose how workers start: from Python's fork server on Linux, spawned elsewhere.

    A plain fork would inherit locks that the run's other threads hold (OpenMP, Gloo), and could wait for them for ever.
    The server and its workers start with signals blocked: a signal to the whole job must end the run first.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "eeg_data.labelled"])
    multiprocessing.resource_tracker.ensure_running()  # started by the server it would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)
    multiprocessing.forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def begin_worker(_: int) -> None:
    """Let a worker end with its run, and by nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        threading.Thread(target=_end_with_run, daemon=True).start()


def _end_with_run() -> None:
    """Wait until the run sends SIGTERM or is gone, then end this process."""
    run = multiprocessing.parent_process()
    while run is not None and run.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 1)  # seconds
        if received is not None and received.si_pid == run.pid:
            break
    os._exit(0)  # like torch's workers: another code would be an error to the run


def make_loader(
    dataset: Dataset, batches: Sampler[list[Key]], args: argparse.Namespace, run: Run, merge: Any
) -> DataLoader:
    """Make a loader of these batches; workers stay from epoch to epoch, because keys carry the epoch."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=args.num_workers,
        collate_fn=merge,
        pin_memory=args.pin_mem and run.device.type == "cuda",
        persistent_workers=args.num_workers > 0,
        multiprocessing_context=worker_context() if args.num_workers else None,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),  # else a loader would draw from the global one, depending on its workers
    )


def training_batches(
    sizes: Sequence[int], args: argparse.Namespace, run: Run, accumulation: int, order: str = "interleaved"
) -> TrainingBatches:
    """Plan this process's batches. sizes: windows of each montage."""
    return TrainingBatches(
        sizes,
        args.batch_size,
        seed=args.seed,
        rank=run.rank,
        processes=run.processes,
        accumulation=accumulation,
        interleaved=order == "interleaved",
        overfit_batch=args.overfit_batch,
    )


def build_pretraining_loaders(
    args: argparse.Namespace, run: Run, *, accumulation: int = 1, make_mask: MaskMaker | None = None
) -> Loaders:
    """Make the loaders of stages 1 and 2 from --train_data and --val_data.

    Raises InputError for data that are missing, damaged, of another rate or format, or too short.
    """
    data = _read_data("--train_data", args, run, make_mask)
    batches = training_batches([len(m) for m in data.montages], args, run, accumulation, args.dataset_order)
    for windows, repeated in zip(data.montages, batches.repeated, strict=True):
        logger.info(
            f"{len(windows.montage)} electrodes: {len(windows.recordings)} recording(s), {len(windows)} windows of "
            f"{windows.window // SAMPLING_RATE} s, {repeated} repeated to complete the last batch"
        )
    val = build_evaluation_loader("--val_data", args, run, make_mask=make_mask)
    return Loaders(make_loader(data, batches, args, run, collate), val)


def build_evaluation_loader(
    flag: str, args: argparse.Namespace, run: Run, *, make_mask: MaskMaker | None = None
) -> DataLoader | None:
    """Make a loader that reads every window of a flag's files once; None without --val_data and its default place."""
    if flag == "--val_data" and args.val_data is None and not run.run_on_rank0(DEFAULT_VAL_DATA.is_dir):
        logger.info(f"No validation data (--val_data not given, no folder {DEFAULT_VAL_DATA}): nothing is evaluated.")
        return None
    data = _read_data(flag, args, run, make_mask)
    sizes = [len(windows) for windows in data.montages]
    batches = EvaluationBatches(sizes, args.batch_size, rank=run.rank, processes=run.processes)
    return make_loader(data, batches, args, run, collate)
