"""Make files of recordings: what all makers share. Formats: docs/data.md.

A maker lists the recordings and, of a labelled set, says where their windows lie. This module does the rest: processes,
resuming, the electrodes that all recordings of a labelled set must have, one file or a folder of shards, the report.
"""

import argparse
import importlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from dataset_maker import jobs, pool, report
from dataset_maker.jobs import Plan, Task
from dataset_maker.pipeline import add_filter_arguments, build_pipeline
from dataset_maker.writers import DataSet, join, refuse_existing
from eeg_data.hdf5 import SUFFIXES
from errors import ArgumentParser, InputError, run_script
from files import digest_of, written_aside


def run(maker: str) -> None:
    """Run the command line of a labelled maker.

    maker: name of a module. Its docstring is the help. `add_arguments(parser)` declares its flags.
    `find_recordings(args)` returns the DataSet and a task for each recording: path, recording (its name), subject,
    split (unless its windows name it), `also` (other files it depends on), entries that its hooks need.
    FILTERED = True: its signals are filtered already. Hooks: see `jobs`.
    """
    module = importlib.import_module(maker)
    parser = ArgumentParser(description=module.__doc__)
    module.add_arguments(parser)
    output = "one file; without a suffix: a folder of shards"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.hdf5", help=output)
    if not getattr(module, "FILTERED", False):
        add_filter_arguments(parser)
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
) -> None:
    """Convert the tasks' recordings into `args.output` with a bar, a summary and a report.

    data_set: None for pre-training files, which have a source, and channels to leave out in addition to --drop.
    Raises InputError at the end if recordings were left out; a data set that nobody can train on is not made.
    """
    pipeline = build_pipeline(args, drop=data_set.drop if data_set else drop)
    made = {**(data_set.made if data_set else {"source": source}), **pipeline.described()}
    output, tasks = args.output.resolve(), jobs.stamped(tasks)
    single = data_set is not None and output.suffix.lower() in SUFFIXES
    folder = output.with_name(f".{output.name}.making") if single else output  # of the shards
    if data_set and folder.is_dir() and any(folder.iterdir()) and not (folder / ".making").is_dir():
        raise InputError(f"{folder} holds other files already: name a new folder, or a file with the suffix .hdf5")
    plan = Plan(maker, pipeline, folder, made, data_set)
    fingerprint = digest_of(plan.key(task) for task in tasks)
    if single and is_made_already(output, fingerprint):
        shutil.rmtree(folder, ignore_errors=True)  # of a maker that was stopped at its very end
        return
    with jobs.only_maker(plan):
        with pool.processes(args) as submit:
            if data_set and not data_set.electrodes:
                data_set = replace(data_set, electrodes=jobs.first_electrodes(plan, tasks, submit))
                plan = replace(plan, data_set=data_set)
            entries, parts = jobs.convert_all(plan, tasks, submit)
        whole = report.write(entries, made, output, data_set)
        if data_set and (problem := why_unusable(whole)):
            raise InputError(f"{output}: not made, {problem}; see {report.report_path(output)}")
        if single:
            made = {**made, "fingerprint": fingerprint, "left_out": len(whole["left_out"])}
            with written_aside(output) as aside:
                join([plan.part(task) for task in tasks if plan.key(task) in parts], aside, made=made)
        else:
            jobs.join(plan, tasks, parts)
    if single:
        shutil.rmtree(folder)
    if count := len(whole["left_out"]):
        raise InputError(f"{count} of {len(tasks)} recordings were left out, named above")


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
        place = report.report_path(output)
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
