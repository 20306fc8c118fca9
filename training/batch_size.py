"""`--batch_size auto`: the largest batch whose step fits into the memory of every GPU, found by taking such steps."""

import argparse
import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from eeg_data.pretraining_files import MAX_TOKENS
from errors import NO_MEMORY, UsageError
from layers import PATCH_SAMPLES
from utils import Run, gather

logger = logging.getLogger(__name__)

USED_SHARE = 0.9  # of the memory that is free at the start; the rest is for other montages and NCCL
OPTIMIZER_COPIES = 2  # of the learnable weights, as AdamW makes at its first step

Loss = Callable[[Tensor, Tensor], Tensor]  # of eeg (B, N, A, T) and channels (N + 1,), with its gradient's graph


def largest_batch(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest power of two that fits and divides `most`; 1 is not tried."""
    batch = 1
    while most % (2 * batch) == 0 and fits(2 * batch):
        batch *= 2
    return batch


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def step_bytes(model: DistributedDataParallel, run: Run, loss: Loss, batch: int, window: tuple[int, int]) -> int:
    """Return the GPU memory that a step takes. It changes no weight and no random state. window: electrodes, seconds.

    Raises torch.OutOfMemoryError.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(run.device)
    eeg = run.place(torch.zeros(batch, *window, PATCH_SAMPLES))
    channels = torch.arange(window[0] + 1, device=run.device)
    try:
        with torch.random.fork_rng([run.device]), model.no_sync():
            with run.autocast():
                value = loss(eeg, channels)
            value.backward()
    finally:
        model.zero_grad(set_to_none=True)
    learnable = size_of(p for p in model.parameters() if p.requires_grad)
    return torch.cuda.max_memory_reserved(run.device) + OPTIMIZER_COPIES * learnable


def settle_batch_size(
    args: argparse.Namespace,
    run: Run,
    model: DistributedDataParallel,
    loss: Loss,
    *,
    window: tuple[int, int] | None = None,
    copies: int = 0,
    paper_batch: int = 512,
) -> None:
    """Replace `--batch_size auto` by a number, and a missing `--total_batch_size` by the paper's.

    The number is the same on all ranks: that of the GPU with the least memory. window: electrodes and seconds; None:
    as many patches as the default windows of any montage have. copies: of the model, which the run makes later. Raises
    UsageError on a CPU and for --time_window.
    """
    if args.batch_size is not None:
        return
    if run.device.type != "cuda":
        raise UsageError("--batch_size auto fills the memory of a GPU; on a CPU give a number, such as --batch_size 16")
    if window is None and args.time_window:
        way_out = "leave --time_window out, or give a number"
        raise UsageError(f"--batch_size auto is for windows of {MAX_TOKENS} patches, not for --time_window: {way_out}")
    window = window or (MAX_TOKENS // 8, 8)
    total = args.total_batch_size = args.total_batch_size or paper_batch
    room = USED_SHARE * (torch.cuda.mem_get_info(run.device)[0] + torch.cuda.memory_reserved(run.device))
    room -= copies * size_of(model.parameters())
    taken = {}

    def fits(batch: int) -> bool:
        try:
            taken[batch] = step_bytes(model, run, loss, batch, window)
        except RuntimeError as error:  # cuBLAS and Triton, which torch's allocator does not know, have their own
            if not any(sign in str(error) for sign in NO_MEMORY):
                raise
            return False
        return taken[batch] <= room

    model.train()
    args.batch_size = min(gather(largest_batch(fits, max(1, total // run.processes))))
    torch.cuda.empty_cache()
    gb = f"{taken[args.batch_size] / 1e9:.1f} GB of {room / 1e9:.1f} usable" if args.batch_size in taken else "1 window"
    logger.info("--batch_size auto: %d (%s, windows of %d x %d s)", args.batch_size, gb, *window)
