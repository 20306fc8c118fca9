"""Make batches of pre-training files: windows, montages, masks, loaders.

What a step sees (order, montage, mask) is a pure function of (seed, epoch, window), so nothing about loaders or threads
needs saving and the number of threads cannot change a result. Source: paper, section 3.2 (windows of at most 256
patches). `pretraining_files.py` says what a file holds.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eeg_data.batches import EvaluationBatches, Key
from eeg_data.hdf5 import find_files
from eeg_data.index import list_recordings
from eeg_data.loader import (
    Loader,
    Loaders,
    add_loader_arguments,
    extent,
    make_loader,
    on_device,
    training_batches,
    warn_unmarked,
)
from eeg_data.pretraining_files import GLANCES, MAX_TOKENS, SAMPLING_RATE, Windows, by_montage
from eeg_data.quality import UNUSABLE, Quality, compared
from eeg_data.verdicts import scale_warnings, warnings
from electrodes import PUBLISHED_ELECTRODES, embedding_rows
from errors import InputError
from files import digest_of
from layers import MAX_PATCHES, PATCH_SAMPLES
from utils import Run

logger = logging.getLogger(__name__)

DEFAULT_VAL_DATA = Path("data/pretrain_val")
NO_MASK = torch.empty(0, dtype=torch.bool)

MaskMaker = Callable[..., Tensor]  # (patches, generator=...) -> (1, patches) bool


class Batch(NamedTuple):
    """Unlabelled windows of one montage."""

    eeg: Tensor  # (B, N, A, T), units of 100 uV
    channels: Tensor  # (N + 1,): rows of the position embedding, CLS first
    mask: Tensor  # (B, N*A) bool, true = masked; empty where no masks are made

    def to(self, run: Run) -> "Batch":
        """Move the batch to the run's device and type."""
        return Batch(on_device(self.eeg, run), run.place(self.channels), run.place(self.mask))


class PretrainingDataset:
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

    def shape(self, keys: Sequence[Key]) -> tuple[int, int]:
        """Return electrodes and samples of a batch's windows, which are of one montage."""
        windows = self.montages[keys[0][1]]
        return len(windows.montage), windows.window

    def half(self, keys: Sequence[Key]) -> bool:
        """Return True if the files hold all windows of this batch's montage as float16."""
        return self.montages[keys[0][1]].half

    def read(self, key: Key, out: np.ndarray) -> Tensor:
        """Write a window into `out`, (N, A*T): float32 in units of 100 uV, or float16 in uV. Returns its mask."""
        recording, start = self.montages[key[1]].locate(key[2])
        recording.read_into(out, start)
        return self.mask(key)

    def mask(self, key: Key) -> Tensor:
        """Make the mask of a window, (N*A,) bool; empty where no masks are made."""
        if self.make_mask is None:
            return NO_MASK
        state = np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        electrodes, samples = self.shape([key])
        return self.make_mask(electrodes * samples // PATCH_SAMPLES, generator=generator)[0]

    def batch(self, keys: Sequence[Key], eeg: Tensor, masks: Sequence[Tensor]) -> Batch:
        """Make a batch."""
        return Batch(eeg, self.channels[keys[0][1]], torch.stack(list(masks)))

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
    recordings = list_recordings(find_files(paths, flag), write=run.is_main)
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


def build_pretraining_loaders(
    args: argparse.Namespace, run: Run, *, accumulation: int = 1, make_mask: MaskMaker | None = None
) -> Loaders:
    """Make the loaders of stages 1 and 2 from --train_data and --val_data.

    Raises InputError for data that are missing, damaged, of another rate or format, or too short.
    """
    data = _read_data("--train_data", args, run, make_mask)
    batches = training_batches([len(m) for m in data.montages], args, run, accumulation, order=args.dataset_order)
    for windows, repeated in zip(data.montages, batches.repeated, strict=True):
        logger.info(
            f"{len(windows.montage)} electrodes: {len(windows.recordings)} recording(s), {len(windows)} windows of "
            f"{windows.window // SAMPLING_RATE} s, {repeated} repeated to complete the last batch"
        )
    val = build_evaluation_loader("--val_data", args, run, make_mask=make_mask)
    return Loaders(make_loader(data, batches, args, run), val)


def build_evaluation_loader(
    flag: str, args: argparse.Namespace, run: Run, *, make_mask: MaskMaker | None = None
) -> Loader | None:
    """Make a loader that reads every window of a flag's files once; None without --val_data and its default place."""
    if flag == "--val_data" and args.val_data is None and not run.run_on_rank0(DEFAULT_VAL_DATA.is_dir):
        logger.info(f"No validation data (--val_data not given, no folder {DEFAULT_VAL_DATA}): nothing is evaluated.")
        return None
    data = _read_data(flag, args, run, make_mask)
    sizes = [len(windows) for windows in data.montages]
    batches = EvaluationBatches(sizes, args.batch_size, rank=run.rank, processes=run.processes)
    return make_loader(data, batches, args, run)
