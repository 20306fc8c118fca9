"""What a labelled HDF5 file, or a folder of its shards, holds: task, classes, samples, valid seconds.

A file describes itself (task, classes, montage), so that a new data set needs no entry anywhere. Without torch, so
that `dataset_maker.inspect_data` can use it; batches are made in `labelled_data.py`.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eeg_data.hdf5 import Attributes, check_size, files_below, open_dataset, open_file, readable
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE, check_valid
from eeg_data.quality import Quality
from electrodes import canonical_name
from errors import InputError

TASKS = ("binary", "multiclass", "regression")
SPLITS = ("train", "val", "test")
# Known names of labelled sets and their files in --data_dir; a folder of shards has the name without the suffix. Any
# other file or folder in the same format goes by its path.
DATASETS = {
    "TUAB": "TUAB.hdf5",
    "TUEV": "TUEV.hdf5",
    "MentalArithmetic": "MentalArithmetic.hdf5",
    "SEED-V": "SEED-V.hdf5",
}
SAME = {
    "name": "the attribute name",
    "task": "the attribute task",
    "classes": "the attribute classes",
    "montage": "the attribute chOrder",
    "seconds": "the length of their windows",
}  # of the shards of one set; they all have SAMPLING_RATE
PUBLISHED = Path(__file__).parents[1] / "dataset_maker" / "published_splits.json"


@dataclass(frozen=True)
class LabelledFile:
    """What a labelled file, or every shard of a folder, says of itself."""

    path: Path  # the file, or the folder of shards
    name: str
    task: str  # binary, multiclass or regression
    classes: tuple[str, ...]  # for regression the names of the outputs
    montage: tuple[str, ...]
    splits: tuple[str, ...]
    seconds: int  # of a window
    shards: tuple[Path, ...]  # files, in the order of their samples

    @property
    def outputs(self) -> int:
        """Outputs of a head: one for two classes."""
        return 1 if self.task == "binary" else len(self.classes)

    @property
    def description(self) -> dict[str, Any]:
        """What the checkpoint of a classifier says of the set that it was trained on, in plain values."""
        return {
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "electrodes": [canonical_name(name) or name for name in self.montage],
            "window_seconds": self.seconds,
        }


@dataclass(frozen=True)
class Samples:
    """One split of one file: everything but the EEG."""

    path: Path
    split: str
    labels: np.ndarray  # (samples,) int64 or (samples, outputs) float32
    recordings: list[str]
    subjects: list[str]
    valid: np.ndarray | None  # (samples, seconds) bool; None: the file does not say
    quality: Quality | None  # of the recordings behind the samples; None: the file does not say

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)


def labelled_path(dataset: str, data_dir: Path) -> Path:
    """File or folder of a known name, or the path itself. Raises InputError if it is not there."""
    path = data_dir / DATASETS[dataset] if dataset in DATASETS else Path(dataset)
    if dataset in DATASETS and not path.is_file() and (data_dir / dataset).is_dir():
        path = data_dir / dataset
    if not path.is_file() and not (path.is_dir() and files_below(path)):
        known = f"--dataset takes {', '.join(DATASETS)} (then in --data_dir), or the path of a labelled HDF5 file or of"
        raise InputError(f"no data found at {path}: {known} a folder of its shards; make it with dataset_maker")
    return path


def read_labelled(path: Path) -> LabelledFile:
    """Description of a labelled file or of a folder of shards, in the order of their names.

    Raises InputError if it is none, and for shards that do not belong together.
    """
    if not path.is_dir():
        return joined_shards([_read_shard(path)], path)
    files = list({realpath(file): file for file in files_below(path)}.values())
    if not files:
        raise InputError(
            f"no data found at {path}: the folder holds no labelled HDF5 files; make it with dataset_maker"
        )
    return joined_shards([_read_shard(file) for file in files], path)


def joined_shards(shards: list[LabelledFile], path: Path) -> LabelledFile:
    """One set of its shards' descriptions. Raises InputError if they do not belong together or none has a split."""
    for shard in shards[1:]:
        for key, attribute in SAME.items():
            one, other = getattr(shards[0], key), getattr(shard, key)
            # A shard without samples does not know how long they are.
            if one != other and not (key == "seconds" and 0 in (one, other)):
                raise InputError(
                    f"{shards[0].path} and {shard.path} differ in {attribute}: the files of a folder must be shards of "
                    "one set; give the path of one of them, or keep sets in folders of their own"
                )
    splits = tuple(split for split in SPLITS if any(split in shard.splits for shard in shards))
    if not splits:
        raise InputError(
            f"{path} is no labelled file: it has none of the groups train, val, test; make it with dataset_maker"
        )
    seconds = max(shard.seconds for shard in shards)
    first = shards[0]
    files = tuple(shard.path for shard in shards)
    return LabelledFile(path, first.name, first.task, first.classes, first.montage, splits, seconds, files)


