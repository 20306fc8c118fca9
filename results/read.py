"""Read what runs leave in their folders: log.txt, environment.json, prediction files; find the epoch that counts.

What cannot be used becomes a line in `notes`, so that the other runs still count.
"""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from errors import InputError, one_line, printable
from training import FREE_FLAGS
from training.metrics import SELECT_BY, BestEpoch, compute

STAGE_SIGNS = {"train_quant_loss": "tokenizer", "train_mlm_acc": "pretraining"}
SAME_VALUE = 5e-5  # half of the last printed digit: batches of another size round differently
# Flags that say where a run reads, writes and computes: runs that differ in them are still averaged.
PLACES = FREE_FLAGS - {"finetune", "tokenizer_weight"} | {"seed"}
HEAD_LOSS = re.compile("(?:val|test)_([^_]+)_loss")  # of one of several data sets, in log.txt
BATCH_FLAGS = {"batch_size", "gradient_accumulation_steps", "update_freq"}  # their product is compared


@dataclass(frozen=True)
class Predictions:
    """The logits of a set in one epoch, and what they belong to."""

    epoch: int
    logits: np.ndarray  # (samples, outputs)
    labels: np.ndarray  # (samples,) or (samples, outputs)
    recordings: np.ndarray  # (samples,) text
    subjects: np.ndarray  # (samples,) text; empty if unknown
    name: str | None  # of the data set; None if unknown
    classes: tuple[str, ...]  # () if unknown


