"""Turn any labelled recordings into a labelled HDF5: a manifest says which seconds have which label.

`python -m dataset_maker.make_labelled --manifest manifest.csv --output data/Imagery.hdf5 --window 4`

The manifest is a CSV file with the columns
  path         a recording in any format that MNE reads, relative to this file
  start, stop  seconds of a segment; empty: the recording's start, its end
  label        its class; or, for regression, target_0, target_1, ...: numbers
  split        train, val or test; without this column --seed splits by
               subject: a fifth of them test, of the others a fifth val
  subject      who was recorded: a number or code, never a name
A segment gives the windows of --window seconds that fit into it, --stride seconds apart. Two labels are a binary task,
more a multiclass one; the electrodes are those that the recordings have.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import mne
import numpy as np

from dataset_maker import labelled, pipeline, splits
from dataset_maker.manifest import Segment, number, read_manifest
from dataset_maker.pipeline import Prepared, Windows
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE
from errors import ArgumentParser, InputError, UsageError, run_script

BEYOND, CUT, SHORT = (
    "segments that begin beyond their recording's end, left out",
    "segments that reach beyond their recording's end, cut there",
    "segments shorter than a window, left out",
)


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE.csv", help="with the columns above")
    parser.add_argument("--name", help="of the data set (default: the output's)")
    parser.add_argument(
        "--window",
        type=int,
        metavar="SECONDS",
        help=f"length of a window, 1 to {MAX_SECONDS} (default: the segments' whole seconds, if all have the same)",
    )
    parser.add_argument(
        "--stride", type=float, metavar="SECONDS", help="from one window's start to the next's (default: --window)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="LABEL",
        help="labels in the order of the class numbers (default: sorted); of a regression the targets' names",
    )
    parser.add_argument("--seed", type=int, help="splits by subject, without a column split (default: 0)")
    pipeline.add_name_arguments(parser)
    labelled.add_arguments(parser)
    return parser.parse_args()


def read(task: Mapping[str, Any]) -> mne.io.BaseRaw:
    """Open a recording in any format that MNE knows. Raises InputError if it is unreadable."""
    return pipeline.open_raw(Path(task["path"]))


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a recording's segments into windows; they start at the first sample at or after a segment's start."""
    rate, length = prepared.rate, prepared.length
    window, stride = round(task["window"] * rate), round(task["stride"] * rate)
    starts: list[int] = []
    labels, split_of = [], []
    notes: Counter[str] = Counter()
    for start, stop, label, split in task["segments"]:
        first, last = (length if s is None else math.ceil(round(s * rate, 6)) for s in (start, stop))
        if first >= length:
            notes[BEYOND] += 1
            continue
        notes[CUT] += last > length
        found = range(first, min(last, length) - window + 1, stride)
        notes[SHORT] += not found
        starts += found
        labels += [label] * len(found)
        split_of += [split] * len(found)
    kind = np.float32 if isinstance(task["segments"][0][2], list) else np.int64
    counts = {note: count for note, count in notes.items() if count}
    return Windows(np.array(starts, dtype=np.int64), np.array(labels, dtype=kind), split_of, counts)


def choose_window(segments: Sequence[Segment], window: int | None, stride: float | None) -> tuple[int, float]:
    """Return window and stride in s. Raises UsageError for values that cannot be, or that must be given."""
    if window is None:
        lengths = {math.inf if s.stop is None else round(s.stop - s.start, 6) for s in segments}
        whole = {math.floor(length) if length < math.inf else 0 for length in lengths}
        window = min(whole)
        if len(whole) > 1 or not 1 <= window <= MAX_SECONDS:
            found = f"the segments last from {min(lengths):g} to {max(lengths):g} s".replace("inf s", "the end")
            raise UsageError(f"--window is needed, 1 to {MAX_SECONDS} s: {found}")
    if not 1 <= window <= MAX_SECONDS:
        raise UsageError(f"--window {window}: must be from 1 to {MAX_SECONDS} s")
    if stride is not None and not 1 / SAMPLING_RATE <= stride < math.inf:
        raise UsageError(f"--stride {stride:g}: must be at least {1 / SAMPLING_RATE:g} s, one sample")
    return window, float(window) if stride is None else stride


