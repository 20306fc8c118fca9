"""Make files of recordings: what all makers share. Formats: docs/data.md.

A maker lists the recordings and, of a labelled set, says where their windows lie. This module does the rest: processes,
resuming, the electrodes that all recordings of a labelled set must have, one file or a folder of shards, the report.
"""

import argparse
import importlib
import json
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import h5py

from dataset_maker import jobs, pool
from dataset_maker.jobs import Entry, Plan, Task
from dataset_maker.pipeline import add_filter_arguments, add_scale_argument, build_pipeline
from dataset_maker.writers import DataSet, join, refuse_existing
from eeg_data.hdf5 import SUFFIXES
from eeg_data.index import index_folder
from eeg_data.labelled_files import SPLITS
from eeg_data.quality import UNUSABLE
from eeg_data.verdicts import recording_warnings
from errors import ArgumentParser, InputError, UsageError, run_script
from files import digest_of, write_json, written_aside

PUBLISHED = Path(__file__).with_name("published_splits.json")


def run(maker: str) -> None:
    """Run the command line of a labelled maker.

    maker: name of a module. Its docstring is the help. `add_arguments(parser)` declares its flags.
    `find_recordings(args)` returns the DataSet and a task for each recording: path, recording (its name), subject,
    split (unless its windows name it), `also` (other files it depends on), entries that its hooks need.
    FILTERED = True: its signals are filtered already. MAINS_BY: who says --notch. Hooks: see `jobs`.
    """
    module = importlib.import_module(maker)
    parser = ArgumentParser(description=module.__doc__)
    module.add_arguments(parser)
    output = "one file; without a suffix: a folder of shards"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.hdf5", help=output)
    if not getattr(module, "FILTERED", False):
        add_filter_arguments(parser, mains=getattr(module, "MAINS_BY", ""))
    add_scale_argument(parser)
    pool.add_arguments(parser)
    run_script(lambda args: make(args, maker, *module.find_recordings(args)), parser.parse_args())


def make(
    args: argparse.Namespace,
    maker: str,
    data_set: DataSet | None,
    tasks: Iterable[Task],
    *,
    source: str = "",
    drop: Sequence[str] = (),
    excluded: Sequence[str] = (),
) -> None:
    """Convert the tasks' recordings into `args.output` with a bar, a summary and a report.

    data_set: None for pre-training files, which have a source, and channels to leave out in addition to --drop.
    excluded: recordings that somebody left out, for the report.
    Raises InputError at the end if recordings were left out; a data set that nobody can train on is not made.
    """
    pipeline = build_pipeline(args, drop=data_set.drop if data_set else drop)
    made = {**(data_set.made if data_set else {"source": source}), **pipeline.described()}
    output, tasks = args.output.resolve(), jobs.stamped(tasks)
    single = data_set is not None and output.suffix.lower() in SUFFIXES
    folder = output.with_name(f".{output.name}.making") if single else output  # of the shards
    if data_set:
        _check_folder(folder, single=single)
    plan = Plan(maker, pipeline, folder, made, data_set)
    fingerprint = digest_of(plan.key(task) for task in tasks)
    if single and is_made_already(output, fingerprint):
        shutil.rmtree(folder, ignore_errors=True)  # of a maker that was stopped at its very end
        return
    advice = None
    with jobs.only_maker(plan):
        with pool.processes(args) as submit:
            if data_set and not data_set.electrodes:
                data_set = replace(data_set, electrodes=jobs.first_electrodes(plan, tasks, submit))
                plan = replace(plan, data_set=data_set)
            entries, parts = jobs.convert_all(plan, tasks, submit)
            if hasattr(args, "drop") and data_set:
                advice = jobs.drop_that_keeps_all(plan, tasks, entries, submit)
        whole = write_report(entries, made, output, data_set, advice, excluded)
        problem = why_unusable(whole) if data_set else None
        if single and not problem:
            for path in output.parent.glob(f".{escape(output.name)}.*.part"):  # of a maker that was killed here
                path.unlink()
            made = {**made, "fingerprint": fingerprint, "left_out": len(whole["left_out"])}
            with written_aside(output) as aside:
                join([plan.part(task) for task in tasks if plan.key(task) in parts], aside, made=made)
        elif not problem:
            jobs.join(plan, tasks, parts)
            if data_set is None:
                index_folder(output)
    if single and not problem:
        shutil.rmtree(folder)
    _show(whole)  # last: it may be that nobody reads it any more
    hint = _way_out(args.drop, advice) if advice else ""
    if problem:
        raise InputError(f"{output}: not made, {problem}; see {report_path(output)}{hint}")
    if count := len(whole["left_out"]):
        raise InputError(f"{count} of {len(tasks)} recordings were left out, named above{hint}")
    if not whole["converted"]:
        raise InputError(f"none of {len(tasks)} files holds a signal, see above; correct --input")


