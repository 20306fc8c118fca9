"""Recordings that two data sets share are found under other names, rates, filters and references, and no others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from scipy import signal

from data_helpers import write_labelled, write_pretraining
from dataset_maker import inspect_data, leakage, make_h5dataset_for_pretrain
from dataset_maker.leakage import Contents
from eeg_data import hdf5
from maker_helpers import opened, raw_of, run_maker

NAMES = ("C3", "C4", "CZ", "O1", "O2")
PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)


def eeg_like(seed: int, seconds: int = 40, names: int = len(NAMES)) -> np.ndarray:
    """Return noise whose power falls with the frequency, (N, time) at 200 Hz in uV."""
    waves = np.fft.rfft(np.random.default_rng(seed).standard_normal((names, 200 * seconds)))
    return np.fft.irfft(waves / np.sqrt(np.arange(1, waves.shape[1] + 1))) * 500


def resampled(eeg: np.ndarray, rate: int) -> np.ndarray:
    return signal.resample_poly(signal.resample_poly(eeg, rate, 200, axis=1), 200, rate, axis=1)


def filtered(eeg: np.ndarray) -> np.ndarray:
    return mne.filter.filter_data(eeg.astype(float), 200, 1, 35, verbose="error")


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rate": lambda eeg: resampled(eeg, 128),
    "filter": filtered,
    "reference": lambda eeg: eeg - eeg.mean(axis=0),
    "polarity and unit": lambda eeg: -eeg / 100,
    "beginning": lambda eeg: eeg[:, 155:],
    "half a sample": lambda eeg: signal.resample_poly(eeg, 2, 1, axis=1)[:, 1::2],
    "float16": lambda eeg: eeg.astype(np.float16),
    "all": lambda eeg: -filtered(resampled(eeg, 160))[:, 155:].astype(np.float16) + np.float16(3),
}


def pairs_of(a: Path, b: Path) -> dict[tuple[str, str], float]:
    """Return the equal recordings of two files, and the share of seconds that are equal."""
    hdf5.close_files()
    one, other = (leakage.contents(path, leakage.odd_pairs([a, b])) for path in (a, b))
    found = leakage.compare(one, other).items()
    return {(one.recordings[i], other.recordings[j]): seconds / total for (i, j), (seconds, total) in found}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_recording_is_found_whatever_was_done_to_it_and_no_other_one(change: str, tmp_path: Path) -> None:
    a = write_pretraining(tmp_path / "a.hdf5", NAMES, [eeg_like(seed) for seed in range(6)])
    others = [CHANGES[change](eeg_like(seed)) for seed in (7, 4, 8, 1)]
    b = write_pretraining(tmp_path / "b.hdf5", NAMES, others)
    found = pairs_of(a, b)
    assert found.keys() == {("recording4", "recording1"), ("recording1", "recording3")}
    assert min(found.values()) > 0.5


def test_windows_of_a_labelled_set_and_recordings_that_lack_an_electrode_are_found(tmp_path: Path) -> None:
    whole = [eeg_like(seed, 60) for seed in range(3)]
    rows = [2, 4, 3, 1]  # without C3
    a = write_pretraining(tmp_path / "a.hdf5", [NAMES[row] for row in rows], [eeg[rows] for eeg in whole])
    # recordings of two windows of 4 s, which begin anywhere
    cut = [whole[1][:, at : at + 800] for at in (1033, 1833, 5555, 6355)] + [eeg_like(9, 4), eeg_like(10, 4)]
    b = write_labelled(tmp_path / "b.hdf5", {"test": (np.stack(cut), [0, 1] * 3)}, names=NAMES)
    assert pairs_of(a, b).keys() == {("recording1", f"test-recording{number}") for number in (0, 1)}
    odd = write_pretraining(tmp_path / "odd.hdf5", ("Cz", "C4"), [whole[2][[2, 1]]])
    assert pairs_of(odd, a).keys() == {("recording0", "recording2")}
    single = write_pretraining(tmp_path / "single.hdf5", ("CZ",), [whole[0][2:3]])
    assert pairs_of(single, a).keys() == {("recording0", "recording0")}


def test_no_two_recordings_of_eegmat_are_equal_and_each_is_at_another_rate_and_filter(shared: Path) -> None:
    """The false-match rate: single seconds may be equal (recordings end alike), never three of two recordings."""
    paths = sorted((shared / "eegmat").glob("*.edf"))

    def contents(signals: list[np.ndarray]) -> Contents:
        rows = [leakage.digests_of(eeg) for eeg in signals]
        numbers = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return Contents([], set(), [], {("C3", "O2"): (np.concatenate(rows), numbers)})

    def read(path: Path) -> np.ndarray:
        c3, o2 = mne.io.read_raw_edf(path, verbose="error").get_data(["EEG C3", "EEG O2"]) * 1e6
        return c3 - o2

    raw = [read(path) for path in paths]
    one = contents([signal.resample_poly(eeg, 2, 5) for eeg in raw])
    assert len(paths) == 64 and leakage.compare(one, one).keys() == {(number, number) for number in range(64)}
    changed = []
    for eeg in raw[::8]:
        at_256 = mne.filter.resample(mne.filter.filter_data(eeg[333:], 500, 1, 40, verbose="error"), 256, 500)
        changed.append(signal.resample_poly(at_256, 25, 32))
    found = leakage.compare(one, contents(changed))
    assert found.keys() == {(8 * number, number) for number in range(8)}
    assert min(seconds / total for seconds, total in found.values()) > 0.8


def test_what_two_sets_share_becomes_a_list_and_the_maker_leaves_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    eeg = [eeg_like(seed) for seed in range(3)]
    for number, one in enumerate(eeg):
        raw_of(list(NAMES), 200.0, one).save(tmp_path / f"in {number}_raw.fif", verbose="error")
    (tmp_path / "in 1_raw.fif").rename(tmp_path / "content")  # as git-annex does
    (tmp_path / "in 1_raw.fif").symlink_to(tmp_path / "content")
    windows = eeg[1][:, :8000].reshape(len(NAMES), 10, 800).transpose(1, 0, 2)
    held = write_labelled(tmp_path / "held.hdf5", {"test": (windows, [0, 1] * 5)}, names=NAMES)
    words = ("--input", *sorted(tmp_path.glob("*.fif")), *PLAIN, "--output")
    assert run_maker(make_h5dataset_for_pretrain, *words, tmp_path / "all") == 0
    assert run_maker(inspect_data, tmp_path / "all", held, "--shared", tmp_path / "list.txt") == 0
    assert "5 of 5 recordings of the second are in the first" in capsys.readouterr().out
    assert (tmp_path / "list.txt").read_text() == "in_1_raw\n"
    exclude = ("--exclude", tmp_path / "list.txt")
    assert run_maker(make_h5dataset_for_pretrain, *words, tmp_path / "all", *exclude) == 1  # it is there already
    assert "holds" in capsys.readouterr().err
    assert run_maker(make_h5dataset_for_pretrain, *words, tmp_path / "out", *exclude) == 0
    assert {name for file in opened(tmp_path / "out").values() for name in file} == {"in_0_raw", "in_2_raw"}
    assert "in 1_raw.fif" in (tmp_path / "out.report.json").read_text()
    assert run_maker(inspect_data, tmp_path / "out", held) == 0
    assert "\n" + f"{tmp_path / 'out'} and {held}: 0 of 5 recordings" in capsys.readouterr().out
    assert run_maker(inspect_data, held, "--shared", tmp_path / "list.txt") == 2
    (tmp_path / "empty.hdf5").touch()
    assert run_maker(inspect_data, held, tmp_path / "empty.hdf5", "--shared", tmp_path / "none.txt") == 1
    assert not (tmp_path / "none.txt").exists()  # it would say that nothing is shared


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ("aaaaaaju # TUH\n", {"aaaaaabc_s001_t000.edf", "sub-01_task-rest_eeg.edf", "S001R02.edf"}),
        ("\ufeffsub-01\nS001R02.edf", {"aaaaaaju_s005_t000.edf", "aaaaaabc_s001_t000.edf"}),
        ("S001R*\naaaaaa??\n", {"sub-01_task-rest_eeg.edf"}),
        ("01", {"aaaaaaju_s005_t000.edf", "aaaaaabc_s001_t000.edf", "S001R02.edf"}),
        ("*", "leaves no recording"),
        ("# nothing\n\n", "names nothing"),
    ],
)
def test_a_list_names_subjects_recordings_or_patterns(
    entries: str, left: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["aaaaaaju_s005_t000.edf", "aaaaaabc_s001_t000.edf", "sub-01_task-rest_eeg.edf", "S001R02.edf"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(entries, encoding="utf-8")
    made: list[Any] = []
    monkeypatch.setattr(make_h5dataset_for_pretrain.making, "make", lambda *words, **more: made.append((words, more)))
    words = ("--input", tmp_path, "--output", tmp_path / "out", "--exclude", tmp_path / "list.txt")
    code = run_maker(make_h5dataset_for_pretrain, *words)
    if isinstance(left, str):
        assert code == 1 and left in capsys.readouterr().err
    else:
        ((_, _, _, tasks), more), *_ = made
        assert {task["path"].name for task in tasks} == left
        assert len(more["excluded"]) == len(names) - len(left)


def test_subjects_are_compared_by_their_codes_and_listed_by_split(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    windows = np.stack([eeg_like(seed, 4) for seed in range(8)])
    splits = {"train": (windows[:4], [0, 1] * 2), "test": (windows, [0, 1] * 4)}
    held = write_labelled(tmp_path / "held.hdf5", splits, names=NAMES)
    assert run_maker(inspect_data, held, "--list", "test", tmp_path / "list.txt") == 0
    assert (tmp_path / "list.txt").read_text() == "test-subject0\ntest-subject1\n"
    assert run_maker(inspect_data, held, "--list", "val", tmp_path / "list.txt") == 1
    other = write_labelled(tmp_path / "other.hdf5", {"train": (windows[:4] + 1e3, [0, 1] * 2)}, names=("T3",) * 5)
    (tmp_path / "bad.hdf5").write_bytes(b"EEG")
    capsys.readouterr()
    assert run_maker(inspect_data, held, other, tmp_path / "bad.hdf5") == 1
    shown = capsys.readouterr().out
    assert f"warning: not compared: {tmp_path / 'bad.hdf5'}" in shown
    assert "1 names of subjects are in both: train-subject0" in shown and "signals not compared" in shown
