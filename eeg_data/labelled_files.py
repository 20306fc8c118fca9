"""What a labelled HDF5 file, or a folder of its shards, holds: task, classes, samples, valid seconds.

A file describes itself (task, classes, montage), so that a new data set needs no entry anywhere. Works without torch;
`labelled.py` makes batches of it.
"""

import itertools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eeg_data.hdf5 import (
    attribute,
    check_stored,
    files_below,
    open_dataset,
    open_file,
    read_signal,
    read_window,
    readable,
    texts,
)
from eeg_data.pretraining_files import GLANCES, MAX_SECONDS, SAMPLING_RATE, check_rate, read_valid
from eeg_data.quality import Quality, SignalScan, compared
from electrodes import canonical_name
from errors import InputError, first_few

TASKS = ("binary", "multiclass", "regression")
SPLITS = ("train", "val", "test")
# Known names of labelled sets and their files in --data_dir; a folder of shards has the name without the suffix. Any
# other file or folder in the same format goes by its path.
DATASETS = {name: f"{name}.hdf5" for name in ("TUAB", "TUEV", "MentalArithmetic", "SEED-V")}
COLUMNS = {"eeg": "fiu", "label": "fiub", "recording": "OS", "subject": "OS"}  # data sets of a split, kinds of types
TOGETHER = 16  # samples that a scan reads at once