def choose_classes(segments: Sequence[Segment], wanted: Sequence[str] | None, where: str) -> list[str]:
    """Return the classes in order: as wanted, else numbers by size or texts sorted. Raises InputError."""
    lines = {str(s.label): s.line for s in reversed(segments)}  # label -> its first line
    numbers = {label: number(label) for label in lines}
    if wanted is None:
        numeric = None not in numbers.values()
        if numeric and len(set(numbers.values())) < len(numbers):
            raise InputError(
                f"{where}: some labels are one number in two spellings, such as 1 and 1.0; use one of them"
            )
        wanted = sorted(lines, key=lambda label: numbers[label] or 0.0) if numeric else sorted(lines)
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"--classes {' '.join(wanted)}: names one twice")
    if unknown := [label for label in lines if label not in wanted]:
        line = lines[unknown[0]]
        raise InputError(
            f"{where}, line {line}, column label: {unknown[0]!r} is not among --classes {' '.join(wanted)}"
        )
    if len(wanted) < 2:
        raise InputError(f"{where}: the only label is {wanted[0]!r}; a task needs two classes or more")
    return list(wanted)


def split_subjects(segments: Sequence[Segment], seed: int, where: str) -> dict[str, str]:
    """Return subject -> split: a fifth test, of the others a fifth val. Raises InputError for fewer than three."""
    if len(subjects := {s.subject for s in segments}) < 3:
        reason = f"{len(subjects)} subjects cannot be split into train, val and test"
        raise InputError(f"{where}: {reason}; add a column split that says where each row goes")
    outer = splits.disjoint(subjects, seed)
    inner = splits.disjoint([subject for subject, split in outer.items() if split == "train"], seed)
    return {subject: inner.get(subject, "test") for subject in outer}


def find_tasks(segments: Sequence[Segment], classes: Sequence[str], window: int, stride: float) -> list[dict[str, Any]]:
    """Return a task for each recording and subject, with its segments. window, stride: seconds."""
    tasks: dict[tuple[Path, str], dict[str, Any]] = {}
    resolved = {path: path.resolve() for path in {s.path for s in segments}}
    for s in segments:
        label = classes.index(s.label) if isinstance(s.label, str) else list(s.label)
        new = {"path": str(s.path), "recording": s.path.stem, "subject": s.subject, "segments": []}
        task = tasks.setdefault((resolved[s.path], s.subject), new)
        task["segments"].append([s.start, s.stop, label, s.split])
    return [task | {"window": window, "stride": stride} for task in tasks.values()]


def main(args: argparse.Namespace) -> None:
    """Convert what the manifest names; raises InputError at the end if a recording was left out."""
    where = str(args.manifest)
    segments, targets = read_manifest(args.manifest)
    window, stride = choose_window(segments, args.window, args.stride)
    if targets and args.classes and len(args.classes) != len(targets):
        raise UsageError(f"--classes has {len(args.classes)} names for the {len(targets)} targets of {where}")
    classes = (args.classes or targets) if targets else choose_classes(segments, args.classes, where)
    by_subject = segments[0].split is None
    if args.seed is not None and not by_subject:
        raise UsageError(f"--seed {args.seed}: {where} has a column split; leave out the flag, or delete the column")
    seed = args.seed or 0
    if by_subject:
        split = split_subjects(segments, seed, where)
        segments = [s._replace(split=split[s.subject]) for s in segments]
    if len({s.label for s in segments if s.split == "train"}) < (1 if targets else 2):
        raise InputError(f"{where}: nothing to train on, {'no row' if targets else 'fewer than two labels'} in train")
    made = {"source": "manifest", "manifest_sha256": hashlib.sha256(args.manifest.read_bytes()).hexdigest()}
    labelled.make(
        args,
        maker="dataset_maker.make_labelled",
        tasks=find_tasks(segments, classes, window, stride),
        name=args.name or args.output.resolve().stem,
        task="regression" if targets else "binary" if len(classes) == 2 else "multiclass",
        classes=classes,
        electrodes=None,
        window=window,
        made=made | {"split": "by subject" if by_subject else "the manifest's", "seed": seed if by_subject else None},
    )


if __name__ == "__main__":
    run_script(main, get_args())
