"""What runs in the limited process of `sandbox.py`: recordings to shards, one request after another.

A request is a line of JSON on standard input, `{"method": ..., "arguments": {...}}`, the answer a line on standard
output: `{"result": ...}`, `{"error": one line}`, `{"stop": one line}` for what no other recording would escape, or
`{"died": true}` when memory ran out.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import errno
import importlib
import json
import math
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import ModuleType
from typing import Any, TextIO

import h5py
import numpy as np

from dataset_maker import edf_header, pipeline
from dataset_maker.jobs import NO_SPACE, no_space
from dataset_maker.pipeline import Pipeline, Prepared, Windows
from dataset_maker.writers import LabelledShard, PretrainingShards
from eeg_data.quality import Quality
from errors import InputError, UsageError, one_line

BATCH = 64  # windows cut and written at a time


def _read(maker: ModuleType, task: Mapping[str, Any]) -> Any:
    read = getattr(maker, "read", None)
    raw = read(task) if read else pipeline.read_raw(Path(task["path"]))
    pipeline.check_header(raw, _where(task))
    return raw


def _as_given(task: Mapping[str, Any]) -> dict[str, Any]:
    """The same recording by the path that the maker was given, beside which its further files lie."""
    return {**task, "path": task["open"]}


def _where(task: Mapping[str, Any]) -> str:
    return str(task["path"])


def survey(maker: ModuleType, task: Mapping[str, Any], options: Pipeline) -> dict[str, Any]:
    """Return what a recording will give, from its header: electrodes, seconds, rate, windows (labelled makers)."""
    if hasattr(maker, "survey"):
        return maker.survey(task, options)
    raw = _read(maker, task)
    with pipeline.recording_readable(_where(task)):
        raw, _, _ = pipeline.select_electrodes(raw, options, _where(task))
        source_rate, samples = float(raw.info["sfreq"]), raw.n_times
    rate = options.filter.sampling_rate or source_rate
    seconds = samples / source_rate - options.trim_end
    found = {"electrodes": list(raw.ch_names), "seconds": seconds, "rate": rate}
    if hasattr(maker, "windows"):
        eeg = np.empty((len(raw.ch_names), 0), np.float32)  # windows follow from length and rate alone
        prepared = Prepared(list(raw.ch_names), rate, round(seconds * rate), eeg, Quality.merged(()), {})
        found["windows"] = len(maker.windows(task, prepared).starts)
    return found


def prepare(maker: ModuleType, task: Mapping[str, Any], options: Pipeline, store: pipeline.Store) -> Prepared:
    """Read a recording and put it through the pipeline; notes what its file lacks."""
    if hasattr(maker, "prepare"):
        return maker.prepare(task, options, store)
    raw = _read(maker, task)
    missing, announced = edf_header.missing_seconds(Path(task["path"]), raw)
    prepared = pipeline.prepare(raw, options, where=_where(task), store=store)
    if missing:
        share = f"{missing:g} of {announced:g} s that its header announces are missing"
        prepared.report["warnings"] = [f"{_where(task)}: cut short, {share}; the rest is converted"]
    return prepared


def cut(prepared: Prepared, start: int, window: int) -> np.ndarray:
    """Return the window (N, window) that begins at sample `start`, wrapping round the recording's ends."""
    first, stop = start % prepared.length, start % prepared.length + window
    if stop <= prepared.length:
        return prepared.eeg[:, first:stop]
    return np.concatenate([prepared.eeg[:, first:], prepared.eeg[:, : stop - prepared.length]], axis=1)


