"""What the tests of inference share: tiny checkpoints, reading files of results."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from timm.models import create_model
from torch import Tensor, nn

from data_helpers import TINY, TRIO
from golden_recipe import fill

NAMES = ["C3", "Cz", "C4"]
CLASSIFIER = "labram_tiny_patch200_200"
MASKED = "labram_tiny_patch200_1600_8k_vocab"
TINY_MODELS = {"tokenizer": TINY, "pretraining": MASKED, "classifier": CLASSIFIER}  # stage -> name
DATA = {"name": "Odd", "task": "binary", "classes": ["rest", "task"], "electrodes": list(TRIO), "window_seconds": 2}


def random_module(name: str, **options: Any) -> nn.Module:
    """Return a model whose tensors are all different from each other and from a new model's."""
    return fill(create_model(name, **options)).eval()


def saved(path: Path, module: nn.Module, **entries: Any) -> Path:
    """Write a checkpoint of a model with more entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": module.state_dict(), **entries}, path)
    return path


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are the same to the last bit."""
    return state.keys() == other.keys() and all(
        torch.equal(state[key], other[key]) and state[key].dtype == other[key].dtype for key in state
    )


def read(path: Path, recording: str, name: str) -> np.ndarray:
    """Read an array of a written file, by other means than the product's."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file[f"{recording}/{name}"]
    with h5py.File(path) as file:
        return file[f"{recording}/{name}"][()]


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV table."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
