"""Recordings to a folder of pre-training shards: what `make_h5dataset_for_pretrain.py` and `make_eeghdf.py` share."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_maker import jobs, report
from dataset_maker.jobs import Plan, Spread, Task
from dataset_maker.pipeline import Pipeline
from errors import InputError
from files import check_writable


def convert_recordings(
    paths: Sequence[Path], output: Path, *, maker: str, source: str, pipeline: Pipeline, spread: Spread
) -> None:
    """Turn recordings into pre-training HDF5 in the folder `output`, with a bar, a summary and a report.

    Recordings that the folder holds already are passed over. One that fails is left out and named; the others are
    written, and an InputError at the end says how many failed.
    """
    began, output = time.monotonic(), output.resolve()
    made = {"source": source} | pipeline.described()
    tasks = jobs.stamped(
        {"path": path, "recording": path.name.removesuffix(".gz").rpartition(".")[0]} for path in paths
    )
    plan = Plan(maker, pipeline, output, made)
    check_writable(report.report_path(output).parent)
    with jobs.only_maker(plan):
        kept = jobs.converted_before(plan, tasks, others="keep")
        failed = look(plan, [task for task in tasks if plan.key(task) not in kept], spread)
        entries = jobs.run_jobs(plan, jobs.remaining(plan, tasks, kept.keys() | failed.keys()), spread)
    found = failed | kept | {entry["key"]: entry for entry in entries}
    seconds = sum(entry["seconds"] for entry in entries if "error" not in entry)
    conclude([found[plan.key(task)] for task in tasks], output, made, seconds, time.monotonic() - began)


def look(plan: Plan, tasks: Sequence[Task], spread: Spread) -> dict[str, dict[str, Any]]:
    """Survey the recordings and check the disk; return the failed ones by key, which are named at once."""
    found = jobs.survey(plan.maker, plan.pipeline, tasks, spread)
    failed = jobs.failed_at_survey(plan, tasks, found)
    samples = sum(len(s["electrodes"]) * s["seconds"] * s["rate"] for s in found if "error" not in s)
    if samples:
        jobs.check_disk(plan.folder, samples * np.dtype(plan.pipeline.dtype).itemsize)
    return failed


def conclude(entries: Sequence[Any], output: Path, made: Any, new_seconds: float, took: float) -> None:
    """Print the summary and write the report. Raises InputError if recordings failed."""
    whole = report.summary(entries, made) | {"output": str(output), "montages": report.montages(entries)}
    report.show(whole)
    for row in whole["montages"]:
        print(f"{output}: {len(row['electrodes'])} electrodes, {row['recordings']} recordings, {row['hours']:.2f} h")
    report.save(whole, output)
    report.show_end(output, new_seconds, took)
    if count := len(whole["left_out"]):
        others = f"the others are in {output}" if whole["converted"] else "nothing was converted"
        raise InputError(f"{count} of {len(entries)} recordings were left out, named above; {others}")
