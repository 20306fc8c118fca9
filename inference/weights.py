"""Trained models from files, recognised by their keys and shapes alone.

    from inference import weights

    model, description = weights.load("checkpoints/labram-base.pth")

Files of every stage, of this code and of the released one, safetensors files, and files of braindecode's `Labram`. What
keys and shapes do not show: the heads of a tokenizer (those in `modeling_vqnsp.SIZES`), the initial layer scale (only
whether there is one), names of classes, task, electrodes and length of the windows (what the file says, or nothing).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import create_model
from torch import Tensor, nn

import modeling_finetune
import modeling_pretrain
import modeling_vqnsp
from eeg_data.labelled_files import TASKS
from errors import InputError
from layers import MAX_PATCHES, load_strictly
from modeling_finetune import check_merged, depth_of
from training import checkpoints

logger = logging.getLogger(__name__)

SIZES = {
    "tokenizer": modeling_vqnsp.SIZES,
    "pretraining": modeling_pretrain.SIZES,
    "classifier": modeling_finetune.SIZES,
}
TOKENIZER = {"width": 200, "heads": 10}  # of all sizes: their table does not name them

# braindecode's `Labram` (1.8) is the same network under other names. It cuts windows into patches itself, so it takes
# windows of one length; its time embedding has one row more than these have patches, and the last is never used.
RENAMED = (
    ("pos_embed", "position_embedding"),
    ("time_embed", "temporal_embedding"),
    ("patch_embed.", "patch_embed.temporal_conv."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.2."),
    ("head.", "final_layer."),
)  # parts of keys: ours, braindecode's
TIME, THEIR_TIME = RENAMED[1]


@dataclass(frozen=True)
class Description:
    """The model in a file: name and settings from keys and shapes, the rest if the file says it."""

    stage: str  # a key of checkpoints.STAGES
    model: str  # name in timm's registry
    settings: dict[str, Any]  # further keyword arguments of timm's create_model
    data_set: str = ""  # name of a classifier's data set
    task: str = ""  # binary, multiclass or regression
    classes: tuple[str, ...] = ()  # for regression the names of the outputs
    electrodes: tuple[str, ...] = ()  # of the training windows, in their order
    window_seconds: int = 0  # length of the training windows; 0: not known

    @property
    def size(self) -> dict[str, int]:
        """Width, depth and heads; of a tokenizer width, heads and the depths of encoder and decoder."""
        sizes = {name: size for table in SIZES.values() for name, size in table.items()}
        return {key: value for key, value in {**TOKENIZER, **sizes[self.model]}.items() if key != "init_values"}

    @property
    def data(self) -> dict[str, Any]:
        """What checkpoints hold under `data_set`."""
        return {
            "name": self.data_set,
            "task": self.task,
            "classes": list(self.classes),
            "electrodes": list(self.electrodes),
            "window_seconds": self.window_seconds,
        }


# Recognise


def recognise(weights: Mapping[str, Tensor], where: str | Path) -> Description:
    """Find the model of a state dict in our layout from keys and shapes alone.

    Raises InputError for one that is no model of any stage, lacks a needed key, or has a size in no table.
    """
    check_merged(weights, where)
    checkpoints.check_stage(weights, checkpoints.STAGES, where)
    stage = str(checkpoints.stage_of(weights))
    try:
        size, settings = _tokenizer_size(weights) if stage == "tokenizer" else _trunk_size(weights, stage)
    except KeyError as error:
        raise InputError(f"{where} lacks {error.args[0]}: it is cut short, or of another model") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{where}: a tensor has a shape that no LaBraM model has: it is of another model") from error
    return Description(stage, _name(stage, size, where), settings)


def _tokenizer_size(weights: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, Any]]:
    """Size in `modeling_vqnsp.SIZES` and further settings of a tokenizer."""
    size = {f"{part}_depth": depth_of(weights, f"{part}.") for part in ("encoder", "decoder")}
    _, _, size["width"] = weights["encoder.cls_token"].shape
    codes, code_dim = weights["quantize.embedding.weight"].shape
    rows = weights["encoder.pos_embed"].shape[1]
    return size, {"n_code": codes, "code_dim": code_dim, "num_electrodes": rows - 1}


def _trunk_size(weights: Mapping[str, Tensor], stage: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Width, depth and heads, and further settings, of a masked model or a classifier."""
    prefix = "student." if stage == "pretraining" else ""
    _, _, width = weights[f"{prefix}cls_token"].shape
    (head,) = weights[f"{prefix}blocks.0.attn.q_norm.weight"].shape
    size = {"width": width, "depth": depth_of(weights, prefix), "heads": width // head}
    settings: dict[str, Any] = {"use_abs_pos_emb": f"{prefix}pos_embed" in weights}
    if settings["use_abs_pos_emb"]:
        settings["num_electrodes"] = weights[f"{prefix}pos_embed"].shape[1] - 1
    if f"{prefix}blocks.0.gamma_1" not in weights:
        settings["init_values"] = 0.0
    if stage == "pretraining":
        settings["vocab_size"] = weights["lm_head.weight"].shape[0]
    else:
        settings["num_classes"] = weights["head.weight"].shape[0] if "head.weight" in weights else 0
        settings["use_mean_pooling"] = "fc_norm.weight" in weights
        settings["qkv_bias"] = "blocks.0.attn.q_bias" in weights
    return size, settings


def _name(stage: str, size: Mapping[str, int], where: str | Path) -> str:
    """Name of the stage's model of this size. Raises InputError, with the known sizes, if there is none."""
    sizes = {name: {**TOKENIZER, **numbers} for name, numbers in SIZES[stage].items()}
    for name, numbers in sizes.items():
        if size.items() <= numbers.items():
            return name
    known = "; ".join(f"{name}: {', '.join(str(numbers[key]) for key in size)}" for name, numbers in sizes.items())
    given = ", ".join(f"{key} {number}" for key, number in size.items())
    raise InputError(
        f"{where} holds {checkpoints.STAGES[stage]} of an unknown size: {given}; known are "
        f"({', '.join(size)}) {known}; add a row to SIZES of the model's file"
    )


# Read and build


def load(path: str | Path, *, as_features: bool = False, averaged: bool = False) -> tuple[nn.Module, Description]:
    """Build the model of a file, with its weights: on the CPU, in float32 and evaluation mode.

    as_features: build the trunk of a classifier, without a head, from a masked model; other models stay as they are.
    Its final norm is the trained one: stage 2's `norm` takes the place of `fc_norm`, so patch tokens are the input of
    pre-training's head, and a window is the norm of their mean. CLS gets row 0 of the electrode embedding, as in
    fine-tuning; stage 2 itself gives it the first electrode's row. averaged: take the weights of --model_ema.
    Raises InputError if the file is damaged, holds code, or is no model of any stage.
    """
    state = checkpoints.read(path)
    weights = checkpoints.averaged_state(state, path) if averaged else checkpoints.model_state(state, path)
    seconds = 0
    if {THEIR_TIME, "patch_embed.temporal_conv.conv1.weight"} <= weights.keys():
        weights, seconds = _from_braindecode(weights, path, rest=_entry(state, TIME))
    description = _with_data(replace(recognise(weights, path), window_seconds=seconds), state, path)
    if as_features and description.stage == "pretraining":
        return _trunk(weights, description, path)
    model = create_model(description.model, **description.settings)
    load_strictly(model, weights, where=f"{path} into {description.model}")
    return model.eval(), description


def _trunk(weights: dict[str, Tensor], description: Description, where: str | Path) -> tuple[nn.Module, Description]:
    """Build the trunk of a masked model. The description keeps its stage and gets model and settings of the trunk."""
    model = _name("classifier", description.size, where)
    settings = description.settings | {"num_classes": 0, "use_mean_pooling": True, "qkv_bias": False}
    del settings["vocab_size"]
    trunk: Any = create_model(model, **settings)
    renamed = {key.replace("student.norm.", "student.fc_norm."): value for key, value in weights.items()}
    report = modeling_finetune.load_pretrained(trunk, renamed, where=f"{where} into {model}")
    if report.missing:
        raise InputError(f"{where} lacks {report.missing[0]} ({len(report.missing)} in all): it is cut short")
    logger.info("%s: %s", where, report)
    return trunk.eval(), replace(description, model=model, settings=settings)


def _entry(state: Mapping[str, Any], name: str) -> Any:
    """An entry of a checkpoint; a safetensors file holds it as JSON text."""
    texts = state.get("metadata") or {}
    return json.loads(texts[name]) if name in texts else state.get(name)


def _with_data(description: Description, state: Mapping[str, Any], where: str | Path) -> Description:
    """Add a file's entry on its data. Raises InputError if it is not what a checkpoint holds, or does not fit."""
    try:
        if (data := _entry(state, "data_set")) is None:
            return description
        task, classes, seconds = data["task"], tuple(data["classes"]), int(data["window_seconds"])
        outputs = 1 if task == "binary" else len(classes)
        if task not in ("", *TASKS) or (classes and description.settings.get("num_classes") not in (0, None, outputs)):
            raise ValueError(task)
        return replace(
            description,
            data_set=data["name"],
            task=task,
            classes=classes,
            electrodes=tuple(data["electrodes"]),
            window_seconds=seconds,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its entry data_set is damaged or does not fit: make the file again") from error


def _from_braindecode(weights: Mapping[str, Tensor], where: str | Path, rest: Any) -> tuple[dict[str, Tensor], int]:
    """State dict of the classifier from a `Labram`'s, and the length of its windows in seconds.

    rest: the later rows of the time embedding, as an export of ours holds them. Without them they are zero: the later
    seconds of longer windows get no position. Raises InputError if they do not fit.
    """
    renamed = dict(weights)
    for ours, theirs in RENAMED:
        renamed = {key.replace(theirs, ours): value for key, value in renamed.items()}
    given = renamed[TIME]  # (1, seconds + 1, width)
    if given.ndim != 3 or not 2 <= given.shape[1] <= MAX_PATCHES + 1:
        raise InputError(
            f"{where}: {THEIR_TIME} is {tuple(given.shape)}; expected are (1, rows, width) with 2 to {MAX_PATCHES + 1} "
            f"rows: windows of 1 to {MAX_PATCHES} s"
        )
    table = given.new_zeros((1, MAX_PATCHES, given.shape[2]))
    table[:, : given.shape[1]] = given[:, :MAX_PATCHES]
    if rest:
        table[0, given.shape[1] :] = torch.tensor(rest)
    return {**renamed, TIME: table}, given.shape[1] - 1
