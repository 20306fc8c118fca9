"""Many recordings, many processes: plan jobs, spread them with joblib or Dask, resume, report.

A job is a run of consecutive recordings whose shard one process writes. What a job did is kept as JSON in the hidden
folder `.making` beside its shards, written after them, so that a maker that was stopped continues with the jobs that
lack one. The plan depends on the recordings alone, never on the number of processes.
"""

import argparse
import hashlib
import json
import shutil
import site
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from os.path import realpath
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
from tqdm import tqdm

from dataset_maker.pipeline import Pipeline
from dataset_maker.sandbox import PROJECT, Died, Limits, Sandbox, sandbox
from dataset_maker.sources import unique_names
from errors import InputError, UsageError
from files import check_writable, write_json

JOBS = 64  # jobs of a small data set: enough to keep processes busy to the end
JOB_BYTES = 512 << 20  # of source: large data sets get more jobs
SURVEY = 32  # recordings looked at in one request
DASK_SECONDS = 30  # to wait for a scheduler's answer
RESERVE = 1.05  # of the estimated disk space: HDF5's own bookkeeping
NO_SPACE = 16 << 20  # bytes: with less, what fails fails for want of space

Task = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every maker that works on many recordings."""
    group = parser.add_argument_group("processes", "a recording that passes a limit is left out")
    group.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the signals written")
    group.add_argument("--jobs", type=int, default=joblib.cpu_count(), metavar="N", help="processes (default: cores)")
    group.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster that does the work instead")
    group.add_argument("--time_limit", type=float, default=Limits.seconds, metavar="SECONDS", help="for one recording")
    group.add_argument("--memory_limit", type=float, default=Limits.gigabytes, metavar="GB", help="of a process")


@dataclass(frozen=True)
class Spread:
    """Where the work goes."""

    jobs: int
    dask: str | None
    limits: Limits

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Spread":
        """Of the parsed flags. Raises UsageError."""
        if args.jobs < 1:
            raise UsageError(f"--jobs {args.jobs}: must be 1 or more")
        return cls(args.jobs, args.dask, Limits(args.time_limit, args.memory_limit))

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield `(index, function(item))` as they finish."""
        calls = (joblib.delayed(_numbered)(function, number, item) for number, item in enumerate(items))
        # Threads here, because each drives a limited process of its own.
        place = self._cluster() if self.dask else joblib.parallel_config("threading", n_jobs=self.jobs)
        with place:
            yield from joblib.Parallel(return_as="generator_unordered")(calls)

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Make joblib use the Dask cluster. Raises InputError if it cannot be reached."""
        try:
            import distributed
        except ImportError as error:
            raise UsageError(f"--dask {self.dask}: needs `pip install distributed`") from error
        try:
            client = distributed.Client(self.dask, timeout=DASK_SECONDS)
        except (OSError, ValueError) as error:
            raise UsageError(f"--dask {self.dask}: no scheduler answers there ({type(error).__name__})") from error
        with client:
            client.run(site.addsitedir, str(PROJECT))  # workers see the project in the same place, as they do the data
            try:
                with joblib.parallel_config("dask"):
                    yield
            except distributed.KilledWorker as error:
                raise InputError(
                    f"--dask {self.dask}: its workers died too often; start the same command again"
                ) from error


def _numbered(function: Callable[[Any], Any], number: int, item: Any) -> tuple[int, Any]:
    return number, function(item)


@dataclass(frozen=True)
class Plan:
    """Everything a job needs to know but its recordings; plain values, so that it travels."""

    maker: str  # module with the hooks `read`, `windows`, ...
    pipeline: Pipeline
    folder: Path  # of the shards
    made: Mapping[str, Any]
    description: Mapping[str, Any] | None = None  # of a labelled set: name, task, classes, electrodes, rate, window

    @property
    def notes(self) -> Path:
        """Folder of what finished jobs did."""
        return self.folder / ".making"

    def key(self, task: Task) -> str:
        """Return a digest of a stamped recording and of all that decides what becomes of it."""
        named = {name: value for name, value in task.items() if name not in ("recording", "open")}  # these may change
        values = (self.maker, self.pipeline.to_json(), dict(self.made), self.description, named)
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()[:16]


def stamped(tasks: Iterable[Task]) -> list[Task]:
    """Return the recordings with absolute paths, a unique plain name each, and the sizes and times of their files."""
    tasks = list(tasks)
    found = list[Task]()
    paths = [Path(realpath(task["path"])) for task in tasks]
    # One recording may show two subjects: then it comes twice.
    distinct = [path / str(task.get("subject", "")) for path, task in zip(paths, tasks, strict=True)]
    for task, path, name in zip(tasks, paths, unique_names([t["recording"] for t in tasks], distinct), strict=True):
        also = [realpath(other) for other in task.get("also", ())]
        given = str(Path(task["path"]).absolute())  # maybe a link, beside which its further files lie
        there = [Path(other).stat() for other in (path, *also) if Path(other).exists()]
        stamps = [[stat.st_size, stat.st_mtime_ns] for stat in there]
        found.append({**task, "path": str(path), "open": given, "also": also, "recording": name, "stamps": stamps})
    return found


def plan_jobs(tasks: Sequence[Task]) -> list[list[Task]]:
    """Cut the recordings, in their order, into runs of about equal size in bytes."""
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


def run_job(
    plan: Plan, limits: Limits, notify: Callable[[dict], Any] | None, numbered: tuple[int, Sequence[Task]]
) -> dict[str, Any]:
    """Convert a job's recordings into its shards and keep what was done; runs in a thread or on a cluster's worker.

    numbered: the job's place in the plan, so that its files' names sort in the recordings' order. notify: is told of
    each recording when it is finished. A recording at which the process dies is left out, and the job begins again.
    """
    number, tasks = numbered
    keys = [plan.key(task) for task in tasks]
    job = f"{number:05d}-{hashlib.sha256(''.join(keys).encode()).hexdigest()[:8]}"
    entries: dict[str, dict[str, Any]] = {}  # key -> what became of a recording
    sizes = None
    while sizes is None:
        dead = [key for key, entry in entries.items() if entry.get("died")]
        try:
            with sandbox(limits) as box:
                values = asdict(plan) | {"folder": str(plan.folder), "pipeline": plan.pipeline.to_json()}
                box.call("open", job=job, **values)
                for task, key in zip(tasks, keys, strict=True):
                    if key not in dead:
                        first = key not in entries
                        entries[key] = _convert(box, task, key)
                        if notify and first:
                            notify(entries[key])
                # Said before they get their names: else a stop between the two would leave files that nobody knows of.
                write_json(plan.notes / f"{job}.begun", {"files": box.call("files")})
                sizes = box.call("close")
        except _Lost as lost:
            entries[lost.entry["key"]] = lost.entry
            if notify:
                notify(lost.entry)
        except Died as error:
            if shutil.disk_usage(plan.folder).free < NO_SPACE:
                raise UsageError(no_space(plan.folder)) from error
            raise InputError(f"the job of {tasks[0]['path']} and {len(tasks) - 1} more {error}") from error
    done = {"job": job, "files": sizes, "recordings": [entries[key] for key in keys]}
    write_json(plan.notes / f"{job}.json", done)
    (plan.notes / f"{job}.begun").unlink()
    return done


class _Lost(Exception):
    """The process died at a recording."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry["error"])
        self.entry = entry


