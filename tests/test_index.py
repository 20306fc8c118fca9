"""Indices of folders: a list from one equals a list from the files, and none outlives a change of its file."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest

from data_helpers import PAIR, TRIO, signal, write_pretraining
from eeg_data import hdf5, index
from eeg_data.hdf5 import find_files
from eeg_data.index import NAME, index_folder, list_recordings
from eeg_data.pretraining_files import Recording, read_recordings
from errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files in two folders; one says which seconds are valid and has a scan."""
    hdf5.close_files()
    path = write_pretraining(tmp_path / "set" / "a.hdf5", PAIR, [signal(2, 4_100), signal(2, 900, seed=1)])
    scan = read_recordings(path)[0].scan()
    hdf5.close_files()
    with h5py.File(path, "r+") as file:
        file["recording0/valid"] = np.arange(21) % 5 != 2
        file["recording0/eeg"].attrs["quality"] = scan.to_json()
    write_pretraining(tmp_path / "set" / "b.hdf5", TRIO, [signal(3, 700, seed=2)], dtype="f2")
    write_pretraining(tmp_path / "set" / "c" / "d.hdf5", PAIR, [signal(2, 600, seed=3)])
    return tmp_path / "set"


def contents(recordings: list[Recording]) -> list[Any]:
    """Return all that a run takes from recordings, their signals too."""
    values = []
    for each in recordings:
        each.read_into(out := np.empty((len(each.montage), 400), np.float32), 77)
        scan, valid = each.quality(), None if each.valid is None else each.valid.tolist()
        values.append((each, valid, each.half, scan and scan.to_json(), out.tobytes()))
    return values


def listed(folder: Path, *, opens: bool, write: bool = True) -> list[Recording]:
    """List a folder's recordings; check whether HDF5 opens any file for it."""
    hdf5.close_files()
    with patch.object(hdf5, "_open_file", wraps=hdf5._open_file) as opened:
        recordings = list_recordings(find_files([folder], "--train_data"), write=write)
        assert opened.called == opens
    return recordings


def test_a_list_from_an_index_is_the_list_from_the_files_without_opening_them(folder: Path) -> None:
    expected = contents([each for path in find_files([folder], "x") for each in read_recordings(path)])
    hdf5.close_files()
    index_folder(folder)
    assert (folder / NAME).is_file() and (folder / "c" / NAME).is_file()
    indexed = listed(folder, opens=False)
    with patch.object(hdf5, "open_file", side_effect=AssertionError("signals need no HDF5")):
        assert contents(indexed) == expected
    for path in (folder / NAME, folder / "c" / NAME):
        path.unlink()
    unwritten = listed(folder, opens=True, write=False)
    with patch.object(hdf5, "find_blocks", side_effect=AssertionError("blocks are found once")):
        assert [each.blocks is not None for each in unwritten] == [True] * 4
        assert contents(unwritten) == expected and not (folder / NAME).exists()
    assert contents(listed(folder, opens=True)) == contents(listed(folder, opens=False)) == expected


def test_changed_new_and_lost_files_are_seen_at_once(folder: Path) -> None:
    index_folder(folder)
    time = (folder / "a.hdf5").stat().st_mtime_ns
    write_pretraining(folder / "a.hdf5", PAIR, [signal(2, 4_100, seed=7), signal(2, 800)])
    os.utime(folder / "a.hdf5", ns=(time, time))  # of the same age, but of another size
    write_pretraining(folder / "e.hdf5", PAIR, [signal(2, 1_000)], valid=[np.ones(5, bool)])
    (folder / "b.hdf5").unlink()
    lengths = [(each.path.name, each.length) for each in listed(folder, opens=True)]
    assert lengths == [("a.hdf5", 4_100), ("a.hdf5", 800), ("d.hdf5", 600), ("e.hdf5", 1_000)]
    assert [(each.path.name, each.length) for each in listed(folder, opens=False)] == lengths
    assert '"b.hdf5"' not in (folder / NAME).read_text()
    hdf5.close_files()
    size = (folder / "e.hdf5").stat().st_size
    with h5py.File(folder / "e.hdf5", "r+") as file:
        file["recording0/valid"][3] = False
    assert (folder / "e.hdf5").stat().st_size == size
    valid = listed(folder, opens=True)[-1].valid
    assert valid is not None and valid.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(("age", "expected"), [(0.02, 0.03), (60, 0), (-60, 0.05)])
def test_a_file_that_was_just_written_is_listed_when_its_next_change_would_show(
    folder: Path, monkeypatch: pytest.MonkeyPatch, age: float, expected: float
) -> None:
    waits = list[float]()
    monkeypatch.setattr(index.time, "time", lambda: (folder / "a.hdf5").stat().st_mtime + age)
    monkeypatch.setattr(index.time, "sleep", waits.append)
    list_recordings([folder / "a.hdf5"], write=True)
    assert waits == [pytest.approx(expected, abs=1e-4)]


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 1, "files": {"a.hdf5": {"stamp": 3}}}', '{"format": 99}'])
def test_an_index_that_is_damaged_or_of_another_version_counts_as_none(folder: Path, text: str) -> None:
    (folder / NAME).write_text(text)
    assert len(listed(folder, opens=True)) == 4
    assert len(listed(folder, opens=False)) == 4


def test_files_that_hdf5_must_read_are_listed_from_the_files_each_time(tmp_path: Path) -> None:
    hdf5.close_files()
    write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 600)], compression="gzip")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["far"] = h5py.ExternalLink("a.hdf5", "/recording0")
    for _ in range(2):
        assert len(listed(tmp_path, opens=True)) == 2
    (tmp_path / "c.hdf5").symlink_to(tmp_path / "lost")
    with pytest.raises(InputError, match=r"c\.hdf5"):
        listed(tmp_path, opens=True)
