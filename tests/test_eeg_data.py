"""Pre-training files to batches: golden windows, real HDF5 files, and every error a file can cause."""

import functools
import json
import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data_helpers import (
    PAIR,
    TRIO,
    counting,
    digests,
    only_line,
    plain_run,
    pretraining_loaders,
    signal,
    write_pretraining,
)
from eeg_data.pretraining import MontageWindows
from eeg_data.pretraining_files import Recording, default_window, read_recordings, window_range
from electrodes import ELECTRODES
from errors import InputError, UsageError
from modeling_pretrain import random_mask
from run_helpers import start

TESTS = Path(__file__).parent
WINDOWS = json.loads((TESTS / "golden" / "windows.json").read_text())
MASKS = functools.partial(random_mask, 1, ratio=0.5)


# Windows


@pytest.mark.parametrize("case", WINDOWS["cases"], ids=lambda case: f"{case['window']}-{case['stride']}")
@pytest.mark.parametrize("as_bytes", [False, True])
def test_windows_are_those_of_the_released_dataset(tmp_path: Path, case: dict, as_bytes: bool) -> None:
    recordings = [
        recording
        for name, lengths in WINDOWS["recording_lengths"].items()
        for recording in read_recordings(
            write_pretraining(
                tmp_path / f"{name}.hdf5", PAIR, [counting(2, length) for length in lengths], as_bytes=as_bytes
            )
        )
    ]
    windows = MontageWindows(
        recordings, window=case["window"], stride=case["stride"], start=case["start"], end=case["end"]
    )
    assert len(windows) == case["len"] == len(case["first_samples"])
    eeg = [windows[i] for i in range(len(windows))]
    assert [float(window[0, 0]) for window in eeg] == case["first_samples"]
    for window in eeg:
        assert window.shape == (2, case["window"]) and window.dtype == np.float32
        assert (np.diff(window) == 1).all() and (window[1] - window[0] == 100_000).all()


@pytest.mark.parametrize(
    ("electrodes", "seconds"), [(1, 16), (16, 16), (17, 15), (19, 13), (23, 11), (32, 8), (64, 4), (128, 2), (136, 1)]
)
def test_the_default_window_holds_at_most_256_patches_and_16_seconds(electrodes: int, seconds: int) -> None:
    assert default_window(electrodes) == seconds * 200


@pytest.mark.parametrize(
    ("length", "window", "stride", "ends", "expected"),
    [
        (399, 400, 200, (0, 1), []),
        (400, 400, 200, (0, 1), [0]),
        (0, 200, 200, (0, 1), []),
        (599, 400, 200, (0, 1), [0]),
        (600, 400, 200, (0, 1), [0, 1]),
        (1000, 200, 800, (0, 1), [0, 1]),
        (1000, 200, 1, (0, 0), []),
        (2000, 200, 200, (0, 0.5), [0, 1, 2, 3, 4]),
        (2000, 200, 200, (0.5, 1), [5, 6, 7, 8, 9]),
        (2000, 200, 200, (0.19, 0.39), [1, 2]),
        (100, 400, 200, (0.5, 1), []),
    ],
)
def test_a_recording_has_the_windows_that_lie_wholly_in_it(
    length: int, window: int, stride: int, ends: tuple[float, float], expected: list[int]
) -> None:
    assert list(window_range(length, window, stride, *ends)) == expected


def test_two_halves_of_a_recording_are_all_of_it() -> None:
    for length in range(0, 3000, 170):
        halves = [*window_range(length, 400, 130, 0, 0.3), *window_range(length, 400, 130, 0.3, 1)]
        assert halves == list(window_range(length, 400, 130))


def test_a_recording_without_windows_between_others_is_stepped_over(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [counting(2, n) for n in (100, 400, 150, 100, 200, 50)])
    windows = MontageWindows(read_recordings(path), window=200)
    assert [windows.locate(i)[0].name for i in range(len(windows))] == ["recording1", "recording1", "recording4"]
    assert windows.too_short == 4


