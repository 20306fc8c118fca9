"""Labelled HDF5 files to batches for stage 3. Format: README, "Data files".

A file describes itself (task, classes, montage), so that a new data set needs no entry anywhere.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from batches import EvaluationBatches, Key, TrainingBatches
from eeg_data import SAMPLING_RATE, Loaders, add_loader_arguments, make_loader, names, open_file, to_units
from electrodes import embedding_rows
from errors import InputError
from layers import MAX_PATCHES, PATCH_SAMPLES
from metrics import TASKS
from utils import Run, add_switch

logger = logging.getLogger(__name__)

# Known names of labelled sets and their files in --data_dir. Any other file in the same format goes by its path.
DATASETS = {
    "TUAB": "TUAB.hdf5",
    "TUEV": "TUEV.hdf5",
    "MentalArithmetic": "MentalArithmetic.hdf5",
    "SEED-V": "SEED-V.hdf5",
}


class LabelledBatch(NamedTuple):
    """Labelled windows."""

    eeg: Tensor  # (B, N, A, T), units of 100 uV
    channels: Tensor  # (N + 1,)
    labels: Tensor  # (B,) int64 or (B, outputs) float32
    samples: Tensor  # (B,): which sample of the split

    def to(self, run: Run) -> "LabelledBatch":
        """The batch on the run's device, EEG and regression targets in the run's type."""
        return LabelledBatch(run.place(self.eeg), run.place(self.channels), run.place(self.labels), self.samples)


def add_labelled_arguments(parser: argparse.ArgumentParser) -> None:
    """Data flags of stage 3."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="TUAB", help=f"{', '.join(DATASETS)} or the path of a labelled HDF5 file")
    group.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the known names' files")
    group.add_argument("--nb_classes", type=int, default=None, help="outputs of the head (default: what the file says)")
    add_switch(group, "dist_eval", default=True, help="share the evaluation among the processes")
    add_loader_arguments(group)


@dataclass(frozen=True)
class LabelledFile:
    """What a labelled HDF5 file says of itself."""

    path: Path
    name: str
    task: str  # binary, multiclass or regression
    classes: tuple[str, ...]  # for regression the names of the outputs
    montage: tuple[str, ...]
    splits: tuple[str, ...]
    seconds: int

    @property
    def outputs(self) -> int:
        """Outputs of a head: one for two classes."""
        return 1 if self.task == "binary" else len(self.classes)


def labelled_path(dataset: str, data_dir: Path) -> Path:
    """File of a known name or the path itself. Raises InputError if it is not there."""
    path = data_dir / DATASETS[dataset] if dataset in DATASETS else Path(dataset)
    if not path.is_file():
        known = f"--dataset takes {', '.join(DATASETS)} (then in --data_dir) or the path of a labelled HDF5 file"
        raise InputError(f"no data found at {path}: {known}; make it with dataset_maker")
    return path


def read_labelled(path: Path) -> LabelledFile:
    """Description of a labelled file. Raises InputError if it is none."""
    file = open_file(path)
    attributes = dict(file.attrs)
    if missing := [key for key in ("task", "classes", "chOrder", "rsFreq") if key not in attributes]:
        raise InputError(
            f"{path} is no labelled file: root attribute {missing[0]} is missing; make it with dataset_maker"
        )
    if attributes["task"] not in TASKS:
        raise InputError(f"{path}: task is {attributes['task']!r}; allowed: {', '.join(TASKS)}")
    if float(attributes["rsFreq"]) != SAMPLING_RATE:
        raise InputError(
            f"{path}: sampled at {float(attributes['rsFreq']):g} Hz; the models take {SAMPLING_RATE} Hz: make it again"
        )
    splits = tuple(split for split in ("train", "val", "test") if split in file)
    if not splits:
        raise InputError(
            f"{path} is no labelled file: it has none of the groups train, val, test; make it with dataset_maker"
        )
    classes = names(attributes["classes"])
    if (attributes["task"] == "binary" and len(classes) != 2) or not classes:
        raise InputError(f"{path}: {len(classes)} classes for a {attributes['task']} task; a binary one has two")
    montage = names(attributes["chOrder"])
    seconds = {_check_split(file, path, split, len(montage)) for split in splits}
    if len(seconds) > 1:
        raise InputError(f"{path}: windows of {sorted(seconds)} s in one file; all splits must have the same length")
    name = str(attributes.get("name", path.stem))
    return LabelledFile(path, name, str(attributes["task"]), classes, montage, splits, seconds.pop())


