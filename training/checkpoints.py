"""Checkpoint files: written aside and renamed, verified, read without executing anything, recognised by their keys.

Beside each stands its SHA-256 in `<name>.sha256`, as `sha256sum` writes it. A file without one (copied, or of the
released code) is checked by the CRC-32 of its parts. A file is a dict with `model`, `optimizer`, `epoch`, `scaler`,
`args` and what exact resumption needs. Files of the released code (an argparse Namespace under `args`, numpy scalars
in the optimizer) load too, and safetensors files, which hold weights and texts only.
"""

import argparse
import difflib
import errno
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from errors import InputError
from files import sha256, written_aside

logger = logging.getLogger(__name__)

STAGES = {
    "tokenizer": "a tokenizer of stage 1 (run_vqnsp_training.py)",
    "pretraining": "a masked model of stage 2 (run_labram_pretraining.py)",
    "classifier": "a classifier of stage 3 (run_class_finetuning.py)",
}

LATEST, BEFORE = "checkpoint.pth", "checkpoint.previous.pth"  # names of a run's newest checkpoint and the one before
BEST, BEST_BEFORE = "checkpoint-best.pth", "checkpoint-best.previous.pth"  # likewise of the selected epoch's
BEST_LATER = "checkpoint-best.later.pth"  # of an epoch that is trained again

WRITE_FAILED = ("PytorchStreamWriter", "inline_container", "iostream", "does not exist")  # in what torch's writer says

_SCALAR = np.float64(0).__reduce__()[0]

# Harmless types found in files of the released code; nothing else that is not plain data or a tensor is unpickled.
SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64")),
    # A numpy scalar's constructor under the names that numpy 1 and numpy 2 pickle it by.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def save(state: dict[str, Any], path: str | Path, *, keep: str | Path | None = None) -> None:
    """Write a checkpoint aside, flush it to the disk, then rename: `path` is whole or as it was before.

    keep: new name of the file that is there already.
    """

    def write(part: Path) -> None:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # how torch's writer reports a full disk or a folder that is none
            if any(sign in str(error) for sign in WRITE_FAILED):
                raise OSError(f"torch: {str(error).splitlines()[0]}") from error
            raise

    write_verified(Path(path), write, keep=keep)


def write_verified(path: Path, write: Callable[[Path], object], *, keep: str | Path | None = None) -> None:
    """Let `write` make a file aside, flush it to the disk, then rename it; its SHA-256 stands beside. keep: as above.

    Raises UsageError where `write` raises OSError.
    """

    def announce(part: Path) -> None:
        if keep is not None and path.is_file():
            rename(path, Path(keep))
        _write_digests(path, [sha256(part), *_digests(path)])

    with written_aside(path, before=announce) as part:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        write(part)
    _write_digests(path, _digests(path)[:1])


def rename(path: Path, target: Path) -> None:
    """Give a checkpoint another name. Its digest goes ahead: whenever this is cut off, each file has its own beside."""
    digests = _digests(path)
    if digests:
        _write_digests(target, [*digests, *_digests(target)])
    else:
        digest_path(target).unlink(missing_ok=True)
    os.replace(path, target)
    if digests:
        _write_digests(target, digests)


def copy(path: Path, target: Path) -> None:
    """Put a copy of a checkpoint in another's place; whenever this is cut off, the target is the one or the other."""
    with written_aside(target, before=lambda part: _write_digests(target, [sha256(part), *_digests(target)])) as part:
        shutil.copyfile(path, part)
    _write_digests(target, _digests(target)[:1])


