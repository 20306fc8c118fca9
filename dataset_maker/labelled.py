"""Recordings to one labelled data set: what all labelled makers share. Format: README, "Data files".

A maker says which recordings there are and where their windows lie; this module does the rest: processes, shards,
resumption, the electrodes that all recordings must have, one file in the recordings' order, the report.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dataset_maker import jobs, report
from dataset_maker.jobs import Plan, Spread, Task
from dataset_maker.pipeline import add_filter_arguments, build_pipeline
from dataset_maker.writers import join_shards, refuse_existing
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS, published_sizes
from errors import InputError
from files import check_writable


def add_arguments(parser: argparse.ArgumentParser, *, filters: bool = True) -> None:
    """Declare --output and the flags of processes and, unless the signals are filtered already, of filters."""
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE.hdf5", help="one file; without a suffix: a folder of shards"
    )
    if filters:
        add_filter_arguments(parser)
    jobs.add_arguments(parser)


def make(
    args: argparse.Namespace,
    *,
    maker: str,
    tasks: Sequence[Task],
    name: str,
    task: str,
    classes: Sequence[str],
    electrodes: Sequence[str] | None,
    window: int,
    made: Mapping[str, Any],
    wrap: bool = False,
    drop: Sequence[str] = (),
    expected: str | Mapping[str, int] | None = None,
) -> None:
    """Convert the tasks' recordings into `args.output` with a bar, a summary and a report.

    maker: module with `windows(task, prepared)` and perhaps `read(task)`. tasks: each with path, recording, subject,
    split (unless its windows say), `also` for further files it depends on. electrodes: exact montage, None for what the
    recordings have in common. window: seconds. made: what the file says of its source and split, beside the pipeline.
    wrap: windows may reach round the recording's ends. drop: channels to leave out beside those of --drop. expected:
    samples a split to compare with, or the name of published ones. Raises InputError at the end if recordings were left
    out, and makes no file without samples or whose training split has a single class.
    """
    pipeline = build_pipeline(args, drop=drop)
    spread, output, began = Spread.from_args(args), args.output.resolve(), time.monotonic()
    tasks = jobs.stamped(tasks)
    made = dict(made) | pipeline.described()
    description = {"name": name, "task": task, "classes": list(classes), "rate": pipeline.filter.sampling_rate}
    description |= {"window": window, "wrap": wrap, "electrodes": list(electrodes) if electrodes else None}
    single = output.suffix.lower() in SUFFIXES
    check_writable(output.parent)
    folder = output.with_name(f".{output.name}.making") if single else output
    refuse_foreign(folder)
    plan = Plan(maker, pipeline, folder, made, description)
    fingerprint = hashlib.sha256("".join(plan.key(task) for task in tasks).encode()).hexdigest()[:16]
    if single and made_already(output, fingerprint):
        shutil.rmtree(folder, ignore_errors=True)  # of a maker that was stopped at its very end
        return
    with jobs.only_maker(plan):
        entries, plan, new_seconds = _convert(plan, tasks, spread, single)
        whole = _report(entries, tasks, plan, output, expected)
        problem = unusable(whole)
        report.save(whole, output)
        if single and not problem:
            totals = {split: found["samples"] for split, found in whole["splits"].items()}
            made |= {"fingerprint": fingerprint, "left_out": len(whole["left_out"])}
            shards = dict.fromkeys(folder / entry["file"] for entry in entries if "file" in entry)
            join_shards(list(shards), output, description=plan.description or {}, made=made, totals=totals)
    if single and not problem:
        shutil.rmtree(folder)
    _show(whole, new_seconds, time.monotonic() - began)
    if problem:
        raise InputError(f"{output}: not made, {problem}; see {report.report_path(output)}")
    print(f"{output}: {whole['name']}, {len(whole['electrodes'])} electrodes, {whole['window']} s")
    if count := len(whole["left_out"]):
        raise InputError(f"{count} of {whole['recordings']} recordings were left out, named above")


def refuse_foreign(folder: Path) -> None:
    """Raise InputError for a folder that holds other things: training would take its HDF5 files for shards."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ".making").is_dir():
        raise InputError(f"{folder} holds other files already: name a new folder, or a file with the suffix .hdf5")


def made_already(output: Path, fingerprint: str) -> bool:
    """Whether the file was made whole from the same recordings with the same flags.

    Raises InputError if it is another file, or recordings were left out when it was made.
    """
    if not output.exists():
        return False
    try:
        with h5py.File(output, "r", locking=False) as file:
            made = json.loads(file.attrs["made"])
            same, left_out = made["fingerprint"] == fingerprint, int(made["left_out"])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        same, left_out = False, 0
    if not same:
        refuse_existing(output)
    if left_out:
        raise InputError(
            f"{output} was made without {left_out} recordings, see {report.report_path(output)}: delete it to try again"
        )
    print(f"{output} is already made from these recordings with these flags")
    return True


