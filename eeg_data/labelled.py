"""Make batches of labelled HDF5 files for stage 3. `labelled_files.py` says what a file holds."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from eeg_data.batches import EvaluationBatches, Key
from eeg_data.labelled_files import DATASETS, LabelledFile, read_samples, split_warnings
from eeg_data.levels import OWNERS, level_factors, owner_numbers, window_levels
from eeg_data.loader import (
    Loaders,
    add_loader_arguments,
    extent,
    make_loader,
    on_device,
    training_batches,
    warn_unmarked,
)
from eeg_data.pretraining_files import SAMPLING_RATE
from eeg_data.quality import UNUSABLE, Quality
from eeg_data.verdicts import scale_warnings, warnings
from electrodes import PUBLISHED_ELECTRODES, embedding_rows
from errors import InputError
from files import digest_of
from utils import Run, add_switch, gather

logger = logging.getLogger(__name__)


class LabelledBatch(NamedTuple):
    """Labelled windows."""

    eeg: Tensor  # (B, N, A, T), units of 100 uV
    channels: Tensor  # (N + 1,)
    labels: Tensor  # (B,) int64, or (B, outputs) float of a regression
    samples: Tensor  # (B,): which of the split's usable samples

    def to(self, run: Run) -> "LabelledBatch":
        """Move the batch to the run's device, EEG and regression targets to its type."""
        return LabelledBatch(on_device(self.eeg, run), run.place(self.channels), run.place(self.labels), self.samples)


def add_labelled_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data flags of stage 3."""
    group = parser.add_argument_group("data")
    words = f"{', '.join(DATASETS)}, or the path of a labelled HDF5 file or of a folder of its shards"
    group.add_argument("--dataset", nargs="+", default=["TUAB"], help=f"{words}; several: one head for each")
    words = "share of the steps of each of several data sets (default: in proportion to their samples)"
    group.add_argument("--task_weights", type=float, nargs="+", metavar="W", help=words)
    words = "one factor for all signals of a subject or recording, to a median |uV| of 15 (transductive)"
    group.add_argument("--scale_by", choices=(*OWNERS, "none"), default="none", help=words)
    words = "folder of the known names' files or folders"
    group.add_argument("--data_dir", type=Path, default=Path("data"), help=words)
    group.add_argument("--nb_classes", type=int, help="outputs of the head (default: what the file says)")
    add_switch(group, "dist_eval", default=True, help="share the evaluation among the processes")
    add_loader_arguments(group)


class LabelledWindows:
    """The usable samples of one split of a labelled set, by key (epoch, 0, sample).

    split: train, val or test. scale_by: subject, recording or none; the run's processes share the work. Raises
    InputError for unusable labels.
    """

    def __init__(
        self,
        file: LabelledFile,
        split: str,
        *,
        table_rows: int = PUBLISHED_ELECTRODES + 1,
        scale_by: str = "none",
    ) -> None:
        self.channels = torch.tensor(embedding_rows(file.montage, table_rows=table_rows, where=str(file.path)))
        self.samples = samples = read_samples(file, split).usable()
        self.labels, self.recordings, self.subjects = samples.labels, list(samples.recordings), list(samples.subjects)
        self._half = samples.half and scale_by == "none"  # asked once: it opens all shards
        self.path, self.split, self.name, self.task, self.classes = file.path, split, file.name, file.task, file.classes
        self.factors: np.ndarray | None = None  # (n,), on the signals
        if scale_by != "none":
            owners, rank = owner_numbers(self, scale_by, flag="--scale_by"), dist.get_rank()
            numbers = range(rank, len(self), dist.get_world_size())
            bar = tqdm(numbers, f"levels of {split}", leave=False, disable=True if rank else None)
            levels = np.empty(len(self))
            for places, own in gather((numbers, window_levels(samples.read, bar))):
                levels[places] = own
            self.factors = level_factors(levels, owners, f"{file.path}, group {split}")

    def __len__(self) -> int:
        return len(self.labels)

    def shape(self, _: Sequence[Key]) -> tuple[int, int]:
        """Return electrodes and samples of a window."""
        return len(self.samples.file.montage), self.samples.file.seconds * SAMPLING_RATE

    def half(self, _: Sequence[Key]) -> bool:
        """Return True if the files hold all windows as float16."""
        return self._half

    def read(self, key: Key, out: np.ndarray) -> None:
        """Write a window into `out`, (N, A*T): float32 in units of 100 uV, or float16 in uV."""
        self.samples.read_into(out, key[2])
        if self.factors is not None:
            out *= self.factors[key[2]]

    def batch(self, keys: Sequence[Key], eeg: Tensor, _: Any) -> LabelledBatch:
        """Make a batch. Each sample has its number among the usable ones."""
        samples = [key[2] for key in keys]
        return LabelledBatch(eeg, self.channels, torch.from_numpy(self.labels[samples]), torch.tensor(samples))

    @property
    def parts(self) -> "list[LabelledWindows]":
        """Its data sets: itself."""
        return [self]

    @property
    def groups(self) -> list[str | None]:
        """Its one montage; the loss of it needs no name."""
        return [None]

    def summary(self) -> dict[str, Any]:
        """Describe the samples, so that a resumed run can compare them with the saved run's."""
        digest = digest_of([self.samples.index, self.labels, self.recordings, self.subjects, self.channels.tolist()])
        return {"samples": len(self), "digest": digest}

    def describe(self, key: Key) -> dict[str, Any]:
        """Say where a sample is from, and its largest value."""
        path, row = self.samples.place(key[2])
        place = {"file": str(path), "recording": self.recordings[key[2]], "split": self.split, "sample": row}
        return {**place, **extent(self.samples.read(key[2]))}


