"""Many recordings on many processes: one call each, resuming, shards, what is left out.

A process of the pool (`pool`) writes what it makes of a recording into a file of the hidden folder `.making/parts` in
the output folder, its part; a JSON note of the same name describes it. A maker that was stopped goes on with the
recordings that lack a note. At the end, parts of consecutive recordings are joined into shards, with a note of what
they hold in `.making`. Which shards there are depends on the recordings alone, never on the number of processes.

A maker is a module that may define hooks. `read(task)` opens a recording that MNE does not read by itself (None: it
does); what it adds to the task is there for `windows`. `check(names, where)` raises InputError for channels that its
data set does not have. `windows(task, prepared)` returns the windows of a labelled recording. Without it they follow
each other from the start, and the task's `label` is the class of all.
"""

import errno
import hashlib
import importlib
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from os.path import realpath
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from dataset_maker import bads, pipeline, pool, writers
from dataset_maker.formats import parts_of
from dataset_maker.pipeline import Pipeline, Prepared, Store
from dataset_maker.recording import RawRecording, of_raw
from dataset_maker.sources import unique_names
from dataset_maker.writers import OTHER_ELECTRODES, DataSet, LabelledShard, PretrainingShard, consecutive_windows
from errors import InputError
from files import check_writable, digest_of, write_json, written, written_aside

JOBS = 64  # shards of a small data set
JOB_BYTES = 512 << 20  # of source: large data sets get more shards
SET_MEMORY = 6  # bytes that MNE takes for a byte of a `.set` with its signal inside
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILED = {"error": "left out", "passed_over": "passed over"}  # keys of entries that are no recordings

Task = dict[str, Any]  # a recording: path, recording (its name), and what its maker adds
Entry = dict[str, Any]  # what became of a recording


@dataclass(frozen=True)
class Plan:
    """Everything a process needs to know but its recording; it travels to the processes."""

    maker: str  # module with the hooks
    pipeline: Pipeline
    folder: Path  # of the shards
    made: Mapping[str, Any]
    data_set: DataSet | None = None  # None: pre-training files

    @property
    def parts(self) -> Path:
        """The folder for what is in no shard yet. Notes on shards are in the folder above."""
        return self.folder / ".making" / "parts"

    @cached_property
    def _text(self) -> str:
        data_set = asdict(self.data_set) if self.data_set else None
        values = (self.maker, asdict(self.pipeline), dict(self.made), data_set)
        return json.dumps(values, sort_keys=True, default=list)[1:-1]

    def key(self, task: Task) -> str:
        """Return a digest of a stamped recording and of all that decides what becomes of it."""
        named = {name: value for name, value in task.items() if name not in ("recording", "open")}  # these may change
        text = f"[{self._text}, {json.dumps(named, sort_keys=True, default=list)}]"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def part(self, task: Task) -> Path:
        """Return the file for what a process makes of a recording."""
        return self.parts / f"{digest_of([self.key(task), task['recording']])}.hdf5"


def stamped(tasks: Iterable[Task]) -> list[Task]:
    """Return the recordings with absolute paths, a unique plain name each, and the sizes and times of their files."""
    tasks = list(tasks)
    paths = [Path(realpath(task["path"])) for task in tasks]
    # One recording may show two subjects: then it comes twice.
    distinct = [path / str(task.get("subject", "")) for path, task in zip(paths, tasks, strict=True)]
    result = []
    for task, path, name in zip(tasks, paths, unique_names([t["recording"] for t in tasks], distinct), strict=True):
        table = filter(None, [bads.table_of(Path(task["path"]))])
        also = [realpath(other) for other in (*task.get("also", ()), *parts_of(Path(task["path"])), *table)]
        given = str(Path(task["path"]).absolute())  # maybe a link, in whose folder its other files lie
        there = [Path(other).stat() for other in (path, *also) if Path(other).exists()]
        stamps = [[stat.st_size, stat.st_mtime_ns] for stat in there]
        result.append({**task, "path": str(path), "open": given, "also": also, "recording": name, "stamps": stamps})
    return result


