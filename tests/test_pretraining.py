"""Pre-training files to batches: what a step sees, whatever the threads and processes, and what stops a run."""

import functools
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_helpers import PAIR, TRIO, digests, pretraining_loaders, signal, write_pretraining
from eeg_data.hdf5 import close_files
from eeg_data.pretraining_files import read_recordings
from electrodes import ELECTRODES
from modeling_pretrain import random_mask

MASKS = functools.partial(random_mask, 1, ratio=0.5)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_what_is_left_out_is_counted_aloud_and_files_that_do_not_say_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000), signal(2, 300)], valid=[np.arange(20) != 5, [1, 1]])
    words = ("--train_data", tmp_path, "--time_window", 2, "--batch_size", 1)
    assert len(pretraining_loaders(*words).train) == 17
    (text,) = warned(caplog)
    assert "1 of 2 recordings" in text and "2 of 19 windows" in text
    silent = write_pretraining(tmp_path / "b.hdf5", PAIR, [np.full((2, 4000), np.nan)])
    caplog.clear()
    assert len(pretraining_loaders(*words).train) == 17 + 19
    assert any("1 file(s)" in t and str(silent) in t and "inspect_data --mark" in t for t in warned(caplog))
    caplog.clear()
    pretraining_loaders(*words, "--val_data", tmp_path, rank=1, processes=2)
    assert not warned(caplog)


def test_a_wrong_unit_in_a_files_scan_is_warned_about_once_a_montage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, unit, names in (("a", 1e-6, PAIR), ("b", 1e-6, PAIR), ("c", 1, TRIO)):
        path = write_pretraining(tmp_path / f"{name}.hdf5", names, [signal(len(names), 4000) * unit])
        scan = read_recordings(path)[0].scan()
        close_files()
        with h5py.File(path, "r+") as file:
            file["recording0/valid"] = scan.valid
            file["recording0/eeg"].attrs["quality"] = scan.to_json()
    pretraining_loaders("--train_data", tmp_path)
    (text,) = warned(caplog)
    assert "2 electrodes" in text and "volts" in text


def test_recordings_are_grouped_by_montage_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    montages = {"a": TRIO, "b": PAIR, "c": ("O1",), "d": PAIR[::-1], "e": PAIR}
    paths = [
        write_pretraining(tmp_path / f"{name}.hdf5", montage, [signal(len(montage), 1200, seed=i)])
        for i, (name, montage) in enumerate(montages.items())
    ]
    loaders = [
        pretraining_loaders("--train_data", *p, "--time_window", 1).train for p in (paths, paths[::-1], [tmp_path])
    ]
    data: Any = loaders[0].dataset
    assert {m.montage: len(m) for m in data.montages} == {TRIO: 6, PAIR: 12, ("O1",): 6, PAIR[::-1]: 6}
    for windows, channels in zip(data.montages, data.channels, strict=True):
        assert channels.tolist() == [0, *(ELECTRODES.index(name) + 1 for name in windows.montage)]
    orders = [digests(loader) for loader in loaders]
    assert len(set(orders[0])) > 4 and orders[0] == orders[1] == orders[2]


def test_without_val_data_the_default_folder_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pretraining(tmp_path / "data/pretrain/a.hdf5", PAIR, [signal(2, 3200)])
    assert pretraining_loaders().val is None
    write_pretraining(tmp_path / "data/pretrain_val/b.hdf5", PAIR, [signal(2, 3400)])
    val = pretraining_loaders().val
    assert val is not None and sum(len(batch.eeg) for batch in val) == 2


@pytest.fixture(scope="module")
def two_montages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_pretraining(folder / "a.hdf5", PAIR, [signal(2, 2300), signal(2, 1000, seed=1)])
    write_pretraining(folder / "b.hdf5", TRIO, [signal(3, 1800, seed=2)])
    return folder


def masked_words(folder: Path, *more: Any) -> list:
    return ["--train_data", folder, "--val_data", folder, "--time_window", 3, *more]


def all_digests(folder: Path, *words: Any) -> list[list[str]]:
    loaders: Any = pretraining_loaders(*masked_words(folder, *words), make_mask=MASKS)
    loaders.val.batch_sampler.set_epoch = lambda epoch: None
    epochs = [digests(loaders.train, epoch) for epoch in (0, 1)]  # threads stay from one to the next
    return [*epochs, digests(loaders.val), digests(loaders.val)]


def test_the_number_of_threads_changes_nothing(two_montages: Path) -> None:
    in_process = all_digests(two_montages)
    assert all_digests(two_montages, "--num_workers", 3) == in_process
    assert len(set(in_process[1])) == len(in_process[1]) > 4
    assert in_process[2] == in_process[3], "evaluations see other masks"


def test_models_see_hundreds_of_microvolts_electrode_by_electrode(tmp_path: Path) -> None:
    eeg = [signal(3, 1500), signal(3, 1100, seed=1)]
    write_pretraining(tmp_path / "a.hdf5", TRIO, eeg)
    words = ("--train_data", tmp_path, "--val_data", tmp_path, "--time_window", 2, "--window_stride", 300)
    val: Any = pretraining_loaders(*words).val
    windows = [window for batch in val for window in batch.eeg.numpy()]
    assert {batch.mask.shape[1] for batch in val} == {0}, "masks without a maker of masks"
    places = [(part, start) for part, n in zip(eeg, (1500, 1100), strict=True) for start in range(0, n - 399, 300)]
    assert len(windows) == len(places) == 7
    for window, (part, start) in zip(windows, places, strict=True):
        assert window.dtype == np.float32
        np.testing.assert_allclose(window, part[:, start : start + 400].reshape(3, 2, 200) / 100, rtol=1e-6)


def masks_by_window(folder: Path, epoch: int, *words: Any, **run: int) -> dict[tuple[int, int], tuple[bool, ...]]:
    loader: Any = pretraining_loaders(*masked_words(folder, "--time_window", 5, *words), make_mask=MASKS, **run).train
    loader.batch_sampler.set_epoch(epoch)
    keys = [key for batch in loader.batch_sampler for key in batch]
    masks = [tuple(mask.tolist()) for batch in loader for mask in batch.mask]
    by_window: dict[tuple[int, int], tuple[bool, ...]] = {}
    for (_, montage, window), mask in zip(keys, masks, strict=True):
        assert by_window.setdefault((montage, window), mask) == mask, "a repeated window got another mask"
    return by_window


def test_a_mask_depends_on_seed_epoch_and_window_only(two_montages: Path) -> None:
    first = masks_by_window(two_montages, 1)
    for words in (("--batch_size", 3), ("--dataset_order", "sequential")):
        assert masks_by_window(two_montages, 1, *words) == first
    share = masks_by_window(two_montages, 1, rank=1, processes=2)
    assert share.items() <= first.items() and share
    for other in (masks_by_window(two_montages, 2), masks_by_window(two_montages, 1, seed=1)):
        assert other.keys() == first.keys()
        assert sum(other[key] != first[key] for key in first) >= 0.9 * len(first)
    for montage in (0, 1):
        own = [mask for (m, _), mask in first.items() if m == montage]
        assert len(set(own)) >= len(own) - 1, "windows share masks"
