"""What runs left in their folders: log.txt, environment.json, prediction files, and the epoch that counts.

Nothing is executed from them, and what cannot be used is said in one line, so that the other runs still count.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eeg_data.hdf5 import printable
from eeg_data.labelled_files import DATASETS
from errors import InputError, one_line
from files import digest_of
from training import metrics

# Flags that do not make another experiment. Another --finetune does, by its name: its content is not known here.
NO_SETTINGS = {"output_dir", "log_dir", "device", "num_workers", "pin_mem", "resume", "auto_resume", "resume_anyway"}
NO_SETTINGS |= {
    "save_ckpt",
    "save_ckpt_freq",
    "save_every_minutes",
    "keep_last",
    "start_epoch",
    "eval",
    "seed",
    "seeds",
}
NO_SETTINGS |= {"train_data", "val_data", "dataset", "data_dir", "grad_checkpoint", "calculate_codebook_usage"}
NO_SETTINGS |= {"disable_rel_pos_bias", "input_size", "precision", "cache_codes", "nb_classes", "codebook_size"}
NO_SETTINGS |= {"codebook_dim", "total_batch_size"}
BATCH_FLAGS = {"batch_size", "gradient_accumulation_steps", "update_freq"}
SAME_VALUE = 5e-5  # half of the last digit that is printed; batches of another size round otherwise
STAGE_SIGNS = {"train_quant_loss": "tokenizer", "train_mlm_acc": "pretraining"}


@dataclass(frozen=True)
class Predictions:
    """A set's logits in one epoch, and what they belong to."""

    epoch: int
    logits: np.ndarray  # (samples, outputs)
    labels: np.ndarray  # (samples,) or (samples, outputs)
    recordings: np.ndarray  # (samples,) text
    subjects: np.ndarray  # (samples,) text; empty where they are not known
    name: str | None  # of the data set; None: the file does not say
    classes: tuple[str, ...]  # () where the file does not say

    @property
    def samples(self) -> str:
        """What tells its samples from those of another file."""
        return digest_of([self.labels, self.recordings.tolist(), self.subjects.tolist()])


@dataclass
class RunResult:
    """One run."""

    folder: Path
    label: str  # shortest end of the path that tells it from the others
    stage: str  # a key of checkpoints.STAGES
    lines: list[dict[str, float]]  # of log.txt, by epoch
    environment: dict[str, Any]
    task: str | None = None  # stage 3 only, as are the following
    name: str | None = None  # of the data set
    best: metrics.BestEpoch | None = None  # the epoch that counts
    predictions: dict[str, Predictions] = field(default_factory=dict)  # of that epoch if there are any, by set
    stopped: bool = False  # by --patience
    finished: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def flags(self) -> dict[str, Any]:
        """Flags as given; {} where environment.json does not say."""
        return self.environment.get("flags", {})

    @property
    def settings(self) -> dict[str, Any]:
        """Flags that make it another experiment; those of the batch as the windows of a step, where these are known."""
        found = {name: value for name, value in self.flags.items() if name not in NO_SETTINGS}
        windows = _windows_a_step(self.flags, self.environment)
        if windows is None:
            return found
        return {name: found[name] for name in found.keys() - BATCH_FLAGS} | {"total_batch_size": windows}

    @property
    def split(self) -> str | None:
        """The set whose metrics are reported: test, or val where there is no test set."""
        found = {name.split("_")[0] for line in self.lines for name in line}
        return next((split for split in ("test", "val") if split in found), None)


def _windows_a_step(flags: dict[str, Any], environment: dict[str, Any]) -> int | None:
    """On however many processes, in however many micro-batches; None if the run does not say."""
    if isinstance(total := flags.get("total_batch_size"), int):
        return total
    hardware = environment.get("hardware")
    parts = [flags.get("batch_size"), hardware.get("processes") if isinstance(hardware, dict) else None]
    parts += [flags[name] for name in ("update_freq", "gradient_accumulation_steps") if name in flags]
    numbers = [part for part in parts if isinstance(part, int)]
    return math.prod(numbers) if len(numbers) == len(parts) else None