def _read_shard(path: Path) -> LabelledFile:
    """Description of one file; without any split its seconds are 0."""
    file = open_file(path)
    with readable(path):
        attributes = Attributes(str(path), file)
        for key in ("task", "classes", "chOrder", "rsFreq"):
            if key not in file.attrs:
                raise InputError(
                    f"{path} is no labelled file: root attribute {key} is missing; make it with dataset_maker"
                )
        task, classes, montage = attributes.text("task"), attributes.names("classes"), attributes.names("chOrder")
        if task not in TASKS:
            raise InputError(f"{path}: task is {task[:20]!r}; allowed: {', '.join(TASKS)}")
        if (rate := attributes.number("rsFreq")) != SAMPLING_RATE:
            raise InputError(f"{path}: sampled at {rate:g} Hz; the models take {SAMPLING_RATE} Hz: make it again")
        if (task == "binary" and len(classes) != 2) or not classes:
            raise InputError(f"{path}: {len(classes)} classes for a {task} task; a binary one has two")
        splits = tuple(split for split in SPLITS if split in file)
        seconds = {_check_split(file, path, split, len(montage)) for split in splits}
        if len(seconds) > 1:
            raise InputError(f"{path}: windows of {sorted(seconds)} s in one file; all splits must have the same")
        name = attributes.text("name") if "name" in file.attrs else path.stem
    return LabelledFile(path, name, task, classes, montage, splits, max(seconds, default=0), (path,))


