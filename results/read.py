"""Read what runs leave in their folders: log.txt, environment.json, prediction files; find the epoch that counts.

Nothing in these files is executed. What cannot be used becomes one line in `notes`, so that the other runs still count.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eeg_data.hdf5 import printable
from errors import InputError, UsageError, one_line

STAGE_SIGNS = {"train_quant_loss": "tokenizer", "train_mlm_acc": "pretraining"}
SELECT_BY = {"binary": "roc_auc", "multiclass": "cohen_kappa", "regression": "r2"}  # the paper's rule
LOWER_IS_BETTER = ("rmse",)
SAME_VALUE = 5e-5  # half of the last printed digit: batches of another size round differently
# Flags that say where a run reads, writes and computes: runs that differ in them are still averaged.
PLACES = {"output_dir", "log_dir", "data_dir", "train_data", "val_data", "dataset", "device", "num_workers", "pin_mem"}
PLACES |= {"resume", "auto_resume", "resume_anyway", "start_epoch", "eval", "precision", "grad_checkpoint", "seed"}
PLACES |= {"save_ckpt", "save_ckpt_freq", "save_every_minutes", "keep_last", "calculate_codebook_usage", "input_size"}
PLACES |= {"disable_rel_pos_bias", "nb_classes", "codebook_size", "codebook_dim", "total_batch_size"}
PLACES |= {"seeds", "cache_codes"}  # of older versions
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

    def same_samples(self, other: "Predictions") -> bool:
        """True if both are of the same samples in the same order."""
        parts = ("labels", "recordings", "subjects")
        return all(np.array_equal(getattr(self, part), getattr(other, part)) for part in parts)


@dataclass
class RunResult:
    """One run."""

    folder: Path
    label: str  # the shortest end of the path that differs from the other runs'
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
    notes: list[str] = field(default_factory=list)

    @property
    def flags(self) -> dict[str, Any]:
        """Flags of the run; {} if unknown."""
        return self.environment.get("flags", {})

    @property
    def settings(self) -> dict[str, Any]:
        """Flags that make another experiment. Flags of the batch count as windows per step, if these are known."""
        settings = {name: value for name, value in self.flags.items() if name not in PLACES}
        total = self.flags.get("total_batch_size")
        if not isinstance(total, int):
            hardware = self.environment.get("hardware")
            parts = [hardware.get("processes") if isinstance(hardware, dict) else None, self.flags.get("batch_size")]
            parts += [self.flags[name] for name in BATCH_FLAGS - {"batch_size"} if name in self.flags]
            total = int(np.prod(parts)) if all(isinstance(part, int) for part in parts) else None  # type: ignore[arg-type]
        if total is None:
            return settings
        return {name: settings[name] for name in settings.keys() - BATCH_FLAGS} | {"total_batch_size": total}

    @property
    def split(self) -> str | None:
        """The set whose metrics are reported: test, or val without a test set."""
        splits = {name.split("_")[0] for name in self.log}
        return next((split for split in ("test", "val") if split in splits), None)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics in log.txt, sorted, without the loss."""
        return sorted({name.split("_", 1)[1] for name in self.log if name.startswith(("val_", "test_"))} - {"loss"})

    def value(self, name: str) -> float:
        """A number of log.txt in the epoch that counts; NaN if there is none."""
        return math.nan if self.epoch is None or name not in self.log else float(self.log.at[self.epoch, name])


def read_runs(folders: Sequence[Path], *, select_by: str | None = None) -> tuple[list[RunResult], list[str]]:
    """Read the runs in these folders or their sub-folders. Returns them and a line for everything that is odd.

    select_by: a metric that replaces the paper's rule. Raises UsageError if the task of a run does not have it.
    """
    notes: list[str] = []
    places = list(dict.fromkeys(place for folder in folders for place in run_folders(folder, notes)))
    runs = []
    for folder, label in zip(places, map(printable, short_names(places)), strict=True):
        run = read_run(folder, label, select_by=select_by)
        notes += [f"{label}: {note}" for note in run.notes]
        if len(run.log):
            runs.append(run)
    return runs, notes


