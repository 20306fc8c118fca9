"""What the tests of runs that are killed share: fast launches of torchrun, plans of faults, comparing runs bit by bit.

Event files are read with tensorboardX's message types alone, and what was cut off counts as TensorBoard counts it.
"""

import atexit
import functools
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from run_helpers import (
    CLASSIFIER,
    MASKED,
    TOKENIZER,
    checkpoint,
    clean_environment,
    kill_tree,
    labelled_file,
    log,
    predictions,
    pretraining_file,
)

TESTS = Path(__file__).parent
TIMEOUT = 180  # seconds for a launch, and 20 for each of its faults
CLOCK = ("epoch_seconds", "samples_per_second")  # of a line of log.txt: what differs between equal runs

NOT_COMPARED = ("args", "seconds", "code")  # of checkpoints: paths, clocks, and a version that may rise meanwhile

ERROR = re.compile(r"(\[process \d+\] )?error: ")

Fault = dict[str, Any]  # see fault_driver.py


@functools.cache
def server() -> subprocess.Popen[str]:
    """Return the process that launches, started once and ended with this one."""
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "torchrun_server.py")],
        env=clean_environment(OPENBLAS_NUM_THREADS="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    atexit.register(process.kill)
    return process


@dataclass
class Ended:
    """A launch that is over: torchrun's exit code and words, and where its processes wrote."""

    code: int
    text: str
    notes: Path
    logs: Path

    def codes(self, attempt: int = 0) -> dict[int, int | str]:
        """Return the exit codes of the rank processes of an attempt that lived to leave one."""
        found = sorted(self.notes.glob(f"exit-{attempt}-*"))
        return {int(path.name.rpartition("-")[2]): json.loads(path.read_text())["code"] for path in found}

    def starts(self) -> list[tuple[int, int]]:
        """Return the epoch, and the step in it, at which each attempt went on."""
        found = sorted(self.notes.glob("start-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        words = [json.loads(path.read_text()) for path in found]
        return [(word["epoch"], word["step"]) for word in words]

    def struck(self) -> int:
        """Return how many faults happened."""
        return len(list(self.notes.glob("fault-*")))

    def said(self, attempt: int = -1) -> str:
        """Return what the rank processes wrote to standard error, of one attempt or of all."""
        found = sorted(self.logs.glob(f"*/attempt_{'*' if attempt < 0 else attempt}/*/stderr.log"))
        return "\n".join(path.read_text() for path in found)

    def errors(self, attempt: int = 0) -> list[str]:
        """Return the lines with which rank processes of an attempt say why they end, but those that name another one.

        These are only said where torchrun, on a busy machine, takes seconds to end them.
        """
        lines = [line for line in self.said(attempt).splitlines() if ERROR.match(line)]
        # Not at the line's end: what another process says may follow in the same line.
        return [line for line in lines if "error: ended because another process of the run did" not in line]


@dataclass
class Job:
    """A script with its flags, its number of processes, and the folder that a run of it works in."""

    script: str
    flags: Sequence[Any]
    processes: int = 2
    faults: Sequence[Fault] = ()
    words: Sequence[Sequence[str]] = ()  # of each attempt, again from the front
    restarts: int | None = None  # default: one for each fault
    torchrun: Sequence[str] = ()  # further flags of torchrun

    def run(self, folder: Path, *, during: Callable[[int], None] = lambda pid: None, check: bool = True) -> Ended:
        """Launch it, with output_dir `folder/run` and log_dir `folder/board`; during: gets torchrun's process id."""
        notes = folder / "notes"
        notes.mkdir(parents=True, exist_ok=True)
        plan = {"notes": str(notes), "faults": list(self.faults), "words": list(self.words)}
        (folder / "plan.json").write_text(json.dumps(plan))
        number = len(list(folder.glob("out-*")))
        restarts = len(self.faults) if self.restarts is None else self.restarts
        words: list[Any] = ["--standalone", f"--nproc_per_node={self.processes}", f"--max-restarts={restarts}"]
        words += ["--redirects=3", "--log-dir", folder / f"logs-{number}", *self.torchrun]
        words += [TESTS / "fault_driver.py", folder / "plan.json", self.script, *self.flags]
        words += ["--output_dir", folder / "run", "--log_dir", folder / "board"]
        out, err = folder / f"out-{number}", folder / f"err-{number}"
        request = {"words": list(map(str, words)), "cwd": str(folder), "env": {}}
        patience = TIMEOUT + 20 * len(self.faults)
        code = serve({**request, "out": str(out), "err": str(err)}, during, patience)
        logs = folder / f"logs-{number}"
        ended = Ended(code, out.read_text() + err.read_text(), notes, logs)
        assert code == 0 or not check, f"{request['words']}\n{ended.text}\n{ended.said()}"
        return ended


def serve(request: dict[str, Any], during: Callable[[int], None], seconds: float) -> int:
    """Hand a request to the server; returns torchrun's exit code. It is killed after so many seconds."""
    requests, answers = server().stdin, server().stdout
    assert requests and answers
    print(json.dumps(request), file=requests, flush=True)
    pid = int(answers.readline())
    late = threading.Timer(seconds, kill_tree, [pid])
    late.start()
    try:
        during(pid)
    except BaseException:
        kill_tree(pid)
        raise
    finally:
        code = int(answers.readline())  # else the next request would take it for its process id
        late.cancel()
    return code


def data(folder: Path) -> None:
    """Write what the jobs train and evaluate on: two montages and a task, 5 steps an epoch each."""
    pretraining_file(folder / "train" / "a.hdf5", seconds=(24, 16))  # 20 windows of two seconds
    pretraining_file(folder / "train" / "b.hdf5", seconds=(26,), electrodes=("FP1", "O2", "T3"), seed=4)  # 13
    pretraining_file(folder / "val" / "a.hdf5", seconds=(14,), seed=5)
    pretraining_file(folder / "val" / "b.hdf5", seconds=(10,), electrodes=("FP1", "O2", "T3"), seed=6)
    labelled_file(folder / "task.hdf5", counts={"train": 38, "val": 14, "test": 10})


STEPS = 5  # an epoch, of two processes with batches of 4
PLACES = ("step", "save", "replace", "evaluate")
EPOCHS = {"tokenizer": 4, "masked": 3, "classifier": 4}


def job(stage: str, folder: Path, *words: Any, processes: int = 2, **options: Any) -> Job:
    """Return a job on the data of a folder; stages 2 and 3 begin with `tokenizer.pth` and `masked.pth` there."""
    common = ["--epochs", EPOCHS[stage], "--save_ckpt_freq", 2, *words]
    pretraining = ["--train_data", folder / "train", "--val_data", folder / "val"]
    if stage == "tokenizer":
        # A learning rate at which codes die, so that the revival has something to do.
        return Job("run_vqnsp_training", [*TOKENIZER, *pretraining, "--lr", 0.003, *common], processes, **options)
    if stage == "masked":
        further = ["--tokenizer_weight", folder / "tokenizer.pth", "--drop_path", 0.1, "--batch_size", 2]
        further += ["--gradient_accumulation_steps", 2, "--clip_grad", 3]
        return Job("run_labram_pretraining", [*MASKED, *pretraining, *further, *common], processes, **options)
    further = ["--dataset", folder / "task.hdf5", "--finetune", folder / "masked.pth", "--drop_path", 0.1]
    further += ["--model_ema", "--model_ema_decay", 0.9]
    return Job("run_class_finetuning", [*CLASSIFIER, *further, *common], processes, **options)


def planned(stage: str, n: int, *, seed: int, processes: int = 2) -> list[Fault]:
    """Return n faults of a run at random moments in rising order, each certain to happen once the ones before have.

    Every second one strikes late enough in an epoch for a checkpoint inside it to be there.
    """
    random = np.random.default_rng((seed, *map(ord, stage)))
    steps, total = STEPS, STEPS * EPOCHS[stage]
    edges = np.linspace(1, total - 1, n + 1).round().astype(int)
    places = np.concatenate([random.permutation(PLACES) for _ in range(-(-n // len(PLACES)))])
    faults: list[Fault] = []
    for number in range(n):
        low, high, place = edges[number], max(edges[number] + 1, edges[number + 1]), str(places[number])
        late = [step for step in range(low, high) if step % steps >= steps - 2]
        after = int(random.choice(late if late and number % 2 == 0 else range(low, high)))
        if after >= total - steps and place == "evaluate":
            place = "step"  # the last epoch might end before
        fault: Fault = {"at": place, "after": after, "rank": int(random.integers(processes)), "signal": "SIGKILL"}
        if place in ("save", "replace"):
            fault |= {"rank": 0, "number": int(random.integers(1, 3 if after >= total - steps else 4))}  # rank 0 writes
        if place in ("step", "replace"):
            fault["behind"] = bool(random.integers(2))
        if place in ("step", "evaluate") and random.random() < 0.4:
            fault["signal"] = str(random.choice(["SIGTERM", "SIGUSR1"]))
        faults.append(fault)
    return faults


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield the places at which two nested values differ in type or in a single bit."""
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} and {type(other).__name__}"
    elif isinstance(one, Mapping):
        if list(one) != list(other) and (set(one) != set(other)):
            yield f"{where}: keys {sorted(set(map(str, one)) ^ set(map(str, other)))}"
        for key in set(one) & set(other):
            yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: lengths {len(one)} and {len(other)}"
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        yield from differences(one.contiguous().numpy(), other.contiguous().numpy(), where)
    elif isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            yield f"{where}: other values"
    elif one != other and not (one != one and other != other):
        yield f"{where}: {one} and {other}"


def without(state: Any, names: Sequence[str]) -> Any:
    """Return nested dicts and lists without the entries of these names."""
    if isinstance(state, Mapping):
        return {key: without(value, names) for key, value in state.items() if key not in names}
    return [without(value, names) for value in state] if isinstance(state, list) else state


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log.txt but what the clock wrote into them."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in log(folder)]


def assert_same_training(one: Path, other: Path) -> None:
    """Compare weights, optimizer and log of two runs to the last bit; flags and paths may differ."""
    states = [checkpoint(folder / "checkpoint.pth") for folder in (one, other)]
    found = list(differences(*({part: state[part] for part in ("model", "optimizer")} for state in states)))
    found += differences(log_lines(one), log_lines(other), "log.txt")
    assert found == []


def scalars(board: Path) -> dict[tuple[str, int], list[float]]:
    """Return what TensorBoard shows of a folder: the values of each tag and step that no later start cut off."""
    shown: dict[tuple[str, int], list[float]] = {}
    for path in sorted(board.rglob("*tfevents*")):
        for event in events(path):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                shown = {(tag, step): values for (tag, step), values in shown.items() if step < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    return {key: values for key, values in shown.items() if not key[0].endswith(CLOCK)}


def events(path: Path) -> Iterator[Event]:
    """Yield the whole events of a file: of each its length (8 bytes), a sum of that (4), the message, a sum (4)."""
    content, place = path.read_bytes(), 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        place += 12 + length + 4
        if place > len(content):
            return  # cut off by a kill
        yield Event.FromString(content[place - 4 - length : place - 4])


@functools.cache
def workplace() -> Path:
    """Return a folder with the jobs' data that is there until the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data(folder)
    return folder


@functools.cache
def reference(stage: str) -> Path:
    """Return the folder of a stage's run that was never stopped, made when it is first needed."""
    before = {"masked": "tokenizer", "classifier": "masked"}.get(stage)
    if before:
        shutil.copy(reference(before) / "run" / "checkpoint.pth", workplace() / f"{before}.pth")
    job(stage, workplace()).run(workplace() / stage)
    return workplace() / stage


def usual(stage: str, *words: Any, **options: Any) -> Job:
    """Return the job of the stage's reference, or one that differs from it in these words."""
    reference(stage)  # and with it what the stage begins with
    return job(stage, workplace(), *words, **options)


def unequal(one: Path, other: Path) -> list[str]:
    """Return in what two finished runs differ; each folder holds `run` and `board`."""
    found = list(differences(log_lines(one / "run"), log_lines(other / "run"), "log.txt"))
    found += differences(scalars(one / "board"), scalars(other / "board"), "TensorBoard")
    kept = [{path.name for path in kept_files(folder / "run")} for folder in (one, other)]
    found += [f"{name}: in one run only" for name in sorted(kept[0] ^ kept[1])]
    for name in sorted(kept[0] & kept[1]):
        found += differences(kept_values(one / "run" / name), kept_values(other / "run" / name), name)
    return found


def kept_values(path: Path) -> dict[str, Any]:
    """Return what a file of predictions or a checkpoint holds."""
    return predictions(path) if path.suffix == ".npz" else without(checkpoint(path), NOT_COMPARED)


def kept_files(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints and predictions that every run of the same flags ends with."""
    for path in folder.iterdir():
        aside = ".previous" in path.suffixes  # of a run that goes back or begins anew
        if path.suffix in (".pth", ".npz") and not aside and not path.name.startswith("."):
            yield path