@dataclass(frozen=True)
class LabelledFile:
    """Description of a labelled file, or of all shards of a folder."""

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
        """Number of outputs of a head: one for two classes."""
        return 1 if self.task == "binary" else len(self.classes)

    @property
    def slug(self) -> str:
        """Name in log keys, file names and state dicts of a run with several data sets."""
        return slug_of(self.name)

    @property
    def description(self) -> dict[str, Any]:
        """The training set as a classifier's checkpoint describes it, in plain values."""
        return {
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "electrodes": [canonical_name(name) or name for name in self.montage],
            "window_seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one split without their EEG, shard after shard: n of them."""

    file: LabelledFile
    split: str
    shards: dict[Path, int]  # file -> its first sample's number in the split
    index: np.ndarray  # (n,): their numbers in the split
    labels: np.ndarray  # (n,) int64 or (n, outputs) float32
    recordings: np.ndarray  # (n,) of texts
    subjects: np.ndarray
    amplitudes: np.ndarray  # (n,) float32: median |uV| of the sample's recording, NaN where a shard does not say
    valid: np.ndarray  # (n, seconds) bool; true where a shard does not say
    unmarked: set[Path]  # shards that do not say which seconds are valid
    scans: list[Quality]  # of the recordings behind the samples, of the shards that have one
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def usable(self) -> "Samples":
        """Return the samples without an invalid second."""
        kept = np.flatnonzero(self.valid.all(axis=1))
        keys = ("index", "labels", "recordings", "subjects", "amplitudes", "valid")
        columns: Any = {key: getattr(self, key)[kept] for key in keys}
        return replace(self, **columns, left_out=len(self) - len(kept))

    def place(self, sample: int) -> tuple[Path, int]:
        """Find the file of a sample, and its row in it."""
        number = int(self.index[sample])
        path, first = [(path, first) for path, first in self.shards.items() if first <= number][-1]
        return path, number - first

    def read(self, sample: int) -> np.ndarray:
        """Read a sample, (N, A*T) float32 in uV."""
        path, row = self.place(sample)
        return read_signal(path, f"{self.split}/eeg", row, f"{path}, group {self.split}, sample {row}")

    def read_into(self, out: np.ndarray, sample: int) -> None:
        """Read a sample into `out`, (N, A*T): float32 in units of 100 uV, or float16 in uV."""
        path, row = self.place(sample)
        start = row * out.shape[1]
        read_window(path, f"{self.split}/eeg", row, start, out, lambda: f"{path}, group {self.split}, sample {row}")

    @property
    def half(self) -> bool:
        """Whether all shards hold float16."""
        return all(open_dataset(path, f"{self.split}/eeg").dtype == np.float16 for path in self.shards)

    @property
    def levels(self) -> dict[str, float]:
        """Median |uV| of each recording, where the shards say it."""
        return {name: float(level) for name, level in zip(self.recordings, self.amplitudes, strict=True) if level > 0}

    def quality(self) -> Quality:
        """Return the shards' scans; scan all samples if a shard has none, or does not say which seconds are valid."""
        return self.scanned()[0]

    def scanned(self) -> tuple[Quality, Mapping[str, float | None]]:
        """Return `quality`, and `levels` or those of the scan.

        The samples of a recording are scanned as one signal: its movement decides what is flat.
        """
        if not self.unmarked and len(self.scans) == len(self.shards):
            return Quality.merged(self.scans), self.levels
        scans, end = [], 0
        for name, group in itertools.groupby(self.recordings):
            first, end = end, end + len(list(group))
            scan = SignalScan(self.file.montage, SAMPLING_RATE)
            for start in range(first, end, TOGETHER):
                scan.add(np.concatenate(list(map(self.read, range(start, min(start + TOGETHER, end)))), axis=1))
            scans.append((name, scan.result()))
        whole, levels = compared(scans)
        valid = self.valid.ravel() & whole.valid if self.unmarked else self.valid.ravel()
        return replace(whole, valid=valid), levels

    def glance(self) -> tuple[Quality, Mapping[str, float | None]]:
        """Scan a few samples, each alone, except those that cannot be read. Returns what `scanned` does."""
        few = range(0, len(self), max(1, len(self) // GLANCES))

        def scan(sample: int) -> Quality:
            whole = SignalScan(self.file.montage, SAMPLING_RATE)
            with suppress(InputError):
                whole.add(self.read(sample))
            return whole.result()

        return compared((self.recordings[sample], scan(sample)) for sample in few)


def slug_of(name: str) -> str:
    """Return a data set's name with letters, digits and hyphens only."""
    return re.sub(r"[\W_]+", "-", name).strip("-") or "unnamed"


def labelled_path(dataset: str, data_dir: Path) -> Path:
    """Return the file or folder of a known name, or the path itself. Raises InputError if it is not there."""
    path = data_dir / DATASETS[dataset] if dataset in DATASETS else Path(dataset)
    if dataset in DATASETS and not path.is_file() and (data_dir / dataset).is_dir():
        path = data_dir / dataset
    if not files_below(path):
        known = f"--dataset takes {', '.join(DATASETS)} (then in --data_dir), or the path of a labelled HDF5 file or of"
        raise InputError(f"no data found at {path}: {known} a folder of its shards; make it with dataset_maker")
    return path


def is_labelled(path: Path) -> bool:
    """Tell labelled files from pre-training files."""
    with readable(path):
        return "task" in open_file(path).attrs


def read_labelled(path: Path) -> LabelledFile:
    """Read the description of a labelled file, or of a folder of shards in the order of their names.

    Raises InputError if it is none, and for shards that do not belong together.
    """
    return joined_shards([_read_shard(file) for file in files_below(path) or [path]], path)


def joined_shards(shards: Sequence[LabelledFile], path: Path) -> LabelledFile:
    """Join the descriptions of shards. Raises InputError if they do not belong together or none has a split."""
    shards = [shard for shard in shards if shard.splits]
    if not shards:
        raise InputError(
            f"{path} is no labelled file: it has none of the groups train, val, test; make it with dataset_maker"
        )
    for shard in shards[1:]:
        for key in ("name", "task", "classes", "montage", "seconds"):
            if getattr(shard, key) != getattr(shards[0], key):
                raise InputError(
                    f"{shards[0].path} and {shard.path} differ in their {key}: the files of a folder must be shards of "
                    "one set; give the path of one of them, or keep sets in separate folders"
                )
    splits = tuple(split for split in SPLITS if any(split in shard.splits for shard in shards))
    return replace(shards[0], path=path, splits=splits, shards=tuple(shard.path for shard in shards))


def _read_shard(path: Path) -> LabelledFile:
    """Read the description of one file; without any split its seconds are 0."""
    file, where = open_file(path), str(path)
    with readable(path):
        (task, *_), (name, *_) = texts(attribute("task", where, file)), texts(file.attrs.get("name", path.stem))
        classes, montage = (texts(attribute(key, where, file)) for key in ("classes", "chOrder"))
        check_rate(where, file)
        splits = tuple(split for split in SPLITS if split in list(file))  # `in file` would overlook a broken link
        seconds = {_check_split(file[split], f"{path}, group {split}", len(montage)) for split in splits}
    refuse(where, f"task is {task[:20]!r}; allowed: {', '.join(TASKS)}", task not in TASKS)
    refuse(where, f"{len(classes)} classes; a binary task has two", task == "binary" and len(classes) != 2)
    refuse(where, f"windows of {sorted(seconds)} s; all splits must have the same", len(seconds) > 1)
    return LabelledFile(path, name, task, classes, montage, splits, max(seconds, default=0), (path,))


def refuse(where: str, what: str, wrong: bool) -> None:
    """Raise InputError if something is wrong."""
    if wrong:
        raise InputError(f"{where}: {what}: make it again with dataset_maker")


def _check_split(group: h5py.Group, where: str, electrodes: int) -> int:
    """Return a split's window in seconds. Raises InputError if the split is not of the format."""
    shape: tuple[int, ...] = getattr(group.get("eeg"), "shape", None) or ()
    rows, samples = shape[1:] if len(shape) == 3 else (0, 0)
    expected = f"(samples, {electrodes}, time) with whole seconds, 1 to {MAX_SECONDS} at {SAMPLING_RATE} Hz"
    fits = rows == electrodes and samples % SAMPLING_RATE == 0 and 0 < samples <= MAX_SECONDS * SAMPLING_RATE
    refuse(where, f"`eeg` is {shape or 'missing'}; expected {expected}", not fits)
    for key, kinds in COLUMNS.items():
        column = group.get(key)
        stored, kind = getattr(column, "shape", None) or (), getattr(column, "dtype", np.dtype("V")).kind
        wanted = f"{shape[0]} {'texts' if kinds == 'OS' else 'numbers'}, one a sample"
        refuse(where, f"`{key}` must be a data set of {wanted}", kind not in kinds or stored[:1] != shape[:1])
        check_stored(column, where)
    return int(samples) // SAMPLING_RATE


def read_samples(file: LabelledFile, split: str) -> Samples:
    """Read a split, shard by shard. Raises InputError for labels outside the classes and damaged files."""
    columns: list[tuple[np.ndarray, ...]] = []  # of each shard: labels, recordings, subjects, amplitudes, valid
    shards, unmarked, scans = {}, set(), []
    samples = 0
    for path in file.shards:
        opened, where = open_file(path), f"{path}, group {split}"
        with readable(where):
            if split not in opened:
                continue
            group = opened[split]
            labels = _read_labels(group["label"], file, where)
            # Equal texts are one object: memory grows with recordings, but for a pointer a sample.
            names = [[sys.intern(str(name)) for name in group[key].asstr()[()]] for key in ("recording", "subject")]
            valid, scan = read_valid(group, where, (len(labels), file.seconds)), group.attrs.get("quality")
            amplitudes = np.full(len(labels), np.nan, np.float32)
            if getattr(group.get("amplitude"), "shape", None) == amplitudes.shape:
                amplitudes[:] = group["amplitude"][()]
        if valid is None:
            unmarked.add(path)
            valid = np.ones((len(labels), file.seconds), bool)
        elif scan is not None:
            scans.append(Quality.from_json(scan, valid.ravel(), where))
        columns.append((labels, *(np.array(column, dtype=object) for column in names), amplitudes, valid))
        shards[path], samples = samples, samples + len(labels)
    labels, recordings, subjects, amplitudes, valid = map(np.concatenate, zip(*columns, strict=True))
    index = np.arange(samples)
    return Samples(file, split, shards, index, labels, recordings, subjects, amplitudes, valid, unmarked, scans)


def _read_labels(dataset: h5py.Dataset, file: LabelledFile, where: str) -> np.ndarray:
    """Read class numbers (samples,) int64 or targets (samples, outputs) float32. Raises InputError for any others."""
    labels = dataset[()]
    if file.task == "regression":
        labels = labels.astype(np.float32)
        right = math.prod(labels.shape[1:]) == file.outputs and np.isfinite(labels).all()
        refuse(where, f"targets must be {file.outputs} finite numbers a sample", not right)
        return labels.reshape(-1, file.outputs)
    refuse(where, f"labels of shape {labels.shape}; expected one whole number a sample", labels.ndim != 1)
    outside = labels[~np.isin(labels, np.arange(len(file.classes)))]  # NaN and halves, too
    if len(outside):
        raise InputError(
            f"{where}: label {outside[0]} is outside the {len(file.classes)} classes (allowed: 0 to "
            f"{len(file.classes) - 1}): correct the file or its attribute `classes`"
        )
    return labels.astype(np.int64)


def split_warnings(splits: Mapping[str, Samples]) -> list[str]:
    """Return warnings about subjects that are in several splits, and about classes that a split lacks."""
    texts = []
    subjects = {split: set(samples.subjects) for split, samples in splits.items()}
    sides = {name: [split for split in subjects if name in subjects[split]] for name in set().union(*subjects.values())}
    if both := [f"{name} ({', '.join(own)})" for name, own in sorted(sides.items()) if len(own) > 1]:
        texts.append(f"{len(both)} subject(s) are on more than one side of the splits: {first_few(both)}.")
    for split, samples in splits.items():
        classes = samples.file.classes if len(samples) and samples.file.task != "regression" else ()
        if lacking := [name for number, name in enumerate(classes) if number not in samples.labels]:
            texts.append(f"{split} lacks {len(lacking)} of the {len(classes)} classes: {first_few(lacking)}.")
    return texts
