"""Turn the released TUAB or TUEV maker's pickles, one a sample, into a labelled HDF5, without executing pickled code.

`python -m dataset_maker.convert_pickles --root processed --output data/TUAB.hdf5 --jobs 2`

Expected in --root: for TUAB the folders train, val, test with <recording>_<k>.pkl, {"X": (23, 2000), "y": 0 or 1}; for
TUEV processed_train, processed_eval (val), processed_test with <recording>-<k>.pkl, {"signal": (23, 1000), "label": 1
to 6, "offending_channel"}. They hold uV at 200 Hz, filtered already. The subject is a recording's name up to its first
`_`; TUEV's evaluation files (bckg_000_a_) do not say theirs: there it is the recording. One broken pickle leaves out
its recording, which the report names.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mne
import numpy as np

from dataset_maker import making, tuh
from dataset_maker.pipeline import Prepared
from dataset_maker.writers import DataSet, Windows
from eeg_data.labelled_files import SPLITS
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import InputError

FILTERED = True  # by the released makers


class Kind(NamedTuple):
    """How one of the released makers wrote its samples."""

    data_set: DataSet
    folders: str  # of train, val, test
    file_name: str  # pattern: recording and running number
    signal: str  # keys of the dictionary
    label: str
    first_label: int


KINDS = {
    "TUAB": Kind(tuh.TUAB, "train val test", r"(.+)_(\d+)\.pkl", "X", "y", 0),
    "TUEV": Kind(tuh.TUEV, "processed_train processed_eval processed_test", r"(.+)-(\d+)\.pkl", "signal", "label", 1),
}
# The functions that pickles of plain values and NumPy arrays name. NumPy 1 and 2 call their module differently.
ALLOWED: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": lambda text, encoding: text.encode("latin-1"),  # how protocol 2 writes bytes
}
for _core in ("numpy.core", "numpy._core"):
    ALLOWED[f"{_core}.multiarray._reconstruct"] = np.empty(0).__reduce__()[0]
    ALLOWED[f"{_core}.multiarray.scalar"] = np.float64(0).__reduce__()[0]
    ALLOWED[f"{_core}.numeric._frombuffer"] = np.empty(0).__reduce_ex__(5)[0]


class PlainUnpickler(pickle.Unpickler):
    """Reads plain values and NumPy arrays; any other function or class that a pickle names is an InputError."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what `module.name` stands for, if it is allowed."""
        if f"{module}.{name}" not in ALLOWED:
            raise InputError(f"names {module}.{name}, which is not allowed in a sample; nothing of it was run")
        return ALLOWED[f"{module}.{name}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds the folders of the splits")


def read_sample(path: Path, kind: Kind) -> tuple[np.ndarray, int]:
    """Return a pickle's signal (23, time) in uV and its label from 0. Raises InputError if it holds anything else."""
    try:
        with path.open("rb") as file:
            sample = PlainUnpickler(file).load()
        signal, label = np.asarray(sample[kind.signal]), np.asarray(sample[kind.label])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # broken bytes end in anything from IndexError to UnicodeDecodeError
        expected = f"a dictionary with {kind.signal!r} and {kind.label!r}"
        raise InputError(f"{path}: broken, or no pickle of {expected} ({type(error).__name__})") from None
    shape = (len(tuh.ELECTRODES), kind.data_set.window * SAMPLING_RATE)
    if signal.shape != shape or signal.dtype.kind not in "fiu":
        raise InputError(f"{path}: {kind.signal!r} is {signal.dtype} {signal.shape}; expected numbers {shape}")
    labels = range(kind.first_label, kind.first_label + len(kind.data_set.classes))
    if label.size != 1 or label.item() not in labels:
        raise InputError(f"{path}: {kind.label!r} is none of the labels {labels[0]} to {labels[-1]}")
    return signal, int(label.item()) - kind.first_label


def read(task: dict[str, Any]) -> mne.io.BaseRaw:
    """Put a recording's samples one behind the other; their labels go into the task."""
    samples = [read_sample(Path(path), KINDS[task["kind"]]) for path in (task["path"], *task["also"])]
    task["labels"] = [label for _, label in samples]
    volts = np.concatenate([signal for signal, _ in samples], axis=1).astype(np.float64) * 1e-6
    info = mne.create_info(list(tuh.ELECTRODES), float(SAMPLING_RATE), "eeg")
    return mne.io.RawArray(volts, info, verbose="error")


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut at the pickles' borders."""
    return Windows(range(0, prepared.length, prepared.length // len(task["labels"])), task["labels"])


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set and a task for each recording. Raises InputError without pickles, and for other names."""
    for name, kind in KINDS.items():
        tasks: list[dict[str, Any]] = []
        for split, folder in zip(SPLITS, kind.folders.split(), strict=True):
            recordings: dict[str, list[tuple[int, str]]] = {}
            for path in (args.root / folder).glob("*.pkl"):
                if not (parts := re.fullmatch(kind.file_name, path.name)):
                    raise InputError(f"{path}: not a name that the released {name} maker gives; move it elsewhere")
                recordings.setdefault(parts[1], []).append((int(parts[2]), str(path)))
            for recording, numbered in sorted(recordings.items()):
                known = name == "TUAB" or re.fullmatch(r"[a-z]{8}_\d+", recording)
                subject = recording.partition("_")[0] if known else recording
                first, *others = [path for _, path in sorted(numbered)]
                task = {"path": first, "also": others, "kind": name, "recording": recording}
                tasks.append(task | {"subject": subject, "split": split})
        if tasks:
            made = {"source": f"pickles of the released {name} maker", "split": "the pickles' folders"}
            return replace(kind.data_set, made=made), tasks
    folders = " or ".join(f"{kind.folders} ({name})" for name, kind in KINDS.items())
    raise InputError(f"--root {args.root}: no *.pkl in folders {folders} there")


if __name__ == "__main__":
    making.run("dataset_maker.convert_pickles")
