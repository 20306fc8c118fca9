"""Recordings become the windows that models see: the right samples, in uV, at 200 Hz, or an error that says why not."""

from pathlib import Path
from typing import Any

import edfio
import h5py
import mne
import numpy as np
import pytest

from data_helpers import TRIO, counting, signal, write_labelled, write_pretraining
from electrodes import ELECTRODES
from errors import InputError, UsageError
from inference import recordings
from inference.recordings import Options, Windows, find, of_array, of_epochs, of_raw
from inference_helpers import NAMES
from maker_helpers import noise, raw_of, save

RATES = {"C3": 200, "Cz": 200, "ECG": 400}  # Hz


def whole(windows: Windows) -> np.ndarray:
    return windows.batch(0, len(windows))


def opened(path: Path, options: Options | None = None, **more: Any) -> list[Windows]:
    return [opener() for _, opener in find([path], options or Options(window=2), **more)]


def file_of_ours(path: Path, kind: str, eeg: np.ndarray, names: tuple[str, ...] = TRIO) -> Path:
    """Write eeg (2, N, time) as two samples of a labelled file, or as two recordings of a pre-training file."""
    if kind == "labelled":
        return write_labelled(path, {"train": (eeg, [0, 1])}, names=names)
    return write_pretraining(path, names, list(eeg))


# MNE's recordings


def test_windows_are_cut_from_what_mne_filters_and_resamples() -> None:
    raw = raw_of(NAMES, 256, noise(3, 50, 256))
    before = raw.get_data()
    windows = of_raw(raw, Options(window=3, stride=1.5))
    expected = raw.copy().filter(0.1, 75, verbose="error").notch_filter(50, verbose="error")
    expected = expected.resample(200, verbose="error").get_data() * 1e6  # (N, time) uV
    assert windows.electrodes == TRIO and windows.starts.tolist() == [1.5 * n for n in range(32)]
    for start, window in zip(windows.starts, whole(windows), strict=True):
        first = round(start * 200)
        np.testing.assert_allclose(window, expected[:, first : first + 600], atol=1e-3)
    np.testing.assert_array_equal(raw.get_data(), before, "the caller's recording is left as it was")


def test_a_long_recording_waits_on_the_disk_and_gives_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(NAMES, 256, noise(3, 120, 256))
    expected = whole(of_raw(raw, Options(window=2)))
    monkeypatch.setattr(recordings, "IN_MEMORY", 1000)
    windows = of_raw(raw, Options(pipeline=recordings.Pipeline(block_bytes=200_000), window=2))
    assert len(windows) == 60
    np.testing.assert_allclose(whole(windows), expected, atol=0.01)  # blocks are resampled in another way


def test_a_prepared_recording_is_taken_as_it_is_and_must_have_200_hz() -> None:
    eeg = noise(3, 10, 200)
    windows = of_raw(raw_of(NAMES, 200, eeg), Options(window=5, prepared=True))
    np.testing.assert_allclose(np.concatenate(whole(windows), axis=1), eeg, atol=1e-4)
    with pytest.raises(InputError, match=r"sampled at 256 Hz, the models take 200 Hz"):
        of_raw(raw_of(NAMES, 256, eeg), Options(prepared=True))


def test_windows_with_a_stretch_of_nan_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    eeg = noise(3, 20, 200)
    eeg[1, 1010:1100] = np.nan  # the sixth second
    assert of_raw(raw_of(NAMES, 200, eeg), Options(window=2, prepared=True)).starts.tolist() == [0, 2, *range(6, 20, 2)]
    assert "1 of 10 windows" in caplog.text


