"""The two kinds of HDF5 files the makers write: pre-training (shards in a folder) and labelled (shards, or one file).

Format: README, "Data files". A shard holds the recordings of one job, is written by one process aside and renamed when
it is whole, so nothing half-written ever has a data file's name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from dataset_maker.pipeline import Prepared, Store
from eeg_data.labelled_files import SPLITS, TASKS
from eeg_data.pretraining_files import SAMPLING_RATE
from eeg_data.quality import Quality
from errors import InputError
from files import check_writable, code_version, written_aside


def made_attribute(made: Mapping[str, Any]) -> str:
    """Return the root attribute `made`: how a file came about, as JSON."""
    return json.dumps({**made, "mne_version": version("mne"), "code_version": code_version()})


def refuse_existing(path: Path) -> None:
    """Raise InputError if there is such a file: other recordings may be in it, which would be lost."""
    if path.exists():
        raise InputError(f"{path} exists already: delete it, or name another --output")


class _Aside:
    """Files that get their names when the `with` ends well, and are removed when it does not."""

    def __init__(self) -> None:
        self._stacks: dict[Path, ExitStack] = {}

    def __enter__(self) -> Any:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close and name the files, or remove them after an error."""
        with ExitStack() as all_files:
            for stack in self._stacks.values():
                all_files.push(stack)
            if error:
                raise error

    def _new_file(self, path: Path, made: Mapping[str, Any]) -> h5py.File:
        stack = self._stacks[path] = ExitStack()
        part = stack.enter_context(written_aside(path))
        file = stack.enter_context(h5py.File(part, "w"))
        file.attrs["made"] = made_attribute(made)
        return file

    def _drop_file(self, path: Path) -> None:
        nothing = InputError(f"{path}: nothing in it")
        with suppress(InputError), self._stacks.pop(path):
            raise nothing


class PretrainingShards(_Aside):
    """The recordings of one job as pre-training HDF5, one file per montage.

    A group per recording holds the dataset `eeg` (N, time) in uV, chunks (N, 200), with the attributes chOrder, rsFreq,
    lFreq (0: no high-pass), hFreq (half the rate: no low-pass), notch (0: none), sourceFreq, notes and quality, and
    beside it `valid` (seconds,) bool.
    """

    def __init__(self, folder: Path, job: str, *, made: Mapping[str, Any], dtype: str = "float32") -> None:
        """folder: where the files go; job: part of their names; made: what the root attribute of this name says."""
        super().__init__()
        check_writable(folder)
        self.folder, self.job, self.made, self.dtype = folder, job, made, dtype
        self.files: dict[str, h5py.File] = {}  # name -> open file

    def _file(self, electrodes: Sequence[str], rate: float) -> h5py.File:
        """Return the open file of a montage (electrodes in order, sampling rate)."""
        montage = hashlib.sha256(f"{' '.join(electrodes)} @ {rate:g}".encode()).hexdigest()[:6]
        name = f"{len(electrodes)}ch-{montage}-{self.job}.hdf5"
        if name not in self.files:
            self.files[name] = self._new_file(self.folder / name, self.made)
        return self.files[name]

    def store(self, recording: str) -> Store:
        """Return what gives the dataset for a recording's signal."""

        def dataset(electrodes: Sequence[str], rate: float, length: int) -> h5py.Dataset:
            group = self._file(electrodes, rate).create_group(recording)
            shape, chunk = (len(electrodes), length), (len(electrodes), min(SAMPLING_RATE, length))  # a patch
            return group.create_dataset("eeg", shape, dtype=self.dtype, chunks=chunk)

        return dataset

    def finish(self, prepared: Prepared) -> str:
        """Describe a recording whose signal is written; returns its file's name."""
        eeg, report = prepared.eeg, prepared.report
        eeg.attrs["chOrder"] = list(prepared.electrodes)
        eeg.attrs["rsFreq"] = prepared.rate
        eeg.attrs["lFreq"] = report["l_freq"] or 0.0
        eeg.attrs["hFreq"] = report["h_freq"] or min(prepared.rate, report["source_rate"]) / 2
        eeg.attrs["notch"] = report["notch"] or 0.0
        eeg.attrs["sourceFreq"] = report["source_rate"]
        eeg.attrs["quality"] = prepared.quality.to_json()
        if report["notes"]:
            eeg.attrs["notes"] = "; ".join(report["notes"])
        eeg.parent.create_dataset("valid", data=prepared.quality.valid)
        return next(name for name, file in self.files.items() if file == eeg.file)

    def discard(self, recording: str) -> None:
        """Take back what was written of a recording that failed."""
        for name, file in list(self.files.items()):
            if recording in file:
                del file[recording]
            if not len(file):  # a montage that only this recording had
                self.files.pop(name)
                self._drop_file(self.folder / name)


