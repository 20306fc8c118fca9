"""Scaled dot-product attention: torch's, except in bfloat16 on CPUs, where torch's is slower than in float32.

On GPUs heads get the columns that torch's fast kernels want.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

AMPERE = 8  # compute capability from which on half precision has flash attention, and float32 wants a multiple of 4
CACHED_SCORES = 2**20  # held at a time: 2 MB, so that they stay in a CPU's cache


class _HalfAttention(torch.autograd.Function):
    """`attend` by matrix products, a few heads at a time. The gradient computes the softmax again.

    Base, 257 tokens, bfloat16 on a CPU with such products: forward 0.59, with gradient 0.51 of the time of torch's.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (n, L, d), heads of all samples -> (n, L, d)."""
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for heads, shares in _shares(q, k):
            torch.bmm(shares, v[heads], out=out[heads])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for heads, shares in _shares(q, k):
            torch.bmm(shares.transpose(1, 2), grad[heads], out=dv[heads])
            d_shares = grad[heads] @ v[heads].transpose(1, 2)  # (heads, L, L)
            d_scores = torch._softmax_backward_data(d_shares, shares, -1, shares.dtype)
            _scaled_product(d_scores, k[heads], out=dq[heads])
            _scaled_product(d_scores.transpose(1, 2), q[heads], out=dk[heads])
        return dq, dk, dv


def _scaled_product(a: Tensor, b: Tensor, *, out: Tensor, scale: float | None = None) -> Tensor:
    """Compute scale * a @ b into `out`. scale: 1 / sqrt(width of a head), by default b's width."""
    scale = 1 / math.sqrt(b.shape[-1]) if scale is None else scale
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _shares(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few heads and their softmax(q k^T / sqrt(d)), (heads, L, L), which the next ones overwrite."""
    n, L, d = q.shape
    size = min(n, max(1, CACHED_SCORES // L**2))
    scores, shares = q.new_empty(size, L, L), q.new_empty(size, L, L)
    for first in range(0, n, size):
        heads = slice(first, min(first + size, n))
        some = slice(0, heads.stop - first)
        _scaled_product(q[heads], k[heads].transpose(1, 2), out=scores[some], scale=1 / math.sqrt(d))
        yield heads, torch.softmax(scores[some], -1, out=shares[some])


def missing_columns(q: Tensor) -> int:
    """Count the columns that heads on a GPU lack for a fast kernel. Without them torch holds all scores, (B, H, L, L).

    Heads of 20, 25 and 50: float32 lacks some from Ampere on, float16 before it. Rules: torch 2.11.
    """
    half = q.dtype in (torch.float16, torch.bfloat16)
    if not q.is_cuda or q.dtype == torch.float64 or half == (torch.cuda.get_device_capability()[0] >= AMPERE):
        return 0
    return -q.shape[-1] % (8 if half else 4)


def attend(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v. q, k, v: (B, H, L, d) -> (B, H, L, d). dropout: of the softmax."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not dropout and not torch.compiler.is_compiling():
        heads = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        return _HalfAttention.apply(*heads).view(q.shape)
    width = q.shape[-1]
    if missing := missing_columns(q):
        q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))  # zeros add nothing to a product
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=width**-0.5)[..., :width]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
