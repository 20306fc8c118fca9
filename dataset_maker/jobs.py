"""Many recordings on many processes: resumption, shards, what is left out.

A recording is one call in a process of the pool (`pool`). The process writes what it makes of the recording as a file,
its part, into the hidden folder `.making` of the output folder, and the journal there gets a line about it: a maker
that was stopped goes on with the recordings that lack one. At the end, parts of consecutive recordings are joined into
shards; what a shard holds is kept as JSON in `.making`. Which shards there are depends on the recordings alone, never
on the number of processes.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from os.path import realpath
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataset_maker import convert, pool, writers
from dataset_maker.convert import Entry, Plan, Task, digest
from dataset_maker.pipeline import Pipeline
from dataset_maker.pool import Spread, add_arguments  # noqa: F401 - makers take them from here
from dataset_maker.sources import unique_names
from errors import InputError
from files import check_writable, write_json, written_aside

JOBS = 64  # shards of a small data set
JOB_BYTES = 512 << 20  # of source: large data sets get more shards
THREADS = 8  # that join parts: they wait for the disk most of the time
RESERVE = 1.05  # of the estimated disk space: HDF5's own bookkeeping


def stamped(tasks: Iterable[Task]) -> list[Task]:
    """Return the recordings with absolute paths, a unique plain name each, and the sizes and times of their files."""
    tasks = list(tasks)
    paths = [Path(realpath(task["path"])) for task in tasks]
    # One recording may show two subjects: then it comes twice.
    distinct = [path / str(task.get("subject", "")) for path, task in zip(paths, tasks, strict=True)]
    result = []
    for task, path, name in zip(tasks, paths, unique_names([t["recording"] for t in tasks], distinct), strict=True):
        also = [realpath(other) for other in task.get("also", ())]
        given = str(Path(task["path"]).absolute())  # maybe a link, beside which its other files lie
        there = [Path(other).stat() for other in (path, *also) if Path(other).exists()]
        stamps = [[stat.st_size, stat.st_mtime_ns] for stat in there]
        result.append({**task, "path": str(path), "open": given, "also": also, "recording": name, "stamps": stamps})
    return result


def plan_jobs(tasks: Sequence[Task]) -> list[list[Task]]:
    """Cut the recordings, in their order, into runs of about equal size in bytes: one run, one shard."""
    sizes = [sum(size for size, _ in task["stamps"]) for task in tasks]
    target = min(max(sum(sizes) / JOBS, 1), JOB_BYTES)
    jobs: list[list[Task]] = []
    filled = target
    for task, size in zip(tasks, sizes, strict=True):
        if filled >= target:
            jobs.append([])
            filled = 0
        jobs[-1].append(task)
        filled += size
    return jobs


# ---- the output folder


@contextmanager
def only_maker(plan: Plan) -> Iterator[None]:
    """Hold the output folder for this maker alone. Raises InputError if another one holds it."""
    check_writable(plan.folder)
    plan.notes.mkdir(exist_ok=True)
    with (plan.notes / "lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{plan.folder}: another maker is at work here; wait, or name another --output") from error
        except (ImportError, OSError):  # Windows, file systems without locks
            pass
        _clear(plan)
        try:
            yield
        finally:
            _clear(plan)


def _clear(plan: Plan) -> None:
    """Remove what killed processes left, and parts that no journal tells of."""
    left = [*plan.folder.glob(".*.part"), *plan.notes.glob(".*.part")]
    if not plan.journal.exists():
        left += plan.notes.glob("*.hdf5")
    for path in left:
        path.unlink(missing_ok=True)


def in_shards(plan: Plan, tasks: Sequence[Task], *, others_allowed: bool) -> dict[str, Entry]:
    """Return what shards of earlier runs hold of these recordings, by key.

    A shard that is gone or cut is forgotten, with the others of its job. others_allowed: whether the folder may hold
    other recordings. Raises InputError for those, and for a recording that has changed or was converted in another way.
    """
    entries: list[Entry] = []
    for note in sorted(plan.notes.glob("*.json")):
        job = json.loads(note.read_text(encoding="utf-8"))
        there = {name: (plan.folder / name).stat().st_size for name in job["files"] if (plan.folder / name).exists()}
        if there == job["files"]:
            entries += [entry for entry in job["recordings"] if "error" not in entry]  # older notes name these, too
        else:
            for path in [*map(plan.folder.joinpath, there), note]:
                path.unlink()
    keys: dict[str, set[str]] = {}
    for task in tasks:
        keys.setdefault(task["path"], set()).add(plan.key(task))
    way_out = f"delete {plan.folder}, or name another --output"
    for entry in entries:
        if entry["path"] in keys and entry["key"] not in keys[entry["path"]]:
            reason = "as it was before it changed, or made with other flags"
            raise InputError(f"{plan.folder} holds {entry['path']} {reason}: {way_out}")
    others = [entry["path"] for entry in entries if entry["path"] not in keys]
    if others and not others_allowed:
        held = f"{len(others)} recordings that are not among these, such as {others[0]}"
        raise InputError(f"{plan.folder} holds {held}: {way_out}")
    if others:
        print(f"{len(others)} recordings of earlier runs are there besides")
    return {entry["key"]: entry for entry in entries if entry["path"] in keys}


def in_parts(plan: Plan, tasks: Sequence[Task]) -> dict[str, Entry]:
    """Return what a maker that was stopped had converted of these recordings, by key."""
    parts = {plan.key(task): plan.part(task) for task in tasks}
    entries = {}
    for line in plan.journal.read_text(encoding="utf-8").splitlines() if plan.journal.exists() else []:
        with suppress(ValueError):  # a line of a maker that was killed may be torn
            entry = json.loads(line)
            part = parts.get(entry["key"])
            if part and part.exists() and part.stat().st_size == entry["bytes"]:
                entries[entry["key"]] = entry
    return entries


# ---- survey, convert, join


def spread_out(
    executor: Executor,
    function: Callable[[Task], Entry],
    tasks: Sequence[Task],
    what: str,
    done: Callable[[Task, Entry], Any] = lambda task, entry: None,
) -> list[Entry]:
    """Return function(task) for every task, or {"error": reason}, in order, with a progress bar.

    Errors and warnings are printed at once. done: called when a task has succeeded.
    """
    futures = {executor.submit(function, task): number for number, task in enumerate(tasks)}
    entries: list[Entry] = [{}] * len(tasks)
    with tqdm(total=len(tasks), desc=what, unit="recording", disable=None) as bar:
        for future in as_completed(futures):
            number = futures[future]
            task, entry = tasks[number], pool.result_of(future, tasks[number]["path"])
            entries[number] = {key: task[key] for key in ("path", "open", "recording", "subject") if key in task}
            entries[number] |= entry
            if "error" in entry:
                tqdm.write(f"left out: {entry['error']}", file=sys.stderr)
            else:
                done(task, entries[number])
            for warning in entry.get("warnings", ()):
                tqdm.write(f"warning: {warning}", file=sys.stderr)
            bar.update()
    return entries


def survey(maker: str, pipeline: Pipeline, tasks: Sequence[Task], executor: Executor) -> list[Entry]:
    """Look at the recordings' headers; return electrodes, seconds, rate, windows (labelled) or the error of each."""
    return spread_out(executor, partial(convert.survey, maker, pipeline), tasks, "looking")