def test_recordings_shorter_than_the_window_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, n) for n in (1000, 399, 200)])
    pretraining_loaders("--train_data", tmp_path, "--val_data", tmp_path, "--time_window", 2)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings and all(text.startswith("2 of 3 recordings with 2 electrodes are shorter") for text in warnings)
    assert "2 s" in warnings[0]


def test_nothing_is_warned_about_where_every_recording_is_long_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    pretraining_loaders("--train_data", tmp_path, "--val_data", tmp_path, "--time_window", 2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def with_valid(path: Path, valid: Sequence[np.ndarray], recordings: Sequence[np.ndarray]) -> Path:
    """Write a pre-training file that says which seconds are valid."""
    write_pretraining(path, PAIR, recordings)
    with h5py.File(path, "r+") as file:
        for i, row in enumerate(valid):
            file[f"recording{i}/valid"] = row
    return path


@pytest.mark.parametrize("ends", [(0, 1), (0.25, 0.8)])
@pytest.mark.parametrize(("window", "stride"), [(400, 200), (200, 800), (600, 130), (1000, 1)])
def test_windows_with_an_invalid_second_are_left_out_of_the_released_ones(
    tmp_path: Path, window: int, stride: int, ends: tuple[float, float]
) -> None:
    valid = [np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0], bool), np.zeros(5, bool), np.ones(9, bool)]
    path = with_valid(tmp_path / "a.hdf5", valid, [counting(2, n) for n in (2350, 1000, 1750)])
    expected, left_out = [], 0
    for seconds, length in zip(valid, (2350, 1000, 1750), strict=True):
        for i in window_range(length, window, stride, *ends):
            touched = seconds[i * stride // 200 : (i * stride + window - 1) // 200 + 1]
            expected += [i * stride] if touched.all() else []
            left_out += not touched.all()
    windows = MontageWindows(read_recordings(path), window=window, stride=stride, start=ends[0], end=ends[1])
    assert [int(windows[i][0, 0]) for i in range(len(windows))] == expected
    assert windows.left_out == left_out > 0 and len(windows) == len(expected)
    with pytest.raises(IndexError):
        windows.locate(len(windows))


def test_memory_of_windows_grows_with_recordings_not_with_windows() -> None:
    recordings = [
        Recording(Path("a"), f"r{i}", PAIR, 10**9, ((5, 6), (10**6, 2 * 10**6))) for i in range(100)
    ]  # 58 days each
    tracemalloc.start()
    windows = MontageWindows(recordings, window=400, stride=1)
    _kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(windows) > 7 * 10**10 and most < 500_000
    assert windows.locate(len(windows) - 1) == (recordings[-1], 10**9 - 400)


def test_windows_with_invalid_seconds_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    eeg = signal(2, 4000)
    eeg[1, 1050] = np.nan
    silent = write_pretraining(tmp_path / "silent.hdf5", PAIR, [eeg])
    stated = with_valid(tmp_path / "stated.hdf5", [np.arange(20) != 5], [signal(2, 4000)])
    for path in (silent, stated):
        caplog.clear()
        loaders = pretraining_loaders("--train_data", path, "--val_data", path, "--time_window", 2, "--batch_size", 1)
        said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
        assert len(said) == 2 and set(said) == {
            "2 of 19 windows with 2 electrodes touch seconds that cannot be used (not finite, or all electrodes flat) "
            "and are left out."
        }
        assert len(loaders.train) == 17
        assert all(torch.isfinite(batch.eeg).all() for batch in loaders.train)


def test_data_without_a_single_usable_window_are_refused(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [np.full((2, 4000), np.nan)])
    with pytest.raises(InputError) as error:
        pretraining_loaders("--train_data", path, "--val_data", path)
    only_line(error, "--train_data", path, "all 5 windows", "dataset_maker.inspect_data")


def test_odd_signals_are_warned_about_once_a_montage_and_only_by_the_first_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pretraining(tmp_path / "a" / "a.hdf5", PAIR, [signal(2, 4000) * 1e-6, signal(2, 4000) * 1e-6])
    write_pretraining(tmp_path / "a" / "b.hdf5", PAIR, [signal(2, 4000) * 1e-6])
    good = write_pretraining(tmp_path / "good.hdf5", TRIO, [signal(3, 4000)])
    words = ("--train_data", tmp_path / "a", good, "--val_data", good)
    pretraining_loaders(*words)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith("--train_data, 2 electrodes: Half of all values") and "volts" in said
    caplog.clear()
    pretraining_loaders(*words, rank=1, processes=2)
    assert not caplog.records


def test_electrodes_are_checked_before_signals_are_scanned(tmp_path: Path, cache: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", ("FP1", "FPX"), [signal(2, 4000)])
    before = len(list(cache.iterdir()))
    with pytest.raises(InputError, match="FPX"):
        pretraining_loaders("--train_data", path)
    assert len(list(cache.iterdir())) == before


FOLLOWING = """
import dataclasses, os, sys, time
import torch.distributed as dist
from data_helpers import plain_run
from pathlib import Path

log = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
run = plain_run(Path(), rank=rank, processes=dist.get_world_size())
run = dataclasses.replace(run, cpu_group=dist.new_group(backend="gloo"))
for fails in (False, True):
    try:
        with run.rank0_first():
            time.sleep(0.7 * (rank == 0))
            with log.open("a") as file:
                file.write(f"{rank} ")
            if fails and rank == 0:
                raise ValueError
    except ValueError:
        pass
    dist.barrier()
dist.destroy_process_group()
"""


def test_other_processes_wait_for_the_first_ones_scan_and_for_its_failure(tmp_path: Path) -> None:
    (tmp_path / "following.py").write_text(FOLLOWING)
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    start([tmp_path / "following.py", tmp_path / "log"], cwd=tmp_path, processes=2, PYTHONPATH=paths)
    assert (tmp_path / "log").read_text().split() == ["0", "1", "0", "1"]


# Files


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_files_of_other_float_types_and_spellings_are_read_alike(tmp_path: Path, dtype: type, as_bytes: bool) -> None:
    eeg = np.round(signal(3, 1000))  # whole numbers, exact in float16 too
    plain = read_recordings(write_pretraining(tmp_path / "plain.hdf5", TRIO, [eeg]))[0]
    other = read_recordings(write_pretraining(tmp_path / "other.hdf5", TRIO, [eeg], dtype=dtype, as_bytes=as_bytes))[0]
    assert other.montage == plain.montage == TRIO and other.length == 1000
    assert other.read(200, 400).dtype == np.float32
    np.testing.assert_array_equal(other.read(200, 400), eeg[:, 200:600])
    np.testing.assert_array_equal(plain.read(200, 400), eeg[:, 200:600])


def test_recordings_are_grouped_by_montage_across_files(tmp_path: Path) -> None:
    first = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 600)])
    second = write_pretraining(tmp_path / "b.hdf5", TRIO, [signal(3, 400)])
    third = write_pretraining(tmp_path / "c.hdf5", PAIR, [signal(2, 800), signal(2, 200)])
    swapped = write_pretraining(tmp_path / "d.hdf5", PAIR[::-1], [signal(2, 200)])
    words = ("--val_data", first, "--time_window", 1)
    found = pretraining_loaders("--train_data", first, second, third, swapped, *words).train.dataset.montages
    assert {m.montage: len(m) for m in found} == {PAIR: 3 + 4 + 1, TRIO: 2, PAIR[::-1]: 1}
    assert [m.channels.tolist() for m in found] == [[0, *(ELECTRODES.index(n) + 1 for n in m.montage)] for m in found]


