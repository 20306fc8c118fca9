"""Turn MentalArithmetic (PhysioNet `eegmat` 1.0.0: rest or mental arithmetic) into a labelled HDF5 of 5 s windows.

`python -m dataset_maker.make_eegmat --root eegmat --output data/MentalArithmetic.hdf5 --jobs 2`

Expected in --root: SubjectNN_1.edf (rest, label 0) and SubjectNN_2.edf (task, label 1), NN from 00 to 35. As in the
field: windows without overlap; subjects 00-27 train, 28-31 val, 32-35 test, whichever are there. The published rows
used `A2-A1` as a twentieth channel; here the 19 electrodes of the 10-20 system are kept.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_maker import making, sources
from dataset_maker.writers import DataSet
from errors import InputError

_NAMES = "FP1 FP2 F3 F4 F7 F8 T3 T4 C3 C4 T5 T6 P3 P4 O1 O2 FZ CZ PZ"
DATA_SET = DataSet(
    "MentalArithmetic",
    classes=("rest", "task"),
    window=5,
    electrodes=tuple(_NAMES.split()),
    made={"source": "eegmat", "split": "published"},
)
FIRST_SUBJECTS = {"train": 0, "val": 28, "test": 32}  # of each split, up to the next one's
SUBJECTS = 36


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    root = "holds SubjectNN_1.edf, SubjectNN_2.edf"
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help=root)
    sources.add_fold_arguments(parser, "28, 4 and 4")


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set and a task for each recording. Raises InputError without any, UsageError for other folds."""
    tasks: list[dict[str, Any]] = []
    for path in sorted(args.root.glob("Subject*.edf")):
        parts = re.fullmatch(r"(Subject(\d\d))_([12])\.edf", path.name)
        if parts and int(parts[2]) < SUBJECTS:
            split = [split for split, first in FIRST_SUBJECTS.items() if int(parts[2]) >= first][-1]
            task = {"path": str(path), "recording": path.stem, "subject": parts[1]}
            tasks.append(task | {"split": split, "label": int(parts[3]) - 1})
    if not tasks:
        wanted = "SubjectNN_1.edf (rest) and SubjectNN_2.edf (task)"
        raise InputError(f"--root {args.root}: no recordings there; name the folder that holds {wanted}")
    if not (cut := sources.chosen_fold(args, (task["subject"] for task in tasks))):
        return DATA_SET, tasks
    tasks = [task | {"split": cut[0][task["subject"]]} for task in tasks]
    return replace(DATA_SET, made={"source": "eegmat", "split": cut[1]}), tasks


if __name__ == "__main__":
    making.run("dataset_maker.make_eegmat")
