"""What torch's own errors mean to somebody who runs a script: one line with the way out, as `errors.InputError`.

torch has no types for most of them, so that they are known by their texts. All others stay as they are.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from errors import InputError, PeerLost, UsageError

COMPILER = ("torch._dynamo", "torch._inductor")  # modules of its errors
LOST_PEER = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "remote process exited")
KILLED_LOADER = "DataLoader worker (pid"  # not "in DataLoader worker process", where a data set raised something
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of CUDA, of its libraries, on CPUs


@contextmanager
def in_words(args: argparse.Namespace, *, processes: int = 1) -> Iterator[None]:
    """Turn an error of torch's into what a user should read: InputError, UsageError, or PeerLost of several processes.

    args: the script's flags, of which a message names those that help.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        told = _told(error, args, processes)
        if told is None:
            raise
        raise told from error


def _told(error: Exception, args: argparse.Namespace, processes: int) -> InputError | None:
    """What to say of an error; None: it stays as it is."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first = lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]  # a compiler's reason
    if processes > 1 and any(sign in text for sign in LOST_PEER):
        return PeerLost("ended because another process of the run did")
    if KILLED_LOADER in text:
        return InputError(
            f"a loading process ended ({first}): for want of memory try fewer --num_workers; the same command goes on "
            "from the last checkpoint"
        )
    if isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in NO_MEMORY)
    ):
        reason = ". ".join(first.split(". ")[:2])  # how much was wanted; what follows says who holds the rest
        device = getattr(args, "device", "cpu")
        return UsageError(f"--device {device} has too little memory ({reason}): {_less_memory(vars(args))}")
    if type(error).__module__.startswith(COMPILER):
        return InputError(f"--compile: torch.compile failed ({first}): leave it out with --no_compile")
    return None


def _less_memory(flags: dict[str, Any]) -> str:
    """What lets a script do with less memory, by the flags that it has."""
    ways = []
    if flags.get("batch_size", 1) > 1:
        same = " (--total_batch_size N keeps the windows of a step)" if "total_batch_size" in flags else ""
        ways.append(f"lower --batch_size {flags['batch_size']}{same}")
    learns = not (flags.get("eval") or flags.get("linear_probe"))  # else no block keeps anything for its gradient
    if learns and flags.get("grad_checkpoint") is False:
        ways.append("add --grad_checkpoint")
    return ", or ".join(ways) or "take a smaller model, shorter windows, or a device with more memory"
