"""Stage 2 without symmetric masking, for the ablation: `python -m reference.one_mask` with the flags of stage 2.

The loss is taken at the masked places alone, and no second pass under the inverted mask is made. The product has no
flag for it; only the masked model's forward differs here, `run_labram_pretraining.py` does everything else.
"""

from typing import Any

import torch
from torch import Tensor

import run_labram_pretraining
from errors import run_script
from layers import Channels
from modeling_pretrain import CodeLoss, MaskedModel, code_loss
from run_labram_pretraining import get_args


def forward(
    self: MaskedModel, eeg: Tensor, input_chans: Channels, bool_masked_pos: Tensor, codes: Tensor | None = None
) -> Any:
    """As MaskedModel.forward with codes; `accuracy_sym`, which has no places, is NaN."""
    assert codes is not None, "training and evaluation give codes"
    mask = bool_masked_pos.bool()
    tokens = self.student(eeg, input_chans, mask)[mask]  # (masked places, D)
    shares = torch.full((len(tokens),), 1 / max(len(tokens), 1), device=tokens.device)
    loss, hits = code_loss(tokens, self.lm_head, codes[mask], shares)
    return CodeLoss(loss, hits.float().mean(), torch.full((), float("nan"), device=tokens.device))


def main(args: Any) -> None:
    """Pre-train as stage 2 does, with the other forward."""
    MaskedModel.forward = forward  # type: ignore[method-assign]  # this process makes no other model
    run_labram_pretraining.main(args)


if __name__ == "__main__":
    run_script(main, get_args())