def test_montages_come_in_one_order_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    names = [TRIO, PAIR, ("O1",), PAIR[::-1]]
    paths = [
        write_pretraining(tmp_path / f"{i}.hdf5", montage, [signal(len(montage), 1200, seed=i)])
        for i, montage in enumerate(names)
    ]
    words = ("--val_data", tmp_path, "--time_window", 1)
    orders = [
        digests(pretraining_loaders("--train_data", *order, *words).train)
        for order in (paths, paths[::-1], paths[2:] + paths[:2], [tmp_path])
    ]
    assert len(set(orders[0])) > 4
    assert orders[0] == orders[1] == orders[2] == orders[3]


def test_without_val_data_the_default_folder_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    write_pretraining(tmp_path / "data/pretrain/a.hdf5", PAIR, [signal(2, 3200)])
    assert pretraining_loaders().val is None
    assert "nothing is evaluated" in caplog.text
    write_pretraining(tmp_path / "data/pretrain_val/b.hdf5", PAIR, [signal(2, 3400)])
    val = pretraining_loaders().val
    assert val is not None and sum(len(batch.eeg) for batch in val) == 2


# Errors


@pytest.mark.parametrize(("flag", "other"), [("--train_data", "--val_data"), ("--val_data", "--train_data")])
def test_no_data_at_a_path_is_said_with_flag_path_and_way_out(tmp_path: Path, flag: str, other: str) -> None:
    good = write_pretraining(tmp_path / "good.hdf5", PAIR, [signal(2, 3200)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    for path in (tmp_path / "missing", tmp_path / "missing.hdf5", tmp_path / "empty"):
        with pytest.raises(InputError) as error:
            pretraining_loaders(flag, good, path, other, good)
        only_line(error, f"no data found at {path}:", flag, "make_h5dataset_for_pretrain.py")
        assert error.value.exit_code == 1


def not_hdf5(path: Path) -> None:
    path.write_text("these are no recordings\n" * 100)


def empty_file(path: Path) -> None:
    path.touch()


def no_recordings(path: Path) -> None:
    h5py.File(path, "w").close()


def dataset_at_root(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["eeg"] = signal(2, 400)


def group_without_eeg(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("someone")["signal"] = signal(2, 400)


def eeg_of_three_axes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("train")["eeg"] = signal(4, 2, 400)


def without_rate(path: Path) -> None:
    write_pretraining(path, PAIR, [signal(2, 3200)], leave_out=["rsFreq"])


def without_names(path: Path) -> None:
    write_pretraining(path, PAIR, [signal(2, 3200)], leave_out=["chOrder"])


def too_few_names(path: Path) -> None:
    write_pretraining(path, PAIR, [signal(3, 3200)])


def other_rate(path: Path) -> None:
    write_pretraining(path, PAIR, [signal(2, 3200)], rate=256)


def unknown_electrode(path: Path) -> None:
    write_pretraining(path, ("FP1", "FPX"), [signal(2, 3200)])


def electrode_beyond_the_table(path: Path) -> None:
    write_pretraining(path, ("FP1", "P4-O2"), [signal(2, 3200)])


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (not_hdf5, ["no readable HDF5 file", "make it again"]),
        (empty_file, ["no readable HDF5 file", "make it again"]),
        (no_recordings, ["holds no recordings", "leave it out"]),
        (dataset_at_root, ["no pre-training file", "make_h5dataset_for_pretrain.py"]),
        (group_without_eeg, ["no pre-training file", "someone", "make_h5dataset_for_pretrain.py"]),
        (eeg_of_three_axes, ["no pre-training file", "train", "make_h5dataset_for_pretrain.py"]),
        (without_rate, ["recording0", "rsFreq", "missing", "dataset_maker"]),
        (without_names, ["recording0", "chOrder", "missing", "dataset_maker"]),
        (too_few_names, ["recording0", "2 electrode names for 3 rows"]),
        (other_rate, ["recording0", "256 Hz", "200 Hz", "--rsfreq 200"]),
        (unknown_electrode, ["FPX", "FPZ"]),
        (electrode_beyond_the_table, ["P4-O2", "--num_electrodes 136"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_file_among_good_ones_is_named_in_one_line_with_a_way_out(
    tmp_path: Path, write, parts: list[str]
) -> None:
    good = write_pretraining(tmp_path / "good.hdf5", TRIO, [signal(3, 3200)])
    bad = tmp_path / "bad.hdf5"
    write(bad)
    with pytest.raises(InputError) as error:
        pretraining_loaders("--train_data", good, bad, "--val_data", good)
    only_line(error, bad, *parts)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    whole = write_pretraining(tmp_path / "whole.hdf5", PAIR, [signal(2, 20_000), signal(2, 20_000)]).read_bytes()
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError) as error:
        pretraining_loaders("--train_data", cut, "--val_data", cut)
    only_line(error, cut, "cut short", "make it again")


def test_a_damaged_place_within_a_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "damaged.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("someone").create_dataset(
            "eeg", data=signal(2, 2000), chunks=(2, 200), fletcher32=True
        )
        data.attrs.update(chOrder=np.array(PAIR, dtype=h5py.string_dtype()), rsFreq=200.0)
        place = data.id.get_chunk_info(5).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"XXXXXXXX"
    path.write_bytes(content)
    recording = read_recordings(path)[0]
    assert recording.read(0, 1000).shape == (2, 1000)
    with pytest.raises(InputError) as error:
        recording.read(1000, 200)
    only_line(error, path, "someone", "1000", "make the file again")


def test_an_electrode_beyond_the_published_table_has_a_row_in_the_grown_one(tmp_path: Path) -> None:
    electrode_beyond_the_table(tmp_path / "a.hdf5")
    loaders = pretraining_loaders("--train_data", tmp_path, "--val_data", tmp_path, "--num_electrodes", 136)
    assert loaders.train.dataset.montages[0].channels.tolist() == [0, 1, 136]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--time_window", 17], ["--time_window 17", "1 to 16"]),
        (["--time_window", 0], ["--time_window 0", "1 to 16"]),
        (["--time_window", -1], ["--time_window -1", "1 to 16"]),
        (["--window_stride", 0], ["--window_stride 0", "from 1"]),
        (["--window_stride", -200], ["--window_stride -200", "from 1"]),
    ],
    ids=str,
)
def test_a_window_or_stride_that_cannot_be_is_wrong_usage(tmp_path: Path, words: list, parts: list[str]) -> None:
    write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 4000)])
    with pytest.raises(UsageError) as error:
        pretraining_loaders("--train_data", tmp_path, *words)
    only_line(error, *parts)
    assert error.value.exit_code == 2


