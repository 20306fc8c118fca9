"""Trained models from files and into files of other layouts.

    from inference import weights

    model, description = weights.load("checkpoints/labram-base.pth")
    weights.export("checkpoints/labram-base.pth", to="braindecode", output="folder/model.safetensors")

Models are recognised by keys and shapes alone: files of every stage, of this code and of the released one, safetensors
files, and files of braindecode's `Labram`. What keys and shapes do not show: the heads of a tokenizer (those in
`modeling_vqnsp.SIZES`), the initial layer scale (only whether there is one), names of classes, task, electrodes and
length of the windows (what the file says, or nothing).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.models import create_model
from torch import Tensor, nn

import modeling_finetune
import modeling_pretrain
import modeling_vqnsp
from eeg_data.labelled_files import TASKS, slug_of
from eeg_data.pretraining_files import SAMPLING_RATE, default_window
from electrodes import ELECTRODES, PUBLISHED_ELECTRODES, embedding_rows
from errors import InputError, UsageError
from files import check_file, write_json, written_aside
from layers import MAX_PATCHES, PATCH_SAMPLES, load_strictly
from modeling_finetune import check_merged, depth_of
from training import checkpoints, hub

logger = logging.getLogger(__name__)

SIZES = {
    "tokenizer": {name: {"width": 200, **depths} for name, depths in modeling_vqnsp.SIZES.items()},
    "pretraining": modeling_pretrain.SIZES,
    "classifier": modeling_finetune.SIZES,
}

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

FORMATS = ("braindecode", "safetensors")
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"  # names that Hugging Face's loaders read in a folder


@dataclass(frozen=True)
class Description:
    """The model in a file: name and settings from keys and shapes, the rest if the file says it."""

    stage: str  # a key of checkpoints.STAGES
    model: str  # name in timm's registry
    size: dict[str, int]  # width, depth and heads; of a tokenizer width and the depths of encoder and decoder
    settings: dict[str, Any]  # other keyword arguments of timm's create_model
    data_set: str = ""  # name of a classifier's data set
    task: str = ""  # binary, multiclass or regression
    classes: tuple[str, ...] = ()  # for regression the names of the outputs
    electrodes: tuple[str, ...] = ()  # of the training windows, in their order
    window_seconds: int = 0  # length of the training windows; 0: not known
    transductive: dict[str, Any] = field(default_factory=dict)  # how a classifier uses unlabelled windows: its flags

    @property
    def data(self) -> dict[str, Any]:
        """What checkpoints hold under `data_set`."""
        data = {
            "name": self.data_set,
            "task": self.task,
            "classes": list(self.classes),
            "electrodes": list(self.electrodes),
            "window_seconds": self.window_seconds,
        }
        return data | ({"transductive": self.transductive} if self.transductive else {})


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
    return Description(stage, _name(stage, size, where), size, settings)


def _tokenizer_size(weights: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, Any]]:
    """Find the size in `SIZES` and the other settings of a tokenizer."""
    size = {f"{part}_depth": depth_of(weights, f"{part}.") for part in ("encoder", "decoder")}
    _, _, size["width"] = weights["encoder.cls_token"].shape
    codes, code_dim = weights["quantize.embedding.weight"].shape
    rows = weights["encoder.pos_embed"].shape[1]
    kind = modeling_vqnsp.phase_loss_of(weights)
    sincos = {} if kind == "angle" else {"phase_loss": kind}
    return size, {"n_code": codes, "code_dim": code_dim, "num_electrodes": rows - 1, **sincos}


def _trunk_size(weights: Mapping[str, Tensor], stage: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Find width, depth and heads, and the other settings, of a masked model or a classifier."""
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
        settings |= _pooling(weights, width)
        settings["qkv_bias"] = "blocks.0.attn.q_bias" in weights
    return size, settings


