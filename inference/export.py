"""Trained models into files of other layouts. `weights.load` reads them back.

    from inference.export import export

    export("checkpoints/labram-base.pth", to="braindecode", output="folder/model.safetensors")

The weights go into a safetensors file: numbers and texts, nothing that could run.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from eeg_data.pretraining_files import SAMPLING_RATE, default_window
from electrodes import ELECTRODES, PUBLISHED_ELECTRODES, embedding_rows
from errors import InputError, UsageError
from files import check_writable, written_aside
from inference.weights import RENAMED, THEIR_TIME, TIME, Description, load
from layers import MAX_PATCHES, PATCH_SAMPLES
from training.checkpoints import check_stage

logger = logging.getLogger(__name__)

FORMATS = ("braindecode", "safetensors")
SUFFIX = ".safetensors"
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"  # names that Hugging Face's loaders read in a folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `run_inference.py export`, but for the checkpoint's."""
    add = parser.add_argument
    add("--to", choices=FORMATS, required=True, help="safetensors: any stage; braindecode: all but a tokenizer")
    add("--output", type=Path, required=True, metavar="FILE", help="ends with .safetensors; a .json goes beside it")
    window = "of braindecode's windows (default: the training's, else"
    add("--electrodes", nargs="+", metavar="NAME", help=f"{window} all 128)")
    add("--time_window", type=int, metavar="SECONDS", help=f"{window} floor(256 / electrodes))")


def export(
    path: str | Path,
    *,
    to: str,
    output: str | Path,
    electrodes: Sequence[str] | None = None,
    seconds: int | None = None,
    averaged: bool = False,
) -> tuple[Path, Path]:
    """Write the model of a checkpoint as safetensors, and a JSON file that says what builds it; return both paths.

    to: one of FORMATS. The JSON holds what braindecode's `Labram.from_config` takes, else name and settings for timm's
    create_model. electrodes, seconds: of the windows of braindecode's model (default: those of the training, else all
    128 and floor(256 / electrodes), at most 16). A masked model becomes for braindecode a trunk, see `weights.load`.
    averaged: take the weights of --model_ema. Raises UsageError for values that are not allowed, InputError for a file
    without such a model.
    """
    path, output = Path(path), Path(output)
    if to not in FORMATS:
        raise UsageError(f"--to {to}: allowed are {', '.join(FORMATS)}")
    if to != "braindecode" and (electrodes is not None or seconds is not None):
        raise UsageError("--electrodes and --time_window belong to --to braindecode: leave them out")
    if seconds is not None and not 1 <= seconds <= MAX_PATCHES:
        raise UsageError(f"--time_window {seconds}: allowed are whole seconds from 1 to {MAX_PATCHES}")
    config = _check_output(path, output)
    model, description = load(path, as_features=to == "braindecode", averaged=averaged)
    state, texts, settings = model.state_dict(), {}, dataclasses.asdict(description)
    if to == "braindecode":
        check_stage(state, ["classifier"], f"--to braindecode: {path}")
        description = _with_windows(description, electrodes, seconds, path)
        length = description.window_seconds
        texts[TIME] = json.dumps(state[TIME][0, length + 1 :].tolist())  # rows that a Labram has not
        state, settings = _to_braindecode(state, length), _braindecode_config(description)
    texts["data_set"] = json.dumps(description.data)
    with written_aside(config) as part:
        part.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with written_aside(output) as aside:
            aside.write_bytes(_safetensors(state, {"format": "pt", **texts}))
    logger.info("Wrote %s (%s, %d tensors) and %s.", output, description.model, len(state), config)
    return output, config


def _check_output(path: Path, output: Path) -> Path:
    """Path of the JSON file. Raises UsageError for a place that cannot be written, or that is the checkpoint itself."""
    if output.suffix != SUFFIX:
        raise UsageError(f"--output {output}: the name must end with {SUFFIX}")
    if output.exists() and path.exists() and output.samefile(path):
        raise UsageError(f"--output {output} is the checkpoint itself: choose another name")
    check_writable(output.parent)
    return output.with_name(HUB_CONFIG) if output.name == HUB_WEIGHTS else output.with_suffix(".json")


def _with_windows(
    description: Description, electrodes: Sequence[str] | None, seconds: int | None, where: Path
) -> Description:
    """Add the windows of braindecode's model."""
    names = tuple(electrodes or description.electrodes or ELECTRODES[:PUBLISHED_ELECTRODES])
    names = tuple(ELECTRODES[row - 1] for row in embedding_rows(names, where=str(where))[1:])  # also checks the names
    if seconds is None:
        seconds = description.window_seconds or default_window(len(names)) // PATCH_SAMPLES
    logger.info("%s: windows of %d electrodes and %d s (--electrodes, --time_window).", where, len(names), seconds)
    return replace(description, electrodes=names, window_seconds=seconds)


def _safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Contents of a safetensors file, the same at every call: the library writes its metadata in any order."""
    content = save({key: value.contiguous() for key, value in state.items()}, dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")  # of the numbers, after the header and its length
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(metadata)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


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
