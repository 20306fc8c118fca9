"""The makers' filters beside MNE's own methods on whole recordings."""

from pathlib import Path

import edfio
import mne
import numpy as np
import pytest

from dataset_maker import pipeline
from dataset_maker.pipeline import FilterSettings, Pipeline
from errors import InputError
from maker_helpers import raw_of

RATES = [
    (100.0, 5003),
    (128.0, 256),
    (160.0, 20001),
    (200.0, 400),
    (250.3, 30011),
    (256.0, 300),
    (500.0, 40000),
    (1000.0, 1700),
]


def wandering(rate: float, samples: int, electrodes: int = 2) -> np.ndarray:
    """Return a signal (electrodes, samples) in uV that wanders far, with mains on top."""
    steps = np.random.default_rng(int(rate)).standard_normal((electrodes, samples))
    return steps.cumsum(axis=1) * 5 + 200 + 30 * np.sin(2 * np.pi * 50 * np.arange(samples) / rate)


def by_mne(raw: mne.io.BaseRaw, l_freq: float | None, h_freq: float | None, notch: float | None) -> np.ndarray:
    """Return the signal in uV after MNE's own methods."""
    raw.filter(l_freq, h_freq, verbose="error")
    if notch:
        raw.notch_filter(notch, verbose="error")
    return raw.resample(200.0, verbose="error").get_data() * 1e6


@pytest.mark.parametrize(("rate", "samples"), RATES)
def test_filters_and_resampling_equal_mnes_methods_two_ends_included(rate: float, samples: int) -> None:
    eeg = wandering(rate, samples)
    edges = (0.1, 75.0 if rate > 151 else None, 50.0 if rate > 102 else None)
    expected = by_mne(raw_of(["CZ", "PZ"], rate, eeg), *edges)
    prepared = pipeline.prepare(raw_of(["CZ", "PZ"], rate, eeg), Pipeline(dtype="float64"), store=in_float64)
    assert prepared.eeg.shape == expected.shape
    np.testing.assert_allclose(prepared.eeg, expected, atol=1e-8)


def in_float64(electrodes: list[str], rate: float, length: int) -> np.ndarray:
    return np.empty((len(electrodes), length))


@pytest.mark.parametrize("edges", [(1.0, None, None), (None, 40.0, None), (None, None, 60.0), (0.5, 45.0, 60.0)])
def test_stages_can_be_left_out_one_by_one(edges: tuple[float | None, float | None, float | None]) -> None:
    eeg = wandering(250.0, 3001)
    raw = raw_of(["CZ", "PZ"], 250.0, eeg)
    if edges[0] or edges[1]:
        raw.filter(*edges[:2], verbose="error")
    if edges[2]:
        raw.notch_filter(edges[2], verbose="error")
    pipeline = Pipeline(FilterSettings(*edges, None), dtype="float64")
    prepared = pipeline.prepare(raw_of(["CZ", "PZ"], 250.0, eeg), pipeline, store=in_float64)
    np.testing.assert_allclose(prepared.eeg, raw.get_data() * 1e6, atol=1e-8)


def test_nothing_is_filtered_across_a_gap_that_the_recording_marks() -> None:
    eeg = wandering(250.0, 4000)
    eeg[:, 2000:] += 5000  # the amplifier was switched off and on
    raws = [raw_of(["CZ", "PZ"], 250.0, eeg) for _ in range(3)]
    for raw in raws[:2]:
        raw.set_annotations(mne.Annotations([7.9], [0.1], ["BAD_ACQ_SKIP"]))
    expected = by_mne(raws[0], 0.1, 75.0, 50.0)
    marked = pipeline.prepare(raws[1], Pipeline(dtype="float64"), store=in_float64).eeg
    np.testing.assert_allclose(marked, expected, atol=1e-8)
    unmarked = pipeline.prepare(raws[2], Pipeline(dtype="float64"), store=in_float64).eeg
    assert abs(unmarked - marked).max() > 1000