def _pooling(weights: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    """Find the settings of a classifier's pooling. With windows of 1 s, `flatten` and `electrodes` are the same."""
    settings: dict[str, Any] = {"use_mean_pooling": "fc_norm.weight" in weights}
    if "head.query" in weights:
        settings["pool"] = "attention"
    if "head.rows" in weights:
        (electrodes,) = weights["head.rows"].shape
        patches, rest = divmod(weights["head.weight"].shape[1], electrodes * width)
        pool = "spectrum" if rest else "flatten" if patches > 1 else "electrodes"
        settings |= {"pool": pool, "electrodes": electrodes, "seconds": max(patches, 1)}
    return settings


def _name(stage: str, size: Mapping[str, int], where: str | Path) -> str:
    """Name of the stage's model of this size. Raises InputError if there is none."""
    for name, numbers in SIZES[stage].items():
        if size.items() <= numbers.items():
            return name
    given = ", ".join(f"{key} {number}" for key, number in size.items())
    raise InputError(
        f"{where} holds {checkpoints.STAGES[stage]} of an unknown size ({given}); known are {', '.join(SIZES[stage])}: "
        "add a row to SIZES of the model's file"
    )


# Read and build


def load(
    path: str | Path, *, as_features: bool = False, averaged: bool = False, task: str | None = None
) -> tuple[nn.Module, Description]:
    """Build the model of a file, with its weights: on the CPU, in float32 and evaluation mode.

    as_features: build the trunk of a classifier, without a head, from a masked model; other models stay as they are.
    Its final norm is the trained one: stage 2's `norm` takes the place of `fc_norm`, so patch tokens are the input of
    pre-training's head, and a window is the norm of their mean. CLS gets row 0 of the electrode embedding, as in
    fine-tuning; stage 2 itself gives it the first electrode's row. averaged: take the weights of --model_ema.
    task: the data set whose classifier to take, of a file that holds several.
    Raises InputError if the file is damaged, holds code, or is no model of any stage.
    """
    state = checkpoints.read(path)
    weights = checkpoints.averaged_state(state, path) if averaged else checkpoints.model_state(state, path)
    weights, head = take_head(weights, task, path)
    seconds = 0
    if {THEIR_TIME, "patch_embed.temporal_conv.conv1.weight"} <= weights.keys():
        weights, seconds = _from_braindecode(weights, path, rest=checkpoints.entry(state, TIME))
    description = _with_data(replace(recognise(weights, path), window_seconds=seconds), state, path, head)
    if as_features and description.stage == "pretraining":
        return _trunk(weights, description, path)
    model = create_model(description.model, **description.settings)
    load_strictly(model, weights, where=f"{path} into {description.model}")
    return model.eval(), description


def take_head(weights: dict[str, Tensor], task: str | None, where: str | Path) -> tuple[dict[str, Tensor], str]:
    """Return the classifier of one data set of several, with its head as the only one, and the name of that head.

    Other weights stay as they are. Raises UsageError if `task` names none of several data sets, or one of a single.
    """
    heads = list(dict.fromkeys(key.split(".")[1] for key in weights if key.startswith("heads.")))
    if not heads and task is None:
        return weights, ""
    chosen = slug_of(task or "")
    if task is None or chosen not in heads:
        several = f"has a head for each of {', '.join(heads)}: choose one with --task NAME"
        given = f"--task {task}: " if task else ""
        raise UsageError(f"{given}{where} {several if heads else 'is not of several data sets: leave the flag out'}")
    own = {key.replace(f"heads.{chosen}.", "head."): value for key, value in weights.items()}
    return {key: value for key, value in own.items() if not key.startswith("heads.")}, chosen


def _trunk(weights: dict[str, Tensor], description: Description, where: str | Path) -> tuple[nn.Module, Description]:
    """Build the trunk of a masked model. The description keeps its stage and gets model and settings of the trunk."""
    model = _name("classifier", description.size, where)
    settings = description.settings | {"num_classes": 0, "use_mean_pooling": True, "qkv_bias": False}
    del settings["vocab_size"]
    trunk: Any = create_model(model, **settings)
    renamed = {key.replace("student.norm.", "student.fc_norm."): value for key, value in weights.items()}
    missing = modeling_finetune.load_pretrained(trunk, renamed, where=f"{where} into {model}")["missing"]
    if missing:
        raise InputError(f"{where} lacks {missing[0]} ({len(missing)} in all): it is cut short")
    return trunk.eval(), replace(description, model=model, settings=settings)


def _with_data(description: Description, state: Mapping[str, Any], where: str | Path, head: str) -> Description:
    """Add a file's entry on its data, of several the head's. Raises InputError if it is damaged or does not fit."""
    try:
        if (data := checkpoints.entry(state, "data_set")) is None:
            return description
        data = data[head] if head else data
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
            transductive=dict(data.get("transductive", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its entry data_set is damaged or does not fit: make the file again") from error


# braindecode's layout


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


def _to_braindecode(weights: Mapping[str, Tensor], seconds: int) -> dict[str, Tensor]:
    """State dict of a `Labram` for windows of so many seconds; later rows of the time embedding are left out."""
    rows = weights["pos_embed"].shape[1] if "pos_embed" in weights else PUBLISHED_ELECTRODES + 1
    if rows != PUBLISHED_ELECTRODES + 1:
        raise InputError(
            f"the model's table has {rows - 1} electrodes, braindecode's Labram {PUBLISHED_ELECTRODES}: it cannot hold "
            "this model; use --to safetensors"
        )
    renamed = dict(weights)
    for ours, theirs in RENAMED:
        renamed = {key.replace(ours, theirs): value for key, value in renamed.items()}
    time = renamed[THEIR_TIME]
    padded = torch.cat((time, torch.zeros_like(time[:, :1])), dim=1)  # 16 patches have a 17th row
    return {**renamed, THEIR_TIME: padded[:, : seconds + 1]}


def _braindecode_config(description: Description) -> dict[str, Any]:
    """Keyword arguments of `Labram`, as `Labram.from_config` takes them."""
    settings, size = description.settings, description.size
    return {
        "n_times": description.window_seconds * PATCH_SAMPLES,
        "n_outputs": settings["num_classes"],
        "chs_info": [{"ch_name": name, "kind": "eeg"} for name in description.electrodes],
        "sfreq": SAMPLING_RATE,
        "patch_size": PATCH_SAMPLES,
        "embed_dim": size["width"],
        "conv_out_channels": size["width"] * 8 // PATCH_SAMPLES,  # the first convolution's stride is 8
        "num_layers": size["depth"],
        "num_heads": size["heads"],
        "qkv_bias": settings["qkv_bias"],
        "init_values": None if settings.get("init_values") == 0 else 0.1,  # only whether there is a layer scale counts
        "use_abs_pos_emb": settings["use_abs_pos_emb"],
        "use_mean_pooling": settings["use_mean_pooling"],
        "neural_tokenizer": True,
        "learned_patcher": False,
    }


# Export


def export(
    path: str | Path,
    *,
    to: str,
    output: str | Path,
    electrodes: Sequence[str] | None = None,
    seconds: int | None = None,
    averaged: bool = False,
    task: str | None = None,
) -> tuple[Path, Path]:
    """Write the model of a checkpoint as safetensors, and a JSON file that says what builds it; return both paths.

    to: one of FORMATS. The JSON holds what braindecode's `Labram.from_config` takes, else name and settings for timm's
    create_model. electrodes, seconds: of the windows of braindecode's model (default: those of the training, else all
    128 and floor(256 / electrodes), at most 16). A masked model becomes for braindecode a trunk, see `load`.
    averaged, task: as for `load`. Raises UsageError for values that are not allowed, InputError for a file
    without such a model.
    """
    path, output = Path(path), Path(output)
    if to not in FORMATS:
        raise UsageError(f"--to {to}: allowed are {', '.join(FORMATS)}")
    if to != "braindecode" and (electrodes is not None or seconds is not None):
        raise UsageError("--electrodes and --time_window belong to --to braindecode: leave them out")
    if seconds is not None and not 1 <= seconds <= MAX_PATCHES:
        raise UsageError(f"--time_window {seconds}: allowed are whole seconds from 1 to {MAX_PATCHES}")
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output}: the name must end with .safetensors")
    if output.exists() and path.exists() and output.samefile(path):
        raise UsageError(f"--output {output} is the checkpoint itself: choose another name")
    check_file(output)
    model, description = load(path, as_features=to == "braindecode", averaged=averaged, task=task)
    state, texts, settings = model.state_dict(), {"format": "pt"}, asdict(description)
    del settings["size"]  # the model's name says it
    if to == "braindecode":
        checkpoints.check_stage(state, ["pretraining", "classifier"], f"--to braindecode: {path}")
        if "pool" in description.settings:
            pool = description.settings["pool"]
            raise UsageError(f"--to braindecode: a Labram cannot pool by {pool} as {path} does: use --to safetensors")
        names = electrodes or description.electrodes or ELECTRODES[:PUBLISHED_ELECTRODES]
        names = tuple(ELECTRODES[row - 1] for row in embedding_rows(names, where=str(path))[1:])  # checks the names
        seconds = seconds or description.window_seconds or default_window(len(names)) // PATCH_SAMPLES
        logger.info("%s: windows of %d electrodes and %d s (--electrodes, --time_window).", path, len(names), seconds)
        description = replace(description, electrodes=names, window_seconds=seconds)
        texts[TIME] = json.dumps(state[TIME][0, seconds + 1 :].tolist())  # rows that a Labram has not
        if description.transductive:
            flags = " ".join(f"--{name} {value}" for name, value in description.transductive.items() if value)
            logger.warning("%s was trained with %s: a Labram does not do this, and its outputs are wrong.", path, flags)
        state, settings = _to_braindecode(state, seconds), _braindecode_config(description)
    texts |= hub.described(path)
    texts["data_set"] = json.dumps(description.data)
    config = output.with_name(HUB_CONFIG) if output.name == HUB_WEIGHTS else output.with_suffix(".json")
    with written_aside(output) as part:
        part.write_bytes(_safetensors(state, texts))
    write_json(config, settings)
    logger.info("Wrote %s (%s, %d tensors) and %s.", output, description.model, len(state), config)
    return output, config


def _safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Contents of a safetensors file, the same at every call: the library writes its metadata in any order."""
    content = save({key: value.contiguous() for key, value in state.items()}, dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")  # of the numbers, after the header and its length
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(metadata)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]
