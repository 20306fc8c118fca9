"""Scans of signals against a slow one written here second by second, and what is warned about."""

import itertools
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from eeg_data.quality import (
    BINS,
    EDGES,
    Quality,
    SignalScan,
    amplitude_histogram,
    compare_with_published,
    split_warnings,
    warnings,
)
from errors import InputError

NAMES = ("FP1", "C3", "CZ", "O2")


def scan(eeg: np.ndarray, rate: float = 200, block: int | None = None, names: Any = None) -> Quality:
    """Scan eeg (N, time), in blocks of so many samples."""
    looking = SignalScan(names or NAMES[: len(eeg)], rate)
    for start in range(0, eeg.shape[1], block or max(1, eeg.shape[1])):
        looking.add(eeg[:, start : start + (block or eeg.shape[1])])
    return looking.result()


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
    long_enough = [part.shape[1] >= 0.1 * rate for part in seconds]
    moved = np.array([[np.ptp(row) if np.isfinite(row).all() else np.inf for row in part] for part in seconds]).T
    judged = finite & np.array(long_enough)
    still = min(0.1, 0.01 * np.median(moved[judged])) if judged.any() else 0
    flat = judged & (moved <= still)
    saturated = np.zeros_like(flat)
    for n, row in enumerate(eeg):
        usable = np.concatenate([part[n] for k, part in enumerate(seconds) if finite[n, k]] or [np.zeros(0)])
        for k, part in enumerate(seconds):
            if finite[n, k] and not flat[n, k]:
                runs = [longest_run(part[n], extreme) for extreme in (usable.min(), usable.max())]
                saturated[n, k] = max(runs) >= max(3, math.ceil(0.01 * rate))
        assert len(row) == eeg.shape[1]

    def by_name(bad: np.ndarray) -> dict[str, int]:
        return {name: int(n) for name, n in zip(NAMES, bad.sum(axis=1), strict=False) if n}

    valid = finite.all(axis=0) & ~flat.all(axis=0)
    return {
        "valid": valid.tolist(),
        "not_finite": by_name(~finite),
        "flat": by_name(flat),
        "saturated": by_name(saturated),
    }


def found(quality: Quality) -> dict[str, Any]:
    return {
        "valid": quality.valid.tolist(),
        "not_finite": quality.not_finite,
        "flat": quality.flat,
        "saturated": quality.saturated,
    }


def damaged(electrodes: int, samples: int, rate: float, seed: int) -> np.ndarray:
    """Return noise with everything that a scan looks for, in random places."""
    rng = np.random.default_rng(seed)
    eeg = np.round(noise(electrodes, samples, seed=seed), 1)
    eeg[0] = np.clip(eeg[0], -25, 30)  # runs of its extremes of any length
    for n, start, length in zip(
        rng.integers(electrodes, size=9),
        rng.integers(samples, size=9),
        rng.integers(1, int(2.5 * rate), 9),
        strict=True,
    ):
        eeg[n, start : start + length] = rng.choice([0, eeg[n].max(), eeg[n].min(), np.nan, np.inf, 7.5])
    start = int(rng.integers(samples - 3 * rate))
    eeg[:, start : start + int(2.2 * rate)] = 0.02  # all are flat
    return eeg


