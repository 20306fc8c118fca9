"""What a process does with one recording: survey it, or turn it into a file.

A maker is a module that may define these hooks; only a labelled maker needs any.
`windows(task, prepared)` says where a labelled recording's windows lie. `read(task)` opens a recording that MNE does
not read by itself; what it adds to the task is there for `windows`.
"""

import errno
import hashlib
import importlib
import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import h5py

from dataset_maker import pipeline
from dataset_maker.pipeline import Pipeline, Prepared, Store
from dataset_maker.writers import LabelledShard, PretrainingShard
from errors import InputError
from files import digest_of

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Task = dict[str, Any]  # a recording: path, recording (its name), and what its maker adds
Entry = dict[str, Any]  # what became of a recording


@dataclass(frozen=True)
class Plan:
    """Everything a process needs to know but its recording; it travels to the processes."""

    maker: str  # module with the hooks
    pipeline: Pipeline
    folder: Path  # of the shards
    made: Mapping[str, Any]
    description: Mapping[str, Any] | None = None  # of a labelled set: name, task, classes, electrodes, rate, window

    @property
    def notes(self) -> Path:
        """Return the folder for notes of what is finished."""
        return self.folder / ".making"

    @property
    def parts(self) -> Path:
        """Return the folder for what is in no shard yet."""
        return self.notes / "parts"

    def key(self, task: Task) -> str:
        """Return a digest of a stamped recording and of all that decides what becomes of it."""
        named = {name: value for name, value in task.items() if name not in ("recording", "open")}  # these may change
        values = (self.maker, asdict(self.pipeline), dict(self.made), self.description, named)
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode()).hexdigest()[:16]

    def part(self, task: Task) -> Path:
        """Return the file for what a process makes of a recording."""
        return self.parts / f"{digest_of([self.key(task), task['recording']])}.hdf5"


@contextmanager
def _blamed_on(path: str) -> Iterator[None]:
    """Turn every failure into an InputError of one line.

    Of a fault of ours it says the place, not the text, which may quote a header.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: needs more memory than --memory_limit; raise it if the recording is sound") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:  # no recording's fault: the writer says so
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
        raise InputError(f"{path}: cannot be converted ({place})") from None


def _open(maker: Any, path: str, task: Task) -> Any:
    raw = maker.read(task) if hasattr(maker, "read") else pipeline.read_raw(Path(path))
    pipeline.check_header(raw, path)
    return raw


def survey(plan: Plan, task: Task) -> Entry:
    """Return a recording's electrodes, from its header. Raises whatever its reader raises."""
    path, options = task["open"], plan.pipeline
    raw = _open(importlib.import_module(plan.maker), path, {**task, "path": path})
    raw, _, _ = pipeline.select_electrodes(raw, rename=options.rename, drop=options.drop, where=path)
    return {"electrodes": list(raw.ch_names)}


def convert(plan: Plan, task: Task) -> Entry:
    """Convert one recording into the file `plan.part(task)`; returns what the report says of it."""
    part, maker, path = plan.part(task), importlib.import_module(plan.maker), task["open"]  # beside it lie other files
    task = {**task, "path": path}
    # Not durable: a note knows a part's size, which a power cut would change.
    options: dict[str, Any] = {"made": plan.made, "dtype": plan.pipeline.dtype, "durable": False}
    if plan.description is None:
        with PretrainingShard(part, **options) as shard, _blamed_on(path):
            prepared = _prepare(maker, task, plan.pipeline, shard.store(task["recording"]))
            shard.finish(prepared)
        montage = digest_of([*prepared.electrodes, prepared.rate])[:6]
        return _entry(prepared) | {"montage": f"{len(prepared.electrodes)}ch-{montage}"}
    labelled = LabelledShard(part, description=plan.description, **options)
    with labelled, ExitStack() as scratch, _blamed_on(path):
        prepared = _prepare(maker, task, plan.pipeline, _scratch(scratch, part.parent, plan.pipeline.block_bytes))
        windows = maker.windows(task, prepared)
        samples = labelled.append_windows(prepared, windows, task=task)
    return _entry(prepared) | {"samples": samples, "counts": dict(windows.notes), "montage": "shard"}


def _prepare(maker: Any, task: Task, options: Pipeline, store: Store) -> Prepared:
    """Read a recording and put it through the pipeline; notes what its file lacks."""
    path = task["path"]
    raw = _open(maker, path, task)
    warning = pipeline.missing_seconds(Path(path), raw)
    prepared = pipeline.prepare(raw, options, where=path, store=store)
    prepared.report["warnings"] = [warning] if warning else []
    return prepared


def _entry(prepared: Prepared) -> Entry:
    report = prepared.report
    return {
        "seconds": prepared.length / prepared.rate,
        "electrodes": list(prepared.electrodes),
        "invalid_seconds": int((~prepared.quality.valid).sum()),
        "notes": report["notes"],
        "dropped": report["dropped"],
        "warnings": report["warnings"],
    }


def _scratch(stack: ExitStack, folder: Path, block_bytes: int) -> Store:
    """Return a store in memory for short recordings, in a file without a name for long ones."""

    def store(electrodes: Any, rate: float, length: int) -> Any:
        if 4 * len(electrodes) * length <= block_bytes:
            return pipeline.in_memory(electrodes, rate, length)
        unnamed = stack.enter_context(TemporaryFile(dir=folder))  # noqa: SIM115 - the stack closes it
        file = stack.enter_context(h5py.File(unnamed, "w"))
        return file.create_dataset("eeg", (len(electrodes), length), "float32", chunks=(len(electrodes), 200))

    return store
