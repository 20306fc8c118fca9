"""Recordings become the windows that models see: the right samples, in uV, at 200 Hz, or one line that says why not."""

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
from inference.recording_files import find
from inference.recordings import Options, Windows, of_array, of_epochs, of_raw
from maker_helpers import noise, raw_of, save

NAMES = ["C3", "Cz", "C4"]
RATES = {"C3": 200, "Cz": 200, "ECG": 400}  # Hz


def whole(windows: Windows) -> np.ndarray:
    return windows.batch(0, len(windows))


def opened(path: Path, options: Options | None = None, **more: Any) -> list[Windows]:
    return [opener() for _, opener in find([path], options or Options(window=2), **more)]


# MNE's recordings


def by_mne(raw: mne.io.BaseRaw) -> np.ndarray:
    """The pipeline by MNE's own methods, (N, time) in uV."""
    raw = raw.copy().filter(0.1, 75, verbose="error").notch_filter(50, verbose="error")
    return raw.resample(200, verbose="error").get_data() * 1e6


def test_windows_are_cut_from_what_mne_filters_and_resamples() -> None:
    raw = raw_of(NAMES, 256, noise(3, 50, 256))
    before = raw.get_data()
    windows = of_raw(raw, Options(window=3, stride=1.5))
    expected = by_mne(raw)
    assert windows.electrodes == TRIO and windows.starts.tolist() == [1.5 * n for n in range(32)]
    found = whole(windows)
    for number, start in enumerate(windows.starts):
        first = round(start * 200)
        np.testing.assert_allclose(found[number], expected[:, first : first + 600], atol=1e-3)
    np.testing.assert_array_equal(raw.get_data(), before, "the caller's recording is left as it was")


def test_a_long_recording_waits_in_a_file_and_gives_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(NAMES, 256, noise(3, 120, 256))
    expected = whole(of_raw(raw, Options(window=2)))
    monkeypatch.setattr(recordings, "IN_MEMORY", 1000)
    options = Options(pipeline=recordings.Pipeline(block_bytes=200_000), window=2)
    found = of_raw(raw, options)
    assert len(found) == 60
    np.testing.assert_allclose(whole(found), expected, atol=1e-3)


def test_a_prepared_recording_is_taken_as_it_is() -> None:
    eeg = noise(3, 10, 200)
    windows = of_raw(raw_of(NAMES, 200, eeg), Options(window=5, prepared=True))
    np.testing.assert_allclose(np.concatenate(whole(windows), axis=1), eeg, atol=1e-4)


def test_a_prepared_recording_at_another_rate_is_refused() -> None:
    with pytest.raises(InputError, match=r"sampled at 256 Hz, the models take 200 Hz"):
        of_raw(raw_of(NAMES, 256, noise(3, 10, 256)), Options(prepared=True))


@pytest.mark.parametrize(("electrodes", "seconds"), [(1, 16), (3, 16), (19, 13), (64, 4), (128, 2)])
def test_the_default_window_has_at_most_256_patches_and_16_seconds(electrodes: int, seconds: int) -> None:
    names = list(ELECTRODES[:electrodes])
    windows = of_array(signal(electrodes, 20 * 200), names, Options())
    assert windows.samples == min(seconds, 20) * 200


def test_windows_with_a_stretch_of_nan_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    eeg = noise(3, 20, 200)
    eeg[1, 1010:1100] = np.nan  # the sixth second
    windows = of_raw(raw_of(NAMES, 200, eeg), Options(window=2, prepared=True))
    assert windows.starts.tolist() == [0, 2, 6, 8, 10, 12, 14, 16, 18] and windows.left_out == 1
    assert "1 of 10 windows touch seconds that cannot be used" in caplog.text


# Epochs and arrays


def test_each_epoch_gives_windows_of_its_own() -> None:
    eeg = noise(3, 30, 200)
    raw = raw_of(NAMES, 200, eeg)
    events = np.array([[400, 0, 1], [2000, 0, 1], [3001, 0, 1]])
    epochs = mne.Epochs(raw, events, tmin=-0.5, tmax=3.6, baseline=None, preload=True, verbose="error")
    windows = of_epochs(epochs, Options(window=2, prepared=True))
    assert windows.starts.tolist() == pytest.approx([1.5, 3.5, 9.5, 11.5, 14.505, 16.505])
    for number, start in enumerate(windows.starts):
        first = round(start * 200)
        np.testing.assert_allclose(windows.read(number), eeg[:, first : first + 400], atol=1e-4)
    assert of_epochs(epochs, Options(prepared=True)).samples == 800, "as many whole seconds as fit"