def test_what_a_caller_did_to_an_edf_recording_stays_done(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    signals = [(noise(1, 20, rate, seed)[0], rate, name) for seed, (name, rate) in enumerate(RATES.items())]
    edfio.Edf([edfio.EdfSignal(row, rate, label=name, physical_dimension="uV") for row, rate, name in signals]).write(
        path
    )
    lazy, loaded = (
        mne.io.read_raw(path, preload=preload, verbose="error").crop(4.1, 12.1, include_tmax=False)
        for preload in (False, True)
    )
    windows = of_raw(lazy, Options(window=4))
    assert windows.starts.tolist() == [0, 4] and windows.electrodes == ("C3", "CZ")
    np.testing.assert_allclose(whole(windows), whole(of_raw(loaded, Options(window=4))), atol=1e-4)
    scaled = loaded.apply_function(lambda eeg: 3 * eeg)
    np.testing.assert_allclose(whole(of_raw(scaled, Options(window=4))), 3 * whole(windows), rtol=1e-4, atol=1e-3)


def test_a_recording_that_was_resampled_in_memory_is_no_forgery(tmp_path: Path) -> None:
    path = save(tmp_path / "a_raw.fif", ["CZ"], rate=100, seconds=60)
    raw = mne.io.read_raw(path, preload=True, verbose="error").resample(2000, verbose="error")
    assert raw.n_times > path.stat().st_size, "more samples than the file has bytes"
    assert len(of_raw(raw, Options(window=10))) == 6


# Epochs


def test_each_epoch_gives_windows_of_its_own() -> None:
    eeg = noise(3, 30, 200)
    events = np.array([[0, 0, 1], [400, 0, 1], [2000, 0, 1], [3001, 0, 1]])  # the first begins before the recording
    epochs = mne.Epochs(raw_of(NAMES, 200, eeg), events, tmin=-0.5, tmax=3.6, baseline=None, verbose="error")
    windows = of_epochs(epochs, Options(window=2, prepared=True))
    assert windows.starts.tolist() == pytest.approx([1.5, 3.5, 9.5, 11.5, 14.505, 16.505])
    for number, start in enumerate(windows.starts):
        first = round(start * 200)
        np.testing.assert_allclose(windows.read(number), eeg[:, first : first + 400], atol=1e-4)
    assert of_epochs(epochs, Options(prepared=True)).samples == 800, "as many whole seconds as fit"


def test_epochs_at_another_rate_go_through_the_pipeline_one_by_one() -> None:
    raw = raw_of(NAMES, 250, noise(3, 30, 250))
    epochs = mne.Epochs(raw, np.array([[0, 0, 1], [2500, 0, 1]]), tmin=0, tmax=8, baseline=None, verbose="error")
    windows = of_epochs(epochs.load_data(), Options(window=8))
    options = Options(pipeline=recordings.Pipeline(resample="polyphase"), window=8)
    for number, piece in enumerate(epochs.get_data(copy=True)):
        alone = of_raw(mne.io.RawArray(piece, raw.info, verbose="error"), options)
        np.testing.assert_array_equal(windows.read(number), alone.read(0))
    resampled = epochs.resample(200, verbose="error")
    assert of_epochs(resampled, Options(prepared=True)).starts.tolist() == [0, 10], "the times of their events"


def test_an_epoch_that_cannot_be_used_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    eeg = noise(3, 20, 200)
    eeg[:, :800] = 0  # the first epoch of five
    windows = of_epochs(mne.make_fixed_length_epochs(raw_of(NAMES, 200, eeg), 4, verbose="error"), Options())
    assert windows.starts.tolist() == [4, 8, 12, 16] and windows.batch(0, 4).shape == (4, 3, 800)
    assert "1 of 5 are left out" in caplog.text
    assert caplog.text.count("high-pass") == 1, "a note on all epochs is logged once"


# Arrays


def test_an_array_is_taken_as_it_is() -> None:
    for dtype in (np.float32, np.float64, np.int16):
        eeg = signal(3, 1000).astype(dtype)
        windows = of_array(eeg, NAMES, Options(window=2, stride=1))
        assert windows.starts.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(windows.read(3), eeg[:, 600:].astype(np.float32))
    pieces = of_array(np.stack([eeg, eeg[::-1]]), NAMES, Options())
    assert len(pieces) == 2 and pieces.starts.tolist() == [0, 5]
    np.testing.assert_array_equal(pieces.read(1), eeg[::-1].astype(np.float32))


def test_an_array_that_cannot_be_used_is_an_error() -> None:
    eeg = signal(3, 400)
    bad, huge = eeg.astype(np.float64), eeg.astype(np.float64)
    bad[2, 250], huge[2, 250] = np.nan, 1e300
    cases: list[tuple[np.ndarray, Any, str]] = [
        (eeg, None, r"no electrode names for 3 rows .*electrodes=\[...\]"),
        (eeg, NAMES[:2], "2 electrode names for 3 rows"),
        (eeg, ["C3", "C4", "E7"], "'E7'"),
        (eeg, ["C3", "C4", "EOG"], "not EEG by their names: EOG"),
        (eeg, ["C3", "CZ", "C3"], "two channels are called 'C3'"),
        (eeg[0], NAMES, r"shape \(400,\)"),
        (eeg[:, :199], NAMES, "lasts 0.99 s"),
        (eeg * 1e-6, NAMES, "volts.*--scale"),
        (eeg * 1e6, NAMES, "factor 1e-6.*--scale"),
        (np.ma.masked_array(eeg, mask=False), NAMES, "MaskedArray"),
        (bad, NAMES, r"1 values are NaN or infinite, the first one of C4 at 1.25 s"),
        (huge, NAMES, r"the first one of C4 at 1.25 s"),
    ]
    for array, names, error in cases:
        with pytest.raises(InputError, match=error):
            of_array(array, names, Options())


def test_a_given_scale_multiplies_and_is_trusted() -> None:
    eeg = signal(3, 400)
    np.testing.assert_allclose(of_array(eeg * 1e-6, NAMES, Options(scale=1e6)).read(0), eeg, rtol=1e-5)
    assert np.abs(of_array(eeg * 1e-6, NAMES, Options(scale=1)).read(0)).max() < 1e-3


def test_the_default_window_has_at_most_256_patches_and_16_seconds() -> None:
    for electrodes, seconds in ((1, 16), (19, 13), (64, 4), (128, 2)):
        windows = of_array(signal(electrodes, 3200), ELECTRODES[:electrodes], Options(stride=1e300))
        assert windows.samples == seconds * 200 and windows.starts.tolist() == [0]


# Files


def test_a_pretraining_file_gives_its_recordings_as_they_are(tmp_path: Path) -> None:
    eeg = [counting(3, 2000), signal(3, 450)]
    first, second = opened(write_pretraining(tmp_path / "a.hdf5", TRIO, eeg), Options(window=2, stride=0.005, scale=1))
    assert (len(first), len(second)) == (1601, 51)
    assert first.read(1600)[1, [0, -1]].tolist() == [101_600, 101_999] and first.starts[1600] == 8
    np.testing.assert_array_equal(second.read(50), eeg[1][:, 50:])


def test_a_labelled_file_gives_its_samples_with_labels(tmp_path: Path) -> None:
    splits = {"train": (signal(3, 3, 400), [0, 1, 1]), "test": (signal(2, 3, 400, seed=1), [1, 0])}
    path = write_labelled(tmp_path / "a.hdf5", splits)
    with h5py.File(path, "a") as file:
        file["train/recording"][:] = ["P1 (rest)", "P1 [rest]", "P1 (rest)"]
    train, test = opened(path, Options())
    assert (len(train), len(test), train.samples) == (3, 2, 400)
    np.testing.assert_array_equal(whole(train), splits["train"][0])
    assert train.labels is not None and train.labels.tolist() == [0, 1, 1] and train.classes == ("rest", "task")
    one, other, again = train.recordings
    assert one == again != other and one.startswith("P1_rest"), "names that become alike stay apart"
    (only,) = opened(path, split="test")
    np.testing.assert_array_equal(whole(only), splits["test"][0])
    with pytest.raises(InputError, match="has no group val, only train, test"):
        opened(path, split="val")


@pytest.mark.parametrize("kind", ["labelled", "pretraining"])
def test_files_that_do_not_say_which_seconds_are_valid_are_scanned(tmp_path: Path, kind: str) -> None:
    eeg = signal(2, 3, 800)
    eeg[1, 2, 450] = np.nan
    options = Options(window=None if kind == "labelled" else 2)
    windows = opened(file_of_ours(tmp_path / "a.hdf5", kind, eeg), options)
    assert sum(map(len, windows)) == (1 if kind == "labelled" else 3)
    assert all(np.isfinite(whole(part)).all() for part in windows)
    path = file_of_ours(tmp_path / "volts.hdf5", kind, signal(2, 3, 800) * 1e-6)
    with pytest.raises(InputError, match=r"volts.*--scale"):
        opened(path, options)


@pytest.mark.parametrize("kind", ["labelled", "pretraining"])
def test_flags_that_a_file_of_ours_cannot_follow_are_refused_before_anything_is_opened(
    tmp_path: Path, kind: str
) -> None:
    path = file_of_ours(tmp_path / f"{kind}.hdf5", kind, signal(2, 3, 400))
    for flag, value in (("l_freq", None), ("h_freq", 40.0), ("notch", 60.0)):
        pipeline = recordings.Pipeline(filter=recordings.FilterSettings(**{flag: value}))
        with pytest.raises(UsageError, match=rf"^--{flag}: .*{kind}\.hdf5 is EEG that is filtered"):
            list(find([path], Options(pipeline=pipeline)))
    for options in [{"window": 1}, {"stride": 0.5}] if kind == "labelled" else []:
        with pytest.raises(UsageError, match=r"its windows are its samples of 2 s: give --window 2"):
            list(find([path], Options(**options)))


@pytest.mark.parametrize("kind", ["labelled", "pretraining"])
def test_drop_and_rename_work_on_files_of_ours_and_what_is_no_eeg_is_left_out_aloud(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    eeg = signal(2, 4, 400)
    path = file_of_ours(tmp_path / "a.hdf5", kind, eeg, ("EOG", "E7", "CZ", "C4"))
    with pytest.raises(InputError, match="'E7'"):
        opened(path)
    pipeline = recordings.Pipeline(rename={"E7": "C3"}, drop=("CZ",))
    parts = opened(path, Options(pipeline=pipeline, window=2))
    assert {windows.electrodes for windows in parts} == {("C3", "C4")}
    np.testing.assert_array_equal(np.concatenate([whole(windows) for windows in parts]), eeg[:, [1, 3]])
    assert "left out: EOG, CZ." in caplog.text


def test_channels_that_are_no_eeg_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    raw = raw_of(["CZ", "EOG1", "C3"], 200, noise(3, 4, 200), ["eeg", "eeg", "misc"])
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    assert {windows.electrodes for windows in opened(tmp_path)} == {("CZ",)}
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if "left out" in record.getMessage()]
    assert [level for level, _ in lines] == ["WARNING", "INFO"], "C3 is probably EEG"
    assert "C3" in lines[0][1] and "EOG1" in lines[1][1]