@pytest.mark.parametrize("rate", [200, 500, 160, 256.4, 33.3, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_a_scan_finds_what_the_definition_says(rate: float, seed: int) -> None:
    eeg = damaged(1 + seed, int(rate * 12.4), rate, seed)
    expected = slow_scan(eeg, rate)
    assert found(scan(eeg, rate)) == expected
    assert seed == 0 or (expected["flat"] and False in expected["valid"] and True in expected["valid"])


@pytest.mark.parametrize("block", [1, 7, 199, 200, 201, 640, 5000])
@pytest.mark.parametrize("rate", [200, 256.4])
def test_how_a_signal_is_cut_changes_nothing(block: int, rate: float) -> None:
    eeg = damaged(3, 2311, rate, seed=5)
    whole, cut = scan(eeg, rate), scan(eeg, rate, block)
    assert found(cut) == found(whole)
    np.testing.assert_array_equal(cut.histogram, whole.histogram)


@pytest.mark.parametrize("rate", [200, 256.4])
def test_a_few_seconds_are_judged_as_in_the_whole_and_only_their_samples_are_usable(rate: float) -> None:
    eeg = damaged(3, int(12.4 * rate), rate, seed=6)
    looking = SignalScan(NAMES[:3], rate)
    for start in range(0, eeg.shape[1], 640):
        looking.add(eeg[:, start : start + 640])
    valid = looking.result().valid[:12]  # whole ones
    assert not valid.all()
    for first, stop in ((0, 12), (0, 5), (4, 9), (11, 12), (7, 20)):
        np.testing.assert_array_equal(looking._valid(first, stop), valid[first:stop])
    assert len(looking._valid(12, 13)) == 0
    numbered = np.arange(3, 11 * 100)[None].repeat(3, axis=0)  # of the signal at 100 Hz, from its sample 3 on
    np.testing.assert_array_equal(looking.usable(numbered, 3, 100.0), numbered[:, valid[numbered[0] // 100]])


@pytest.mark.parametrize("scales", [(20, 0.002), (0.002, 20, 20), (5, 0.01, 0.01, 0.01)])
def test_what_is_usable_follows_from_all_that_was_seen_in_whatever_blocks(scales: tuple[float, ...]) -> None:
    looking, seconds = SignalScan(NAMES, 200), 20
    usable = []
    for number, scale in enumerate(scales):  # EEG and a cap taken off, and the other way; an artefact before EEG in mV
        looking.add(noise(4, seconds * 200, seed=number) / 20 * scale)
        usable.append(looking._valid(number * seconds, (number + 1) * seconds))
    wanted = looking.result().valid
    # What the first block is worth only the next ones can say.
    np.testing.assert_array_equal(np.concatenate(usable[-1:]), wanted[-seconds:])
    assert wanted[-1] == (scales[-1] != 0.002)


def test_blocks_of_nothing_and_no_signal_at_all_are_no_seconds() -> None:
    looking = SignalScan(NAMES, 200)
    looking.add(np.zeros((4, 0)))
    empty = looking.result()
    assert len(empty.valid) == empty.seconds == empty.histogram.sum() == 0 and empty.percentile(50) is None
    assert warnings(empty) == []
    looking.add(noise(4, 300))
    looking.add(np.zeros((4, 0)))
    assert looking.result().valid.tolist() == [True, True]


def test_results_can_be_had_in_between() -> None:
    eeg, looking = noise(2, 900), SignalScan(NAMES[:2], 200)
    looking.add(eeg[:, :500])
    assert looking.result().valid.tolist() == [True] * 3
    looking.add(eeg[:, 500:])
    assert found(looking.result()) == found(scan(eeg))


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1, 1e3])
def test_what_is_flat_does_not_depend_on_the_unit_below_microvolts(unit: float) -> None:
    eeg = noise(2, 2000) * unit
    eeg[1, 400:600] = eeg[1, 400]
    assert scan(eeg).flat == {"C3": 1}
    assert scan(eeg).valid.all()


def test_an_electrode_that_moves_a_tenth_of_a_microvolt_is_flat_and_one_that_moves_more_is_not() -> None:
    eeg = noise(3, 2000)
    eeg[0, 200:400] = np.linspace(0, 0.09, 200)
    eeg[1, 200:400] = np.linspace(0, 0.12, 200)
    assert scan(eeg).flat == {"FP1": 1}


def test_a_constant_electrode_is_flat_and_so_nothing_of_it_alone_is_valid() -> None:
    quality = scan(np.full((1, 1000), 12.5))
    assert quality.flat == {"FP1": 5} and not quality.valid.any() and not quality.saturated


def test_a_second_is_valid_as_long_as_one_electrode_moves() -> None:
    eeg = np.concatenate([np.zeros((3, 1000)), noise(1, 1000)])
    eeg[3, 400:600] = 0
    quality = scan(eeg)
    assert quality.valid.tolist() == [True, True, False, True, True]
    assert quality.flat == {"FP1": 5, "C3": 5, "CZ": 5, "O2": 1}


@pytest.mark.parametrize(("length", "valid"), [(1001, True), (1019, True), (1020, False), (1199, False)])
def test_too_little_of_a_last_second_is_not_called_flat(length: int, valid: bool) -> None:
    eeg = np.concatenate([noise(2, 1000), np.zeros((2, length - 1000))], axis=1)
    assert scan(eeg).valid.tolist() == [*[True] * 5, valid]


@pytest.mark.parametrize(("rate", "run"), [(200, 3), (300, 3), (500, 5), (512, 6), (1000, 10)])
@pytest.mark.parametrize("side", [1, -1])
def test_ten_milliseconds_or_three_samples_at_the_extreme_are_saturated(rate: int, run: int, side: int) -> None:
    for length, counted in ((run, {"C3": 1}), (run - 1, {})):
        eeg = noise(2, 4 * rate, seed=3)
        eeg[1, rate + 20 : rate + 20 + length] = side * 400
        assert scan(eeg, rate).saturated == counted, length


def test_only_the_recordings_own_extreme_is_saturation_and_only_within_a_second() -> None:
    eeg = noise(2, 1000)
    eeg[0, 100:110] = 300  # not the largest of all
    eeg[0, 500] = 301
    eeg[1, 398:402] = 500  # two samples in each of two seconds
    assert scan(eeg).saturated == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_second_with_a_value_that_is_not_finite_is_named_and_spoils_nothing_else(value: float) -> None:
    eeg = noise(3, 1000).astype(np.float64)
    clean = scan(eeg)
    eeg[1, 450] = value
    quality = scan(eeg)
    assert quality.valid.tolist() == [True, True, False, True, True] and quality.not_finite == {"C3": 1}
    assert not quality.flat and not quality.saturated
    assert quality.histogram.sum() == clean.histogram.sum() - 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int16])
def test_any_type_of_number_is_scanned_alike(dtype: type) -> None:
    eeg = np.round(noise(2, 1000))
    np.testing.assert_array_equal(scan(eeg.astype(dtype)).histogram, scan(eeg).histogram)
    assert found(scan(eeg.astype(dtype))) == found(scan(eeg))


# Amplitudes


def test_the_bins_are_20_a_decade_from_1e_9_to_1e7() -> None:
    exact = 10.0 ** (np.arange(321) / 20 - 9)
    assert len(EDGES) == 321 and BINS == 322
    assert (exact * (1 + 1e-6) >= EDGES).all() and (exact * 0.998 <= EDGES).all()


def test_amplitudes_are_counted_as_numpy_counts_them() -> None:
    rng = np.random.default_rng(1)
    eeg = (rng.choice([-1, 1], (3, 4000)) * 10 ** rng.uniform(-11, 9, (3, 4000))).astype(np.float32)
    eeg[0, :321] = EDGES
    eeg[1, :321] = np.nextafter(EDGES, 0)
    eeg[2, :3] = 0, -0.0, np.nan
    expected = np.histogram(np.abs(eeg[np.isfinite(eeg)]), np.concatenate([[0], EDGES, [np.inf]]))[0]
    np.testing.assert_array_equal(scan(eeg).histogram, expected)
    np.testing.assert_array_equal(amplitude_histogram(eeg), expected)
    assert SignalScan(NAMES, 200, amplitudes=False).result().histogram.sum() == 0


@pytest.mark.parametrize("p", [0, 1, 50, 99, 99.9, 100])
def test_percentiles_are_numpys_to_the_width_of_a_bin(p: float) -> None:
    eeg = noise(3, 20_000)
    exact = float(np.percentile(np.abs(eeg), p))
    assert scan(eeg).percentile(p) == pytest.approx(exact, rel=0.13)


def test_percentiles_beyond_the_bins_are_their_edges() -> None:
    assert scan(np.zeros((1, 400))).percentile(50) == 0
    assert scan(np.full((1, 400), 1e12)).percentile(50) == pytest.approx(1e7, rel=0.01)


# Together, and as JSON


def test_two_scans_added_are_one_of_both() -> None:
    first, second = damaged(3, 3000, 200, 1), damaged(3, 1700, 200, 2)
    one, other = scan(first), scan(second)
    both = Quality.merged([one, other])
    assert both.valid.tolist() == one.valid.tolist() + other.valid.tolist() and both.seconds == 15 + 9
    for kind in ("not_finite", "flat", "saturated"):
        own = [getattr(quality, kind) for quality in (one, other)]
        assert getattr(both, kind) == {n: own[0].get(n, 0) + own[1].get(n, 0) for n in {*own[0], *own[1]}}
    np.testing.assert_array_equal(both.histogram, one.histogram + other.histogram)
    assert found(Quality.merged([one, other, one])) == found(Quality.merged([both, one]))


def test_json_holds_everything_but_the_valid_seconds() -> None:
    quality = scan(damaged(3, 3000, 200, 1))
    text = quality.to_json()
    again = Quality.from_json(text, quality.valid[:2])
    assert again.to_json() == text and again.seconds == 15 and len(again.valid) == 2
    np.testing.assert_array_equal(again.histogram, quality.histogram)
    assert "valid" not in json.loads(text)


GOOD = {"flat": {}, "saturated": {}, "not_finite": {}, "histogram": {"5": 1}, "seconds": 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        b"\xff\xfe{",
        None,
        3.5,
        "[" * 100_000,
        *(json.dumps({**GOOD, key: value}) for key in GOOD for value in (None, -1, [1], {"x": -1}, {"1": 1e9}, "text")),
        json.dumps({**GOOD, "histogram": {"322": 1}}),
        json.dumps({**GOOD, "histogram": {"-400": 1}}),
        json.dumps({**GOOD, "seconds": 2**63}),
    ],
)
def test_a_text_that_is_no_scan_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match="no JSON of a scan"):
        Quality.from_json(text, np.ones(3, bool))


