"""The classifier: the pre-trained trunk with a new head for a labelled task, classification or regression.

Paper, section 2.4. The model, its sizes, and loading stage 2 into it.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from electrodes import ELECTRODES
from errors import InputError
from layers import LAYER_NORM_EPS, Channels, TemporalConv, Trunk, register_sizes

logger = logging.getLogger(__name__)

POOLS = ("mean", "cls", "electrodes", "flatten", "attention", "spectrum")
PLACED = ("electrodes", "flatten", "spectrum")  # pools whose head has weights of its own for each electrode
FREQUENCIES = 45  # of `spectrum`: 1 to 45 Hz, below the mains
POWER_FLOOR = 1e-4  # (100 uV)^2, that of white noise of 0.07 uV: a flat electrode is not minus infinity


def log_power(eeg: Tensor) -> Tensor:
    """Compute the log of each electrode's mean power over seconds. eeg: (B, N, A, T), units of 100 uV -> (B, N, 45)."""
    parts = torch.view_as_real(torch.fft.rfft(eeg)[..., 1 : FREQUENCIES + 1])
    return (parts.square().sum(-1).mean(2) + POWER_FLOOR).log()


class Head(nn.Linear):
    """What a data set has of a classifier for itself: a linear layer, and what the pooling before it needs.

    rows: of the electrode embedding, in the order of the weights of `PLACED`; query: of `attention`.
    """

    def __init__(self, width: int, num_classes: int, pool: str, *, electrodes: int = 0, seconds: int = 0) -> None:
        """electrodes, seconds: of the windows, for `PLACED`."""
        places = {"electrodes": electrodes, "flatten": electrodes * seconds}.get(pool, 1)
        super().__init__(width * places + (FREQUENCIES * electrodes if pool == "spectrum" else 0), num_classes)
        self.width, self.pool = width, pool
        self.query = nn.Parameter(torch.zeros(width)) if pool == "attention" else None  # zeros: it begins as the mean
        if pool in PLACED:
            self.register_buffer("rows", torch.arange(1, electrodes + 1))

    def place(self, patches: Tensor, norm: nn.Module, channels: Channels, *, seconds: int) -> Tensor:
        """Lay tokens out in the order of the weights. patches: (B, N*A, D) -> (B, in_features)."""
        patches = rearrange(patches, "B (N A) D -> B N A D", A=seconds)[:, self.order(channels)]
        features = norm(patches.mean(2) if self.pool == "electrodes" else patches).flatten(1)
        if features.shape[1] != self.in_features:
            own = self.in_features // self.width // patches.shape[1]
            text = f"windows of {seconds} s, but the head (--pool flatten) has weights for {own} s"
            raise InputError(f"{text}: cut windows of {own} s")
        return features

    def check(self, channels: Tensor, *, where: str) -> None:
        """Raise InputError if the weights are for other electrodes than `channels`, on the CPU: (N + 1,) rows."""
        if self.pool in PLACED:
            self.order(channels, where=where)

    def order(self, channels: Channels, *, where: str = "input_chans") -> Tensor:
        """Return where each of `rows` is among the electrodes of `channels`, (N,).

        Raises InputError for other electrodes. As in `position_embedding`, a tensor on a GPU is trusted.
        """
        rows: Any = self.rows
        given = rows.new_tensor(range(1, len(rows) + 1)) if channels is None else torch.as_tensor(channels)[1:]
        is_there = given == rows.to(given.device)[:, None]  # (head's, N)
        if len(given) != len(rows) or not (given.is_cuda or is_there.any(1).all()):
            own, other = (", ".join(ELECTRODES[row - 1] for row in tensor.tolist()) for tensor in (rows, given))
            raise InputError(
                f"{where}: electrodes {other}, but the head (--pool {self.pool}) has weights for {own}: give exactly "
                "these, in any order (--drop, --rename), or train with --pool mean"
            )
        return is_there.int().argmax(1)

    def attend(self, patches: Tensor, norm: nn.Module) -> Tensor:
        """Weight tokens by softmax(query . key / sqrt(D)), where keys are normed tokens. (B, N*A, D) -> (B, D)."""
        assert self.query is not None
        keys = F.layer_norm(patches, (self.width,), eps=LAYER_NORM_EPS)
        weights = (keys @ self.query.to(keys.dtype) / math.sqrt(self.width)).softmax(1)  # (B, N*A)
        return norm((weights[..., None] * patches).sum(1))


