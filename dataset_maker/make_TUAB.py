"""Turn TUAB (TUH Abnormal EEG Corpus: normal or abnormal) into a labelled HDF5 of 10 s windows, 23 channels, 200 Hz.

`python -m dataset_maker.make_TUAB --root tuab/v3.0.1/edf --output data/TUAB.hdf5 --jobs 8`

Expected below --root: {train,eval}/{abnormal,normal}/01_tcp_ar/*.edf, as in version 3; version 2 nests deeper
(01_tcp_ar/076/00007671/s003_2012_10_14/00007671_s003_t000.edf) and is found as well. A recording without exactly the
23 channels (`EEG xxx-REF`) beside known extras is left out and named in the report. Label 1 is abnormal; a subject is
a file's name up to the first `_`; eval is test.

The corpus is free from Temple University Hospital after registration. Its terms forbid passing recordings on, and the
file made here holds their signals: share neither.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from dataset_maker import labelled, tuh
from dataset_maker.pipeline import Prepared, Windows
from dataset_maker.tuh import read  # noqa: F401 - the hook that opens a recording
from errors import ArgumentParser, run_script

CLASSES = ("normal", "abnormal")
WINDOW = 10  # s
TREE = "{train,eval}/{abnormal,normal}/01_tcp_ar/"
PUBLISHED = "TUAB v3.0.1"  # whose counts are known


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    tuh.add_arguments(parser, TREE)
    labelled.add_arguments(parser)
    return parser.parse_args()


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a recording into consecutive windows of its folder's class; what is left at the end is not used."""
    samples = round(WINDOW * prepared.rate)
    starts = np.arange(prepared.length // samples, dtype=np.int64) * samples
    notes = {} if len(starts) else {f"recordings shorter than a window of {WINDOW} s": 1}
    return Windows(starts, np.full(len(starts), task["label"]), notes=notes)


def find_tasks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a task for each recording below `--root`. Raises InputError where a class has none."""
    root = tuh.find_root(args.root, TREE)
    files = {
        (part, label): tuh.edf_files(root / part / name / "01_tcp_ar", TREE)
        for part in tuh.PARTS
        for label, name in enumerate(CLASSES)
    }
    subjects = {key: [path.stem.partition("_")[0] for path in paths] for key, paths in files.items()}
    split = tuh.subject_splitter(args)
    both = subjects["train", 0] + subjects["train", 1]
    # published: normal and abnormal subjects are cut separately, which leaves some on both sides
    cuts = [split(subjects["train", label] if args.split == "published" else both) for label in range(len(CLASSES))]
    return [
        {
            "path": str(path),
            "recording": path.stem,
            "subject": subject,
            "split": cuts[label][subject] if part == "train" else "test",
            "label": label,
        }
        for (part, label), paths in files.items()
        for path, subject in zip(paths, subjects[part, label], strict=True)
    ]


def main(args: argparse.Namespace) -> None:
    """Convert the corpus; raises InputError at the end if recordings were left out."""
    tasks = find_tasks(args)
    version_3 = all(Path(task["path"]).parent.name == "01_tcp_ar" for task in tasks)
    labelled.make(
        args,
        maker="dataset_maker.make_TUAB",
        tasks=tasks,
        name="TUAB",
        task="binary",
        classes=CLASSES,
        electrodes=tuh.ELECTRODES,
        window=WINDOW,
        drop=tuh.EXTRAS,
        made={"source": "TUAB"} | tuh.split_record(args),
        expected=PUBLISHED if version_3 and args.split == "published" else None,
    )


if __name__ == "__main__":
    run_script(main, get_args())
