"""Make one labelled data set of recordings: what all labelled makers share. Format: docs/data.md.

A maker says which recordings there are and where their windows lie. This module does the rest: processes, shards,
resuming, the electrodes that all recordings must have, one file in the recordings' order, the report.
"""

import argparse
import hashlib
import importlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dataset_maker import jobs, report
from dataset_maker.jobs import Plan, Spread, Task
from dataset_maker.pipeline import Prepared, Windows, add_filter_arguments, build_pipeline
from dataset_maker.writers import join, refuse_existing
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS
from errors import ArgumentParser, InputError, run_script
from files import written_aside

PUBLISHED = Path(__file__).with_name("published_splits.json")


@dataclass(frozen=True)
class DataSet:
    """What a labelled data set is, whatever its recordings."""

    name: str
    classes: Sequence[str]  # of a regression the names of the targets
    window: int  # s
    electrodes: Sequence[str] | None = None  # every recording has exactly these; None: those that most have
    drop: Sequence[str] = ()  # channels to leave out in addition to --drop
    wrap: bool = False  # whether windows may reach round a recording's ends
    regression: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)  # what the file says about its source and split
    expected: Mapping[str, int] | None = None  # samples a split, to compare with

    @property
    def task(self) -> str:
        """The task as files name it."""
        return "regression" if self.regression else "binary" if len(self.classes) == 2 else "multiclass"


def published_counts(name: str) -> dict[str, int]:
    """Return the published samples a split of one of the sets in `published_splits.json`."""
    sizes = json.loads(PUBLISHED.read_text(encoding="utf-8"))["sizes"]
    return dict(zip(SPLITS, sizes[name], strict=True))


def consecutive_windows(prepared: Prepared, seconds: int, label: int) -> Windows:
    """Return windows one behind the other, all of one class; what is left at the recording's end is not used."""
    samples = round(seconds * prepared.rate)
    starts = np.arange(prepared.length // samples, dtype=np.int64) * samples
    notes = {} if len(starts) else {f"recordings shorter than a window of {seconds} s": 1}
    return Windows(starts, np.full(len(starts), label), notes=notes)


def run(maker: str) -> None:
    """Run a maker's command line.

    maker: name of a module. Its docstring is the help. `add_arguments(parser)` declares its flags.
    `find_recordings(args)` returns the DataSet and a task for each recording: path, recording (its name), subject,
    split (unless its windows say), `also` (other files it depends on), entries of its own. FILTERED = True: its signals
    are filtered already. Further hooks: see `convert`.
    """
    module = importlib.import_module(maker)
    parser = ArgumentParser(description=module.__doc__)
    module.add_arguments(parser)
    output = "one file; without a suffix: a folder of shards"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.hdf5", help=output)
    if not getattr(module, "FILTERED", False):
        add_filter_arguments(parser)
    jobs.add_arguments(parser)
    run_script(lambda args: make(args, maker, *module.find_recordings(args)), parser.parse_args())


def make(args: argparse.Namespace, maker: str, data_set: DataSet, tasks: Sequence[Task]) -> None:
    """Convert the tasks' recordings into `args.output` with a bar, a summary and a report.

    Raises InputError at the end if recordings were left out; a data set that nobody can train on is not made.
    """
    pipeline = build_pipeline(args, drop=data_set.drop)
    spread, output, began = Spread.from_args(args), args.output.resolve(), time.monotonic()
    tasks = jobs.stamped(tasks)
    made = {**data_set.made, **pipeline.described()}
    description: dict[str, Any] = {"name": data_set.name, "task": data_set.task, "classes": list(data_set.classes)}
    description |= {"window": data_set.window, "wrap": data_set.wrap, "rate": pipeline.filter.sampling_rate}
    description |= {"electrodes": list(data_set.electrodes) if data_set.electrodes else None}
    single = output.suffix.lower() in SUFFIXES
    folder = output.with_name(f".{output.name}.making") if single else output  # of the shards
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ".making").is_dir():
        raise InputError(f"{folder} holds other files already: name a new folder, or a file with the suffix .hdf5")
    plan = Plan(maker, pipeline, folder, made, description)
    fingerprint = hashlib.sha256("".join(plan.key(task) for task in tasks).encode()).hexdigest()[:16]
    if single and is_made_already(output, fingerprint):
        shutil.rmtree(folder, ignore_errors=True)  # of a maker that was stopped at its very end
        return
    with jobs.only_maker(plan):
        with spread.executor() as executor:
            entries, plan, new_seconds = _convert(plan, tasks, executor, single)
        whole = report.labelled(entries, plan, output) | {"expected_samples": data_set.expected}
        problem = why_unusable(whole)
        report.save(whole)
        if single and not problem:
            made = made | {"fingerprint": fingerprint, "left_out": len(whole["left_out"])}
            parts = [plan.part(task) for task, entry in zip(tasks, entries, strict=True) if "error" not in entry]
            with written_aside(output) as aside:
                join(parts, aside, made=made)
    if single and not problem:
        shutil.rmtree(folder)
    report.show(whole, new_seconds, time.monotonic() - began)
    if problem:
        raise InputError(f"{output}: not made, {problem}; see {report.report_path(output)}")
    print(f"{output}: {whole['name']}, {len(whole['electrodes'])} electrodes, {whole['window']} s")
    if count := len(whole["left_out"]):
        raise InputError(f"{count} of {whole['recordings']} recordings were left out, named above")


def is_made_already(output: Path, fingerprint: str) -> bool:
    """Whether the file was made from the same recordings with the same flags.

    Raises InputError if it is another file, or if recordings were left out when it was made.
    """
    if not output.exists():
        return False
    made: dict[str, Any] = {}
    with suppress(OSError, KeyError, ValueError), h5py.File(output, "r", locking=False) as file:
        made = json.loads(file.attrs["made"])
    if made.get("fingerprint") != fingerprint:
        refuse_existing(output)
    if count := made["left_out"]:
        place = report.report_path(output)
        raise InputError(f"{output} was made without {count} recordings, see {place}: delete it to try again")
    print(f"{output} is already made from these recordings with these flags")
    return True


def _convert(
    plan: Plan, tasks: Sequence[Task], executor: Executor, single: bool
) -> tuple[list[dict[str, Any]], Plan, float]:
    """Convert what is left. Returns what became of the recordings, the plan with electrodes, new seconds of EEG."""
    description = dict(plan.description or {})
    if not description["electrodes"]:
        description["electrodes"] = common_montage(jobs.survey(plan, tasks, executor)) or []
    plan = replace(plan, description=description)
    entries, seconds = jobs.run(plan, tasks, executor, shards=not single)
    return entries, plan, seconds


def common_montage(montages: Sequence[Sequence[str]]) -> list[str] | None:
    """Return the electrodes that most recordings have, in the order of the first of them; None without recordings."""
    counts = Counter(frozenset(names) for names in montages)
    most = max(counts, key=counts.__getitem__, default=None)
    return next((list(names) for names in montages if frozenset(names) == most), None)


def why_unusable(whole: Mapping[str, Any]) -> str | None:
    """Return why nobody can train on a data set with this report, or None."""
    train = whole["splits"].get("train")
    if train is None:
        return f"no recording gives a sample{' for training' if whole['splits'] else ''}"
    if whole["task"] != "regression" and len(train["labels"]) == 1:
        return f"all {train['samples']} training samples are of one class, {next(iter(train['labels']))}"
    return None