def test_a_window_of_16_seconds_is_allowed(tmp_path: Path) -> None:
    write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 3200)])
    loaders = pretraining_loaders("--train_data", tmp_path, "--val_data", tmp_path, "--time_window", 16)
    assert next(iter(loaders.train)).eeg.shape == (4, 2, 16, 200)


@pytest.mark.parametrize("flag", ["--train_data", "--val_data"])
def test_data_that_are_all_too_short_are_refused_with_the_longest_recording(tmp_path: Path, flag: str) -> None:
    short = write_pretraining(tmp_path / "short.hdf5", PAIR, [signal(2, 500), signal(2, 300)])
    good = write_pretraining(tmp_path / "good.hdf5", PAIR, [signal(2, 4000)])
    other = {"--train_data": "--val_data", "--val_data": "--train_data"}[flag]
    with pytest.raises(InputError) as error:
        pretraining_loaders(flag, short, other, good)
    only_line(error, flag, short, "2.5 s", "--time_window")


# Batches


@pytest.fixture(scope="module")
def two_montages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_pretraining(folder / "a.hdf5", PAIR, [signal(2, 2300), signal(2, 1000, seed=1)])
    write_pretraining(folder / "b.hdf5", TRIO, [signal(3, 1800, seed=2)])
    return folder


