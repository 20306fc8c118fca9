"""What TUAB and TUEV share: the 23 channels, the folders, the split of subjects, and TUEV's events.

Both are parts of the TUH EEG Corpus (Temple University Hospital; free after registration; the terms forbid passing
recordings on). The published numbers are of recordings with exactly the 23 channels of the average-reference montage,
apart from the known extras, so all others are left out.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset_maker.sources import find_files, train_or_val
from dataset_maker.writers import DataSet, Windows
from errors import InputError

ELECTRODES = (
    *("FP1", "FP2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8"),
    *("T3", "T4", "T5", "T6", "A1", "A2", "FZ", "CZ", "PZ", "T1", "T2"),
)
_INPUTS = ("ROC", "LOC", "EKG1", "EKG", "C3P", "C4P", "SP1", "SP2", "LUC", "RLC", "RESP1", "RESP2", "PG1", "PG2")
EXTRAS = (  # as the files spell them
    *("PHOTIC-REF", "IBI", "BURSTS", "SUPPR", "EMG-REF", "PULSE RATE", "RESP ABDOMEN-REF", "ECG EKG-REF"),
    *(f"EEG {name}-REF" for name in (*_INPUTS, *range(20, 129))),
)
PARTS = {"train": "train", "eval": "test"}  # folders of the corpora -> splits
MAX_NAMED = 12  # channels in a message: a broken file may announce thousands
EVENT, MARGIN = 1, 2  # s: length of an event, and what its window shows before and after it
EVENT_WINDOW = EVENT + 2 * MARGIN  # s
LABELS = range(1, 7)  # of events, as the files have them; 0 to 5 here
EVENTS = ("SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG")

_CHANNELS: dict[str, Any] = {"electrodes": ELECTRODES, "drop": EXTRAS}
TUAB = DataSet("TUAB", ("normal", "abnormal"), window=10, **_CHANNELS)
TUEV = DataSet("TUEV", EVENTS, window=EVENT_WINDOW, wrap=True, **_CHANNELS)


def add_arguments(parser: argparse.ArgumentParser, tree: str) -> None:
    """Declare where the recordings are and how they are split. tree: the folders that `--root` must hold."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help=f"holds {tree}, or edf/ with these")
    split = "how 80/20 of the train folder's subjects become train and val: published cuts the sorted names and gives "
    split += "the published counts; disjoint draws subjects from --seed, none on both sides. eval is test either way"
    parser.add_argument("--split", choices=("published", "disjoint"), default="published", help=split)
    parser.add_argument("--seed", type=int, default=0, help="of --split disjoint (default %(default)s)")


def find_root(root: Path, tree: str) -> Path:
    """Return the folder with train/ and eval/: `root` or `root/edf`. Raises InputError otherwise."""
    for folder in (root, root / "edf"):
        if all((folder / part).is_dir() for part in PARTS):
            return folder
    raise InputError(f"--root {root}: no folders {' and '.join(PARTS)} there; name the folder that holds {tree}")