@dataclass
class RunResult:
    """One run."""

    folder: Path
    label: str  # the path from the folder that all runs share
    stage: str  # tokenizer, pretraining or classifier
    log: pd.DataFrame  # log.txt, indexed by epoch
    environment: dict[str, Any]
    task: str | None = None  # of stage 3, a key of SELECT_BY, as are the following
    name: str | None = None  # of the data set
    select_by: str = ""  # the metric that selects the epoch
    epoch: int | None = None  # the epoch that counts
    rule: str = ""  # how it was selected
    predictions: dict[str, Predictions] = field(default_factory=dict)  # by set: val, test
    finished: bool = True
    head: str = ""  # of several data sets: the name of this one in log.txt and in file names

    @property
    def flags(self) -> dict[str, Any]:
        """Flags of the run; {} if unknown."""
        return self.environment.get("flags", {})

    @property
    def settings(self) -> dict[str, Any]:
        """Flags that make another experiment. The windows of a step stand for the flags that make them up."""
        processes = self.environment.get("hardware", {}).get("processes", 1)
        windows = math.prod([processes, *(self.flags.get(name, 1) for name in BATCH_FLAGS)])
        settings = {name: value for name, value in self.flags.items() if name not in PLACES | BATCH_FLAGS}
        settings["dataset"] = " ".join(Path(one).stem for one in self.flags["dataset"]) if self.head else self.name
        return settings | {"total_batch_size": self.flags.get("total_batch_size") or windows}

    @property
    def split(self) -> str:
        """The set whose metrics are reported: val if there is no test set."""
        return "val" if "val_loss" in self.log and "test_loss" not in self.log else "test"

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics in log.txt, sorted, without the loss."""
        return sorted({name.split("_", 1)[1] for name in self.log if name.startswith(("val_", "test_"))} - {"loss"})

    def value(self, name: str) -> float:
        """A number of log.txt in the epoch that counts; NaN if there is none."""
        return math.nan if self.epoch is None or name not in self.log else float(self.log.at[self.epoch, name])


def read_runs(folders: Sequence[Path]) -> tuple[list[RunResult], list[str]]:
    """Read the runs in these folders or their sub-folders. Returns them and a line for everything that is odd."""
    notes: list[str] = []
    found = [place for folder in folders for place in run_folders(folder, notes)]
    places = [*{place.resolve(): Path(os.path.normpath(place.absolute())) for place in found}.values()]  # each run once
    shared = os.path.commonpath([place.parent for place in places]) if places else ""
    runs = []
    for place in places:
        label, own = printable(str(place.relative_to(shared))), list[str]()
        runs += read_run(place, label, own)
        notes += [f"{label}: {note}" for note in dict.fromkeys(own)]
    return runs, notes


def run_folders(folder: Path, notes: list[str]) -> list[Path]:
    """Return the folder if it holds a log.txt, else its sub-folders that do, in the order of the numbers in names."""
    if (folder / "log.txt").is_file():
        return [folder]
    inside = [path.parent for path in folder.glob("*/log.txt")]
    if not inside:
        what = "has no log.txt, and none in a sub-folder" if folder.is_dir() else "is no folder"
        notes.append(f"{folder} {what}: give the --output_dir of a run, or a folder of such folders")
    return sorted(inside, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def read_run(folder: Path, label: str, notes: list[str]) -> list[RunResult]:
    """Read one folder: a result, one for each of several data sets, or none without a whole line in log.txt."""
    lines = read_log(folder / "log.txt", notes)
    if not lines:
        notes.append("log.txt holds no whole epoch: left out")
        return []
    log = pd.DataFrame(lines, index=[int(line["epoch"]) for line in lines])
    environment = _read_environment(folder / "environment.json", notes)
    stage = next((stage for sign, stage in STAGE_SIGNS.items() if sign in log), "classifier")
    losses = filter(None, map(HEAD_LOSS.fullmatch, log)) if stage == "classifier" else ()
    runs = []
    for head in dict.fromkeys(found[1] for found in losses) or [""]:
        run = RunResult(folder, label, stage, columns_of(log, head), environment, head=head)
        stopped = stage == "classifier" and _judge(run, notes)
        if head:
            stopped = _replay(BestEpoch("score", None, patience=run.flags.get("patience")), log).stopped
        epochs, done = run.flags.get("epochs", 0), int(log.index[-1]) + 1
        if done < epochs and not stopped:
            run.finished = False
            notes.append(f"unfinished, {done} of {epochs} epochs: in no mean")
        if stage == "classifier":
            names = [one.name for one in run.predictions.values() if one.name]
            given = np.atleast_1d(run.flags.get("dataset") or "")[0]
            run.name = next(iter(names), None) or head or printable(Path(given).stem) or None
        runs.append(run)
    return runs


def columns_of(log: pd.DataFrame, head: str) -> pd.DataFrame:
    """Return the log of one of several data sets as it would be alone: val_NAME_loss becomes val_loss."""
    if not head:
        return log
    own = {name: name.replace(f"_{head}_", "_", 1) for name in log if re.match(f"(val|test)_{re.escape(head)}_", name)}
    own |= {f"{name}_{head}": name for name in ("train_loss", "train_accuracy") if f"{name}_{head}" in log}
    shared = [n for n in log if not n.startswith(("val_", "test_", "train_loss", "train_accuracy"))]
    return log[[*shared, *own]].rename(columns=own)


def read_log(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """Read the numbers of log.txt, one dict per epoch, in order; null becomes NaN. Damaged lines are noted."""
    by_epoch: dict[float, dict[str, float]] = {}
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = {str(n): math.nan if v is None else float(v) for n, v in json.loads(text).items()}
            by_epoch[int(line["epoch"])] = line
        except (ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"line {number} of {len(texts)} of log.txt is damaged or cut off, and left out")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _read_environment(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        reason = "cannot be read" if path.exists() else "is missing"
        notes.append(f"environment.json {reason}: the settings are unknown, and whether the run is finished")
        return {}


def _judge(run: RunResult, notes: list[str]) -> bool:
    """Find the task, the epoch that counts and its predictions. Returns True if --patience stopped the training."""
    run.task = next((task for task, metric in SELECT_BY.items() if metric in run.metrics), None)
    if run.task is None:
        notes.append("log.txt holds no validation or test metrics")
        return False
    run.select_by = run.flags.get("select_by") or SELECT_BY[run.task]
    best = BestEpoch(run.select_by, run.task, patience=run.flags.get("patience"))
    _replay(best, run.log)
    run.epoch, run.rule = best.epoch, best.rule
    for split in ("val", "test"):
        if f"{split}_loss" in run.log:
            _add_predictions(run, run.task, split, notes)
    return best.stopped


def _replay(best: BestEpoch, log: pd.DataFrame) -> BestEpoch:
    """Show every evaluated epoch to what selects one; return it."""
    for epoch, line in log.filter(regex="^(val|test)_").dropna(how="all").iterrows():
        best.update(int(epoch), line.to_dict())
    return best


def _add_predictions(run: RunResult, task: str, split: str, notes: list[str]) -> None:
    """Take up a prediction file if it is of the epoch that counts and agrees with log.txt; else note why not."""
    path = run.folder / f"predictions-{split}{run.head and f'-{run.head}'}.npz"
    name = "rmse" if task == "regression" else "accuracy"
    logged = run.value(f"{split}_{name}")
    try:
        preds = read_predictions(path, epoch=run.epoch)
        value = compute(task, preds.logits, preds.labels)[name]
        if preds.epoch != run.epoch:
            raise InputError(f"it is of epoch {preds.epoch}, {run.rule} selects epoch {run.epoch}")
        if not abs(value - logged) <= SAME_VALUE:  # a logged NaN agrees with nothing
            raise InputError(f"of other data or weights: {name} {value:.4f}, in log.txt {logged:.4f}")
        run.predictions[split] = preds
    except ValueError as error:  # also of arrays that belong to no task
        notes.append(f"{path.name} is left out ({one_line(error)[:100]}): --eval writes it")


def read_predictions(path: Path, *, epoch: int | None = None) -> Predictions:
    """Read a prediction file: its logits of `epoch` if it has them, else of its selected epoch.

    Raises InputError if the file is missing or damaged. Nothing in it is executed.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is missing")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = dict(file)
        last = int(held["last_epoch"]) == epoch != int(held["epoch"])
        return Predictions(
            epoch=int(held["last_epoch" if last else "epoch"]),
            logits=held["last_logits" if last else "logits"],
            labels=held["labels"],
            recordings=held["recording"].astype(str),
            subjects=held["subject"].astype(str),
            name=str(held["name"]) if "name" in held else None,
            classes=tuple(map(str, held.get("classes", ()))),
        )
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        raise InputError(f"{path.name} is damaged ({one_line(error)[:90]})") from error
