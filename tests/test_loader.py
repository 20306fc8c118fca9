"""Batches that threads load: values of a plain loop, memory used again only when nobody holds it, errors in turn."""

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_helpers import PAIR, TRIO, plain_run, signal, write_pretraining
from eeg_data.batches import TrainingBatches
from eeg_data.hdf5 import close_files
from eeg_data.loader import Loader
from eeg_data.pretraining import PretrainingDataset
from eeg_data.pretraining_files import Windows, by_montage, read_recordings
from errors import InputError
from modeling_pretrain import random_mask


@pytest.fixture
def dataset(tmp_path: Path) -> PretrainingDataset:
    """Two montages, the smaller one as float16."""
    close_files()
    paths = [
        write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 9_000)], dtype="f2"),
        write_pretraining(tmp_path / "b.hdf5", TRIO, [signal(3, 5_000, seed=1)]),
    ]
    recordings = [recording for path in paths for recording in read_recordings(path)]
    masks = functools.partial(random_mask, 1, ratio=0.5)
    montages = [Windows(group, window=400, stride=130) for group in by_montage(recordings)]
    return PretrainingDataset(montages, seed=3, make_mask=masks)


def plan(dataset: PretrainingDataset) -> TrainingBatches:
    return TrainingBatches([len(windows) for windows in dataset.montages], 7, seed=0)


def expected(dataset: PretrainingDataset) -> list[np.ndarray]:
    """Return the EEG of each batch, read by HDF5 window by window."""
    return [
        np.stack([dataset.montages[m][w] for _, m, w in keys]).reshape(7, -1, 2, 200) / np.float32(100)
        for keys in plan(dataset)
    ]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("half", [False, True])
def test_batches_have_the_files_values_even_if_all_are_kept(
    dataset: PretrainingDataset, threads: int, half: bool, tmp_path: Path
) -> None:
    loader = Loader(dataset, plan(dataset), threads=threads, half=half)
    batches = list(loader)
    assert {batch.eeg.dtype for batch in batches} == {torch.float32, torch.float16 if half else torch.float32}
    for batch, eeg in zip(batches, expected(dataset), strict=True):
        placed = batch.to(plain_run(tmp_path))
        assert placed.eeg.dtype == torch.float32 and placed.eeg.numpy().tobytes() == eeg.tobytes()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_loop_that_keeps_no_batch_uses_the_same_memory_again(
    dataset: PretrainingDataset, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated, empty = list[int](), np.empty

    def counted(shape: Any, dtype: Any = float, **options: Any) -> np.ndarray:
        if dtype is np.uint8:
            allocated.append(shape)
        return empty(shape, dtype, **options)

    monkeypatch.setattr(np, "empty", counted)
    loader, batches = Loader(dataset, plan(dataset), threads=threads), 0
    for batch in itertools.chain(loader, loader, loader, loader):
        batches += 1
        kept: Any = batch.eeg[0]  # as a loop's variable holds a batch until the next one comes
    assert batches > 40 and len(allocated) < batches / 2 and kept is not None


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_in_its_batchs_place_and_the_next_epoch_begins_anew(
    dataset: PretrainingDataset, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, bad = Loader(dataset, plan(dataset), threads=threads), list(plan(dataset))[2][5]
    read = PretrainingDataset.read

    def fail(own: PretrainingDataset, key: Any, out: np.ndarray) -> Any:
        if key == bad:
            raise InputError("here")
        return read(own, key, out)

    with monkeypatch.context() as patched:
        patched.setattr(PretrainingDataset, "read", fail)
        batches = iter(loader)
        for _ in range(2):
            next(batches)
        with pytest.raises(InputError, match="here"):
            next(batches)
    assert [batch.eeg.numpy().tobytes() for batch in loader] == [eeg.tobytes() for eeg in expected(dataset)]
