"""The classifier: the pre-trained trunk with a new head for a labelled task, classification or regression.

Paper, section 2.4. The model, its sizes, and loading stage 2 into it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from electrodes import PUBLISHED_ELECTRODES
from errors import InputError
from layers import LAYER_NORM_EPS, Channels, TemporalConv, Trunk, check_merged, depth_of, register_sizes


class NeuralTransformer(Trunk):
    """Trunk, pooling, norm and head: EEG windows to logits."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        num_classes: int = 1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_mean_pooling: bool = True,
        init_scale: float = 0.001,
        use_abs_pos_emb: bool = True,
        init_values: float = 0.1,
        qkv_bias: bool = False,
        num_electrodes: int = PUBLISHED_ELECTRODES,
        grad_checkpoint: bool = False,
    ) -> None:
        """num_classes: outputs of the head (0 for none: features); use_mean_pooling=False: CLS after a final norm."""
        super().__init__(
            TemporalConv(width),
            width=width,
            depth=depth,
            heads=heads,
            qkv_bias=qkv_bias,
            qk_norm=True,
            init_values=init_values,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            use_abs_pos_emb=use_abs_pos_emb,
            num_electrodes=num_electrodes,
            grad_checkpoint=grad_checkpoint,
        )
        self.frozen: tuple[nn.Module, ...] = ()  # parts that do not learn, kept in evaluation mode
        self.takes_features = False  # True: what `forward` gets is what `forward_features` gave (linear probe)
        self.norm = nn.Identity() if use_mean_pooling else nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.fc_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS) if use_mean_pooling else None
        self.head = nn.Linear(width, num_classes) if num_classes > 0 else nn.Identity()
        self.initialize()
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(init_scale)
                self.head.bias.mul_(init_scale)

    def train(self, mode: bool = True) -> "NeuralTransformer":
        """As nn.Module's, except that frozen parts stay in evaluation mode: no dropout or drop path in them."""
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
        """What the head sees, (B, D); or every patch token (B, N*A, D), or CLS too (B, N*A + 1, D), after the norm.

        eeg: (B, N, A, T), units of 100 uV. The norm is `fc_norm` with mean pooling, `norm` without.
        """
        tokens = self.run_blocks(self.embed(eeg, input_chans))
        norm = self.norm if self.fc_norm is None else self.fc_norm
        if return_all_tokens:
            return norm(tokens)
        if return_patch_tokens:
            return norm(tokens[:, 1:])
        return norm(tokens[:, 0]) if self.fc_norm is None else norm(tokens[:, 1:].mean(1))

    def forward(
        self,
        eeg: Tensor,
        input_chans: Channels = None,
        *,
        return_patch_tokens: bool = False,
        return_all_tokens: bool = False,
    ) -> Tensor:
        """eeg: (B, N, A, T), units of 100 uV -> logits (B, num_classes), or of every token where asked.

        With `takes_features` (a linear probe in training) eeg stands for features (B, D).
        """
        features = eeg
        if not self.takes_features:
            features = self.forward_features(
                eeg, input_chans, return_patch_tokens=return_patch_tokens, return_all_tokens=return_all_tokens
            )
        with torch.autocast(eeg.device.type, enabled=False):  # half precision rounds 50.1 to 50: a regression's outputs
            return self.head(features.to(self.cls_token.dtype))


@dataclass
class LoadReport:
    """What happened to each key when stage 2 was loaded into stage 3."""

    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line, full key names."""
        parts = [f"{self.loaded} tensors loaded"]
        for what in ("missing", "unexpected", "dropped"):
            keys = getattr(self, what)
            parts.append(f"{what}: {', '.join(keys) if keys else 'none'}")
        return "; ".join(parts)


def load_pretrained(model: NeuralTransformer, state: dict[str, Tensor], *, where: str = "checkpoint") -> LoadReport:
    """Load a stage 2 state dict (keys under `student.`) or a stage 3 one into the classifier.

    A head of another shape is dropped; a smaller electrode table fills the first rows of a larger one. Every missing,
    unexpected and dropped key is reported. Raises InputError, naming the first keys, where other shapes differ, and
    for a run's checkpoint with LoRA adapters, whose matrices are not yet merged.
    """
    check_merged(state, where)
    student = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    report = LoadReport(dropped=[key for key in state if student and not key.startswith("student.")])
    own = model.state_dict()
    weights, wrong = {}, []
    for key, value in (student or state).items():
        if key not in own:
            report.unexpected.append(key)
        elif value.shape == own[key].shape:
            weights[key] = value
        elif key.startswith("head."):
            report.dropped.append(key)
        elif key == "pos_embed" and value.shape[1] < own[key].shape[1] and value.shape[2] == own[key].shape[2]:
            weights[key] = torch.cat((value.to(own[key]), own[key][:, value.shape[1] :]), dim=1)
        else:
            way_out = " (--num_electrodes 136)" if key == "pos_embed" and value.shape[2] == own[key].shape[2] else ""
            wrong.append(f"{key} is {tuple(value.shape)}, the model has {tuple(own[key].shape)}{way_out}")
    depths = depth_of(weights), depth_of(report.unexpected)
    if depths[0] != len(model.blocks) or depths[1] > len(model.blocks):
        found = max(depths)
        wrong.append(f"blocks.*: {found} transformer blocks, the model has {len(model.blocks)}")
    if wrong:
        raise InputError(
            f"{where} is of another architecture: {'; '.join(wrong[:3])}: choose the --model of the same size and kind"
        )
    report.missing = [key for key in own if key not in weights]
    report.loaded = len(weights)
    model.load_state_dict(weights, strict=False)
    return report


SIZES: dict[str, dict[str, Any]] = {
    "labram_base_patch200_200": {"width": 200, "depth": 12, "heads": 10},
    "labram_large_patch200_200": {"width": 400, "depth": 24, "heads": 16, "init_values": 1e-5},
    "labram_huge_patch200_200": {"width": 800, "depth": 48, "heads": 16, "init_values": 1e-6},
    "labram_tiny_patch200_200": {"width": 200, "depth": 4, "heads": 10},  # ours: tests and ablations
}
register_sizes(SIZES, NeuralTransformer, __name__)
