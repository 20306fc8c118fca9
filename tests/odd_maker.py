"""A maker whose recordings do what broken files make readers do: named by the text in the file.

The processes of the pool import it as `tests.odd_maker`.
"""

import errno
import os
import resource
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mne
import numpy as np

from dataset_maker.writers import Windows
from errors import InputError

SECONDS, RATE = 4, 200.0


def signal_of(path: Path) -> np.ndarray:
    """Return the signal (2, time) in uV of a recording that behaves."""
    return np.random.default_rng(len(path.stem) + ord(path.stem[-1])).standard_normal((2, SECONDS * int(RATE))) * 20


def behave(word: str, free: Path) -> None:
    """Do what the word says; free: the file for which a held one waits."""
    while word == "held" and not free.exists():
        time.sleep(0.02)
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "hang":
        time.sleep(600)
    if word == "greedy":
        len([np.empty(1 << 27) for _ in range(64)])  # 64 GiB of addresses
    if word == "broken":
        raise InputError("cannot be read")
    if word == "fault":
        raise TypeError("Jane Roe")
    if word == "gone":
        raise FileNotFoundError(errno.ENOENT, "Jane Roe")
    if word == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # bytes of a file, this process's


def read(task: Mapping[str, Any]) -> mne.io.BaseRaw:
    """Return the recording, or behave as its file says."""
    path = Path(task["path"])
    word = path.read_text()
    path.with_suffix(".read").touch()
    behave(word, path.with_suffix(".free"))
    names = ["PZ", "CZ"] if word == "swapped" else ["CZ", "OZ"] if word == "others" else ["CZ", "PZ"]
    eeg = signal_of(path)[::-1] if word == "swapped" else signal_of(path)
    return mne.io.RawArray(eeg * 1e-6, mne.create_info(names, RATE, "eeg"), verbose="error")


def windows(task: Mapping[str, Any], prepared: Any) -> Windows:
    """Windows of one second, labels in turn, or all 0, or with one in val whose label no class has."""
    starts = np.arange(0, prepared.length - 199, 200)
    if Path(task["path"]).read_text() == "labels":
        return Windows(starts, np.array([0, 1, 0, 7]), splits=["train"] * 3 + ["val"])
    classes = 1 if Path(task["path"]).read_text() == "same" else 2
    return Windows(starts, np.arange(len(starts)) % classes, notes={"windows seen": len(starts)})
