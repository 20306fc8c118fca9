"""Many recordings on many processes: resumption, shards, what is left out.

A recording is one call in a process of the pool (`pool`). The process writes what it makes of the recording as one file
into the hidden folder `.making` of the output folder, and the journal there gets a line about it: a maker that was
stopped goes on with the recordings that lack one. At the end, runs of consecutive recordings are joined into shards;
what a shard holds is kept as JSON in `.making`. The plan depends on the recordings alone, never on the number of
processes.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from os.path import realpath
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from dataset_maker import convert, pool, writers
from dataset_maker.pipeline import Pipeline
from dataset_maker.pool import Spread  # noqa: F401 - makers take it from here
from dataset_maker.sources import unique_names
from errors import InputError
from files import check_writable, write_json, written_aside

JOBS = 64  # shards of a small data set
JOB_BYTES = 512 << 20  # of source: large data sets get more shards
RESERVE = 1.05  # of the estimated disk space: HDF5's own bookkeeping

Task = dict[str, Any]  # a recording: path, recording (its name), and what its maker adds
Entry = dict[str, Any]  # what became of a recording


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every maker that works on many recordings."""
    group = pool.add_arguments(parser)
    group.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the signals written")


@dataclass(frozen=True)
class Plan:
    """Everything a process needs to know but its recording; it travels to the processes."""

    maker: str  # module with the hooks `read`, `windows`, ... (see `convert`)
    pipeline: Pipeline
    folder: Path  # of the shards
    made: Mapping[str, Any]
    description: Mapping[str, Any] | None = None  # of a labelled set: name, task, classes, electrodes, rate, window

    @property
    def notes(self) -> Path:
        """Return the folder of what is finished."""
        return self.folder / ".making"

    def key(self, task: Task) -> str:
        """Return a digest of a stamped recording and of all that decides what becomes of it."""
        named = {name: value for name, value in task.items() if name not in ("recording", "open")}  # these may change
        values = (self.maker, asdict(self.pipeline), dict(self.made), self.description, named)
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()[:16]

    def part(self, task: Task) -> Path:
        """Return where a process writes what it makes of a recording."""
        return self.notes / f"{digest([self.key(task), task['recording']])}.hdf5"


def digest(words: Iterable[str]) -> str:
    """Return a short digest of texts."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]


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


def described(task: Task) -> Entry:
    """Return what the report says of any recording."""
    return {key: task[key] for key in ("path", "open", "recording", "subject") if key in task}


# ---- what earlier runs did


def finished_jobs(plan: Plan, forget: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return what the shards hold that are there whole; what is left of other shards is removed.

    forget: paths of all recordings; a shard with any other one is removed (a single file has no place for it).
    """
    done = []
    for path in sorted(plan.notes.glob("*.json")):
        job = json.loads(path.read_text(encoding="utf-8"))
        there = {name: (plan.folder / name).stat().st_size for name in job["files"] if (plan.folder / name).exists()}
        if there == job["files"] and (forget is None or all(entry["path"] in forget for entry in job["recordings"])):
            done.append(job)
            continue
        for name in there:
            (plan.folder / name).unlink()
        path.unlink()
    return done


def converted_before(
    plan: Plan, tasks: Sequence[Task], *, others: Literal["keep", "refuse", "remove"]
) -> dict[str, Entry]:
    """Return what shards of earlier runs hold of these recordings, by key.

    others: what becomes of other recordings that the folder holds.
    Raises InputError for a recording that the folder holds as it was, or converted in another way.
    """
    keys: dict[str, set[str]] = {}
    for task in tasks:
        keys.setdefault(task["path"], set()).add(plan.key(task))
    kept, more = {}, []
    jobs = finished_jobs(plan, keys.keys() if others == "remove" else None)
    for entry in [entry for job in jobs for entry in job["recordings"]]:
        if entry["path"] not in keys:
            more.append(entry["path"])
        elif entry["key"] in keys[entry["path"]]:
            kept[entry["key"]] = entry
        else:
            raise InputError(
                f"{plan.folder} holds {entry['path']} as it was before it changed, or made with other flags: delete "
                f"{plan.folder}, or name another --output"
            )
    if more and others == "refuse":
        raise InputError(
            f"{plan.folder} holds {len(more)} recordings that are not among these, such as {more[0]}: delete "
            f"{plan.folder}, or name another --output"
        )
    if kept:
        print(f"{len(kept)} of {len(tasks)} recordings were converted before")
    if more:
        print(f"{len(more)} recordings of earlier runs are there besides")
    return kept


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
    """Remove what processes left that were killed, and recordings' files that no journal tells of."""
    left = [*plan.folder.glob(".*.part"), *plan.notes.glob(".*.part")]
    if not (plan.notes / "journal").exists():
        left += plan.notes.glob("*.hdf5")
    for path in left:
        path.unlink(missing_ok=True)


