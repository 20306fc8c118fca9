"""Turn any labelled recordings into a labelled HDF5: a manifest says which seconds have which label.

`python -m dataset_maker.make_labelled --manifest manifest.csv --output data/Imagery.hdf5 --window 4`
`python -m dataset_maker.make_labelled --epochs epochs/ --output data/Imagery.hdf5`
`python -m dataset_maker.make_labelled --bids ds004504 --target participants.tsv:Group --window 10 --output D.hdf5`

The manifest is a CSV file (UTF-8, commas, decimal points) with these columns in any order:
  path         a recording in any format that MNE reads, relative to this file
  start, stop  seconds of a segment on the recording's own clock, which its
               annotations follow; empty: the recording's start, its end
  label        its class; or, for regression, target_0, target_1, ...: numbers
               (rows in which they are empty, n/a or nan are left out)
  split        train, val or test; without this column --seed splits by
               subject: a fifth of them test, of the others a fifth val
  subject      who was recorded: a number or code, never a name
A segment gives the windows of --window seconds that fit into it, --stride seconds apart. Two labels are a binary task,
more a multiclass one. The electrodes are those of the first recording; recordings with others are left out.

--epochs takes epoched files instead: EEGLAB's .set and MNE's -epo.fif. The label of an epoch is the name of the event
that it was cut around. Each gives one sample of --window seconds (default: its whole seconds) from --tmin on.

--bids takes the raw EEG of a BIDS data set. --target is a column of participants.tsv, the label of all windows of a
subject, or of events.tsv, the label of a window from each event on. Subjects are the codes behind sub-.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_maker import bids, epochs, making, marks
from dataset_maker.pipeline import Prepared, add_name_arguments
from dataset_maker.sources import add_fold_arguments, chosen_fold, train_val_test
from dataset_maker.writers import DataSet, Windows
from eeg_data.labelled_files import SPLITS
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE
from errors import InputError, UsageError
from files import sha256

if TYPE_CHECKING:  # --help does not need them
    import mne
    import pandas as pd

MAINS_BY = "PowerLineFrequency of BIDS"
LAST_SECOND = 1e9  # 30 years: no recording is longer
CUT = "segments that reach beyond their recording, cut there"
OUTSIDE = "segments outside their recording, left out"
IN_ORDER = "of each subject's epochs of a label the first 60 % train, then 20 % val, 20 % test"
SHORT = "segments without room for a window, left out"
FLAGS_OF = {"times": "manifest", "tmin": "epochs", "subject": "epochs"} | dict.fromkeys(
    ("target", "onset", *bids.ENTITIES), "bids"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    one_of = parser.add_mutually_exclusive_group(required=True).add_argument
    one_of("--manifest", type=Path, metavar="FILE.csv", help="with the columns above")
    one_of("--epochs", type=Path, nargs="+", metavar="PATH", help="files *.set and *epo.fif, and folders of them")
    one_of("--bids", type=Path, metavar="ROOT", help="a BIDS data set; --target says what its labels are")
    tmin = "of --epochs: first second of a sample, 0 is the event (default: the epoch's first)"
    add("--tmin", type=float, metavar="SECONDS", help=tmin)
    subject = "of --epochs: finds the subject in a path (default: XX of sub-XX as in BIDS, else the file's name)"
    add("--subject", metavar="REGEX", help=subject)
    target = "of --bids: participants.tsv:COLUMN (a label a subject) or events.tsv:COLUMN; numbers are a regression"
    add("--target", metavar="FILE:COLUMN", help=target)
    onset = "of --target events.tsv: from an event to its window's start, maybe negative (default: 0)"
    add("--onset", type=float, metavar="SECONDS", help=onset)
    times = "of --manifest: seconds on the recording's clock, as its annotations have, or from its first sample"
    add("--times", choices=("clock", "first_sample"), default="clock", help=times)
    add("--name", help="of the data set (default: the output's)")
    window = f"length of a window, 1 to {MAX_SECONDS} (default: the segments' whole seconds, if all have the same)"
    add("--window", type=int, metavar="SECONDS", help=window)
    add("--stride", type=float, metavar="SECONDS", help="from one window's start to the next's (default: --window)")
    order = "labels in the order of the class numbers (default: sorted); of a regression the targets' names"
    add("--classes", nargs="+", metavar="LABEL", help=order)
    add("--seed", type=int, help="splits by subject, without a column split (default: 0)")
    add_fold_arguments(parser, "by --seed, without a column split")
    add_name_arguments(parser)
    bids.add_arguments(parser)


def read(task: Mapping[str, Any]) -> "mne.io.BaseRaw | None":
    """Return the epochs of a task as a recording; None for a recording of a manifest, which MNE reads."""
    return epochs.read(task) if "epochs" in task else None


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a recording's segments into windows; they start at the first sample at or after a segment's start.

    Behind a break a segment goes on as another one. Raises InputError if no segment lies in the recording.
    """
    rate, stretches, segments = prepared.rate, prepared.stretches, task["segments"]
    window, stride = round(task["window"] * rate), round(task["stride"] * rate)
    shift = stretches[0].clock if task["times"] == "first_sample" else 0.0
    end = marks.end(stretches) - shift
    rows: list[tuple[int, Any, str]] = []
    notes: Counter[str] = Counter()
    for start, stop, label, split in segments:
        parts = marks.parts(stretches, start + shift, stop + shift)
        spans = [[min(marks.first_sample(time, rate), prepared.length) for time in part] for part in parts]
        fitting = [begin for first, last in spans for begin in range(first, last - window + 1, stride)]
        is_cut = 0 < start < stretches[0].clock - shift or end + 0.5 / rate < stop < math.inf
        notes += Counter({OUTSIDE: not parts, CUT: bool(parts) and is_cut, SHORT: bool(parts) and not fitting})
        rows += [(begin, label, split) for begin in fitting]
    if outside := notes[OUTSIDE]:
        lies = f"it begins at {stretches[0].clock - shift:.10g} s and ends at {end:.10g} s"
        what = f"{task['path']}: {outside} of its {len(segments)} segments lie outside the recording: {lies}"
        if outside == len(segments):
            is_shifted = task["times"] == "clock" and stretches[0].clock != 0
            way_out = "--times first_sample counts from its first sample" if is_shifted else "correct start and stop"
            raise InputError(f"{what} on its clock; {way_out}")
        prepared.report["warnings"].append(f"{what}; they are left out")
    starts, labels, splits = zip(*rows, strict=True) if rows else ((), (), ())
    return Windows(starts, labels, splits, notes + Counter(task.get("notes", {})))


