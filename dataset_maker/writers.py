"""The two kinds of HDF5 files that makers write: pre-training and labelled.

Format: docs/data.md. Every recording first becomes a file, which one process writes; `join` puts several together.
Files are written aside and renamed when they are whole.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dataset_maker import marks
from dataset_maker.pipeline import Prepared, Store
from eeg_data.labelled_files import SPLITS
from eeg_data.pretraining_files import SAMPLING_RATE
from eeg_data.quality import Quality
from errors import InputError
from files import check_writable, code_version, written_aside

OTHER_ELECTRODES = "not the electrodes of this data set"  # why a recording of a labelled set is left out
BATCH = 64  # windows that are cut and written at a time
COPIED = 256  # samples that are copied at a time


@dataclass(frozen=True)
class DataSet:
    """What a labelled data set is, whatever its recordings."""

    name: str
    classes: Sequence[str]  # of a regression the names of the targets
    window: int  # s
    electrodes: Sequence[str] | None = None  # every recording has exactly these; None: those of the first
    drop: Sequence[str] = ()  # channels to leave out in addition to --drop
    wrap: bool = False  # whether windows may reach round a recording's ends
    regression: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)  # what the file says about its source and split

    @property
    def task(self) -> str:
        """The task as files name it."""
        return "regression" if self.regression else "binary" if len(self.classes) == 2 else "multiclass"


class Windows(NamedTuple):
    """Where the samples of a labelled recording lie."""

    starts: Any  # (n,) first samples at the rate of the data set
    labels: Any  # (n,) class numbers, or (n, outputs) targets
    splits: Sequence[str] | None = None  # of each window; None: the split of the task
    notes: Mapping[str, int] = {}  # what was left out or is worth knowing -> how often


def consecutive_windows(prepared: Prepared, seconds: int, label: int) -> Windows:
    """Return windows one behind the other, all of one class; what is left at the recording's end is not used."""
    samples = round(seconds * prepared.rate)
    starts = np.arange(prepared.length // samples, dtype=np.int64) * samples
    notes = {} if len(starts) else {f"recordings shorter than a window of {seconds} s": 1}
    return Windows(starts, np.full(len(starts), label), notes=notes)


def windows_at(
    prepared: Prepared, seconds: int, trials: Sequence[tuple[float, Any]], *, where: str, expected: int | None = None
) -> Windows:
    """Return a window for each trial, its start (s) and its label; those beyond the ends are left out and counted.

    expected: how many trials the recording `where` should have; another number is a warning.
    """
    if expected not in (None, len(trials)):
        prepared.report["warnings"].append(f"{where}: {len(trials)} trials, expected are {expected}")
    starts = np.array([marks.first_sample(time, prepared.rate) for time, _ in trials], dtype=np.int64)
    inside = (starts >= 0) & (starts + round(seconds * prepared.rate) <= prepared.length)
    notes = {} if inside.all() else {"trials that reach beyond their recording, left out": int((~inside).sum())}
    return Windows(starts[inside], np.array([label for _, label in trials])[inside], notes=notes)


def unbroken(windows: Windows, prepared: Prepared, seconds: int) -> Windows:
    """Leave out and count the windows that span a break."""
    starts, samples = np.asarray(windows.starts, dtype=np.int64), round(seconds * prepared.rate)
    cuts = [marks.first_sample(time, prepared.rate) for time in marks.breaks(prepared.stretches)]
    kept = np.ones(len(starts), bool)
    for cut in cuts:
        inside = (cut - starts) % prepared.length  # windows may wrap round the recording's ends
        kept &= (inside == 0) | (inside >= samples)
    if kept.all():
        return windows
    splits = windows.splits and [split for split, keep in zip(windows.splits, kept.tolist(), strict=True) if keep]
    notes = {**windows.notes, "windows across a break, left out": int((~kept).sum())}
    return Windows(starts[kept], np.asarray(windows.labels)[kept], splits, notes)


def made_attribute(made: Mapping[str, Any]) -> str:
    """Return the root attribute `made`: how a file came about, as JSON."""
    return json.dumps({**made, "mne_version": version("mne"), "code_version": code_version()})


def refuse_existing(path: Path) -> None:
    """Raise InputError if there is such a file or folder: other recordings may be in it, which would be lost."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    if path.exists():
        raise InputError(f"{path} exists already: delete it, or name another file")


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
        eeg.parent.create_dataset("valid", data=prepared.unbroken)


class LabelledShard(_Shard):
    """Samples of a labelled data set at 200 Hz, appended recording by recording.

    A group for each split holds `eeg` (samples, N, time) in uV, one sample a chunk, `label` (int64, or float32
    (samples, outputs) for regression), `recording` and `subject` (text per sample), `amplitude` (median |uV| of the
    sample's recording, float32; NaN: unknown) and `valid` (samples, seconds) bool.
    Its attributes `quality` and `notes` (stages that a source was too slow for -> recordings) describe the recordings.
    A split without samples has no group.
    """

    def __init__(self, path: Path, data_set: DataSet, **options: Any) -> None:
        super().__init__(path, **options)
        self.data_set = data_set
        self._file.attrs.update(name=data_set.name, task=data_set.task, classes=list(data_set.classes))
        self._file.attrs.update(chOrder=list(data_set.electrodes or ()), rsFreq=float(SAMPLING_RATE))

    def append(
        self,
        split: str,
        eeg: np.ndarray,
        label: Any,
        *,
        recording: str,
        subject: str,
        valid: np.ndarray,
        amplitude: float | None = None,
    ) -> None:
        """Write samples of one recording.

        eeg: (samples, N, time) uV; label: (samples,) or (samples, outputs); valid: (samples, seconds) bool; amplitude:
        median |uV| of the recording. Raises InputError for labels outside the classes.
        """
        assert split in SPLITS, split
        label, classes = np.asarray(label, "float32" if self.data_set.regression else "int64"), self.data_set.classes
        if not self.data_set.regression and not np.isin(label, range(len(classes))).all():
            raise InputError(f"{recording}: labels {sorted(set(label.tolist()))}, but classes 0 to {len(classes) - 1}")
        columns = {
            "eeg": np.asarray(eeg, self.dtype),
            "label": label,
            "recording": np.full(len(eeg), recording, dtype=object),
            "subject": np.full(len(eeg), subject, dtype=object),
            "amplitude": np.full(len(eeg), amplitude, dtype=np.float32),
            "valid": valid,
        }
        group = self._file.require_group(split)
        for key, values in columns.items():
            _extend(group, key, values)

    def append_windows(self, prepared: Prepared, windows: Windows, *, task: Mapping[str, Any]) -> dict[str, Any]:
        """Cut the windows of a task's recording and append them. Its `split` holds for windows without one.

        Returns split -> label -> number (label `all` for regression). Raises InputError for other electrodes than the
        data set's.
        """
        order = montage_order(prepared.electrodes, self.data_set.electrodes or (), task["path"])
        splits = np.asarray(windows.splits if windows.splits is not None else [task["split"]] * len(windows.starts))
        labels, starts = np.asarray(windows.labels), np.asarray(windows.starts, dtype=np.int64)
        samples = round(self.data_set.window * prepared.rate)
        inside = (starts >= 0) & (starts + samples <= prepared.length)
        assert self.data_set.wrap or inside.all(), "a window reaches over the end of the signal"
        valid = valid_seconds(prepared, starts, samples)
        counts: dict[str, dict[str, int]] = {}
        for split in dict.fromkeys(splits.tolist()):
            (which,) = np.nonzero(splits == split)
            for batch in np.array_split(which, math.ceil(len(which) / BATCH)):
                eeg = np.stack([cut(prepared, int(start), samples)[order] for start in starts[batch]])
                who = {"recording": task["recording"], "subject": task["subject"], "amplitude": prepared.quality.median}
                self.append(split, eeg, labels[batch], valid=valid[batch], **who)
            kinds = ["all"] * len(which) if self.data_set.regression else labels[which].tolist()
            counts[split] = {str(label): count for label, count in sorted(Counter(kinds).items())}
            _add_description(self._file[split], prepared.quality, Counter(prepared.report["notes"]))
        return counts


def montage_order(given: list[str], wanted: Sequence[str], where: str) -> list[int]:
    """Return the rows of a recording in the data set's order. Raises InputError where the electrodes differ."""
    missing, extra = (", ".join(sorted(set(a) - set(b))) for a, b in ((wanted, given), (given, wanted)))
    if missing or extra:
        differ = [f"{verb} {names}" for verb, names in (("lacks", missing), ("also has", extra)) if names]
        raise InputError(f"{where}: {OTHER_ELECTRODES}: {' and '.join(differ)}")
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
    quality = Quality.from_json(source.attrs["quality"], np.ones(0, bool))
    _add_description(target, quality, json.loads(source.attrs["notes"]))


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
