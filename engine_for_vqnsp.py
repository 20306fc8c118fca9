"""Stage 1: one epoch of tokenizer training, the codebook's start, and evaluation. Paper, section 2.2."""

import itertools
from typing import Any

import torch
from einops import rearrange
from torch.utils.data import DataLoader

from modeling_vqnsp import VQNSP
from norm_ema_quantizer import CodebookRevival, all_reduce_sum, usage
from progress import MetricLog, watched
from training_state import TrainingState
from utils import Run


def by_name(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's log without its `train/` or `val/`, and its total once more as `loss`."""
    named = {key.split("/")[1]: value for key, value in parts.items()}
    return {"loss": named["total_loss"], **named}


@torch.no_grad()
def initialize_codebook(model: VQNSP, loader: DataLoader, run: Run, *, epoch: int, accumulation: int) -> None:
    """Start the codebook by k-means of the first whole batch: all micro-batches of all processes."""
    if not model.quantize.needs_initialization:
        return
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]  # TrainingBatches
    vectors = []
    for batch in itertools.islice(loader, accumulation):
        eeg, channels, _ = batch.to(run)
        with run.autocast():
            vectors.append(model.to_code_space(eeg, channels).flatten(0, 1))  # (B*N*A, code width)
    model.quantize.initialize(torch.cat(vectors), generator=torch.Generator().manual_seed(run.seed))


def train_one_epoch(
    state: TrainingState, loader: DataLoader, epoch: int, *, revival: CodebookRevival | None = None
) -> dict[str, float]:
    """Train for an epoch; returns the codebook's use over it."""
    model, update = state.model.train(), state.update
    quantizer = model.module.quantize
    quantizer.reset_usage()
    quantizer.deferred = True  # the rows move once a step, and only if the step is taken
    for eeg, channels, _ in state.steps(loader, epoch):  # eeg (B, N, A, T), units of 100 uV
        with update.forward():
            loss, parts = model(rearrange(eeg, "B N A T -> B N (A T)"), channels)
        stepped = update(loss)
        state.log.add(by_name(parts), n=len(eeg))
        if update.skipped:
            quantizer.discard_update()
        if stepped:
            counts, vectors = quantizer.apply_update()
            if revival is not None:
                revival(update.step - 1, counts, vectors)
            state.log.add(update.stats)
    return {f"train_{name}": value for name, value in usage(quantizer.epoch_counts).items()}


@torch.no_grad()
def evaluate(model: VQNSP, loader: DataLoader, run: Run) -> dict[str, Any]:
    """Losses and codebook use over a whole set, each window once, whatever the number of processes."""
    model.eval()
    model.quantize.reset_usage()
    log = MetricLog()
    for batch in watched(loader, "evaluating", run.is_main):
        eeg, channels, _ = batch.to(run)
        with run.autocast():
            _, parts = model(rearrange(eeg, "B N A T -> B N (A T)"), channels)
        log.add(by_name(parts), n=len(eeg))
    counts = all_reduce_sum(model.quantize.epoch_counts.clone())
    return {f"test_{name}": value for name, value in {**log.means(), **usage(counts)}.items()}
