"""What decides the numbers of a run, kept in its checkpoints so that a run is not continued as another one."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from errors import InputError
from files import code_version, digest_of, plain
from utils import Run

logger = logging.getLogger(__name__)

Fingerprint = dict[str, Any]

# Flags that change no number, or whose files are compared by content.
FREE_FLAGS = {"output_dir", "log_dir", "device", "num_workers", "pin_mem", "resume", "auto_resume", "resume_anyway"}
FREE_FLAGS |= {"save_ckpt", "save_ckpt_freq", "save_every_minutes", "keep_last", "start_epoch", "eval"}
FREE_FLAGS |= {"train_data", "val_data", "dataset", "data_dir", "tokenizer_weight", "finetune", "grad_checkpoint"}
FREE_FLAGS |= {"calculate_codebook_usage", "disable_rel_pos_bias", "input_size", "precision", "cache_codes"}
# These only confirm what the files say, or name the micro-batches, which are compared, in other words.
FREE_FLAGS |= {"nb_classes", "codebook_size", "codebook_dim", "total_batch_size"}
BATCH_FLAGS = {"batch_size", "gradient_accumulation_steps", "update_freq"}


def fingerprint(
    args: argparse.Namespace,
    run: Run,
    *,
    data: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str] = MappingProxyType({}),
    meant: Mapping[str, Any] = MappingProxyType({}),
) -> Fingerprint:
    """data: what each data set says of itself; weights: digests of the models that the run uses but does not train.

    meant: what flags come to that may be left out; one that says its default aloud makes no other run.
    """
    flags = plain({**vars(args), **meant})
    return {
        "flags": {name: value for name, value in flags.items() if name not in FREE_FLAGS},
        "data": {name: dict(values) for name, values in data.items()},
        "weights": dict(weights),
        "processes": run.processes,
        "device": run.device.type,
        "precision": str(run.amp_dtype or run.dtype).removeprefix("torch."),
        "code": {"version": code_version()},
    }


def differences(saved: Fingerprint, current: Fingerprint, *, inside_epoch: bool) -> list[str]:
    """Each difference in words. Another number of processes, and what its batches need, is none between two epochs."""
    moved = saved["processes"] != current["processes"] and not inside_epoch
    found = []
    for name in sorted(saved["flags"].keys() | current["flags"].keys()):
        if not (moved and name in BATCH_FLAGS):
            old, new = (part["flags"].get(name) for part in (saved, current))
            found += [f"--{name} {new}, the checkpoint has {old}"] if old != new else []
    for name in sorted(saved["data"].keys() | current["data"].keys()):
        old, new = (part["data"].get(name) for part in (saved, current))
        found += [f"{name} data: {_said(new)}, the checkpoint's: {_said(old)}"] if old != new else []
    for name in sorted(saved["weights"].keys() | current["weights"].keys()):
        old, new = (part["weights"].get(name) for part in (saved, current))
        found += [f"another {name}"] if old != new else []
    for name in ("device", "precision", *(() if moved else ("processes",))):
        if saved[name] != current[name]:
            found.append(f"{name} {current[name]}, the checkpoint has {saved[name]}")
    if saved["code"]["version"] != current["code"]["version"]:
        found.append(f"code {current['code']['version']}, the checkpoint was made by {saved['code']['version']}")
    return found


def check_same_run(saved: Fingerprint, current: Fingerprint, where: Path, *, inside_epoch: bool, anyway: bool) -> None:
    """Raise InputError that names what differs from the run that made the checkpoint `where`; with anyway, warn."""
    found = differences(saved, current, inside_epoch=inside_epoch)
    if found and not anyway:
        way_out = ""
        if saved["processes"] != current["processes"]:
            way_out = "; another number of processes can continue a checkpoint of a whole epoch: --resume FILE"
        raise InputError(
            f"{where} is of another run: {'; '.join(found)}: start it with what it was made with, continue all the "
            f"same with --resume_anyway, or begin anew with another --output_dir or --no_auto_resume{way_out}"
        )
    if found:
        logger.warning("%s is continued although it was made with something else: %s.", where, "; ".join(found))
    elif saved["processes"] != current["processes"]:
        logger.warning(
            "%s was made by %d process(es), now there are %d: the run goes on, but not bit for bit.",
            where,
            saved["processes"],
            current["processes"],
        )


def same_batches(saved: Fingerprint, current: Fingerprint) -> bool:
    """Whether a step of an epoch means the same windows: else only whole epochs can be continued."""
    flags = [*BATCH_FLAGS, "seed", "overfit_batch", "dataset_order"]
    parts = [
        (one["processes"], one["data"].get("train"), [one["flags"].get(n) for n in flags]) for one in (saved, current)
    ]
    return parts[0] == parts[1]


def _said(values: Mapping[str, Any] | None) -> str:
    return "none" if values is None else ", ".join(f"{name} {value}" for name, value in values.items())


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Short digest of a state dict."""
    whole = ((name, value.detach().cpu().contiguous().flatten().view(torch.uint8)) for name, value in weights.items())
    return digest_of(part for name, value in whole for part in (name, value.numpy()))