def test_memory_grows_with_seconds_not_with_samples() -> None:
    block, looking = noise(4, 4000), SignalScan(NAMES, 200)
    looking.add(block)
    tracemalloc.start()
    for _ in range(100):
        looking.add(block)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 300_000  # 2000 s of 4 electrodes at 10 bytes each, and lists of them; the signal has 6.4 MB


# Warnings


@pytest.mark.parametrize(
    ("unit", "word"), [(1e-6, "volts: multiply them by 1e6"), (1e-3, "millivolts"), (1e3, "nanovolts"), (1, None)]
)
def test_a_wrong_unit_is_warned_about_with_the_number(unit: float, word: str | None) -> None:
    eeg = noise(2, 4000, uv=30) * unit
    eeg[:, :2800] = 0  # padding is of no unit
    said = [text for text in warnings(scan(eeg)) if "of zero" in text]
    if word is None:
        assert not said
    else:
        (text,) = said
        number = float(text.split("within ")[1].split()[0])
        assert word in text and number == pytest.approx(np.median(np.abs(eeg[:, 2800:])), rel=0.13)
        assert word != "volts" or "millivolts" not in text


def test_good_eeg_is_not_warned_about() -> None:
    assert warnings(scan(noise(4, 20_000))) == []


def test_invalid_seconds_above_one_percent_are_warned_about() -> None:
    eeg = noise(2, 200 * 200)
    eeg[0, :400] = np.nan
    assert warnings(scan(eeg)) == []
    eeg[0, 400] = np.nan
    (text,) = warnings(scan(eeg))
    assert "3 of 200 seconds (1.5%)" in text


