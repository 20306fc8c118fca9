"""Filters and resampling beside MNE's own methods on whole recordings, and beside closed forms."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import edfio
import mne
import numpy as np
import pytest

from dataset_maker import filters, pipeline
from dataset_maker.pipeline import FilterSettings, Pipeline, read_raw
from errors import InputError
from maker_helpers import raw_of

SECONDS = 331  # of the recordings that are cut into blocks
DEFAULT = (0.1, 75.0, 50.0)  # Hz: high-pass, low-pass, notch


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


def by_mne(eeg: np.ndarray, rate: float, settings: Sequence[float | None], new_rate: float | None) -> np.ndarray:
    """Return eeg (2, time) after MNE's own methods, in uV."""
    raw, (l_freq, h_freq, notch) = raw_of(["CZ", "PZ"], rate, eeg), settings
    if l_freq or h_freq:
        raw.filter(l_freq, h_freq, verbose="error")
    if notch:
        raw.notch_filter(notch, verbose="error")
    return (raw.resample(new_rate, verbose="error") if new_rate else raw).get_data() * 1e6


def prepared(raw: mne.io.BaseRaw, *settings: float | None) -> np.ndarray:
    """Return what the pipeline makes of a recording, in float64."""
    options = Pipeline(FilterSettings(*settings), dtype="float64")
    return pipeline.prepare(raw, options, store=lambda names, rate, length: np.empty((len(names), length))).eeg


def in_blocks(
    eeg: np.ndarray, rate: float, new_rate: float, *settings: float | None, seconds: float = 0, low_pass: Any = None
) -> list[np.ndarray]:
    """Return eeg (N, time) filtered and resampled block by block. low_pass: Hz, where it was filtered before."""
    options = {"h_freq": low_pass or settings[1], "block_samples": round(seconds * rate)}
    read = lambda start, stop: eeg[:, start:stop]  # noqa: E731
    taps = filters.kernel(rate, *settings)
    return list(filters.process_blocks(read, eeg.shape[1], rate, taps, new_rate, **options))


# ---- whole recordings


@pytest.mark.parametrize(
    ("rate", "samples", "settings", "new_rate"),
    [
        (100.0, 1731, edges(100), 200.0),  # 17.3 s: shorter than the high-pass
        (250.3, 4331, DEFAULT, 200.0),
        (200.0, 20_241, DEFAULT, 200.0),  # 101.2 s
        (256.0, 25_907, DEFAULT, 200.0),
        (250.0, 3001, (1.0, None, None), None),
        (250.0, 3001, (None, 40.0, 60.0), None),
    ],
)
def test_a_whole_recording_equals_mnes_methods_two_ends_included(
    rate: float, samples: int, settings: Any, new_rate: float | None
) -> None:
    eeg = wandering(rate, samples)
    asked = DEFAULT if settings == edges(rate) else settings  # what a rate does not allow is left out
    result = prepared(raw_of(["CZ", "PZ"], rate, eeg), *asked, new_rate)
    np.testing.assert_allclose(result, by_mne(eeg, rate, settings, new_rate), atol=1e-8)


@pytest.mark.parametrize("block_bytes", [1 << 30, 1 << 16])
def test_each_stretch_between_breaks_is_filtered_as_a_recording_alone(block_bytes: int) -> None:
    eeg = wandering(250.0, 24_000)
    eeg[:, 12_000:] += 5000  # the amplifier was switched off and on
    raw = raw_of(["CZ", "PZ"], 250.0, eeg)
    raw.set_annotations(mne.Annotations([48.0], [0.0], ["EDGE boundary"]))
    options = Pipeline(FilterSettings(*DEFAULT, None), dtype="float64", block_bytes=block_bytes)
    result = pipeline.prepare(raw, options, store=lambda names, rate, length: np.empty((len(names), length))).eeg
    alone = [by_mne(half, 250.0, DEFAULT, None) for half in (eeg[:, :12_000], eeg[:, 12_000:])]
    np.testing.assert_allclose(result, np.concatenate(alone, axis=1), atol=1e-6)


# ---- block by block


@pytest.mark.parametrize("rate", [100.0, 250.3])
def test_filtering_in_blocks_equals_mne_on_the_whole_up_to_both_ends(rate: float) -> None:
    eeg = like_eeg(rate, round(SECONDS * rate) | 1)
    for seconds in (0, 120):
        blocks = in_blocks(eeg, rate, rate, *edges(rate), seconds=seconds)
        assert len(blocks) > 2
        expected = by_mne(eeg, rate, edges(rate), None)
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
    eeg = waves(round(SECONDS * rate), rate)
    result = np.concatenate(in_blocks(eeg, rate, new_rate, None, None, None, low_pass=low_pass), axis=1)
    assert result.shape[1] == round(eeg.shape[1] * new_rate / rate)
    inner = slice(2000, -2000)  # the ends depend on what would be beyond them
    np.testing.assert_allclose(result[:, inner], waves(result.shape[1], new_rate)[:, inner], rtol=0, atol=0.005)


def test_blocks_agree_with_mnes_fft_where_that_lies_at_the_new_times() -> None:
    samples = 2**17 - 2 * 20_032  # MNE pads by 20,032 samples: 15,650 outputs, no fraction
    eeg = like_eeg(256.0, samples)
    result = np.concatenate(in_blocks(eeg, 256.0, 200.0, *DEFAULT), axis=1)
    np.testing.assert_allclose(result, by_mne(eeg, 256.0, DEFAULT, 200.0), rtol=0, atol=0.005)


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
    rates = {"C3": 256.0, "C4": 128.0}
    assert pipeline.prepare(write_edf(tmp_path / "mixed.edf", rates), Pipeline()).eeg.shape == (2, 60_000)
    with pytest.raises(InputError, match="different sampling rates"):  # MNE takes pieces from wrong places
        pipeline.prepare(write_edf(tmp_path / "mixed.edf", rates), Pipeline(block_bytes=1 << 20))