# ---- one recording, in a process of the pool


@contextmanager
def _blamed_on(path: str) -> Iterator[None]:
    """Turn every failure into an InputError of one line.

    Of a fault of ours it gives the place, not the text, which may quote a header.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        way_out = "raise it if the recording is sound"
        if path.lower().endswith(".set"):  # compressed, or epochs
            way_out = f"raise it to {SET_MEMORY * Path(path).stat().st_size / 2**30 + 0.5:.1f}, as a .set with its "
            way_out += "signal inside is read as a whole, or save it in EEGLAB as two files (.set and .fdt) or in parts"
        raise InputError(f"{path}: needs more memory than --memory_limit; {way_out}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:  # no recording's fault: the writer reports it
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
        raise InputError(f"{path}: cannot be converted ({place})") from None


def _read(plan: Plan, task: Task) -> RawRecording:
    maker, path = importlib.import_module(plan.maker), Path(task["path"])
    raw = maker.read(task) if hasattr(maker, "read") else None
    if raw is not None:
        return of_raw(raw, str(path), path=path, unit=plan.pipeline.unit)
    recording = pipeline.read(path, plan.pipeline)
    if hasattr(maker, "check"):
        maker.check(recording.raw.ch_names, str(path))
    return recording


def survey(plan: Plan, task: Task) -> Entry:
    """Return a recording's electrodes and length in s, from its header. Raises whatever its reader raises."""
    recording = _read(plan, {**task, "path": task["open"]})
    pipeline.select_electrodes(recording, plan.pipeline)
    raw = recording.raw
    return {"electrodes": list(raw.ch_names), "seconds": raw.n_times / raw.info["sfreq"]}


def convert(plan: Plan, task: Task) -> Entry:
    """Convert one recording into the file `plan.part(task)`; returns what the report needs."""
    with written(plan.part(task)):  # whose file is opened before its own `with` begins
        return _convert(plan, task)


def _convert(plan: Plan, task: Task) -> Entry:
    part, path = plan.part(task), task["open"]
    task = {**task, "path": path}
    # Not durable: a note knows a part's size, which a power cut would change.
    options: dict[str, Any] = {"made": plan.made, "dtype": plan.pipeline.dtype, "durable": False}
    if plan.data_set is None:
        with PretrainingShard(part, **options) as shard, _blamed_on(path):
            prepared = _prepare(plan, task, shard.store(task["recording"]))
            shard.finish(prepared)
        montage = digest_of([*prepared.electrodes, prepared.rate])[:6]
        entry: Entry = {"montage": f"{len(prepared.electrodes)}ch-{montage}"}
    else:
        labelled = LabelledShard(part, plan.data_set, **options)
        with labelled, ExitStack() as scratch, _blamed_on(path):
            prepared = _prepare(plan, task, _scratch(scratch, part.parent, plan.pipeline.block_bytes))
            if hasattr(maker := importlib.import_module(plan.maker), "windows"):
                windows = maker.windows(task, prepared)
            else:
                windows = consecutive_windows(prepared, plan.data_set.window, task["label"])
            windows = writers.unbroken(windows, prepared, plan.data_set.window)
            samples = labelled.append_windows(prepared, windows, task=task)
        entry = {"montage": "shard", "samples": samples, "counts": dict(windows.notes)}
    entry |= {"seconds": prepared.length / prepared.rate, "electrodes": list(prepared.electrodes)}
    valid = prepared.quality.valid if plan.data_set else prepared.unbroken
    entry |= {"invalid_seconds": int((~valid).sum()), "median": prepared.quality.median}
    return entry | {key: prepared.report[key] for key in ("notes", "dropped", "breaks", "warnings")}


def _prepare(plan: Plan, task: Task, store: Store) -> Prepared:
    """Read a recording and put it through the pipeline; a task may have another notch, and notes for the report."""
    chosen = plan.pipeline
    if "notch" in task:
        chosen = replace(chosen, filter=replace(chosen.filter, notch=task["notch"]))
    prepared = pipeline.prepare(_read(plan, task), chosen, store=store)
    prepared.report["notes"] += task.get("about", ())
    return prepared


