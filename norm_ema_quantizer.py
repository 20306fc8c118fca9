"""The codebook: unit vectors, the nearest row as code, rows that follow their inputs, revival of idle rows.

Paper, section 2.2 ("vector-quantized neural spectrum prediction"). All processes hold the same codebook by
construction: counts and sums are reduced over processes, and process 0 broadcasts every change of the rows.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from errors import InputError

KMEANS_ITERATIONS = 10
# Similarities held at a time: 8 MB, the size of a CPU's cache; 256 MB on a GPU, which likes few large products.
SIMILARITIES = {"cpu": 2**21, "cuda": 2**26}


def l2_normalize(vectors: Tensor) -> Tensor:
    """Scale vectors to unit length along the last axis; zeros stay zeros."""
    return F.normalize(vectors, dim=-1)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place. Returns it."""
    if _is_distributed():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor) -> Tensor:
    """Overwrite a tensor with that of process 0, in place. Returns it."""
    if _is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def pool(vectors: Tensor) -> Tensor:
    """Gather vectors in the order of processes: (n, width) -> (processes * n, width). n must be equal on all."""
    if not _is_distributed():
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


class Later:
    """A tensor to be read on the host later. A GPU copies it while it works; nobody waits at the time of the call."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.detach().to("cpu", non_blocking=True)  # page-locked, if it comes from a GPU
        self._copied = torch.cuda.Event() if tensor.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> Tensor:
        """Return the tensor on the CPU, once the work before the copy is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and TF32 off: in half precision another row is often the nearest."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def nearest_rows(vectors: Tensor, rows: Tensor) -> Tensor:
    """Find the row with the largest dot product for each vector, all unit. (n, width), (K, width) -> (n,) int64."""
    n, chunk = len(vectors), max(1, SIMILARITIES[vectors.device.type] // len(rows))
    codes = torch.empty(n, dtype=torch.long, device=vectors.device)
    buffer = vectors.new_empty(min(n, chunk), len(rows))  # for all chunks
    for first in range(0, n, chunk):
        part = vectors[first : first + chunk]
        torch.argmax(torch.mm(part, rows.t(), out=buffer[: len(part)]), dim=1, out=codes[first : first + len(part)])
    return codes


def count_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Count each code. (...,) int64 -> (K,) int64. torch.bincount would synchronise a GPU."""
    codes = codes.flatten()
    return codes.new_zeros(codebook_size).scatter_add_(0, codes, torch.ones_like(codes))


def count_and_sum(vectors: Tensor, codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Count and sum the vectors of each code. (n, width), (n,) -> (K,), (K, width), in the vectors' type."""
    counts = count_codes(codes, codebook_size).to(vectors.dtype)
    sums = vectors.new_zeros(codebook_size, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums


def moving_average(rows: Tensor, counts: Tensor, sums: Tensor, decay: float) -> Tensor:
    """Move each row: normalize(decay * row + (1 - decay) * normalize(mean of its inputs)). Unused rows stay.

    rows, sums: (K, width); counts: (K,) -> (K, width).
    """
    means = l2_normalize(sums / counts.clamp(min=1).unsqueeze(1))
    moved = l2_normalize(decay * rows + (1 - decay) * means)
    return torch.where((counts > 0).unsqueeze(1), moved, rows)


def sample_rows(vectors: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw n vectors at random, without replacement if there are enough. (m, width) -> (n, width)."""
    m = len(vectors)
    index = torch.randperm(m, generator=generator)[:n] if m >= n else torch.randint(m, (n,), generator=generator)
    return vectors[index.to(vectors.device)]


def kmeans(vectors: Tensor, k: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Run ten steps of cosine k-means; an empty cluster keeps its centre. (n, width) -> (k, width), unit vectors."""
    centres = sample_rows(vectors, k, generator)
    for _ in range(KMEANS_ITERATIONS):
        counts, sums = count_and_sum(vectors, nearest_rows(vectors, centres), k)
        centres = torch.where((counts > 0).unsqueeze(1), l2_normalize(sums), centres)
    return centres


class Codebook(nn.Module):
    """The rows, at first random, and the other entries of the published state dict. None is learnt by gradient."""

    initted: Tensor  # (1,): 0 until k-means has set the rows

    def __init__(self, codebook_size: int, code_dim: int, *, kmeans_init: bool) -> None:
        super().__init__()
        # Parameters without gradient, not buffers, because the published count (8.58 M) includes them.
        rows = l2_normalize(torch.randn(codebook_size, code_dim))
        self.weight = nn.Parameter(rows, requires_grad=False)
        # Unused: only the published layout wants these two.
        self.cluster_size = nn.Parameter(torch.zeros(codebook_size), requires_grad=False)
        self.embed_avg = nn.Parameter(rows.clone(), requires_grad=False)
        self.register_buffer("initted", torch.tensor([0.0 if kmeans_init else 1.0]))


class NormEMAVectorQuantizer(nn.Module):
    """Quantise vectors to the nearest row of a codebook of unit vectors, whose rows follow their inputs.

    codebook_size: K rows of width code_dim; decay: of the moving averages; beta: weight of the loss.
    A training forward ends with an update of the codebook, so a plain loop needs nothing else. An engine that
    accumulates micro-batches or skips bad steps sets `deferred = True`: forwards only collect, and `apply_update()` or
    `discard_update()` ends the step. Source: paper, section 2.2, equations 3 to 5.
    """

    cluster_size: Tensor  # (K,): moving average of the vectors that each code receives
    epoch_counts: Tensor  # (K,) int64: exact counts since `reset_usage`

    def __init__(
        self, codebook_size: int, code_dim: int, *, decay: float = 0.99, beta: float = 1.0, kmeans_init: bool = True
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.decay = decay
        self.beta = beta
        self.deferred = False
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.embedding = Codebook(codebook_size, code_dim, kmeans_init=kmeans_init)
        self.register_buffer("epoch_counts", torch.zeros(codebook_size, dtype=torch.long), persistent=False)
        self.collected: list[tuple[Tensor, Tensor, Tensor]] = []  # vectors, counts, sums of each micro-batch
        self._needs_kmeans: bool | None = None  # a copy of `initted` on the host, so that no step waits for a GPU
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_needs_kmeans", None))

    @property
    def needs_initialization(self) -> bool:
        """True if the codebook starts from k-means and k-means has not run yet."""
        if self._needs_kmeans is None:
            self._needs_kmeans = not bool(self.embedding.initted.item())
        return self._needs_kmeans

    @torch.no_grad()
    def initialize(self, vectors: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Set the rows by k-means of all processes' vectors, (n, code_dim) on each. Process 0 computes them.

        Vectors that are not finite are left out. Raises InputError, on all processes, if none is left.
        """
        with full_precision(vectors.device):
            pooled = pool(l2_normalize(vectors.to(self.embedding.weight.dtype)))
            pooled = pooled[pooled.isfinite().all(dim=1)]
            if not len(pooled):
                raise InputError("the first batch has no finite value to start the codebook from: check the data")
            if not _is_distributed() or dist.get_rank() == 0:
                self.embedding.weight.copy_(kmeans(pooled, self.codebook_size, generator=generator))
        broadcast(self.embedding.weight)
        self.embedding.embed_avg.copy_(self.embedding.weight)
        self.embedding.initted.fill_(1)
        self._needs_kmeans = False

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Look up codes without counting them. z: (..., code_dim) -> (n,) int64."""
        with full_precision(z.device):
            rows = self.embedding.weight
            return nearest_rows(l2_normalize(z.to(rows.dtype)).flatten(0, -2), rows)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise. z: (..., code_dim) -> rows with straight-through gradient (..., code_dim), codes (n,), loss ()."""
        with full_precision(z.device):
            rows = self.embedding.weight
            z = l2_normalize(z.to(rows.dtype))
            vectors = z.flatten(0, -2)  # (n, code_dim)
            if self.training and self.needs_initialization:
                self.initialize(vectors.detach())
            with torch.no_grad():
                codes = nearest_rows(vectors, rows)
                # Indexing copies: `apply_update` changes the rows in place before the backward pass.
                quantized = rows[codes].view_as(z)
            loss = self.beta * F.mse_loss(z, quantized)
            self._collect(vectors.detach(), codes)
            quantized = z + (quantized - z).detach()  # straight-through gradient
        return quantized, codes, loss

    @torch.no_grad()
    def _collect(self, vectors: Tensor, codes: Tensor) -> None:
        if self.training:
            self.collected.append((vectors, *count_and_sum(vectors, codes, self.codebook_size)))
            if not self.deferred:
                self.apply_update()
        else:
            # Not reduced: in evaluation, processes may have different numbers of batches.
            self._count_usage(count_codes(codes, self.codebook_size).to(vectors.dtype))

    def _count_usage(self, counts: Tensor, taken: Tensor | None = None) -> None:
        self.epoch_counts += counts.long()
        sizes = torch.add(self.cluster_size * self.decay, counts, alpha=1 - self.decay)
        self.cluster_size.copy_(sizes if taken is None else torch.where(taken, sizes, self.cluster_size))

    @torch.no_grad()
    def apply_update(self, taken: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """End a step: move the rows once, by the vectors of all micro-batches of all processes.

        taken: () bool, the same on all processes; False changes nothing and counts nothing, without a word to the host.
        Returns the counts (K,) over all processes and the step's vectors (n, code_dim) of this process.
        """
        vectors = torch.cat([entry[0] for entry in self.collected])
        counts = all_reduce_sum(torch.stack([entry[1] for entry in self.collected]).sum(0))  # (K,)
        sums = all_reduce_sum(torch.stack([entry[2] for entry in self.collected]).sum(0))  # (K, code_dim)
        self.collected.clear()
        if taken is not None:
            counts = counts * taken  # a row without vectors stays, whatever its sum
        rows = self.embedding.weight
        rows.copy_(moving_average(rows, counts, sums, self.decay))
        broadcast(rows)
        self._count_usage(counts, taken)
        return counts, vectors

    def discard_update(self) -> None:
        """End a step without an update: forget the collected vectors."""
        self.collected.clear()

    def reset_usage(self) -> None:
        """Reset the counts of codes, at the start of every epoch and evaluation."""
        self.cluster_size.zero_()
        self.epoch_counts.zero_()


def usage(counts: Tensor) -> dict[str, float]:
    """Summarise counts (K,): codes used and unused, perplexity (e to the entropy), share of the ten most used."""
    total = float(counts.sum())
    share = counts.double() / max(total, 1.0)
    entropy = float(-torch.special.xlogy(share, share).sum())
    used = int((counts > 0).sum())
    return {
        "used_code": used,
        "unused_code": len(counts) - used,
        "perplexity": math.exp(entropy) if total else 0.0,
        "top10_share": float(share.topk(min(10, len(share))).values.sum()),
    }


class CodebookRevival:
    """Replace idle rows by current encoder outputs, so that a codebook cannot collapse.

    A row is idle if it received none of the last 5 x K vectors, for at least 10 steps. It is replaced after the next
    step, since a GPU's counts are read one step late, unless that step uses it or is skipped. New rows are a random
    sample of that step's vectors of all processes. Nothing is revived in the last tenth of training (total_steps: all).
    While every row is used, nothing changes.
    Not in the paper: at small scale the published quantiser collapses to one code.
    """

    VECTORS_PER_ROW = 5
    MIN_STEPS = 10
    LAST_SHARE = 0.1  # of training, without revival

    def __init__(self, quantizer: NormEMAVectorQuantizer, *, total_steps: int, seed: int) -> None:
        self.quantizer = quantizer
        self.last_step = total_steps - int(total_steps * self.LAST_SHARE)
        self.seed = seed
        self.idle_vectors = torch.zeros(quantizer.codebook_size, dtype=torch.long)
        self.idle_steps = torch.zeros(quantizer.codebook_size, dtype=torch.long)
        self.revived = 0
        self._unread: tuple[Later, Tensor] | None = None  # counts of the latest step, and the rows offered new values

    @torch.no_grad()
    def __call__(self, step: int, counts: Tensor, vectors: Tensor) -> None:
        """Revive after step `step` (from 0) the rows that were idle before it.

        counts: (K,) over all processes, all 0 for a skipped step; vectors: (n, code_dim) of this process.
        """
        self._read_counts()
        limit = self.VECTORS_PER_ROW * self.quantizer.codebook_size
        idle = (self.idle_vectors >= limit) & (self.idle_steps >= self.MIN_STEPS)
        index = idle.nonzero().flatten() if step < self.last_step else idle.new_zeros(0, dtype=torch.long)
        if len(index):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            rows, place = self.quantizer.embedding.weight, index.to(vectors.device)
            fresh = sample_rows(pool(vectors), len(index), generator).to(rows.dtype)
            replaced = (counts[place] == 0) & (counts.sum() > 0)
            rows[place] = torch.where(replaced.unsqueeze(1), fresh, rows[place])
            broadcast(rows)
        self._unread = Later(counts), index

    def _read_counts(self) -> None:
        """Take up the latest step's counts and what they say of the rows that were offered new values."""
        if self._unread is None:
            return
        counts, index = self._unread[0].read().long(), self._unread[1]
        self._unread = None
        vectors = counts.sum()  # of a skipped step: 0
        if not vectors:
            return
        used = counts > 0
        self.idle_vectors = torch.where(used, 0, self.idle_vectors + vectors)
        self.idle_steps = torch.where(used, 0, self.idle_steps + 1)
        self.idle_vectors[index] = self.idle_steps[index] = 0
        self.revived += int((~used[index]).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what exact resumption needs."""
        self._read_counts()
        return {"idle_vectors": self.idle_vectors, "idle_steps": self.idle_steps, "revived": self.revived}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._unread = None
        self.idle_vectors, self.idle_steps = state["idle_vectors"].clone(), state["idle_steps"].clone()
        self.revived = int(state["revived"])
