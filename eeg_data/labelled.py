"""Labelled HDF5 files to batches for stage 3. What a file holds: `labelled_files.py`."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset_maker.scans import complete_samples, samples_quality
from eeg_data import quality
from eeg_data.batches import EvaluationBatches, Key, TrainingBatches
from eeg_data.labelled_files import (
    DATASETS,
    LabelledFile,
    Samples,
    UsableSamples,
    published_sizes,
    read_eeg,
    read_samples,
)
from eeg_data.pretraining import Loaders, Read, add_loader_arguments, extent, make_loader, to_units
from electrodes import PUBLISHED_ELECTRODES, embedding_rows
from errors import InputError
from files import digest_of
from utils import Run, add_switch

logger = logging.getLogger(__name__)


class LabelledBatch(NamedTuple):
    """Labelled windows."""

    eeg: Tensor  # (B, N, A, T), units of 100 uV
    channels: Tensor  # (N + 1,)
    labels: Tensor  # (B,) int64 or (B, outputs) float32
    samples: Tensor  # (B,): which of the split's usable samples

    def to(self, run: Run) -> "LabelledBatch":
        """The batch on the run's device, EEG and regression targets in the run's type."""
        return LabelledBatch(run.place(self.eeg), run.place(self.channels), run.place(self.labels), self.samples)


def add_labelled_arguments(parser: argparse.ArgumentParser) -> None:
    """Data flags of stage 3."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default="TUAB",
        help=f"{', '.join(DATASETS)}, or the path of a labelled HDF5 file or of a folder of its shards",
    )
    group.add_argument(
        "--data_dir", type=Path, default=Path("data"), help="folder of the known names' files or folders"
    )
    group.add_argument("--nb_classes", type=int, default=None, help="outputs of the head (default: what the file says)")
    add_switch(group, "dist_eval", default=True, help="share the evaluation among the processes")
    add_loader_arguments(group)


class LabelledWindows(UsableSamples, Dataset):
    """The usable samples of one split of a labelled set as a data set, by key (epoch, 0, sample)."""

    def __init__(
        self,
        file: LabelledFile,
        split: str,
        *,
        table_rows: int = PUBLISHED_ELECTRODES + 1,
        parts: Sequence[Samples] | None = None,
    ) -> None:
        """split: train, val or test; parts: what was read of it already. Raises InputError for unusable labels."""
        super().__init__(read_samples(file, split) if parts is None else parts)
        self.path, self.split = file.path, split
        self.name, self.task, self.classes = file.name, file.task, file.classes
        self.channels = torch.tensor(embedding_rows(file.montage, table_rows=table_rows, where=str(file.path)))

    def __getitem__(self, key: Key) -> tuple[Read, Tensor, Any, int]:
        """What reads the EEG, (N, A*T) float32 in uV; channels (N + 1,), label, index among the usable samples."""
        path, row = self.place(key[2])
        return partial(read_eeg, path, self.split, row), self.channels, self.labels[key[2]], key[2]

    @property
    def groups(self) -> list[str | None]:
        """Its one montage, whose loss needs no name of its own."""
        return [None]

    def summary(self) -> dict[str, Any]:
        """What decides which samples there are."""
        digest = digest_of([self.samples, self.labels, self.recordings, self.subjects, self.channels.tolist()])
        return {"samples": len(self), "digest": digest}

    def describe(self, key: Key) -> dict[str, Any]:
        """Where a sample is from and its largest value."""
        path, row = self.place(key[2])
        place = {"file": str(path), "recording": self.recordings[key[2]], "split": self.split, "sample": row}
        return {**place, **extent(self[key][0]())}


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weight of each class, (classes,): samples / (classes present x samples of the class), as in scikit-learn.

    labels: (samples,) int64. The weights of the samples have mean 1; a class without samples gets 1.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0))


