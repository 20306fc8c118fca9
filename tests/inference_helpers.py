"""What the tests of inference share: tiny checkpoints, running the command, reading its files."""

import csv
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import torch
from timm.models import create_model
from torch import Tensor, nn

import run_inference
from data_helpers import TINY, TRIO
from errors import run_script

NAMES = ["C3", "Cz", "C4"]
CLASSIFIER = "labram_tiny_patch200_200"
MASKED = "labram_tiny_patch200_1600_8k_vocab"
TINY_MODELS = {"tokenizer": TINY, "pretraining": MASKED, "classifier": CLASSIFIER}  # stage -> name
DATA = {"name": "Odd", "task": "binary", "classes": ["rest", "task"], "electrodes": list(TRIO), "window_seconds": 2}


def random_module(name: str, **options: Any) -> nn.Module:
    """Return a model in which every parameter is drawn: nothing is zero or one by chance of its start."""
    torch.manual_seed(0)
    module: nn.Module = create_model(name, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return module.eval()


def saved(path: Path, module: nn.Module, **entries: Any) -> Path:
    """Write a checkpoint of a model with further entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": module.state_dict(), **entries}, path)
    return path


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are the same to the last bit."""
    return state.keys() == other.keys() and all(
        torch.equal(state[key], other[key]) and state[key].dtype == other[key].dtype for key in state
    )


def command(*words: Any) -> int:
    """Run `run_inference.py words...` as a user does; return its exit code."""
    with patch.object(sys, "argv", ["run_inference.py", *map(str, words)]):
        try:
            run_script(run_inference.main, run_inference.get_args())
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def read(path: Path, recording: str, name: str) -> np.ndarray:
    """Read an array of a written file, by other means than the product's."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file[f"{recording}/{name}"]
    with h5py.File(path) as file:
        return file[f"{recording}/{name}"][()]


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