class LabelledShard(_Aside):
    """The samples of one job's recordings as labelled HDF5, appended recording by recording.

    A group per split holds `eeg` (samples, N, time) in uV, one sample per chunk, `label` (int64, or float32
    (samples, outputs) for regression), `recording` and `subject` (text per sample) and `valid` (samples, seconds) bool;
    its attributes `quality` and `notes` (stages that a source was too slow for -> recordings) tell of the recordings
    behind it. A split without samples has no group.
    """

    def __init__(self, path: Path, *, description: Mapping[str, Any], made: Mapping[str, Any], dtype: str) -> None:
        """description: name, task, classes (what labels 0, 1, ... or the outputs mean), electrodes, rate."""
        super().__init__()
        assert description["task"] in TASKS, description
        assert description["task"] != "binary" or len(description["classes"]) == 2, description
        check_writable(path.parent)
        self.description, self.dtype = description, dtype
        self.counts: Counter[str] = Counter()  # split -> samples
        self._qualities: dict[str, Quality] = {}
        self._file = self._new_file(path, made)
        self._file.attrs.update(root_attributes(description))

    def append(
        self, split: str, eeg: np.ndarray, label: Any, *, recording: str, subject: str, valid: np.ndarray | None = None
    ) -> None:
        """Write samples of one recording. eeg: (samples, N, time) uV; label: (samples,) or (samples, outputs).

        Raises InputError for labels outside the classes and for samples of another shape than the file's.
        """
        assert split in SPLITS, split
        columns = {"eeg": np.asarray(eeg, self.dtype), "label": self._checked(label, len(eeg), recording)}
        for key, word in (("recording", recording), ("subject", subject)):
            columns[key] = np.full(len(eeg), word, dtype=object)
        seconds = max(1, int(eeg.shape[2] // self.description["rate"]))
        columns["valid"] = np.ones((len(eeg), seconds), bool) if valid is None else valid
        group = self._file.require_group(split)
        for key, values in columns.items():
            if key not in group:
                create_column(group, key, values.shape[1:], values.dtype)
            if group[key].shape[1:] != values.shape[1:]:
                raise InputError(f"{recording}: {key} {values.shape[1:]}, in this file {group[key].shape[1:]} a sample")
            group[key].resize(self.counts[split] + len(values), axis=0)
            group[key][self.counts[split] :] = values
        self.counts[split] += len(eeg)

    def _checked(self, label: Any, samples: int, recording: str) -> np.ndarray:
        if self.description["task"] == "regression":
            return np.asarray(label, dtype="float32").reshape(samples, -1)  # (samples, outputs)
        label = np.asarray(label, dtype="int64")  # (samples,)
        classes = len(self.description["classes"])
        if wrong := sorted(set(label.tolist()) - set(range(classes))):
            raise InputError(f"{recording}: labels {wrong}, but the {classes} classes are 0, 1, ...")
        return label

    def describe(self, split: str, quality: Quality, notes: Sequence[str] = ()) -> None:
        """Note what a recording with samples in this split is like, and what could not be done to it."""
        self._qualities[split] = self._qualities[split] + quality if split in self._qualities else quality
        self._file[split].attrs["quality"] = self._qualities[split].to_json()
        count = Counter(json.loads(self._file[split].attrs.get("notes", "{}"))) + Counter(notes)
        self._file[split].attrs["notes"] = json.dumps(count, sort_keys=True)

    def roll_back(self, counts: Mapping[str, int]) -> None:
        """Take back what came after these counts of samples."""
        for split, group in list(self._file.items()):
            self.counts[split] = counts.get(split, 0)
            if not self.counts[split]:
                del self._file[split]
                continue
            for column in group.values():
                column.resize(self.counts[split], axis=0)


def root_attributes(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the root attributes of a labelled file from `name`, `task`, `classes`, `electrodes`, `rate`."""
    text = {"name": description["name"], "task": description["task"], "classes": list(description["classes"])}
    return text | {"chOrder": list(description["electrodes"]), "rsFreq": float(description["rate"])}


def create_column(group: h5py.Group, key: str, shape: Sequence[int], dtype: Any, samples: int = 0) -> h5py.Dataset:
    """Make one of the datasets of a split, for values of this shape a sample; it can grow."""
    kind = h5py.string_dtype() if np.dtype(dtype).hasobject else dtype
    chunks = (1 if key == "eeg" else 1024, *shape)
    return group.create_dataset(key, (samples, *shape), dtype=kind, maxshape=(None, *shape), chunks=chunks)


def join_shards(
    shards: Sequence[Path], path: Path, *, description: Mapping[str, Any], made: Mapping[str, Any], totals: Mapping
) -> None:
    """Write one labelled file with the samples of all shards in order. totals: split -> samples."""
    with written_aside(path) as part, h5py.File(part, "w") as file:
        file.attrs["made"] = made_attribute(made)
        file.attrs.update(root_attributes(description))
        at: Counter[str] = Counter()
        qualities: dict[str, Quality] = {}
        notes: dict[str, Counter[str]] = {}
        for shard_path in shards:
            with h5py.File(shard_path) as shard:
                for split, source in shard.items():
                    _copy(source, file.require_group(split), at[split], totals[split])
                    at[split] += len(source["label"])
                    quality = Quality.from_json(source.attrs["quality"], np.ones(0, bool))
                    qualities[split] = qualities[split] + quality if split in qualities else quality
                    notes.setdefault(split, Counter()).update(json.loads(source.attrs["notes"]))
        for split, quality in qualities.items():
            file[split].attrs["quality"] = quality.to_json()
            file[split].attrs["notes"] = json.dumps(notes[split], sort_keys=True)
        assert at == Counter(totals), (at, totals)


def _copy(source: h5py.Group, target: h5py.Group, at: int, total: int, samples: int = 256) -> None:
    """Copy a split of a shard to its place, `samples` at a time."""
    for key, column in source.items():
        if key not in target:
            create_column(target, key, column.shape[1:], column.dtype, total)
        for start in range(0, len(column), samples):
            block = column[start : start + samples]
            target[key][at + start : at + start + len(block)] = block
