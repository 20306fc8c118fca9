"""Block by block equals whole: MNE's own filtering and resampling of the whole recording is the oracle."""

import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mne
import numpy as np
import pytest

from dataset_maker.filters import output_length
from dataset_maker.long_recordings import Read, process_blocks

SECONDS = 331  # of the recordings here: at the shortest blocks, 100 s, these are 4
BLOCKS = {1: 1e9, 2: 200, 3: 120, 4: 0}  # number of blocks: seconds a block
RATES = [100, 128, 160, 200, 250.3, 256, 500, 512, 1000]  # Hz
FILTERED, RESAMPLED = 1e-6, 0.005  # uV, the differences allowed


@cache
def like_eeg(rate: float, seconds: float = SECONDS, electrodes: int = 2) -> np.ndarray:
    """Return (electrodes, time) in uV: 1 / f noise of 50 uV, alpha and beta, mains, an offset that drifts."""
    samples = round(seconds * rate) | 1  # odd
    noise = np.random.default_rng(samples).standard_normal((electrodes, samples))
    spectrum = np.fft.rfft(noise) / np.sqrt(np.fft.rfftfreq(samples, 1 / rate).clip(0.05))
    noise = np.fft.irfft(spectrum, samples)
    time = np.arange(samples) / rate
    waves = sum(size * np.sin(2 * np.pi * hertz * time + size) for hertz, size in ((10.3, 20), (21.7, 5), (50, 10)))
    eeg = noise * 50 / noise.std() + waves + 3000 + 2 * time
    eeg.flags.writeable = False
    return eeg


def stages(rate: float) -> dict[str, float | None]:
    """Return the default filters as far as the rate allows."""
    return {"l_freq": 0.1, "h_freq": 75 if rate > 151 else None, "notch": 50 if rate > 101.5 else None}


def whole(eeg: np.ndarray, rate: float, l_freq: float | None, h_freq: float | None, notch: float | None) -> mne.io.Raw:
    """Return eeg (N, time) in uV as a recording that MNE has filtered whole."""
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info(len(eeg), rate, "eeg"), verbose="error")
    if l_freq or h_freq:
        raw.filter(l_freq, h_freq, verbose="error")
    if notch:
        raw.notch_filter(notch, verbose="error")
    return raw


