"""BIDS data sets: their raw EEG, what is said of its mains and reference, labels from their tables."""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_maker.sidecars import DESCRIPTION, MAINS, entities, sidecars
from dataset_maker.sources import find_files, subject_of
from errors import InputError, UsageError, first_few, printable

if TYPE_CHECKING:  # --help does not need it
    import pandas as pd

MISSING = ("", "n/a", "nan")  # no label, in any case (BIDS, pandas); other words, such as none, may be a class
ENTITIES = {"task": "task", "session": "session", "subjects": "subject"}  # flag -> entity
LONGEST = 60  # letters of a reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that select recordings of a BIDS data set."""
    group = parser.add_argument_group("of a BIDS data set", "names as in BIDS, with or without sub-, ses-, task-")
    for flag in ENTITIES:
        group.add_argument(f"--{flag}", nargs="+", metavar="NAME", help="take these only (default: all)")


def find(root: Path, args: argparse.Namespace, flag: str) -> list[dict[str, Any]]:
    """Return a task for each raw EEG recording of a BIDS data set, as --task, --session and --subjects select them.

    Without --notch a task has its mains as `notch`. Raises InputError without any recording, UsageError for names that
    are not there.
    """
    named = {path: entities(path) for path in _raw_eeg(root, flag)}
    for name, entity in ENTITIES.items():
        if values := getattr(args, name):
            wanted = {re.sub("^(sub|ses|task)-", "", value) for value in values}
            there = {found[entity] for found in named.values() if entity in found}
            if unknown := sorted(wanted - there):
                held = first_few(sorted(there), 12) or "none"
                raise UsageError(f"--{name} {' '.join(unknown)}: not in {root}, which has {held}")
            named = {path: found for path, found in named.items() if found.get(entity) in wanted}
    if not named:
        raise InputError(f"{root}: --task, --session and --subjects together leave no recording; correct them")
    tasks: list[dict[str, Any]] = [{"path": path, "recording": path.name.partition(".")[0]} for path in named]
    return _with_sidecars(tasks, args, root)


def _raw_eeg(root: Path, flag: str) -> list[Path]:
    """Return the recordings in the folders `eeg` of the subjects; other files are counted on the terminal."""
    if not (root / DESCRIPTION).is_file():
        there = "has no" if root.is_dir() else "is no folder with a"
        raise InputError(f"{root}: {there} {DESCRIPTION}, which every BIDS data set has; correct {flag}")
    try:
        description = json.loads((root / DESCRIPTION).read_text(encoding="utf-8-sig"))
        kind = str(description.get("DatasetType", "raw")).lower()
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{root / DESCRIPTION}: cannot be read as a JSON object; correct it, or {flag}") from None
    if kind == "derivative":
        raise InputError(f"{root}: its {DESCRIPTION} says derivative, which is no raw EEG; name the data set it is of")
    folders = sorted(path for path in root.glob("sub-*") if path.is_dir())
    files = find_files(folders, flag=flag) if folders else []
    paths = [path for path in files if path.parent.name == "eeg" and path.name.partition(".")[0].endswith("_eeg")]
    if others := len(files) - len(paths):
        print(f"{others} recordings of {root} are no EEG by their BIDS names and are not read")
    if not paths:
        where = "in a folder sub-*/eeg or sub-*/ses-*/eeg under a name that ends in _eeg"
        raise InputError(f"{root}: none of {len(files)} recordings lies {where}; correct {flag}")
    return paths


def _with_sidecars(tasks: list[dict[str, Any]], args: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """Add what the sidecars say of reference and mains; `notch` is that of most others where one does not say it."""
    for task in tasks:
        about = _sidecar(task["path"])
        reference = printable(str(about.get("EEGReference", "n/a")).strip()[:LONGEST])
        task["about"] = [] if reference.lower() in MISSING else [f"reference, by EEGReference: {reference}"]
        mains = about.get("PowerLineFrequency")
        if isinstance(mains, int | float) and 0 < mains < math.inf:
            task["about"].append(f"mains, by PowerLineFrequency: {mains:g} Hz")
            task["notch"] = float(mains)
    counts = Counter(task["notch"] for task in tasks if "notch" in task)
    if args.notch is None:
        if not counts:
            print(f"warning: {root}: no PowerLineFrequency, the notch is at {MAINS:g} Hz (--notch)", file=sys.stderr)
        usual = counts.most_common(1)[0][0] if counts else MAINS
        return [{"notch": usual} | task for task in tasks]
    if other := [f"{hertz:g} Hz for {count} recordings" for hertz, count in counts.items() if hertz != args.notch != 0]:
        print(f"warning: --notch {args.notch:g}, but PowerLineFrequency says {', '.join(other)}", file=sys.stderr)
    return [{key: value for key, value in task.items() if key != "notch"} for task in tasks]


def settle_notch(args: argparse.Namespace, tasks: Sequence[dict[str, Any]]) -> None:
    """Without --notch: make that of most recordings the flag, which files repeat; the others keep theirs."""
    if args.notch is None:
        notches = [task.pop("notch", MAINS) for task in tasks]
        args.notch = Counter(notches).most_common(1)[0][0]
        for task, notch in zip(tasks, notches, strict=True):
            if notch != args.notch:
                task["notch"] = notch


def _sidecar(path: Path) -> dict[str, Any]:
    """Return what the JSON files of a recording say; the nearer one counts. Raises InputError for a broken one."""
    about: dict[str, Any] = {}
    for file in sidecars(path, "_eeg.json"):
        try:
            about |= json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, TypeError):
            raise InputError(f"{file}: cannot be read as a JSON object; correct it") from None
    return about


