"""The two kinds of HDF5 files that makers write: pre-training and labelled.

Format: docs/data.md. Every recording first becomes a file, which one process writes; `join` puts several together.
Files are written aside and renamed when they are whole.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dataset_maker.pipeline import Prepared, Store, Windows
from eeg_data.labelled_files import SPLITS, TASKS
from eeg_data.pretraining_files import SAMPLING_RATE
from eeg_data.quality import Quality
from errors import InputError
from files import check_writable, code_version, written_aside

BATCH = 64  # windows that are cut and written at a time
COPIED = 256  # samples that are copied at a time


def made_attribute(made: Mapping[str, Any]) -> str:
    """Return the root attribute `made`: how a file came about, as JSON."""
    return json.dumps({**made, "mne_version": version("mne"), "code_version": code_version()})


def refuse_existing(path: Path) -> None:
    """Raise InputError if there is such a file: other recordings may be in it, which would be lost."""
    if path.exists():
        raise InputError(f"{path} exists already: delete it, or name another --output")


class _Shard(ExitStack):
    """An HDF5 file that gets its name when the `with` ends well, and is removed when it does not.

    made: what the root attribute of this name says. durable: whether the file must survive a power cut.
    """

    def __init__(self, path: Path, *, made: Mapping[str, Any], dtype: str = "float32", durable: bool = True) -> None:
        super().__init__()
        check_writable(path.parent)
        self.dtype = dtype
        self._file = self.enter_context(h5py.File(self.enter_context(written_aside(path, durable=durable)), "w"))
        self._file.attrs["made"] = made_attribute(made)


class PretrainingShard(_Shard):
    """A recording as pre-training HDF5.

    Its group holds `valid` (seconds,) bool and `eeg` (N, time) in uV, chunks (N, 200), with the attributes chOrder,
    rsFreq, lFreq (0: no high-pass), hFreq (half the rate: no low-pass), notch (0: none), sourceFreq, notes, quality.
    """

    def store(self, recording: str) -> Store:
        """Return what gives the dataset for a recording's signal."""

        def dataset(electrodes: Sequence[str], rate: float, length: int) -> h5py.Dataset:
            shape, chunk = (len(electrodes), length), (len(electrodes), min(SAMPLING_RATE, length))  # a patch
            return self._file.create_group(recording).create_dataset("eeg", shape, self.dtype, chunks=chunk)

        return dataset

    def finish(self, prepared: Prepared) -> None:
        """Describe a recording whose signal is written."""
        eeg, report = prepared.eeg, prepared.report
        eeg.attrs["chOrder"], eeg.attrs["rsFreq"] = list(prepared.electrodes), prepared.rate
        eeg.attrs["lFreq"], eeg.attrs["notch"] = report["l_freq"] or 0.0, report["notch"] or 0.0
        eeg.attrs["hFreq"] = report["h_freq"] or min(prepared.rate, report["source_rate"]) / 2
        eeg.attrs["sourceFreq"] = report["source_rate"]
        eeg.attrs["quality"] = prepared.quality.to_json()
        if report["notes"]:
            eeg.attrs["notes"] = "; ".join(report["notes"])
        eeg.parent.create_dataset("valid", data=prepared.quality.valid)


