"""Trained models to files of other formats: safetensors, and what braindecode's `Labram` reads. Back: `weights.load`.

Both are safetensors files: numbers and texts, nothing that could run. Beside each stands a JSON file that says what
builds the model: for braindecode what `Labram.from_config` takes, else name and settings for timm's create_model.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from eeg_data.pretraining_files import default_window
from electrodes import ELECTRODES, PUBLISHED_ELECTRODES, embedding_rows
from errors import UsageError
from files import check_writable, written_aside
from inference import weights
from inference.braindecode_layout import TIME, configuration, left_out, to_braindecode
from layers import MAX_PATCHES, PATCH_SAMPLES
from training import checkpoints
from training.downloads import checkpoint_place, fetched

logger = logging.getLogger(__name__)

FORMATS = ("braindecode", "safetensors")
SUFFIX = ".safetensors"
# Names that Hugging Face's loaders look for in a folder: `Labram.from_pretrained(FOLDER)` reads them.
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the export."""
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_place,
        required=True,
        metavar="FILE",
        help="a trained model of any stage; a path, or a URL that ends with #sha256=DIGEST",
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        required=True,
        help="braindecode: a classifier or masked model for its Labram; safetensors: any stage, as it is",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"ends with {SUFFIX}; a JSON file of that name goes beside it ({HUB_CONFIG} beside {HUB_WEIGHTS})",
    )
    parser.add_argument(
        "--electrodes",
        nargs="+",
        metavar="NAME",
        help="of the windows, for braindecode (default: those of the training, else all 128)",
    )
    parser.add_argument(
        "--time_window",
        type=int,
        metavar="SECONDS",
        help="length of the windows, for braindecode (default: that of the training, else floor(256 / electrodes))",
    )
    parser.add_argument("--averaged", action="store_true", help="the averaged weights of --model_ema")


def run(args: argparse.Namespace) -> None:
    """Export as the flags say."""
    export(
        fetched(args.checkpoint),
        to=args.to,
        output=args.output,
        electrodes=args.electrodes,
        seconds=args.time_window,
        averaged=args.averaged,
    )


def export(
    path: str | Path,
    *,
    to: str,
    output: str | Path,
    electrodes: Sequence[str] | None = None,
    seconds: int | None = None,
    averaged: bool = False,
) -> tuple[Path, Path]:
    """Write the model of a checkpoint in another format; returns the paths of the weights and of the JSON file.

    to: one of FORMATS; output: path of the weights. electrodes and seconds: of the windows that braindecode's model
    takes; without them those of the training, else all 128 and floor(256 / electrodes), at most 16. A masked model
    becomes for braindecode what `weights.features` makes of it. averaged: export the weights of --model_ema.
    Raises UsageError for values that cannot be, InputError for a file that holds no such model.
    """
    path, output = Path(path), Path(output)
    if to not in FORMATS:
        raise UsageError(f"--to {to}: allowed are {', '.join(FORMATS)}")
    if to != "braindecode" and (electrodes is not None or seconds is not None):
        raise UsageError("--electrodes and --time_window belong to --to braindecode: leave them out")
    if seconds is not None and not 1 <= seconds <= MAX_PATCHES:
        raise UsageError(f"--time_window {seconds}: allowed are whole seconds from 1 to {MAX_PATCHES}")
    config = _check_output(path, output)
    tensors, found = weights.read(path, averaged=averaged)
    if to == "braindecode":
        checkpoints.check_stage(tensors, ["pretraining", "classifier"], f"--to braindecode: {path}")
    make = weights.features if to == "braindecode" and found.stage == "pretraining" else weights.build
    model, found = make(tensors, found, path)
    state, texts, settings = model.state_dict(), {}, dataclasses.asdict(found)
    if to == "braindecode":
        found = _windows(found, electrodes, seconds, path)
        length = found.window_seconds
        texts[TIME] = json.dumps(left_out(state, seconds=length))
        settings = configuration(found.settings, found.size, seconds=length, electrodes=found.electrodes)
        state = to_braindecode(state, seconds=length)
    texts["data_set"] = json.dumps(found.data)
    _write(output, state, texts, config, settings)
    logger.info("Wrote %s (%s, %d tensors) and %s.", output, found.model, len(state), config)
    return output, config


def _check_output(path: Path, output: Path) -> Path:
    """Path of the JSON file. Raises UsageError for a place that cannot be, or that is the checkpoint itself."""
    if output.suffix != SUFFIX:
        raise UsageError(f"--output {output}: the name must end with {SUFFIX}")
    if output.exists() and path.exists() and output.samefile(path):
        raise UsageError(f"--output {output} is the checkpoint itself: choose another name")
    check_writable(output.parent)
    return output.with_name(HUB_CONFIG) if output.name == HUB_WEIGHTS else output.with_suffix(".json")


def _windows(
    found: weights.Description, electrodes: Sequence[str] | None, seconds: int | None, where: Path
) -> weights.Description:
    """The description with the windows that braindecode's model is to take."""
    names = tuple(electrodes or found.electrodes or ELECTRODES[:PUBLISHED_ELECTRODES])
    rows = embedding_rows(names, where=str(where))  # also checks the names
    names = tuple(ELECTRODES[row - 1] for row in rows[1:])
    if seconds is None:
        seconds = found.window_seconds or default_window(len(names)) // PATCH_SAMPLES
    logger.info("%s: windows of %d electrodes and %d s (--electrodes, --time_window).", where, len(names), seconds)
    return dataclasses.replace(found, electrodes=names, window_seconds=seconds)


def _write(output: Path, state: dict[str, Tensor], texts: dict[str, str], config: Path, settings: Any) -> None:
    """Write both files aside, then rename them, the weights first."""

    # Written here, because the library's own writer hides the file from everybody but its owner.
    content = save({key: value.contiguous() for key, value in state.items()}, {"format": "pt", **texts})
    with written_aside(config) as part:
        part.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        checkpoints.write_verified(output, lambda aside: aside.write_bytes(content))