def find_recordings(
    args: argparse.Namespace, data_set: DataSet, tree: str, folders: Sequence[str], subject_of: Callable[[Path], str]
) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set, with its split, and a task for each EDF below `--root`. Raises InputError without any.

    folders: within train/ and eval/, one for each label, or one for all.
    """
    root = find_root(args.root, tree)
    tasks: list[dict[str, Any]] = []
    for part, split in PARTS.items():
        for label, folder in enumerate(folders):
            for path in find_files([root / part / folder], (".edf",), flag="--root"):
                task = {"path": str(path), "recording": path.stem, "subject": subject_of(path)}
                tasks.append(task | {"split": split, "label": label})
    train = [task for task in tasks if task["split"] == "train"]
    # published: normal and abnormal subjects are cut separately, which leaves some on both sides
    by_folder = [[task for task in train if task["label"] == label] for label in range(len(folders))]
    seed = None if args.split == "published" else args.seed
    for group in by_folder if args.split == "published" else [train]:
        splits = train_or_val((task["subject"] for task in group), seed)
        for task in group:
            task["split"] = splits[task["subject"]]
    made = {"source": data_set.name, "split": args.split, "seed": seed}
    return replace(data_set, made=made), tasks


def check_channels(names: Iterable[str], where: str) -> None:
    """Raise InputError unless these are the 23 channels and known extras, in any order, case and spacing."""
    plain = [" ".join(name.upper().split()) for name in names]
    wanted = [f"EEG {electrode}-REF" for electrode in ELECTRODES]
    missing = [name for name in wanted if name not in plain]
    unexpected = [name for name in plain if name not in wanted and name not in EXTRAS]
    if missing or unexpected:
        differ = f"missing {missing[:MAX_NAMED]}, unexpected {unexpected[:MAX_NAMED]}"
        raise InputError(f"{where}: not the {len(ELECTRODES)} channels of this data set: {differ}")


def read_events(path: Path) -> np.ndarray:
    """Return the rows of a `.rec` file, (events, 4) float64: channel, start s, end s, label 1-6.

    Raises InputError, naming the line, for a row that is no event; quotes nothing of it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); every EDF of TUEV has a file of events"
        raise InputError(f"{path}: {reason}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row: list[float] = []
        with suppress(ValueError):
            row = [float(value) for value in line.split(b",")]
        if len(row) != 4 or not all(0 <= value < math.inf for value in row) or row[3] not in LABELS:
            allowed = f"a channel and seconds from 0, a label from {LABELS[0]} to {LABELS[-1]}"
            raise InputError(f"{path}, line {number}: expected channel,start,end,label: {allowed}")
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def first_samples(times: np.ndarray, rate: float, limit: int) -> np.ndarray:
    """Return the first sample at or after each time (s), at most `limit`; sample k lies at k / rate."""
    times = np.minimum(times, limit / rate)
    samples = np.ceil(times * rate)
    samples -= (samples - 1) / rate >= times  # the product above is rounded: k / rate decides
    samples += samples / rate < times
    return samples.astype(np.int64)


def event_windows(events: np.ndarray, length: int, rate: float, *, unique: bool = False) -> Windows:
    """Return the window of each event, from 2 s before its start to 2 s after its end, and its label - 1.

    events: (events, 4) of `read_events`; length: samples of the recording. Windows that reach over an edge have
    negative starts, or ends beyond the length: they wrap round. Events that are not one second long or end after the
    recording are left out, and all where the recording is shorter than a window. A row is one channel's event, so a
    window may come several times, with one label or several: all are kept, as in the published numbers, and counted.
    unique: keep one of equal ones, none of those with several labels.
    """
    second = round(rate)
    starts, ends = (first_samples(events[:, column], rate, length + 1) for column in (1, 2))
    beyond = ends > length
    odd = ~beyond & (ends - starts != EVENT * second)
    fits = length >= EVENT_WINDOW * second
    kept = ~beyond & ~odd & fits
    first = starts[kept] - MARGIN * second
    labels = events[kept, 3].astype(np.int64) - LABELS[0]
    pairs = np.unique(np.stack((first, labels), axis=1), axis=0)
    _, index, repeats = np.unique(first, return_index=True, return_counts=True)
    kinds = np.unique(pairs[:, 0], return_counts=True)[1]
    wraps = (first < 0) | (first + EVENT_WINDOW * second > length)
    notes = {
        "events that end after the recording, left out": beyond,
        f"events that are not {EVENT} s long, left out": odd,
        f"events in recordings shorter than {EVENT_WINDOW} s, left out": ~beyond & ~odd & (not fits),
        "windows that wrap round at the recording's edge": wraps,
        f"windows that come more than once{', kept once' if unique else ''}": (repeats > 1) & ~(unique & (kinds > 1)),
        f"windows that come with different labels{', left out' if unique else ''}": kinds > 1,
    }
    if unique:
        chosen = np.sort(index[kinds == 1])
        first, labels = first[chosen], labels[chosen]
    return Windows(first, labels, notes={note: int(which.sum()) for note, which in notes.items() if which.any()})
