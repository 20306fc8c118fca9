"""Stage 3: one epoch on a labelled task, evaluation over whole sets, and prediction files. Paper, section 2.4."""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from eeg_data.loader import Loader
from errors import InputError
from files import written_aside
from training import metrics
from training.centring import Centring
from training.ridge import RATIOS, left_out, ridge_path, ridge_targets
from training.state import TrainingState
from utils import Run, gather

logger = logging.getLogger(__name__)

NOT_IN_NAMES = re.compile(r"[^\w.-]+")  # characters of a data set's name that a file's name must not have


@dataclass
class Task:
    """One data set of a run: its loss, its head, its evaluation and its selected epoch."""

    kind: str  # binary, multiclass or regression
    head: str | None = None  # its name in a model with several heads, in log keys and in file names
    best: Any = None  # BestEpoch
    loaders: Any = None  # Loaders; all tasks have the same `train`
    class_weights: Tensor | None = None  # of `task_loss`
    centring: Centring | None = None  # of --center
    transductive: str = ""  # how it uses unlabelled windows, in words
    means: Any = None  # RunningMeans: what to subtract from the features, if these change

    def named(self, entries: Mapping[str, Any], sign: str = "_") -> dict[str, Any]:
        """Return entries with the head's name in those of its evaluation, if it has one: val_loss as val_NAME_loss."""
        head = f"{sign}{self.head}{sign}" if self.head else sign
        return {n if n.startswith("train") else n.replace(sign, head, 1): value for n, value in entries.items()}

    @property
    def title(self) -> str:
        """What stands before a line about it."""
        return f"{self.head}, " if self.head else ""

    @property
    def how(self) -> str:
        """What a line about its results must add."""
        return f", {self.transductive}" if self.transductive else ""


def task_loss(
    task: str, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """BCE with one output for two classes, cross-entropy for more, MSE for regression. logits: (B, outputs).

    class_weights: (classes,), factors of each sample's loss. The mean is over samples, not over weights, so that
    micro-batches and processes add up to the whole batch.
    """
    # Not in half precision: targets of a regression would be rounded.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if task == "regression":
        return F.mse_loss(logits, labels.to(logits.dtype))
    reduction = "mean" if class_weights is None else "none"
    if task == "binary":
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction=reduction)
    else:
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction)
    return loss if class_weights is None else (class_weights.to(loss)[labels] * loss).mean()


def hits(task: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the share of right answers in a batch, for classification."""
    if task == "regression":
        return {}
    predicted = (logits[:, 0] >= 0).long() if task == "binary" else logits.argmax(1)
    return {"accuracy": (predicted == labels).float().mean()}


def forward(
    model: nn.Module, task: Task, smoothing: float, eeg: Tensor, channels: Tensor, labels: Tensor, *center: Tensor
) -> tuple[Tensor, ...]:
    """Return loss, logits (B, outputs) and, if `center` says what to subtract from them, features (B, in_features)."""
    if center:
        logits, *features = model(eeg, channels, task=task.head, center=center[0])
    else:
        logits, features = model(eeg, channels, task=task.head), []
    loss = task_loss(task.kind, logits, labels, smoothing=smoothing, class_weights=task.class_weights)
    return loss, logits, *features


def train_one_epoch(
    state: TrainingState,
    loader: Loader,
    epoch: int,
    tasks: Sequence[Task],
    *,
    smoothing: float = 0.0,
    after_step: Callable[[Tensor], None] = lambda taken: None,
) -> None:
    """Train for an epoch, each step on one task. smoothing: of `task_loss`; after_step: gets `update.taken`."""
    model, update = state.model.train(), state.update
    plan: Any = loader.batch_sampler  # TrainingBatches
    passes = [update.recorded(partial(forward, model, task, smoothing)) for task in tasks]
    for eeg, channels, labels, samples in state.steps(loader, epoch):  # eeg (B, N, A, T), units of 100 uV
        number = plan.montage(state.step)
        task = tasks[number]
        center = [] if task.means is None else [task.means.of(samples)]
        with update.forward():
            loss, logits, *features = passes[number](eeg, channels, labels, *center)
        complete = update(loss)
        if task.means is not None and not update.warming_up:
            task.means.add(*features, samples)
        state.log.add({"loss": loss, **hits(task.kind, logits, labels)}, n=len(eeg))
        if complete:
            if task.means is not None:
                task.means.step(update.taken)
            after_step(update.taken)
            state.log.add(update.stats)


@torch.no_grad()
def fit_ridge(state: TrainingState, tasks: Sequence[Task]) -> dict[str, float]:
    """Solve each head in closed form on features computed once, in place of an epoch. Returns entries of the log.

    Training subjects that are left out in turn choose the strength, and a factor that makes a classifier's outputs
    logits. Raises InputError for training samples of a single subject.
    """
    run, module, entries = state.run, state.model.module, {}
    for number, task in enumerate(tasks):
        begun, train = time.monotonic(), task.loaders.train  # of adaptation.FeatureLoader
        windows, head = train.dataset.parts[number], module.head_of(task.head)
        labels = torch.from_numpy(windows.labels)
        targets = ridge_targets(task.kind, labels, head.out_features)
        weights = torch.ones(len(labels)) if task.class_weights is None else task.class_weights.cpu()[labels]
        features, double = train.features[number], (run.device, torch.float64)
        _check_finite(features.numpy(), windows)
        problem = features.to(*double), targets.to(*double), weights.to(*double)
        subjects, groups = np.unique(windows.subjects, return_inverse=True)
        if len(subjects) < 2:
            raise InputError(
                f"--linear_probe ridge: all training samples of {windows.path} are of one subject ({subjects[0]}), and "
                "others must choose the strength: use --linear_probe, which takes steps"
            )
        strength, weight, bias, scale = run.run_on_rank0(partial(_choose, task, problem, groups, windows.labels))
        head.load_state_dict({"weight": scale * weight, "bias": scale * bias}, strict=False)
        entries[f"train_ridge_strength{f'_{task.head}' if task.head else ''}"] = strength
        text = "%sridge: strength %.4g, the best of %d by %s of training subjects left out; %.1f s"
        logger.info(text, task.title, strength, len(RATIOS), task.best.name, time.monotonic() - begun)
    return entries


def _choose(
    task: Task, problem: tuple[Tensor, Tensor, Tensor], groups: np.ndarray, labels: np.ndarray
) -> tuple[float, Tensor, Tensor, float]:
    """Return strength, W and b of the best of RATIOS by the task's metric, the stronger of equals, and the factor."""
    outputs = left_out(*problem, torch.from_numpy(groups).to(problem[0].device)).cpu()
    best = metrics.BestEpoch(task.best.name, task.kind)
    for i, found in enumerate(outputs):
        loss = float(task_loss(task.kind, found, torch.from_numpy(labels)))
        values = {"loss": loss, **metrics.compute(task.kind, found.numpy(), labels)}
        best.update(i, {f"val_{name}": value for name, value in values.items()})
    chosen = int(best.epoch or 0)
    return *ridge_path(*problem)[chosen], _scale(task, outputs[chosen].numpy(), labels)


def _scale(task: Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the factor, from e^-2 to e^4, on a classifier's outputs with which their loss is lowest."""
    if task.kind == "regression":
        return 1.0

    def loss(log: float) -> float:
        return float(task_loss(task.kind, torch.from_numpy(np.exp(log) * logits), torch.from_numpy(labels)))

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 4), method="bounded").x))


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, run: Run, task: Task) -> tuple[dict[str, float], np.ndarray]:
    """Return loss and metrics of the whole set, and its logits (samples, outputs) in the file's order, on all ranks."""
    model.eval()
    logits, samples = [], []
    for batch in run.evaluation_batches(loader):
        eeg, channels, _, index = batch.to(run)
        with run.autocast():
            logits.append(model(eeg, channels, task=task.head))
        samples.append(index)
    own = (torch.cat(logits).double().cpu().numpy(), torch.cat(samples).numpy()) if logits else None
    parts = [part for part in gather(own) if part is not None]
    dataset: Any = loader.dataset  # LabelledWindows
    labels = dataset.labels
    whole = np.full((len(labels), parts[0][0].shape[1]), np.nan)
    for values, places in parts:
        whole[places] = values
    assert np.isin(np.arange(len(labels)), np.concatenate([p[1] for p in parts])).all(), "a sample was left out"
    _check_finite(whole, dataset)
    if task.centring is not None:  # the head is linear: of centred features it makes centred logits, but for the bias
        head: Any = model.head_of(task.head)  # type: ignore[operator]
        whole = task.centring.centre(whole, task.centring.groups(dataset)) + head.bias.double().cpu().numpy()
    loss = task_loss(task.kind, torch.from_numpy(whole), torch.from_numpy(labels))
    return {"loss": float(loss), **metrics.compute(task.kind, whole, labels)}, whole


