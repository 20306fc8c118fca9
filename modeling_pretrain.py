"""The masked model: a transformer that sees half of the patches and predicts the tokenizer's codes of the others.

Paper, section 2.3. Masks, the trunk under `student.`, the loss, the model, its sizes. Not here: the tokenizer that
makes the targets, which the run script builds and the engine receives.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from electrodes import PUBLISHED_ELECTRODES
from layers import INIT_STD, LAYER_NORM_EPS, Channels, TemporalConv, Trunk, initialize_weights, register_sizes
from lean_ops import code_loss

logger = logging.getLogger(__name__)


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