def _check_split(file: h5py.File, path: Path, split: str, electrodes: int) -> int:
    """Return a split's window in seconds. Raises InputError if the split is not of the format."""
    where, group = f"{path}, group {split}", file[split]
    if not isinstance(group, h5py.Group) or any(key not in group for key in ("eeg", "label", "recording", "subject")):
        raise InputError(f"{where}: needs eeg, label, recording and subject; make it with dataset_maker")
    shape = group["eeg"].shape
    rows, samples = shape[1:] if len(shape) == 3 else (0, 0)
    if rows != electrodes or samples % PATCH_SAMPLES or not 0 < samples <= MAX_PATCHES * PATCH_SAMPLES:
        raise InputError(
            f"{where}: `eeg` is {shape}; expected (samples, electrodes, time) with {electrodes} electrodes and whole "
            f"seconds, {PATCH_SAMPLES} to {MAX_PATCHES * PATCH_SAMPLES} samples"
        )
    for key in ("recording", "subject"):
        if h5py.check_string_dtype(group[key].dtype) is None or group[key].shape != shape[:1]:
            raise InputError(f"{where}: `{key}` must hold one text for each of the {shape[0]} samples")
    return int(samples) // PATCH_SAMPLES


class LabelledWindows(Dataset):
    """One split of a labelled file, by key (epoch, 0, sample)."""

    def __init__(self, file: LabelledFile, split: str, *, table_rows: int = 129) -> None:
        """split: train, val or test. Raises InputError for labels outside the classes."""
        self.path, self.split = file.path, split
        self.channels = torch.tensor(embedding_rows(file.montage, table_rows=table_rows, where=str(file.path)))
        group = open_file(file.path)[split]
        self.labels = group["label"][()]
        self.recordings = [str(name) for name in group["recording"].asstr()[()]]
        self.subjects = [str(name) for name in group["subject"].asstr()[()]]
        if len(self.labels) != len(group["eeg"]):
            raise InputError(f"{file.path}, group {split}: {len(self.labels)} labels for {len(group['eeg'])} samples")
        self._check_labels(file)

    def _check_labels(self, file: LabelledFile) -> None:
        where = f"{file.path}, group {self.split}"
        if file.task == "regression":
            self.labels = self.labels.astype(np.float32).reshape(len(self.labels), -1)
            if self.labels.shape[1] != file.outputs or not np.isfinite(self.labels).all():
                raise InputError(f"{where}: targets must be {file.outputs} finite numbers a sample")
            return
        if self.labels.ndim != 1:
            raise InputError(f"{where}: labels of shape {self.labels.shape}; expected one whole number a sample")
        known = np.isin(self.labels, np.arange(len(file.classes)))  # NaN and halves are none of them either
        outside = np.unique(self.labels[~known])
        if len(outside):
            raise InputError(
                f"{where}: label {outside[0]} is outside the {len(file.classes)} classes (allowed: 0 to "
                f"{len(file.classes) - 1}): correct the file or its attribute `classes`"
            )
        self.labels = self.labels.astype(np.int64)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, Tensor, Any, int]:
        """EEG (N, A*T) float32 in uV, channels (N + 1,), label, index."""
        index = key[2]
        try:
            eeg = open_file(self.path)[self.split]["eeg"][index].astype(np.float32)
        except OSError as error:
            raise InputError(
                f"{self.path}, group {self.split}, sample {index}: cannot be read ({error}): make the file again"
            ) from error
        return eeg, self.channels, self.labels[index], index


def collate_labelled(samples: Sequence[tuple[np.ndarray, Tensor, Any, int]]) -> LabelledBatch:
    """Make a labelled batch."""
    labels = torch.from_numpy(np.stack([s[2] for s in samples]))
    return LabelledBatch(
        to_units([s[0] for s in samples]), samples[0][1], labels, torch.tensor([s[3] for s in samples])
    )


def build_labelled_loaders(args: argparse.Namespace, run: Run, file: LabelledFile, *, accumulation: int = 1) -> Loaders:
    """Loaders of stage 3. Raises InputError for a file without training samples."""
    splits = {split: LabelledWindows(file, split, table_rows=args.num_electrodes + 1) for split in file.splits}
    if not len(splits.get("train", ())):
        raise InputError(f"{file.path} has no samples in its group train: make it again with a training split")
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