@pytest.mark.parametrize("rate", [160.0, 200.0, 512.0])
def test_a_long_recording_in_blocks_equals_the_whole_in_values_quality_and_report(rate: float) -> None:
    eeg = wandering(rate, int(400 * rate) + 77, electrodes=1)
    eeg[:, int(100 * rate) : int(102 * rate)] = np.nan
    whole = pipeline.prepare(raw_of(["CZ"], rate, eeg), Pipeline())
    blocks = pipeline.prepare(raw_of(["CZ"], rate, eeg), Pipeline(block_bytes=8 * int(150 * rate)))
    assert blocks.length == whole.length and blocks.report == whole.report
    np.testing.assert_allclose(blocks.eeg[:, 2000:-2000], whole.eeg[:, 2000:-2000], atol=0.005)
    np.testing.assert_array_equal(blocks.quality.valid, whole.quality.valid)
    assert np.flatnonzero(~whole.quality.valid).tolist() == [100, 101]
    assert (blocks.quality.not_finite, blocks.quality.flat) == (whole.quality.not_finite, whole.quality.flat)
    assert abs(blocks.quality.histogram - whole.quality.histogram).sum() < 100  # of 80000: at the edges of bins


@pytest.mark.parametrize("block_bytes", [1 << 30, 2 * 8 * 256 * 150])
def test_a_faster_channel_that_is_no_eeg_changes_nothing(tmp_path: Path, block_bytes: int) -> None:
    eeg = wandering(256.0, 400 * 256)

    def write(name: str, further: list[edfio.EdfSignal]) -> mne.io.BaseRaw:
        signals = [
            edfio.EdfSignal(row, 256, label=f"EEG {electrode}", physical_dimension="uV")
            for row, electrode in zip(eeg, ("C3", "C4"), strict=True)
        ]
        edfio.Edf(signals + further).write(tmp_path / name)
        return pipeline.read_raw(tmp_path / name)

    heart = edfio.EdfSignal(wandering(512.0, 400 * 512, 1)[0], 512, label="ECG", physical_dimension="uV")
    alone = pipeline.prepare(write("alone.edf", []), Pipeline())
    beside = pipeline.prepare(write("beside.edf", [heart]), Pipeline(block_bytes=block_bytes))
    assert beside.report["source_rate"] == 256 and beside.electrodes == ["C3", "C4"]
    np.testing.assert_allclose(beside.eeg[:, 1000:-1000], alone.eeg[:, 1000:-1000], atol=0.005)


def test_a_faster_channel_beside_electrodes_that_a_caller_renamed_is_refused_in_long_recordings(tmp_path: Path) -> None:
    signals = [
        edfio.EdfSignal(wandering(rate, 300 * int(rate), 1)[0], rate, label=name, physical_dimension="uV")
        for name, rate in (("E1", 128.0), ("E2", 128.0), ("ECG", 512.0))
    ]
    edfio.Edf(signals).write(tmp_path / "mixed.edf")
    for block_bytes in (1 << 30, 1 << 20):
        raw = pipeline.read_raw(tmp_path / "mixed.edf").rename_channels({"E1": "C3", "E2": "C4"})
        if block_bytes == 1 << 30:
            assert pipeline.prepare(raw, Pipeline(block_bytes=block_bytes)).eeg.shape == (2, 60_000)
        else:  # in pieces MNE takes the slow channels' samples from wrong places
            with pytest.raises(InputError, match="different sampling rates"):
                pipeline.prepare(raw, Pipeline(block_bytes=block_bytes))


def test_electrodes_of_different_rates_are_refused_in_recordings_too_long_to_hold(tmp_path: Path) -> None:
    signals = [
        edfio.EdfSignal(wandering(rate, 300 * int(rate), 1)[0], rate, label=f"EEG {name}", physical_dimension="uV")
        for name, rate in (("C3", 256.0), ("C4", 128.0))
    ]
    edfio.Edf(signals).write(tmp_path / "mixed.edf")
    assert pipeline.prepare(pipeline.read_raw(tmp_path / "mixed.edf"), Pipeline()).eeg.shape == (2, 60_000)
    with pytest.raises(InputError, match="different sampling rates"):
        pipeline.prepare(pipeline.read_raw(tmp_path / "mixed.edf"), Pipeline(block_bytes=1 << 20))
