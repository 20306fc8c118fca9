"""Filters and resampling beside MNE's own methods on whole recordings, and beside closed forms."""

import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import edfio
import mne
import numpy as np
import pytest

from dataset_maker import filters, pipeline
from dataset_maker.pipeline import FilterSettings, Pipeline
from dataset_maker.reading import read_raw
from errors import InputError
from maker_helpers import raw_of

SECONDS = 331  # of the recordings that are cut into blocks
LENGTHS = [(100.0, 1731), (200.0, 20_241), (250.3, 4331), (256.0, 25_907)]  # Hz, samples: 17.3 or 101.2 s


def wandering(rate: float, samples: int, electrodes: int = 2) -> np.ndarray:
    """Return a signal (electrodes, samples) in uV that wanders far, with mains on top."""
    steps = np.random.default_rng(int(rate)).standard_normal((electrodes, samples))
    return steps.cumsum(axis=1) * 5 + 200 + 30 * np.sin(2 * np.pi * 50 * np.arange(samples) / rate)


@cache
def like_eeg(rate: float, samples: int) -> np.ndarray:
    """Return (2, samples) in uV: 1 / f noise of 50 uV, alpha and beta, mains, an offset that drifts."""
    noise = np.random.default_rng(samples).standard_normal((2, samples))
    spectrum = np.fft.rfft(noise) / np.sqrt(np.fft.rfftfreq(samples, 1 / rate).clip(0.05))
    noise = np.fft.irfft(spectrum, samples)
    time = np.arange(samples) / rate
    waves = sum(size * np.sin(2 * np.pi * hertz * time + size) for hertz, size in ((10.3, 20), (21.7, 5), (50, 10)))
    return noise * 50 / noise.std() + waves + 3000 + 2 * time


def edges(rate: float) -> tuple[float | None, float | None, float | None]:
    """Return the default filters as far as the rate allows."""
    return 0.1, 75.0 if rate > 151 else None, 50.0 if rate > 101.5 else None


def by_mne(raw: mne.io.BaseRaw, l_freq: float | None, h_freq: float | None, notch: float | None) -> mne.io.BaseRaw:
    """Return the recording after MNE's own filters."""
    if l_freq or h_freq:
        raw.filter(l_freq, h_freq, verbose="error")
    return raw.notch_filter(notch, verbose="error") if notch else raw


def microvolts(raw: mne.io.BaseRaw) -> np.ndarray:
    return raw.get_data() * 1e6


def prepared(raw: mne.io.BaseRaw, *settings: float | None) -> np.ndarray:
    """Return what the pipeline makes of a recording, in float64."""
    options = Pipeline(FilterSettings(*settings), dtype="float64")
    return pipeline.prepare(raw, options, store=lambda names, rate, length: np.empty((len(names), length))).eeg


def in_blocks(eeg: np.ndarray, rate: float, new_rate: float, *settings: float | None, seconds: float = 0) -> list:
    """Return eeg (N, time) filtered and resampled block by block."""
    taps = filters.kernel(rate, *settings)
    size, h_freq = round(seconds * rate), settings[1]

    def read(start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= eeg.shape[1]
        return eeg[:, start:stop]

    blocks = filters.process_blocks(read, eeg.shape[1], rate, taps, new_rate, h_freq=h_freq, block_samples=size)
    return list(blocks)


# ---- whole recordings


@pytest.mark.parametrize(("rate", "samples"), LENGTHS)  # shorter than the high-pass and longer
def test_a_whole_recording_equals_mnes_methods_two_ends_included(rate: float, samples: int) -> None:
    eeg = wandering(rate, samples)
    expected = by_mne(raw_of(["CZ", "PZ"], rate, eeg), *edges(rate)).resample(200.0, verbose="error")
    np.testing.assert_allclose(prepared(raw_of(["CZ", "PZ"], rate, eeg)), microvolts(expected), atol=1e-8)


@pytest.mark.parametrize("settings", [(1.0, None, None), (None, 40.0, 60.0)])
def test_stages_can_be_left_out_one_by_one(settings: tuple[float | None, float | None, float | None]) -> None:
    eeg = wandering(250.0, 3001)
    expected = microvolts(by_mne(raw_of(["CZ", "PZ"], 250.0, eeg), *settings))
    np.testing.assert_allclose(prepared(raw_of(["CZ", "PZ"], 250.0, eeg), *settings, None), expected, atol=1e-8)


def test_nothing_is_filtered_across_a_gap_that_the_recording_marks() -> None:
    eeg = wandering(250.0, 12_000)
    eeg[:, 6000:] += 5000  # the amplifier was switched off and on
    raws = [raw_of(["CZ", "PZ"], 250.0, eeg) for _ in range(3)]
    for raw in raws[:2]:
        raw.set_annotations(mne.Annotations([23.9], [0.1], ["BAD_ACQ_SKIP"]))
    expected = microvolts(by_mne(raws[0], 0.1, 75.0, 50.0).resample(200.0, verbose="error"))
    marked, unmarked = prepared(raws[1]), prepared(raws[2])
    np.testing.assert_allclose(marked, expected, atol=1e-8)
    assert abs(unmarked - marked).max() > 1000


# ---- block by block


@pytest.mark.parametrize("rate", [100.0, 250.3])
def test_filtering_in_blocks_equals_mne_on_the_whole_up_to_both_ends(rate: float) -> None:
    eeg = like_eeg(rate, round(SECONDS * rate) | 1)
    expected = microvolts(by_mne(raw_of(["CZ", "PZ"], rate, eeg), *edges(rate)))
    for seconds in (0, 120):
        blocks = in_blocks(eeg, rate, rate, *edges(rate), seconds=seconds)
        assert len(blocks) > 2
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "new_rate"),
    [(100.0, 200.0), (173.61, 200.0), (256.0, 200.0), (500.0, 128.0)],
)
def test_resampling_in_blocks_gives_the_values_at_the_new_times(rate: float, new_rate: float) -> None:
    random = np.random.default_rng(int(rate))
    hertz = np.append(random.uniform(0.5, 0.48 * min(rate, new_rate), 20), 0.97 * min(rate, new_rate) / 2)
    hertz, phase = hertz[hertz < 70], random.uniform(0, 6, 21)

    def waves(count: int, rate: float) -> np.ndarray:
        time = np.arange(count) / rate
        return sum(20 * np.sin(2 * np.pi * h * time + p) for h, p in zip(hertz, phase, strict=False))[None]

    low_pass = 70.0 if new_rate > 180 and rate > 180 else None
    eeg, silent = waves(round(SECONDS * rate), rate), np.ones(1)
    read = lambda start, stop: eeg[:, start:stop]  # noqa: E731
    blocks = filters.process_blocks(read, eeg.shape[1], rate, silent, new_rate, h_freq=low_pass, block_samples=0)
    result = np.concatenate(list(blocks), axis=1)
    assert result.shape[1] == round(eeg.shape[1] * new_rate / rate)
    inner = slice(2000, -2000)  # the ends depend on what would be beyond them
    np.testing.assert_allclose(result[:, inner], waves(result.shape[1], new_rate)[:, inner], rtol=0, atol=0.005)


