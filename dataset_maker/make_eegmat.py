"""Turn MentalArithmetic (PhysioNet `eegmat` 1.0.0: rest or mental arithmetic) into a labelled HDF5 of 5 s windows.

`python -m dataset_maker.make_eegmat --root eegmat --output data/MentalArithmetic.hdf5 --jobs 2`

Expected in --root: SubjectNN_1.edf (rest, label 0) and SubjectNN_2.edf (task, label 1), NN from 00 to 35. As in the
field: windows without overlap; subjects 00-27 train, 28-31 val, 32-35 test, whichever are there. The published rows
used `A2-A1` as a twentieth channel; here the 19 electrodes of the 10-20 system are kept.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dataset_maker import labelled, splits
from dataset_maker.pipeline import Prepared, Windows
from errors import ArgumentParser, InputError, UsageError, run_script

ELECTRODES = (
    *("FP1", "FP2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4"),
    *("T5", "T6", "P3", "P4", "O1", "O2", "FZ", "CZ", "PZ"),
)
CLASSES = ("rest", "task")
WINDOW = 5  # s
FIRST_SUBJECTS = {"train": 0, "val": 28, "test": 32}  # of each split, up to the next one's
SUBJECTS = 36


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="holds SubjectNN_1.edf, SubjectNN_2.edf"
    )
    parser.add_argument("--folds", type=int, metavar="K", help="split by subject into K folds instead of 28, 4 and 4")
    parser.add_argument("--fold", type=int, metavar="k", help="which fold is test, from 0; the next one is val")
    labelled.add_arguments(parser)
    return parser.parse_args()


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a recording into consecutive windows of its class; what is left at the end is not used."""
    samples = round(WINDOW * prepared.rate)
    starts = np.arange(prepared.length // samples, dtype=np.int64) * samples
    return Windows(starts, np.full(len(starts), task["label"]))


def find_files(root: Path) -> dict[str, dict[int, Path]]:
    """Return subject -> label -> file. Raises InputError where there are none."""
    names = ((re.fullmatch(r"(Subject(\d\d))_([12])\.edf", path.name), path) for path in sorted(root.glob("*")))
    files: dict[str, dict[int, Path]] = {}
    for name, path in names:
        if name and int(name[2]) < SUBJECTS and path.is_file():
            files.setdefault(name[1], {})[int(name[3]) - 1] = path
    if not files:
        raise InputError(
            f"--root {root}: no SubjectNN_1.edf or SubjectNN_2.edf there; name the folder of the recordings"
        )
    return files


def published_split(subjects: Mapping[str, Any]) -> dict[str, str]:
    """Return subject -> split by the subject's number."""
    starts = FIRST_SUBJECTS.items()
    return {name: [split for split, first in starts if int(name[-2:]) >= first][-1] for name in subjects}


def main(args: argparse.Namespace) -> None:
    """Convert the recordings; raises InputError at the end if any was left out."""
    by_folds = args.folds is not None
    if by_folds != (args.fold is not None):
        raise UsageError("--folds and --fold go together: the number of folds, and which one is test")
    files = find_files(args.root)
    for subject, found in files.items():
        for label in {0, 1} - found.keys():
            print(f"{subject}: no {subject}_{label + 1}.edf ({CLASSES[label]}), which is left out", file=sys.stderr)
    split = splits.folds(files, args.folds, args.fold) if by_folds else published_split(files)
    tasks = [
        {"path": str(path), "recording": path.stem, "subject": subject, "split": split[subject], "label": label}
        for subject, found in files.items()
        for label, path in sorted(found.items())
    ]
    if missing := {0, 1} - {task["label"] for task in tasks if task["split"] == "train"}:
        lacking = " and ".join(f"SubjectNN_{label + 1}.edf ({CLASSES[label]})" for label in sorted(missing))
        raise InputError(f"--root {args.root}: no training subject has {lacking}: complete the copy of the recordings")
    labelled.make(
        args,
        maker="dataset_maker.make_eegmat",
        tasks=tasks,
        name="MentalArithmetic",
        task="binary",
        classes=CLASSES,
        electrodes=ELECTRODES,
        window=WINDOW,
        made={"source": "eegmat", "split": f"fold {args.fold} of {args.folds}" if by_folds else "published"},
        expected=None if by_folds else "MentalArithmetic",
    )


if __name__ == "__main__":
    run_script(main, get_args())