class JoinedWindows:
    """The training samples of several data sets, by key (epoch, data set, sample). A batch is of one of them."""

    def __init__(self, parts: Sequence[LabelledWindows]) -> None:
        self.parts, self.groups = list(parts), [part.samples.file.slug for part in parts]

    def summary(self) -> dict[str, Any]:
        """Describe the samples, so that a resumed run can compare them with the saved run's."""
        parts = [part.summary() for part in self.parts]
        return {"samples": sum(part["samples"] for part in parts), "digest": digest_of(parts)}

    def describe(self, key: Key) -> dict[str, Any]:
        """Say where a sample is from, and its largest value."""
        return self.parts[key[1]].describe(key)


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return each class's weight, (classes,): samples / (classes present x samples of the class), as in scikit-learn.

    labels: (samples,) int64. The weights of the samples have mean 1; a class without samples gets 1.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0))


def build_labelled_loaders(
    args: argparse.Namespace, run: Run, files: Sequence[LabelledFile], *, accumulation: int = 1
) -> list[Loaders]:
    """Make the loaders of stage 3: of each data set, with one loader of training batches for all of them.

    Raises InputError for a set without training samples, or with one class only.
    """
    sets = []
    for file in files:
        every: Any = {"table_rows": args.num_electrodes + 1, "scale_by": args.scale_by}
        splits = {split: LabelledWindows(file, split, **every) for split in file.splits}
        _check_train(file, splits.get("train"))
        if run.is_main:
            _warn(file, splits)
        sets.append(splits)
    parts = [splits["train"] for splits in sets]
    batches = training_batches(list(map(len, parts)), args, run, accumulation, weights=args.task_weights)
    train = make_loader(parts[0] if len(parts) == 1 else JoinedWindows(parts), batches, args, run)
    share = {"rank": run.rank, "processes": run.processes} if args.dist_eval else {}
    loaders = []
    for file, splits, steps, repeated in zip(files, sets, batches.batches, batches.repeated, strict=True):
        evaluation = {
            split: make_loader(windows, EvaluationBatches([len(windows)], args.batch_size, **share), args, run)
            for split, windows in splits.items()
            if split != "train" and len(windows)
        }
        sizes = ", ".join(f"{split} {len(windows)}" for split, windows in splits.items())
        again = f"{repeated} training samples repeated to complete the last batch"
        if args.task_weights is not None:
            again = f"{steps} of {batches.steps} steps an epoch ({steps * batches.total_batch} training samples)"
        logger.info(f"{file.name}: {file.task}, {len(file.montage)} electrodes, {file.seconds} s; {sizes}; {again}")
        loaders.append(Loaders(train, evaluation.get("val"), evaluation.get("test")))
    return loaders


def _check_train(file: LabelledFile, train: LabelledWindows | None) -> None:
    """Raise InputError if nothing can be learned from the training samples."""
    if train is None or not len(train):
        left_out = f" ({train.samples.left_out} hold seconds that cannot be used)" if train is not None else ""
        raise InputError(f"{file.path} has no usable samples in its group train{left_out}: make it again with some")
    if file.task != "regression" and len(classes := np.unique(train.labels)) == 1:
        raise InputError(
            f"{file.path}: all {len(train)} training samples have the class {file.classes[classes[0]]}, so there is "
            "nothing to learn: make it again with recordings of the other classes in train"
        )


def _warn(file: LabelledFile, splits: Mapping[str, LabelledWindows]) -> None:
    """Warn of samples that are left out, and of odd signals and splits."""
    every = {split: windows.samples for split, windows in splits.items()}
    left_out = {split: samples.left_out for split, samples in every.items() if samples.left_out}
    if left_out:
        counts = [f"{n} of {n + len(every[split])} samples of {split}" for split, n in left_out.items()]
        logger.warning(
            f"{file.name}: {', '.join(counts)} are left out: they hold seconds that cannot be used ({UNUSABLE})."
        )
    warn_unmarked(set().union(*(samples.unmarked for samples in every.values())), f"--dataset {file.name}")
    scans = Quality.merged(scan for samples in every.values() for scan in samples.scans)
    levels = {name: level for samples in every.values() for name, level in samples.levels.items()}
    texts = warnings(scans, levels)
    for samples in every.values():
        if not samples.scans:
            texts += scale_warnings(*samples.glance())
    for text in [*texts, *split_warnings(every)]:
        logger.warning(f"{file.name}: {text}")
