"""What travels between processes beside gradients: nested values with tensors in them, from process 0 to all."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class _Described:
    """A tensor on its way."""

    shape: torch.Size
    dtype: torch.dtype


def send(value: Any, group: Any) -> Any:
    """Process 0's value on all processes of a group on CPUs: its structure as an object, then each tensor as bytes."""
    tensors: list[Tensor] = []
    structure = [_without_tensors(value, tensors)]
    dist.broadcast_object_list(structure, src=0, group=group)
    return _with_tensors(structure[0], iter(tensors) if dist.get_rank() == 0 else None, group)


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Nested dicts, lists and tuples with a description in each tensor's place; the tensors are added to the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Described(value.shape, value.dtype)
    if isinstance(value, dict):
        return {key: _without_tensors(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(entry, tensors) for entry in value)
    return value


def _with_tensors(value: Any, tensors: Iterator[Tensor] | None, group: Any) -> Any:
    """The opposite, on all processes together. tensors: process 0's; None for the others, which receive them."""
    if isinstance(value, _Described):
        own = torch.empty(value.shape, dtype=value.dtype) if tensors is None else next(tensors).cpu().contiguous()
        moved = own.flatten().view(torch.uint8)  # as bytes, because backends do not know every type
        dist.broadcast(moved, src=0, group=group)
        return moved.view(value.dtype).view(value.shape)
    if isinstance(value, dict):
        return {key: _with_tensors(entry, tensors, group) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(entry, tensors, group) for entry in value)
    return value


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
