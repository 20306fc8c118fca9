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
from dataset_maker.sources import find_files, subject_of
from dataset_maker.writers import DataSet, Windows, consecutive_windows, windows_at
from eeg_data.pretraining_files import SAMPLING_RATE
from electrodes import ELECTRODES
from errors import InputError, first_few

MAINS_BY = "that of the data set"
VIGILANCE = "FT7 FT8 T7 T8 TP7 TP8 CP1 CP2 P1 PZ P2 PO3 POZ PO4 O1 OZ O2"  # columns of SEED-VIG's raw data
PERCLOS = 8  # s from a label of SEED-VIG to the next one
SAME_PERSON = {"chb21": "chb01"}  # recorded again a year and a half later (PhysioNet)
SEIZURE = re.compile(r"Seizure\s*\d*\s*(?:Start|End)\s*Time\s*:\s*(\d+)")
COUNT = re.compile(r"Number of Seizures in File\s*:\s*(\d+)")
FISTS = ("04", "08", "12")  # runs of eegmmidb in which T1 and T2 are one fist; in the others both fists, both feet
TASKS = ("T1", "T2")

Task = dict[str, Any]
Split = Callable[[Collection[str]], dict[str, str]]  # names -> split of those that do not train


@dataclass(frozen=True)
class Recipe:
    """How a public data set becomes a labelled one."""

    title: str  # of the data set in the file
    find: Callable[[argparse.Namespace, "Recipe"], list[Task]]
    classes: Sequence[str]  # of a regression the names of its targets
    window: int  # s
    mains: float  # Hz
    split: Split
    expected: Mapping[str, Mapping[str, int]]  # who says it -> number of recordings, subjects, samples
    files: str = ""  # pattern of the end of a recording's path; groups: `name` for the split, maybe `group`, its class
    electrodes: str = ""  # none: those of the first recording
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
    """Return a task for each file whose path matches the recipe's pattern; says which others there are.

    Raises InputError without any, and for two files of one name, which may be two copies.
    """
    tasks, unread, seen = [], list[str](), dict[str, Path]()
    for path in find_files([args.root], {f".{recipe.files.rpartition('.')[2]}"}, "--root"):
        match = re.search(f"/{recipe.files}$", path.absolute().as_posix())
        if not match:
            unread.append(path.name)
            continue
        if (first := seen.setdefault(path.name, path)) != path:
            raise InputError(f"--root {args.root}: {first} and {path} have one name; name the folder of one copy")
        name = match["name"]
        tasks.append({"path": str(path), "recording": path.stem, "name": name, "subject": name})
        if "group" in match.groupdict():
            tasks[-1]["label"] = recipe.classes.index(match["group"])
    if others := [name for name in unread if name not in seen]:  # labels of a recording have its name
        print(f"{len(others)} other files of this format are not read: {first_few(others, 8)}")
    if not tasks:
        raise InputError(f"--root {args.root}: no recording of {args.recipe} there (docs/recipes.md shows its files)")
    return tasks