def test_epochs_at_another_rate_go_through_the_pipeline_one_by_one() -> None:
    raw = raw_of(NAMES, 250, noise(3, 30, 250))
    events = np.array([[0, 0, 1], [2500, 0, 1]])
    epochs = mne.Epochs(raw, events, tmin=0, tmax=8, baseline=None, preload=True, verbose="error")
    windows = of_epochs(epochs, Options(window=8))
    for number, piece in enumerate(epochs.get_data(copy=True)):
        alone = of_raw(mne.io.RawArray(piece, raw.info, verbose="error"), Options(window=8))
        np.testing.assert_array_equal(windows.read(number), alone.read(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_an_array_is_taken_as_it_is(dtype: Any) -> None:
    eeg = (signal(3, 1000)).astype(dtype)
    windows = of_array(eeg, NAMES, Options(window=2, stride=1))
    assert windows.starts.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(windows.read(3), eeg[:, 600:].astype(np.float32))
    pieces = of_array(np.stack([eeg, eeg[::-1]]), NAMES, Options())
    assert len(pieces) == 2 and pieces.starts.tolist() == [0, 5]
    np.testing.assert_array_equal(pieces.read(1), eeg[::-1].astype(np.float32))


@pytest.mark.parametrize(
    ("eeg", "names", "says"),
    [
        (signal(3, 400), None, "does not say which electrodes"),
        (signal(3, 400), NAMES[:2], "2 electrode names for 3 rows"),
        (signal(3, 400), ["C3", "C4", "E7"], "unknown electrode names: 'E7'"),
        (signal(3, 400), ["C3", "C4", "EOG"], "not EEG by their names: EOG"),
        (signal(400), NAMES, r"shape \(400,\)"),
        (signal(3, 0), NAMES, r"shape \(3, 0\)"),
        (signal(3, 199), NAMES, "lasts 0.99 s, but one patch is 1 s"),
        (signal(3, 400) * 1e-6, NAMES, "probably volts.*--scale"),
        (signal(3, 400) * 1e6, NAMES, "raw counts or nanovolts.*--scale"),
        (np.array([["a"]]), NAMES[:1], "expected numbers"),
    ],
)
def test_an_array_that_cannot_be_used_is_one_line(eeg: np.ndarray, names: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        of_array(eeg, names, Options())


def test_nan_in_an_array_is_named() -> None:
    eeg = signal(3, 400)
    eeg[2, 250] = np.nan
    with pytest.raises(InputError, match=r"1 values are NaN or infinite, the first one of C4 at 1.25 s"):
        of_array(eeg, NAMES, Options())


def test_a_given_scale_multiplies_and_is_believed() -> None:
    eeg = signal(3, 400)
    windows = of_array(eeg * 1e-6, NAMES, Options(scale=1e6))
    np.testing.assert_allclose(windows.read(0), eeg, rtol=1e-5)
    assert np.abs(of_array(eeg * 1e-6, NAMES, Options(scale=1)).read(0)).max() < 1e-3


@pytest.mark.parametrize(
    "values", [{"window": 0}, {"window": 17}, {"stride": 0}, {"scale": 0}, {"scale": float("nan")}]
)
def test_options_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(values))}"):
        Options(**values)


@pytest.mark.parametrize("rate", [250.0, None])
def test_a_pipeline_to_another_rate_than_the_models_take_is_refused(rate: float | None) -> None:
    with pytest.raises(UsageError, match="the models take 200 Hz"):
        Options(pipeline=recordings.Pipeline(filter=recordings.FilterSettings(sampling_rate=rate)))


# Files


def test_a_pretraining_file_gives_its_recordings_as_they_are(tmp_path: Path) -> None:
    eeg = [signal(3, 1000), signal(3, 450, seed=1)]
    found = opened(write_pretraining(tmp_path / "a.hdf5", TRIO, eeg))
    assert [len(windows) for windows in found] == [2, 1]
    for windows, expected in zip(found, eeg, strict=True):
        for number in range(len(windows)):
            np.testing.assert_array_equal(windows.read(number), expected[:, 400 * number : 400 * number + 400])


def test_a_labelled_file_gives_its_samples_with_labels(tmp_path: Path) -> None:
    splits = {"train": (signal(4, 3, 400), [0, 1, 1, 0]), "test": (signal(2, 3, 400, seed=1), [1, 0])}
    path = write_labelled(tmp_path / "a.hdf5", splits)
    train, test = opened(path, Options(usual_window=1))  # a classifier's; the window is the file's
    assert (len(train), len(test), train.samples) == (4, 2, 400)
    np.testing.assert_array_equal(whole(train), splits["train"][0])
    assert train.labels is not None and train.labels.tolist() == [0, 1, 1, 0] and train.classes == ("rest", "task")
    assert len(train.recordings) == 4
    (only,) = opened(path, split="test")
    np.testing.assert_array_equal(whole(only), splits["test"][0])
    with pytest.raises(InputError, match="has no group val, only train, test"):
        opened(path, split="val")


def test_one_bad_recording_among_many_is_one_that_does_not_open(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", NAMES)
    (tmp_path / "b.edf").write_bytes(b"no recording")
    (tmp_path / "c.hdf5").write_bytes(b"no HDF5")
    save(tmp_path / "d_raw.fif", ["C3", "E7"])
    save(tmp_path / "e_raw.fif", NAMES, seconds=1.5)
    results = {}
    for where, opener in find([tmp_path], Options(window=2)):
        try:
            results[Path(where).name] = str(len(opener()))
        except InputError as error:
            results[Path(where).name] = str(error)
    assert results.keys() == {"a_raw.fif", "b.edf", "c.hdf5", "d_raw.fif", "e_raw.fif"}
    assert results["a_raw.fif"] == "3"
    assert "cannot be read" in results["b.edf"] and "unknown electrode names: 'E7'" in results["d_raw.fif"]
    assert "lasts 1.50 s, a window 2 s: choose a --window of at most 1 s" in results["e_raw.fif"]


def test_positions_in_a_file_are_exact(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [counting(3, 2000)])
    (windows,) = opened(path, Options(window=4, stride=0.005, scale=1))
    assert len(windows) == 1201
    assert windows.read(1200)[1, [0, -1]].tolist() == [101_200, 101_999] and windows.starts[1200] == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 1}, r"--window 1: the windows of .*a\.hdf5 are its samples of 2 s: leave the flag out, or give"),
        ({"stride": 0.5}, r"--stride 0\.5: the windows of"),
        ({"window": 3, "stride": 2}, r"--stride 2 --window 3: the windows of"),
    ],
)
def test_windows_of_a_labelled_file_other_than_its_samples_are_refused_before_anything_is_opened(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (signal(4, 3, 400), [0, 1, 1, 0])})
    with pytest.raises(UsageError, match=says):
        list(find([path], Options(**options)))
    with pytest.raises(UsageError, match=says):
        list(find([path], Options(**options), split="train"))