def masked_words(folder: Path, *more) -> list:
    return ["--train_data", folder, "--val_data", folder, "--time_window", 3, *more]


@pytest.fixture(scope="module")
def in_process(two_montages: Path) -> tuple[list[str], list[str]]:
    loaders = pretraining_loaders(*masked_words(two_montages), make_mask=MASKS)
    return digests(loaders.train, epoch=1), digests_of_evaluation(loaders.val)


def digests_of_evaluation(loader) -> list[str]:
    loader.batch_sampler.set_epoch = lambda epoch: None
    return digests(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(two_montages: Path, in_process, workers: int) -> None:
    loaders = pretraining_loaders(*masked_words(two_montages, "--num_workers", workers), make_mask=MASKS)
    digests(loaders.train, epoch=0)  # the workers stay, so the epoch that counts is not their first
    assert digests(loaders.train, epoch=1) == in_process[0]
    assert digests_of_evaluation(loaders.val) == in_process[1]
    assert len(set(in_process[0])) == len(in_process[0]) > 4


SPAWNED = """
import json, sys
import torch
from test_eeg_data import MASKS, digests, masked_words, pretraining_loaders

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    loaders = pretraining_loaders(*masked_words(sys.argv[1], "--num_workers", 1), make_mask=MASKS)
    print(json.dumps([digests(loaders.train, epoch) for epoch in (0, 1)]))
"""


def test_spawned_workers_give_the_same_batches_and_masks(tmp_path: Path, two_montages: Path, in_process) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, two_montages], env=paths, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == in_process[0]


