"""The classifier's weights as braindecode's `Labram` names and shapes them, and back.

Both are the same network. braindecode cuts windows into patches itself, so that a model of it takes windows of one
length; its time embedding has one row more than these have patches, and the last one is never used. Its tables know
the 128 published electrodes. Written for braindecode 1.8, which is not imported here.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from electrodes import PUBLISHED_ELECTRODES
from errors import InputError
from layers import MAX_PATCHES, PATCH_SAMPLES

RENAMED = (
    ("pos_embed", "position_embedding"),
    ("time_embed", "temporal_embedding"),
    ("patch_embed.", "patch_embed.temporal_conv."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.2."),
    ("head.", "final_layer."),
)  # parts of keys: ours, braindecode's
TIME, THEIR_TIME = RENAMED[1]


def is_braindecode(weights: Iterable[str]) -> bool:
    """Whether a state dict is of a `Labram` that takes raw EEG, by its keys."""
    return {THEIR_TIME, "patch_embed.temporal_conv.conv1.weight"} <= set(weights)


def window_seconds(weights: Mapping[str, Tensor], where: str | Path) -> int:
    """Length of the windows that a `Labram` takes. Raises InputError for a time embedding that no model has."""
    shape = tuple(weights[THEIR_TIME].shape)
    if len(shape) != 3 or shape[0] != 1 or not 2 <= shape[1] <= MAX_PATCHES + 1:
        raise InputError(
            f"{where}: {THEIR_TIME} is {shape}; allowed are (1, rows, width) with 2 to {MAX_PATCHES + 1} rows, for "
            f"windows of 1 to {MAX_PATCHES} seconds"
        )
    return int(shape[1]) - 1


def to_braindecode(weights: Mapping[str, Tensor], *, seconds: int) -> dict[str, Tensor]:
    """State dict of a `Labram` for windows of so many seconds from a classifier's.

    Rows of the time embedding beyond `seconds` + 1 are left out. Raises InputError for a table of other electrodes.
    """
    rows = weights["pos_embed"].shape[1] if "pos_embed" in weights else PUBLISHED_ELECTRODES + 1
    if rows != PUBLISHED_ELECTRODES + 1:
        raise InputError(
            f"the model's table has {rows - 1} electrodes, braindecode's Labram {PUBLISHED_ELECTRODES}: it cannot hold "
            "this model; use --to safetensors"
        )
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in RENAMED:
            key = key.replace(ours, theirs)
        renamed[key] = value
    time = renamed[THEIR_TIME]
    padded = torch.cat((time, torch.zeros_like(time[:, :1])), dim=1)  # 16 patches have a 17th row
    renamed[THEIR_TIME] = padded[:, : seconds + 1].contiguous()
    return renamed


def from_braindecode(weights: Mapping[str, Tensor], *, where: str | Path, rest: Any = None) -> dict[str, Tensor]:
    """State dict of the classifier from a `Labram`'s. Raises InputError for a time embedding that cannot be one.

    rest: rows of the time embedding, as lists of numbers, that the `Labram` has none of. Without them those rows are
    zero: windows longer than those that the `Labram` takes are embedded as if their later seconds had no place.
    """
    renamed = {}
    for key, value in weights.items():
        for ours, theirs in RENAMED:
            key = key.replace(theirs, ours)
        renamed[key] = value
    window_seconds(weights, where)
    time = renamed[TIME][:, :MAX_PATCHES]
    whole = time.new_zeros(1, MAX_PATCHES, time.shape[2])
    whole[:, : time.shape[1]] = time
    if rest:
        try:
            rows = torch.tensor(rest, dtype=time.dtype)
        except (RuntimeError, TypeError, ValueError, OverflowError):
            rows = time.new_empty(0)
        if rows.shape != whole[0, time.shape[1] :].shape:
            raise InputError(f"{where}: its entry {TIME} does not fit the time embedding: export it again")
        whole[0, time.shape[1] :] = rows
    renamed[TIME] = whole
    return renamed


def left_out(weights: Mapping[str, Tensor], *, seconds: int) -> list[list[float]]:
    """Rows of a classifier's time embedding that `to_braindecode` leaves out; numbers that give them back exactly."""
    return weights[TIME][0, seconds + 1 :].tolist()


def configuration(
    settings: Mapping[str, Any], size: Mapping[str, int], *, seconds: int, electrodes: Sequence[str]
) -> dict[str, Any]:
    """What `Labram.from_config` takes: the keyword arguments of its constructor.

    settings: of the classifier, as for timm's create_model; size: its width, depth and heads. `chs_info` holds the
    electrodes' names, which are also what the forward pass takes as `ch_names`.
    """
    return {
        "n_times": seconds * PATCH_SAMPLES,
        "n_outputs": settings["num_classes"],
        "chs_info": [{"ch_name": name, "kind": "eeg"} for name in electrodes],
        "sfreq": PATCH_SAMPLES,  # a patch is a second
        "patch_size": PATCH_SAMPLES,
        "embed_dim": size["width"],
        "conv_out_channels": size["width"] * 8 // PATCH_SAMPLES,  # the first convolution's stride is 8
        "num_layers": size["depth"],
        "num_heads": size["heads"],
        "qkv_bias": settings["qkv_bias"],
        # The value is that of untrained weights; what counts is whether there is a layer scale.
        "init_values": None if settings.get("init_values") == 0 else 0.1,
        "use_abs_pos_emb": settings["use_abs_pos_emb"],
        "use_mean_pooling": settings["use_mean_pooling"],
        "neural_tokenizer": True,
        "learned_patcher": False,
    }
