"""Turn a public data set, as it is downloaded, into a labelled HDF5: windows, electrodes and split of docs/recipes.md.

`python dataset_maker/make_recipe.py eegmmidb --root eegmmidb/1.0.0 --output data/PhysioNetMI.hdf5 --jobs 4`

At the end it says which counts differ from those of the data set and of its publications. TUAB, TUEV, SEED-V,
MentalArithmetic and (make_moabb) BCI Competition IV 2a have makers of their own.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne

from dataset_maker import bids, making
from dataset_maker.pipeline import Prepared
from dataset_maker.reasons import recording_readable
from dataset_maker.sources import find_files, subject_of
from dataset_maker.writers import DataSet, Windows, consecutive_windows, windows_at
from eeg_data.pretraining_files import SAMPLING_RATE
from electrodes import ELECTRODES
from errors import InputError

KNOWS_MAINS = True  # --notch is that of the recipe
VIGILANCE = "FT7 FT8 T7 T8 TP7 TP8 CP1 CP2 P1 PZ P2 PO3 POZ PO4 O1 OZ O2"  # columns of SEED-VIG's raw data
PERCLOS = 8  # s from a label of SEED-VIG to the next one
SAME_PERSON = {"chb21": "chb01"}  # recorded again a year and a half later (PhysioNet)
SEIZURE = re.compile(r"Seizure (?:\d+ )?(?:Start|End) Time: *(\d+)")
FISTS = ("04", "08", "12")  # runs of eegmmidb in which T1 and T2 are one fist; in the others both fists, both feet
TASKS = ("T1", "T2")

Task = dict[str, Any]
Split = Callable[[Collection[str]], dict[str, str]]  # names -> split of those that do not train


@dataclass(frozen=True)
class Recipe:
    """How a public data set becomes a labelled one. A recording's name in the split is its subject, if not said."""

    title: str  # of the data set in the file
    find: Callable[[argparse.Namespace, "Recipe"], list[Task]]
    classes: Sequence[str]  # of a regression the names of its targets
    window: int  # s
    mains: float  # Hz
    split: Split
    expected: Mapping[str, Mapping[str, int]]  # who says it -> number of recordings, subjects, samples
    files: str = ""  # pattern of a recording's path; groups: name in the split, and maybe `group`, its class
    electrodes: str = ""  # none: those of the first recording
    drop: Sequence[str] = ()
    trials: int | None = None  # of a whole recording
    regression: bool = False


def named(**splits: Collection[str]) -> Split:
    """Return a split that lists names."""
    return lambda _: {name: split for split, names in splits.items() for name in names}


def in_order(groups: Mapping[str, tuple[float, float]]) -> Split:
    """Return a split by number: the first of each group to train, the next to val, the rest to test.

    groups: beginning of their names -> how many train, how many val (below 1: which part of the group).
    """

    def split(names: Collection[str]) -> dict[str, str]:
        sides: dict[str, str] = {}
        for group, parts in groups.items():
            mine = sorted((name for name in names if name.startswith(group)), key=lambda name: int(name[len(group) :]))
            train, val = (int(part) if part >= 1 else round(part * len(mine)) for part in parts)
            sides |= dict.fromkeys(mine[train : train + val], "val") | dict.fromkeys(mine[train + val :], "test")
        return sides

    return split


# ---- where the recordings of a data set are, and what their labels are