def test_models_see_hundreds_of_microvolts_electrode_by_electrode(tmp_path: Path) -> None:
    eeg = [signal(3, 1500), signal(3, 1100, seed=1)]
    write_pretraining(tmp_path / "a.hdf5", TRIO, eeg)
    loaders = pretraining_loaders(
        *("--train_data", tmp_path, "--val_data", tmp_path, "--time_window", 2, "--window_stride", 300)
    )
    assert loaders.val is not None
    expected = [(r, s) for r, n in ((0, 1500), (1, 1100)) for s in range(0, n - 400 + 1, 300)]
    seen = 0
    for batch in loaders.val:
        assert batch.eeg.dtype == torch.float32 and batch.eeg.shape[1:] == (3, 2, 200)
        assert batch.channels.tolist() == [0, *(ELECTRODES.index(name) + 1 for name in TRIO)]
        for window in batch.eeg.numpy():
            recording, start = expected[seen]
            for n in range(3):
                for a in range(2):
                    part = eeg[recording][n, start + 200 * a : start + 200 * (a + 1)]
                    np.testing.assert_allclose(window[n, a], part / 100, rtol=1e-6)
            seen += 1
    assert seen == len(expected) == 7


def test_a_training_batch_holds_the_windows_that_its_keys_name(two_montages: Path) -> None:
    loader = pretraining_loaders(*masked_words(two_montages), rank=1, processes=2).train
    keys = list(loader.batch_sampler)
    batches = list(loader)
    assert len(keys) == len(batches)
    for batch, names in zip(batches, keys, strict=True):
        for eeg, (_, montage, window) in zip(batch.eeg, names, strict=True):
            recording, start = loader.dataset.montages[montage].locate(window)
            with h5py.File(recording.path, locking=False) as file:
                raw = file[recording.name]["eeg"][:, start : start + 600]
            np.testing.assert_allclose(eeg.reshape(len(raw), 600), raw / 100, rtol=1e-6)


def test_two_processes_loaders_joined_give_the_batches_of_one_with_masks(two_montages: Path) -> None:
    one = pretraining_loaders(*masked_words(two_montages, "--batch_size", 8), make_mask=MASKS)
    two = [pretraining_loaders(*masked_words(two_montages), make_mask=MASKS, rank=r, processes=2) for r in (0, 1)]
    assert one.steps_per_epoch == two[0].steps_per_epoch == len(one.train)
    for whole, *halves in zip(one.train, two[0].train, two[1].train, strict=True):
        assert torch.equal(whole.eeg, torch.cat([half.eeg for half in halves]))
        assert torch.equal(whole.mask, torch.cat([half.mask for half in halves]))


