"""Stage 1: one epoch of tokenizer training, the codebook's start, and evaluation. Paper, section 2.2."""

import itertools
import logging
import math
from typing import Any

import torch
from einops import rearrange

from eeg_data.loader import Loader
from modeling_vqnsp import VQNSP
from norm_ema_quantizer import CodebookRevival, all_reduce_sum, broadcast, usage
from training.log import MetricLog
from training.state import TrainingState
from utils import Run

logger = logging.getLogger(__name__)

LIVE_SHARE = 0.1  # of the codes; below it, an epoch ends with a warning
PATCHES_PER_CODE = 100  # that an epoch needs at least for a codebook that fits its data
SMALLEST_CODEBOOK = 16


def by_name(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's log without `train/` or `val/`, with its total also as `loss`."""
    named = {key.split("/")[1]: value for key, value in parts.items()}
    return {"loss": named["total_loss"], **named}


@torch.no_grad()
def initialize_codebook(model: VQNSP, loader: Loader, run: Run, *, epoch: int, accumulation: int) -> None:
    """Start the codebook by k-means of the first whole batch: all micro-batches of all processes."""
    if not model.quantize.needs_initialization:
        return
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]  # TrainingBatches
    vectors = []
    for batch in itertools.islice(loader, accumulation):
        eeg, channels, *_ = batch.to(run)
        with run.autocast():
            vectors.append(model.to_code_space(eeg, channels).flatten(0, 1))  # (B*N*A, code width)
    model.quantize.initialize(torch.cat(vectors), generator=torch.Generator().manual_seed(run.seed))


def train_one_epoch(
    state: TrainingState, loader: Loader, epoch: int, *, revival: CodebookRevival | None = None
) -> dict[str, float]:
    """Train for an epoch; return how much of the codebook it used."""
    model, update = state.model.train(), state.update
    quantizer = model.module.quantize
    if not state.inside(epoch):
        quantizer.reset_usage()
    quantizer.deferred = True  # the rows move once a step, and only if the step is taken

    @update.recorded
    def forward(eeg: torch.Tensor, channels: torch.Tensor) -> Any:
        loss, parts = model(rearrange(eeg, "B N A T -> B N (A T)"), channels)
        return loss, parts, quantizer.collected.pop()

    for eeg, channels, *_ in state.steps(loader, epoch):  # eeg (B, N, A, T), units of 100 uV
        with update.forward():
            loss, parts, collected = forward(eeg, channels)
        quantizer.collected.append(collected)
        complete = update(loss)
        state.log.add(by_name(parts), n=len(eeg))
        if update.warming_up:
            quantizer.discard_update()
        if complete:
            counts, vectors = quantizer.apply_update(update.taken)
            if revival is not None:
                revival(update.step - 1, counts, vectors)
            state.log.add(update.stats)
            state.log.count("codes", counts)  # over all processes
    counts = state.log.total("codes", quantizer.codebook_size)
    if state.run.is_main:
        warn_of_dead_codes(counts)
    return {f"train_{name}": value for name, value in usage(counts).items()}


def warn_of_dead_codes(counts: torch.Tensor) -> None:
    """Warn, with the way out, if an epoch used little of the codebook. counts: (codes,), of the epoch's patches."""
    size, patches, used = len(counts), int(counts.sum()), int((counts > 0).sum())
    if used >= LIVE_SHARE * size:
        return
    fitting = max(SMALLEST_CODEBOOK, 2 ** int(math.log2(max(patches / PATCHES_PER_CODE, 1))))
    smaller = f" (--codebook_n_emd {fitting})" if fitting < size else ""
    logger.warning(
        "Only %d of %d codes were used in this epoch of %d patches: take a smaller codebook%s, train on more data, or "
        "start it by k-means and revive idle codes (the defaults --quantize_kmeans_init and --revive_codes).",
        *(used, size, patches, smaller),
    )


@torch.no_grad()
def evaluate(model: VQNSP, loader: Loader, run: Run) -> dict[str, Any]:
    """Return losses and codebook use of a whole set; each window counts once, whatever the number of processes."""
    model.eval()
    model.quantize.reset_usage()
    log = MetricLog()
    for batch in run.evaluation_batches(loader):
        eeg, channels, *_ = batch.to(run)
        with run.autocast():
            _, parts = model(rearrange(eeg, "B N A T -> B N (A T)"), channels)
        log.add(by_name(parts), n=len(eeg))
    counts = all_reduce_sum(model.quantize.epoch_counts.clone())
    broadcast(model.quantize.cluster_size)  # process 0's, so that all processes hold the same
    return {f"test_{name}": value for name, value in {**log.means(), **usage(counts)}.items()}