@pytest.mark.parametrize("flag", ["l_freq", "h_freq", "notch"])
@pytest.mark.parametrize("kind", ["labelled", "pretraining"])
def test_filters_for_a_file_that_is_filtered_are_refused(tmp_path: Path, flag: str, kind: str) -> None:
    path = tmp_path / "a.hdf5"
    if kind == "labelled":
        write_labelled(path, {"train": (signal(2, 3, 400), [0, 1])})
    else:
        write_pretraining(path, TRIO, [signal(3, 1000)])
    for value in (None, 40.0):
        pipeline = recordings.Pipeline(filter=recordings.FilterSettings(**{flag: value}))
        with pytest.raises(UsageError, match=rf"^--{flag}: .*a\.hdf5 holds EEG that is filtered"):
            list(find([path], Options(pipeline=pipeline)))


@pytest.mark.parametrize("kind", ["labelled", "pretraining"])
def test_drop_and_rename_work_on_files_of_ours_and_what_is_no_eeg_is_left_out_aloud(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    names, eeg = ("EOG", "E7", "CZ", "C4"), signal(2, 4, 400)
    path = tmp_path / "a.hdf5"
    if kind == "labelled":
        write_labelled(path, {"train": (eeg, [0, 1])}, names=names)
    else:
        write_pretraining(path, names, [eeg[0], eeg[1]])
    with pytest.raises(InputError, match="unknown electrode names: 'E7'"):
        opened(path)
    options = Options(pipeline=recordings.Pipeline(rename={"E7": "C3"}, drop=("CZ",)), window=2)
    found = opened(path, options)
    assert {windows.electrodes for windows in found} == {("C3", "C4")}
    np.testing.assert_array_equal(np.concatenate([whole(windows) for windows in found]), eeg[:, [1, 3]])
    assert "left out: EOG, CZ." in caplog.text


def test_channels_that_a_recording_does_not_give_as_eeg_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("a", "b"):
        raw = raw_of(["CZ", "EOG1", "C3"], 200, noise(3, 4, 200), ["eeg", "eeg", "misc"])
        raw.save(tmp_path / f"{name}_raw.fif", verbose="error")
    assert {windows.electrodes for windows in opened(tmp_path)} == {("CZ",)}
    said = [(record.levelname, record.getMessage()) for record in caplog.records if "left out" in record.getMessage()]
    first = tmp_path / "a_raw.fif"
    assert said == [
        ("WARNING", f"{first}: left out, not EEG by its type in the file: C3."),
        ("INFO", f"{first}: left out, not EEG by its name: EOG1."),
    ]


def test_recordings_of_a_labelled_file_whose_plain_names_are_alike_stay_apart(tmp_path: Path) -> None:
    names = ["P1 (rest)", "P1 [rest]", "P1 (rest)"]
    path = write_labelled(tmp_path / "a.hdf5", {"test": (signal(3, 3, 400), [0, 1, 0])})
    with h5py.File(path, "a") as file:
        file["test/recording"][:] = names
    ((one, other, again),) = [windows.recordings for windows in opened(path)]
    assert one == again != other and one.startswith("P1_rest") and other.startswith("P1_rest")


def test_two_channels_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two channels are called 'C3'"):
        of_array(signal(3, 400), ["C3", "CZ", "C3"], Options())


# Odd, but sound


def test_an_epoch_that_cannot_be_used_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    eeg = noise(3, 20, 200)
    eeg[:, 800:1600] = 0  # the second epoch of five
    epochs = mne.make_fixed_length_epochs(raw_of(NAMES, 200, eeg), 4, verbose="error")
    windows = of_epochs(epochs, Options())
    assert windows.starts.tolist() == [0, 8, 12, 16] and windows.batch(0, 4).shape == (4, 3, 800)
    assert "epochs: 1 of 5 are left out; the first: epochs, epoch 1: no second is usable" in caplog.text
    assert caplog.text.count("shorter than the high-pass filter") == 1, "said once, not for every epoch"


def test_epochs_that_mne_drops_when_it_reads_them_do_not_count() -> None:
    raw = raw_of(NAMES, 200, noise(3, 20, 200))
    events = mne.make_fixed_length_events(raw, duration=3.5)  # 0, 3.5, ... 17.5: the first and the last do not fit
    epochs = mne.Epochs(raw, events, tmin=-0.5, tmax=2.995, baseline=None, preload=False, verbose="error")
    assert of_epochs(epochs, Options(window=2)).starts.tolist() == [3, 6.5, 10, 13.5]


def test_times_of_resampled_epochs_are_those_of_their_events() -> None:
    epochs = mne.make_fixed_length_epochs(raw_of(NAMES, 400, noise(3, 12, 400)), 4, preload=True, verbose="error")
    epochs = epochs.resample(200, verbose="error")
    assert of_epochs(epochs, Options(prepared=True)).starts.tolist() == [0, 4, 8]


def test_a_stride_longer_than_any_recording_gives_its_first_window() -> None:
    assert of_array(signal(3, 800), NAMES, Options(window=2, stride=1e300)).starts.tolist() == [0]


def test_a_masked_array_and_values_beyond_float32_are_refused() -> None:
    eeg = signal(3, 800).astype(np.float64)
    with pytest.raises(InputError, match=r"array: MaskedArray of float64, .* without a mask"):
        of_array(np.ma.masked_array(eeg, mask=eeg > 30), NAMES, Options())
    eeg[1, 300] = 1e300
    with pytest.raises(InputError, match=r"1 values are NaN or infinite, the first one of CZ at 1.50 s"):
        of_array(eeg, NAMES, Options())


def test_what_a_caller_did_to_an_edf_recording_stays_done(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    signals = [(noise(1, 20, rate, seed)[0], rate, name) for seed, (name, rate) in enumerate(RATES.items())]
    edfio.Edf([edfio.EdfSignal(row, rate, label=name, physical_dimension="uV") for row, rate, name in signals]).write(
        path
    )
    for preload in (True, False):
        cropped = mne.io.read_raw(path, preload=preload, verbose="error").crop(4, 12, include_tmax=False)
        windows = of_raw(cropped, Options(window=4))
        assert windows.starts.tolist() == [0, 4] and windows.electrodes == ("C3", "CZ")
    scaled = mne.io.read_raw(path, preload=True, verbose="error").apply_function(lambda eeg: 3 * eeg)
    plain = of_raw(mne.io.read_raw(path, preload=True, verbose="error"), Options(window=4))
    np.testing.assert_allclose(whole(of_raw(scaled, Options(window=4))), 3 * whole(plain), rtol=1e-4, atol=1e-3)


def test_a_recording_that_was_resampled_in_memory_is_no_forgery(tmp_path: Path) -> None:
    path = save(tmp_path / "a_raw.fif", ["CZ"], rate=100, seconds=60)
    raw = mne.io.read_raw(path, preload=True, verbose="error").resample(2000, verbose="error")
    assert raw.n_times > path.stat().st_size, "more samples than the file has bytes"
    assert len(of_raw(raw, Options(window=10))) == 6


def test_a_kept_scan_serves_every_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_labelled(
        tmp_path / "set.hdf5", {"train": (signal(2, 3, 400), [0, 1]), "test": (signal(2, 3, 400), [1, 0])}
    )
    assert len(opened(path)) == 2 and len(opened(path, split="test")) == 1
    assert "kept scan" not in caplog.text
