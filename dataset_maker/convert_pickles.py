"""Turn the released TUAB or TUEV maker's pickles, one a sample, into a labelled HDF5, without executing pickled code.

`python -m dataset_maker.convert_pickles --root processed --output data/TUAB.hdf5 --dataset TUAB --jobs 2`

Expected in --root: for TUAB the folders train, val, test with <recording>_<k>.pkl, {"X": (23, 2000), "y": 0 or 1}; for
TUEV processed_train, processed_eval (val), processed_test with <recording>-<k>.pkl, {"signal": (23, 1000), "label": 1
to 6, "offending_channel"}. They hold uV at 200 Hz, filtered already. The subject is a recording's name up to its first
`_`; TUEV's evaluation files (bckg_000_a_) do not say theirs: there it is the recording. One broken pickle leaves out
its recording, which the report names.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataset_maker import labelled, make_TUAB, make_TUEV, pipeline, safe_pickles, tuh_events
from dataset_maker.pipeline import FilterSettings, Pipeline, Prepared, Store, Windows
from dataset_maker.tuh import ELECTRODES
from eeg_data.quality import SignalScan, amplitude_histogram
from errors import ArgumentParser, InputError, run_script

RATE = 200.0  # Hz, of the pickles
MAX_BYTES = 2 << 20  # a sample has 0.4 MB, twice that where bytes are written as text
UNFILTERED = {"l_freq": 0.0, "h_freq": 0.0, "notch": 0.0}  # by this maker: the released ones did


@dataclass(frozen=True)
class Kind:
    """How one of the released makers wrote its samples."""

    task: str
    classes: tuple[str, ...]
    folders: dict[str, str]  # split -> folder
    file_name: str  # pattern: recording and running number
    signal: str  # keys of the dictionary
    label: str
    first_label: int
    window: int  # s


KINDS = {
    "TUAB": Kind(
        task="binary",
        classes=make_TUAB.CLASSES,
        folders={"train": "train", "val": "val", "test": "test"},
        file_name=r"(.+)_(\d+)\.pkl",
        signal="X",
        label="y",
        first_label=0,
        window=make_TUAB.WINDOW,
    ),
    "TUEV": Kind(
        task="multiclass",
        classes=make_TUEV.CLASSES,
        folders={"train": "processed_train", "val": "processed_eval", "test": "processed_test"},
        file_name=r"(.+)-(\d+)\.pkl",
        signal="signal",
        label="label",
        first_label=1,
        window=tuh_events.WINDOW,
    ),
}


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds the folders of the splits")
    parser.add_argument("--dataset", choices=tuple(KINDS), help="whose pickles (default: as the folders are called)")
    labelled.add_arguments(parser, filters=False)
    parser.set_defaults(**UNFILTERED)
    return parser.parse_args()


def read_sample(path: Path, kind: Kind) -> tuple[np.ndarray, int]:
    """Return a pickle's signal (23, time) in uV and its label from 0. Raises InputError if it holds anything else."""
    with pipeline.recording_readable(path):
        if (size := path.stat().st_size) > MAX_BYTES:
            raise InputError(f"{path}: {size} bytes, too many for one sample")
        data = path.read_bytes()
    try:
        sample = safe_pickles.loads(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    signal, label = sample.get(kind.signal), sample.get(kind.label)
    shape = (len(ELECTRODES), round(kind.window * RATE))
    if not isinstance(signal, np.ndarray) or signal.shape != shape:
        found = f"of shape {signal.shape}" if isinstance(signal, np.ndarray) else "no array"
        raise InputError(f"{path}: {kind.signal!r} is {found}; expected {shape}")
    if isinstance(label, (list, tuple)) and len(label) == 1:
        (label,) = label
    if isinstance(label, np.ndarray) and label.size == 1:
        label = label.item()
    labels = range(kind.first_label, kind.first_label + len(kind.classes))
    if not isinstance(label, (int, float, np.number)) or label not in labels:
        raise InputError(f"{path}: {kind.label!r} is none of the labels {labels[0]} to {labels[-1]}")
    return signal, int(label) - kind.first_label


def survey(task: Mapping[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """Return what a recording's pickles will give, without opening them."""
    count = 1 + len(task["also"])
    seconds = float(count * KINDS[task["kind"]].window)
    return {"electrodes": list(ELECTRODES), "seconds": seconds, "rate": RATE, "windows": count}


def prepare(task: Mapping[str, Any], options: Pipeline, store: Store) -> Prepared:
    """Put a recording's samples one behind the other, as they are; their labels go into `extra`."""
    kind, paths = KINDS[task["kind"]], [task["path"], *task["also"]]
    samples = round(kind.window * RATE)
    eeg = store(ELECTRODES, RATE, samples * len(paths))
    scan, histograms, labels = SignalScan(ELECTRODES, RATE), [], []
    for index, path in enumerate(paths):
        signal, label = read_sample(Path(path), kind)
        scan.add(signal)
        plain = pipeline.bridged(signal.astype(np.float64))
        eeg[:, index * samples : (index + 1) * samples] = pipeline.narrowed(plain, options.dtype, path)
        histograms.append(amplitude_histogram(plain))
        labels.append(label)
    stages = pipeline.plan_stages(RATE, FilterSettings(None, None, None, RATE), samples * len(paths) / RATE)
    quality = replace(scan.result(), histogram=np.sum(histograms, axis=0))
    report = stages | {"dropped": {}}
    return Prepared(list(ELECTRODES), RATE, samples * len(paths), eeg, quality, report, {"labels": labels})


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut at the pickles' borders."""
    labels = np.array(prepared.extra["labels"], dtype=np.int64)
    return Windows(np.arange(len(labels), dtype=np.int64) * (prepared.length // len(labels)), labels)


def find_kind(root: Path, wanted: str | None) -> str:
    """Return whose pickles a folder holds. Raises InputError if that is not to be seen."""
    for name, kind in KINDS.items():
        if wanted in (None, name) and (root / kind.folders["train"]).is_dir():
            return name
    folders = " or ".join(f"{', '.join(kind.folders.values())} ({name})" for name, kind in KINDS.items())
    raise InputError(f"--root {root}: expected the folders {folders} there, at least the one for training")


def find_tasks(root: Path, kind_name: str) -> list[dict[str, Any]]:
    """Return a task for each recording in each split's folder. Raises InputError for files of other names."""
    kind, tasks = KINDS[kind_name], []
    for split, folder in kind.folders.items():
        recordings: dict[str, list[tuple[int, str]]] = {}
        for path in (root / folder).glob("*.pkl"):
            if not (name := re.fullmatch(kind.file_name, path.name)):
                raise InputError(f"{path}: not a name that the released {kind_name} maker gives; take it out of there")
            recordings.setdefault(name[1], []).append((int(name[2]), str(path)))
        for recording, numbered in sorted(recordings.items()):
            known = kind_name == "TUAB" or re.fullmatch(r"[a-z]{8}_\d+", recording)
            subject = recording.partition("_")[0] if known else recording
            first, *others = [path for _, path in sorted(numbered)]
            task = {"path": first, "also": others, "kind": kind_name}
            tasks.append(task | {"recording": recording, "subject": subject, "split": split})
    if not tasks:
        raise InputError(f"--root {root}: no *.pkl in {', '.join(kind.folders.values())}")
    return tasks


def main(args: argparse.Namespace) -> None:
    """Convert the folders; raises InputError at the end if a recording was left out."""
    kind_name = find_kind(args.root, args.dataset)
    kind = KINDS[kind_name]
    labelled.make(
        args,
        maker="dataset_maker.convert_pickles",
        tasks=find_tasks(args.root, kind_name),
        name=kind_name,
        task=kind.task,
        classes=kind.classes,
        electrodes=ELECTRODES,
        window=kind.window,
        made={"source": f"pickles of the released {kind_name} maker", "split": "the pickles' folders"},
    )


if __name__ == "__main__":
    run_script(main, get_args())
