"""The two kinds of HDF5 files the makers write: pre-training (a folder, one file per montage) and labelled (one file).

SPEC, section 5. Both are written aside and renamed, so nothing half-written ever has a data file's name.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from errors import InputError
from files import check_writable, written_aside
from version import code_version

PATCH = 200  # samples, 1 s at 200 Hz
SPLITS = ("train", "val", "test")
TASKS = ("binary", "multiclass", "regression")


def _made(made: Mapping[str, Any]) -> str:
    """Return the root attribute `made`: how a file came about, as JSON."""
    return json.dumps({**made, "mne_version": version("mne"), "code_version": code_version()})


def refuse_existing(path: Path) -> None:
    """Raise InputError if there is such a file: other recordings may be in it, which would be lost."""
    if path.exists():
        raise InputError(f"{path} exists already: delete it, or name another --output")


class PretrainingWriter:
    """Writes recordings into one pre-training HDF5 per montage in a folder; files appear when all is written.

    A group per recording holds the dataset `eeg` (N, time) float32 in uV, chunks (N, 200), with the attributes
    chOrder, rsFreq, lFreq (0: no high-pass), hFreq (half the rate: no low-pass), notch (0: none), sourceFreq, notes.
    """

    def __init__(self, folder: Path, *, made: Mapping[str, Any]) -> None:
        """folder: where the files go; made: what the root attribute of this name says (source, filter)."""
        self.folder, self.made = folder, made
        self.seconds: dict[str, list[float]] = {}  # file name -> seconds of each of its recordings
        self._files: dict[str, h5py.File] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "PretrainingWriter":
        """Check that the folder can be written, before hours of work go by."""
        check_writable(self.folder)
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        """Close and name the files, or remove them after an error."""
        return self._stack.__exit__(*exception)

    def _file(self, electrodes: Sequence[str], rate: float) -> tuple[str, h5py.File]:
        """Return the name and the open file of a montage (electrodes in order, sampling rate)."""
        montage = hashlib.sha256(f"{' '.join(electrodes)} @ {rate:g}".encode()).hexdigest()[:6]
        name = f"{len(electrodes)}ch-{montage}.hdf5"
        if name not in self._files:
            refuse_existing(self.folder / name)
            part = self._stack.enter_context(written_aside(self.folder / name))
            self._files[name] = self._stack.enter_context(h5py.File(part, "w"))
            self._files[name].attrs["made"] = _made(self.made)
        return name, self._files[name]

    def add(self, stem: str, eeg: np.ndarray, electrodes: Sequence[str], report: Mapping[str, Any]) -> str:
        """Write a recording; return the name of its file. eeg: (N, time) uV; report: from `preprocess`."""
        rate = report["sampling_rate"]
        name, file = self._file(electrodes, rate)
        plain = re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII).strip("._-") or "recording"
        group = next(g for n in range(1, len(file) + 2) if (g := plain if n == 1 else f"{plain}_{n}") not in file)
        chunks = (len(electrodes), min(PATCH, eeg.shape[1]))
        dataset = file.create_group(group).create_dataset("eeg", data=eeg, dtype="float32", chunks=chunks)
        dataset.attrs["chOrder"] = list(electrodes)
        dataset.attrs["rsFreq"] = rate
        dataset.attrs["lFreq"] = report["l_freq"] or 0.0
        dataset.attrs["hFreq"] = report["h_freq"] or min(rate, report["source_rate"]) / 2
        dataset.attrs["notch"] = report["notch"] or 0.0
        dataset.attrs["sourceFreq"] = report["source_rate"]
        if report["notes"]:
            dataset.attrs["notes"] = "; ".join(report["notes"])
        self.seconds.setdefault(name, []).append(eeg.shape[1] / rate)
        return name


class LabelledWriter:
    """Writes a labelled HDF5 recording by recording (memory holds one); the file appears when all is written.

    A group per split holds `eeg` (samples, N, time) float32 in uV, one sample per chunk, `label` (int64, or float32
    (samples, outputs) for regression), `recording` and `subject` (text per sample). A split without samples has none.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        task: str,
        classes: Sequence[str],
        electrodes: Sequence[str],
        sampling_rate: float,
        made: Mapping[str, Any],
    ) -> None:
        """classes: what labels 0, 1, ... (regression: the outputs) mean; made: source, filter, split, seed."""
        assert task in TASKS and (task != "binary" or len(classes) == 2), (task, classes)
        self.path, self.task, self.classes = path, task, list(classes)
        self._attributes: dict[str, Any] = {"name": name, "task": task, "classes": self.classes, "made": _made(made)}
        self._attributes |= {"chOrder": list(electrodes), "rsFreq": float(sampling_rate)}
        self.counts: Counter[str] = Counter()  # split -> samples
        self._stack = ExitStack()

    def __enter__(self) -> "LabelledWriter":
        """Open a file aside."""
        check_writable(self.path.parent)
        refuse_existing(self.path)
        part = self._stack.enter_context(written_aside(self.path))
        self._file = self._stack.enter_context(h5py.File(part, "w"))
        self._file.attrs.update(self._attributes)
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        """Close and name the file, or remove it after an error."""
        return self._stack.__exit__(*exception)

    def append(self, split: str, eeg: np.ndarray, label: Any, *, recording: str, subject: str) -> None:
        """Write the samples of one recording. eeg: (samples, N, time) uV; label: (samples,) or (samples, outputs).

        Raises InputError for labels outside the classes and for samples of another shape than the file's.
        """
        assert split in SPLITS, split
        if self.task == "regression":
            label = np.asarray(label, dtype="float32").reshape(len(eeg), -1)  # (samples, outputs)
        else:
            label = np.asarray(label, dtype="int64")  # (samples,)
            if wrong := sorted(set(label.tolist()) - set(range(len(self.classes)))):
                raise InputError(f"{recording}: labels {wrong}, but the {len(self.classes)} classes are 0, 1, ...")
        text = [np.full(len(eeg), word, dtype=object) for word in (recording, subject)]
        group = self._file.require_group(split)
        columns = {"eeg": np.asarray(eeg, "float32"), "label": label, "recording": text[0], "subject": text[1]}
        for key, values in columns.items():
            if key not in group:
                dtype = h5py.string_dtype() if values.dtype == object else values.dtype
                chunks = (1 if key == "eeg" else 1024, *values.shape[1:])
                limit = (None, *values.shape[1:])
                group.create_dataset(key, (0, *values.shape[1:]), dtype=dtype, maxshape=limit, chunks=chunks)
            if group[key].shape[1:] != values.shape[1:]:
                raise InputError(f"{recording}: {key} {values.shape[1:]}, in this file {group[key].shape[1:]} a sample")
            group[key].resize(len(group[key]) + len(values), axis=0)
            group[key][len(group[key]) - len(values) :] = values
        self.counts[split] += len(eeg)