def run(plan: Plan, tasks: Sequence[Task], executor: Executor) -> dict[str, Entry]:
    """Convert recordings into parts; returns what became of each, by key."""
    with plan.journal.open("a", encoding="utf-8") as journal:

        def note(task: Task, entry: Entry) -> None:
            entry |= {"key": plan.key(task), "bytes": plan.part(task).stat().st_size}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()

        entries = spread_out(executor, partial(convert.convert, plan), tasks, "converting", note)
    return {plan.key(task): entry for task, entry in zip(tasks, entries, strict=True)}


def join(plan: Plan, tasks: Sequence[Task], entries: Mapping[str, Entry]) -> None:
    """Join the parts of recordings into shards. entries: what became of those that are in no shard yet, by key."""
    with ThreadPoolExecutor(THREADS) as threads:
        jobs = []
        for number, job in enumerate(plan_jobs(tasks)):
            known = [(plan.part(task), entries.get(plan.key(task), {"error": "in a shard"})) for task in job]
            good = {part: entry for part, entry in known if "error" not in entry}
            name = f"{number:05d}-{digest(entry['key'] for entry in good.values())[:8]}"
            jobs += [threads.submit(_join, plan, name, good)] if good else []
        for future in jobs:
            future.result()
    plan.journal.unlink()


def _join(plan: Plan, job: str, parts: Mapping[Path, Entry]) -> None:
    """Join parts into the shards of a job, one for each montage, and note what they hold."""
    shards: dict[str, list[Path]] = {}
    for part, entry in parts.items():
        shards.setdefault(f"{entry['montage']}-{job}.hdf5", []).append(part)
    with ExitStack() as stack:
        sizes = {}
        for name, inside in shards.items():
            aside = stack.enter_context(written_aside(plan.folder / name))
            if len(inside) == 1:
                inside[0].replace(aside)
            else:
                writers.join(inside, aside)
            sizes[name] = aside.stat().st_size
        # The note comes before the files get their names: a stop between the two leaves no file that nobody knows of.
        write_json(plan.notes / f"{job}.json", {"files": sizes, "recordings": list(parts.values())})
    for part in parts:
        part.unlink(missing_ok=True)


def check_disk(folder: Path, needed: float) -> None:
    """Print the space needed in bytes and refuse to begin without it. Raises InputError."""
    free = shutil.disk_usage(folder).free
    print(f"about {size(needed)} of disk needed, {size(free)} free in {folder}")
    if needed * RESERVE > free:
        raise InputError(
            f"{folder}: about {size(needed)} of disk needed, {size(free)} free; free some, name another --output, or "
            "halve the need with --dtype float16"
        )


def size(count: float) -> str:
    """Return a number of bytes for people, such as `1.4 GB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(np.log10(max(count, 1)) // 3), len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"