def _check_finite(values: np.ndarray, dataset: Any) -> None:
    """Raise InputError if what a model makes of a data set, (samples, ...), is not finite."""
    if len(wrong := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        where = dataset.recordings[wrong[0]]
        raise InputError(
            f"{dataset.path}, group {dataset.split}, recording {where}: the model's output is not finite: look for NaN "
            "in the data, or for weights that diverged (lower --lr)"
        )


def _earlier(path: Path) -> dict[str, Any]:
    """Read a predictions file; {} if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged file raises anything, from BadZipFile to ValueError
        logger.warning("%s cannot be read (%s): it is written again.", path, type(error).__name__)
        return {}


def save_predictions(
    path: Path,
    dataset: Any,
    *,
    selected: tuple[int, np.ndarray],
    last: tuple[int, np.ndarray] | None,
    transductive: str = "",
) -> None:
    """Write logits, labels, recording and subject of every sample for the selected and for the last epoch.

    selected, last: epoch and logits (samples, outputs); they become `epoch`, `logits` and `last_epoch`,
    `last_logits`. last=None keeps the file's last epoch; a file of another data set stays as it is, and the new file's
    name ends with this data set's. `name`, `task` and `classes` are the data set's; `transductive`: of Task.
    """
    samples: Any = {"labels": dataset.labels, "recording": dataset.recordings, "subject": dataset.subjects}
    samples = {name: np.array(values) for name, values in samples.items()}
    latest: Any = dict(zip(("last_epoch", "last_logits"), last or selected, strict=True))
    before = _earlier(path) if last is None else {}
    alike = all(np.array_equal(before.get(name, ()), values) for name, values in samples.items())
    if before and str(before.get("name", dataset.name)) != dataset.name:
        other = path.with_name(f"{path.stem}-{NOT_IN_NAMES.sub('_', dataset.name)}.npz")
        logger.warning("%s is of another data set and stays: these outputs are in %s.", path, other.name)
        path = other
    elif alike and latest.keys() <= before.keys() and str(before.get("transductive", "")) == transductive:
        latest = {name: before[name] for name in latest}
    elif before:
        logger.warning("%s does not fit the samples of %s: it is written again.", path, dataset.name)
    about: Any = {name: np.array(getattr(dataset, name)) for name in ("name", "task", "classes")}
    about |= {"transductive": np.array(transductive)} if transductive else {}
    with written_aside(path) as part, part.open("wb") as file:
        np.savez(file, epoch=selected[0], logits=selected[1], **samples, **about, **latest)