def run_folders(folder: Path, notes: list[str]) -> list[Path]:
    """Return the folder if it holds a log.txt, else its sub-folders that do, in the order of the numbers in names."""
    if (folder / "log.txt").is_file():
        return [folder]
    inside = [path.parent for path in folder.glob("*/log.txt")] if folder.is_dir() else []
    if not inside:
        what = "has no log.txt, and none in a sub-folder" if folder.is_dir() else "is no folder"
        notes.append(f"{folder} {what}: give the --output_dir of a run, or a folder of such folders")
    return sorted(inside, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the ends of the paths, as long as needed to tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def read_run(folder: Path, label: str, *, select_by: str | None = None) -> RunResult:
    """Read one folder. Without a whole line in log.txt the `log` of the result is empty."""
    notes: list[str] = []
    lines = read_log(folder / "log.txt", notes)
    log = pd.DataFrame(lines, index=[int(line["epoch"]) for line in lines])
    environment = _read_environment(folder / "environment.json", notes)
    stage = next((stage for sign, stage in STAGE_SIGNS.items() if sign in log), "classifier")
    run = RunResult(folder, label, stage, log, environment, notes=notes)
    if not lines:
        notes.append("log.txt holds no whole epoch: left out")
        return run
    stopped = stage == "classifier" and _judge(run, select_by)
    epochs, done = run.flags.get("epochs"), int(log.index[-1]) + 1
    if isinstance(epochs, int) and done < epochs and not stopped:
        run.finished = False
        notes.append(f"unfinished, {done} of {epochs} epochs: in no mean")
    if run.epoch is not None:
        for split in ("val", "test"):
            _add_predictions(run, split)
    if stage == "classifier":
        given = run.flags.get("dataset")
        names = [one.name for one in run.predictions.values() if one.name]
        run.name = names[0] if names else printable(Path(given).stem) if isinstance(given, str) else None
    return run


def read_log(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """Read the numbers of log.txt, one dict per epoch, in order; null becomes NaN. Damaged lines are noted."""
    by_epoch: dict[float, dict[str, float]] = {}
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        notes.append(f"log.txt cannot be read ({error.strerror or error})")
        return []
    for number, text in enumerate(texts, start=1):
        try:
            line = {str(n): math.nan if v is None else float(v) for n, v in json.loads(text).items()}
            by_epoch[int(line["epoch"])] = line
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            notes.append(f"line {number} of {len(texts)} of log.txt is damaged or cut off, and left out")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _read_environment(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and isinstance(values.get("flags"), dict):
            return values
        reason = "holds no flags"
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError, RecursionError):
        reason = "cannot be read"
    notes.append(f"environment.json {reason}: the settings are unknown, and whether the run is finished")
    return {}


def select_epoch(log: pd.DataFrame, metric: str) -> tuple[int, str]:
    """Return the epoch with the best validation metric, and how it was selected. Ties take the earlier epoch."""
    if f"val_{metric}" not in log:
        return int(log.index[-1]), "being the last, without validation data"
    values = log[f"val_{metric}"] * (-1 if metric in LOWER_IS_BETTER else 1)
    if values.isna().all():
        return int(log.index[0]), f"default, validation {metric} being undefined"
    return int(values.idxmax()), f"validation {metric}"


def _judge(run: RunResult, select_by: str | None) -> bool:
    """Find the task of a run of stage 3 and the epoch that counts. Returns True if --patience stopped the training."""
    run.task = next((task for task, metric in SELECT_BY.items() if metric in run.metrics), None)
    if run.task is None:
        run.notes.append("log.txt holds no validation or test metrics")
        return False
    if select_by not in (None, *run.metrics):
        raise UsageError(f"--select_by {select_by}: {run.label} has {', '.join(run.metrics)}")
    run.select_by = select_by or SELECT_BY[run.task]
    measured = run.log[[name for name in run.log if name.startswith(("val_", "test_"))]]
    evaluated = measured.dropna(how="all") if measured.notna().any(axis=None) else measured
    run.epoch, run.rule = select_epoch(evaluated, run.select_by)
    trained_by, patience = run.flags.get("select_by"), run.flags.get("patience")
    waited_for = trained_by if trained_by in run.metrics else SELECT_BY[run.task]
    waited = int((evaluated.index > select_epoch(evaluated, waited_for)[0]).sum())  # epochs
    return isinstance(patience, int) and waited >= patience


def _add_predictions(run: RunResult, split: str) -> None:
    """Take up a prediction file if it is of the epoch that counts and agrees with log.txt; else note why not."""
    path = run.folder / f"predictions-{split}.npz"
    if f"{split}_loss" not in run.log:
        return
    assert run.task is not None
    try:
        preds = read_predictions(path, run.task, epoch=run.epoch)
    except InputError as error:
        run.notes.append(f"{error}: --eval writes it")
        return
    # One metric tells whether the file is of this run: accuracy, or the RMSE of a regression.
    if run.task == "regression":
        name, value = "rmse", float(np.sqrt(((preds.logits - preds.labels) ** 2).mean(axis=0)).mean())
    else:
        name, value = "accuracy", float((predicted_classes(run.task, preds.logits) == preds.labels).mean())
    logged = run.value(f"{split}_{name}")
    if preds.epoch != run.epoch:
        run.notes.append(f"{path.name} is of epoch {preds.epoch}, {run.rule} selects epoch {run.epoch}: it is left out")
    elif abs(value - logged) > SAME_VALUE:
        run.notes.append(
            f"{path.name} and log.txt do not agree on epoch {preds.epoch} ({name} {value:.4f} and {logged:.4f}): the "
            "file, of other data or weights, is left out"
        )
    else:
        run.predictions[split] = preds


def predicted_classes(task: str, logits: np.ndarray) -> np.ndarray:
    """Return the class that each window is taken for, (n,). logits: (n, outputs)."""
    return (logits[:, 0] >= 0).astype(int) if task == "binary" else logits.argmax(axis=1)


def read_predictions(path: Path, task: str, *, epoch: int | None = None) -> Predictions:
    """Read a prediction file: its logits of `epoch` if it has them, else of its selected epoch.

    Raises InputError if the file is missing, damaged or does not fit the task.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is missing")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        last = int(held["last_epoch"]) == epoch != int(held["epoch"])
        preds = Predictions(
            epoch=int(held["last_epoch" if last else "epoch"]),
            logits=held["last_logits" if last else "logits"],
            labels=held["labels"],
            recordings=held["recording"].astype(str),
            subjects=held["subject"].astype(str),
            name=str(held["name"]) if "name" in held else None,
            classes=tuple(map(str, held["classes"])) if "classes" in held else (),
        )
        if not _fits(preds, task):
            raise ValueError(f"it does not hold finite logits and labels of a {task} task, one for each sample")
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        raise InputError(f"{path.name} is damaged and left out ({one_line(error)[:90]})") from error
    return preds


def _fits(preds: Predictions, task: str) -> bool:
    """True if arrays can be the logits and labels of a task."""
    logits, labels, n = preds.logits, preds.labels, len(preds.labels)
    if logits.ndim != 2 or not n or not len(logits) == len(preds.recordings) == len(preds.subjects) == n:
        return False
    if not all(part.dtype.kind in "fiu" and np.isfinite(part).all() for part in (logits, labels)):
        return False
    if task == "regression":
        return labels.shape == logits.shape
    classes = 2 if task == "binary" else logits.shape[1]
    return (
        labels.ndim == 1
        and bool(np.isin(labels, np.arange(classes)).all())
        and (logits.shape[1] == 1) == (task == "binary")
    )
