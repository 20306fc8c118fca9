"""Stage 3: one epoch on a labelled task, evaluation over whole sets, and prediction files. Paper, section 2.4."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import metrics
from errors import InputError
from progress import watched
from training_state import TrainingState
from utils import Run


def task_loss(task: str, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """BCE with one output for two classes, cross-entropy for more, MSE for regression. logits: (B, outputs)."""
    if task == "binary":
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    if task == "multiclass":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return F.mse_loss(logits, labels.to(logits.dtype))


def hits(task: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Share of right answers in a batch, for classification."""
    if task == "regression":
        return {}
    predicted = (logits[:, 0] > 0).long() if task == "binary" else logits.argmax(1)
    return {"accuracy": (predicted == labels).float().mean()}


def train_one_epoch(
    state: TrainingState,
    loader: DataLoader,
    epoch: int,
    task: str,
    *,
    smoothing: float = 0.0,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train for an epoch. smoothing: of the labels of several classes; after_step: called after every step taken."""
    model, update = state.model.train(), state.update
    for eeg, channels, labels, _ in state.steps(loader, epoch):  # eeg (B, N, A, T), units of 100 uV
        with update.forward():
            logits = model(eeg, channels)  # (B, outputs)
            loss = task_loss(task, logits, labels, smoothing=smoothing)
        stepped = update(loss)
        state.log.add({"loss": loss, **hits(task, logits, labels)}, n=len(eeg))
        if stepped:
            after_step()
            state.log.add(update.stats)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, run: Run, task: str) -> tuple[dict[str, float], np.ndarray]:
    """Loss and metrics over the whole set, and its logits (samples, outputs) in the file's order, on every process."""
    model.eval()
    logits, samples = [], []
    for batch in watched(loader, "evaluating", run.is_main):
        eeg, channels, _, index = batch.to(run)
        with run.autocast():
            logits.append(model(eeg, channels))
        samples.append(index)
    own = (torch.cat(logits).double().cpu().numpy(), torch.cat(samples).numpy()) if logits else None
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    parts = [part for part in gathered if part is not None]
    dataset: Any = loader.dataset  # LabelledWindows
    labels = dataset.labels
    whole = np.full((len(labels), parts[0][0].shape[1]), np.nan)
    for values, places in parts:
        whole[places] = values
    assert np.isin(np.arange(len(labels)), np.concatenate([p[1] for p in parts])).all(), "a sample was left out"
    if not np.isfinite(whole).all():
        where = dataset.recordings[int(np.flatnonzero(~np.isfinite(whole).all(axis=1))[0])]
        raise InputError(
            f"{dataset.path}, group {dataset.split}, recording {where}: the model's output is not finite: look for NaN "
            "in the data, or for weights that diverged (lower --lr)"
        )
    loss = task_loss(task, torch.from_numpy(whole), torch.from_numpy(labels))
    return {"loss": float(loss), **metrics.compute(task, whole, labels)}, whole


def save_predictions(path: Path, dataset: Any, epoch: int, logits: np.ndarray, *, selected: bool) -> None:
    """Write logits, labels, recording and subject of every sample for the selected and for the last epoch.

    `epoch` and `logits` are those of the selected epoch, `last_epoch` and `last_logits` those of this one. Where this
    epoch is not selected, the selected one's are kept from the file.
    """
    chosen: dict[str, Any] = {"epoch": np.int64(epoch), "logits": logits}
    if not selected and path.is_file():
        with np.load(path, allow_pickle=False) as before:
            chosen = {name: before[name] for name in chosen}
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        np.savez(
            file,
            **chosen,
            last_epoch=np.int64(epoch),
            last_logits=logits,
            labels=dataset.labels,
            recording=np.array(dataset.recordings),
            subject=np.array(dataset.subjects),
        )
    os.replace(aside, path)
