"""What the tests of whole runs share: tiny HDF5 files, starting a script, reading what a run left behind.

The files are written with plain h5py from the format's description, not with the project's own writers.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import torch

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
    rate: float = RATE,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Write a pre-training file with a recording of each length; options go to h5py's create_dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for i, length in enumerate(seconds):
            eeg = noise((len(electrodes), round(length * RATE)), seed + i)
            chunks = (len(electrodes), min(RATE, eeg.shape[1]))
            data = file.create_group(f"recording{i}").create_dataset("eeg", data=eeg, chunks=chunks, **options)
            data.attrs.update(chOrder=list(electrodes), rsFreq=rate, lFreq=0.1, hFreq=75.0)
    return path


def labelled_file(
    path: Path,
    *,
    counts: Mapping[str, int],
    task: str = "binary",
    classes: Sequence[str] = ("normal", "abnormal"),
    electrodes: Sequence[str] = ELECTRODES,
    seconds: int = 2,
    labels: Any = None,
    **options: Any,
) -> Path:
    """Write a labelled file; counts: samples of each split; labels: of the training split, where they matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(
            name=path.stem, task=task, classes=list(classes), chOrder=list(electrodes), rsFreq=float(RATE)
        )
        for number, (split, n) in enumerate(counts.items()):
            eeg = noise((n, len(electrodes), seconds * RATE), 100 + number)
            label: Any = np.arange(n, dtype=np.int64) % len(classes)
            if task == "regression":
                label = np.random.default_rng(number).standard_normal((n, len(classes))).astype(np.float32)
            else:
                eeg *= (1 + label[:, None, None]).astype(np.float32)  # learnable: classes differ in amplitude
            if labels is not None and split == "train":
                label = np.asarray(labels)
            group = file.create_group(split)
            group.create_dataset("eeg", data=eeg, chunks=(1, *eeg.shape[1:]), **options)
            group["label"] = label
            group["recording"] = [f"{split}-{i // 2}".encode() for i in range(n)]
            group["subject"] = [f"s{i // 4}".encode() for i in range(n)]
    return path


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


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**variables: str) -> dict[str, str]:
    """Return the variables of a process without a GPU and with one thread; it counts its lines where we count ours."""
    names = ("PATH", "HOME", "TMPDIR", "LABRAM_CACHE", "COVERAGE_PROCESS_CONFIG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def start(
    words: Sequence[Any], *, cwd: Path, processes: int = 0, timeout: float = 240, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `python words...` in a clean environment, with processes > 0 through torchrun; return how it ended."""
    env = clean_environment(**variables)
    command = [sys.executable]
    if processes:
        env["PET_MASTER_PORT"] = str(free_port())  # torchrun's --master_port: two runs on a machine do not meet
        command += ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={processes}"]
    command += map(str, words)
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            raise
    assert process.returncode == 0 or not check, f"{command}\n{out}\n{err}"
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