def _scratch(stack: ExitStack, folder: Path, block_bytes: int) -> Store:
    """Return a store in memory for short recordings, in a file without a name for long ones."""

    def store(electrodes: Any, rate: float, length: int) -> Any:
        if 4 * len(electrodes) * length <= block_bytes:
            return pipeline.in_memory(electrodes, rate, length)
        unnamed = stack.enter_context(TemporaryFile(dir=folder))  # noqa: SIM115 - the stack closes it
        file = stack.enter_context(h5py.File(unnamed, "w"))
        return file.create_dataset("eeg", (len(electrodes), length), "float32", chunks=(len(electrodes), 200))

    return store


# ---- the output folder


@contextmanager
def only_maker(plan: Plan) -> Iterator[None]:
    """Hold the output folder for this maker alone. Raises InputError if another one holds it."""
    check_writable(plan.folder)
    plan.parts.mkdir(parents=True, exist_ok=True)
    with (plan.parts.parent / "lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{plan.folder}: another maker is at work here; wait, or name another --output") from error
        except (ImportError, OSError):  # Windows, file systems without locks
            pass
        for path in (*plan.folder.glob(".*.part"), *plan.parts.glob(".*.part")):  # of processes that were killed
            path.unlink()
        yield


def _recall(plan: Plan, note: Path) -> list[Entry]:
    """Return the entries of a note whose files are all there, uncut. Otherwise remove the files and the note."""
    job: dict[str, Any] = {"files": {}, "recordings": []}
    with suppress(ValueError):  # torn by a power cut
        job = json.loads(note.read_text(encoding="utf-8"))
    there = {name: (plan.folder / name).stat().st_size for name in job["files"] if (plan.folder / name).exists()}
    if there == job["files"]:
        return job["recordings"]
    for path in [*map(plan.folder.joinpath, there), note]:
        path.unlink()
    return []


def held(folder: Path) -> list[str]:
    """Return the paths of the recordings that an output folder holds from earlier runs."""
    paths = []
    for note in sorted((folder / ".making").rglob("*.json")):
        with suppress(ValueError):  # torn by a power cut
            paths += [entry["open"] for entry in json.loads(note.read_text(encoding="utf-8"))["recordings"]]
    return paths


def _in_shards(plan: Plan, tasks: Sequence[Task]) -> dict[str, Entry]:
    """Return what shards of earlier runs hold of these recordings, by key.

    Raises InputError for a recording that has changed or was converted in another way, and if a labelled set holds
    recordings that are not among these.
    """
    entries = [entry for note in sorted(plan.parts.parent.glob("*.json")) for entry in _recall(plan, note)]
    keys, paths = {plan.key(task) for task in tasks}, {task["path"] for task in tasks}
    unequal = [e["path"] for e in entries if e["key"] not in keys and (plan.data_set or e["path"] in paths)]
    if unequal:
        raise InputError(
            f"{plan.folder} holds {unequal[0]}, which has changed, was made with other flags or by another version, or "
            f"is not among these recordings: delete {plan.folder}, or name another --output"
        )
    return {entry["key"]: entry for entry in entries if entry["key"] in keys}


# ---- survey, convert, join


def first_electrodes(plan: Plan, tasks: Sequence[Task], submit: pool.Submit) -> list[str]:
    """Return the electrodes of the first recording that can be read; converting names those that cannot."""
    entries = (pool.result_of(submit(survey, plan, task), task["path"]) for task in tasks)
    return next((entry["electrodes"] for entry in entries if "electrodes" in entry), [])