def described(task: Task) -> dict[str, Any]:
    """Return what the report says of any recording."""
    return {key: task[key] for key in ("path", "open", "recording", "subject") if key in task}


def _convert(box: Sandbox, task: Task, key: str) -> dict[str, Any]:
    entry = described(task) | {"key": key}
    try:
        return entry | box.call("convert", task=task)
    except Died as error:
        raise _Lost(entry | {"error": f"{task['path']}: {error}", "died": True}) from error
    except UsageError:  # no recording's fault: such as no space left
        raise
    except InputError as error:
        return entry | {"error": str(error)}


def finished_jobs(plan: Plan, forget: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return what earlier runs finished and is still there whole; what is left of other jobs is removed.

    forget: paths of all recordings; a job with any other one counts as not done (a single file has no place for it).
    """
    found = []
    for path in sorted(plan.notes.glob("*.begun")):
        if not path.with_suffix(".json").exists():
            _forget(plan, path)
    for path in sorted(plan.notes.glob("*.json")):
        try:
            done = json.loads(path.read_text(encoding="utf-8"))
            there = [name for name in done["files"] if (plan.folder / name).exists()]
            sizes = {name: (plan.folder / name).stat().st_size for name in there}
            others = forget is not None and any(entry["path"] not in forget for entry in done["recordings"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, by a power cut: the job is done again, into the same files
        if sizes == done["files"] and not others:
            found.append(done)
        else:
            _forget(plan, path)
    return found


def _forget(plan: Plan, note: Path) -> None:
    """Remove a job's shards and its note."""
    try:
        names = list(json.loads(note.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    for name in names:
        (plan.folder / Path(name).name).unlink(missing_ok=True)
    note.unlink(missing_ok=True)


def converted_before(
    plan: Plan, tasks: Sequence[Task], *, others: Literal["keep", "refuse", "remove"]
) -> dict[str, dict[str, Any]]:
    """Return what earlier runs converted of these recordings, by key, with the shard they are in.

    others: what becomes of other recordings that the folder holds.
    Raises InputError for a recording that the folder holds as it was, or converted in another way.
    """
    keys: dict[str, set[str]] = {}
    for task in tasks:
        keys.setdefault(task["path"], set()).add(plan.key(task))
    kept, further = {}, []
    jobs = finished_jobs(plan, keys.keys() if others == "remove" else None)
    for entry in [entry for job in jobs for entry in job["recordings"] if "error" not in entry]:
        wanted = keys.get(entry["path"])
        if wanted is None:
            further.append(entry["path"])
        elif entry["key"] in wanted:
            kept[entry["key"]] = entry
        else:
            raise InputError(
                f"{plan.folder} holds {entry['path']} as it was before it changed, or made with other flags: delete "
                f"{plan.folder}, or name another --output"
            )
    if further and others == "refuse":
        raise InputError(
            f"{plan.folder} holds {len(further)} recordings that are not among these, such as {further[0]}: delete "
            f"{plan.folder}, or name another --output"
        )
    if kept:
        print(f"{len(kept)} of {len(tasks)} recordings were converted before")
    if further:
        print(f"{len(further)} recordings of earlier runs are there besides")
    return kept


def remaining(plan: Plan, tasks: Sequence[Task], without: Collection[str]) -> list[tuple[int, list[Task]]]:
    """Return the jobs that are left, numbered, when the recordings with these keys need nothing more."""
    work = [[task for task in job if plan.key(task) not in without] for job in plan_jobs(tasks)]
    return [(number, job) for number, job in enumerate(work) if job]


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
        clear(plan)
        try:
            yield
        finally:
            clear(plan)


def clear(plan: Plan) -> None:
    """Remove what processes left that were killed."""
    for left in [*plan.folder.glob(".*.part"), *plan.folder.glob(".*.scratch"), *plan.notes.glob(".*.part")]:
        left.unlink(missing_ok=True)


def survey(maker: str, pipeline: Pipeline, tasks: Sequence[Task], spread: Spread) -> list[dict[str, Any]]:
    """Look at the recordings' headers; return electrodes, seconds, rate, windows (labelled) or the error of each."""
    batches = [tasks[start : start + SURVEY] for start in range(0, len(tasks), SURVEY)]
    found: list[Any] = [None] * len(batches)
    with tqdm(total=len(tasks), desc="looking", unit="recording", disable=None, leave=False) as bar:
        for number, results in spread.map(partial(survey_batch, maker, pipeline, spread.limits), batches):
            found[number] = results
            bar.update(len(results))
    return [result for results in found for result in results]


def survey_batch(maker: str, pipeline: Pipeline, limits: Limits, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Survey some recordings; if the process dies at them, each alone, to find the one that kills it."""
    try:
        with sandbox(limits) as box:
            return box.call("survey", maker=maker, pipeline=pipeline.to_json(), tasks=list(tasks))
    except Died as error:
        if len(tasks) == 1:
            return [{"error": f"{tasks[0]['path']}: {error}"}]
        return [survey_batch(maker, pipeline, limits, [task])[0] for task in tasks]


def no_space(folder: Path) -> str:
    """Return what to say when the disk is full."""
    return f"{folder}: no space left; free some and start the same command again"


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


def run_jobs(plan: Plan, jobs: Sequence[tuple[int, list[Task]]], spread: Spread) -> list[dict[str, Any]]:
    """Do numbered jobs with a progress bar; says at once what is left out. Returns their recordings in order."""
    done: list[Any] = [None] * len(jobs)
    with tqdm(total=sum(len(tasks) for _, tasks in jobs), desc="converting", unit="recording", disable=None) as bar:

        def notify(entry: Mapping[str, Any]) -> None:
            bar.update()
            if "error" in entry:
                tqdm.write(f"left out: {entry['error']}", file=sys.stderr)
            for warning in entry.get("warnings", ()):
                tqdm.write(f"warning: {warning}", file=sys.stderr)

        here = None if spread.dask else notify  # a cluster's workers tell when a job is finished
        for number, result in spread.map(partial(run_job, plan, spread.limits, here), jobs):
            done[number] = result["recordings"]
            if here is None:
                for entry in result["recordings"]:
                    notify(entry)
    return [entry for entries in done for entry in entries]


def failed_at_survey(plan: Plan, tasks: Sequence[Task], found: Sequence[Task]) -> dict[str, Task]:
    """Return the recordings that a survey found unusable, by key; names them with their reasons on standard error."""
    failed = {
        plan.key(task): described(task) | {"error": seen["error"]}
        for task, seen in zip(tasks, found, strict=True)
        if "error" in seen
    }
    for entry in failed.values():
        print(f"left out: {entry['error']}", file=sys.stderr)
    return failed
