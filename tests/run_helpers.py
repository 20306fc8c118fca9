"""What the tests of whole runs share: tiny HDF5 files, starting a script, reading and comparing what a run left."""

import contextlib
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from data_helpers import differences, flat, write_labelled, write_pretraining

ROOT = Path(__file__).parents[1]
RATE = 200  # Hz
ELECTRODES = ("C3", "CZ", "C4", "PZ")
STAGES = ("run_vqnsp_training", "run_labram_pretraining", "run_class_finetuning")

# Tiny models and everything that could differ between two runs switched off or fixed.
QUICK = ["--device", "cpu", "--num_workers", "0", "--warmup_epochs", "0", "--epochs", "1", "--batch_size", "4"]
TOKENIZER = ["--model", "vqnsp_encoder_tiny_decoder_1x200x4", "--codebook_n_emd", "16", "--codebook_emd_dim", "8"]
TOKENIZER += ["--time_window", "2", "--window_stride", "400", *QUICK]
MASKED = ["--model", "labram_tiny_patch200_1600_8k_vocab", "--tokenizer_model", "vqnsp_encoder_tiny_decoder_1x200x4"]
MASKED += ["--time_window", "2", "--window_stride", "400", *QUICK]
CLASSIFIER = ["--model", "labram_tiny_patch200_200", *QUICK]


def noise(shape: Sequence[int], seed: int) -> np.ndarray:
    """Return EEG-like float32 in uV: noise and an oscillation whose strength differs from row to row."""
    generator = np.random.default_rng(seed)
    seconds = np.arange(shape[-1]) / RATE
    strength = generator.uniform(0, 60, (*shape[:-1], 1))
    oscillation = np.sin(2 * np.pi * generator.uniform(5, 30, (*shape[:-1], 1)) * seconds)
    return (20 * generator.standard_normal(shape) + strength * oscillation).astype(np.float32)


def pretraining_file(
    path: Path,
    *,
    seconds: Sequence[float] = (20, 20),
    electrodes: Sequence[str] = ELECTRODES,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write a pre-training file with a recording of each length; options: of write_pretraining."""
    recordings = [noise((len(electrodes), round(length * RATE)), seed + i) for i, length in enumerate(seconds)]
    return write_pretraining(path, electrodes, recordings, **options)


def labelled_file(
    path: Path,
    *,
    counts: Mapping[str, int],
    classes: Sequence[str] = ("normal", "abnormal"),
    electrodes: Sequence[str] = ELECTRODES,
    seconds: int = 2,
    labels: Any = None,
    **options: Any,
) -> Path:
    """Write a labelled file; counts: samples of each split; labels: of train, where they matter; options: of h5py."""
    splits = {}
    for number, (split, n) in enumerate(counts.items()):
        label = np.arange(n) % len(classes)
        strength = (1 + label[:, None, None]).astype(np.float32)  # learnable: classes differ in amplitude
        eeg = noise((n, len(electrodes), seconds * RATE), 100 + number) * strength
        splits[split] = eeg, label if labels is None or split != "train" else np.asarray(labels)
    chunks = (1, len(electrodes), seconds * RATE)
    return write_labelled(path, splits, classes=classes, names=electrodes, chunks=chunks, **options)


def call(script: str, *words: Any) -> int:
    """Run a script's main in this process as its command line would; return the exit code."""
    module = importlib.import_module(script)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: a second thread waits more than it works
    with patch.object(sys, "argv", [f"{script}.py", *map(str, words)]):
        try:
            module.run_script(module.main, module.get_args())
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            torch.set_num_threads(threads)
    return 0


@contextlib.contextmanager
def stopped_at(owner: Any, name: str, number: int, *, behind: bool = False) -> Iterator[None]:
    """Send this process SIGTERM before or, with behind, after the call of that number of a function."""
    calls, original = [0], getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not behind:
            os.kill(os.getpid(), signal.SIGTERM)
        result = original(*arguments, **options)
        if calls[0] == number and behind:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with patch.object(owner, name, watched):
        yield


def clean_environment(**variables: str) -> dict[str, str]:
    """Return the variables of a process without a GPU and with one thread; it counts its lines where we count ours."""
    names = ("PATH", "HOME", "TMPDIR", "LABRAM_CACHE", "COVERAGE_PROCESS_CONFIG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def start(
    words: Sequence[Any], *, cwd: Path, processes: int = 0, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `python words...` in a clean environment, with processes > 0 through torchrun; it must end well."""
    command = [sys.executable]
    if processes:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += map(str, words)
    env = clean_environment(**variables)
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            raise
    assert process.returncode == 0, f"{command}\n{out}\n{err}"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started: torchrun's workers have sessions of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split() if children.is_file() else []:
        kill_tree(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def log(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log.txt."""
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without the project's own reader."""
    return torch.load(path, map_location="cpu", weights_only=True)


def predictions(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a predictions file."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder but environment.json, byte for byte."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "environment.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Comparing runs

CLOCK = ("epoch_seconds", "samples_per_second")  # of a line of log.txt: what differs between equal runs
NOT_COMPARED = ("args", "seconds", "code version")  # of checkpoints: paths, clocks, a version that may rise meanwhile


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log.txt but what the clock wrote into them."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in log(folder)]


def differing(one: Path, other: Path) -> list[str]:
    """Return in what two finished runs differ: log, checkpoints and predictions in `run`, scalars in `board`."""
    return differences(*(results(folder) for folder in (one, other)))


def results(folder: Path) -> dict[str, Any]:
    """Return what two runs with the same flags must have alike, however often they were stopped."""
    kept: dict[str, Any] = {"log.txt": log_lines(folder / "run"), "TensorBoard": scalars(folder / "board")}
    for path in (folder / "run").glob("[!.]*.*"):
        if path.suffix == ".npz":
            kept[path.name] = predictions(path)
        if path.suffix == ".pth" and ".previous" not in path.suffixes:  # of a run that goes back or begins anew
            leaves = flat(checkpoint(path)).items()
            kept[path.name] = {name: leaf for name, leaf in leaves if not set(name.split(".")) & set(NOT_COMPARED)}
    return kept


def scalars(board: Path) -> dict[tuple[str, int], list[float]]:
    """Return what TensorBoard shows of a folder: the values of each tag and step that no later start cut off."""
    shown: dict[tuple[str, int], list[float]] = {}
    for path in sorted(board.rglob("*tfevents*")):
        for event in events(path.read_bytes()):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                shown = {(tag, step): values for (tag, step), values in shown.items() if step < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    return {key: values for key, values in shown.items() if not key[0].endswith(CLOCK)}


def events(content: bytes) -> Iterator[Event]:
    """Yield a file's whole events: of each its length (8 bytes), a sum of that (4), the message, a sum (4)."""
    while len(content) >= 12:
        (length,) = struct.unpack_from("<Q", content)
        if len(content) < 12 + length + 4:
            return  # cut off by a kill
        yield Event.FromString(content[12 : 12 + length])
        content = content[12 + length + 4 :]