class NeuralTransformer(Trunk):
    """Trunk, pooling, norm and head, or a head for each of several data sets: EEG windows to logits."""

    def __init__(
        self,
        *,
        width: int,
        num_classes: int = 1,
        use_mean_pooling: bool = True,
        pool: str = "mean",
        electrodes: int = 0,
        seconds: int = 0,
        tasks: Mapping[str, Mapping[str, int]] | None = None,
        init_scale: float = 0.001,
        init_values: float = 0.1,
        qkv_bias: bool = False,
        **options: Any,
    ) -> None:
        """num_classes: outputs of the head (0: no head, the model returns features); options: as for Trunk.

        pool: of POOLS, what the head sees: the mean of the patch tokens, CLS, each electrode's mean over time, every
        patch, a mean weighted by a query that is learnt, or the mean and `log_power`. use_mean_pooling=False: CLS.
        electrodes, seconds: as for Head. tasks: num_classes, electrodes and seconds of `heads`, by name of the data
        set, in place of these three. init_scale: factor of the head's first weights.
        """
        super().__init__(
            TemporalConv(width), width=width, qkv_bias=qkv_bias, qk_norm=True, init_values=init_values, **options
        )
        self.frozen: tuple[nn.Module, ...] = ()  # parts that do not learn and stay in evaluation mode
        self.pool = pool = pool if use_mean_pooling else "cls"
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS) if pool == "cls" else nn.Identity()
        self.fc_norm = None if pool == "cls" else nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        one = {"num_classes": num_classes, "electrodes": electrodes, "seconds": seconds}
        self.head = Head(width, pool=pool, **one) if num_classes > 0 and not tasks else nn.Identity()
        self.heads = nn.ModuleDict({name: Head(width, pool=pool, **sizes) for name, sizes in (tasks or {}).items()})
        self.initialize()
        with torch.no_grad():
            for parameter in (*self.head.parameters(), *self.heads.parameters()):
                parameter.mul_(init_scale)

    def train(self, mode: bool = True) -> "NeuralTransformer":
        """Set the mode as nn.Module does, but keep frozen parts in evaluation mode: no dropout or drop path there."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def head_of(self, task: str | None) -> Any:
        """Return the head of one of several data sets, or the only one."""
        return self.head if task is None else self.heads[task]

    def forward_features(
        self,
        eeg: Tensor,
        input_chans: Channels = None,
        *,
        task: str | None = None,
        return_patch_tokens: bool = False,
        return_all_tokens: bool = False,
    ) -> Tensor:
        """Compute the features that a task's head sees. eeg: (B, N, A, T), units of 100 uV -> (B, its in_features).

        return_patch_tokens: every patch token (B, N*A, D); return_all_tokens: CLS too (B, N*A + 1, D). All come after
        the norm: `norm` for CLS, `fc_norm` otherwise. Raises InputError for other electrodes than the head's.
        """
        tokens = self.run_blocks(self.embed(eeg, input_chans))  # (B, N*A + 1, D)
        norm = self.norm if self.fc_norm is None else self.fc_norm
        if return_all_tokens:
            return norm(tokens)
        if return_patch_tokens:
            return norm(tokens[:, 1:])
        if self.pool == "spectrum":
            power = log_power(eeg)[:, self.head_of(task).order(input_chans)]  # float32 under autocast, too
            return torch.cat((norm(tokens[:, 1:].mean(1)), power.flatten(1)), 1)  # (B, D + 45 N)
        if self.pool in PLACED:
            return self.head_of(task).place(tokens[:, 1:], norm, input_chans, seconds=eeg.shape[2])
        if self.pool == "attention":
            return self.head_of(task).attend(tokens[:, 1:], norm)
        return norm(tokens[:, 0] if self.fc_norm is None else tokens[:, 1:].mean(1))  # (B, D)

    def probe_features(self, eeg: Tensor, input_chans: Channels = None, *, task: str | None = None) -> Tensor:
        """Compute what stays while the head alone learns: features, or for its query (B, N*A, D) tokens."""
        if self.pool != "attention":
            return self.forward_features(eeg, input_chans, task=task)
        return self.run_blocks(self.embed(eeg, input_chans))[:, 1:]

    def forward(
        self,
        eeg: Tensor,
        input_chans: Channels = None,
        *,
        task: str | None = None,
        center: Tensor | None = None,
        **tokens: bool,
    ) -> Any:
        """eeg: (B, N, A, T), units of 100 uV -> logits (B, num_classes). tokens: as for `forward_features`.

        task: whose head to take, of several. eeg may be an output of `probe_features` instead, which has fewer axes.
        center: (B, in_features), what to subtract from the features; then these come back, too, without a gradient.
        """
        features, head = eeg, self.head_of(task)
        if eeg.ndim == 4:
            features = self.forward_features(eeg, input_chans, task=task, **tokens)
        elif eeg.ndim == 3:
            features = head.attend(eeg, self.fc_norm)
        with torch.autocast(eeg.device.type, enabled=False):  # half precision rounds an output of 50.1 to 50
            features = features.to(self.cls_token.dtype)
            return head(features) if center is None else (head(features - center), features.detach())


def depth_of(keys: Iterable[str], prefix: str = "") -> int:
    """Count the transformer blocks that state-dict keys name. prefix: before `blocks.`."""
    numbers = (key.removeprefix(prefix).split(".")[1] for key in keys if key.startswith(f"{prefix}blocks."))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def check_merged(weights: Iterable[str], where: str | Path) -> None:
    """Raise InputError for the checkpoint of a LoRA run, whose adapters are not merged into the matrices."""
    if any(".lora_A." in key for key in weights):
        raise InputError(f"{where} holds LoRA adapters next to its matrices: use model-merged.pth of the same folder")


def _alike(key: str, one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of a head have the same shape, or name the same electrodes."""
    return torch.equal(one, other) if key.endswith(".rows") else one.shape == other.shape


def _head_in(key: str) -> str:
    """Return the part of a key that names a head; empty in other keys."""
    found = re.match(r"head\.|heads\.[^.]+\.", key)
    return found[0] if found else ""


def load_pretrained(
    model: NeuralTransformer, state: dict[str, Tensor], *, where: str = "checkpoint"
) -> dict[str, list[str]]:
    """Load the state dict of a masked model (keys under `student.`) or of a classifier into a classifier.

    A head of another shape, or for other electrodes, is dropped. A smaller electrode table fills the first rows of a
    larger one. Returns the keys that are `loaded`, `missing`, `unexpected` and `dropped`, and logs them.
    Raises InputError for keys of other shapes and for LoRA adapters that are not merged.
    """
    check_merged(state, where)
    student = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    dropped = [key for key in state if student and not key.startswith("student.")]
    own = model.state_dict()
    changed = {_head_in(key) for key, value in own.items() if key not in state or not _alike(key, value, state[key])}
    weights, unexpected, wrong = {}, [], []
    for key, value in (student or state).items():
        if key not in own:
            unexpected.append(key)
        elif _head_in(key) in changed - {""}:
            dropped.append(key)
        elif value.shape == own[key].shape:
            weights[key] = value
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