# ---- labels


@lru_cache(maxsize=1)
def read_table(path: Path, columns: tuple[str, ...]) -> "pd.DataFrame":
    """Read a TSV of BIDS as text. Raises InputError where it cannot be read or lacks one of the columns."""
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", quoting=3)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TSV (UTF-8, tabs): {' '.join(str(error).split())}") from None
    if lacking := [name for name in columns if name not in table]:
        raise InputError(f"{path}: has no column {lacking[0]!r}; its columns are {', '.join(table)}")
    return table.apply(lambda column: column.str.strip())


def find_labels(args: argparse.Namespace) -> tuple["pd.DataFrame", list[dict[str, Any]], list[str]]:
    """Return the rows of a manifest by --target, the tasks of its recordings, and its targets (none: classes).

    The label of a recording is its subject's in participants.tsv, from its start to its end. Or it has the labels of
    its events, --window seconds from --onset on (with --stride all windows up to the event's end). A column of numbers
    is a target, unless --classes has several names. `attrs["missing"]` counts rows without a label, left out.
    """
    import pandas as pd

    file, _, column = (args.target or "").partition(":")
    if file not in ("participants.tsv", "events.tsv") or not column:
        is_given = args.target or "is missing"
        raise UsageError(f"--target {is_given}: --bids needs participants.tsv:COLUMN or events.tsv:COLUMN")
    if (args.window is None) if file == "events.tsv" else (args.onset is not None):
        raise UsageError("--target events.tsv:COLUMN needs --window SECONDS; --onset is a flag of this target alone")
    tasks = [task | {"subject": subject_of(task["path"])} for task in find(args.bids, args, "--bids")]
    settle_notch(args, tasks)
    read = _of_events if file == "events.tsv" else _of_participants
    rows = [row for task in tasks for row in read(task, column, args)]
    table = pd.DataFrame(rows, columns=["path", "subject", "start", "stop", "label"])
    if left := len({task["path"] for task in tasks}.difference(table["path"])):
        print(f"{left} of {len(tasks)} recordings are left out: they have no row in {file}")
    missing = table["label"].str.lower().isin(MISSING) | table["start"].isna()
    if missing.all():
        raise InputError(
            f"{args.bids}: no label in the column {column} of {file}: all are empty, n/a or nan, or no row"
        )
    table = table[~missing]
    if twice := int(table.duplicated().sum()):
        print(f"{twice} events of the same second and label are left out: they come twice")
        table = table.drop_duplicates()
    numbers, names = pd.to_numeric(table["label"], errors="coerce"), args.classes or []
    targets = []
    if len(names) < 2 and numbers.notna().all() and numbers.abs().max() < math.inf:
        print(f"{args.target} holds numbers: a regression (--classes with its values makes them classes)")
        table, targets, args.classes = table.assign(target_0=numbers), ["target_0"], names or [column]
    elif names and (other := ~table["label"].isin(names)).any():
        counts = table["label"][other].value_counts().items()
        print(
            "labels that are not among --classes, left out: "
            + printable(", ".join(f"{label} {n}" for label, n in counts))
        )
        table = table[~other]
    table.attrs["missing"] = int(missing.sum())
    return table, tasks, targets


def _of_participants(task: dict[str, Any], column: str, args: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return a row for the whole recording: path, subject, start, stop, label; none if its subject has no row."""
    people = read_table(args.bids / "participants.tsv", ("participant_id", column))
    mine = people[people["participant_id"].str.removeprefix("sub-") == task["subject"]]
    if len(mine) > 1:
        raise InputError(f"{args.bids / 'participants.tsv'}: has sub-{task['subject']} {len(mine)} times; keep one row")
    return [(task["path"], task["subject"], 0.0, math.inf, label) for label in mine[column]]


def _of_events(task: dict[str, Any], column: str, args: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return a row for each event of a recording: path, subject, start, stop (s from its first sample), label."""
    import pandas as pd

    rows = []
    for file in sidecars(task["path"], "_events.tsv")[-1:]:
        events = read_table(file, ("onset", column))
        begin = pd.to_numeric(events["onset"], errors="coerce")
        ends = begin + pd.to_numeric(events["duration"], errors="coerce") if "duration" in events else begin
        for start, end, label in zip(begin + (args.onset or 0.0), ends, events[column], strict=True):
            stop = max(start + args.window, end) if args.stride else start + args.window
            rows.append((task["path"], task["subject"], start, stop, label))
    return rows
