"""Epochs as labelled recordings: `make_labelled.py --epochs`.

The epochs of a file become one signal with a break between each two, which filters do not cross, and each epoch one row
of a manifest. The label is the name of the event that the epoch was cut around, at its time zero. EEGLAB's `.set` says
where that is, so its fields `epoch` and `xmax` are not needed: other programs leave them out, or count them otherwise.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mne
import numpy as np
from tqdm import tqdm

from dataset_maker import pool
from dataset_maker.formats import companion
from dataset_maker.reasons import recording_readable
from dataset_maker.sources import find_files, subject_of
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import InputError

if TYPE_CHECKING:  # --help does not need it
    import pandas as pd

SUFFIXES = (".set", "epo.fif", "epo.fif.gz")
NONE = "epochs without an event at their time zero, left out"
SEVERAL = "epochs with several events at their time zero, left out"
BROKEN = "epochs with a break inside, left out"
MARKED = "epochs that their file marks as bad, left out"
OTHER = "epochs whose label is not among --classes, left out"
DROPPED = "epochs that were dropped as bad before their file was saved"
REJECTED = ("manual", "thresh", "const", "jp", "kurt", "freq", "global")  # kinds of EEGLAB's marks
BREAK = "EDGE boundary"  # as MNE marks it between recordings that it joins


class Epochs(NamedTuple):
    """What an epoched file holds. An epoch without a label is not used; `notes` counts why."""

    eeg: Any  # (N, time, epochs) float in units of `volts`
    volts: float
    info: mne.Info
    tmin: float  # s of the first sample from the event
    labels: list[str | None]
    notes: Counter[str]


def open_epochs(path: Path) -> Epochs:
    """Read an epoched `.set` or `-epo.fif`. Raises InputError if it cannot be read or holds no epochs."""
    with recording_readable(path):
        return _read_set(path) if path.name.lower().endswith(".set") else _read_fif(path)


def _read_fif(path: Path) -> Epochs:
    epochs = mne.read_epochs(path, proj=False, verbose="error")
    names: dict[int, list[str]] = {}
    for name, number in epochs.event_id.items():
        names.setdefault(number, []).append(name)
    called = [names[number] for number in epochs.events[:, 2]]
    labels = [name[0] if len(name) == 1 else None for name in called]
    dropped = sum(bool(set(reasons) - {"IGNORED"}) for reasons in epochs.drop_log)
    notes = Counter({SEVERAL: labels.count(None), DROPPED: dropped})
    return Epochs(epochs.get_data(copy=False).transpose(1, 2, 0), 1.0, epochs.info, epochs.tmin, labels, notes)


def _read_set(path: Path) -> Epochs:
    from mne.io.eeglab import eeglab  # its parts: `read_epochs_eeglab` needs the fields above, and joins several events

    is_lazy = "preload" in signature(eeglab._check_load_mat).parameters  # since MNE 1.11
    file = eeglab._check_load_mat(str(path), None, **({"preload": True} if is_lazy else {}))
    if file.trials < 2:
        raise InputError(f"{path}: holds one continuous recording, no epochs: name it in a --manifest")
    info = eeglab._get_info(file, eog=(), montage_units="auto")[0]
    events, data, shape = eeglab._read_annotations_eeglab(file), file.data, (file.nbchan, file.pnts, file.trials)
    if isinstance(data, str):
        names = [name for name in (re.split(r"[/\\]", data)[-1], f"{path.stem}.fdt") if name.endswith(".fdt")]
        data = np.fromfile(companion(path, names, "its signal"), "<f4")
    if data.size != math.prod(shape):
        raise InputError(f"{path}: announces {' x '.join(map(str, shape))} values, but there are {data.size}")
    inside: list[set[str]] = [set() for _ in range(file.trials)]  # types of the events at each epoch's time zero
    broken = np.zeros(file.trials, bool)
    for latency, kind in zip(events.onset * file.srate, events.description, strict=True):
        epoch, sample = divmod(latency + 1e-6, file.pnts)  # EEGLAB counts through the epochs as if they were joined
        if 0 <= epoch < file.trials and kind == "boundary":
            broken[int(epoch)] = True
        elif 0 <= epoch < file.trials and abs(sample + file.xmin * file.srate) < 1:
            inside[int(epoch)].add(re.sub(r"^(-?\d+)\.0$", r"\1", kind.strip()))  # numbers of MATLAB 7.3 are floats
    reject = found if isinstance(found := file.get("reject"), dict) else {}
    marks = [np.ravel(reject.get(f"rej{kind}", ())) for kind in REJECTED]
    bad = np.any([np.zeros(file.trials), *(mark for mark in marks if mark.size == file.trials)], axis=0)
    reasons = [
        MARKED if is_bad else BROKEN if is_broken else NONE if not kinds else SEVERAL if len(kinds) > 1 else ""
        for kinds, is_bad, is_broken in zip(inside, bad, broken, strict=True)
    ]
    labels = [None if reason else kinds.pop() for kinds, reason in zip(inside, reasons, strict=True)]
    notes = Counter(filter(None, reasons))
    return Epochs(data.reshape(shape, order="F"), 1e-6, info, file.xmin, labels, notes)


def to_grid(epochs: Epochs) -> tuple[int, float]:
    """Return the samples of an epoch that are used and their rate (Hz), so that the next epoch begins at k / 200 s.

    The end may lose 20 ms. Where no such length is a whole number of new samples, the rate differs by less than 0.1 %.
    """
    rate, length = epochs.info["sfreq"], epochs.eeg.shape[1]
    lengths = np.arange(length, max(length - round(0.02 * rate) - 1, 0), -1)
    new = np.maximum(np.rint(lengths * SAMPLING_RATE / rate), 1)
    best = int(np.argmin(np.round(np.abs(lengths * SAMPLING_RATE / rate - new), 3)))  # the longest of the best ones
    return int(lengths[best]), float(lengths[best] * SAMPLING_RATE / new[best])


def survey(path: str, classes: Sequence[str] | None, tmin: float | None) -> dict[str, Any]:
    """Return an epoched file's labels, by number of the epoch, and where its samples lie, in s.

    classes: the labels that are used (None: all). tmin: of the samples (None: of the epochs). Raises InputError where
    no epoch can be used.
    """
    epochs = open_epochs(Path(path))
    used = {i: label for i, label in enumerate(epochs.labels) if label is not None and label in (classes or [label])}
    notes = epochs.notes + Counter({OTHER: sum(label is not None for label in epochs.labels) - len(used)})
    if not used:
        raise InputError(f"{path}: gives no sample: " + ", ".join(f"{count} {note}" for note, count in notes.items()))
    samples, rate = to_grid(epochs)
    stop = samples / rate
    start = 0.0 if tmin is None else round(tmin - epochs.tmin, 6)
    if start < 0 or stop - start < 1:
        lasts = f"from {epochs.tmin:g} to {epochs.tmin + stop:g} s"
        begin = epochs.tmin if tmin is None else tmin
        raise InputError(f"{path}: its epochs last {lasts}; a sample needs at least 1 s from {begin:g} s")
    return {"labels": used, "notes": dict(notes), "start": start, "stop": stop}


def find(args: argparse.Namespace) -> tuple["pd.DataFrame", list[dict[str, Any]]]:
    """Return the rows of a manifest, one for each epoch, and the tasks of their files. Raises InputError without any.

    A file that cannot be used has no row, and its task says why.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    tasks: list[dict[str, Any]] = []
    with pool.processes(args) as submit:
        paths = find_files(args.epochs, SUFFIXES, "--epochs")
        calls = [submit(survey, str(path), args.classes, args.tmin) for path in paths]
        for path, call in zip(paths, tqdm(calls, "reading events", unit="file", disable=None), strict=True):
            file, task = pool.result_of(call, str(path)), {"path": path, "subject": subject_of(path, args.subject)}
            for number, label in enumerate(file.get("labels", {}).values()):
                start, stop = (file["stop"] * number + file[key] for key in ("start", "stop"))
                if args.window and not args.stride:  # one sample of each
                    stop = min(stop, start + args.window)
                rows.append(task | {"start": start, "stop": stop, "label": label})
            task["epochs"] = list(file.get("labels", ()))
            tasks.append(task | {key: file[key] for key in ("notes", "error") if key in file})
    if not rows:
        raise InputError(tasks[0]["error"])
    return pd.DataFrame(rows), tasks


def read(task: Mapping[str, Any]) -> mne.io.BaseRaw:
    """Return the used epochs of a task as one recording with breaks, in volts. Raises InputError if it cannot."""
    if "error" in task:
        raise InputError(task["error"])
    path = Path(task["path"])
    with recording_readable(path):
        epochs = open_epochs(path)
        samples, rate = to_grid(epochs)
        eeg = epochs.eeg[:, :samples, task["epochs"]].transpose(0, 2, 1)  # (N, epochs, time)
        info = mne.create_info(epochs.info.ch_names, rate, epochs.info.get_channel_types())
        raw = mne.io.RawArray(eeg.reshape(len(eeg), -1) * epochs.volts, info, verbose="error")
        raw.info["bads"] = epochs.info["bads"]
        starts = np.arange(1, eeg.shape[1]) * samples / rate
        raw.set_annotations(mne.Annotations(starts, 0.0, BREAK), verbose="error")
    return raw
