"""The pipeline and the pre-training maker: golden values, closed forms, failures."""

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

import mutants
from dataset_maker import make_h5dataset_for_pretrain, pipeline
from dataset_maker.sources import find_files
from eeg_data.quality import unit_warnings
from errors import InputError, UsageError
from maker_helpers import noise, opened, raw_of, run_maker, save

REPOSITORY = Path(__file__).resolve().parents[1]


def amplitude(signal: np.ndarray, frequency: float, rate: float) -> float:
    """Return the amplitude of a sine of this frequency within a signal (time,), its ends left out."""
    part = signal[len(signal) // 4 : len(signal) * 3 // 4]
    return float(2 * abs(np.mean(part * np.exp(-2j * np.pi * frequency * np.arange(len(part)) / rate))))


def pipeline(*edges: float | None, **options: Any) -> pipeline.Pipeline:
    """Return a pipeline of these filter settings, the usual ones by default."""
    return pipeline.Pipeline(pipeline.FilterSettings(*edges), **options)


UNFILTERED = (None, None, None, None)


def test_recordings_become_the_golden_values_in_a_file_of_their_montage(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    golden = np.load(REPOSITORY / "tests" / "golden" / "preprocessing.npz")
    recordings = [shared / "eegmat" / "Subject00_2.edf", shared / "eegmmidb" / "S001R03.edf"]
    assert run_maker(make_h5dataset_for_pretrain, "--input", *recordings, "--output", tmp_path / "out") == 0
    files = {name[:2]: next(iter(recordings.items())) for name, recordings in opened(tmp_path / "out").items()}
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
    assert "'ECG ECG' (1x), 'EEG A2-A1' (1x)" in printed and printed.count("1 recordings, 0.0") == 2


def test_the_band_is_kept_and_drift_mains_and_fast_activity_go() -> None:
    time = np.arange(60 * 500) / 500  # s
    waves = sum(np.sin(2 * np.pi * frequency * time) for frequency in (10, 50, 98))
    signal = pipeline.prepare(raw_of(["CZ"], 500, (300 + 30 * waves)[None]), pipeline()).eeg[0]
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
    prepared = pipeline.prepare(raw_of(["CZ", "PZ"], rate, noise(2, 5, rate)), pipeline())
    assert abs(prepared.length - 1000) <= 2 and prepared.rate == 200 and prepared.eeg.shape == (2, prepared.length)
    assert (prepared.report["h_freq"] is None) == (rate < 151) and (prepared.report["notch"] is None) == (rate <= 101.2)
    assert prepared.quality.valid.tolist() == [True] * -(-prepared.length // 200)


def test_without_stages_the_signal_passes_unchanged_at_its_own_rate() -> None:
    eeg = noise(2, 5, 250)
    prepared = pipeline.prepare(raw_of(["CZ", "PZ"], 250, eeg), pipeline(*UNFILTERED))
    np.testing.assert_allclose(prepared.eeg, eeg, atol=1e-5)
    assert prepared.rate == 250 and prepared.report["notes"] == []


def test_mains_of_60_hz_is_a_flag() -> None:
    time = np.arange(30 * 200) / 200  # s
    raw = raw_of(["CZ"], 200, 30 * np.sin(2 * np.pi * 60 * time)[None])
    assert amplitude(pipeline.prepare(raw, pipeline(0.1, 75.0, 60.0)).eeg[0], 60, 200) < 0.5


def test_channels_that_the_file_types_as_something_else_are_dropped_with_the_reason() -> None:
    raw = raw_of(["STI1", "PZ", "Fp1", "CZ"], 200, noise(4, 5, 200), ["stim", "eeg", "eog", "eeg"])
    prepared = pipeline.prepare(raw, pipeline())
    assert prepared.electrodes == ["PZ", "CZ"]
    assert set(prepared.report["dropped"]) == {"STI1", "Fp1"} and "type" in prepared.report["dropped"]["Fp1"]


@pytest.mark.parametrize("settings", [{"l_freq": -1.0}, {"l_freq": 80.0}, {"sampling_rate": float("nan")}])
def test_impossible_filter_settings_are_wrong_usage(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        pipeline.FilterSettings(**settings)


def write_brainvision(folder: Path) -> np.ndarray:
    """Write a recording in three files; return its counts (time, N)."""
    counts = np.arange(400, dtype="<i2").reshape(200, 2)  # (time, N), 0.5 uV a count
    (folder / "a.eeg").write_bytes(counts.tobytes())
    (folder / "a.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nDataFile=a.eeg\n"
    )
    (folder / "a.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\nDataFile=a.eeg\n"
        "MarkerFile=a.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\nSamplingInterval=5000\n"
        "[Binary Infos]\nBinaryFormat=INT_16\n[Channel Infos]\nCh1=Cz,,0.5,µV\nCh2=Pz,,0.5,µV\n",
        encoding="utf-8",
    )
    return counts


def test_brainvision_recordings_are_read(tmp_path: Path) -> None:
    counts = write_brainvision(tmp_path)
    (path,) = find_files([tmp_path])
    prepared = pipeline.prepare(pipeline.read_raw(path), pipeline(*UNFILTERED))
    assert prepared.electrodes == ["CZ", "PZ"]
    np.testing.assert_allclose(prepared.eeg, counts.T * 0.5, atol=1e-5)


def test_gdf_recordings_of_version_2_are_read(tmp_path: Path) -> None:
    counts = np.arange(800, dtype="<i2").reshape(4, 2, 100)  # (records of 0.5 s, N, time), 0.25 uV a count
    fixed = (
        b"GDF 2.20".ljust(168, b"\0")
        + bytes(16)
        + struct.pack("<H", 3)
        + bytes(50)
        + struct.pack("<qIIHH", 4, 1, 2, 2, 0)
    )
    names = b"Cz".ljust(16) + b"Pz".ljust(16)
    limits = np.repeat([-8192.0, 8191.75, -32768.0, 32767.0], 2).astype("<f8").tobytes()
    variable = names + bytes(2 * 86) + struct.pack("<HH", 4275, 4275) + limits + bytes(2 * (68 + 12))
    variable += struct.pack("<iiii", 100, 100, 3, 3) + bytes(2 * (12 + 20))
    assert (len(fixed), len(variable)) == (256, 512)
    events = struct.pack("<B3BfIH", 1, 1, 0, 0, 200.0, 101, 769)
    (tmp_path / "a.gdf").write_bytes(fixed + variable + counts.tobytes() + events)
    prepared = pipeline.prepare(pipeline.read_raw(tmp_path / "a.gdf"), pipeline(*UNFILTERED))
    assert prepared.electrodes == ["CZ", "PZ"] and prepared.rate == 200
    np.testing.assert_allclose(prepared.eeg, counts.swapaxes(0, 1).reshape(2, 400) * 0.25, atol=1e-4)


def test_the_further_parts_of_a_split_recording_are_not_converted_twice(tmp_path: Path) -> None:
    raw_of(["CZ"], 200, noise(1, 3600, 200)).save(
        tmp_path / "a_raw.fif", split_size="2MB", buffer_size_sec=1, verbose="error"
    )
    assert len(list(tmp_path.glob("*.fif"))) > 1
    assert find_files([tmp_path]) == [tmp_path / "a_raw.fif"]
    for words in (["--l_freq", 0.1], ["--l_freq", 0]):
        output = tmp_path / f"out{words[1]}"
        assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", output, *words) == 0
        ((eeg,),) = [recordings.values() for recordings in opened(output).values()]
        assert eeg.shape == (1, 720_000)


def test_linked_folders_are_searched_once_even_in_a_circle(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a_raw.fif", ["CZ"], seconds=2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert [path.name for path in find_files([tmp_path / "in"])] == ["a_raw.fif"]


def test_hidden_folders_hold_no_recordings_and_a_link_into_them_is_one_under_its_own_name(tmp_path: Path) -> None:
    for name, seed in (
        ("new", 1),
        ("old", 2),
    ):  # as git-annex keeps files: the old one is no data now
        save(tmp_path / ".git/annex/objects" / f"{name}_raw.fif", ["CZ"], seconds=2, seed=seed)
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01/a_raw.fif").symlink_to(tmp_path / ".git/annex/objects/new_raw.fif")
    assert find_files([tmp_path]) == [tmp_path / "sub-01/a_raw.fif"]
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 0
    ((name,),) = [list(recordings) for recordings in opened(tmp_path / "out").values()]
    assert name == "a_raw"


def test_a_linked_recording_is_read_with_the_files_beside_the_link(tmp_path: Path) -> None:
    write_brainvision(tmp_path)
    (tmp_path / "in").mkdir()
    for suffix in ("vhdr", "vmrk", "eeg"):  # each file alone in a folder, as git-annex keeps them
        (tmp_path / suffix).mkdir()
        (tmp_path / f"a.{suffix}").rename(tmp_path / suffix / f"a.{suffix}")
        (tmp_path / "in" / f"a.{suffix}").symlink_to(tmp_path / suffix / f"a.{suffix}")
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path / "in", "--output", tmp_path / "out") == 0
    ((eeg,),) = [recordings.values() for recordings in opened(tmp_path / "out").values()]
    assert eeg.shape == (2, 200)


def test_a_recording_is_the_same_by_whatever_path_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        save(tmp_path / "eeg" / name / "x_raw.fif", ["CZ"], seconds=2, seed=seed)
    (tmp_path / "link").symlink_to(tmp_path / "eeg")
    (tmp_path / "links").mkdir()
    for name in ("a", "b"):
        (tmp_path / "links" / f"{name}_raw.fif").symlink_to(tmp_path / "eeg" / name / "x_raw.fif")
    output, made = tmp_path / "out", []
    for folder, given in (("eeg/a", ".."), ("", "eeg"), ("", "link"), ("", tmp_path / "eeg"), ("", "links")):
        monkeypatch.chdir(tmp_path / folder)
        assert run_maker(make_h5dataset_for_pretrain, "--input", given, "--output", output) == 0
        made.append(sorted(name for recordings in opened(output).values() for name in recordings))
        assert given == ".." or "2 of 2 recordings were converted before" in capsys.readouterr().out
    assert len(made[0]) == 2 and all(names == made[0] for names in made)


def test_a_recording_whose_link_leads_nowhere_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save(tmp_path / "in/a_raw.fif", ["CZ"], seconds=2)
    (tmp_path / "in/b_raw.fif").symlink_to(tmp_path / "not_fetched.fif")
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    assert "b_raw.fif: links to a file that is not there" in capsys.readouterr().err
    assert [list(recordings) for recordings in opened(tmp_path / "out").values()] == [["a_raw"]]
    (entry,) = json.loads((tmp_path / "out.report.json").read_text())["left_out"]
    assert entry["path"] == str(tmp_path / "in/b_raw.fif")


def test_seconds_without_signal_say_nothing_of_the_unit() -> None:
    eeg = np.concatenate([noise(2, 20, 250), np.zeros((2, 60 * 250))], axis=1)  # the cap was taken off
    quality = pipeline.prepare(raw_of(["CZ", "PZ"], 250, eeg), pipeline()).quality
    assert 18 <= quality.valid.sum() <= 22 and not unit_warnings(quality)
    alone = pipeline.prepare(raw_of(["CZ", "PZ"], 250, eeg[:, : 20 * 250]), pipeline()).quality
    assert quality.percentile(50) == pytest.approx(alone.percentile(50), rel=0.15)


def test_a_folder_that_cannot_be_searched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a_raw.fif", ["CZ"], seconds=2)
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:  # root may open all folders
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="closed: cannot be searched"):
        find_files([tmp_path])


def test_eeglab_recordings_are_read(tmp_path: Path) -> None:
    eeg = noise(2, 2, 200)
    places = np.array([("Cz",), ("Pz",)], dtype=[("labels", object)])
    fields = {"nbchan": 2, "pnts": 400, "trials": 1, "srate": 200.0, "xmin": 0.0, "data": eeg, "chanlocs": places}
    savemat(tmp_path / "a.set", {"EEG": fields | {"event": [], "ref": "common"}}, appendmat=False)
    prepared = pipeline.prepare(pipeline.read_raw(tmp_path / "a.set"), pipeline(*UNFILTERED))
    assert prepared.electrodes == ["CZ", "PZ"]
    np.testing.assert_allclose(prepared.eeg, eeg, atol=1e-3)


def test_another_order_of_electrodes_is_another_montage_and_equal_names_of_files_do_not_collide(tmp_path: Path) -> None:
    save(tmp_path / "in" / "one" / "x y_raw.fif", ["CZ", "PZ"])
    save(tmp_path / "in" / "two" / "x y_raw.fif", ["EEG Cz-REF", "EEG Pz-REF"], seed=1)
    save(tmp_path / "in" / "two" / "z_raw.fif", ["PZ", "CZ"])
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path / "in", "--output", tmp_path / "out") == 0
    found = [
        (name, list(eeg.attrs["chOrder"]))
        for recordings in opened(tmp_path / "out").values()
        for name, eeg in recordings.items()
    ]
    (one, _), (two, _), _ = sorted(found)
    assert [montage for _, montage in sorted(found)] == [["CZ", "PZ"], ["CZ", "PZ"], ["PZ", "CZ"]]
    assert one != two and {one[:-6], two[:-6]} == {"x_y_raw-"} and ("z_raw", ["PZ", "CZ"]) in found


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
    reasons = {
        "broken.edf": "cannot be read",
        "cut_raw": "cannot be read",
        "empty.bdf": "cannot be read",
        "nan_raw": "NaN",
        "short_raw": "0.50 s",
        "unknown_raw": "'FOO'",
    }
    lines = capsys.readouterr().err.splitlines()
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert lines[-1].startswith("error: 6 of 7 recordings were left out") and len(lines) == 7
    assert (report["recordings"], report["converted"], len(report["left_out"])) == (7, 1, 6)
    assert "Jane" not in str([lines, report])
    for name, reason in reasons.items():
        (line,) = [line for line in lines if name in line]
        assert line.startswith("left out: ") and reason in line
        (entry,) = [entry for entry in report["left_out"] if name in entry["path"]]
        assert reason in entry["reason"]


def test_seconds_that_are_not_finite_are_bridged_and_marked_the_others_stay_as_they_are() -> None:
    eeg = noise(2, 30, 250)
    holes = eeg.copy()
    holes[1, 2600:2900] = np.nan  # 10.4 to 11.6 s
    holes[0, 5000] = np.inf  # 20 s
    whole = pipeline.prepare(raw_of(["CZ", "PZ"], 250, eeg), pipeline())
    prepared = pipeline.prepare(raw_of(["CZ", "PZ"], 250, holes), pipeline())
    assert np.flatnonzero(~prepared.quality.valid).tolist() == [10, 11, 20]
    assert prepared.quality.not_finite == {"CZ": 1, "PZ": 2}
    assert np.isfinite(prepared.eeg).all()
    apart = abs(prepared.eeg - whole.eeg)
    assert apart[:, :1800].max() < 3 and apart[:, 4800:].max() < 3  # uV; the high-pass filter still feels the holes
    assert apart[1, 2100:2300].max() > 20


@pytest.mark.parametrize("maximum", [70_000, 1e39])
def test_values_that_the_files_type_cannot_hold_leave_the_recording_out(
    maximum: float, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    eeg = noise(1, 5, 200)
    eeg[0, 500] = maximum
    raw_of(["CZ"], 200, eeg).save(tmp_path / "a_raw.fif", fmt="double", verbose="error")
    words = ("--input", tmp_path, "--dtype", "float16", "--l_freq", 0, "--h_freq", 0, "--notch", 0)
    assert run_maker(make_h5dataset_for_pretrain, *words, "--output", tmp_path / "out") == 1
    assert "more than float16 holds" in capsys.readouterr().err


def test_float16_files_hold_the_same_to_their_precision(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["CZ"])
    found = {}
    for dtype in ("float32", "float16"):
        words = ("--input", tmp_path / "a_raw.fif", "--output", tmp_path / dtype, "--dtype", dtype)
        assert run_maker(make_h5dataset_for_pretrain, *words) == 0
        ((found[dtype],),) = [recordings.values() for recordings in opened(tmp_path / dtype).values()]
    assert found["float16"].dtype == np.float16
    np.testing.assert_allclose(found["float16"][:], found["float32"][:], rtol=1e-3, atol=1e-4)


def test_the_end_can_be_trimmed(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["CZ"], seconds=6)
    words = ("--input", tmp_path / "a_raw.fif", "--l_freq", 0, "--h_freq", 0, "--notch", 0)
    for trim in (0, 2.5):
        assert run_maker(make_h5dataset_for_pretrain, *words, "--output", tmp_path / f"{trim}", "--trim_end", trim) == 0
    whole, part = (next(iter(next(iter(opened(tmp_path / t).values())).values())) for t in ("0", "2.5"))
    assert part.shape == (1, 700)
    np.testing.assert_allclose(part[:], whole[:, :700], atol=1e-5)


def test_a_rate_that_the_models_do_not_take_is_a_warning_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--input", save(tmp_path / "a_raw.fif", ["C3", "C4"])]
    words += ["--output", tmp_path / "out", "--rsfreq", 100]
    assert run_maker(make_h5dataset_for_pretrain, *words) == 0
    said = capsys.readouterr()
    assert "warning" not in said.out
    assert said.err.startswith(
        "warning: with --rsfreq 100 the files cannot train this project's models, which take 200"
    )


def test_a_recording_cut_short_converts_as_far_as_it_goes_and_says_how_much_is_missing(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = [shared / "eegmmidb" / f"S001R0{run}.edf" for run in (1, 2, 3)]
    assert run_maker(make_h5dataset_for_pretrain, "--input", *paths, "--output", tmp_path / "out") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line, name in zip(sorted(lines), ("S001R01.edf", "S001R02.edf"), strict=True):
        assert line.startswith("warning: ") and name in line and "1 of 61 s" in line
    assert len(json.loads((tmp_path / "out.report.json").read_text())["warnings"]) == 2
    found = {name: eeg for recordings in opened(tmp_path / "out").values() for name, eeg in recordings.items()}
    header = int(paths[0].read_bytes()[184:192])
    bytes_a_second = sum(int(paths[0].read_bytes()[256 + 65 * 216 + 8 * n :][:8]) for n in range(65)) * 2
    seconds = (paths[0].stat().st_size - header) // bytes_a_second  # whole records of 1 s, counted by hand
    assert found["S001R01"].shape == (64, 200 * seconds) and seconds == 60


def test_a_header_that_cannot_be_true_costs_only_its_recording(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "good.edf").write_bytes(mutants.edf(random, ["C3", "C4"]))
    for number, duration in enumerate(("1e6", "-1", "inf")):  # seconds of a record: 12 days each, backwards, endless
        (tmp_path / f"slow{number}.edf").write_bytes(mutants.edf(random, ["C3", "C4"], duration=duration))
    fields = {"nbchan": 2, "pnts": 10**12, "trials": 1, "srate": 200.0, "xmin": 0.0, "data": "long.fdt"}
    fields |= dict.fromkeys(("event", "epoch", "icawinv", "icaweights", "icasphere", "icachansind"), np.array([]))
    fields["chanlocs"] = np.array([("C3",), ("C4",)], dtype=[("labels", "O")])
    savemat(tmp_path / "long.set", {"EEG": fields})
    (tmp_path / "long.fdt").write_bytes(bytes(8000))
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 1
    assert [list(recordings) for recordings in opened(tmp_path / "out").values()] == [["good"]]
    errors = capsys.readouterr().err
    assert "long.set: its header announces 1000000000000 samples a channel" in errors
    assert "slow0.edf: sampled at 0.0002 Hz" in errors and "slow1.edf" in errors and "slow2.edf" in errors


def test_annotations_in_any_encoding_are_no_obstacle(tmp_path: Path) -> None:
    content = mutants.edf(np.random.default_rng(0), ["C3", "C4"], remark="Augen ?ffnen")
    (tmp_path / "a.edf").write_bytes(content.replace(b"?", b"\xf6"))  # no UTF-8
    raw = pipeline.read_raw(tmp_path / "a.edf")
    assert raw.n_times == 1000 and raw.annotations.description[0] == "Augen öffnen"


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


def test_a_maker_starts_by_its_path_and_as_a_module(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["CZ"], seconds=2)
    maker = REPOSITORY / "dataset_maker" / "make_h5dataset_for_pretrain.py"
    words = ["--input", tmp_path / "a_raw.fif", "--output", tmp_path / "out"]
    done = subprocess.run([sys.executable, maker, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [sys.executable, "-m", "demo.make_eeghdf", *words], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1 and "not a kind of recording" in done.stderr
