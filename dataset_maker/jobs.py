"""Many recordings on many processes: resuming, shards, what is left out.

A recording is one call in a process of the pool (`pool`). The process writes what it makes of the recording into a file
of the hidden folder `.making/parts` in the output folder, its part, and a JSON note there tells what the part holds. A
maker that was stopped goes on with the recordings that lack a note. At the end, parts of consecutive recordings are
joined into shards, with a note of what they hold in `.making`. Which shards there are depends on the recordings alone,
never on the number of processes.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from os.path import realpath
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset_maker import convert, pool, writers
from dataset_maker.convert import Entry, Plan, Task
from dataset_maker.pool import Spread, add_arguments  # noqa: F401 - makers take them from here
from dataset_maker.sources import unique_names
from errors import InputError
from files import check_writable, digest_of, write_json, written_aside

JOBS = 64  # shards of a small data set
JOB_BYTES = 512 << 20  # of source: large data sets get more shards
THREADS = 8  # that join parts: they wait for the disk most of the time


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
    plan.parts.mkdir(parents=True, exist_ok=True)
    with (plan.notes / "lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{plan.folder}: another maker is at work here; wait, or name another --output") from error
        except (ImportError, OSError):  # Windows, file systems without locks
            pass
        try:
            yield
        finally:
            for path in (*plan.folder.glob(".*.part"), *plan.parts.glob(".*.part")):  # of processes that were killed
                path.unlink(missing_ok=True)


def _recall(plan: Plan, note: Path) -> list[Entry]:
    """Return what a note tells of files that are all there, uncut. Otherwise remove the files and the note."""
    job: dict[str, Any] = {"files": {}, "recordings": []}
    with suppress(ValueError):  # torn by a power cut
        job = json.loads(note.read_text(encoding="utf-8"))
    there = {name: (plan.folder / name).stat().st_size for name in job["files"] if (plan.folder / name).exists()}
    if there == job["files"]:
        return [entry for entry in job["recordings"] if "error" not in entry]  # older notes name these, too
    for path in [*map(plan.folder.joinpath, there), note]:
        path.unlink()
    return []


def in_shards(plan: Plan, tasks: Sequence[Task], *, others_allowed: bool) -> dict[str, Entry]:
    """Return what shards of earlier runs hold of these recordings, by key.

    others_allowed: whether the folder may hold other recordings. Raises InputError for those, and for a recording that
    has changed or was converted in another way.
    """
    entries = [entry for note in sorted(plan.notes.glob("*.json")) for entry in _recall(plan, note)]
    keys: dict[str, set[str]] = {}
    for task in tasks:
        keys.setdefault(task["path"], set()).add(plan.key(task))
    others = [entry["path"] for entry in entries if entry["path"] not in keys]
    changed = [entry["path"] for entry in entries if entry["key"] not in keys.get(entry["path"], {entry["key"]})]
    if changed:
        held = f"{changed[0]} as it was before it changed, or made with other flags or by another version"
    elif others and not others_allowed:
        held = f"{len(others)} recordings that are not among these, such as {others[0]}"
    else:
        return {entry["key"]: entry for entry in entries if entry["path"] in keys}
    raise InputError(f"{plan.folder} holds {held}: delete {plan.folder}, or name another --output")


def in_parts(plan: Plan, tasks: Sequence[Task]) -> dict[str, Entry]:
    """Return what a maker that was stopped had converted of these recordings, by key."""
    notes = {plan.key(task): plan.part(task).with_suffix(".json") for task in tasks}
    return {key: entry for key, note in notes.items() if note.exists() for entry in _recall(plan, note)}


# ---- survey, convert, join


def spread_out(
    executor: Executor, function: Callable[[Task], Entry], tasks: Sequence[Task], what: str
) -> Iterator[tuple[Task, Entry]]:
    """Yield each task with function(task), or with {"error": reason}, as they come, under a progress bar."""
    futures = {executor.submit(function, task): task for task in tasks}
    with tqdm(total=len(tasks), desc=what, unit="recording", disable=None) as bar:
        for future in as_completed(futures):
            task = futures[future]
            yield task, pool.result_of(future, task["path"])
            bar.update()


def survey(plan: Plan, tasks: Sequence[Task], executor: Executor) -> list[list[str]]:
    """Return the electrodes of all recordings that can be read, in order. Converting names the others."""
    entries = spread_out(executor, partial(convert.survey, plan), tasks, "looking")
    electrodes = {plan.key(task): entry.get("electrodes") for task, entry in entries}
    return [names for task in tasks if (names := electrodes[plan.key(task)])]


def run(
    plan: Plan, tasks: Sequence[Task], executor: Executor, *, shards: bool = True, others_allowed: bool = False
) -> tuple[list[Entry], float]:
    """Convert the recordings that earlier runs have not; returns what became of each, and the new seconds of EEG.

    shards: whether to join the parts into shards. others_allowed: see `in_shards`. Errors and warnings are printed.
    """
    results = in_shards(plan, tasks, others_allowed=others_allowed) if shards else {}
    parts = in_parts(plan, [task for task in tasks if plan.key(task) not in results])
    if results := results | parts:
        print(f"{len(results)} of {len(tasks)} recordings were converted before")
    new, seconds = [task for task in tasks if plan.key(task) not in results], 0.0
    for task, entry in spread_out(executor, partial(convert.convert, plan), new, "converting"):
        entry |= {key: task[key] for key in ("path", "open", "recording", "subject") if key in task}
        entry["key"] = key = plan.key(task)
        results[key] = entry
        for warning in entry.get("warnings", ()):
            tqdm.write(f"warning: {warning}", file=sys.stderr)
        if "error" in entry:
            tqdm.write(f"left out: {entry['error']}", file=sys.stderr)
            continue
        part, parts[key] = plan.part(task), entry
        files = {str(part.relative_to(plan.folder)): part.stat().st_size}
        write_json(part.with_suffix(".json"), {"files": files, "recordings": [entry]}, durable=False)
        seconds += entry["seconds"]
    if shards:
        join(plan, tasks, parts)
    return [results[plan.key(task)] for task in tasks], seconds


def join(plan: Plan, tasks: Sequence[Task], entries: Mapping[str, Entry]) -> None:
    """Join the parts of recordings into shards. entries: what the parts hold, by key."""
    with ThreadPoolExecutor(THREADS) as threads:
        futures = []
        for number, job in enumerate(plan_jobs(tasks)):
            parts = {plan.part(task): entries[plan.key(task)] for task in job if plan.key(task) in entries}
            name = f"{number:05d}-{digest_of(entry['key'] for entry in parts.values())[:8]}"
            futures += [threads.submit(_join, plan, name, parts)] if parts else []
        try:
            for future in futures:
                future.result()
        except BaseException:  # a signal, too: what is under way ends, the rest is left for the next start
            threads.shutdown(cancel_futures=True)
            raise
    for path in plan.parts.iterdir():  # of recordings that are gone
        path.unlink()


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
        part.with_suffix(".json").unlink()
