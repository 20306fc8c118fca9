"""Operations that keep less for their gradient than autograd would, with the same numbers.

What a training step holds is mostly what the backward pass needs of each block and the logits over all codes. Here:
the second half of a block's MLP, and the loss of a linear head over a large vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LOGITS = {"cpu": 2**21, "cuda": 2**26}  # held at a time: 8 MB, which stay in a CPU's cache; 256 MB on a GPU
FP16_ROOM = 32  # what sums over tokens are divided by where fp16, which ends at 65504, holds them


def matmul_type(x: Tensor) -> torch.dtype:
    """In which autocast would multiply it: its own type where there is no autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _GeluLinear(torch.autograd.Function):
    """GELU and a linear layer; of the two large tensors between them only the first is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kind = matmul_type(weight)
        ctx.save_for_backward(hidden, weight)
        return F.linear(F.gelu(hidden).to(kind), weight.to(kind), bias.to(kind))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        to_hidden = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_hidden = torch.ops.aten.gelu_backward((grad @ weight.to(grad.dtype)).to(hidden.dtype), hidden)
        if ctx.needs_input_grad[1]:
            active = F.gelu(hidden).to(grad.dtype).flatten(0, -2)
            to_weight = (rows.t() @ active).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0, dtype=weight.dtype)
        return to_hidden, to_weight, to_bias


def gelu_linear(hidden: Tensor, layer: nn.Linear) -> Tensor:
    """layer(gelu(hidden)) with exact GELU, which is computed again for the gradient. (..., n) -> (..., m)."""
    return _GeluLinear.apply(hidden, layer.weight, layer.bias)


class _CodeLoss(torch.autograd.Function):
    """`code_loss` with its gradient, both made of a few tokens' logits at a time."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, codes: Tensor, shares: Tensor, learning: bool
    ) -> tuple[Tensor, Tensor]:
        """learning: also compute the gradient, while the logits are there."""
        kind = matmul_type(weight)
        matrix, offset = weight.to(kind), bias.to(kind)
        # Kept apart from the probabilities, which a share of 1/n would push below what fp16 can hold.
        largest = shares.max() if len(shares) else shares.sum()
        relative = (shares / largest).unsqueeze(1)
        hits = torch.empty(len(tokens), dtype=torch.bool, device=tokens.device)
        loss = tokens.new_zeros(())
        to_tokens = torch.empty_like(tokens) if learning else None
        to_weight, to_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        chunk = min(len(tokens), max(1, LOGITS[tokens.device.type] // len(weight)))
        logits_of, logs_of = (tokens.new_empty(chunk, len(weight), dtype=one) for one in (kind, tokens.dtype))
        for first in range(0, len(tokens), max(chunk, 1)):
            place = slice(first, first + chunk)
            part, code, share = tokens[place].to(kind), codes[place].unsqueeze(1), relative[place]
            logits = torch.addmm(offset, part, matrix.t(), out=logits_of[: len(part)])  # (chunk, K)
            logs = torch.log_softmax(logits, 1, dtype=tokens.dtype, out=logs_of[: len(part)])
            loss -= (logs.gather(1, code) * share).sum()
            hits[place] = logits.argmax(1) == code[:, 0]
            if to_tokens is not None:
                wrong = logs.exp_()  # by how much each probability is too large
                wrong.scatter_add_(1, code, wrong.new_full(code.shape, -1.0))
                to_tokens[place] = (wrong.to(kind) @ matrix).to(tokens.dtype) * share
                wrong *= share
                if kind == torch.float16:  # the sum comes before any loss scale: with one code for all it overflows
                    to_weight.add_(wrong.to(kind).t() @ (part / FP16_ROOM), alpha=FP16_ROOM)
                else:
                    to_weight += wrong.to(kind).t() @ part
                to_bias += wrong.sum(0)
        if to_tokens is not None:
            ctx.save_for_backward(to_tokens, to_weight, to_bias, largest)
        ctx.mark_non_differentiable(hits)
        return largest * loss, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        to_tokens, to_weight, to_bias, largest = ctx.saved_tensors
        scale = grad * largest
        return to_tokens * scale, to_weight * scale, to_bias * scale, None, None, None


def code_loss(tokens: Tensor, head: nn.Linear, codes: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a linear head: sum of `shares` x each token's loss, (), and which tokens are right, (n,) bool.

    tokens: (n, D); codes: (n,); shares: (n,). The logits (n, K), far larger than anything else in the model, are never
    held as a whole: the gradient is computed with the loss, so it may be asked for once.
    """
    learning = torch.is_grad_enabled() and (tokens.requires_grad or head.weight.requires_grad)
    return _CodeLoss.apply(tokens, head.weight, head.bias, codes, shares, learning)