# ---- survey, convert, join


def spread_out(
    executor: Executor, function: Callable[[Task], Entry], tasks: Sequence[Task], notify: Callable[[Task, Entry], None]
) -> list[Entry]:
    """Return function(task) for every task, or {"error": reason}, in order; notify: called as each is finished."""
    futures = {executor.submit(function, task): number for number, task in enumerate(tasks)}
    results: list[Entry] = [{}] * len(tasks)
    for future in as_completed(futures):
        number = futures[future]
        results[number] = pool.result_of(future, tasks[number]["path"])
        notify(tasks[number], results[number])
    return results


def survey(maker: str, pipeline: Pipeline, tasks: Sequence[Task], executor: Executor) -> list[Entry]:
    """Look at the recordings' headers; return electrodes, seconds, rate, windows (labelled) or the error of each."""
    with tqdm(total=len(tasks), desc="looking", unit="recording", disable=None, leave=False) as bar:
        return spread_out(executor, partial(convert.survey, maker, pipeline), tasks, lambda task, entry: bar.update())


def failed_at_survey(plan: Plan, tasks: Sequence[Task], surveyed: Sequence[Entry]) -> dict[str, Entry]:
    """Return the recordings that a survey found unusable, by key; names them with their reasons on standard error."""
    failed = {
        plan.key(task): described(task) | {"error": seen["error"]}
        for task, seen in zip(tasks, surveyed, strict=True)
        if "error" in seen
    }
    for entry in failed.values():
        print(f"left out: {entry['error']}", file=sys.stderr)
    return failed


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


def run_jobs(plan: Plan, tasks: Sequence[Task], done: Collection[str], executor: Executor) -> list[Entry]:
    """Convert the recordings but those whose keys are `done`, and join them into shards; with a progress bar.

    Says at once what is left out. Returns what became of the recordings converted, in order.
    """
    jobs = [[task for task in job if plan.key(task) not in done] for job in plan_jobs(tasks)]
    entries = _read_journal(plan)
    left = [task for job in jobs for task in job if plan.key(task) not in entries or not plan.part(task).exists()]
    with (
        tqdm(total=len(left), desc="converting", unit="recording", disable=None) as bar,
        (plan.notes / "journal").open("a", encoding="utf-8") as journal,
    ):

        def notify(task: Task, result: Entry) -> None:
            entry = entries[plan.key(task)] = described(task) | {"key": plan.key(task)} | result
            if "error" in entry:
                tqdm.write(f"left out: {entry['error']}", file=sys.stderr)
            else:
                journal.write(json.dumps(entry) + "\n")
                journal.flush()
            for warning in entry.get("warnings", ()):
                tqdm.write(f"warning: {warning}", file=sys.stderr)
            bar.update()

        spread_out(executor, partial(convert.convert, plan), left, notify)
    for number, job in enumerate(jobs):
        _join(plan, number, job, entries)
    (plan.notes / "journal").unlink()
    return [entries[plan.key(task)] for job in jobs for task in job]


def _read_journal(plan: Plan) -> dict[str, Entry]:
    """Return what a maker that was stopped has converted but not joined, by key."""
    path, entries = plan.notes / "journal", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            entries[entry["key"]] = entry
        except ValueError:  # the last line of a maker that was killed
            continue
    return entries


def _join(plan: Plan, number: int, tasks: Sequence[Task], entries: dict[str, Entry]) -> None:
    """Join the files of a job's recordings into its shards, one for each montage, and note what they hold."""
    good = [task for task in tasks if "error" not in entries[plan.key(task)]]
    if not good:
        return
    job = f"{number:05d}-{digest(map(plan.key, tasks))[:8]}"
    shards: dict[str, list[Path]] = {}
    for task in good:
        entry = entries[plan.key(task)]
        entry["file"] = f"{entry['montage']}-{job}.hdf5"
        shards.setdefault(entry["file"], []).append(plan.part(task))
    with ExitStack() as stack:
        sizes = {}
        for name, parts in shards.items():
            aside = stack.enter_context(written_aside(plan.folder / name))
            if len(parts) == 1:
                parts[0].replace(aside)
            else:
                writers.join(parts, aside)
            sizes[name] = aside.stat().st_size
        # The note comes before the files get their names: a stop between the two leaves no file that nobody knows of.
        write_json(plan.notes / f"{job}.json", {"files": sizes, "recordings": [entries[plan.key(t)] for t in good]})
    for task in good:
        plan.part(task).unlink(missing_ok=True)