def by_name(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each file whose path matches the recipe's pattern. Raises InputError without any."""
    tasks = []
    for path in find_files([args.root], {f".{recipe.files.rpartition('.')[2]}"}, "--root"):
        if match := re.search(f"/{recipe.files}$", path.resolve().as_posix()):
            name = match["name"]
            tasks.append({"path": str(path), "recording": path.stem, "name": name, "subject": name})
            if "group" in match.groupdict():
                tasks[-1]["label"] = recipe.classes.index(match["group"])
    if not tasks:
        raise InputError(f"--root {args.root}: no recording of {args.recipe} there (docs/recipes.md shows its files)")
    return tasks


def with_seizures(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each file of CHB-MIT, with start and end (s) of its seizures by the summary beside it."""
    tasks = by_name(args, recipe)
    for task in tasks:
        path = Path(task["path"]).with_name(f"{task['name']}-summary.txt")
        try:
            blocks = path.read_text(encoding="latin-1").split("File Name:")[1:]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); it says where the seizures are") from None
        for block in blocks:
            if block.split()[:1] == [Path(task["path"]).name]:
                times = [int(second) for second in SEIZURE.findall(block)]
                task["seizures"] = list(zip(times[::2], times[1::2], strict=True))
        task |= {"also": [str(path)], "subject": SAME_PERSON.get(task["name"], task["name"])}
    return tasks


def with_vigilance(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each recording of SEED-VIG; its labels are in perclos_labels, under the same name."""
    tasks = by_name(args, recipe)
    for task in tasks:
        path = Path(task["path"])
        task["also"] = [str(path.parents[1] / "perclos_labels" / path.name)]
    return tasks


def of_bids(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each recording of a BIDS data set; the label is the group of its subject, as in the split."""
    flags = argparse.Namespace(**dict.fromkeys(bids.ENTITIES), notch=args.notch)
    people = bids.read_table(args.root / "participants.tsv", ("participant_id", "Group"))
    groups = dict(zip(people["participant_id"], people["Group"], strict=True))
    tasks = bids.find(args.root, flags, "--root")
    for task in tasks:
        subject = subject_of(task["path"])
        if (group := groups.get(f"sub-{subject}", "")) not in recipe.classes:
            where = f"{args.root / 'participants.tsv'}: the Group of sub-{subject}"
            raise InputError(f"{where} is {group!r}, expected one of {', '.join(recipe.classes)}")
        more = {"subject": subject, "name": group + subject, "label": recipe.classes.index(group)}
        task |= {"path": str(task["path"]), **more}
    return tasks


RECIPES = {
    "eegmmidb": Recipe(
        "PhysioNetMI",
        by_name,
        classes=("left fist", "right fist", "both fists", "both feet"),
        window=4,
        mains=60,
        files=r"(?P<name>S\d{3})R(04|06|08|10|12|14)\.edf",
        split=named(val=[f"S{n:03d}" for n in range(71, 90)], test=[f"S{n:03d}" for n in range(90, 110)]),
        expected={"PhysioNet": {"recordings": 654, "subjects": 109}, "CBraMod": {"samples": 9837}},
    ),
    "mumtaz": Recipe(
        "Mumtaz2016",
        by_name,
        classes=("H", "MDD"),  # healthy, major depressive disorder
        window=5,
        mains=50,
        files=r"(?P<name>(?P<group>H|MDD) S\d+) +E[CO]\.edf",
        electrodes="FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T3 T4 T5 T6 FZ CZ PZ",
        split=in_order({"H S": (19, 4), "MDD S": (24, 5)}),
        expected={"CBraMod": {"subjects": 62, "samples": 7143}},
    ),
    "chb-mit": Recipe(
        "CHB-MIT",
        with_seizures,
        classes=("no seizure", "seizure"),
        window=10,
        mains=60,
        files=r"(?P<name>chb\d\d)[a-z]?_\d+\+?\.edf",
        electrodes=" ".join(ELECTRODES[-16:]),
        drop=("T8-P8-1",),  # recorded twice
        split=named(val=("chb21", "chb22"), test=("chb23", "chb24")),
        expected={"PhysioNet": {"recordings": 686, "subjects": 23}, "CBraMod": {"samples": 326993}},
    ),
    "ds004504": Recipe(
        "ds004504",
        of_bids,
        classes=("A", "C", "F"),  # Alzheimer's disease, healthy, frontotemporal dementia
        window=10,
        mains=50,
        split=in_order({"A": (0.6, 0.2), "C": (0.6, 0.2), "F": (0.6, 0.2)}),
        expected={"OpenNeuro": {"recordings": 88, "subjects": 88}},
    ),
    "seed-vig": Recipe(
        "SEED-VIG",
        with_vigilance,
        classes=("PERCLOS",),
        window=PERCLOS,
        mains=50,
        files=r"Raw_Data/(?P<name>\d+)_\w+\.mat",
        electrodes=VIGILANCE,
        split=named(val=("14", "15", "16", "17"), test=("18", "19", "20", "21")),
        expected={"the data set": {"recordings": 23, "subjects": 21, "samples": 20355}},
        trials=885,
        regression=True,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("recipe", choices=RECIPES, help="the data set")
    root = "holds the data set as it is downloaded"
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help=root)


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[Task]]:
    """Return the data set and a task for each recording. Raises InputError without any."""
    recipe = RECIPES[args.recipe]
    args.drop_unknown = True  # the recipe says which electrodes there are
    args.notch = recipe.mains if args.notch is None else args.notch
    tasks = recipe.find(args, recipe)
    sides = recipe.split({task["name"] for task in tasks})
    for task in tasks:
        task |= {"recipe": args.recipe, "window": recipe.window, "split": sides.get(task["name"], "train")}
    made = {"source": f"recipe {args.recipe}", "split": "the recipe's", "expected": recipe.expected}
    electrodes = tuple(recipe.electrodes.split()) or None
    options: dict[str, Any] = {"electrodes": electrodes, "drop": recipe.drop, "regression": recipe.regression}
    return DataSet(recipe.title, classes=recipe.classes, window=recipe.window, made=made, **options), tasks


# ---- one recording, in a process of the pool


def read(task: Task) -> mne.io.BaseRaw | None:
    """Return a recording that MNE does not read by itself, in V; put starts (s) and labels of trials into the task."""
    if task["recipe"] == "seed-vig":
        return _read_vigilance(task)
    if task["recipe"] == "eegmmidb":
        marks = mne.read_annotations(task["path"])
        first = 0 if Path(task["path"]).stem.endswith(FISTS) else 2
        task["trials"] = [
            (mark["onset"], first + TASKS.index(mark["description"])) for mark in marks if mark["description"] in TASKS
        ]
    return None


def _read_vigilance(task: Task) -> mne.io.BaseRaw:
    """Return a recording of SEED-VIG, whose values are uV at 200 Hz; every 8 s have a label."""
    from scipy.io import loadmat

    path, labels = Path(task["path"]), Path(task["also"][0])
    with recording_readable(str(path)):
        eeg = loadmat(path, squeeze_me=True, struct_as_record=False)["EEG"].data
    if not labels.is_file():
        raise InputError(f"{path}: its labels are missing, expected in {labels}")
    with recording_readable(str(labels)):
        values = loadmat(labels)["perclos"][:, 0]
    expected = (len(values) * PERCLOS * SAMPLING_RATE, len(VIGILANCE.split()))
    if eeg.shape != expected:
        raise InputError(f"{path}: has the shape {eeg.shape}; expected for {len(values)} labels is {expected}")
    task["trials"] = [(PERCLOS * number, [value]) for number, value in enumerate(values)]
    info = mne.create_info(VIGILANCE.split(), SAMPLING_RATE, "eeg")
    return mne.io.RawArray(eeg.T * 1e-6, info, verbose="error")


def windows(task: Task, prepared: Prepared) -> Windows:
    """Return the windows of a recording; a warning if it has not as many trials as it should."""
    recipe = RECIPES[task["recipe"]]
    if "trials" in task:
        return windows_at(prepared, recipe.window, task["trials"], where=task["path"], expected=recipe.trials)
    if recipe.title != "CHB-MIT":
        return consecutive_windows(prepared, recipe.window, task["label"])
    if "seizures" not in task:
        raise InputError(f"{task['path']}: is not in {task['also'][0]}, which says where the seizures are")
    found = consecutive_windows(prepared, recipe.window, 0)
    begin = found.starts / prepared.rate
    for start, end in task["seizures"]:
        found.labels[(begin < end) & (begin + recipe.window > start)] = 1
    return found


if __name__ == "__main__":
    making.run("dataset_maker.make_recipe")