def test_flat_and_saturated_electrodes_are_named_the_worst_first_and_five_at_most() -> None:
    names = tuple("ABCDEFGH")
    eeg = noise(8, 200 * 100)
    for n in range(7):
        eeg[n, : 200 * (10 + n)] = 0  # 10 s, 11 s, ... flat
    eeg[7, 50 : 200 * 2 : 200] = eeg[7, 51 : 200 * 2 : 200] = eeg[7, 52 : 200 * 2 : 200] = 999
    flat, saturated = warnings(scan(eeg, names=names))
    assert flat == (
        "6 electrode(s) are flat in more than 10% of the seconds: "
        "G (16%), F (15%), E (14%), D (13%), C (12%) and 1 more."
    )
    assert saturated.startswith("1 electrode(s) stick to") and "H (2%)" in saturated


def test_shares_are_of_the_seconds_that_were_looked_at_not_of_those_kept() -> None:
    quality = Quality(np.ones(10, bool), {}, {"CZ": 9}, {}, scan(noise(1, 200)).histogram, seconds=100)
    assert warnings(quality) == []


def test_subjects_on_two_sides_lone_classes_and_classes_that_cannot_be_learned_are_warned_about() -> None:
    labels = {"train": np.array([0, 0, 1]), "val": np.array([0, 0]), "test": np.array([1, 2, 2])}
    subjects = {"train": ["a", "b", "b"], "val": ["b", "c"], "test": ["b", "c", "d"]}
    texts = split_warnings(labels, subjects, ("x", "y", "z"))
    assert len(texts) == 3
    assert texts[0].startswith("2 subject(s)") and "b (train, val, test), c (val, test)" in texts[0]
    assert texts[1] == "All 2 samples of val have the class x."
    assert texts[2].startswith("1 class(es)") and "z (test)" in texts[2]


def test_many_subjects_on_two_sides_are_named_up_to_five() -> None:
    people = [f"s{i}" for i in range(9)]
    (text,) = split_warnings({}, {"train": people, "test": people}, ())
    assert text.startswith("9 subject(s)") and text.count("(train, test)") == 5 and "and 4 more" in text


def test_good_splits_are_not_warned_about() -> None:
    labels = {"train": np.array([0, 1]), "val": np.array([1, 0]), "test": np.zeros(0, int)}
    assert split_warnings(labels, {"train": ["a"], "val": ["b"], "test": []}, ("x", "y")) == []


def test_sizes_are_compared_with_every_published_version() -> None:
    published = {"TUEV v1": [5, 2, 1], "TUEV v2": [6, 2, 1], "TUEVX": [1, 1, 1], "SEED-V": [3, 2, 1]}
    assert compare_with_published("mine", {"train": 5}, published) is None
    same = compare_with_published("TUEV", {"train": 6, "val": 2, "test": 1}, published)
    assert same is not None and same[1] and "TUEV v2" in same[0]
    other = compare_with_published("TUEV", {"train": 6, "val": 2}, published)
    assert other is not None and not other[1] and "6, 2, 0" in other[0]
    assert "TUEV v1: 5, 2, 1; TUEV v2: 6, 2, 1" in other[0] and "TUEVX" not in other[0]
