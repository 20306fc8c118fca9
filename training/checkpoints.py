"""Checkpoint files: written as a whole, verified, read without executing anything, recognised by their keys.

A file is a dict with `model`, `optimizer`, `epoch`, `scaler`, `args` and what exact resumption needs. Files of the
released code (an argparse Namespace under `args`, numpy scalars in the optimizer) and safetensors files load, too.
"""

import argparse
import difflib
import json
import logging
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from errors import InputError
from files import digest_of, set_aside, written_aside
from layers import load_strictly
from training import hub
from utils import Run

logger = logging.getLogger(__name__)

STAGES = {
    "tokenizer": "a tokenizer of stage 1 (run_vqnsp_training.py)",
    "pretraining": "a masked model of stage 2 (run_labram_pretraining.py)",
    "classifier": "a classifier of stage 3 (run_class_finetuning.py)",
}
LATEST = "checkpoint.pth"  # of a run; other names in its folder are copies of what it once was
BEST = "checkpoint-best.pth"  # of the selected epoch

_SCALAR = np.float64(0).__reduce__()[0]
# Harmless types in files of the released code. Nothing else but plain data and tensors is unpickled.
SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
    # A numpy scalar's constructor, as numpy 1 and numpy 2 name it in a pickle.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


# Writing


def save(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint aside and rename it: `path` is whole, or as it was. Raises UsageError if that fails."""
    with written_aside(Path(path)) as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # how torch's writer reports a full disk or a missing folder
            raise OSError(f"torch: {str(error).splitlines()[0]}") from error


def copy(path: Path, target: Path) -> None:
    """Copy a checkpoint; the target is always the old or the new file, never a mixture."""
    with written_aside(target) as part:
        shutil.copyfile(path, part)


def numbered_files(folder: Path) -> list[Path]:
    """Return the files checkpoint-<epoch>.pth, last written first."""
    paths = [path for path in folder.glob("checkpoint-*.pth") if re.fullmatch(r"checkpoint-\d+\.pth", path.name)]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


# Reading


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises InputError if it is none, damaged, or would execute code.

    path: or an address on the hub. Of a safetensors file, `model` are the tensors and `metadata` the texts.
    """
    path = hub.local_file(path)
    if not path.is_file():
        raise InputError(f"{path} is no checkpoint file: {_way_out(path)}")
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
        _check_parts(path)
        with torch.serialization.safe_globals(SAFE_TYPES):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise many types for files that are no checkpoints
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        # torch advises weights_only=False, which would run the code; of a file of text it names a byte.
        if isinstance(error, pickle.UnpicklingError | KeyError):
            reason = "not plain tensors and numbers"
        raise InputError(
            f"{path} is no readable checkpoint (damaged, cut short, or holding code): get or train it again ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is no checkpoint: it holds a {type(state).__name__}, expected a dict with `model`")
    return state


def entry(state: Mapping[str, Any], name: str) -> Any:
    """An entry of a checkpoint; a safetensors file holds it as JSON text."""
    texts = state.get("metadata") or {}
    return json.loads(texts[name]) if name in texts else state.get(name)


def _check_parts(path: Path) -> None:
    """Raise BadZipFile for an archive with a damaged part: torch does not compare the CRC-32 of what it reads."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch leaves a tensor uninitialised if its entry is marked as a folder.
            folders = (entry.filename for entry in archive.infolist() if entry.external_attr & 0x10 or entry.is_dir())
            if broken := archive.testzip() or next(folders, None):
                raise zipfile.BadZipFile(f"its part {broken} is not what was written")


def _is_safetensors(path: Path) -> bool:
    """Recognise the format by the file's name, or by the JSON header after its length (8 bytes)."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it cannot be iterated over)
        return {"model": tensors, "metadata": dict(file.metadata() or {})}


def _way_out(path: Path) -> str:
    """Say what to do about a missing file: name the checkpoint of the stage before, or a file with a similar name."""
    if path.is_dir():
        return "it is a folder, name a file in it"
    if re.match("https?:", str(path)):
        return "download it and name the file on this machine"
    runs = {file.parent.name: file for file in sorted(path.parent.glob("*/checkpoint*.pth"))}  # checkpoint.pth wins
    for name in difflib.get_close_matches(path.stem, runs, n=1, cutoff=0.5):
        return f"nearest candidate: cp {runs[name]} {path}"
    for name in difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.pth")], n=1):
        return f"nearest candidate: {path.parent / name}"
    return "train the stage before or correct the path"


def read_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest checkpoint of a run that is not damaged; None if there is none. Damaged ones are named.

    Raises InputError if all are damaged.
    """
    candidates = [path for path in (folder / LATEST, *numbered_files(folder)) if path.is_file()]
    for path in candidates:
        try:
            return path, read(path)
        except InputError as error:
            logger.warning("%s; falling back to an older checkpoint.", error)
    if candidates:
        raise InputError(f"all checkpoints in {folder} are damaged: put a whole one there, or add --no_auto_resume")
    return None


def restore_best(folder: Path, state: Mapping[str, Any], path: Path) -> None:
    """Let checkpoint-best.pth be of the epoch that `state`, the checkpoint at `path`, selected, or set it aside.

    It can be of another epoch after a kill, or if the run goes back.
    """
    best, selected = folder / BEST, _selection(state)
    numbered = folder / f"checkpoint-{selected[0]}.pth"
    if selected[0] == state["epoch"] and not state["step"]:
        copy(path, best)
    elif best.is_file() and not _has_selected(best, selected):
        set_aside(best)
        if _has_selected(numbered, selected):
            copy(numbered, best)


def _selection(state: Mapping[str, Any]) -> tuple[int | None, str]:
    """Return the epoch that a run has selected, and its metrics as text, because NaN is not equal to itself."""
    best = state.get("extras", {}).get("best", {})
    return best.get("epoch"), str(best.get("stats"))


def _has_selected(path: Path, selected: tuple[int | None, str]) -> bool:
    """Return whether a file is a whole checkpoint of a run that has selected this epoch."""
    with suppress(InputError):
        return _selection(read(path)) == selected
    return False


# Weights and stages


def model_state(state: dict[str, Any], where: str | Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: under `model` or `module`, or the dict itself, without a DDP prefix."""
    weights = state.get("model", state.get("module", state))
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{where} is no checkpoint of LaBraM: no state dict under `model` or `module`")
    return {str(key).removeprefix("module."): value for key, value in weights.items()}


def averaged_state(state: dict[str, Any], where: str | Path) -> dict[str, Tensor]:
    """Return the averaged weights (--model_ema) of a run's checkpoint. Raises InputError if there are none."""
    extras = state.get("extras")
    if not isinstance(extras, dict) or "model_ema" not in extras:
        raise InputError(f"{where} holds no averaged weights: take its own (no --model_ema), or train with --model_ema")
    return model_state({"model": extras["model_ema"]}, where)


def stage_of(weights: Iterable[str]) -> str | None:
    """Recognise the stage of a state dict from its keys: a key of STAGES, or None."""
    keys = set(weights)
    if "quantize.embedding.weight" in keys:
        return "tokenizer"
    if any(key.startswith("student.") for key in keys):
        return "pretraining"
    return "classifier" if {"cls_token", "patch_embed.conv1.weight"} <= keys else None


def check_stage(weights: Mapping[str, Tensor], stage: Iterable[str], where: str | Path) -> None:
    """Raise InputError unless the weights are of one of these stages."""
    held, wanted = stage_of(weights), list(stage)
    if held not in wanted:
        what = STAGES[held] if held else f"no LaBraM model (first keys: {', '.join(list(weights)[:3])})"
        raise InputError(f"{where} holds {what}; needed here: {' or '.join(STAGES[name] for name in wanted)}")


def read_model(path: str | Path, *, stage: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint of a stage (a key of STAGES). Raises InputError for another stage."""
    weights = model_state(read(path), path)
    check_stage(weights, [stage], path)
    return weights


def load_for_evaluation(
    model: nn.Module, args: argparse.Namespace, run: Run, *, stage: str, averaged: bool = False
) -> int:
    """Load `--resume`, or the output folder's best or latest checkpoint, for `--eval`. Returns its epoch.

    averaged: take the averaged weights (--model_ema). Warns if the training had another --center or --scale_by. Raises
    InputError for another stage or architecture.
    """
    best, latest = run.output_dir / BEST, run.output_dir / LATEST
    path = run.run_on_rank0(lambda: args.resume or (best if best.is_file() else latest))
    state = run.run_on_rank0(lambda: read(path))
    weights = averaged_state(state, path) if averaged else model_state(state, path)
    check_stage(weights, [stage], path)
    load_strictly(model, weights, where=str(path))
    logger.info("Evaluating %s.", path)
    if state.get("step"):
        logger.warning("%s is from inside an epoch: log.txt has no line of it.", path)
    if not averaged and "model_ema" in state.get("extras", {}):
        logger.warning("%s: training evaluated the averaged weights that it also holds: --model_ema takes them.", path)
    flags = state.get("args") or (entry(state, "data_set") or {}).get("transductive", {})  # an export's
    for name in ("center", "scale_by"):
        trained = flags.get(name, "none") if isinstance(flags, dict) else "none"
        if trained != (given := getattr(args, name, "none")):
            text = "%s was trained with --%s %s and is evaluated with --%s %s: its outputs are off."
            logger.warning(text, path, name, trained, name, given)
    epoch = state.get("epoch")
    return epoch if isinstance(epoch, int) else 0  # the released code's best checkpoint says "best"


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return a short digest of a state dict."""
    values = ((name, value.detach().cpu().contiguous().flatten().view(torch.uint8)) for name, value in weights.items())
    return digest_of(part for name, value in values for part in (name, value.numpy()))