def _check_folder(folder: Path, *, single: bool) -> None:
    """Raise UsageError for a folder of shards that looks like a file, InputError if it holds something else."""
    if not single and re.fullmatch(r"\.[A-Za-z]\w*", folder.suffix):
        raise UsageError(f"--output {folder}: a file ends in {' or '.join(SUFFIXES)}, a folder has no such suffix")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ".making").is_dir():
        raise InputError(f"{folder} holds other files already: name a new folder, or a file with the suffix .hdf5")


def _way_out(drop: Sequence[str], advice: Mapping[str, Any]) -> str:
    """Return the flag that keeps all recordings. drop: of the flag now. advice: of `jobs.drop_that_keeps_all`."""
    more = f"keeps {advice['recordings']} more recordings, {advice['hours']:.2f} h"
    return f"; {shlex.join(['--drop', *drop, *advice['drop']])} {more}, and leaves {advice['electrodes']} electrodes"


def is_made_already(output: Path, fingerprint: str) -> bool:
    """Whether the file was made from the same recordings with the same flags.

    Raises InputError if it is another file, or if recordings were left out when it was made.
    """
    made: dict[str, Any] = {}
    with suppress(OSError, KeyError, ValueError), h5py.File(output, "r", locking=False) as file:
        made = json.loads(file.attrs["made"])
    if made.get("fingerprint") != fingerprint:
        refuse_existing(output)
        return False
    if count := made["left_out"]:
        place = report_path(output)
        raise InputError(f"{output} was made without {count} recordings, see {place}: delete it to try again")
    print(f"{output} is already made from these recordings with these flags")
    return True


def why_unusable(whole: Mapping[str, Any]) -> str | None:
    """Return why nobody can train on a data set with this report, or None."""
    train = whole["splits"].get("train")
    if train is None:
        return f"no recording gives a sample{' for training' if whole['splits'] else ''}"
    if whole["task"] != "regression" and len(train["labels"]) == 1:
        return f"all {train['samples']} training samples are of one class, {next(iter(train['labels']))}"
    return None


# ---- the report: paths, channel names, counts and reasons, nothing else of a recording's header


def report_path(output: Path) -> Path:
    """Return where the report of an output goes: into its folder."""
    return output.with_name(f"{output.stem if output.suffix.lower() in SUFFIXES else output.name}.report.json")