def with_seizures(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each file of CHB-MIT, with start and end (s) of its seizures, or why these are not known."""
    tasks = by_name(args, recipe)
    for task in tasks:
        path = Path(task["path"])
        summary = path.with_name(f"{task['name']}-summary.txt")
        task |= {"also": [str(summary)], "subject": SAME_PERSON.get(task["name"], task["name"])}
        try:
            blocks = summary.read_text(encoding="latin-1").split("File Name:")[1:]
        except OSError as error:
            task["problem"] = (
                f"{summary}, which says where its seizures are, cannot be read ({error.strerror}): put it there"
            )
            continue
        mine = [block for block in blocks if block.split()[:1] == [path.name]]
        times = [int(second) for block in mine for second in SEIZURE.findall(block)]
        task["seizures"] = list(zip(times[::2], times[1::2], strict=False))
        if not mine and not path.with_name(f"{path.name}.seizures").exists():
            task["about"] = ["not in the summary of its case, and without a file of seizures: taken as without any"]
        elif (
            len(mine) != 1
            or COUNT.findall(mine[0]) != [str(len(task["seizures"]))]
            or len(times) % 2
            or any(start >= end for start, end in task["seizures"])
        ):
            task["problem"] = f"{summary} does not say clearly where its seizures are: download it again, or correct it"
    return tasks


def with_vigilance(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each recording of SEED-VIG; its labels are in perclos_labels, under the same name."""
    tasks = by_name(args, recipe)
    for task in tasks:
        path = Path(task["path"]).absolute()
        task["also"] = [str(path.parents[1] / "perclos_labels" / path.name)]
    return tasks


def of_bids(args: argparse.Namespace, recipe: Recipe) -> list[Task]:
    """Return a task for each recording with eyes closed of a BIDS data set; its label is the group of its subject."""
    flags = argparse.Namespace(**dict.fromkeys(bids.ENTITIES) | {"task": ["eyesclosed"]}, notch=args.notch)
    tasks = bids.find(args.root, flags, "--root")
    people = bids.read_table(args.root / "participants.tsv", ("participant_id", "Group"))
    groups = dict(zip(people["participant_id"], people["Group"], strict=True))
    known, unknown = [], []
    for task in tasks:
        subject = subject_of(task["path"])
        if (group := groups.get(f"sub-{subject}", "")) in recipe.classes:
            more = {"subject": subject, "name": group + subject, "label": recipe.classes.index(group)}
            known.append({**task, "path": str(task["path"]), **more})
        else:
            unknown.append(f"sub-{subject}")
    if unknown:
        what = f"have no row in participants.tsv, or a Group other than {', '.join(recipe.classes)}"
        print(f"{len(unknown)} recordings are left out, whose subjects {what}: {first_few(unknown, 8)}")
    return known


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
        trials=15,
    ),
    "mumtaz": Recipe(
        "Mumtaz2016",
        by_name,
        classes=("H", "MDD"),  # healthy, major depressive disorder
        window=5,
        mains=50,
        files=r"(6921959_)?(?P<name>(?P<group>H|MDD) S\d+) +E[CO]\.edf",
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
    args.keep = tuple(recipe.electrodes.split())
    args.notch = recipe.mains if args.notch is None else args.notch
    tasks = recipe.find(args, recipe)
    sides = recipe.split({task["name"] for task in tasks})
    for task in tasks:
        task |= {"recipe": args.recipe, "window": recipe.window, "split": sides.get(task["name"], "train")}
    made = {"source": f"recipe {args.recipe}", "split": "the recipe's", "expected": recipe.expected}
    options: dict[str, Any] = {"electrodes": args.keep or None, "regression": recipe.regression}
    return DataSet(recipe.title, classes=recipe.classes, window=recipe.window, made=made, **options), tasks


# ---- one recording, in a process of the pool


def read(task: Task) -> mne.io.BaseRaw | None:
    """Return a recording that MNE does not read by itself, in V; put starts (s) and labels of trials into the task."""
    if "problem" in task:
        raise InputError(f"{task['path']}: {task['problem']}")
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
    if not labels.is_file():
        raise InputError(f"{path}: its labels are missing, expected in {labels}")
    try:
        eeg = loadmat(path, squeeze_me=True, struct_as_record=False)["EEG"].data
        values = loadmat(labels)["perclos"].ravel()
    except Exception as error:  # whatever SciPy raises on broken bytes
        what = f"expected are EEG.data there and perclos in {labels}, in MATLAB's format 5"
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); {what}") from None
    expected = (len(values) * PERCLOS * SAMPLING_RATE, len(VIGILANCE.split()))
    if eeg.shape != expected:
        raise InputError(f"{path}: has the shape {eeg.shape}; expected for {len(values)} labels is {expected}")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{labels}: PERCLOS is a share, from 0 to 1; its values are not")
    task["trials"] = [(PERCLOS * number, [value]) for number, value in enumerate(values)]
    info = mne.create_info(VIGILANCE.split(), SAMPLING_RATE, "eeg")
    return mne.io.RawArray(eeg.T * 1e-6, info, verbose="error")


def windows(task: Task, prepared: Prepared) -> Windows:
    """Return the windows of a recording; a warning if it has not as many trials as it should."""
    recipe = RECIPES[task["recipe"]]
    if "trials" in task:
        return windows_at(prepared, recipe.window, task["trials"], where=task["path"], expected=recipe.trials)
    if "seizures" not in task:
        return consecutive_windows(prepared, recipe.window, task["label"])
    prepared.report["warnings"][:] = [text for text in prepared.report["warnings"] if "share a name" not in text]
    found = consecutive_windows(prepared, recipe.window, 0)
    begin = found.starts / prepared.rate
    for start, end in task["seizures"]:
        if start * prepared.rate >= prepared.length:
            raise InputError(f"{task['path']}: ends before {start} s, where {task['also'][0]} has a seizure")
        found.labels[(begin < end) & (begin + recipe.window > start)] = 1
    return found


if __name__ == "__main__":
    making.run("dataset_maker.make_recipe")
