"""Scans of files that do not say which seconds are valid, and the cache that remembers them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import files
from data_helpers import PAIR, TRIO, signal, write_labelled, write_pretraining
from dataset_maker import scans
from dataset_maker.scans import complete_recordings, complete_samples, recordings_quality, samples_quality
from eeg_data.hdf5 import _open
from eeg_data.labelled_files import read_labelled, read_samples
from eeg_data.pretraining_files import Recording, read_recordings
from eeg_data.quality import SignalScan
from errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LABRAM_CACHE", str(folder))
    return folder


def broken(samples: int, seed: int = 0, rows: int = 2) -> np.ndarray:
    """Return noise with NaN in second 1, all electrodes flat in second 3, one of them flat in second 4."""
    eeg = signal(rows, samples, seed=seed)
    eeg[0, 333] = np.nan
    eeg[:, 600:800] = 5
    eeg[1, 800:1000] = 0
    return eeg


def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a signal was looked at again")

    monkeypatch.setattr(SignalScan, "add", refuse)


def complete(path: Path, **options: bool) -> list[Recording]:
    return complete_recordings(read_recordings(path), **options)[0]


def test_recordings_of_a_silent_file_are_scanned(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500), signal(2, 450, seed=1)])
    recordings, found = complete_recordings(read_recordings(path))
    assert [r.invalid for r in recordings] == [((1, 2), (3, 4)), ()]
    quality = recordings_quality(recordings, found)
    assert quality is not None
    assert quality.valid.tolist() == [True, False, True, False, True, True, True, True, True, True, True]
    assert (quality.flat, quality.not_finite, quality.seconds) == ({"FP1": 1, "FP2": 2}, {"FP1": 1}, 11)
    assert quality.histogram.sum() == 2 * 1950 - 1


def test_a_file_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500), signal(2, 450, seed=1)])
    first, found = complete_recordings(read_recordings(path))
    before = recordings_quality(first, found)
    assert len(list(cache.iterdir())) == 1
    no_scan(monkeypatch)
    again, found = complete_recordings(read_recordings(path))
    after = recordings_quality(again, found)
    assert again == first and before is not None and after is not None
    assert after.to_json() == before.to_json() and after.valid.tolist() == before.valid.tolist()


def test_a_file_that_changed_is_scanned_again(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1500)])
    assert complete(path)[0].invalid == ()
    write_pretraining(tmp_path / "b.hdf5", PAIR, [broken(1500)])
    _open.cache_clear()
    (tmp_path / "b.hdf5").replace(path)
    assert complete(path)[0].invalid == ((1, 2), (3, 4))


def test_files_that_say_it_themselves_are_not_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500)])
    with h5py.File(path, "r+") as file:
        file["recording0/valid"] = np.arange(8) != 6
    no_scan(monkeypatch)
    recordings, found = complete_recordings(read_recordings(path))
    assert recordings[0].invalid == ((6, 7),) and not found and not cache.exists()
    assert recordings_quality(recordings, found) is None


def test_a_thorough_look_scans_what_is_not_known_and_believes_what_is_said(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500), broken(1500)])
    with h5py.File(path, "r+") as file:
        file["recording0/valid"] = np.arange(8) != 6
    recordings, found = complete_recordings(read_recordings(path), thorough=True)
    assert [r.invalid for r in recordings] == [((6, 7),), ((1, 2), (3, 4))]
    quality = recordings_quality(recordings, found)
    assert quality is not None and quality.not_finite == {"FP1": 2}


def test_stated_qualities_are_read_and_added(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1500), signal(2, 600)])
    with h5py.File(path, "r+") as file:
        for name, seconds in (("recording0", 8), ("recording1", 3)):
            file[name]["valid"] = np.ones(seconds, bool)
            seen = {"flat": {"FP1": 2}, "saturated": {}, "not_finite": {}, "histogram": {"9": 1}, "seconds": seconds}
            file[name]["eeg"].attrs["quality"] = json.dumps(seen)
    recordings, found = complete_recordings(read_recordings(path), thorough=True)
    quality = recordings_quality(recordings, found)
    assert not found and quality is not None
    assert quality.flat == {"FP1": 4} and quality.seconds == 11 and quality.histogram[9] == 2


def test_montages_of_one_file_are_kept_apart(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500)])
    with h5py.File(path, "r+") as file:
        data = file.create_dataset("other/eeg", data=signal(3, 600))
        data.attrs.update(chOrder=list(TRIO), rsFreq=200.0)
    for _ in range(2):  # scanned, then remembered
        recordings, found = complete_recordings(read_recordings(path))
        seconds = {r.montage: recordings_quality([r], found).seconds for r in recordings}
        assert seconds == {PAIR: 8, TRIO: 3}


# The cache


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LABRAM_CACHE")
    assert files.cache_folder() == tmp_path / "xdg" / "labram"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == tmp_path / "home" / ".cache" / "labram"


def entry(content: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**content, **changes})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "",
        lambda content: json.dumps(content)[:-40],
        lambda content: "[]",
        lambda content: "[" * 100_000,
        lambda content: "\ud83d".join("ab"),
        lambda content: entry(content, invalid={}),
        lambda content: entry(content, invalid={"recording0": [[3, 2]]}),
        lambda content: entry(content, invalid={"recording0": [[-1, 2]]}),
        lambda content: entry(content, invalid={"recording0": [[0, 9]]}),
        lambda content: entry(content, invalid={"recording0": [[1, 3], [2, 4]]}),
        lambda content: entry(content, invalid={"recording0": "text"}),
        lambda content: entry(content, quality={}),
        lambda content: entry(content, quality={key: "{}" for key in content["quality"]}),
    ],
)
def test_a_damaged_cache_is_said_and_the_file_scanned_again(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Any], str]
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500)])
    complete(path)
    (kept,) = cache.iterdir()
    good = kept.read_text()
    kept.write_text(damage(json.loads(good)), errors="surrogatepass")
    assert complete(path)[0].invalid == ((1, 2), (3, 4))
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and str(path) in caplog.text
    assert kept.read_text() == good


@pytest.mark.parametrize("kind", ["file in its place", "no home"])
def test_a_cache_that_cannot_be_written_stops_nobody(
    tmp_path: Path, cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "no home":
        monkeypatch.delenv("LABRAM_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        cache.write_text("no folder")
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [broken(1500)])
    assert complete(path)[0].invalid == ((1, 2), (3, 4))
    assert "cannot be kept" in caplog.text and "LABRAM_CACHE" in caplog.text


def test_the_cache_holds_no_part_of_a_file_that_was_not_scanned_to_its_end(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("someone/eeg", data=signal(2, 2000), chunks=(2, 200), fletcher32=True)
        data.attrs.update(chOrder=list(PAIR), rsFreq=200.0)
        place = data.id.get_chunk_info(5).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"XXXXXXXX"
    path.write_bytes(content)
    with pytest.raises(InputError, match="someone"):
        complete(path)
    assert not cache.exists()


def test_people_are_told_once_that_it_takes_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 1500)])
    complete(path, visible=False)
    other = write_pretraining(tmp_path / "b.hdf5", PAIR, [signal(2, 1500)])
    assert not caplog.records
    complete(other, visible=True)
    complete(other, visible=True)
    assert [r.getMessage() for r in caplog.records] == [
        "Scanning 1 file(s) once for seconds that cannot be used; the result is kept."
    ]


# Labelled files


def labelled(path: Path, **splits: np.ndarray) -> Path:
    return write_labelled(path, {name: (eeg, np.arange(len(eeg)) % 2) for name, eeg in splits.items()})


def look(path: Path, **options: bool) -> dict[str, list[Any]]:
    file = read_labelled(path)
    parts = {split: read_samples(file, split) for split in file.splits}
    return complete_samples(parts, montage=file.montage, seconds=file.seconds, **options)


def test_samples_of_a_silent_file_are_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = signal(5, 3, 400), signal(3, 3, 400, seed=1)
    train[2, 1, 250] = np.inf
    val[0, :, :200] = 3
    path = labelled(tmp_path / "a.hdf5", train=train, val=val)
    for _ in range(2):
        parts = look(path)
        expected = np.ones((5, 2), bool)
        expected[2, 1] = False
        np.testing.assert_array_equal(parts["train"][0].valid, expected)
        assert parts["val"][0].valid.tolist() == [[False, True], [True, True], [True, True]]
        quality = samples_quality([*parts["train"], *parts["val"]])
        assert quality is not None and quality.seconds == 16
        assert quality.not_finite == {"CZ": 1} and quality.flat == {"C3": 1, "CZ": 1, "C4": 1}
        no_scan(monkeypatch)


def test_what_is_flat_is_judged_by_the_recording_of_a_sample(tmp_path: Path) -> None:
    quiet = signal(2, 3, 400) * 1e-3  # a recording of its own: one that moves little, but all the time
    path = labelled(tmp_path / "a.hdf5", train=np.concatenate([signal(2, 3, 400), quiet, signal(2, 3, 400)]))
    assert look(path)["train"][0].valid.all()


def test_valid_and_quality_of_a_labelled_file_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = labelled(tmp_path / "a.hdf5", train=signal(4, 3, 400))
    with h5py.File(path, "r+") as file:
        file["train/valid"] = np.array([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=bool)
        seen = {"flat": {"C3": 2}, "saturated": {}, "not_finite": {}, "histogram": {"9": 1}, "seconds": 77}
        file["train"].attrs["quality"] = json.dumps(seen)
    no_scan(monkeypatch)
    parts = look(path, thorough=True)["train"]
    quality = samples_quality(parts)
    assert parts[0].valid[:, 1].tolist() == [True, False, True, True]
    assert quality is not None and quality.seconds == 77 and len(quality.valid) == 8


def test_many_samples_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eeg = signal(11, 3, 400)
    eeg[7, 0, 0] = np.nan
    path = labelled(tmp_path / "a.hdf5", train=eeg)
    whole = look(path)["train"][0]
    monkeypatch.setenv("LABRAM_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(scans, "BLOCK", 3 * 400 * 3)
    pieces = look(path)["train"][0]
    assert np.flatnonzero(~pieces.valid.all(axis=1)).tolist() == [7]
    assert pieces.quality.to_json() == whole.quality.to_json()
