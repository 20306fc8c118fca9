"""Scans of signals against a slow one written here second by second, and the warnings that follow."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from eeg_data.quality import EDGES, Quality, SignalScan, amplitude_histogram
from eeg_data.verdicts import warnings
from errors import InputError

NAMES = ("FP1", "C3", "CZ", "O2")


def scan(eeg: np.ndarray, rate: float = 200, block: int | None = None, names: Any = None) -> Quality:
    """Scan eeg (N, time), in blocks of so many samples."""
    whole = SignalScan(names or NAMES[: len(eeg)], rate)
    for start in range(0, eeg.shape[1], block or max(1, eeg.shape[1])):
        whole.add(eeg[:, start : start + (block or eeg.shape[1])])
    return whole.result()


def noise(*shape: int, seed: int = 0, uv: float = 20) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * uv).astype(np.float32)


def longest_run(values: np.ndarray, value: float) -> int:
    return max((len(list(group)) for same, group in itertools.groupby(values == value) if same), default=0)


def slow_scan(eeg: np.ndarray, rate: float) -> dict[str, Any]:
    """Return what a scan must find, from the definition: one second of one electrode after the other."""
    starts = [0]
    while starts[-1] < eeg.shape[1]:
        starts.append(min(eeg.shape[1], math.ceil(round(len(starts) * rate, 6))))
    seconds = [eeg[:, a:b] for a, b in itertools.pairwise(starts)]
    finite = np.array([np.isfinite(part).all(axis=1) for part in seconds]).T
    moved = np.array([[np.ptp(row) if np.isfinite(row).all() else np.inf for row in part] for part in seconds]).T
    judged = finite & np.array([part.shape[1] >= 0.1 * rate for part in seconds])
    still = min(0.1, 0.01 * np.median(moved[judged])) if judged.any() else 0
    flat = judged & (moved <= still)
    saturated = np.zeros_like(flat)
    for n in range(len(eeg)):
        usable = np.concatenate([part[n] for k, part in enumerate(seconds) if finite[n, k]] or [np.zeros(0)])
        for k, part in enumerate(seconds):
            if finite[n, k] and not flat[n, k]:
                runs = [longest_run(part[n], extreme) for extreme in (usable.min(), usable.max())]
                saturated[n, k] = max(runs) >= max(3, math.ceil(0.01 * rate))

    def by_name(bad: np.ndarray) -> dict[str, int]:
        return {name: int(n) for name, n in zip(NAMES, bad.sum(axis=1), strict=False) if n}

    counts = {"not_finite": by_name(~finite), "flat": by_name(flat), "saturated": by_name(saturated)}
    return {"valid": (finite.all(axis=0) & ~flat.all(axis=0)).tolist(), **counts}


def result(quality: Quality) -> dict[str, Any]:
    counts = {"not_finite": quality.not_finite, "flat": quality.flat, "saturated": quality.saturated}
    return {"valid": quality.valid.tolist(), **counts}


def damaged(electrodes: int, samples: int, rate: float, seed: int) -> np.ndarray:
    """Return noise with everything that a scan looks for, in random places."""
    rng = np.random.default_rng(seed)
    eeg = np.round(noise(electrodes, samples, seed=seed), 1)
    eeg[0] = np.clip(eeg[0], -25, 30)  # runs of its extremes of any length
    lengths = rng.integers(1, int(2.5 * rate), 9)
    for n, start, length in zip(rng.integers(electrodes, size=9), rng.integers(samples, size=9), lengths, strict=True):
        eeg[n, start : start + length] = rng.choice([0, eeg[n].max(), eeg[n].min(), np.nan, np.inf, 7.5])
    start = int(rng.integers(samples - 3 * rate))
    eeg[:, start : start + int(2.2 * rate)] = 0.02  # all are flat
    return eeg


@pytest.mark.parametrize("rate", [200, 256.4, 33.3, 1000])
def test_a_scan_finds_what_the_definition_says_however_the_signal_is_cut(rate: float) -> None:
    for seed in range(4):
        eeg = damaged(1 + seed, int(rate * 12.4), rate, seed)
        expected = slow_scan(eeg, rate)
        scans = [scan(eeg, rate, block) for block in (None, 199, 640)]
        assert all(result(found) == expected for found in scans)
        assert all((found.histogram == scans[0].histogram).all() for found in scans)
        assert seed == 0 or (expected["flat"] and False in expected["valid"] and True in expected["valid"])


def test_only_samples_in_valid_seconds_are_usable() -> None:
    eeg = damaged(3, int(12.4 * 256.4), 256.4, seed=6)
    whole = SignalScan(NAMES[:3], 256.4)
    for start in range(0, eeg.shape[1], 640):
        whole.add(eeg[:, start : start + 640])
    valid = whole.result().valid[:12]  # complete ones
    assert not valid.all()
    numbered = np.arange(3, 11 * 100)[None].repeat(3, axis=0)  # of the signal at 100 Hz, from its sample 3 on
    np.testing.assert_array_equal(whole.usable(numbered, 3, 100.0), numbered[:, valid[numbered[0] // 100]])


@pytest.mark.parametrize("scales", [(20, 0.002), (0.002, 20, 20), (5, 0.01, 0.01, 0.01)])
def test_a_block_is_judged_by_all_that_was_scanned_before(scales: tuple[float, ...]) -> None:
    whole = SignalScan(NAMES, 200)
    for seed, scale in enumerate(scales):  # EEG and a cap taken off, and the other way; an artefact before EEG in mV
        block = noise(4, 4000, seed=seed) / 20 * scale
        whole.add(block)
    usable = whole.usable(block, 4000 * (len(scales) - 1), 200)
    assert usable.shape[1] == 200 * whole.result().valid[-20:].sum() == (0 if scales[-1] == 0.002 else 4000)


def test_nothing_has_no_seconds() -> None:
    empty = SignalScan(NAMES[:2], 200).result()
    assert len(empty.valid) == empty.seconds == empty.histogram.sum() == 0 and empty.percentile(50) is None
    assert warnings(empty) == []


@pytest.mark.parametrize("unit", [1e-6, 1, 1e3])
def test_what_is_flat_does_not_depend_on_the_unit(unit: float) -> None:
    eeg = noise(3, 2000)
    eeg[0, 200:400], eeg[1, 200:400] = np.linspace(0, 0.09, 200), np.linspace(0, 1.2, 200)
    eeg[1, 400:600] = eeg[1, 400]
    assert scan(eeg * unit).flat == ({"FP1": 1, "C3": 1} if unit <= 1 else {"C3": 1})
    assert scan(eeg * unit).valid.all()


def test_too_little_of_a_last_second_is_not_called_flat() -> None:
    for length, valid in ((1001, True), (1019, True), (1020, False), (1199, False)):
        eeg = np.concatenate([noise(2, 1000), np.zeros((2, length - 1000))], axis=1)
        assert scan(eeg).valid.tolist() == [*[True] * 5, valid]


def test_amplitudes_are_counted_as_numpy_counts_them_in_20_bins_a_decade_whatever_the_type() -> None:
    np.testing.assert_allclose(EDGES, 10.0 ** (np.arange(441) / 20 - 9), rtol=1e-12)
    rng = np.random.default_rng(1)
    eeg = (rng.choice([-1, 1], (3, 4000)) * 10 ** rng.uniform(-11, 15, (3, 4000))).astype(np.float32)
    eeg[2, :5] = [0, -0.0, np.nan, np.inf, -np.inf]
    expected = np.histogram(np.abs(eeg[np.isfinite(eeg)]), np.concatenate([[0], EDGES, [np.inf]]))[0]
    np.testing.assert_array_equal(scan(eeg).histogram, expected)
    np.testing.assert_array_equal(amplitude_histogram(eeg).sum(axis=0), expected)
    assert SignalScan(NAMES, 200, amplitudes=False).result().histogram.sum() == 0
    whole = np.round(noise(2, 1000))
    np.testing.assert_array_equal(scan(whole.astype(np.int16)).histogram, scan(whole).histogram)


def test_percentiles_are_numpys_to_the_width_of_a_bin() -> None:
    eeg = noise(3, 20_000)
    for p in (0, 1, 50, 99.9, 100):
        assert scan(eeg).percentile(p) == pytest.approx(float(np.percentile(np.abs(eeg), p)), rel=0.13)
    assert scan(np.zeros((1, 400))).percentile(50) == 0
    assert scan(np.full((1, 400), 1e15)).percentile(50) == pytest.approx(1e13, rel=0.01)


def test_scans_add_up_and_json_holds_everything_but_the_valid_seconds() -> None:
    one, other = scan(damaged(3, 3000, 200, 1)), scan(damaged(3, 1700, 200, 2))
    both = Quality.merged([one, other])
    assert both.valid.tolist() == one.valid.tolist() + other.valid.tolist() and both.seconds == 15 + 9
    for kind in ("not_finite", "flat", "saturated"):
        own = [getattr(quality, kind) for quality in (one, other)]
        assert getattr(both, kind) == {n: own[0].get(n, 0) + own[1].get(n, 0) for n in {*own[0], *own[1]}}
    np.testing.assert_array_equal(both.histogram, one.histogram + other.histogram)
    again = Quality.from_json(both.to_json(), both.valid[:2])
    assert again.to_json() == both.to_json() and len(again.valid) == 2 and "valid" not in both.to_json()
    for text in ("", "[]", 3.5, '{"seconds": 3}'):
        with pytest.raises(InputError, match=r"a\.hdf5"):
            Quality.from_json(text, both.valid, "a.hdf5")


@pytest.mark.parametrize(("unit", "word"), [(1e-6, " volts"), (1e-3, "millivolts"), (1e3, "nanovolts"), (1, None)])
def test_a_wrong_unit_is_warned_about_with_the_number(unit: float, word: str | None) -> None:
    eeg = noise(2, 4000, uv=30) * unit
    eeg[:, :2800] = 0  # padding is of no unit
    texts = [text for text in warnings(scan(eeg)) if "of zero" in text]
    assert len(texts) == (word is not None)
    for text in texts:
        assert word in text
        number = float(text.split("within ")[1].split()[0])
        assert number == pytest.approx(np.median(np.abs(eeg[:, 2800:])), rel=0.13)


def test_invalid_seconds_and_flat_and_saturated_electrodes_are_warned_about_the_worst_first() -> None:
    eeg = noise(8, 200 * 100)
    for n in range(7):
        eeg[n, : 200 * (10 + n)] = 0  # 10 s, 11 s, ... flat
    eeg[7, 50 : 200 * 2 : 200] = eeg[7, 51 : 200 * 2 : 200] = eeg[7, 52 : 200 * 2 : 200] = 999
    flat, saturated = warnings(scan(eeg, names=tuple("ABCDEFGH")))
    assert "6 electrode(s)" in flat and "G 16 s (16.0%), F 15 s (15.0%), E" in flat and "and 1 more" in flat
    assert "1 electrode(s)" in saturated and "H 2 s (2.0%)" in saturated
    kept = Quality(np.ones(10, bool), {}, {"CZ": 9}, {}, scan(noise(1, 200)).histogram, seconds=100)
    assert warnings(kept) == [], "shares are of the seconds that were scanned"
    eeg = noise(2, 200 * 200)
    eeg[0, :400] = np.nan
    assert warnings(scan(eeg)) == []
    eeg[0, 400] = np.nan
    (text,) = warnings(scan(eeg))
    assert "3 of 200 seconds (1.5%)" in text