def read_manifest(path: Path) -> tuple["pd.DataFrame", list[str]]:
    """Return a manifest's rows, indexed by their lines, and the names of its targets (none: classes).

    path becomes a Path, start and stop become seconds (stop infinite: the recording's end), targets become numbers,
    the rest stays text. Rows whose label or a target is missing are left out; `attrs["missing"]` of the table counts
    them. Raises InputError, naming line and column, for whatever is wrong.
    """
    import pandas as pd

    options: Any = {"header": None, "dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    try:
        text = pd.read_csv(path, encoding="utf-8-sig", **options)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct --manifest") from None
    except ValueError as error:  # pandas' own errors, too
        expected = "CSV (UTF-8, commas, decimal points, quotation marks around texts with commas)"
        raise InputError(f"{path}: cannot be read as {expected}: {' '.join(str(error).split())}") from None
    text = text.apply(lambda column: column.str.strip()).set_axis(text.index + 1)
    columns = text.iloc[0].to_list()
    targets = _check_columns(columns, f"{path}, line 1")
    text = text.set_axis(columns, axis=1).iloc[1:]
    text = text[(text != "").any(axis=1)]
    if text.empty:
        raise InputError(f"{path}: has no rows below its header")
    missing = text[targets or ["label"]].apply(lambda column: column.str.lower().isin(bids.MISSING)).any(axis=1)
    if missing.all():
        raise InputError(f"{path}: no row has a label: all are empty, n/a or nan")
    text = text[~missing]
    table = text.copy()

    def refuse(column: str, wrong: "pd.Series", allowed: str) -> None:
        for line, value in text.loc[wrong, column].items():
            raise InputError(f"{path}, line {line}, column {column}: is {value[:60]!r}; {allowed}")

    for column, allowed in (("path", "a recording"), ("subject", "a number or code")):
        refuse(column, text[column].str.lower().isin(bids.MISSING), f"expected {allowed}")
    table["path"] = [path.parent / name for name in text["path"]]
    refuse("path", ~table["path"].map(os.path.exists), f"there is no such file or folder in {path.parent}")
    for column, empty in (("start", "0"), ("stop", "inf")):
        table[column] = pd.to_numeric(text[column].replace("", empty), errors="coerce")
        wrong = ~table[column].between(0, LAST_SECOND) & (text[column] != "")
        refuse(column, wrong, "expected seconds from 0, such as 12.5, or nothing")
    refuse("stop", table["stop"] <= table["start"], "expected more than the start")
    for column in targets:
        table[column] = pd.to_numeric(text[column], errors="coerce")
        refuse(column, ~(table[column].abs() <= np.finfo(np.float32).max), "expected a number, such as -0.25")
    if "split" in table:
        table["split"] = text["split"].str.lower()
        hint = f"allowed: {', '.join(SPLITS)}; without this column --seed splits by subject"
        refuse("split", ~table["split"].isin(SPLITS), hint)
        other = table["split"] != table.groupby(["path", "start", "stop"])["split"].transform("first")
        refuse("split", other, "the same seconds are in another split above; delete one of the two rows")
    twice = table.duplicated(["path", "start", "stop", "subject", *(targets or ["label"])])
    refuse("path", twice, "the same seconds have the same subject and label above; delete one of the two rows")
    table.attrs["missing"] = int(missing.sum())
    return table, targets


def _check_columns(names: Sequence[str], where: str) -> list[str]:
    """Return the columns of targets, in order. Raises InputError for unknown, repeated and missing columns."""
    targets = [f"target_{index}" for index in range(sum(name.startswith("target_") for name in names))]
    needed = ["path", "start", "stop", *(targets or ["label"]), "subject"]
    for name in (*names, *needed):
        if names.count(name) != 1 or name not in (*needed, "split"):
            problem = "missing" if name not in names else "unknown or there twice"
            allowed = "path, start, stop, label (or target_0, target_1, ... for regression), split, subject"
            separated = f"the columns are {allowed}, separated by commas; only split may be left out"
            raise InputError(f"{where}: the column {name[:60]!r} is {problem}; {separated}")
    return targets


def choose_window(table: "pd.DataFrame", window: int | None, stride: float | None) -> tuple[int, float]:
    """Return window and stride in s. Raises UsageError for values that cannot be, or that must be given."""
    lengths = np.floor((table["stop"] - table["start"]).round(6))
    if window is None and (lengths.min() < lengths.max() or math.isinf(lengths.max())):
        lasts = f"the segments last from {lengths.min():g} to {lengths.max():g} s"
        raise UsageError(f"--window is needed, 1 to {MAX_SECONDS} s: {lasts}")
    window = int(lengths.min()) if window is None else window
    if not 1 <= window <= MAX_SECONDS:
        raise UsageError(f"--window {window}: must be from 1 to {MAX_SECONDS} s")
    if stride is not None and not 1 / SAMPLING_RATE <= stride < math.inf:
        raise UsageError(f"--stride {stride:g}: must be at least {1 / SAMPLING_RATE:g} s, one sample")
    return window, float(window) if stride is None else stride


def choose_classes(labels: "pd.Series", wanted: Sequence[str] | None, where: str) -> list[str]:
    """Return the classes in order: as wanted, else sorted, as numbers if all are. Raises InputError."""
    import pandas as pd

    classes = list(wanted or sorted(set(labels)))
    if not wanted:
        with suppress(ValueError):  # texts
            classes.sort(key=float)
        if pd.to_numeric(pd.Series(classes), errors="coerce").dropna().duplicated().any():
            raise InputError(f"{where}: labels are one number in two spellings, such as 1 and 1.0; use one of them")
    if len(set(classes)) < len(classes):
        raise UsageError(f"--classes {' '.join(classes)}: names one twice")
    for line, label in labels[~labels.isin(classes)].items():
        raise InputError(f"{where}, line {line}, column label: {label!r} is not among --classes {' '.join(classes)}")
    if absent := set(classes) - set(labels):
        there = ", ".join(sorted(set(labels)))
        print(f"warning: --classes {' '.join(sorted(absent))}: no label of {where}, which has {there}", file=sys.stderr)
    if len(classes) < 2:
        raise InputError(f"{where}: the only label is {classes[0]!r}; a task needs two classes or more")
    return classes


def split_in_order(table: "pd.DataFrame") -> "pd.Series":
    """Return each row's split: of a subject's rows of a label the first 60 % train, then 20 % val, 20 % test."""
    import pandas as pd

    rows = table.groupby(["subject", "label"])["label"]
    place = (rows.cumcount() + 0.5) / rows.transform("size")
    return pd.cut(place, [0, 0.6, 0.8, 1], labels=SPLITS).astype(str)


def split_rows(table: "pd.DataFrame", args: argparse.Namespace, where: str) -> dict[str, Any]:
    """Give the table a column `split` if it has none. Returns what the file says of it. Raises UsageError."""
    if "split" in table:
        if any(flag is not None for flag in (args.seed, args.folds, args.fold)):
            raise UsageError(f"{where} has a column split: delete it, or leave out --seed, --folds and --fold")
        return {"split": "the manifest's", "seed": None}
    if cut := chosen_fold(args, table["subject"]):
        if args.seed is not None:
            raise UsageError(f"--seed {args.seed}: leave it out with --folds, which deal the sorted subjects in turn")
        table["split"] = table["subject"].map(cut[0])
        return {"split": cut[1], "seed": None}
    if args.epochs and (count := table["subject"].nunique()) < 3:
        print(f"warning: {count} subjects cannot be split: {IN_ORDER} instead", file=sys.stderr)
        table["split"] = split_in_order(table)
        return {"split": IN_ORDER, "seed": None}
    table["split"] = table["subject"].map(train_val_test(table["subject"], args.seed or 0, where))
    return {"split": "by subject", "seed": args.seed or 0}


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set that the manifest and the flags describe, and a task for each recording and subject."""
    source = next(name for name in ("manifest", "epochs", "bids") if getattr(args, name))
    for flag, its in FLAGS_OF.items():
        if its != source and getattr(args, flag) not in (None, "clock"):
            raise UsageError(f"--{flag} is a flag of --{its}: leave it out with --{source}")
    where, files, targets = f"--{source}", list[dict[str, Any]](), list[str]()
    if args.epochs:
        table, files = epochs.find(args)
    elif args.bids:
        table, files, targets = bids.find_labels(args)
        where = f"{args.bids}, {args.target}"
    else:
        table, targets = read_manifest(args.manifest)
        where = str(args.manifest)
    window, stride = choose_window(table, args.window, args.stride)
    if targets and args.classes and len(args.classes) != len(targets):
        raise UsageError(f"--classes has {len(args.classes)} names for the {len(targets)} targets of {where}")
    classes = (args.classes or targets) if targets else choose_classes(table["label"], args.classes, where)
    table["number"] = table[targets].values.tolist() if targets else table["label"].map(classes.index)
    made_split = split_rows(table, args, where)
    train = table[table["split"] == "train"]
    if train.empty or (not targets and train["number"].nunique() < 2):
        raise InputError(f"{where}: nothing to train on, {'no row' if targets else 'fewer than two labels'} in train")
    made: dict[str, Any] = {"source": source}
    if args.manifest:
        made["manifest_sha256"] = sha256(args.manifest)
    if args.bids:
        made["target"] = args.target
    if missing := table.attrs.get("missing"):
        print(f"{missing} rows of {where} are left out: their label is missing (empty, n/a or nan)")
        made["rows_without_label"] = missing
    made |= made_split
    name = args.name or args.output.resolve().stem
    data_set = DataSet(name, classes=classes, window=window, regression=bool(targets), made=made)
    of_file = {file["path"]: file for file in files}  # what their tasks hold besides
    tasks = []  # one for each recording and subject
    for (_, subject), rows in table.groupby([table["path"].map(Path.resolve), "subject"], sort=False):
        path = rows["path"].iloc[0]
        task = {"path": str(path), "recording": path.stem, "subject": subject, "window": window, "stride": stride}
        segments = rows[["start", "stop", "number", "split"]].to_numpy(dtype=object).tolist()
        times = "first_sample" if args.bids else args.times  # from which events.tsv counts
        tasks.append(of_file.get(path, {}) | task | {"times": times, "segments": segments})
    for file in files:
        if "error" in file:  # for the report
            tasks.append(file | {"path": str(file["path"]), "recording": file["path"].stem})
    return data_set, tasks


if __name__ == "__main__":
    making.run("dataset_maker.make_labelled")
