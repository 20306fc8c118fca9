"""The classifier: the pre-trained trunk with a new head for a labelled task, classification or regression.

Paper, section 2.4. The model, its sizes, and loading stage 2 into it.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from layers import LAYER_NORM_EPS, Channels, TemporalConv, Trunk, register_sizes

logger = logging.getLogger(__name__)


class NeuralTransformer(Trunk):
    """Trunk, pooling, norm and head: EEG windows to logits."""

    def __init__(
        self,
        *,
        width: int,
        num_classes: int = 1,
        use_mean_pooling: bool = True,
        init_scale: float = 0.001,
        init_values: float = 0.1,
        qkv_bias: bool = False,
        **options: Any,
    ) -> None:
        """num_classes: outputs of the head (0: no head, the model returns features); options: as for Trunk.

        use_mean_pooling=False: the head sees CLS. init_scale: factor of the head's first weights.
        """
        super().__init__(
            TemporalConv(width), width=width, qkv_bias=qkv_bias, qk_norm=True, init_values=init_values, **options
        )
        self.frozen: tuple[nn.Module, ...] = ()  # parts that do not learn and stay in evaluation mode
        self.takes_features = False  # True (linear probe): the input of `forward` is an output of `forward_features`
        self.norm = nn.Identity() if use_mean_pooling else nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.fc_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS) if use_mean_pooling else None
        self.head = nn.Linear(width, num_classes) if num_classes > 0 else nn.Identity()
        self.initialize()
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(init_scale)

    def train(self, mode: bool = True) -> "NeuralTransformer":
        """Set the mode as nn.Module does, but keep frozen parts in evaluation mode: no dropout or drop path there."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward_features(
        self,
        eeg: Tensor,
        input_chans: Channels = None,
        *,
        return_patch_tokens: bool = False,
        return_all_tokens: bool = False,
    ) -> Tensor:
        """Compute the features that the head sees. eeg: (B, N, A, T), units of 100 uV -> (B, D).

        return_patch_tokens: every patch token (B, N*A, D); return_all_tokens: CLS too (B, N*A + 1, D). All come after
        the norm: `fc_norm` with mean pooling, `norm` without.
        """
        tokens = self.run_blocks(self.embed(eeg, input_chans))  # (B, N*A + 1, D)
        norm = self.norm if self.fc_norm is None else self.fc_norm
        if return_all_tokens:
            return norm(tokens)
        if return_patch_tokens:
            return norm(tokens[:, 1:])
        return norm(tokens[:, 0] if self.fc_norm is None else tokens[:, 1:].mean(1))  # (B, D)

    def forward(self, eeg: Tensor, input_chans: Channels = None, **tokens: bool) -> Tensor:
        """eeg: (B, N, A, T), units of 100 uV -> logits (B, num_classes). tokens: as for `forward_features`.

        With `takes_features` eeg stands for features (B, D).
        """
        features = eeg if self.takes_features else self.forward_features(eeg, input_chans, **tokens)
        with torch.autocast(eeg.device.type, enabled=False):  # half precision rounds an output of 50.1 to 50
            return self.head(features.to(self.cls_token.dtype))


def depth_of(keys: Iterable[str], prefix: str = "") -> int:
    """Count the transformer blocks that state-dict keys name. prefix: before `blocks.`."""
    numbers = (key.removeprefix(prefix).split(".")[1] for key in keys if key.startswith(f"{prefix}blocks."))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def check_merged(weights: Iterable[str], where: str | Path) -> None:
    """Raise InputError for the checkpoint of a LoRA run, whose adapters are not merged into the matrices."""
    if any(".lora_A." in key for key in weights):
        raise InputError(f"{where} holds LoRA adapters next to its matrices: use model-merged.pth of the same folder")


def load_pretrained(
    model: NeuralTransformer, state: dict[str, Tensor], *, where: str = "checkpoint"
) -> dict[str, list[str]]:
    """Load the state dict of a masked model (keys under `student.`) or of a classifier into a classifier.

    A head of another shape is dropped. A smaller electrode table fills the first rows of a larger one. Returns the keys
    that are `loaded`, `missing`, `unexpected` and `dropped`, and logs them.
    Raises InputError for keys of other shapes and for LoRA adapters that are not merged.
    """
    check_merged(state, where)
    student = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    dropped = [key for key in state if student and not key.startswith("student.")]
    own = model.state_dict()
    weights, unexpected, wrong = {}, [], []
    for key, value in (student or state).items():
        if key not in own:
            unexpected.append(key)
        elif value.shape == own[key].shape:
            weights[key] = value
        elif key.startswith("head."):
            dropped.append(key)
        elif key == "pos_embed" and value.shape[1] < own[key].shape[1] and value.shape[2] == own[key].shape[2]:
            weights[key] = torch.cat((value.to(own[key]), own[key][:, value.shape[1] :]), dim=1)
        else:
            way_out = " (--num_electrodes 136)" if key == "pos_embed" and value.shape[2] == own[key].shape[2] else ""
            wrong.append(f"{key} is {tuple(value.shape)}, the model has {tuple(own[key].shape)}{way_out}")
    depths = depth_of(weights), depth_of(unexpected)
    if depths[0] != len(model.blocks) or depths[1] > len(model.blocks):
        wrong.append(f"blocks.*: {max(depths)} transformer blocks, the model has {len(model.blocks)}")
    if wrong:
        raise InputError(
            f"{where} is of another architecture: {'; '.join(wrong[:3])}: choose the --model of the same size and kind"
        )
    model.load_state_dict(weights, strict=False)
    missing = [key for key in own if key not in weights]
    keys = {"loaded": list(weights), "missing": missing, "unexpected": unexpected, "dropped": dropped}
    rest = "; ".join(f"{what}: {', '.join(keys[what]) or 'none'}" for what in ("missing", "unexpected", "dropped"))
    logger.info("%s: %d tensors loaded; %s", where, len(weights), rest)
    return keys


SIZES: dict[str, dict[str, Any]] = {
    "labram_base_patch200_200": {"width": 200, "depth": 12, "heads": 10},
    "labram_large_patch200_200": {"width": 400, "depth": 24, "heads": 16, "init_values": 1e-5},
    "labram_huge_patch200_200": {"width": 800, "depth": 48, "heads": 16, "init_values": 1e-6},
    "labram_tiny_patch200_200": {"width": 200, "depth": 4, "heads": 10},  # ours: tests and ablations
}
register_sizes(SIZES, NeuralTransformer, __name__)
