"""Numbers of a run: means of an epoch, log.txt, bad_steps.jsonl, TensorBoard, environment.json."""

import argparse
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from files import code_version, plain, written, written_aside
from utils import Run, gather

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "h5py", "mne", "einops", "tensorboardX")
LOG_ONLY = ("_lr", "_decay", "_total_loss", "_seconds", "_per_second")  # in log.txt, not on the terminal
NAMED_WINDOWS = 3  # of a bad step on the terminal; all are in bad_steps.jsonl
WHOLE_EPOCH = -1  # in place of a step


class MetricLog:
    """Weighted means and counts of an epoch. They stay on the device, so that adding never waits for it.

    Values wait for `commit()`, so that those of a step that was skipped can be dropped. A step's values are taken out
    by `take()` if it is known only later whether it was skipped.
    """

    def __init__(self) -> None:
        self.group: str | None = None  # of what is added next: averaged as `loss_<group>` and `accuracy_<group>`, too
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}  # of means; counts have none
        self._waiting: list[tuple[str, Tensor, float | None]] = []  # name, what its sum grows by, and its weight

    def add(self, stats: Mapping[str, Tensor | float], n: int = 1) -> None:
        """Add values (scalars) that are means over n samples."""
        if self.group is not None:
            stats = {**stats, **{f"{name}_{self.group}": stats[name] for name in ("loss", "accuracy") if name in stats}}
        for name, value in stats.items():
            scalar = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            self._waiting.append((name, scalar * n, n))

    def count(self, name: str, counts: Tensor) -> None:
        """Add to a vector of counts that only this process keeps."""
        self._waiting.append((name, counts.detach().clone(), None))

    def take(self) -> list[tuple[str, Tensor, float | None]]:
        """Remove and return what waits, to be dropped or given to `commit`."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def commit(self, waiting: list[tuple[str, Tensor, float | None]] | None = None) -> None:
        """Take up what was added. waiting: from `take`."""
        for name, value, weight in self.take() if waiting is None else waiting:
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            if weight is not None:
                self._weights[name] = self._weights.get(name, 0) + weight

    def total(self, name: str, size: int) -> Tensor:
        """Return this process's counts of a name, (size,), zeros if there are none."""
        return self._sums.get(name, torch.zeros(size, dtype=torch.long))

    def mean(self, name: str) -> float:
        """Return this process's mean so far (waits for the device)."""
        return float(self._sums[name]) / self._weights[name] if name in self._weights else math.nan

    def means(self) -> dict[str, float]:
        """Commit; return means over all processes. Every process must call it; a name may be missing on some."""
        self.commit()
        parts = gather({name: (float(self._sums[name]), weight) for name, weight in self._weights.items()})
        pairs = {name: [part[name] for part in parts if name in part] for name in sorted(set().union(*parts))}
        return {name: sum(p[0] for p in pair) / sum(p[1] for p in pair) for name, pair in pairs.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what exact resumption needs, on the CPU."""
        return {"sums": {name: value.cpu() for name, value in self._sums.items()}, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state_dict()`."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._weights = dict(state["weights"])


class RunLog:
    """log.txt, bad_steps.jsonl and TensorBoard scalars of a run; only rank 0 writes them.

    A resumed run cuts them to its checkpoint, so that no line is there twice and none is missing.
    """

    def __init__(self, folder: Path, tensorboard: Path | None) -> None:
        """tensorboard: folder of the scalars, if they are wanted."""
        self.log, self.bad_steps = folder / "log.txt", folder / "bad_steps.jsonl"
        self.tensorboard = tensorboard

    def cut(self, epoch: int, step: int) -> None:
        """Continue at a step of an epoch: remove lines that will be written again."""
        for path, end in ((self.log, (epoch, WHOLE_EPOCH)), (self.bad_steps, (epoch, step))):
            if path.is_file():
                kept = [line for line in path.read_text().splitlines() if _is_before(line, end)]
                with written_aside(path) as part:
                    part.write_text("".join(f"{line}\n" for line in kept))

    def add_epoch(self, epoch: int, line: Mapping[str, Any]) -> None:
        """Write an epoch's line, show it, and add its numbers to TensorBoard."""
        append(self.log, line)
        numbers = {n: v for n, v in line.items() if n not in ("epoch", "n_parameters") and math.isfinite(v)}
        shown = [f"{name} {value:.4g}" for name, value in numbers.items() if not name.endswith(LOG_ONLY)]
        logger.info("epoch %d: %s", epoch, ", ".join(shown))
        if self.tensorboard is None:
            return
        # A file for each epoch hides what earlier files say of it and of later ones. It is closed at once: a writer's
        # thread would still hold numbers when a checkpoint says that they are written.
        options = {"purge_step": epoch, "max_queue": 10 + len(numbers), "filename_suffix": f".{time.time_ns()}"}
        with written(f"--log_dir {self.tensorboard}"), SummaryWriter(str(self.tensorboard), **options) as writer:
            for name, value in numbers.items():
                writer.add_scalar(name, value, epoch)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a JSON-lines file, to the disk."""
    with written(path), path.open("a") as file:
        file.write(json.dumps(plain(line)) + "\n")
        file.flush()
        os.fsync(file.fileno())  # as checkpoints are


def _is_before(line: str, end: tuple[int, int]) -> bool:
    """Return whether a line is whole and of an earlier epoch and step."""
    try:
        values = json.loads(line)
    except ValueError:  # a killed run left it half written
        return False
    return (values["epoch"], values.get("step", WHOLE_EPOCH)) < end


def list_windows(windows: Sequence[Mapping[str, Any]]) -> str:
    """Name the first windows of a bad step; if some hold values that are not finite, only those."""
    texts = []
    for window in ([w for w in windows if not w["finite"]] or windows)[:NAMED_WINDOWS]:
        place = f"at {window['start_seconds']:g} s" if "start_seconds" in window else f"sample {window['sample']}"
        value = f"largest {window['largest_uv']:.3g} uV" if window["finite"] else "holds values that are not finite"
        texts.append(f"{window['file']}, {window['recording']}, {place} ({value})")
    return "; ".join(texts)


def environment(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Describe a run for environment.json: versions of code and libraries, hardware, flags."""
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "hardware": {
            "machine": platform.machine(),
            "cpu_cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(run.device),
            "gpu": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None,
            "processes": run.processes,
        },
        "flags": plain(vars(args)),
    }