def drop_that_keeps_all(
    plan: Plan, tasks: Sequence[Task], entries: Sequence[Entry], submit: pool.Submit
) -> dict[str, Any] | None:
    """Return which electrodes to drop so that none of these recordings is left out for its electrodes.

    entries: what became of the tasks. Keys: drop, electrodes (number that is left), recordings and hours that it saves.
    None if no recording was left out for its electrodes, or if all have none in common.
    """
    errors = [(task, entry.get("error", "")) for task, entry in zip(tasks, entries, strict=True)]
    futures = [(submit(survey, plan, task), task["path"]) for task, error in errors if OTHER_ELECTRODES in error]
    surveyed = [pool.result_of(*each) for each in futures]
    others = [entry for entry in surveyed if "electrodes" in entry]
    wanted = set(plan.data_set.electrodes or ()) if plan.data_set else set()
    common = wanted.intersection(*(entry["electrodes"] for entry in others))
    if not others or not common:
        return None
    drop = wanted.union(*(entry["electrodes"] for entry in others)) - common
    hours = round(sum(entry["seconds"] for entry in others) / 3600, 4)
    return {"drop": sorted(drop), "electrodes": len(common), "recordings": len(others), "hours": hours}


def convert_all(plan: Plan, tasks: Sequence[Task], submit: pool.Submit) -> tuple[list[Entry], dict[str, Entry]]:
    """Convert the recordings that earlier runs have not. Prints errors and warnings.

    Returns what became of each recording, in order, and by key the entries of those that are in parts, not in shards.
    """
    results = _in_shards(plan, tasks)
    waiting = {plan.key(task): plan.part(task).with_suffix(".json") for task in tasks if plan.key(task) not in results}
    parts = {key: entry for key, note in waiting.items() if note.exists() for entry in _recall(plan, note)}
    if results := results | parts:
        print(f"{len(results)} of {len(tasks)} recordings were converted before")
    new = [task for task in tasks if plan.key(task) not in results]
    futures = {submit(convert, plan, task): task for task in new}
    for future in tqdm(as_completed(futures), "converting", len(new), unit="recording", disable=None):
        task = futures.pop(future)  # a result that nobody holds is not computed again when a cluster loses a worker
        entry = pool.result_of(future, task["path"])
        if plan.data_set and "passed_over" in entry:  # somebody gave it labels
            entry = {"error": entry["passed_over"]}
        entry |= {key: task[key] for key in ("path", "open", "recording", "subject") if key in task}
        entry["key"] = key = plan.key(task)
        results[key] = entry
        for warning in entry.get("warnings", ()):
            tqdm.write(f"warning: {warning}", file=sys.stderr)
        if failed := next((key for key in FAILED if key in entry), None):
            tqdm.write(f"{FAILED[failed]}: {entry[failed]}", file=sys.stderr)
            continue
        part, parts[key] = plan.part(task), entry
        files = {str(part.relative_to(plan.folder)): part.stat().st_size}
        write_json(part.with_suffix(".json"), {"files": files, "recordings": [entry]}, durable=False)
    return [results[plan.key(task)] for task in tasks], parts


def plan_jobs(tasks: Sequence[Task]) -> list[list[Task]]:
    """Cut the recordings, in their order, into runs of about equal size in bytes: one run, one shard."""
    sizes = np.array([sum(size for size, _ in task["stamps"]) for task in tasks], dtype=np.int64)
    target = min(max(sizes.sum() / JOBS, 1), JOB_BYTES)
    jobs: dict[int, list[Task]] = {}
    for task, place in zip(tasks, np.cumsum(sizes) - sizes, strict=True):
        jobs.setdefault(place // target, []).append(task)
    return list(jobs.values())


def join(plan: Plan, tasks: Sequence[Task], entries: Mapping[str, Entry]) -> None:
    """Join the parts of recordings into shards. entries: what the parts hold, by key."""
    for number, job in enumerate(plan_jobs(tasks)):
        parts = {plan.part(task): entries[plan.key(task)] for task in job if plan.key(task) in entries}
        if parts:
            _join(plan, f"{number:05d}-{digest_of(entry['key'] for entry in parts.values())[:8]}", parts)
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
        write_json(plan.parts.parent / f"{job}.json", {"files": sizes, "recordings": list(parts.values())})
    for part in parts:
        part.unlink(missing_ok=True)
        part.with_suffix(".json").unlink()
