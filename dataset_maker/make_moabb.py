"""Turn any data set of MOABB into a labelled HDF5: all its trials at 0.1-75 Hz and 200 Hz, not at a paradigm's band.

`python dataset_maker/make_moabb.py --dataset BNCI2014_001 --split session --output data/BNCI2014_001.hdf5`
MOABB downloads and reads the data, and says where trials begin and what they are called. A trial is one sample, a
session one recording. --split session: a subject's last session is test, of three or more the one before it val.
--split published: that of docs/recipes.md; the counts are compared with the published ones.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import mne
import numpy as np

from dataset_maker import making, pipeline, sources
from dataset_maker.writers import DataSet, Windows, windows_at
from eeg_data.pretraining_files import MAX_SECONDS
from errors import UsageError

PUBLISHED: dict[str, dict[str, Any]] = {  # trials of a session; subjects of val, of test; numbers for `making`
    "BNCI2014_001": {
        **{"trials": 288, "val": ("6", "7"), "test": ("8", "9")},
        "expected": {
            "its description": {"recordings": 18, "subjects": 9, "samples": 5184},
            "papers that lost 96 trials of A04T": {"samples": 5088},
        },
    }
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="class of moabb.datasets")
    add("--paradigm", metavar="NAME", help="class of moabb.paradigms that chooses events (default: all)")
    add("--subjects", type=int, nargs="+", metavar="N", help="MOABB's numbers (default: all)")
    add(
        "--window",
        type=int,
        metavar="SECONDS",
        help="from the start of a trial's interval (default: all whole seconds of it)",
    )
    split = "session: each one's last is test; published: of docs/recipes.md"
    add("--split", choices=("subject", "session", "published"), default="subject", help=split)
    add("--seed", type=int, default=0, help="of --split subject")
    sources.add_fold_arguments(parser, "by --seed")
    pipeline.add_name_arguments(parser)


@lru_cache
def open_class(flag: str, name: str) -> Any:
    """Return an object of a class of moabb.datasets or paradigms. Raises UsageError if it or MOABB is missing."""
    try:
        from moabb import datasets, paradigms
    except ImportError:
        raise UsageError("make_moabb needs MOABB: python -m pip install -r requirements-peers.txt") from None
    for module in (datasets, datasets.fake) if flag == "--dataset" else (paradigms,):
        if hasattr(module, name):
            return getattr(module, name)()
    raise UsageError(f"{flag} {name}: MOABB has no such class, see moabb.{flag[2:]}s")


def session_number(name: str) -> int:
    """Return the number that MOABB puts first in a session's name: of 10 sessions, 9 comes after 2."""
    return int(re.match(r"\d*", name)[0] or 0)  # type: ignore[index]  # it always matches


def split_subjects(
    args: argparse.Namespace, names: list[str], published: Mapping[str, Any]
) -> tuple[dict[str, str], str]:
    """Return subject -> split, none of them for a split by session, and the split's name. Raises UsageError."""
    if args.folds is not None and args.split != "subject":
        raise UsageError(f"--split {args.split}: leave it out with --folds, which split by subject")
    if args.split == "session":
        return {}, "by session"
    if args.split == "published":
        if not published:
            raise UsageError(f"--split published: known of {', '.join(PUBLISHED)}, not of {args.dataset}")
        sides = {name: split for split in ("val", "test") for name in published[split]}
        return {name: sides.get(name, "train") for name in names}, "published"
    by_seed = sources.train_val_test(names, args.seed, f"--dataset {args.dataset}") if args.folds is None else {}
    return sources.chosen_fold(args, names) or (by_seed, f"by subject, seed {args.seed}")


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set and a task for each session; downloads what is not there. Raises UsageError, InputError."""
    source = open_class("--dataset", args.dataset)
    if args.paradigm and not (paradigm := open_class("--paradigm", args.paradigm)).is_valid(source):
        raise UsageError(f"--paradigm {args.paradigm} cannot use {args.dataset}: leave it out, or choose another")
    classes = tuple(paradigm.used_events(source) if args.paradigm else source.event_id)
    window = int(source.interval[1] - source.interval[0]) if args.window is None else args.window
    numbers = args.subjects or source.subject_list
    if not 1 <= window <= MAX_SECONDS:
        raise UsageError(f"--window {window}: allowed are 1 to {MAX_SECONDS} s (trials: {source.interval} s)")
    if unknown := set(numbers).difference(source.subject_list):
        raise UsageError(f"--subjects {min(unknown)}: {args.dataset} has {source.subject_list}")
    published = PUBLISHED.get(args.dataset, {}) if args.split == "published" else {}
    split_of, how = split_subjects(args, [str(number) for number in numbers], published)
    tasks, made = [], {"source": f"MOABB {args.dataset}", "split": how, "paradigm": args.paradigm}
    made["expected"] = published.get("expected", {})
    for number in numbers:
        sessions = sorted(source.get_data([number])[number], key=session_number)
        ends = {1: ["train"], 2: ["train", "test"]}.get(len(sessions), ["val", "test"])
        for session, split in zip(sessions, ["train"] * (len(sessions) - len(ends)) + ends, strict=True):
            task: dict[str, Any] = dict.fromkeys(("path", "recording"), f"{args.dataset}-{number}-{session}")
            task |= {"dataset": args.dataset, "number": number, "session": session, "subject": str(number)}
            task |= {"expected": published.get("trials"), "split": split_of.get(str(number), split)}
            tasks.append(task | {"window": window, "classes": classes})
    return DataSet(args.dataset, classes=classes, window=window, made=made), tasks


def read(task: dict[str, Any]) -> mne.io.BaseRaw:
    """Return a session, in V; puts the starts of its trials (s) and their labels into the task."""
    source = open_class("--dataset", task["dataset"])
    runs = list(source.get_data([task["number"]])[task["number"]][task["session"]].values())
    codes = {name: label for label, name in enumerate(task["classes"], 1)}
    task["trials"], before = [], 0.0
    for raw in runs:
        events = mne.events_from_annotations(raw, codes, verbose="error")[0]
        task["trials"] += [(before + (at - raw.first_samp) / raw.info["sfreq"], code - 1) for at, _, code in events]
        before += raw.n_times / raw.info["sfreq"]
        raw.annotations.delete(np.isin(raw.annotations.description, list(source.event_id)).nonzero()[0])
        raw.load_data(verbose="error").apply_function(lambda x: x * (source.unit_factor * 1e-6))
    return mne.concatenate_raws(runs, verbose="error")


def windows(task: dict[str, Any], prepared: pipeline.Prepared) -> Windows:
    """Return a window for each trial; a warning if they are not as many as published."""
    return windows_at(prepared, task["window"], task["trials"], where=task["path"], expected=task.get("expected"))


if __name__ == "__main__":
    making.run("dataset_maker.make_moabb")