def collate_labelled(samples: Sequence[tuple[Read, Tensor, Any, int]]) -> LabelledBatch:
    """Read samples into a labelled batch."""
    eeg = to_units((s[0]() for s in samples), len(samples))
    labels = torch.from_numpy(np.stack([s[2] for s in samples]))
    return LabelledBatch(eeg, samples[0][1], labels, torch.tensor([s[3] for s in samples]))


def build_labelled_loaders(args: argparse.Namespace, run: Run, file: LabelledFile, *, accumulation: int = 1) -> Loaders:
    """Loaders of stage 3. Raises InputError for a set without training samples, or with those of one class only."""
    splits = _splits(file, run, table_rows=args.num_electrodes + 1)
    batches = TrainingBatches(
        [len(splits["train"])],
        args.batch_size,
        seed=args.seed,
        rank=run.rank,
        processes=run.processes,
        accumulation=accumulation,
        overfit_batch=args.overfit_batch,
    )
    shares = (run.rank, run.processes) if args.dist_eval else (0, 1)
    evaluation = {}
    for split in ("val", "test"):
        if len(splits.get(split, ())):
            plan = EvaluationBatches([len(splits[split])], args.batch_size, rank=shares[0], processes=shares[1])
            evaluation[split] = make_loader(splits[split], plan, args, run, collate_labelled)
    logger.info(
        "%s: %s, %d electrodes, %d s; %s; %d training samples repeated to complete the last batch",
        file.name,
        file.task,
        len(file.montage),
        file.seconds,
        ", ".join(f"{split} {len(windows)}" for split, windows in splits.items()),
        batches.repeated[0],
    )
    train = make_loader(splits["train"], batches, args, run, collate_labelled)
    return Loaders(train, evaluation.get("val"), evaluation.get("test"))


def _splits(file: LabelledFile, run: Run, *, table_rows: int) -> dict[str, LabelledWindows]:
    """Usable samples of every split. Raises InputError if nothing can be learned from those of train."""
    embedding_rows(file.montage, table_rows=table_rows, where=str(file.path))  # said before a scan of hours
    parts = {split: read_samples(file, split) for split in file.splits}
    with run.rank0_first():
        parts = complete_samples(parts, montage=file.montage, seconds=file.seconds, visible=run.is_main)
    splits = {split: LabelledWindows(file, split, table_rows=table_rows, parts=parts[split]) for split in file.splits}
    train = splits.get("train")
    if train is None or not len(train):
        left_out = train.left_out if train is not None else 0
        reason = f": all {left_out} hold seconds that cannot be used" if left_out else ""
        raise InputError(f"{file.path} has no samples in its group train{reason}: make it again with a training split")
    if file.task != "regression" and len(found := np.unique(train.labels)) == 1:
        raise InputError(
            f"{file.path}: all {len(train)} training samples have the class {file.classes[found[0]]}, so there is "
            "nothing to learn: make it again with recordings of the other classes in train"
        )
    if run.is_main:
        _warn(file, splits, samples_quality([part for found in parts.values() for part in found]))
    return splits


def _warn(file: LabelledFile, splits: Mapping[str, LabelledWindows], seen: quality.Quality | None) -> None:
    """Say what of a set is left out, and what is odd about its signals and splits."""
    for split, windows in splits.items():
        if windows.left_out:
            logger.warning(
                "%s: %d of %d samples of %s hold seconds that cannot be used (not finite, or all electrodes flat) and "
                "are left out.",
                file.name,
                windows.left_out,
                windows.left_out + len(windows),
                split,
            )
    subjects = {split: windows.subjects for split, windows in splits.items()}
    labels = {} if file.task == "regression" else {split: windows.labels for split, windows in splits.items()}
    for text in [*(quality.warnings(seen) if seen else ()), *quality.split_warnings(labels, subjects, file.classes)]:
        logger.warning("%s: %s", file.name, text)
    sizes = {split: windows.left_out + len(windows) for split, windows in splits.items()}
    if compared := quality.compare_with_published(file.name, sizes, published_sizes()):
        logger.info("%s: %s", file.name, compared[0])