class LabelledShard(_Shard):
    """Labelled samples, appended recording by recording.

    A group for each split holds `eeg` (samples, N, time) in uV, one sample a chunk, `label` (int64, or float32
    (samples, outputs) for regression), `recording` and `subject` (text per sample) and `valid` (samples, seconds) bool.
    Its attributes `quality` and `notes` (stages that a source was too slow for -> recordings) tell of the recordings
    behind it. A split without samples has no group.
    """

    def __init__(self, path: Path, *, description: Mapping[str, Any], **options: Any) -> None:
        """description: name, task, classes (what labels 0, 1, ... or the outputs mean), electrodes, rate."""
        assert description["task"] in TASKS, description
        assert description["task"] != "binary" or len(description["classes"]) == 2, description
        super().__init__(path, **options)
        self.description = description
        self.counts: Counter[str] = Counter()  # split -> samples
        self._file.attrs.update({key: description[key] for key in ("name", "task")})
        self._file.attrs.update(classes=list(description["classes"]), chOrder=list(description["electrodes"]))
        self._file.attrs["rsFreq"] = float(description["rate"])

    def append(
        self, split: str, eeg: np.ndarray, label: Any, *, recording: str, subject: str, valid: np.ndarray | None = None
    ) -> None:
        """Write samples of one recording. eeg: (samples, N, time) uV; label: (samples,) or (samples, outputs).

        Raises InputError for labels outside the classes and for samples of another shape than the file's.
        """
        assert split in SPLITS, split
        seconds = max(1, int(eeg.shape[2] // self.description["rate"]))
        columns = {
            "eeg": np.asarray(eeg, self.dtype),
            "label": self._checked(label, len(eeg), recording),
            "recording": np.full(len(eeg), recording, dtype=object),
            "subject": np.full(len(eeg), subject, dtype=object),
            "valid": np.ones((len(eeg), seconds), bool) if valid is None else valid,
        }
        group = self._file.require_group(split)
        for key, values in columns.items():
            if key in group and group[key].shape[1:] != values.shape[1:]:
                raise InputError(f"{recording}: {key} {values.shape[1:]}, in this file {group[key].shape[1:]} a sample")
            _extend(group, key, values)
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
        """Note the quality of a recording with samples in this split, and what could not be done to it."""
        _add_description(self._file[split], quality, Counter(notes))

    def append_windows(self, prepared: Prepared, windows: Windows, *, task: Mapping[str, Any]) -> dict[str, Any]:
        """Cut the windows of a task's recording and append them. Its `split` holds for windows without one.

        Returns split -> label -> number (label `all` for regression). Raises InputError for other electrodes than the
        data set's.
        """
        order = montage_order(prepared.electrodes, self.description["electrodes"], task["path"])
        recording, subject, split = task["recording"], task["subject"], task.get("split")
        splits = np.asarray(windows.splits if windows.splits is not None else [split] * len(windows.starts))
        labels, starts = np.asarray(windows.labels), np.asarray(windows.starts, dtype=np.int64)
        samples = round(self.description["window"] * prepared.rate)
        inside = (starts >= 0) & (starts + samples <= prepared.length)
        assert self.description["wrap"] or inside.all(), "a window reaches over the end of the signal"
        valid = valid_seconds(prepared, starts, samples)
        counts: dict[str, dict[str, int]] = {}
        for name in dict.fromkeys(splits.tolist()):
            (which,) = np.nonzero(splits == name)
            for batch in np.array_split(which, math.ceil(len(which) / BATCH)):
                eeg = np.stack([cut(prepared, int(start), samples)[order] for start in starts[batch]])
                self.append(name, eeg, labels[batch], recording=recording, subject=subject, valid=valid[batch])
            kinds = ["all"] * len(which) if self.description["task"] == "regression" else labels[which].tolist()
            counts[name] = {str(label): count for label, count in sorted(Counter(kinds).items())}
            self.describe(name, prepared.quality, prepared.report["notes"])
        return counts


def montage_order(given: list[str], wanted: Sequence[str], where: str) -> list[int]:
    """Return the rows of a recording in the data set's order. Raises InputError where the electrodes differ."""
    missing, extra = (", ".join(sorted(set(a) - set(b))) for a, b in ((wanted, given), (given, wanted)))
    if missing or extra:
        differ = [text for text in (missing and f"lacks {missing}", extra and f"has {extra} besides") if text]
        raise InputError(f"{where}: not the electrodes of this data set: {' and '.join(differ)}")
    return [given.index(name) for name in wanted]


def cut(prepared: Prepared, start: int, window: int) -> np.ndarray:
    """Return the window (N, window) that begins at sample `start`, wrapping round the recording's ends."""
    first, stop = start % prepared.length, start % prepared.length + window
    if stop <= prepared.length:
        return prepared.eeg[:, first:stop]
    return np.concatenate([prepared.eeg[:, first:], prepared.eeg[:, : stop - prepared.length]], axis=1)


def valid_seconds(prepared: Prepared, starts: np.ndarray, window: int) -> np.ndarray:
    """Return which seconds of the windows are valid, (windows, seconds): those that touch no invalid one."""
    rate = int(prepared.rate)
    first = (starts[:, None] + rate * np.arange(window // rate)) % prepared.length  # (windows, seconds), samples
    last = first + rate - 1
    touched = (first, np.minimum(last, prepared.length - 1), last % prepared.length)  # the last one where it wraps
    return np.logical_and.reduce([prepared.quality.valid[samples // rate] for samples in touched])


def join(parts: Sequence[Path], path: Path, *, made: Mapping[str, Any] | None = None) -> None:
    """Write one file with the recordings or samples of all parts, in order. made: in place of what the parts say."""
    with h5py.File(path, "w") as file:
        for part in parts:
            with h5py.File(part, "r") as source:
                file.attrs.update(source.attrs)
                for name, group in source.items():
                    if name in SPLITS and "task" in source.attrs:
                        _join_samples(group, file.require_group(name))
                    else:
                        source.copy(name, file)
        if made is not None:
            file.attrs["made"] = made_attribute(made)


def _join_samples(source: h5py.Group, target: h5py.Group) -> None:
    for key, column in source.items():
        for start in range(0, len(column), COPIED):
            _extend(target, key, column[start : start + COPIED])
    _add_description(
        target, Quality.from_json(source.attrs["quality"], np.ones(0, bool)), json.loads(source.attrs["notes"])
    )


def _extend(group: h5py.Group, key: str, values: np.ndarray) -> None:
    """Append values to one of the datasets of a split."""
    if key not in group:
        kind = h5py.string_dtype() if values.dtype.hasobject else values.dtype
        shape, chunks = values.shape[1:], (1 if key == "eeg" else 1024, *values.shape[1:])
        group.create_dataset(key, (0, *shape), kind, maxshape=(None, *shape), chunks=chunks)
    column = group[key]
    column.resize(len(column) + len(values), axis=0)
    column[len(column) - len(values) :] = values


def _add_description(group: h5py.Group, quality: Quality, notes: Mapping[str, int]) -> None:
    """Add a recording's quality and notes to those of a split."""
    if "quality" in group.attrs:
        quality = Quality.merged([Quality.from_json(group.attrs["quality"], np.ones(0, bool)), quality])
    count = Counter(json.loads(group.attrs.get("notes", "{}"))) + Counter(notes)
    group.attrs["quality"], group.attrs["notes"] = quality.to_json(), json.dumps(count, sort_keys=True)