def write_report(
    entries: Sequence[Entry],
    made: Mapping[str, Any],
    output: Path,
    data_set: DataSet | None = None,
    advice: Mapping[str, Any] | None = None,
    excluded: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the report of an output, and return it. data_set: of a labelled one. advice: how to keep all recordings."""
    good = [entry for entry in entries if not entry.keys() & jobs.FAILED.keys()]
    dropped: dict[str, Counter[str]] = {}  # reason -> channel -> recordings
    for entry in good:
        for channel, reason in entry["dropped"].items():
            dropped.setdefault(reason, Counter())[channel] += 1
    whole = {
        "output": str(output),
        "made": dict(made),
        "recordings": len(entries),
        "converted": len(good),
        "hours": _hours(good),
        "invalid_seconds": sum(entry["invalid_seconds"] for entry in good),
        "breaks": sum(entry.get("breaks", 0) for entry in good),
        **{name: _failed(entries, key) for name, key in (("left_out", "error"), ("passed_over", "passed_over"))},
        "warnings": [warning for entry in good for warning in entry["warnings"]],
        "compared": recording_warnings({entry["open"]: entry.get("median") for entry in good}),
        "dropped_channels": {reason: dict(sorted(names.items())) for reason, names in sorted(dropped.items())},
        "notes": dict(Counter(note for entry in good for note in entry["notes"])),
    }
    if excluded:
        whole["excluded"] = list(excluded)
    if advice:
        whole["drop_that_keeps_all"] = dict(advice)
    whole |= _splits(good, data_set) if data_set else {"montages": _montages(good)}
    write_json(report_path(output), whole)
    return whole


def _failed(entries: Sequence[Entry], key: str) -> list[dict[str, str]]:
    return [{"path": entry["open"], "reason": entry[key]} for entry in entries if key in entry]


def _hours(entries: Sequence[Entry]) -> float:
    return round(sum(entry["seconds"] for entry in entries) / 3600, 4)


def _montages(good: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return recordings and hours of each montage, the most frequent first."""
    rows = []
    for names, count in Counter(tuple(entry["electrodes"]) for entry in good).most_common():
        hours = _hours([entry for entry in good if tuple(entry["electrodes"]) == names])
        rows.append({"electrodes": list(names), "recordings": count, "hours": hours})
    return rows


def _splits(good: Sequence[Entry], data_set: DataSet) -> dict[str, Any]:
    """Return what a labelled data set holds by split, and the subjects in more than one of them."""
    names = {str(number): label for number, label in enumerate(data_set.classes)} | {"all": "all"}  # regression
    counts: Counter[str] = Counter()
    sides: dict[str, list[str]] = {}
    for entry in good:
        counts.update(entry["counts"])
    parts: dict[str, Any] = {}
    for split in SPLITS:
        if inside := [entry for entry in good if split in entry["samples"]]:
            labels = sum((Counter(entry["samples"][split]) for entry in inside), Counter[str]())
            subjects = {entry["subject"] for entry in inside}
            for subject in sorted(subjects):
                sides.setdefault(subject, []).append(split)
            parts[split] = {"recordings": len(inside), "subjects": len(subjects), "samples": labels.total()}
            parts[split]["labels"] = {names[key]: labels[key] for key in names if key in labels}
    return {
        **{key: getattr(data_set, key) for key in ("name", "task", "classes", "electrodes", "window")},
        "counts": dict(counts),
        "subjects": len(sides),
        "splits": parts,
        "subjects_on_two_sides": {subject: where for subject, where in sides.items() if len(where) > 1},
    }


def published_counts(name: str) -> dict[str, dict[str, int]]:
    """Return the published samples a split of a data set, by name and version."""
    sizes = json.loads(PUBLISHED.read_text(encoding="utf-8"))["sizes"]
    return {key: dict(zip(SPLITS, sizes[key], strict=True)) for key in sizes if key.partition(" v")[0] == name}


def _show(report: Mapping[str, Any]) -> None:
    """Print what people need of the report; doubts go to standard error."""
    output = Path(report["output"])
    for text in report["compared"]:
        print(f"warning: {text}", file=sys.stderr)
    for reason, names in report["dropped_channels"].items():
        print(f"dropped, {reason}: " + ", ".join(f"{name!r} ({count}x)" for name, count in names.items()))
    notes = {f"recordings: {note}": count for note, count in report["notes"].items()} | report.get("counts", {})
    for what, count in notes.items():
        print(f"{count} {what}")
    if breaks := report["breaks"]:
        print(f"{breaks} breaks, which no filter and no window crosses")
    if invalid := report["invalid_seconds"]:
        print(f"{invalid} invalid seconds ({UNUSABLE}) are marked in the files")
    for row in report.get("montages", ()):
        print(f"{output}: {len(row['electrodes'])} electrodes, {row['recordings']} recordings, {row['hours']:.2f} h")
    for split, part in report.get("splits", {}).items():
        labels = ", ".join(f"{label} {count}" for label, count in part["labels"].items())
        inside = f"{part['recordings']} recordings, {part['subjects']} subjects ({labels})"
        print(f"{split}: {part['samples']} samples, {inside}")
        if report["task"] != "regression" and len(part["labels"]) == 1:
            print(f"warning: {split} has a single class", file=sys.stderr)
    samples = {split: part["samples"] for split, part in report.get("splits", {}).items()}
    for version, sizes in published_counts(report.get("name", "")).items():
        text = ", ".join(f"{split} {count}" for split, count in sizes.items())
        print(f"published, {version}: {text} ({'as here' if sizes == samples else 'other numbers than here'})")
    here = {"recordings": report["converted"], "samples": sum(samples.values()), "subjects": report.get("subjects")}
    for source, numbers in report["made"].get("expected", {}).items():
        other = [f"{n} {what}, here {here[what]}" for what, n in numbers.items() if here[what] != n]
        print(f"expected, by {source}: {'; '.join(other) or 'the counts are as here'}")
    if sides := report.get("subjects_on_two_sides"):
        first = ", ".join(list(sides)[:5])
        print(f"warning: {len(sides)} subjects are on more than one side: {first}", file=sys.stderr)
    print(f"report: {report_path(output)}")
