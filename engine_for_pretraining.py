"""Stage 2: one epoch of masked code prediction with symmetric masking, and evaluation. Paper, section 2.3."""

from typing import Any

import torch
from torch import Tensor, nn

from eeg_data.loader import Loader
from modeling_pretrain import CodeLoss
from modeling_vqnsp import VQNSP
from norm_ema_quantizer import all_reduce_sum, count_codes
from training.log import MetricLog
from training.state import TrainingState
from utils import Run


def by_name(losses: CodeLoss) -> dict[str, Tensor]:
    """Return loss and accuracies under their names in log.txt."""
    return {"loss": losses.loss, "mlm_acc": losses.accuracy, "mlm_acc_sym": losses.accuracy_sym}


def entropy_of_codes(counts: Tensor) -> dict[str, float]:
    """Return the entropy of the codes in nats, and the loss (both masks) of a model that knows only their shares."""
    share = all_reduce_sum(counts.clone()).double()
    share = share / share.sum().clamp(min=1)
    entropy = float(-torch.special.xlogy(share, share).sum())
    return {"code_entropy": entropy, "unigram_loss": 2 * entropy}


def train_one_epoch(state: TrainingState, loader: Loader, tokenizer: VQNSP, epoch: int) -> dict[str, float]:
    """Train for an epoch; return the entropy of the codes to predict."""
    model, update = state.model.train(), state.update
    codebook_size = tokenizer.quantize.codebook_size

    @update.recorded
    def forward(eeg: Tensor, channels: Tensor, mask: Tensor) -> Any:
        codes = tokenizer.get_codebook_indices(eeg, channels)  # (B, N*A), no gradient
        losses = model(eeg, channels, mask, codes)
        return losses.loss, by_name(losses), count_codes(codes, codebook_size)

    for eeg, channels, mask in state.steps(loader, epoch):  # eeg (B, N, A, T), units of 100 uV; mask (B, N*A)
        with update.forward():
            loss, numbers, counts = forward(eeg, channels, mask)
        complete = update(loss)
        state.log.add(numbers, n=len(eeg))
        state.log.count("codes", counts)
        if complete:
            state.log.add(update.stats)
    counts = state.log.total("codes", codebook_size).to(state.run.device)
    return {f"train_{name}": value for name, value in entropy_of_codes(counts).items()}


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, tokenizer: VQNSP, run: Run) -> dict[str, Any]:
    """Return loss and accuracies of a whole set under masks that stay the same from epoch to epoch."""
    model.eval()
    log = MetricLog()
    counts = torch.zeros(tokenizer.quantize.codebook_size, dtype=torch.long, device=run.device)
    for batch in run.evaluation_batches(loader):
        eeg, channels, mask = batch.to(run)
        with run.autocast():
            codes = tokenizer.get_codebook_indices(eeg, channels)
            losses = model(eeg, channels, mask, codes)
        log.add(by_name(losses), n=len(eeg))
        counts += count_codes(codes, len(counts))
    return {f"val_{name}": value for name, value in {**log.means(), **entropy_of_codes(counts)}.items()}
