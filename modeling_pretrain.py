"""The masked model: a transformer that sees half of the patches and predicts the tokenizer's codes of the others.

Paper, section 2.3. Masks, the trunk under `student.`, the loss, the model, its sizes. Not here: the tokenizer that
makes the targets, which the run script builds and the engine receives.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from electrodes import PUBLISHED_ELECTRODES
from layers import (
    INIT_STD,
    LAYER_NORM_EPS,
    Channels,
    TemporalConv,
    Trunk,
    initialize_weights,
    matmul_type,
    register_sizes,
)

logger = logging.getLogger(__name__)

LOGITS = {"cpu": 2**21, "cuda": 2**26}  # held at a time: 8 MB, which stay in a CPU's cache; 256 MB on a GPU
FP16_ROOM = 32  # what sums over tokens are divided by where fp16, which ends at 65504, holds them


def random_mask(samples: int, patches: int, *, ratio: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Masks with exactly L - int(L * (1 - ratio)) true places each, uniformly at random. -> (samples, patches) bool."""
    masked = patches - int(patches * (1 - ratio))
    order = torch.rand(samples, patches, generator=generator).argsort(dim=1)
    return order < masked  # argsort gives a random permutation; its `masked` smallest ranks fall uniformly


class CodeLoss(NamedTuple):
    """What comes of predicting codes."""

    loss: Tensor  # (): mean over the masked places plus mean over the others
    accuracy: Tensor  # (): share of the masked places whose code has the largest logit
    accuracy_sym: Tensor  # (): likewise of the others, under the inverted mask


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


class MaskedTrunk(Trunk):
    """The trunk with mask token and a final LayerNorm on all tokens."""

    def __init__(self, *, width: int, depth: int, heads: int, **options: Any) -> None:
        """width, depth and heads of the size; options as for Trunk."""
        super().__init__(
            TemporalConv(width),
            width=width,
            depth=depth,
            heads=heads,
            qkv_bias=False,
            qk_norm=True,
            masked=True,
            # released code: CLS gets the row of the input's first electrode; kept, because published weights learnt it.
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
        """What stands behind the blocks at the masked places under the mask, then at the others under its inverse.

        eeg: (B, N, A, T); mask: (B, N*A) -> (B*N*A, D) after the final norm, each part in the order of its places.
        """
        masks = torch.cat((mask, ~mask))  # both in one batch, (2B, N*A)
        tokens = self.run_blocks(self.embed(eeg, channels, masks))[:, 1:].flatten(0, 1)  # (2B*N*A, D)
        # As nonzero() would find them, but their number is known, so that a GPU need not be waited for.
        places = masks.flatten().to(torch.uint8).argsort(descending=True, stable=True)[: mask.numel()]
        return self.norm(tokens[places])


class MaskedModel(nn.Module):
    """Masked code prediction with symmetric masking."""

    # Only the published files carry these and nothing uses them: loading accepts and reports them.
    unused_published_keys = ("student.lm_head.", "projection_head.")

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        vocab_size: int = 8192,
        init_values: float = 0.1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_abs_pos_emb: bool = True,
        num_electrodes: int = PUBLISHED_ELECTRODES,
        grad_checkpoint: bool = False,
    ) -> None:
        """vocab_size: codes of the tokenizer; init_values: layer scale (0.1 base, 1e-5 large, 1e-6 huge)."""
        super().__init__()
        self.student = MaskedTrunk(
            width=width,
            depth=depth,
            heads=heads,
            init_values=init_values,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            use_abs_pos_emb=use_abs_pos_emb,
            num_electrodes=num_electrodes,
            grad_checkpoint=grad_checkpoint,
        )
        self.lm_head = nn.Linear(width, vocab_size)
        initialize_weights(self.lm_head, cut=INIT_STD)
        self.register_load_state_dict_pre_hook(self._leave_unused_out)

    @staticmethod
    def _leave_unused_out(module: nn.Module, weights: dict[str, Any], prefix: str, *_: Any) -> None:
        names = tuple(prefix + name for name in MaskedModel.unused_published_keys)
        unused = [key for key in weights if key.startswith(names)]
        for key in unused:
            del weights[key]
        if unused:
            logger.info("%d keys that nothing uses were left out: %s", len(unused), ", ".join(unused))

    def forward(self, eeg: Tensor, input_chans: Channels, bool_masked_pos: Tensor, codes: Tensor | None = None) -> Any:
        """Logits at the masked places, and at the others under the inverted mask; with codes the loss instead.

        eeg: (B, N, A, T), units of 100 uV; bool_masked_pos: (B, N*A), true = masked ->
        (masked places, vocabulary), (other places, vocabulary), each in the order of the mask's true entries.
        codes: (B, N*A) -> CodeLoss. Source: paper, equation 12.
        """
        mask = bool_masked_pos.bool()
        tokens = self.student.both_masks(eeg, input_chans, mask)  # (B*N*A, D)
        masked = mask.sum()
        if codes is None:
            logits = self.lm_head(tokens)
            return logits[: int(masked)], logits[int(masked) :]
        # Targets in the tokens' order: first those under the mask.
        order = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        sizes = torch.stack((masked, mask.numel() - masked)).clamp(min=1)  # a single patch has no other side
        side = (torch.arange(mask.numel(), device=mask.device) >= masked).long()
        shares = 1 / sizes[side].to(tokens.dtype if tokens.dtype == torch.float64 else torch.float32)
        loss, hits = code_loss(tokens, self.lm_head, codes.flatten()[order], shares)
        right = torch.stack(((hits & (side == 0)).sum(), (hits & (side == 1)).sum())) / sizes
        return CodeLoss(loss, right[0], right[1])


SIZES: dict[str, dict[str, Any]] = {
    "labram_base_patch200_1600_8k_vocab": {"width": 200, "depth": 12, "heads": 10},
    "labram_large_patch200_1600_8k_vocab": {"width": 400, "depth": 24, "heads": 16, "init_values": 1e-5},
    "labram_huge_patch200_1600_8k_vocab": {"width": 800, "depth": 48, "heads": 16, "init_values": 1e-6},
    "labram_tiny_patch200_1600_8k_vocab": {"width": 200, "depth": 4, "heads": 10},  # ours: tests and ablations
}
register_sizes(SIZES, MaskedModel, __name__)