def read_runs(folders: Sequence[Path], *, select_by: str | None = None) -> tuple[list[RunResult], list[str]]:
    """Runs in these folders or in their sub-folders, and a line for everything that is odd.

    select_by: a metric in place of the paper's rule. Raises UsageError where a run's task has no such metric.
    """
    notes: list[str] = []
    found = list(dict.fromkeys(place for folder in folders for place in run_folders(folder, notes)))
    runs = []
    for folder, label in zip(found, map(printable, short_names(found)), strict=True):
        run = read_run(folder, label, select_by=select_by)
        notes += [f"{label}: {note}" for note in run.notes]
        if run.lines:
            runs.append(run)
    return runs, notes


def run_folders(folder: Path, notes: list[str]) -> list[Path]:
    """The folder itself if it is a run's, else those in it, in the order of the numbers in their names."""
    if (folder / "log.txt").is_file():
        return [folder]
    inside = [path.parent for path in folder.glob("*/log.txt")] if folder.is_dir() else []
    if not inside:
        what = "has no log.txt, nor has a folder in it" if folder.is_dir() else "is no folder"
        notes.append(f"{folder} {what}: give the --output_dir of a run, or of --seeds")
    return sorted(inside, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as needed to tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return ["/".join(part[-length:]).replace("//", "/") for part in parts]


def read_run(folder: Path, label: str, *, select_by: str | None = None) -> RunResult:
    """What one folder holds; without a whole line in log.txt its `lines` are empty."""
    notes: list[str] = []
    lines = read_log(folder / "log.txt", notes)
    environment = _read_environment(folder / "environment.json", notes)
    stage = next((stage for sign, stage in STAGE_SIGNS.items() if any(sign in line for line in lines)), "classifier")
    run = RunResult(folder, label, stage, lines, environment, notes=notes)
    if not lines:
        notes.append("log.txt holds no whole epoch: left out")
    elif stage == "classifier":
        _judge(run, select_by)
    epochs = run.flags.get("epochs")
    if lines and isinstance(epochs, int) and lines[-1]["epoch"] + 1 < epochs and not run.stopped:
        run.finished = False
        notes.append(f"unfinished, {lines[-1]['epoch'] + 1:g} of {epochs} epochs: in no mean")
    if stage == "classifier":
        if run.best is not None and run.best.epoch is not None:
            _read_all_predictions(run)
        run.name = _data_set(run)
    return run


def read_log(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """The numbers of log.txt, a dict an epoch, in their order; `null` is NaN. Damaged lines are named."""
    by_epoch: dict[float, dict[str, float]] = {}
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        notes.append(f"log.txt cannot be read ({error.strerror or error})")
        return []
    for number, text in enumerate(texts, start=1):
        try:
            values = json.loads(text)
            line = {str(n): math.nan if v is None else float(v) for n, v in values.items()}
            if not math.isfinite(line["epoch"]):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            notes.append(f"line {number} of {len(texts)} of log.txt is damaged or cut off, and left out")
        else:
            by_epoch[line["epoch"]] = line
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
    notes.append(f"environment.json {reason}: the settings are not known, nor whether the run is finished")
    return {}


def _judge(run: RunResult, select_by: str | None) -> None:
    """Find the task of a run of stage 3 by its metrics, and the epoch that counts as training did."""
    names = {name.split("_", 1)[1] for line in run.lines for name in line if name.startswith(("val_", "test_"))}
    run.task = next((task for task, metric in metrics.SELECT_BY.items() if metric in names), None)
    if run.task is None:
        run.notes.append("log.txt holds no validation or test metrics")
        return
    usual, patience, trained_by = metrics.SELECT_BY[run.task], run.flags.get("patience"), run.flags.get("select_by")
    run.best = metrics.BestEpoch(select_by or usual, run.task)
    # Training waited for a better value of its own metric, whatever judges here.
    waiting = metrics.BestEpoch(
        trained_by if trained_by in metrics.METRICS[run.task] else usual,
        run.task,
        patience=patience if isinstance(patience, int) else None,
    )
    for line in run.lines:
        stats = {name: value for name, value in line.items() if name.startswith(("val_", "test_"))}
        if stats:
            run.best.update(int(line["epoch"]), stats)
            waiting.update(int(line["epoch"]), stats)
    run.stopped = waiting.stopped
    if trained_by not in (None, run.best.name):
        run.notes.append(
            f"trained with --select_by {trained_by}, judged here by {run.best.name}: --select_by {trained_by} judges "
            "as its training did"
        )


def _data_set(run: RunResult) -> str | None:
    """Name of the data set, by a prediction file or else by the flag --dataset."""
    named = next((found.name for found in run.predictions.values() if found.name), None)
    given = run.flags.get("dataset")
    if named or not isinstance(given, str):
        return named
    return given if given in DATASETS else printable(Path(given).stem)


def _read_all_predictions(run: RunResult) -> None:
    """Take the prediction files up, and say where they and log.txt do not agree."""
    assert run.best is not None and run.task is not None
    for split in ("val", "test"):
        if f"{split}_loss" not in run.best.stats:
            continue
        path = run.folder / f"predictions-{split}.npz"
        if not path.is_file():
            run.notes.append(f"{path.name} is missing: --eval writes it")
            continue
        try:
            found = read_predictions(path, run.task, epoch=run.best.epoch)
        except InputError as error:
            run.notes.append(str(error))
            continue
        if found.epoch != run.best.epoch:
            run.notes.append(
                f"{path.name} is of epoch {found.epoch}, {run.best.rule} selects epoch {run.best.epoch}: figures are "
                "of the former, numbers of the latter"
            )
        elif wrong := _disagreement(run, split, found):
            run.notes.append(
                f"{path.name} and log.txt do not agree on epoch {found.epoch} ({wrong}): the file, of other data or "
                "weights, is left out"
            )
            continue
        run.predictions[split] = found


def _disagreement(run: RunResult, split: str, found: Predictions) -> str:
    assert run.best is not None and run.task is not None
    for name, value in metrics.compute(run.task, found.logits, found.labels).items():
        logged = run.best.stats.get(f"{split}_{name}", math.nan)
        if not (abs(value - logged) <= SAME_VALUE or (math.isnan(value) and math.isnan(logged))):
            return f"{name} {value:.4f} and {logged:.4f}"
    return ""


def read_predictions(path: Path, task: str, *, epoch: int | None = None) -> Predictions:
    """A prediction file: what it has of this epoch, else of its selected one. Raises InputError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        last = int(held["last_epoch"]) == epoch != int(held["epoch"])
        found = Predictions(
            epoch=int(held["last_epoch" if last else "epoch"]),
            logits=held["last_logits" if last else "logits"],
            labels=held["labels"],
            recordings=held["recording"].astype(str),
            subjects=held["subject"].astype(str),
            name=str(held["name"]) if "name" in held else None,
            classes=tuple(map(str, held["classes"])) if "classes" in held else (),
        )
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        raise InputError(
            f"{path.name} is damaged ({one_line(error)[:80]}): left out, --eval writes it again"
        ) from error
    if reason := _unfit(found, task):
        raise InputError(f"{path.name} cannot be used ({reason}): left out, --eval writes it again")
    return found


def _unfit(found: Predictions, task: str) -> str:
    """Why arrays cannot be logits and labels of a task; empty text if they can."""
    n = len(found.labels) if found.labels.ndim else 0
    per_sample: Iterable[np.ndarray] = (found.recordings, found.subjects)
    if found.logits.ndim != 2 or len(found.logits) != n or n == 0 or any(part.shape != (n,) for part in per_sample):
        return "its arrays differ in length"
    if not all(part.dtype.kind in "fiu" for part in (found.logits, found.labels)):
        return "it holds no numbers"
    if not (np.isfinite(found.logits).all() and np.isfinite(found.labels).all()):
        return "it holds values that are not finite"
    if task == "regression":
        return "" if found.labels.shape == found.logits.shape else "its targets and outputs differ in shape"
    outputs = found.logits.shape[1]
    classes = 2 if task == "binary" else outputs
    fits = (
        found.labels.ndim == 1
        and np.isin(found.labels, np.arange(classes)).all()
        and (task != "binary" or outputs == 1)
    )
    return "" if fits else "its labels are none of its classes"
