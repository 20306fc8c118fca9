"""The read path: its values are HDF5's own to the last bit, whatever a file holds and however much stays open."""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data_helpers import PAIR, TRIO, only_line, pretraining_loaders, signal, write_labelled, write_pretraining
from eeg_data import hdf5 as hdf5_files
from eeg_data.hdf5 import open_dataset, open_file
from eeg_data.labelled_files import read_eeg
from eeg_data.pretraining import UNIT, MontageWindows, to_units
from eeg_data.pretraining_files import read_recordings
from errors import InputError

TYPES = ["float16", "float32", ">f4", "float64", "int16", "uint8"]


def bits(values: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Return a shape and the bits behind it: NaN equals NaN, -0 is not 0."""
    return values.shape, np.ascontiguousarray(values).tobytes()


def slices(path: Path, name: str, starts: Sequence[int], window: int) -> list[np.ndarray]:
    """Return windows as h5py alone gives them, float32."""
    with h5py.File(path, locking=False) as file, np.errstate(over="ignore"):
        return [file[name]["eeg"][:, start : start + window].astype(np.float32) for start in starts]


def odd(rows: int, samples: int, kind: str) -> np.ndarray:
    """Return EEG of a type with what that type has at its edges."""
    eeg = signal(rows, samples)
    if np.dtype(kind).kind != "f":
        return eeg.clip(0, 255).astype(kind)
    largest = float(np.finfo(kind).max)
    eeg = eeg.astype(kind)
    eeg[0, 3:9] = [np.nan, np.inf, -np.inf, -0.0, largest, np.finfo(kind).smallest_subnormal]
    return eeg


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("window", [200, 600])
@pytest.mark.filterwarnings("ignore:overflow")
def test_windows_are_bit_for_bit_what_h5py_gives(tmp_path: Path, kind: str, rows: int, window: int) -> None:
    eeg = odd(rows, 1100, kind)  # the last second is a part of one
    path = write_pretraining(tmp_path / "a.hdf5", TRIO[:rows], [eeg], dtype=kind)
    recording = read_recordings(path)[0]
    starts = [0, 37, 200, 1100 - window, 0]  # within a chunk, at the end, once more
    for start, expected in zip(starts, slices(path, "recording0", starts, window), strict=True):
        read = recording.read(start, window)
        assert read.dtype == np.dtype(np.float32) and bits(read) == bits(expected)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.filterwarnings("ignore:overflow")
def test_samples_are_bit_for_bit_what_h5py_gives(tmp_path: Path, kind: str) -> None:
    eeg = np.stack([odd(2, 400, kind), *(signal(2, 400, seed=seed).clip(0, 255).astype(kind) for seed in range(3))])
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg, [0, 1, 0, 1])}, names=PAIR)
    with h5py.File(path, locking=False) as file, np.errstate(over="ignore"):
        expected = file["train"]["eeg"][()].astype(np.float32)
    for i in range(4):
        assert bits(read_eeg(path, "train", i)) == bits(expected[i])
    assert bits(read_eeg(path, "train", 1, 9)) == bits(expected[1:])


def test_contiguous_and_compressed_signals_read_the_same(tmp_path: Path) -> None:
    eeg, path = signal(3, 2000), tmp_path / "a.hdf5"
    options = [
        {},
        {"chunks": (1, 333)},
        {"chunks": (3, 2000), "compression": "gzip"},
        {"chunks": True, "shuffle": True},
    ]
    with h5py.File(path, "w") as file:
        for i, option in enumerate(options):
            data = file.create_group(f"{i}").create_dataset("eeg", data=eeg, **option)
            data.attrs.update(chOrder=np.array(TRIO, dtype=h5py.string_dtype()), rsFreq=200.0)
    for recording in read_recordings(path):
        assert bits(recording.read(350, 800)) == bits(eeg[:, 350:1150].astype(np.float32))
        assert bits(np.concatenate(list(recording.blocks(600)), axis=1)) == bits(eeg.astype(np.float32))


@pytest.mark.parametrize("rows, seconds, batch", [(1, 1, 1), (3, 2, 5)])
def test_a_batch_is_bit_for_bit_the_windows_stacked_and_divided(rows: int, seconds: int, batch: int) -> None:
    eeg = [np.roll(odd(rows, seconds * 200, "float32"), i, axis=1) for i in range(batch)]
    kept = [window.copy() for window in eeg]
    expected = torch.from_numpy(np.stack(eeg)) / UNIT
    units = to_units(iter(eeg), batch)
    assert units.shape == (batch, rows, seconds, 200) and bits(units.numpy()) == bits(
        expected.numpy().reshape(units.shape)
    )
    assert all(bits(window) == bits(before) for window, before in zip(eeg, kept, strict=True)), (
        "inputs stay as they are"
    )


def test_windows_of_unlike_shape_are_no_batch() -> None:
    with pytest.raises(ValueError, match=r"\(2,200\).*\(2,400\)"):
        to_units([signal(2, 400), signal(2, 200)], 2)


def test_a_loader_gives_what_h5py_gives_in_the_plan_s_order(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1000, seed=seed) for seed in range(3)])
    loader = pretraining_loaders("--train_data", path, "--time_window", 2).train
    windows = loader.dataset.montages[0]  # type: ignore[attr-defined]
    for batch, keys in zip(loader, loader.batch_sampler, strict=True):
        places = [windows.locate(window) for _, _, window in keys]
        whole = np.stack([slices(path, recording.name, [start], 400)[0] for recording, start in places])
        assert bits(batch.eeg.numpy()) == bits((torch.from_numpy(whole) / UNIT).numpy().reshape(batch.eeg.shape))


# What stays open


def test_a_data_set_is_opened_once(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    assert open_dataset(path, "recording0/eeg") is open_dataset(path, "recording0/eeg")
    assert open_dataset(path, "recording0/eeg") == open_file(path)["recording0"]["eeg"]


def test_few_data_sets_stay_open_and_every_window_is_right_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_files, "OPEN_DATASETS", 3)
    hdf5_files._opened.clear()
    eeg = [signal(2, 400, seed=seed) for seed in range(7)]
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, eeg)
    windows = MontageWindows(read_recordings(path), window=200)
    for index in np.random.default_rng(0).integers(len(windows), size=50):
        recording, start = windows.locate(int(index))
        expected = eeg[int(recording.name.removeprefix("recording"))][:, start : start + 200]
        assert bits(windows[int(index)]) == bits(expected.astype(np.float32))
        assert len(hdf5_files._opened) <= 3 and len(hdf5_files._open(path, os.getpid())[1]) <= 3


def test_a_file_that_is_closed_takes_its_data_sets_with_it(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    link, folder = path.resolve(), Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")

    def is_open() -> bool:
        return any(os.path.realpath(entry) == str(link) for entry in folder.iterdir())

    open_dataset(path, "recording0/eeg")
    assert is_open()
    hdf5_files._open.cache_clear()  # as if too many were open
    assert not is_open()
    assert open_dataset(path, "recording0/eeg").shape == (2, 400), "and it opens again"


def test_a_file_that_is_gone_can_be_read_while_it_is_open(tmp_path: Path) -> None:
    eeg = signal(2, 4000)
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [eeg])
    recording = read_recordings(path)[0]
    recording.read(0, 200)
    path.unlink()
    np.testing.assert_array_equal(recording.read(3000, 400), eeg[:, 3000:3400].astype(np.float32))
    hdf5_files._open.cache_clear()
    with pytest.raises(InputError) as error:
        recording.read(0, 200)
    only_line(error, path)


def test_a_file_cut_short_between_two_reads_is_one_line_and_never_zeros(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 40_000)])
    recording = read_recordings(path)[0]
    recording.read(0, 400)
    os.truncate(path, path.stat().st_size // 2)
    for start in (0, 39_600):  # what is still there is not read either
        with pytest.raises(InputError) as error:
            recording.read(start, 400)
        only_line(error, path, "cut short", "make it again")


def test_a_labelled_file_cut_short_between_two_reads_is_one_line(tmp_path: Path) -> None:
    eeg = np.stack([signal(2, 400, seed=seed) for seed in range(9)])
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg, [0] * 9)}, names=PAIR)
    read_eeg(path, "train", 0)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError) as error:
        read_eeg(path, "train", 8)
    only_line(error, path, "cut short", "make it again")