def _check_split(file: h5py.File, path: Path, split: str, electrodes: int) -> int:
    """Return a split's window in seconds. Raises InputError if the split is not of the format."""
    where, group = f"{path}, group {split}", file[split]
    needed = ("eeg", "label", "recording", "subject")
    if not isinstance(group, h5py.Group) or not all(isinstance(group.get(key), h5py.Dataset) for key in needed):
        raise InputError(f"{where}: needs eeg, label, recording and subject; make it with dataset_maker")
    eeg = group["eeg"]
    shape: tuple[int, ...] = eeg.shape or ()
    rows, samples = shape[1:] if len(shape) == 3 else (0, 0)
    if rows != electrodes or samples % SAMPLING_RATE or not 0 < samples <= MAX_SECONDS * SAMPLING_RATE:
        raise InputError(
            f"{where}: `eeg` is {shape}; expected (samples, electrodes, time) with {electrodes} electrodes and whole "
            f"seconds, {SAMPLING_RATE} to {MAX_SECONDS * SAMPLING_RATE} samples"
        )
    for key, kinds in (("eeg", "fiu"), ("label", "fiub")):
        if group[key].dtype.kind not in kinds:
            raise InputError(f"{where}: `{key}` holds no numbers; make it with dataset_maker")
    for key in ("recording", "subject"):
        if h5py.check_string_dtype(group[key].dtype) is None or group[key].shape != shape[:1]:
            raise InputError(f"{where}: `{key}` must hold one text for each of the {shape[0]} samples")
    if (labels := (group["label"].shape or (0,))[0]) != shape[0]:
        raise InputError(f"{where}: {labels} labels for {shape[0]} samples")
    for key in needed:
        check_size(group[key], f"{where}, `{key}`")
    if "valid" in group:
        check_valid(group["valid"], where, (shape[0], samples // SAMPLING_RATE), "one value for each second of each")
    return int(samples) // SAMPLING_RATE


def read_samples(file: LabelledFile, split: str) -> list[Samples]:
    """A split's samples, shard by shard. Raises InputError for labels outside the classes and damaged files."""
    parts = []
    for path in file.shards:
        opened, where = open_file(path), f"{path}, group {split}"
        with readable(where):
            if split not in opened:
                continue
            group = opened[split]
            labels = _read_labels(group["label"], file, where)
            recordings, subjects = (_shared(group[key].asstr()[()]) for key in ("recording", "subject"))
            valid = group["valid"][()].astype(bool) if "valid" in group else None
            text = Attributes(where, group).get("quality")
        try:
            quality = None if text is None or valid is None else Quality.from_json(text, valid.ravel())
        except InputError as error:
            raise InputError(f"{where}: {error}: make the file again") from None
        parts.append(Samples(path, split, labels, recordings, subjects, valid, quality))
    return parts


def _shared(texts: np.ndarray) -> list[str]:
    """Texts of which equal ones are one object: memory grows with recordings, but for a pointer a sample."""
    each: dict[str, str] = {}
    return [each.setdefault(text, text) for text in map(str, texts)]


def _read_labels(dataset: h5py.Dataset, file: LabelledFile, where: str) -> np.ndarray:
    """Class numbers (samples,) int64 or targets (samples, outputs) float32. Raises InputError for any others."""
    shape = dataset.shape
    if file.task == "regression":
        labels = dataset[()].astype(np.float32) if math.prod(shape[1:]) == file.outputs else np.array(np.nan)
        if not np.isfinite(labels).all():
            raise InputError(f"{where}: targets must be {file.outputs} finite numbers a sample")
        return labels.reshape(shape[0], file.outputs)
    if len(shape) != 1:
        raise InputError(f"{where}: labels of shape {shape}; expected one whole number a sample")
    labels = dataset[()]
    known = np.isin(labels, np.arange(len(file.classes)))  # NaN and halves are none of them either
    outside = np.unique(labels[~known])
    if len(outside):
        raise InputError(
            f"{where}: label {outside[0]} is outside the {len(file.classes)} classes (allowed: 0 to "
            f"{len(file.classes) - 1}): correct the file or its attribute `classes`"
        )
    return labels.astype(np.int64)


class UsableSamples:
    """The samples of a split without those that hold an invalid second, shard after shard: n of them."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        """parts: all of the split; one that does not know its valid seconds keeps every sample."""
        usable = [np.ones(len(part), bool) if part.valid is None else part.valid.all(axis=1) for part in parts]
        self._files, self._ends = [part.path for part in parts], np.cumsum([len(part) for part in parts])
        self.samples = np.flatnonzero(np.concatenate(usable))  # (n,): which ones of the split they are
        self.left_out = int(self._ends[-1]) - len(self.samples)
        self.labels = np.concatenate([part.labels for part in parts])[self.samples]  # (n,) or (n, outputs)
        recordings = list(itertools.chain.from_iterable(part.recordings for part in parts))
        subjects = list(itertools.chain.from_iterable(part.subjects for part in parts))
        self.recordings = [recordings[i] for i in self.samples]
        self.subjects = [subjects[i] for i in self.samples]

    def __len__(self) -> int:
        """Number of samples, n."""
        return len(self.labels)

    def place(self, index: int) -> tuple[Path, int]:
        """File of a sample, and its row in it. index: among the usable ones."""
        sample = int(self.samples[index])
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return self._files[shard], sample - (int(self._ends[shard - 1]) if shard else 0)


def read_eeg(path: Path, split: str, first: int, end: int | None = None) -> np.ndarray:
    """One sample of a file, (N, A*T) float32 in uV, or with `end` those from `first` on, (samples, N, A*T)."""
    with readable(lambda: f"{path}, group {split}, sample {first}"), np.errstate(over="ignore"):
        eeg = open_dataset(path, f"{split}/eeg")[first if end is None else slice(first, end)]
        return eeg.astype(np.float32, copy=False)


def published_sizes() -> dict[str, list[int]]:
    """Samples of train, val and test of the published splits, by name and version."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["sizes"]
