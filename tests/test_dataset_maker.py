"""The pipeline and the pre-training maker: golden values, closed forms, failures, nothing personal passed on."""

import json
import subprocess
import sys
from datetime import date, datetime, timezone
from pathlib import Path

import mne
import numpy as np
import pytest
from scipy.io import savemat

from dataset_maker import common, make_eeghdf, make_h5dataset_for_pretrain
from errors import UsageError
from maker_helpers import eeghdf_file, noise, opened, raw_of, run_maker, save

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def shared() -> Path:
    """Return the folder of shared recordings beside the repository, or skip."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "eegmat").is_dir():
        pytest.skip(f"no recordings in {folder}")
    return folder


def amplitude(signal: np.ndarray, frequency: float, rate: float) -> float:
    """Return the amplitude of a sine of this frequency within a signal (time,), its ends left out."""
    part = signal[len(signal) // 4 : len(signal) * 3 // 4]
    return float(2 * abs(np.mean(part * np.exp(-2j * np.pi * frequency * np.arange(len(part)) / rate))))


def test_recordings_become_the_golden_values_in_one_file_per_montage(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    golden = np.load(REPOSITORY / "tests" / "golden" / "preprocessing.npz")
    recordings = [shared / "eegmat" / "Subject00_2.edf", shared / "eegmmidb" / "S001R03.edf"]
    assert run_maker(make_h5dataset_for_pretrain, "--input", *recordings, "--output", tmp_path) == 0
    files = {name[:2]: next(iter(recordings.items())) for name, recordings in opened(tmp_path).items()}
    for channels, key, stem in (("19", "eegmat", "Subject00_2"), ("64", "eegmmidb", "S001R03")):
        group, eeg = files[channels]
        assert group == stem and eeg.dtype == np.float32 and eeg.chunks == (int(channels), 200)
        np.testing.assert_array_equal(eeg.shape, golden[f"{key}_shape"])
        np.testing.assert_allclose(eeg[:6, :200], golden[f"{key}_first"], atol=1e-3)
        np.testing.assert_allclose(eeg[:6, 6000:6400], golden[f"{key}_middle"], atol=1e-3)
        np.testing.assert_allclose(eeg[:].std(1), golden[f"{key}_std"], atol=1e-3)
        plain = [name.replace("EEG ", "").rstrip(".").upper() for name in golden[f"{key}_channels"]]
        assert list(eeg.attrs["chOrder"]) == plain
        assert [eeg.attrs[name] for name in ("rsFreq", "lFreq", "hFreq", "notch")] == [200, 0.1, 75, 50]
    printed = capsys.readouterr().out
    assert "'EEG A2-A1' (1x), 'ECG ECG' (1x)" in printed and printed.count("1 recordings, 0.0") == 2


def test_the_band_is_kept_and_drift_mains_and_fast_activity_go() -> None:
    time = np.arange(60 * 500) / 500  # s
    waves = sum(np.sin(2 * np.pi * frequency * time) for frequency in (10, 50, 98))
    raw, _ = common.preprocess(raw_of(["CZ"], 500, (300 + 30 * waves)[None]), common.FilterSettings())
    signal = common.microvolts(raw)[0]
    assert signal.shape == (12000,) and abs(signal[3000:9000].mean()) < 0.1
    assert amplitude(signal, 10, 200) == pytest.approx(30, rel=0.01)
    assert amplitude(signal, 50, 200) < 0.5 and amplitude(signal, 98, 200) < 0.5  # the edge ends at 75 * 1.25 Hz


def test_a_source_too_slow_for_75_and_50_hz_is_filtered_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    time = np.arange(60 * 100) / 100  # s
    raw = raw_of(["CZ"], 100, (200 + 30 * np.sin(2 * np.pi * 10 * time))[None])
    raw.save(tmp_path / "slow_raw.fif", fmt="double", verbose="error")
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 0
    ((eeg,),) = [recordings.values() for recordings in opened(tmp_path / "out").values()]
    assert eeg.shape == (1, 12000) and amplitude(eeg[0], 10, 200) == pytest.approx(30, rel=0.01)
    assert abs(eeg[0, 3000:9000].mean()) < 0.1  # the high-pass still works
    attributes = {name: eeg.attrs[name] for name in ("rsFreq", "sourceFreq", "lFreq", "hFreq", "notch")}
    assert attributes == {"rsFreq": 200, "sourceFreq": 100, "lFreq": 0.1, "hFreq": 50, "notch": 0}
    assert "no low-pass at 75 Hz" in eeg.attrs["notes"] and "no notch at 50 Hz" in eeg.attrs["notes"]


@pytest.mark.parametrize("rate", [100.0, 101.0, 101.2, 101.3, 128.0, 150.0, 150.5, 151.0, 200.0000001, 256.0])
def test_any_sampling_rate_ends_at_200_hz(rate: float) -> None:
    raw, report = common.preprocess(raw_of(["CZ", "PZ"], rate, noise(2, 5, rate)), common.FilterSettings())
    assert abs(raw.n_times - 1000) <= 2 and raw.info["sfreq"] == pytest.approx(200)
    assert (report["h_freq"] is None) == (rate < 151) and (report["notch"] is None) == (rate <= 101.2)


def test_without_stages_the_signal_passes_unchanged_at_its_own_rate() -> None:
    eeg = noise(2, 5, 250)
    raw, report = common.preprocess(raw_of(["CZ", "PZ"], 250, eeg), common.FilterSettings(None, None, None, None))
    np.testing.assert_allclose(common.microvolts(raw), eeg, atol=1e-5)
    assert report["sampling_rate"] == 250 and report["notes"] == []


def test_mains_of_60_hz_is_a_flag() -> None:
    time = np.arange(30 * 200) / 200  # s
    raw = raw_of(["CZ"], 200, 30 * np.sin(2 * np.pi * 60 * time)[None])
    raw, _ = common.preprocess(raw, common.FilterSettings(notch=60.0))
    assert amplitude(common.microvolts(raw)[0], 60, 200) < 0.5


def test_channels_that_the_file_types_as_something_else_are_dropped_with_the_reason() -> None:
    raw = raw_of(["STI1", "PZ", "Fp1", "CZ"], 200, noise(4, 5, 200), ["stim", "eeg", "eog", "eeg"])
    raw, report = common.preprocess(raw, common.FilterSettings())
    assert raw.ch_names == ["PZ", "CZ"]
    assert set(report["dropped"]) == {"STI1", "Fp1"} and "type" in report["dropped"]["Fp1"]


@pytest.mark.parametrize("settings", [{"l_freq": -1.0}, {"l_freq": 80.0}, {"sampling_rate": float("nan")}])
def test_impossible_filter_settings_are_wrong_usage(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        common.FilterSettings(**settings)


def test_brainvision_recordings_are_read(tmp_path: Path) -> None:
    counts = np.arange(400, dtype="<i2").reshape(200, 2)  # (time, N), 0.5 uV a count
    (tmp_path / "a.eeg").write_bytes(counts.tobytes())
    (tmp_path / "a.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nDataFile=a.eeg\n"
    )
    (tmp_path / "a.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\nDataFile=a.eeg\n"
        "MarkerFile=a.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\nSamplingInterval=5000\n"
        "[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\nCh1=Cz,,0.5,µV\nCh2=Pz,,0.5,µV\n",
        encoding="utf-8",
    )
    (path,) = common.find_files([tmp_path])
    raw, _ = common.preprocess(common.read_raw(path), common.FilterSettings(None, None, None, None))
    assert raw.ch_names == ["CZ", "PZ"]
    np.testing.assert_allclose(common.microvolts(raw), counts.T * 0.5, atol=1e-5)


def test_eeglab_recordings_are_read(tmp_path: Path) -> None:
    eeg = noise(2, 2, 200)
    places = np.array([("Cz",), ("Pz",)], dtype=[("labels", object)])
    fields = {"nbchan": 2, "pnts": 400, "trials": 1, "srate": 200.0, "xmin": 0.0, "data": eeg, "chanlocs": places}
    savemat(tmp_path / "a.set", {"EEG": fields | {"event": [], "ref": "common"}}, appendmat=False)
    raw, _ = common.preprocess(common.read_raw(tmp_path / "a.set"), common.FilterSettings(None, None, None, None))
    assert raw.ch_names == ["CZ", "PZ"]
    np.testing.assert_allclose(common.microvolts(raw), eeg, atol=1e-3)


def test_another_order_of_electrodes_is_another_montage_and_equal_names_of_files_do_not_collide(tmp_path: Path) -> None:
    save(tmp_path / "in" / "one" / "x y_raw.fif", ["CZ", "PZ"])
    save(tmp_path / "in" / "two" / "x y_raw.fif", ["EEG Cz-REF", "EEG Pz-REF"], seed=1)
    save(tmp_path / "in" / "two" / "z_raw.fif", ["PZ", "CZ"])
    words = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert run_maker(make_h5dataset_for_pretrain, *words) == 0
    assert run_maker(make_h5dataset_for_pretrain, *words) == 1  # rather than losing what is there
    found = {
        tuple(recordings): [list(eeg.attrs["chOrder"]) for eeg in recordings.values()]
        for recordings in opened(tmp_path / "out").values()
    }
    assert found == {("x_y_raw", "x_y_raw_2"): [["CZ", "PZ"]] * 2, ("z_raw",): [["PZ", "CZ"]]}
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_one_electrode_is_enough(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["Oz"], seconds=1.5)
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 0
    ((eeg,),) = [recordings.values() for recordings in opened(tmp_path / "out").values()]
    assert eeg.shape == (1, 300) and eeg.chunks == (1, 200)


def test_failed_recordings_are_named_the_others_are_written_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save(tmp_path / "good_raw.fif", ["CZ"])
    save(tmp_path / "short_raw.fif", ["CZ"], seconds=0.5)
    save(tmp_path / "unknown_raw.fif", ["CZ", "FOO"])
    whole = save(tmp_path / "cut_raw.fif", ["CZ"]).read_bytes()
    (tmp_path / "cut_raw.fif").write_bytes(whole[: len(whole) // 2])
    # "number of data records" is no number: a reader's own message would quote it
    header = f"{'0':8}{'Jane Roe':80}{'':80}01.01.0100.00.00{'512':8}{'':44}Jane Roe{'1':8}{'1':4}"
    (tmp_path / "broken.edf").write_bytes(header.encode().ljust(1024))
    (tmp_path / "empty.bdf").touch()
    raw_of(["CZ"], 200, noise(1, 5, 200) * np.nan).save(tmp_path / "nan_raw.fif", fmt="double", verbose="error")
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 1
    assert [list(recordings) for recordings in opened(tmp_path / "out").values()] == [["good_raw"]]
    assert len(list((tmp_path / "out").iterdir())) == 1
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 7 and lines[-1].startswith("error: 6 of 7 recordings were left out") and "Jane" not in str(lines)
    )
    for name, reason in {
        "broken.edf": "cannot be read",
        "cut_raw": "cannot be read",
        "empty.bdf": "cannot be read",
        "nan_raw": "NaN",
        "short_raw": "0.50 s",
        "unknown_raw": "'FOO'",
    }.items():
        (line,) = [line for line in lines if name in line]
        assert line.startswith("left out: ") and reason in line


def test_drop_and_rename_are_obeyed(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["CZ", "FOO", "BAR"])
    (tmp_path / "map.json").write_text(json.dumps({"BAR": "Pz"}))
    command = ["--input", tmp_path, "--output", tmp_path / "out", "--drop", "foo", "--rename", tmp_path / "map.json"]
    assert run_maker(make_h5dataset_for_pretrain, *command) == 0
    ((eeg,),) = [recordings.values() for recordings in opened(tmp_path / "out").values()]
    assert list(eeg.attrs["chOrder"]) == ["CZ", "PZ"]
    made = json.loads(eeg.file.attrs["made"])
    assert made["rename"] == {"BAR": "Pz"} and made["filter"]["l_freq"] == 0.1 and made["code_version"]
    (tmp_path / "map.json").write_text("[1, 2]")
    assert run_maker(make_h5dataset_for_pretrain, *command) == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--input", "nowhere"], 1, "nowhere: does not exist"),
        (["--input", "."], 1, "no recordings"),
        (["--input", "file.txt"], 1, "file.txt: not a kind of recording"),
        (["--input", "ok/a_raw.fif", "--output", "file.txt"], 2, "file.txt cannot be written"),
        (["--input", "ok", "--l_freq", "80"], 2, "--l_freq 80 must be below"),
        (["--input", "ok", "--notch", "-50"], 2, "--notch -50"),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_code(
    words: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    if "." not in words:
        save(Path("ok/a_raw.fif"), ["CZ"], seconds=2)
    assert run_maker(make_h5dataset_for_pretrain, "--output", "out", *words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and text in line


def test_nothing_that_names_a_person_or_a_day_passes_on(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw = raw_of(["CZ", "ECG"], 200, noise(2, 5, 200))
    raw.info["description"] = "Roe description"
    raw.info["experimenter"] = "Roe technician"
    raw.info["subject_info"] = {
        "last_name": "Roe",
        "first_name": "Jane",
        "birthday": date(1981, 2, 3),
        "his_id": "Roe7",
    }
    raw.set_meas_date(datetime(2019, 3, 4, tzinfo=timezone.utc))
    raw.set_annotations(mne.Annotations([1.0], [1.0], ["Jane Roe moved"], orig_time=raw.info["meas_date"]))
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    eeghdf_file(tmp_path / "b.eeg.h5")
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 0
    assert run_maker(make_eeghdf, "--input", tmp_path, "--output", tmp_path / "out2") == 0
    printed = "".join(capfd.readouterr()).encode()
    files = [path.read_bytes() for path in tmp_path.glob("out*/*")]
    assert len(files) == 2
    for planted in (b"Roe", b"Jane", b"1981", b"2019"):
        assert not any(planted in content for content in [*files, printed])


def test_a_maker_starts_by_its_path_and_as_a_module(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["CZ"], seconds=2)
    maker = REPOSITORY / "dataset_maker" / "make_h5dataset_for_pretrain.py"
    words = ["--input", tmp_path / "a_raw.fif", "--output", tmp_path / "out"]
    done = subprocess.run([sys.executable, maker, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [sys.executable, "-m", "dataset_maker.make_eeghdf", *words], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1 and "not a kind of recording" in done.stderr
