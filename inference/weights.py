"""Trained models from files: which model a file holds is read from its keys and shapes alone.

Files of every stage, of this code and of the released one, safetensors files that `conversion.py` wrote, and files of
braindecode's `Labram`. What keys and shapes cannot tell:

* The heads of a tokenizer, whose attention has no norm as wide as a head: those of its size in `modeling_vqnsp.SIZES`.
* The initial value of the layer scale, which is trained: only whether there is one counts.
* Names of classes, task, electrodes and length of the windows: what the file says besides, or nothing.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.models import create_model
from torch import Tensor, nn

import modeling_finetune
import modeling_pretrain
import modeling_vqnsp
from eeg_data.labelled_files import TASKS
from errors import InputError
from inference.braindecode_layout import TIME, from_braindecode, is_braindecode, window_seconds
from layers import check_merged, depth_of, load_strictly
from training import checkpoints

logger = logging.getLogger(__name__)

# Git's blob ids (SHA-1 of "blob", size and contents) of the files that the authors published.
PUBLISHED = {
    "221148b5af403e9178629bb61e94b2e7d89ef172": "labram-base.pth",
    "4ba4be5cc403143f8370bf9c57b6b10b4c2b3727": "vqnsp.pth",
}
PUBLISHED_MODELS = ("labram_base_patch200_1600_8k_vocab", "vqnsp_encoder_base_decoder_3x200x12")
SIZES = {
    "tokenizer": modeling_vqnsp.SIZES,
    "pretraining": modeling_pretrain.SIZES,
    "classifier": modeling_finetune.SIZES,
}
TOKENIZER = {"width": 200, "heads": 10}  # of all sizes: their table does not name them
DATA_ENTRIES = {"name": str, "task": str, "classes": list, "electrodes": list, "window_seconds": int}


@dataclass(frozen=True)
class Description:
    """What a file holds: model and settings from its keys and shapes, the rest where the file says it."""

    stage: str  # a key of checkpoints.STAGES
    model: str  # name of timm's registry
    settings: dict[str, Any]  # further keyword arguments of timm's create_model
    data_set: str = ""  # name of what a classifier was trained on
    task: str = ""  # binary, multiclass or regression
    classes: tuple[str, ...] = ()  # for regression the names of the outputs
    electrodes: tuple[str, ...] = ()  # of the training windows, in their order
    window_seconds: int = 0  # length of the training windows; 0: not known

    @property
    def size(self) -> dict[str, int]:
        """Width, depth and heads; of a tokenizer width, heads and the depths of encoder and decoder."""
        sizes = {name: size for table in SIZES.values() for name, size in table.items()}
        numbers = {**TOKENIZER, **sizes[self.model]}
        return {key: value for key, value in numbers.items() if key != "init_values"}

    @property
    def data(self) -> dict[str, Any]:
        """What it says of the data, as checkpoints hold it under `data_set`."""
        values = (self.data_set, self.task, list(self.classes), list(self.electrodes), self.window_seconds)
        return dict(zip(DATA_ENTRIES, values, strict=True))


def recognise(weights: Mapping[str, Tensor], where: str | Path) -> Description:
    """Which model a state dict in our layout belongs to, from keys and shapes alone.

    Raises InputError for one that is no model of any stage, lacks what tells it, or is of a size in no table.
    """
    check_merged(weights, where)
    checkpoints.check_stage(weights, checkpoints.STAGES, where)
    stage = checkpoints.stage_of(weights)
    if stage == "tokenizer":
        depths = {f"{part}_depth": depth_of(weights, f"{part}.") for part in ("encoder", "decoder")}
        width = _shape(weights, "encoder.cls_token", 3, where)[2]
        codes, code_dim = _shape(weights, "quantize.embedding.weight", 2, where)
        rows = _shape(weights, "encoder.pos_embed", 3, where)[1]
        settings = {"n_code": codes, "code_dim": code_dim, "num_electrodes": rows - 1}
        return Description(stage, _name(stage, {**depths, "width": width}, where), settings)
    if stage == "pretraining":
        name, settings = _trunk(weights, stage, "student.", where)
        settings["vocab_size"] = _shape(weights, "lm_head.weight", 2, where)[0]
        return Description(stage, name, settings)
    assert stage == "classifier", "check_stage lets no other pass"
    name, settings = _trunk(weights, stage, "", where)
    pooled = "fc_norm.weight" in weights
    if not pooled and "norm.weight" not in weights:
        raise InputError(f"{where} has no final norm (fc_norm or norm): it is cut short, or of another model")
    settings["num_classes"] = _shape(weights, "head.weight", 2, where)[0] if "head.weight" in weights else 0
    settings["use_mean_pooling"] = pooled
    settings["qkv_bias"] = "blocks.0.attn.q_bias" in weights
    return Description(stage, name, settings)


def _trunk(weights: Mapping[str, Tensor], stage: str, prefix: str, where: str | Path) -> tuple[str, dict[str, Any]]:
    """Name and settings of a transformer whose keys begin with `prefix`."""
    width = _shape(weights, f"{prefix}cls_token", 3, where)[2]
    head = _shape(weights, f"{prefix}blocks.0.attn.q_norm.weight", 1, where)[0]
    name = _name(stage, {"width": width, "depth": depth_of(weights, prefix), "heads": width // head}, where)
    settings: dict[str, Any] = {"use_abs_pos_emb": f"{prefix}pos_embed" in weights}
    if settings["use_abs_pos_emb"]:
        settings["num_electrodes"] = _shape(weights, f"{prefix}pos_embed", 3, where)[1] - 1
    if f"{prefix}blocks.0.gamma_1" not in weights:
        settings["init_values"] = 0.0
    return name, settings


def _shape(weights: Mapping[str, Tensor], key: str, dimensions: int, where: str | Path) -> tuple[int, ...]:
    """Shape of a tensor that must be there, without zeros in it."""
    if key not in weights:
        raise InputError(f"{where} lacks {key}: it is cut short, or of another model")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise InputError(f"{where}: {key} is {shape}, which no LaBraM model has ({dimensions} dimensions, none empty)")
    return shape


def _name(stage: str, found: Mapping[str, int], where: str | Path) -> str:
    """The model of a stage that has these numbers. Raises InputError, with those that are known, if there is none."""
    sizes = {name: {**TOKENIZER, **size} for name, size in SIZES[stage].items()}
    for name, size in sizes.items():
        if all(size[what] == number for what, number in found.items()):
            return name
    known = "; ".join(f"{name}: {', '.join(str(size[what]) for what in found)}" for name, size in sizes.items())
    raise InputError(
        f"{where} holds {checkpoints.STAGES[stage]} of a size that is not known: "
        f"{', '.join(f'{what} {number}' for what, number in found.items())}; known are ({', '.join(found)}) {known}; "
        "add a row to SIZES of the model's file"
    )


def read(path: str | Path, *, averaged: bool = False) -> tuple[dict[str, Tensor], Description]:
    """The weights of a file, in our layout, and what they are. averaged: those of --model_ema.

    Raises InputError if the file is damaged, holds code, or is no model of any stage.
    """
    state = checkpoints.read(path)
    weights = checkpoints.averaged_state(state, path) if averaged else checkpoints.model_state(state, path)
    seconds = 0
    if is_braindecode(weights):
        seconds = window_seconds(weights, path)
        weights = from_braindecode(weights, where=path, rest=_said(state, TIME, path))
    found = replace(recognise(weights, path), window_seconds=seconds)
    if found.model in PUBLISHED_MODELS and (name := verify_published(path)):
        logger.info("%s is the published %s.", path, name)
    return weights, _with_data(found, _said(state, "data_set", path), path)


def _said(state: Mapping[str, Any], entry: str, where: str | Path) -> Any:
    """What a checkpoint says under a name; a safetensors file says it as JSON text."""
    text = state.get("metadata", {}).get(entry) if isinstance(state.get("metadata"), dict) else None
    if not isinstance(text, str):
        return state.get(entry)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its text {entry} is no JSON: export it again") from error


def _with_data(found: Description, data: Any, where: str | Path) -> Description:
    """A description with what the file says of its data. Raises InputError where that cannot be."""
    if data is None:
        return found
    entries = data if isinstance(data, dict) else {}
    names = [name for key in ("classes", "electrodes") for name in (entries.get(key) or ())]
    if (
        not all(isinstance(entries.get(key), kind) for key, kind in DATA_ENTRIES.items())
        or not all(isinstance(name, str) for name in names)
        or entries["task"] not in ("", *TASKS)
        or entries["window_seconds"] < 0
    ):
        raise InputError(f"{where}: its entry data_set is not what a checkpoint says of its data: make the file again")
    outputs = 1 if entries["task"] == "binary" else len(entries["classes"])
    if entries["classes"] and found.settings.get("num_classes") not in (0, None, outputs):
        raise InputError(
            f"{where}: its head has {found.settings['num_classes']} outputs, its entry data_set "
            f"{len(entries['classes'])} classes of a {entries['task']} task: make the file again"
        )
    return replace(
        found,
        data_set=entries["name"],
        task=entries["task"],
        classes=tuple(entries["classes"]),
        electrodes=tuple(entries["electrodes"]),
        window_seconds=entries["window_seconds"],
    )


def load(
    path: str | Path,
    *,
    stages: Iterable[str] = tuple(checkpoints.STAGES),
    as_features: bool = False,
    averaged: bool = False,
) -> tuple[nn.Module, Description]:
    """Build the model that a file holds, with its weights: on the CPU, in float32 and evaluation mode.

    stages: those that will do (keys of checkpoints.STAGES). as_features: the trunk alone, see `features`. averaged:
    the averaged weights of --model_ema. Raises InputError for any other file, see `read`.
    """
    weights, found = read(path, averaged=averaged)
    checkpoints.check_stage(weights, stages, path)
    return features(weights, found, path) if as_features else build(weights, found, path)


def build(weights: dict[str, Tensor], found: Description, where: str | Path) -> tuple[nn.Module, Description]:
    """The model as it was trained. weights, found: what `read` returned. Raises InputError for keys that do not fit."""
    model = create_model(found.model, **found.settings)
    load_strictly(model, weights, where=f"{where} into {found.model}")
    return model.eval(), found


def features(weights: dict[str, Tensor], found: Description, where: str | Path) -> tuple[nn.Module, Description]:
    """The classifier's trunk without a head, whose output are features: of a masked model, or of a classifier.

    The final norm is the one that was trained: stage 2's `norm` takes the place of `fc_norm`, so that patch tokens
    are what pre-training's head sees and a window is the norm of their mean; a classifier keeps its own. CLS gets row
    0 of the electrode embedding, as in fine-tuning, where stage 2 itself gives it the first electrode's row.
    Returns the description with the stage of the file, and model and settings of the trunk.
    """
    checkpoints.check_stage(weights, ["pretraining", "classifier"], where)
    model, settings = found.model, {**found.settings, "num_classes": 0}
    if found.stage == "pretraining":
        model = _name("classifier", found.size, where)
        del settings["vocab_size"]
        settings |= {"use_mean_pooling": True, "qkv_bias": False}
        weights = {key.replace("student.norm.", "student.fc_norm."): value for key, value in weights.items()}
    trunk: Any = create_model(model, **settings)
    report = modeling_finetune.load_pretrained(trunk, weights, where=f"{where} into {model}")
    if report.missing:
        raise InputError(f"{where} lacks {report.missing[0]} ({len(report.missing)} in all): it is cut short")
    logger.info("%s: %s", where, report)
    return trunk.eval(), replace(found, model=model, settings=settings)


def verify_published(path: str | Path) -> str | None:
    """Which of the authors' published files this is, to the last bit; None for any other file.

    By its Git blob id, as `git hash-object FILE` gives it. Raises InputError if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): correct the path") from error
    return PUBLISHED.get(digest.hexdigest())