def test_blocks_agree_with_mnes_fft_where_that_lies_at_the_new_times() -> None:
    rate = 256.0
    samples = 2**17 - 2 * 20_032  # MNE pads by 20,032 samples: 15,650 outputs, no fraction
    eeg = like_eeg(rate, samples)
    expected = by_mne(raw_of(["CZ", "PZ"], rate, eeg), *edges(rate)).resample(200.0, verbose="error")
    result = np.concatenate(in_blocks(eeg, rate, 200.0, *edges(rate)), axis=1)
    np.testing.assert_allclose(result, microvolts(expected), rtol=0, atol=0.005)


@pytest.mark.parametrize("rate", [160.0, 200.0])
def test_a_long_recording_has_the_values_quality_and_report_of_a_whole_one(rate: float) -> None:
    eeg = wandering(rate, int(400 * rate), electrodes=1)
    eeg[:, int(100 * rate) : int(102 * rate)] = np.nan
    whole = pipeline.prepare(raw_of(["CZ"], rate, eeg), Pipeline())
    blocks = pipeline.prepare(raw_of(["CZ"], rate, eeg), Pipeline(block_bytes=8 * int(150 * rate)))
    assert blocks.length == whole.length and blocks.report == whole.report
    if rate == 200:
        np.testing.assert_allclose(blocks.eeg, whole.eeg, atol=1e-3)
    np.testing.assert_array_equal(blocks.quality.valid, whole.quality.valid)
    assert np.flatnonzero(~whole.quality.valid).tolist() == [100, 101]
    assert (blocks.quality.not_finite, blocks.quality.flat) == (whole.quality.not_finite, whole.quality.flat)
    assert blocks.quality.percentile(50) == pytest.approx(whole.quality.percentile(50), rel=0.02)


def test_memory_does_not_grow_with_the_recording() -> None:
    rate, new_rate = 256, 200
    period, taps = like_eeg(rate, 11 * rate), filters.kernel(rate, 1.0, None, None)

    def read(start: int, stop: int) -> np.ndarray:
        return period.take(np.arange(start, stop), axis=1, mode="wrap")

    def peak(seconds: int) -> int:
        result: Iterator = filters.process_blocks(
            read, seconds * rate, rate, taps, new_rate, h_freq=None, block_samples=100 * rate
        )
        tracemalloc.start()
        for _ in result:
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(1200) < 1.05 * peak(300)


# ---- channels of several rates


def write_edf(path: Path, rates: dict[str, float], seconds: int = 300) -> mne.io.BaseRaw:
    """Write an EDF with a wandering signal for each channel, and open it."""
    signals = [
        edfio.EdfSignal(wandering(rate, seconds * int(rate), 1)[0], rate, label=name, physical_dimension="uV")
        for name, rate in rates.items()
    ]
    edfio.Edf(signals).write(path)
    return read_raw(path)


@pytest.mark.parametrize("block_bytes", [1 << 30, 2 * 8 * 256 * 150])
def test_a_faster_channel_that_is_no_eeg_changes_nothing(tmp_path: Path, block_bytes: int) -> None:
    electrodes, options = {"EEG C3": 256.0, "EEG C4": 256.0}, Pipeline(block_bytes=block_bytes)
    alone = pipeline.prepare(write_edf(tmp_path / "alone.edf", electrodes), options)
    beside = pipeline.prepare(write_edf(tmp_path / "beside.edf", electrodes | {"ECG": 512.0}), options)
    assert beside.report["source_rate"] == 256 and beside.electrodes == ["C3", "C4"]
    np.testing.assert_array_equal(beside.eeg, alone.eeg)


def test_electrodes_of_several_rates_are_refused_in_recordings_too_long_to_hold(tmp_path: Path) -> None:
    for block_bytes in (1 << 30, 1 << 20):
        raw = write_edf(tmp_path / "mixed.edf", {"C3": 256.0, "C4": 128.0})
        if block_bytes == 1 << 30:
            assert pipeline.prepare(raw, Pipeline(block_bytes=block_bytes)).eeg.shape == (2, 60_000)
        else:  # in pieces MNE takes the slow channels' samples from wrong places
            with pytest.raises(InputError, match="different sampling rates"):
                pipeline.prepare(raw, Pipeline(block_bytes=block_bytes))