def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a checkpoint stands."""
    return path.with_name(f"{path.name}.sha256")


def _write_digests(path: Path, digests: list[str]) -> None:
    with written_aside(digest_path(path)) as part:
        part.write_text("".join(f"{digest}  {path.name}\n" for digest in digests))


def _digests(path: Path) -> list[str]:
    """Digests that stand beside a file: none without such a file."""
    return _listed(digest_path(path)) if digest_path(path).is_file() else []


def _listed(path: Path) -> list[str]:
    """Digests in a .sha256 file; an empty text, which no file has, where there is none in it."""
    return [line.split(" ")[0] for line in path.read_text(errors="replace").splitlines()] or [""]


def _verify(path: Path) -> None:
    """Raise InputError for a file that is not what was written: torch itself would load flipped bits."""
    digests = _digests(path)
    if digests:
        found = sha256(path)
        # A file that was copied or renamed over another is whole as well.
        beside = [digest for other in path.parent.glob("*.sha256") for digest in _listed(other)]
        if found not in digests and found not in beside:
            raise InputError(
                f"{path} is damaged: its SHA-256 is not the one in {digest_path(path).name} (which may be deleted if "
                "it belongs to another file)"
            )
    if not digests and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                # torch leaves a tensor uninitialised whose entry is marked as a folder.
                folders = (
                    entry.filename for entry in archive.infolist() if entry.external_attr & 0x10 or entry.is_dir()
                )
                broken = archive.testzip() or next(folders, None)
        except Exception as error:  # zipfile raises many types for damaged archives
            raise InputError(f"{path} is damaged: {str(error).strip()[:200]}") from error
        if broken is not None:
            raise InputError(f"{path} is damaged: its part {broken} is not what was written")


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing pickled code. Raises InputError if it is none, or damaged.

    Of a safetensors file `model` are the tensors and `metadata` its texts.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("checkpoint*.pth"))
        raise InputError(f"{path} is a folder, not a checkpoint file: name one in it{f', {found[0]}' if found else ''}")
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist{_nearest(path)}")
    try:
        _verify(path)
        if _is_safetensors(path):
            return _read_safetensors(path)
        with torch.serialization.safe_globals(SAFE_TYPES):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises many types for files that are no checkpoints
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"{path} is no readable checkpoint (damaged, cut short, or holding code): get or train it again ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} is no checkpoint: it holds a {type(state).__name__}, expected a dict with `model`")
    return state


def _is_safetensors(path: Path) -> bool:
    """Whether a file is one by its name or, after the length of its JSON header, by that header's first character."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it cannot be iterated over)
        return {"model": tensors, "metadata": dict(file.metadata() or {})}


