"""What tests of data and training share: small HDF5 files, flags as a user types them, a process group of one.

The files are written with plain h5py from the format's description (SPEC.md, section 5), not by `dataset_maker`.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist

import utils
from eeg_data import pretraining as eeg_data
from eeg_data.loader import Loaders

PAIR = ("FP1", "FP2")
TRIO = ("C3", "CZ", "C4")
TINY = "vqnsp_encoder_tiny_decoder_1x200x4"


def signal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return noise in uV, standard deviation 30, float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * 30).astype(np.float32)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return noise of deviation 1, float64."""
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def counting(electrodes: int, samples: int) -> np.ndarray:
    """Return a signal that says where it is: row n holds 100000 n + sample, float32."""
    return (np.arange(samples) + 100_000 * np.arange(electrodes)[:, None]).astype(np.float32)


def write_pretraining(
    path: Path,
    names: Sequence[Any],
    recordings: Sequence[np.ndarray],
    *,
    rate: float = 200,
    valid: Sequence[Any] = (),
    **options: Any,
) -> Path:
    """Write a pre-training file; names: of electrodes, as text or bytes; valid: seconds of the first recordings.

    options: of h5py's create_dataset.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for i, eeg in enumerate(recordings):
            chunks = (len(eeg), min(200, eeg.shape[1]))
            data = file.create_dataset(f"recording{i}/eeg", data=eeg, chunks=chunks, **{"dtype": "f4", **options})
            data.attrs.update(chOrder=list(names), rsFreq=rate, lFreq=0.1, hFreq=75.0)
        for i, seconds in enumerate(valid):
            file[f"recording{i}/valid"] = seconds
    return path


def write_labelled(
    path: Path,
    splits: Mapping[str, tuple[np.ndarray, Any]],
    *,
    task: str = "binary",
    classes: Sequence[str] = ("rest", "task"),
    names: Sequence[str] = TRIO,
    rate: float = 200,
    leave_out: Collection[str] = (),
    **options: Any,
) -> Path:
    """Write a labelled file from split -> (eeg (samples, N, time), labels); leave_out: attributes and datasets.

    options: of h5py's create_dataset for the EEG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    attributes = {"name": path.stem, "task": task, "classes": list(classes), "chOrder": list(names), "rsFreq": rate}
    with h5py.File(path, "w") as file:
        file.attrs.update({key: value for key, value in attributes.items() if key not in leave_out})
        for split, (eeg, labels) in splits.items():
            group, n = file.create_group(split), len(eeg)
            contents = {"eeg": eeg, "label": np.asarray(labels)}
            for key, length in (("recording", 2), ("subject", 4)):  # samples
                contents[key] = np.array([f"{split}-{key}{i // length}" for i in range(n)], dtype=h5py.string_dtype())
            for key, value in contents.items():
                if key not in leave_out:
                    group.create_dataset(key, data=value, **(options if key == "eeg" else {}))
    return path


def script_args(script: ModuleType, *words: Any) -> argparse.Namespace:
    """Return what a run script makes of a command line."""
    with patch.object(sys, "argv", [script.__name__, *map(str, words)]):
        return script.get_args()


def parse(words: Sequence[Any], *groups: Callable[[argparse.ArgumentParser], None], **defaults: Any) -> Any:
    """Return what flag groups make of a command line; defaults as a run script sets them."""
    parser = argparse.ArgumentParser()
    for add in groups:
        add(parser)
    parser.set_defaults(**defaults)
    return parser.parse_args([str(word) for word in words])


def plain_run(folder: Path, *, rank: int = 0, processes: int = 1, seed: int = 0) -> utils.Run:
    """Return a run on the CPU in float32, without a process group."""
    return utils.Run(torch.device("cpu"), rank, processes, seed, folder, None, torch.float32)


@contextmanager
def process_group() -> Iterator[None]:
    """Give the code under test a Gloo group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def pretraining_loaders(*words: Any, make_mask: Any = None, accumulation: int = 1, **run: int) -> Loaders:
    """Return the loaders of stage 1 or 2 for a command line; run: rank, processes, seed."""
    flags = partial(eeg_data.add_pretraining_arguments, window_stride=200)
    args = parse(words, flags, batch_size=4, num_workers=0, seed=run.get("seed", 0))
    here = plain_run(Path(), **run)
    return eeg_data.build_pretraining_loaders(args, here, accumulation=accumulation, make_mask=make_mask)


def digests(loader: Any, epoch: int = 0) -> list[str]:
    """Return a hash of every batch of an epoch: EEG, channels and mask."""
    loader.batch_sampler.set_epoch(epoch)
    return [hashlib.sha256(b"".join(part.numpy().tobytes() for part in batch)).hexdigest() for batch in loader]


def only_line(error: "pytest.ExceptionInfo[BaseException]", *parts: Any) -> str:
    """Check that an error is one line with all of these parts in it; return it."""
    text = str(error.value)
    assert text and "\n" not in text
    missing = [part for part in parts if str(part) not in text]
    assert not missing, f"{missing} not in: {text}"
    return text


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of a nested value by their places; two leaves are equal if their types and bits are."""
    if isinstance(value, Mapping | list | tuple) and value:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {name: leaf for key, part in pairs for name, leaf in flat(part, f"{place}.{key}").items()}
    if isinstance(value, torch.Tensor):
        value = value.contiguous().numpy()
    if isinstance(value, np.ndarray):
        return {place: (value.dtype, value.shape, value.tobytes())}
    return {place: repr(value)}


def differences(one: Any, other: Any) -> list[str]:
    """Return the places at which two nested values differ in type or in a single bit."""
    leaves, others = flat(one), flat(other)
    return [place for place in sorted(leaves.keys() | others) if leaves.get(place) != others.get(place)]