def valid_seconds(prepared: Prepared, starts: np.ndarray, window: int) -> np.ndarray:
    """Return which seconds of the windows are valid, (windows, seconds): those that touch no invalid one."""
    rate = int(prepared.rate)
    first = (starts[:, None] + rate * np.arange(window // rate)) % prepared.length  # (windows, seconds), samples
    last = first + rate - 1
    touched = (first, np.minimum(last, prepared.length - 1), last % prepared.length)  # the last one where it wraps
    return np.logical_and.reduce([prepared.quality.valid[samples // rate] for samples in touched])


class Worker:
    """One job at a time: `open`, `convert` for each recording, `close`."""

    def __init__(self) -> None:
        """Nothing is open."""
        self._stack = ExitStack()
        self.folder = Path()

    def survey(self, maker: str, tasks: list[dict], pipeline: dict) -> list[dict]:
        """Return the survey of each recording, or `{"error": one line}`."""
        module, options, found = importlib.import_module(maker), Pipeline.from_json(pipeline), []
        for task in map(_as_given, tasks):
            try:
                found.append(survey(module, task, options))
            except MemoryError:
                raise
            except Exception as error:
                found.append({"error": reason(error, _where(task))})
        return found

    def open(self, maker: str, pipeline: dict, folder: str, job: str, made: dict, description: dict | None) -> None:
        """Begin a job's shards. description: of a labelled set; None for pre-training files."""
        self._stack.close()
        self.maker, self.pipeline = importlib.import_module(maker), Pipeline.from_json(pipeline)
        self.folder, self.description = Path(folder), description
        self._stack = ExitStack()
        dtype = self.pipeline.dtype
        if description is None:
            self.shards = self._stack.enter_context(PretrainingShards(self.folder, job, made=made, dtype=dtype))
        else:
            self.path = self.folder / f"shard-{job}.hdf5"
            shard = LabelledShard(self.path, description=description, made=made, dtype=dtype)
            self.shard = self._stack.enter_context(shard)

    def convert(self, task: dict) -> dict[str, Any]:
        """Convert one recording into the open job; returns what the report says of it."""
        task = _as_given(task)
        return self._labelled(task) if self.description else self._pretraining(task)

    def _pretraining(self, task: dict) -> dict[str, Any]:
        name = task["recording"]
        try:
            prepared = prepare(self.maker, task, self.pipeline, self.shards.store(name))
            return self._found(prepared) | {"file": self.shards.finish(prepared)}
        except Exception:
            self.shards.discard(name)
            raise

    def _found(self, prepared: Prepared) -> dict[str, Any]:
        found = {
            "seconds": prepared.length / prepared.rate,
            "electrodes": list(prepared.electrodes),
            "invalid_seconds": int((~prepared.quality.valid).sum()),
        }
        report = prepared.report
        return found | {key: report[key] for key in ("notes", "dropped")} | {"warnings": report.get("warnings", [])}

    def _labelled(self, task: dict) -> dict[str, Any]:
        before = dict(self.shard.counts)
        with ExitStack() as scratch:
            try:
                prepared = prepare(self.maker, task, self.pipeline, self._scratch(scratch))
                windows = self.maker.windows(task, prepared)
                samples = self._append(task, prepared, windows)
            except Exception:
                self.shard.roll_back(before)
                raise
        return self._found(prepared) | {
            "samples": samples,
            "counts": dict(windows.notes),
            "file": self.path.name,
        }

    def _scratch(self, stack: ExitStack) -> pipeline.Store:
        """Return a store in memory for short recordings, in a file for long ones."""

        def store(electrodes: Any, rate: float, length: int) -> Any:
            if 4 * len(electrodes) * length <= self.pipeline.block_bytes:
                return pipeline.in_memory(electrodes, rate, length)
            path = self.path.with_name(f".{self.path.name}.{os.getpid()}.scratch")
            stack.callback(path.unlink, missing_ok=True)
            file = stack.enter_context(h5py.File(path, "w"))
            return file.create_dataset("eeg", (len(electrodes), length), "float32", chunks=(len(electrodes), 200))

        return store

    def _append(self, task: dict, prepared: Prepared, windows: Windows) -> dict[str, dict[str, int]]:
        """Write a recording's windows; returns split -> label -> number (label `all` for regression)."""
        assert self.description
        order = montage_order(prepared.electrodes, self.description["electrodes"], _where(task))
        splits = np.asarray(windows.splits if windows.splits is not None else [task["split"]] * len(windows.starts))
        labels, window = np.asarray(windows.labels), round(self.description["window"] * prepared.rate)
        starts = np.asarray(windows.starts, dtype=np.int64)
        assert self.description["wrap"] or ((starts >= 0) & (starts + window <= prepared.length)).all(), "in the signal"
        valid = valid_seconds(prepared, starts, window)
        found: dict[str, dict[str, int]] = {}
        for split in dict.fromkeys(splits.tolist()):
            (which,) = np.nonzero(splits == split)
            for batch in np.array_split(which, math.ceil(len(which) / BATCH)):
                eeg = np.stack([cut(prepared, int(start), window)[order] for start in starts[batch]])
                names = {"recording": task["recording"], "subject": task["subject"]}
                self.shard.append(split, eeg, labels[batch], valid=valid[batch], **names)
            kinds = labels[which].tolist() if self.description["task"] != "regression" else ["all"] * len(which)
            found[split] = {str(label): count for label, count in sorted(Counter(kinds).items())}
        for split in found:  # only now, because what fails above is taken back
            self.shard.describe(split, prepared.quality, prepared.report["notes"])
        return found

    def files(self) -> list[str]:
        """Return the names that the job's files will have."""
        return list(self.shards.files) if self.description is None else [self.path.name]

    def close(self) -> dict[str, int]:
        """Name the job's files; returns their sizes in bytes."""
        self._stack.close()
        return {name: (self.folder / name).stat().st_size for name in self.files()}


def montage_order(found: list[str], wanted: list[str], where: str) -> list[int]:
    """Return the rows of a recording in the data set's order. Raises InputError where the electrodes differ."""
    if found == wanted:
        return list(range(len(found)))
    lacks, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lacks or extra:
        parts = [f"lacks {', '.join(lacks)}"] if lacks else []
        parts += [f"has {', '.join(extra)} besides"] if extra else []
        raise InputError(f"{where}: not the electrodes of this data set: {' and '.join(parts)}")
    return [found.index(name) for name in wanted]


def reason(error: Exception, where: str) -> str:
    """Return an error in one line. A fault of ours is said with its place, not its text, which may quote a header."""
    if isinstance(error, InputError):
        return one_line(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{where}: cannot be converted ({type(error).__name__} in {Path(last.filename).name}, line {last.lineno})"


def limit_memory(gigabytes: float) -> None:
    """Bound this process's address space, where the system can; no core file, for it would hold headers' texts."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = int(gigabytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with suppress(ValueError, OSError):  # macOS has the limit but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def lacks_space(error: BaseException, folder: Path) -> bool:
    """Whether a failure is for want of disk space, quota or the largest file allowed."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    chain = (error, error.__cause__, error.__context__)
    return any(getattr(e, "errno", None) in numbers for e in chain) or shutil.disk_usage(folder).free < NO_SPACE


def answer_to(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked; returns the result, the error, or what must stop the whole maker."""
    try:
        return {"result": getattr(worker, request["method"])(**request["arguments"])}
    except MemoryError:
        return {"died": True}
    except Exception as error:
        if request["method"] != "survey" and lacks_space(error, worker.folder):
            return {"stop": no_space(worker.folder)}
        if isinstance(error, UsageError):
            return {"stop": one_line(error)}
        return {"error": reason(error, request["arguments"].get("task", {}).get("path", request["method"]))}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Say that all is loaded, then answer requests until there are no more, or memory runs out."""
    worker = Worker()
    answers.write("{}\n")
    answers.flush()
    for line in requests:
        answer = answer_to(worker, json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "died" in answer:
            return


if __name__ == "__main__":
    limit_memory(float(sys.argv[1]))
    own_output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what readers print must not be taken for answers
    serve(sys.stdin, own_output)