@cache
def oracle(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what MNE makes of like_eeg(rate), in uV: filtered, and resampled to 200 Hz."""
    raw = whole(like_eeg(rate), rate, **stages(rate))
    return raw.get_data() * 1e6, raw.resample(200, verbose="error").get_data() * 1e6


def from_array(eeg: np.ndarray) -> Read:
    return lambda start, stop: eeg[:, start:stop]


def blocks_of(eeg: np.ndarray, rate: float, new_rate: float | None, seconds: float, **edges: float | None) -> list:
    size = round(seconds * rate)
    filters = edges or stages(rate)
    read = from_array(eeg)
    return list(process_blocks(read, eeg.shape[1], rate, **filters, new_rate=new_rate, block_samples=size))


def assert_equal_in_blocks(
    eeg: np.ndarray, rate: float, expected: np.ndarray, allowed: float, **edges: float | None
) -> None:
    blocks = blocks_of(eeg, rate, 200, 0, **edges)
    assert len(blocks) > 2
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("rate", RATES)
def test_filtering_in_blocks_equals_filtering_the_whole_up_to_both_ends(rate: float) -> None:
    expected, _ = oracle(rate)
    for seconds in (1e9, 120, 7.3):
        blocks = blocks_of(like_eeg(rate), rate, None, seconds)
        assert (len(blocks) == 1) == (seconds > SECONDS)
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, rtol=0, atol=FILTERED)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != 200])
def test_resampling_in_blocks_equals_resampling_the_whole_up_to_both_ends(rate: float) -> None:
    _, expected = oracle(rate)
    for number, seconds in BLOCKS.items() if rate <= 256 else [(3, BLOCKS[3])]:
        blocks = blocks_of(like_eeg(rate), rate, 200, seconds)
        assert len(blocks) == number
        np.testing.assert_allclose(np.concatenate(blocks, axis=1), expected, rtol=0, atol=RESAMPLED)


@pytest.mark.parametrize("rate", [173.61, 199.997, 249.9999, 250.00000001, 2048 / 9])
def test_rates_that_are_no_simple_ratio_are_resampled_alike(rate: float) -> None:
    eeg = like_eeg(rate)
    expected = whole(eeg, rate, **stages(rate)).resample(200, verbose="error").get_data() * 1e6
    assert_equal_in_blocks(eeg, rate, expected, RESAMPLED)


@pytest.mark.parametrize("rate", [100, 128, 256, 250.3])
def test_white_noise_up_to_the_cut_off_is_resampled_alike_without_any_low_pass(rate: float) -> None:
    eeg = np.random.default_rng(0).standard_normal((2, round(SECONDS * rate))) * 50
    raw = mne.io.RawArray(eeg, mne.create_info(2, rate, "eeg"), verbose="error")
    expected = raw.resample(200, verbose="error").get_data()
    assert_equal_in_blocks(eeg, rate, expected, 1e-4, l_freq=None, h_freq=None, notch=None)


@pytest.mark.parametrize("rate", [256, 500])
def test_white_noise_is_resampled_alike_where_the_low_pass_spares_the_second_reading(rate: float) -> None:
    eeg = np.random.default_rng(0).standard_normal((2, round(SECONDS * rate))) * 50
    expected = whole(eeg, rate, **stages(rate)).resample(200, verbose="error").get_data() * 1e6
    assert_equal_in_blocks(eeg, rate, expected, RESAMPLED)


def test_mains_at_the_cut_off_of_a_slow_source_are_resampled_alike() -> None:
    time = np.arange(SECONDS * 100) / 100
    eeg = np.stack([np.sin(2 * np.pi * hertz * time + 0.4) for hertz in (49.99, 49.9999, 50)]) * 20
    raw = mne.io.RawArray(eeg, mne.create_info(3, 100, "eeg"), verbose="error")
    expected = raw.resample(200, verbose="error").get_data()
    assert_equal_in_blocks(eeg, 100, expected, 1e-4, l_freq=None, h_freq=None, notch=None)


def test_ends_that_differ_by_millivolts_with_little_padding_between_them_ring_alike() -> None:
    samples = 2**16 - 200  # MNE pads to 2**16, 100 samples a side, and its FFT takes the last for the first's neighbour
    eeg = like_eeg(256)[:, :samples] + 2000 * np.sin(np.linspace(0.5, 250.5 * np.pi, samples))
    expected = whole(eeg, 256, **stages(256)).resample(200, verbose="error").get_data() * 1e6
    assert_equal_in_blocks(eeg, 256, expected, RESAMPLED)


def test_a_jump_of_10_mv_without_a_high_pass_is_resampled_alike() -> None:
    eeg = like_eeg(256).copy()
    eeg[:, 60_000:] += 10_000
    edges = {"l_freq": None, "h_freq": 70, "notch": None}
    expected = whole(eeg, 256, **edges).resample(200, verbose="error").get_data() * 1e6
    assert_equal_in_blocks(eeg, 256, expected, RESAMPLED, **edges)


def test_other_target_rates_are_resampled_alike() -> None:
    eeg = like_eeg(256)
    for new_rate in (128, 512, 173.61):
        expected = whole(eeg, 256, **stages(256)).resample(new_rate, verbose="error").get_data() * 1e6
        result = np.concatenate(blocks_of(eeg, 256, new_rate, 0), axis=1)
        np.testing.assert_allclose(result, expected, rtol=0, atol=RESAMPLED)


def test_one_electrode_in_volts_equals_the_same_electrode_among_others() -> None:
    for rate in (128, 256):
        one = np.concatenate(blocks_of(like_eeg(rate)[1:] * 1e-6, rate, 200, 0), axis=1)
        np.testing.assert_allclose(one[0] * 1e6, oracle(rate)[1][1], rtol=0, atol=RESAMPLED)


@pytest.mark.parametrize("seconds", [1, 2.5, 13, 34])
def test_recordings_shorter_than_the_filter_equal_mne_exactly(seconds: float) -> None:
    eeg = like_eeg(256, seconds)
    expected = whole(eeg, 256, **stages(256)).resample(200, verbose="error").get_data() * 1e6
    [block] = blocks_of(eeg, 256, 200, 0)
    np.testing.assert_allclose(block, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("samples", range(25_599, 25_605))
def test_recordings_about_as_long_as_one_block_equal_mne(samples: int) -> None:
    eeg = like_eeg(256, 102)[:, :samples]
    raw = whole(eeg, 256, **stages(256))
    filtered = np.concatenate(blocks_of(eeg, 256, None, 100), axis=1)
    np.testing.assert_allclose(filtered, raw.get_data() * 1e6, rtol=0, atol=FILTERED)
    resampled = np.concatenate(blocks_of(eeg, 256, 200, 100), axis=1)
    expected = raw.resample(200, verbose="error").get_data() * 1e6
    np.testing.assert_allclose(resampled, expected, rtol=0, atol=RESAMPLED)


def test_output_length_is_that_of_mne() -> None:
    for rate in (*RATES, 199.997, 199.9999, 173.61, 249.9999):
        for samples in (1, 2, 3, 999, 1000, 1001, 12_345):
            raw = mne.io.RawArray(np.zeros((1, samples)), mne.create_info(1, rate, "eeg"), verbose="error")
            assert output_length(samples, rate, 200) == raw.resample(200, verbose="error").n_times
    assert output_length(1000, 256, None) == 1000


def test_nothing_to_do_returns_the_source() -> None:
    eeg = like_eeg(199.9999)
    edges = {"l_freq": None, "h_freq": None, "notch": None}
    for new_rate in (None, 200):  # MNE takes rates within 1e-6 for equal
        np.testing.assert_array_equal(np.concatenate(blocks_of(eeg, 199.9999, new_rate, 10, **edges), axis=1), eeg)


def test_an_empty_recording_is_refused() -> None:
    with pytest.raises(ValueError, match="samples is 0"):
        blocks_of(np.zeros((2, 0)), 256, 200, 100)


@pytest.mark.parametrize("rate", [128, 200, 256])
def test_the_source_stays_as_it_was_and_is_read_within_its_ends_in_bounded_pieces(rate: float) -> None:
    eeg = like_eeg(rate)
    before, pieces = eeg.copy(), []

    def read(start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= eeg.shape[1]
        pieces.append(stop - start)
        return eeg[:, start:stop]

    size = round(120 * rate)
    result = process_blocks(read, eeg.shape[1], rate, **stages(rate), new_rate=200, block_samples=size)
    assert sum(block.shape[1] for block in result) == output_length(eeg.shape[1], rate, 200)
    np.testing.assert_array_equal(eeg, before)
    assert max(pieces) < 1.1 * (120 + 60) * rate + 41 * rate


def test_a_real_recording_of_three_minutes_equals_mne(shared: Path) -> None:
    raw = mne.io.read_raw_edf(shared / "eegmat" / "Subject00_1.edf", verbose="error").pick(list(range(4)))

    def read(start: int, stop: int) -> np.ndarray:
        return raw.get_data(start=start, stop=stop)

    edges = {"l_freq": 0.1, "h_freq": 75, "notch": 50}
    blocks = list(process_blocks(read, raw.n_times, 500, **edges, new_rate=200, block_samples=0))
    assert len(blocks) == 2
    expected = whole(raw.get_data() * 1e6, 500, **edges).resample(200, verbose="error").get_data()
    np.testing.assert_allclose(np.concatenate(blocks, axis=1) * 1e6, expected * 1e6, rtol=0, atol=RESAMPLED)


def peak_of(rate: int, new_rate: float | None, samples: int) -> int:
    """Return the peak in bytes of going through a recording that is made up as it is read."""
    period = like_eeg(rate, 11)

    def read(start: int, stop: int) -> np.ndarray:
        return period.take(np.arange(start, stop), axis=1, mode="wrap")

    edges = stages(rate) | {"l_freq": 1}  # a short filter is designed faster
    result: Iterator = process_blocks(read, samples, rate, **edges, new_rate=new_rate, block_samples=100 * rate)
    tracemalloc.start()
    for _ in result:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(("rate", "new_rate"), [(128, 200), (200, None), (256, 200)])
def test_memory_does_not_grow_with_the_recording(rate: int, new_rate: float | None) -> None:
    short, long = (peak_of(rate, new_rate, round(seconds * rate)) for seconds in (300, 1200))
    assert long < 1.05 * short