def read_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that is not damaged, None if there is none at all.

    Damaged ones are named; a whole one takes the latest's place. Raises InputError if all are damaged.
    """
    latest = [path for path in (folder / LATEST,) if path.is_file()]
    others = [path for path in (folder / BEFORE, *_numbered(folder)) if path.is_file()]
    candidates = latest + sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in candidates:
        try:
            state = read(path)
        except InputError as error:
            logger.warning("%s; falling back to the checkpoint before.", error)
            continue
        if path != folder / LATEST:
            copy(path, folder / LATEST)
        return path, state
    if candidates:
        raise InputError(
            f"all {len(candidates)} checkpoints in {folder} are damaged: put a whole one there, or begin anew with "
            "--no_auto_resume"
        )
    return None


def settle_best(folder: Path, state: dict[str, Any]) -> None:
    """Let BEST be the epoch's that a run had selected in `state`, from which it goes on: `--eval` takes it.

    state: a checkpoint's, {} where a run begins. Another BEST is set aside as BEST_LATER.
    """
    best = folder / BEST
    selected = state.get("extras", {}).get("best", {})
    epoch = selected.get("epoch")
    if _is_of(best, selected):
        return
    if best.is_file():
        rename(best, folder / BEST_LATER)
        logger.warning("%s is of a later epoch, another run or damaged: set aside as %s.", best, BEST_LATER)
    # A checkpoint of the end of the selected epoch is the same as BEST was.
    for name in (BEST_BEFORE, LATEST, BEFORE, f"checkpoint-{epoch}.pth"):
        if _is_of(folder / name, selected):
            copy(folder / name, best)
            logger.info("%s is that of epoch %d again.", best, epoch)
            return


def _is_of(path: Path, selected: dict[str, Any]) -> bool:
    """Whether a file is of the end of the epoch that a run selected, and of that run. selected: of its BestEpoch."""
    if selected.get("epoch") is None or not path.is_file():
        return False
    try:
        state = read(path)
        found = state["extras"]["best"]
        place = state["epoch"], state["step"], found["epoch"]
    except (InputError, KeyError, TypeError):
        return False
    # Metrics tell runs apart; as text, because a NaN is not equal to itself.
    return place == (selected["epoch"], 0, selected["epoch"]) and repr(found["stats"]) == repr(selected["stats"])


def remove_older(folder: Path, keep: int) -> None:
    """Delete the oldest checkpoint-<epoch>.pth but for the last `keep` that were written (0: none)."""
    for path in sorted(_numbered(folder), key=lambda path: path.stat().st_mtime_ns)[:-keep] if keep else []:
        path.unlink(missing_ok=True)
        digest_path(path).unlink(missing_ok=True)


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*.pth") if re.fullmatch(r"checkpoint-\d+\.pth", path.name)]


def _nearest(path: Path) -> str:
    """The way out for a missing file: the checkpoint of the stage before, or a similar name beside it."""
    folder = path.with_suffix("")
    beside = sorted(path.parent.glob("*/checkpoint*.pth")) if path.parent.is_dir() else []
    candidates = sorted(folder.glob("checkpoint*.pth")) or beside
    for name in difflib.get_close_matches(folder.name, [c.parent.name for c in candidates], n=1, cutoff=0.5):
        chosen = next(
            (c for c in candidates if c.parent.name == name and c.name == "checkpoint.pth"),
            next(c for c in candidates if c.parent.name == name),
        )
        return f"; nearest candidate: cp {chosen} {path}"
    names = [p.name for p in path.parent.glob("*.pth")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; nearest candidate: {path.parent / close[0]}" if close else "; train the stage before or correct the path"


def model_state(state: dict[str, Any], where: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint: under `model` or `module`, or the dict itself; a DDP prefix is taken off."""
    weights = state.get("model", state.get("module", state))
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{where} is no checkpoint of LaBraM: no state dict under `model` or `module`")
    return {str(key).removeprefix("module."): value for key, value in weights.items()}


def averaged_state(state: dict[str, Any], where: str | Path) -> dict[str, Tensor]:
    """The averaged weights (--model_ema) of a run's checkpoint. Raises InputError where there are none."""
    extras = state.get("extras")
    if not isinstance(extras, dict) or "model_ema" not in extras:
        raise InputError(f"{where} holds no averaged weights: take its own (no --model_ema), or train with --model_ema")
    return model_state({"model": extras["model_ema"]}, where)


def stage_of(weights: Iterable[str]) -> str | None:
    """Recognise the stage that a state dict belongs to from its keys: a key of STAGES, or None."""
    keys = set(weights)
    if "quantize.embedding.weight" in keys:
        return "tokenizer"
    if "student.mask_token" in keys or any(key.startswith("student.") for key in keys):
        return "pretraining"
    return "classifier" if {"cls_token", "patch_embed.conv1.weight"} <= keys else None


def check_stage(weights: Mapping[str, Tensor], stage: Iterable[str], where: str | Path) -> None:
    """Raise InputError unless the weights are of one of these stages."""
    found, wanted = stage_of(weights), list(stage)
    if found not in wanted:
        what = STAGES[found] if found else f"no LaBraM model (first keys: {', '.join(list(weights)[:3])})"
        raise InputError(f"{where} holds {what}; needed here: {' or '.join(STAGES[name] for name in wanted)}")


def read_model(path: str | Path, *, stage: str) -> dict[str, Tensor]:
    """Weights of a checkpoint of the given stage (a key of STAGES). Raises InputError for another one."""
    weights = model_state(read(path), path)
    check_stage(weights, [stage], path)
    return weights
