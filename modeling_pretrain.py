"""The masked model: a transformer that sees half of the patches and predicts the codes of the others.

Paper, section 2.3. Masks, the loss over codes, the trunk under `student.`, the model, its sizes. Not here: the
tokenizer that makes the codes, which the run script builds and the engine receives.
"""

import logging
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from layers import (
    INIT_STD,
    LAYER_NORM_EPS,
    Channels,
    TemporalConv,
    Trunk,
    initialize_weights,
    load_strictly,
    matmul_type,
    register_sizes,
)

logger = logging.getLogger(__name__)

LOGITS = {"cpu": 2**21, "cuda": 2**26}  # held at a time: 8 MB, the size of a CPU's cache; 256 MB on a GPU
UNUSED_PUBLISHED_KEYS = ("student.lm_head.", "projection_head.")
FP16_ROOM = 32  # sums over tokens are divided by it in fp16, whose largest number is 65504


def random_mask(samples: int, patches: int, *, ratio: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Draw masks, uniformly at random, each with L - int(L * (1 - ratio)) true places. -> (samples, patches) bool."""
    masked = patches - int(patches * (1 - ratio))
    order = torch.rand(samples, patches, generator=generator).argsort(dim=1)
    return order < masked  # each row of `order` is a random permutation


class CodeLoss(NamedTuple):
    """The loss of predicting codes, and how many are right."""

    loss: Tensor  # (): mean over the masked places plus mean over the others
    accuracy: Tensor  # (): share of the masked places whose code has the largest logit
    accuracy_sym: Tensor  # (): the same for the others, under the inverted mask


class _CodeLoss(torch.autograd.Function):
    """`code_loss` and, `with_gradient`, its gradient, both from the logits of a few tokens at a time.

    torch's checkpoint of each piece takes 5 % more time and 7 % more memory of a step on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, codes: Tensor, shares: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        kind = matmul_type(weight)
        matrix, offset = weight.to(kind), bias.to(kind)
        # Shares are relative to the largest: times 1/n, probabilities would be too small for fp16.
        largest = shares.max() if len(shares) else shares.sum()
        relative = (shares / largest).unsqueeze(1)  # (n, 1)
        hits = torch.empty(len(tokens), dtype=torch.bool, device=tokens.device)
        loss = tokens.new_zeros(())
        d_tokens = torch.empty_like(tokens) if with_gradient else None
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        chunk = min(len(tokens), max(1, LOGITS[tokens.device.type] // len(weight)))
        logits_buffer, logs_buffer = (tokens.new_empty(chunk, len(weight), dtype=one) for one in (kind, tokens.dtype))
        for first in range(0, len(tokens), max(chunk, 1)):
            place = slice(first, first + chunk)
            part, code, share = tokens[place].to(kind), codes[place].unsqueeze(1), relative[place]
            logits = torch.addmm(offset, part, matrix.t(), out=logits_buffer[: len(part)])  # (chunk, K)
            logs = torch.log_softmax(logits, 1, dtype=tokens.dtype, out=logs_buffer[: len(part)])
            loss -= (logs.gather(1, code) * share).sum()
            hits[place] = logits.argmax(1) == code[:, 0]
            if d_tokens is not None:
                d_logits = logs.exp_()  # probabilities, minus 1 for the token's own code
                d_logits.scatter_add_(1, code, d_logits.new_full(code.shape, -1.0))
                d_tokens[place] = (d_logits.to(kind) @ matrix).to(tokens.dtype) * share
                d_logits *= share
                if kind == torch.float16:  # with one code for all tokens this sum overflows, before any loss scale
                    d_weight.add_(d_logits.to(kind).t() @ (part / FP16_ROOM), alpha=FP16_ROOM)
                else:
                    d_weight += d_logits.to(kind).t() @ part
                d_bias += d_logits.sum(0)
        if d_tokens is not None:
            ctx.save_for_backward(d_tokens, d_weight, d_bias, largest)
        ctx.mark_non_differentiable(hits)
        return largest * loss, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_tokens, d_weight, d_bias, largest = ctx.saved_tensors
        scale = grad * largest
        return d_tokens * scale, d_weight * scale, d_bias * scale, None, None, None


def code_loss(tokens: Tensor, head: nn.Linear, codes: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of a linear head: the sum of share x loss over tokens, (), and which are right, (n,).

    tokens: (n, D); codes, shares: (n,). The logits (n, K) are never held as a whole. The gradient is computed together
    with the loss, so backward may run once only.
    """
    with_gradient = torch.is_grad_enabled() and (tokens.requires_grad or head.weight.requires_grad)
    return _CodeLoss.apply(tokens, head.weight, head.bias, codes, shares, with_gradient)


def true_first(mask: Tensor) -> Tensor:
    """Index the true places of a mask, flattened, then the false ones. Never waits for a GPU, unlike nonzero()."""
    return mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)


class MaskedTrunk(Trunk):
    """The trunk with mask token and a final LayerNorm on all tokens."""

    def __init__(self, *, width: int, **options: Any) -> None:
        super().__init__(
            TemporalConv(width),
            width=width,
            qkv_bias=False,
            qk_norm=True,
            masked=True,
            # released code: CLS gets the row of the input's first electrode; kept: published weights rely on it.
            cls_position_row="first_electrode",
            **options,
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        # released code: this model alone cuts at one standard deviation and draws its convolutions the same way.
        self.initialize(cut=INIT_STD, convolutions=True)

    def forward(self, eeg: Tensor, channels: Channels, mask: Tensor | None = None) -> Tensor:
        """eeg: (B, N, A, T); mask: (B, N*A) bool -> patch tokens after the final norm (B, N*A, D)."""
        return self.norm(self.run_blocks(self.embed(eeg, channels, mask)))[:, 1:]

    def both_masks(self, eeg: Tensor, channels: Channels, mask: Tensor) -> Tensor:
        """Compute the masked tokens under the mask, then the other tokens under the inverted mask.

        eeg: (B, N, A, T); mask: (B, N*A) bool -> (B*N*A, D) after the final norm, each part in the mask's order.
        """
        masks = torch.cat((mask, ~mask))  # (2B, N*A): both in one batch
        tokens = self.run_blocks(self.embed(eeg, channels, masks))[:, 1:].flatten(0, 1)  # (2B*N*A, D)
        return self.norm(tokens[true_first(masks)[: mask.numel()]])  # (B*N*A, D)


def leave_unused_out(_: nn.Module, weights: dict[str, Any], prefix: str, *__: Any) -> None:
    """Hook of loading: leave out, with a line, the keys that only published files have and nothing uses."""
    unused = [key for key in weights if key.removeprefix(prefix).startswith(UNUSED_PUBLISHED_KEYS)]
    for key in unused:
        del weights[key]
    if unused:
        logger.info("Left out %d keys that nothing uses: %s", len(unused), ", ".join(unused))


class MaskedModel(nn.Module):
    """Masked prediction of codes with symmetric masking."""

    def __init__(self, *, width: int, vocab_size: int = 8192, init_values: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.student = MaskedTrunk(width=width, init_values=init_values, **options)
        self.lm_head = nn.Linear(width, vocab_size)
        initialize_weights(self.lm_head, cut=INIT_STD)
        self.register_load_state_dict_pre_hook(leave_unused_out)

    def forward(self, eeg: Tensor, input_chans: Channels, bool_masked_pos: Tensor, codes: Tensor | None = None) -> Any:
        """Predict codes. eeg: (B, N, A, T), units of 100 uV; bool_masked_pos: (B, N*A), true = masked.

        Returns logits (masked places, K) and, under the inverted mask, (other places, K), each in the mask's order.
        With codes (B, N*A): the CodeLoss instead. Source: paper, equation 12.
        """
        mask = bool_masked_pos.bool()
        tokens = self.student.both_masks(eeg, input_chans, mask)  # (B*N*A, D)
        masked = mask.sum()
        if codes is None:
            logits = self.lm_head(tokens)
            return logits[: int(masked)], logits[int(masked) :]
        sizes = torch.stack((masked, mask.numel() - masked)).clamp(min=1)  # a single patch has no other side
        side = (torch.arange(mask.numel(), device=mask.device) >= masked).long()
        shares = 1 / sizes[side].to(tokens.dtype if tokens.dtype == torch.float64 else torch.float32)
        loss, hits = code_loss(tokens, self.lm_head, codes.flatten()[true_first(mask)], shares)
        right = torch.stack(((hits & (side == 0)).sum(), (hits & (side == 1)).sum())) / sizes
        return CodeLoss(loss, right[0], right[1])


def start_from_encoder(trunk: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Start a MaskedTrunk from a tokenizer's encoder. weights: of stage 1. Raises InputError for another size."""
    encoder = {
        key.removeprefix("encoder.").replace("fc_norm.", "norm."): value
        for key, value in weights.items()
        if key.startswith("encoder.") and not key.endswith(("q_bias", "v_bias"))
    }
    own = {key: w for key, w in trunk.state_dict().items() if re.search(r"\.[qk]_norm\.|\.gamma_|^mask_token", key)}
    load_strictly(trunk, own | encoder, where=f"{where}, for --init_from_tokenizer")
    text = "%s: %d tensors of its encoder start the model, all but biases of q and v; %s and lm_head begin as usual."
    logger.info(text, where, len(encoder), ", ".join(sorted({re.sub(r"\.\d+", "", key) for key in own})))


SIZES: dict[str, dict[str, Any]] = {
    "labram_base_patch200_1600_8k_vocab": {"width": 200, "depth": 12, "heads": 10},
    "labram_large_patch200_1600_8k_vocab": {"width": 400, "depth": 24, "heads": 16, "init_values": 1e-5},
    "labram_huge_patch200_1600_8k_vocab": {"width": 800, "depth": 48, "heads": 16, "init_values": 1e-6},
    "labram_tiny_patch200_1600_8k_vocab": {"width": 200, "depth": 4, "heads": 10},  # ours: tests and ablations
}
register_sizes(SIZES, MaskedModel, __name__)
