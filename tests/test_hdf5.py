"""HDF5 files that others made: joined ones, damaged ones; values are HDF5's own to the last bit."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_helpers import PAIR, TRIO, only_line, signal, write_labelled, write_pretraining
from eeg_data import hdf5
from eeg_data.hdf5 import find_blocks, find_files, open_dataset, open_file, readable
from eeg_data.labelled_files import read_labelled, read_samples
from eeg_data.pretraining_files import read_recordings
from errors import InputError


@pytest.fixture(autouse=True)
def no_open_files() -> None:
    """Begin without handles of other tests."""
    hdf5.close_files()


def joined(folder: Path) -> tuple[Path, np.ndarray]:
    """Write two recordings and a file that shows both as one (virtual), and each by links; return its path."""
    eeg = signal(2, 1000)
    for name, part in (("a", eeg[:, :400]), ("b", eeg[:, 400:])):
        write_pretraining(folder / "parts" / f"{name}.hdf5", PAIR, [part])
    layout = h5py.VirtualLayout(eeg.shape, "f4")
    layout[:, :400] = h5py.VirtualSource("parts/a.hdf5", "recording0/eeg", (2, 400))
    layout[:, 400:] = h5py.VirtualSource("parts/b.hdf5", "recording0/eeg", (2, 600))
    path = folder / "joined.hdf5"
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("both/eeg", layout).attrs.update(chOrder=list(PAIR), rsFreq=200.0)
        file["first"] = h5py.ExternalLink("parts/a.hdf5", "/recording0")
        file["second/eeg"] = h5py.ExternalLink("parts/b.hdf5", "/recording0/eeg")
        file["soft"] = h5py.SoftLink("/both")
    return path, eeg


def test_virtual_data_sets_and_links_to_other_files_are_read(tmp_path: Path) -> None:
    path, eeg = joined(tmp_path)
    expected = {"both": eeg, "soft": eeg, "first": eeg[:, :400], "second": eeg[:, 400:]}
    recordings = read_recordings(path)
    assert {recording.name for recording in recordings} == expected.keys()
    for recording in recordings:
        np.testing.assert_array_equal(recording.read(0, recording.length), expected[recording.name])


@pytest.mark.parametrize("how", ["missing", "damaged", "other name", "later"])
def test_a_lost_source_is_one_line_that_names_it_and_never_zeros(tmp_path: Path, how: str) -> None:
    path, _ = joined(tmp_path)
    source = tmp_path / "parts" / "b.hdf5"
    with h5py.File(path, "r+") as file:
        del file["second"]
    listed = {recording.name: recording for recording in read_recordings(path)}
    hdf5.close_files()
    if how == "damaged":
        source.write_bytes(source.read_bytes()[:900])
    elif how == "other name":
        write_pretraining(source, PAIR, [])
    else:
        source.unlink()
        with h5py.File(path) as file:
            assert (file["both/eeg"][()] == 0).any(), "HDF5 says it itself now"
    with pytest.raises(InputError) as error:
        listed["both"].read(0, 1000) if how == "later" else read_recordings(path)
    only_line(error, path, source)


@pytest.mark.parametrize("name", ["first", "second", "soft"])
def test_a_broken_link_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    path, _ = joined(tmp_path)
    (tmp_path / "parts").rename(tmp_path / "elsewhere")
    with h5py.File(path, "r+") as file:
        for other in {"first", "second", "soft", "both"} - {name}:
            del file[other]
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, name, "link")


def test_a_file_cut_short_while_it_is_open_raises_and_never_reads_zeros(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 40_000)])
    labelled = write_labelled(tmp_path / "b.hdf5", {"train": (signal(9, 2, 400), [0] * 9)}, names=PAIR)
    (recording,), samples = read_recordings(path), read_samples(read_labelled(labelled), "train")
    out = np.empty((2, 400), np.float32)
    recordings = recording.read, lambda start, _: recording.read_into(out, start)
    for file, reads, place in (
        (path, recordings, (39_600, 400)),
        (labelled, (samples.read, lambda sample: samples.read_into(out, sample)), (8,)),
    ):
        for read in reads:
            read(*place)
        os.truncate(file, file.stat().st_size // 2)
        for read in reads:
            with pytest.raises(InputError) as error:
                read(*place)
            only_line(error, file, "cut short")


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 200)}, {"chunks": (2, 200), "compression": "gzip"}], ids=str)
def test_a_file_whose_maker_was_stopped_is_refused(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("someone/eeg", (2, 20_000), "f4", **options)
        data.attrs.update(chOrder=list(PAIR), rsFreq=200.0)
        if options:
            data[:, :10_000] = signal(2, 10_000)
    with pytest.raises(InputError) as error:
        read_recordings(path)
    only_line(error, path, "someone", "only a part")


def test_compressed_and_empty_data_sets_are_whole(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("packed", data=np.zeros((2, 10**5)), chunks=(2, 10**4), compression="gzip")
        file["empty"], file["nothing"] = np.zeros((3, 0)), h5py.Empty("f4")
    for data in open_file(tmp_path / "a.hdf5").values():
        hdf5.check_stored(data, "here")


def test_an_error_of_hdf5_becomes_one_line_that_quotes_nothing_and_ours_pass_through() -> None:
    with pytest.raises(InputError) as raised, readable("a.hdf5", "leave it out"):
        raise RuntimeError("Jane Roe\n1981")
    assert "Jane" not in only_line(raised, "a.hdf5", "RuntimeError", "leave it out")
    with pytest.raises(InputError, match="as it is"), readable("here"):
        raise InputError("as it is")


@pytest.mark.parametrize("kind", ["float16", "float32", ">f4", "float64", "int16"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_windows_and_samples_are_bit_for_bit_the_stored_values(tmp_path: Path, kind: str) -> None:
    eeg = signal(3, 1200).clip(0, 255).astype(kind)
    if np.dtype(kind).kind == "f":
        eeg[0, 3:9] = [np.nan, np.inf, -np.inf, -0.0, np.finfo(kind).max, np.finfo(kind).smallest_subnormal]
    expected = eeg.astype(np.float32)
    options: list[dict[str, Any]] = [{}, {"chunks": (1, 333)}, {"chunks": (3, 1200), "compression": "gzip"}]
    options += [{"chunks": (3, 200)}, {"chunks": (3, 200), "maxshape": (3, None)}]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for i, option in enumerate(options):
            data = file.create_dataset(f"{i}/eeg", data=eeg, **option)
            data.attrs.update(chOrder=list(TRIO), rsFreq=200.0)
    for recording in read_recordings(tmp_path / "a.hdf5"):
        for start, window in ((0, 200), (37, 600), (900, 200)):
            read = recording.read(start, window)
            assert read.dtype == np.float32 and read.tobytes() == expected[:, start : start + window].tobytes()
            recording.read_into(out := np.empty((3, window), np.float32), start)
            assert out.tobytes() == (read / np.float32(100)).tobytes()
            if recording.half:
                recording.read_into(raw := np.empty((3, window), np.float16), start)
                assert raw.tobytes() == eeg[:, start : start + window].tobytes()
        straight = int(recording.name) > 2 and kind in ("float16", "float32")
        assert (find_blocks(recording.path, f"{recording.name}/eeg") is not None) == straight
    path = write_labelled(tmp_path / "b.hdf5", {"train": (np.stack([eeg, eeg[::-1]]), [0, 1])})
    samples = read_samples(read_labelled(path), "train")
    assert samples.read(1).tobytes() == expected[::-1].tobytes()
    samples.read_into(out := np.empty((3, 1200), np.float32), 1)
    assert out.tobytes() == (expected[::-1] / np.float32(100)).tobytes()


def test_blocks_that_lie_apart_and_a_file_that_changes_give_its_own_values(tmp_path: Path) -> None:
    eeg = signal(2, 2, 10_000)  # of two recordings that grew in turn
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for i in range(2):
            data = file.create_dataset(f"{i}/eeg", (2, 0), "f4", chunks=(2, 200), maxshape=(2, None))
            data.attrs.update(chOrder=list(PAIR), rsFreq=200.0)
        for end in (400, 600, 5_000, 10_000):
            for i in range(2):
                file[f"{i}/eeg"].resize(end, axis=1)
                file[f"{i}/eeg"][:, max(0, end - 5_000) :] = eeg[i, :, max(0, end - 5_000) : end]
                file.flush()  # gives the chunks their places
    recording = read_recordings(tmp_path / "a.hdf5")[1]
    blocks, out = find_blocks(recording.path, "1/eeg"), np.empty((2, 1600), np.float32)
    assert blocks is not None and len(blocks.firsts) > 3
    for start in (0, 1, 150, 200, 399, 3_333, 4_800, 8_400):
        recording.read_into(out, start)
        assert out.tobytes() == (eeg[1, :, start : start + 1600] / np.float32(100)).tobytes()
    for cache in (hdf5._open_raw, hdf5._open_dataset, hdf5._open_file):
        cache.cache_clear()  # as when they are closed for the sake of other files
    with h5py.File(recording.path, "r+") as file:
        del file["1"]
        file["1/eeg"] = np.full((2, 10_000), 7.0, "f4")
    recording.read_into(out, 300)
    assert (out == np.float32(7) / np.float32(100)).all()


def test_files_and_data_sets_are_opened_once_read_only_and_by_each_process(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    file, data = open_file(path), open_dataset(path, "recording0/eeg")
    assert open_file(path) is file and open_dataset(path, "recording0/eeg") is data
    with pytest.raises(ValueError, match="no write intent"):
        file.create_group("new")
    child = os.fork()
    if child == 0:
        os._exit(0 if open_file(path) is not file and open_dataset(path, "recording0/eeg").shape == (2, 400) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_windows_of_more_files_than_stay_open_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "OPEN_FILES", 16)
    paths = [write_pretraining(tmp_path / f"{i:03}.hdf5", PAIR, [np.full((2, 400), i)]) for i in range(24)]
    recordings = [recording for path in paths for recording in read_recordings(path)]
    most = 0
    for which in np.random.default_rng(0).integers(24, size=300):
        assert (recordings[which].read(100, 200) == which).all()
        entries = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
        most = max(most, len(entries & set(map(str, paths))))
    assert 8 < most <= 17


def test_files_are_found_sorted_once_and_hidden_ones_are_not(tmp_path: Path) -> None:
    far = write_pretraining(tmp_path / "elsewhere" / "b.HDF5", PAIR, [signal(2, 200)])
    near = write_pretraining(tmp_path / "data" / "a.h5", PAIR, [signal(2, 200)])
    for name in ("._a.hdf5", ".b.hdf5.making/shard.hdf5", ".c.hdf5.12.part", "notes.txt"):
        write_pretraining(near.parent / name, PAIR, [signal(2, 200)])
    (near.parent / "site").symlink_to(far.parent)
    (near.parent / "folder.hdf5").mkdir()
    assert find_files([near, tmp_path / "data"], "--train_data") == [near, far]
    lost = near.parent / "c.hdf5"
    lost.symlink_to(tmp_path / "not_mounted.hdf5")
    assert find_files([near.parent], "--train_data") == [near, lost, far]
    with pytest.raises(InputError, match=r"c\.hdf5"):  # rather than a smaller data set
        open_file(lost)
    with pytest.raises(InputError, match="--train_data"):
        find_files([near.parent / "folder.hdf5"], "--train_data")
