"""The recipe of `golden/README.md`: weights and EEG from seeds, the optimizer of the training cases, tolerances.

A helper for tests, without tests of its own. Nothing here uses the code under test, except `rows`, which
`test_modeling_vqnsp.py` checks against golden `input_chans`.
"""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from electrodes import embedding_rows

GOLDEN = Path(__file__).with_name("golden")
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
NOT_CARRIED = ("student.lm_head.", "projection_head.")  # published keys that nothing uses: SPEC.md, section 3
FIRST_STEP, LAST_STEP = 1e-4, 1e-3  # relative tolerances of losses and gradient norms in the training cases

Model = TypeVar("Model", bound=nn.Module)


def arrays(name: str) -> dict[str, np.ndarray]:
    """Read all arrays of `golden/<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def table(name: str) -> dict[str, Any]:
    """Read `golden/<name>.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def weight(key: str, shape: Sequence[int]) -> Tensor:
    """Return the tensor that belongs to a state-dict key."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    last = key.split(".")[-1]
    if last in ("cls_token", "mask_token", "pos_embed", "time_embed"):
        x = 0.2 * x
    elif last in ("gamma_1", "gamma_2"):
        x = 0.1 * (1 + 0.1 * x)
    elif key.endswith(("quantize.embedding.weight", "quantize.embedding.embed_avg")):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    elif last == "cluster_size":
        x = np.zeros(shape)
    elif last == "initted":
        x = np.ones(shape)
    elif len(shape) == 1:
        x = 1 + 0.1 * x if last == "weight" else 0.02 * x
    else:
        x = x * math.prod(shape[1:]) ** -0.5
    return torch.tensor(np.asarray(x, dtype=np.float32))


def fill(model: Model) -> Model:
    """Give every tensor of a model the weights of the recipe."""
    model.load_state_dict({key: weight(key, tuple(value.shape)) for key, value in model.state_dict().items()})
    return model


def published_weights(name: str) -> dict[str, Tensor]:
    """Return a whole published file's state dict, keys that nothing uses included."""
    return {key: weight(key, shape) for key, shape in table("state_dicts")[name]["state_dict"].items()}


def eeg(seed: ArrayLike, shape: Sequence[int]) -> Tensor:
    """Return the EEG input of a case, float32, in units of 100 uV."""
    return torch.tensor((np.random.default_rng(int(seed)).standard_normal(shape) * 0.3).astype(np.float32))


def rows(case: dict[str, np.ndarray]) -> list[int]:
    """Return `input_chans` for a case's channels."""
    return embedding_rows([str(name) for name in case["channels"]])


def adamw(model: nn.Module, groups: str, case: dict[str, np.ndarray]) -> torch.optim.AdamW:
    """Return the optimizer of a training case: `groups` names the table in `parameter_groups.json`."""
    scales = table("parameter_groups")[groups]
    learnable = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    unused = [key for key in scales if key not in learnable]
    assert learnable.keys() <= scales.keys() and all(key.startswith(NOT_CARRIED) for key in unused), unused
    lr = float(case["lr"])
    return torch.optim.AdamW(
        [
            {"params": [parameter], "lr": lr * scales[key][0], "weight_decay": scales[key][1]}
            for key, parameter in learnable.items()
        ],
        betas=tuple(float(beta) for beta in case.get("betas", (0.9, 0.999))),
        eps=1e-8,
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float = math.inf) -> float:
    """Take one optimizer step and return the gradient norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return norm.item()


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Count the bytes that autograd keeps of a forward pass, parameters aside."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert forward().requires_grad
    return sum(kept.values())


def assert_forward(actual: Tensor, expected: ArrayLike) -> None:
    """Compare forward values at the tolerance of golden/README.md."""
    np.testing.assert_allclose(actual.detach().numpy(), expected, **FORWARD)


def assert_trajectory(actual: ArrayLike, expected: ArrayLike) -> None:
    """Compare one row per training step: tight at the first, ten times wider at the last, in between in between."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape and len(actual) > 1
    for i, tolerance in enumerate(np.geomspace(FIRST_STEP, LAST_STEP, len(actual))):
        np.testing.assert_allclose(actual[i], expected[i], rtol=tolerance, err_msg=f"step {i}")