def masks_by_window(folder: Path, epoch: int, *words, **run: int) -> dict[tuple[int, int], tuple[bool, ...]]:
    loader = pretraining_loaders(*masked_words(folder, "--time_window", 5, *words), make_mask=MASKS, **run).train
    loader.batch_sampler.set_epoch(epoch)
    keys = [key for batch in loader.batch_sampler for key in batch]
    masks = [tuple(mask.tolist()) for batch in loader for mask in batch.mask]
    found: dict[tuple[int, int], tuple[bool, ...]] = {}
    for (_, montage, window), mask in zip(keys, masks, strict=True):
        assert found.setdefault((montage, window), mask) == mask, "a repeated window got another mask"
    return found


def test_a_mask_depends_on_seed_epoch_and_window_only(two_montages: Path) -> None:
    first = masks_by_window(two_montages, 1)
    for words, run in [(("--batch_size", 3), {}), (("--dataset_order", "sequential"), {})]:
        assert masks_by_window(two_montages, 1, *words, **run) == first
    share = masks_by_window(two_montages, 1, rank=1, processes=2)
    assert share.items() <= first.items() and share
    for other in (masks_by_window(two_montages, 2), masks_by_window(two_montages, 1, seed=1)):
        assert other.keys() == first.keys()
        assert sum(other[key] != first[key] for key in first) >= 0.9 * len(first)
    for montage in (0, 1):
        own = [mask for (m, _), mask in first.items() if m == montage]
        assert len(set(own)) >= len(own) - 1, "windows share masks"


def test_drawing_a_mask_leaves_the_global_random_states_alone(two_montages: Path) -> None:
    dataset = pretraining_loaders(*masked_words(two_montages), make_mask=MASKS).train.dataset
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    masks = [dataset[0, montage, window][2] for montage in (0, 1) for window in range(5)]
    assert len(masks) == 10
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize(("ratio", "masked"), [(0.5, {6: 3, 9: 5}), (0.25, {6: 2, 9: 3}), (0.9, {6: 6, 9: 9})])
def test_masks_have_exact_counts(two_montages: Path, ratio: float, masked: dict[int, int]) -> None:
    make_mask = functools.partial(random_mask, 1, ratio=ratio)
    loaders = pretraining_loaders(*masked_words(two_montages), make_mask=make_mask)
    seen = set()
    for batch in loaders.train:
        patches = batch.mask.shape[1]
        assert batch.mask.dtype == torch.bool and patches == batch.eeg.shape[1] * batch.eeg.shape[2]
        assert batch.mask.sum(1).tolist() == [masked[patches]] * len(batch.mask)
        seen.add(patches)
    assert seen == {6, 9}


def test_evaluation_masks_stay_the_same_and_without_a_maker_there_are_none(two_montages: Path) -> None:
    val = pretraining_loaders(*masked_words(two_montages), make_mask=MASKS).val
    assert val is not None
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(val, val, strict=True))
    assert {batch.mask.shape[1] for batch in pretraining_loaders(*masked_words(two_montages)).val} == {0}


def test_a_batch_moves_to_the_runs_type_without_touching_rows_and_masks(tmp_path: Path, two_montages: Path) -> None:
    batch = next(iter(pretraining_loaders(*masked_words(two_montages), make_mask=MASKS).train))
    run = plain_run(tmp_path)
    double = batch.to(type(run)(**{**vars(run), "dtype": torch.float64}))
    assert (double.eeg.dtype, double.channels.dtype, double.mask.dtype) == (torch.float64, torch.int64, torch.bool)
    assert torch.equal(double.eeg.float(), batch.eeg) and torch.equal(double.mask, batch.mask)


def test_the_loader_says_what_it_found(two_montages: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaders = pretraining_loaders(*masked_words(two_montages, "--batch_size", 8))
    counts = [len(m) for m in loaders.train.dataset.montages]
    assert counts == [7, 9 + 3]  # C3 CZ C4, 1800 samples; FP1 FP2, 2300 and 1000 samples; 3 s every second
    assert "3 electrodes: 1 recording(s), 7 windows of 3 s, 1 repeated to complete the last batch" in caplog.text
    assert "2 electrodes: 2 recording(s), 12 windows of 3 s, 4 repeated to complete the last batch" in caplog.text