def _convert(
    plan: Plan, tasks: Sequence[Task], spread: Spread, single: bool
) -> tuple[list[dict[str, Any]], Plan, float]:
    """Do the jobs that are not done yet; returns all recordings in order, the plan with its electrodes, new seconds."""
    found = jobs.survey(plan.maker, plan.pipeline, tasks, spread)
    seen = [(task, result) for task, result in zip(tasks, found, strict=True) if "error" not in result]
    assert plan.description
    electrodes = plan.description["electrodes"] or common_montage([result["electrodes"] for _, result in seen])
    plan = replace(plan, description={**plan.description, "electrodes": electrodes})
    failed = jobs.failed_at_survey(plan, tasks, found)
    kept = jobs.converted_before(plan, tasks, others="remove" if single else "refuse")
    _check_disk(plan, {plan.key(task): result["windows"] for task, result in seen}, kept.keys(), single)
    entries = jobs.run_jobs(plan, jobs.remaining(plan, tasks, kept.keys() | failed.keys()), spread)
    results = failed | kept | {entry["key"]: entry for entry in entries}
    seconds = sum(entry["seconds"] for entry in entries if "error" not in entry)
    return [results[plan.key(task)] for task in tasks], plan, seconds


def _check_disk(plan: Plan, windows: Mapping[str, int], kept: Collection[str], single: bool) -> None:
    """Refuse to begin without space for what is left: shards, and the single file that is then written from them."""
    assert plan.description, "of a labelled set"
    one = len(plan.description["electrodes"] or ()) * round(plan.description["window"] * plan.description["rate"])
    count = sum(number for key, number in windows.items() if key not in kept) + single * sum(windows.values())
    if count:
        jobs.check_disk(plan.folder, count * one * np.dtype(plan.pipeline.dtype).itemsize)


def common_montage(montages: Sequence[Sequence[str]]) -> list[str] | None:
    """Return the electrodes that most recordings have, in the order of the first of them; None without recordings."""
    if not montages:
        return None
    most, _ = Counter(frozenset(names) for names in montages).most_common(1)[0]
    return list(next(names for names in montages if frozenset(names) == most))


def unusable(whole: Mapping[str, Any]) -> str | None:
    """Return why nobody could train on a data set with this report, or None."""
    if not whole["splits"]:
        return "no recording gives a sample"
    train = whole["splits"].get("train")
    if train is None:
        return "no recording gives a sample for training"
    if whole["task"] != "regression" and len(train["labels"]) == 1:
        return f"all {train['samples']} training samples are of one class, {next(iter(train['labels']))}"
    return None


def _report(
    entries: Sequence[Any], tasks: Sequence[Task], plan: Plan, output: Path, expected: str | Mapping[str, int] | None
) -> dict[str, Any]:
    description = plan.description or {}
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.get("counts", {}))
    whole = report.summary(entries, plan.made) | {"output": str(output), "counts": dict(counts)}
    whole |= {key: description[key] for key in ("name", "task", "classes", "electrodes", "window")}
    whole["splits"] = report.splits(entries, description["classes"])
    whole["subjects_on_two_sides"] = report.two_sides(entries)
    if isinstance(expected, str):
        expected = dict(zip(SPLITS, published_sizes()[expected], strict=True))
    whole["expected_samples"] = expected
    return whole


def _show(whole: Mapping[str, Any], new_seconds: float, took: float) -> None:
    """Print the summary; what is doubtful about it goes to standard error."""
    report.show(whole)
    for split, found in whole["splits"].items():
        labels = ", ".join(f"{label} {count}" for label, count in found["labels"].items() if label != "all")
        samples = f"{split}: {found['samples']} samples, {found['recordings']} recordings, {found['subjects']} subjects"
        print(samples + (f" ({labels})" if labels else ""))
        if whole["task"] != "regression" and len(found["labels"]) == 1:
            print(f"warning: {split} has a single class", file=sys.stderr)
    if expected := whole["expected_samples"]:
        print("expected: " + ", ".join(f"{split} {count}" for split, count in expected.items()))
    if sides := whole["subjects_on_two_sides"]:
        some = ", ".join(list(sides)[:5])
        print(f"warning: {len(sides)} subjects are on more than one side: {some}", file=sys.stderr)
    report.show_end(Path(whole["output"]), new_seconds, took)
