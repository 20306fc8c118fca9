"""Time: breaks, clocks, bad stretches and channels, resampling. The oracles are the signals that were put in."""

import csv
import datetime
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from dataset_maker import bads, make_h5dataset_for_pretrain, make_labelled, make_manifest, marks, pipeline, tuh
from dataset_maker.marks import Stretch
from dataset_maker.pipeline import FilterSettings, Pipeline, Prepared
from dataset_maker.recording import RawRecording
from dataset_maker.recording import of_raw as recording_of
from inference.recordings import Options, of_raw
from maker_helpers import brainvision, edf_of, eeglab, gdf_of, noise, raw_of, run_maker
from test_cases import case

NAMES = ["FP1", "FP2", "F7", "F3", "FZ", "F4", "F8", "T3", "C3", "CZ", "C4", "T4", "T5", "P3", "PZ", "P4", "T6", "O1"]
NAMES += ["O2"]
NO_FILTERS = FilterSettings(None, None, None)
VISIT = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


def marked(path: Path) -> RawRecording:
    """Open a recording and read its marks."""
    recording = pipeline.read(path, Pipeline())
    marks.mark(recording)
    return recording


def sine(seconds: float, rate: float, hertz: float = 10.0, phase: float = 0.0) -> np.ndarray:
    """Return (1, time) in uV, of amplitude 50."""
    return 50 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate + phase)[None]


# ---- breaks, in every format


def joined(path: Path) -> None:
    mne.concatenate_raws([raw_of(["C3"], 200, noise(1, length, 200)) for length in (5.005, 4.995)]).save(path)


def skipped(path: Path) -> None:
    raw = raw_of(["C3"], 200, noise(1, 14, 200)).set_meas_date(VISIT)
    raw.set_annotations(mne.Annotations([8], [3], ["BAD_ACQ_SKIP"], orig_time=VISIT))
    raw.crop(tmin=4).save(path, buffer_size_sec=1.0)


def cut_set(path: Path) -> None:
    # 4 s were cut out behind sample 1001: latencies count from 1, a boundary lies between two samples
    events = [("boundary", 1001.5, 800.0), (-99.0, 1600.5, 0.0), ("bad_word", 1700.0, 0.0), ("S1", 1700.0, 1.0)]
    kinds: Any = [("type", "O"), ("latency", "O"), ("duration", "O")]
    eeglab(path, noise(1, 10, 200), event=np.array(events, dtype=kinds))


def segments(path: Path) -> None:
    marks = ["New Segment,,1,1,0,20200101101112000000", "New Segment,,1002,1,0,20200101111112000000"]
    brainvision(path, noise(1, 10, 200), step=0.1, marks=[*marks, "Stimulus,S  1,300,1,0"])


def gdf(path: Path) -> None:
    gdf_of(path, {"C3": np.rint(noise(1, 10, 200)[0])}, 10)
    places, codes = np.array([1, 1002, 1500], "<u4"), np.array([0x7FFE, 0x7FFE, 769], "<u2")
    table = struct.pack("<B3Bf", 1, 3, 0, 0, 200.0) + places.tobytes() + codes.tobytes()
    path.write_bytes(path.read_bytes()[:-8] + table)


def edf_d(path: Path) -> None:
    edf_of(path, {"C3": np.rint(noise(1, 10, 200)[0])}, onsets=[*range(5), *(11.5 + i for i in range(5))])


@pytest.mark.parametrize(
    ("write", "name", "starts", "clocks", "invalid"),
    [
        (joined, "a_raw.fif", [0, 5.005], [0, 5.005], []),
        (skipped, "a_raw.fif", [0, 4, 7], [4, 8, 11], [(4, 7)]),
        (cut_set, "a.set", [0, 5.005, 8.0], [0, 5.005, 8.0], []),
        (segments, "a.vhdr", [0, 5.005], [0, 5.005], []),
        (gdf, "a.gdf", [0, 5.005], [0, 5.005], []),
        (edf_d, "a.edf", [0, 5], [0, 11.5], []),
        (edf_d, "a.bdf", [0, 5], [0, 11.5], []),
    ],
)
def test_breaks_lie_where_each_format_marks_them(
    write: Callable[[Path], None], name: str, starts: list[float], clocks: list[float], invalid: Any, tmp_path: Path
) -> None:
    write(tmp_path / name)
    recording = marked(tmp_path / name)
    assert [stretch.start for stretch in recording.stretches] == pytest.approx(starts)
    assert [stretch.clock for stretch in recording.stretches] == pytest.approx(clocks)
    assert recording.invalid == invalid


def test_a_disconnected_ant_amplifier_and_a_paused_egi_recording_have_breaks(shared: Path) -> None:
    pytest.importorskip("antio")
    disconnected = marked(shared / "formats/ant/test_CA_208_amp_disconnection.cnt")
    assert [stretch.start for stretch in disconnected.stretches] == [0, 6.073, 6.075]  # the signal jumps at 6.075
    pytest.importorskip("mffpy")
    paused = marked(shared / "formats/egi/test_egi_multiepoch_paused.mff")
    assert paused.invalid == [(1.304, 1.772), (8.66, 12.296)] and len(paused.stretches) == 5
    assert all(not paused.raw.get_data("eeg", *(round(t * 250) for t in span)).any() for span in paused.invalid)


def test_zeros_that_fill_a_block_of_egi_up_are_no_step_of_its_offset() -> None:
    eeg = 1e5 + sine(20, 200.0)
    eeg[:, 1990:2400] = 0  # 50 ms, and the pause, which begins at 10 s
    raw = type("RawMff", (mne.io.RawArray,), {})(eeg * 1e-6, mne.create_info(["CZ"], 200.0, "eeg"))
    raw.set_annotations(mne.Annotations([10], [2], ["BAD_ACQ_SKIP"]))
    result = pipeline.prepare(raw, Pipeline(FilterSettings(1.0, None, None)))
    assert np.flatnonzero(~result.quality.valid).tolist() == [9, 10, 11] and abs(result.eeg).max() < 120


# ---- filters, resampling and windows


@pytest.mark.parametrize(
    ("rate", "block_bytes"), [(256.0, 1 << 30), (250.0, 1 << 30), (500.0, 1 << 20), (160.3, 1 << 18)]
)
def test_a_pause_shifts_and_smears_nothing(rate: float, block_bytes: int) -> None:
    """Two sines on offsets that differ by 5 mV; the break lies between two samples of the result."""
    cut, seconds = round(70.403 * rate), 140
    eeg = sine(seconds, rate)
    eeg[:, cut:] = sine(seconds, rate, 7.0, 1.0)[:, cut:] + 5000
    raw = raw_of(["CZ"], rate, eeg)
    raw.set_annotations(mne.Annotations([cut / rate], [0.0], ["BAD boundary"]))
    settings = FilterSettings(0.5, 40.0, None)
    result = pipeline.prepare(raw, Pipeline(settings, block_bytes=block_bytes, scale=1.0))
    time = np.arange(result.length) / 200
    expected = np.where(time < cut / rate, sine(seconds, 200.0), sine(seconds, 200.0, 7.0, 1.0))
    near_end = np.min(abs(time[:, None] - [0, cut / rate, seconds]), axis=1) < 4
    assert abs(result.eeg - expected)[:, ~near_end].max() < 0.5
    assert abs(result.eeg).max() < 120  # nor does the offset ring
    assert np.flatnonzero(~result.unbroken).tolist() == [int(cut / rate)] and result.report["breaks"] == 1


def test_a_short_stretch_keeps_its_waves_and_loses_its_offset_and_drift() -> None:
    eeg = sine(60, 200.0)
    eeg[:, 4000:5001] += 3000 + np.arange(1001)  # 5 s, shorter than the high-pass, which lasts 33 s
    raw = raw_of(["CZ"], 200.0, eeg)
    raw.set_annotations(mne.Annotations([20, 25.005], [0, 0], ["boundary", "boundary"]))
    result = pipeline.prepare(raw, Pipeline(FilterSettings(0.1, None, None)))
    assert abs(result.eeg - sine(60, 200.0))[:, 4000:5001].max() < 1.0
    assert "a stretch between breaks is shorter" in result.report["notes"][0]


@pytest.mark.parametrize("rate", [250.0, 500.0, 1000.0])
def test_polyphase_puts_samples_where_they_belong_and_mnes_default_does_not(rate: float) -> None:
    eeg = sine(600, rate, 20.0) + sine(600, rate, 40.0, 1.0)
    expected = (sine(600, 200.0, 20.0) + sine(600, 200.0, 40.0, 1.0))[:, 1000:-1000]
    errors = {
        way: abs(
            pipeline.prepare(raw_of(["CZ"], rate, eeg), Pipeline(NO_FILTERS, resample=way)).eeg[:, 1000:-1000]
            - expected
        )
        for way in pipeline.RESAMPLING
    }
    assert errors["polyphase"].max() < 0.05 and errors["mne"].max() > 10


def test_pauses_of_a_file_are_known_when_its_recording_was_loaded_and_cropped(tmp_path: Path) -> None:
    edf_d(tmp_path / "a.edf")
    raw = mne.io.read_raw(tmp_path / "a.edf", preload=True, verbose="error").crop(2).resample(100, verbose="error")
    assert of_raw(raw, Options(window=2)).starts.tolist() == [0, 4, 6]  # the pause lies at 3 s


@pytest.mark.parametrize(("at", "second"), [(5.0, 4), (5.25, 5), (9.996, 9)])
def test_the_second_of_a_break_or_before_one_is_no_part_of_a_window(at: float, second: int) -> None:
    stretches = [Stretch(0, at, 0), Stretch(at, 10, at)]
    assert np.flatnonzero(~marks.unbroken(np.ones(10, bool), stretches)).tolist() == [second]


def test_bad_stretches_breaks_and_skips_reach_training_files_and_inference(tmp_path: Path) -> None:
    raw = raw_of(["C3", "CZ"], 200.0, noise(2, 30, 200))
    texts = ["bad_movement", "EDGE boundary", "Comment/badly slept"]
    raw.set_annotations(mne.Annotations([3.5, 10, 12], [2, 0, 3], texts))
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    assert run_maker(make_h5dataset_for_pretrain, "--input", tmp_path, "--output", tmp_path / "out") == 0
    (path,) = (tmp_path / "out").glob("*.hdf5")
    with h5py.File(path) as file:
        assert np.flatnonzero(~file["a_raw/valid"][:]).tolist() == [3, 4, 5, 9]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["breaks"], report["invalid_seconds"]) == (1, 4)
    assert of_raw(raw, Options(window=2)).starts.tolist() == [0, 6, *range(10, 30, 2)]


# ---- the clock


def prepared(*stretches: Stretch) -> Prepared:
    """Return an empty signal at 200 Hz."""
    length, report = round(stretches[-1].stop * 200), {"warnings": []}
    quality = pipeline.Quality.merged(())
    return Prepared(["C3"], 200.0, length, np.zeros((1, length)), quality, report, list(stretches))


@pytest.mark.parametrize(
    ("segment", "times", "starts"),
    [
        ((4, 9), "clock", [4, 6]),  # not paused yet
        ((16, 35), "clock", [16, 18, 20, 22]),  # over the pause of 10 s: both sides, and none across
        ((21, 29), "clock", []),  # within the pause
        ((31, 34), "clock", [21]),
        ((0, np.inf), "clock", [*range(0, 40, 2)]),
        ((4, 9), "first_sample", [4, 6]),
    ],
)
def test_a_pause_counts_and_gives_no_window(segment: tuple[float, float], times: str, starts: list[int]) -> None:
    for clock in (0, 100):  # of a FIF that was cropped before it was saved
        shift = clock if times == "clock" and segment[0] else 0
        rows = [[segment[0] + shift, segment[1] + shift, 0, "train"], [shift, shift + 2, 1, "train"]]
        task = {"window": 2, "stride": 2, "times": times, "segments": rows, "path": "a"}
        windows = make_labelled.windows(task, prepared(Stretch(0, 20, clock), Stretch(20, 40, clock + 30)))
        found = [start / 200 for start, label in zip(windows.starts, windows.labels, strict=True) if label == 0]
        assert found == starts


@pytest.mark.parametrize("suffix", ["edf", "bdf"])
@pytest.mark.parametrize("named", ["edf", "bdf"])
def test_annotations_behind_the_last_stored_second_are_read(suffix: str, named: str, tmp_path: Path) -> None:
    edf_d(path := tmp_path / f"a.{suffix}")
    content, tal = bytearray(path.read_bytes()), b"+0\x14\x14\0"
    at = content.index(tal)
    content[at : at + 28] = tal + b"+15.25\x151\x14late\x14".ljust(23, b"\0")
    path.unlink()
    path.with_suffix(f".{named}").write_bytes(content)
    recording = pipeline.read(path.with_suffix(f".{named}"), Pipeline())
    assert marks.on_clock(recording) == [(15.25, 1.0, "late")]
    assert marks.stored(recording.stretches, 15.25) == 8.75


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("cropped", [False, True])
def test_bad_stretches_behind_a_pause_are_known_in_a_raw_and_those_that_somebody_added(
    preload: bool, cropped: bool, tmp_path: Path
) -> None:
    edf_d(path := tmp_path / "a.edf")
    content, tal = bytearray(path.read_bytes()), b"+0\x14\x14\0"
    at = content.index(tal)
    content[at : at + 28] = tal + b"+13.25\x151\x14bad\x14".ljust(23, b"\0")
    path.write_bytes(content)
    raw = mne.io.read_raw_edf(path, preload=preload, verbose="error")
    raw.crop(6 * cropped)  # nothing is left of what lies before the pause
    raw.set_annotations(mne.Annotations([1, 3], 1, "BAD_mine"), verbose="error")
    recording, late = recording_of(raw), 6.75 - 6 * cropped  # s of the stored signal
    marks.mark(recording)
    assert sorted(recording.invalid) == sorted([(late, late + 1), (1, 2), (3, 4)])


def test_rows_outside_say_when_the_recording_begins_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw = raw_of(["C3"], 200.0, noise(1, 100, 200)).set_meas_date(VISIT)
    raw.crop(tmin=30).save(tmp_path / "a_raw.fif", verbose="error")
    flags = ("--manifest", tmp_path / "m.csv", "--output", tmp_path / "o.hdf5")
    rows = "path,start,stop,label,split,subject\na_raw.fif,5,10,x,train,1\na_raw.fif,20,25,y,train,1\n"
    (tmp_path / "m.csv").write_text(rows)
    assert run_maker(make_labelled, *flags) == 1
    shown = capsys.readouterr().err
    assert "begins at 30 s and ends at 100 s" in shown and "--times first_sample" in shown
    assert run_maker(make_labelled, *flags, "--times", "first_sample") == 0
    (tmp_path / "o.hdf5").unlink()
    (tmp_path / "m.csv").write_text(rows + "a_raw.fif,40,45,x,train,1\na_raw.fif,50,55,y,train,1\n")
    assert run_maker(make_labelled, *flags) == 0 and "2 of its 4 segments lie outside" in capsys.readouterr().err


# ---- manifests


@pytest.mark.parametrize("name", ["edf_discontinuous", "fif_first_sample"])
def test_windows_of_annotations_called_alpha_hold_the_alpha(name: str, shared: Path, tmp_path: Path) -> None:
    case(shared, name, tmp_path / name)
    (tmp_path / "map.json").write_text('{"al*": "alpha", "rest": "rest"}')
    (tmp_path / "splits.json").write_text('{"*": "train"}')
    maps, manifest = ("--labels", tmp_path / "map.json", "--splits", tmp_path / "splits.json"), tmp_path / "m.csv"
    assert run_maker(make_manifest, "--input", tmp_path / name, "--output", manifest, *maps) == 0
    assert run_maker(make_labelled, "--manifest", manifest, "--output", tmp_path / "o.hdf5", "--window", 5) == 0
    with h5py.File(tmp_path / "o.hdf5") as file:
        labels, eeg = file["train/label"][:], file["train/eeg"][:]
    alpha = abs(np.fft.rfft(eeg))[..., 50].mean(1) * 2 / 1000  # 10 Hz, uV
    assert sorted(labels) == [0, 0, 0, 1, 1, 1] and (alpha[labels == 0] > 45).all() and (alpha[labels == 1] < 2).all()


def test_a_manifest_finds_recordings_although_its_folder_is_a_link(tmp_path: Path) -> None:
    raw = raw_of(["C3"], 200.0, noise(1, 20, 200)).set_annotations(mne.Annotations(2, 3, "a"))
    raw.save(tmp_path / "x_raw.fif", verbose="error")
    (tmp_path / "there/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there/deep")
    (tmp_path / "labels.json").write_text('{"a": "b"}')
    flags = ("--labels", tmp_path / "labels.json", "--output", tmp_path / "link/m.csv")
    assert run_maker(make_manifest, "--input", tmp_path / "x_raw.fif", *flags) == 0
    table, _ = make_labelled.read_manifest(tmp_path / "link/m.csv")
    assert table["path"].iloc[0].samefile(tmp_path / "x_raw.fif")


def test_a_manifest_of_annotations_has_patterns_windows_subjects_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for subject in ("01", "02"):
        raw = raw_of(["C3"], 200.0, noise(1, 20, 200))
        texts = ["stim/left", "stim/right", "pause", "stim/left"]
        raw.set_annotations(mne.Annotations([2, 5, 6, 2], [0, 0, 0, 0], texts))
        path = tmp_path / f"sub-{subject}/sub-{subject}_raw.fif"
        path.parent.mkdir()
        raw.save(path, verbose="error")
    (tmp_path / "labels.json").write_text('{"stim/left": "left", "stim/*": "other"}')
    flags = ("--input", tmp_path, "--labels", tmp_path / "labels.json", "--output", tmp_path / "m.csv", "--window", 2)
    for words in (flags[:-2], (*flags, "--onset", -30)):  # all last 0 s, all begin before 0 s
        assert run_maker(make_manifest, *words) == 1
        assert "--window or --onset; others are: 'pause' 2x" in capsys.readouterr().err
    (tmp_path / "splits.json").write_text('{"*sub-01*": "train", "*": "tset"}')
    assert run_maker(make_manifest, *flags, "--splits", tmp_path / "splits.json") == 1
    assert "'tset'" in capsys.readouterr().err
    (tmp_path / "splits.json").write_text('{"*sub-01*": "train", "*": "test"}')
    assert run_maker(make_manifest, *flags, "--onset", -0.5, "--splits", tmp_path / "splits.json") == 0
    assert [tuple(row.values()) for row in csv.DictReader((tmp_path / "m.csv").open())] == [
        (f"sub-{who}/sub-{who}_raw.fif", start, stop, label, who, split)
        for who, split in (("01", "train"), ("02", "test"))
        for start, stop, label in (("1.5", "3.5", "left"), ("4.5", "6.5", "other"))
    ]
    assert "'pause' 2x" in capsys.readouterr().out
    assert run_maker(make_manifest, *flags) == 1 and "delete it" in capsys.readouterr().err  # the file is there
    assert run_maker(make_manifest, *flags[:4], "--output", tmp_path) == 1  # a folder: nobody is told to delete it
    assert "delete" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "rows", "kept"),
    [("label", ["x", "", "NaN", "N/A", "none"], [2, 6]), ("target_0", ["1", "n/a", "nan", "", "-2"], [2, 6])],
)
def test_empty_nan_and_not_available_are_missing(header: str, rows: list[str], kept: list[int], tmp_path: Path) -> None:
    (tmp_path / "a.edf").touch()
    lines = [f"path,start,stop,{header},subject", *(f"a.edf,{i},{i + 1},{row},1" for i, row in enumerate(rows))]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    table, _ = make_labelled.read_manifest(tmp_path / "m.csv")
    assert table.index.tolist() == kept and table.attrs["missing"] == 3


def test_unique_events_are_one_of_each_window_and_none_with_several_labels() -> None:
    rows = [[0, 10, 11, 2], [1, 10, 11, 2], [2, 13, 14, 3], [3, 13, 14, 4], [4, 13, 14, 4], [5, 16, 17, 1]]
    windows = tuh.event_windows(np.array(rows, float), 5000, 200.0, unique=True)
    assert windows.starts.tolist() == [1600, 2800] and windows.labels.tolist() == [1, 0]
    assert sorted(windows.notes.values()) == [1, 1]
    assert len(tuh.event_windows(np.array(rows, float), 5000, 200.0).starts) == 6


# ---- bad channels


def smooth(names: list[str], seconds: float, rate: float = 200.0) -> np.ndarray:
    """Return a field in uV that grows evenly along the head, (N, time)."""
    places = mne.channels.make_standard_montage("biosemi64").get_positions()["ch_pos"]
    by_name = {name.upper(): place for name, place in places.items()}
    older = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
    y = np.array([by_name[older.get(name, name)][1] for name in names])
    return 400 * y[:, None] * np.sin(2 * np.pi * 10 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("by_bids", [False, True])
@pytest.mark.parametrize("what", bads.CHOICES)
def test_bad_channels_are_dropped_interpolated_or_kept(what: str, by_bids: bool, tmp_path: Path) -> None:
    eeg = smooth(NAMES, 20)
    raw = raw_of(NAMES, 200.0, eeg)
    raw._data[5, 100:300] = np.nan
    raw._data[5, 300:] = 0.005  # F4
    if by_bids:
        table = "name\ttype\tstatus\n" + "".join(f"{n}\tEEG\t{'bad' if n == 'F4' else 'good'}\n" for n in NAMES)
        raw.rename_channels({"F4": "EEG F4-REF"})  # the table has the plain name
        (tmp_path / "sub-1_task-x_channels.tsv").write_text(table)
    else:
        raw.info["bads"] = ["F4"]
    raw.save(tmp_path / "sub-1_task-x_eeg.fif", verbose="error")
    options = Pipeline(NO_FILTERS, bad_channels=what)
    result = pipeline.prepare(pipeline.read(tmp_path / "sub-1_task-x_eeg.fif", options), options)
    said = f"{result.report['notes']}{result.report['dropped']}"
    assert "marked as bad" in said and "F4" in said and len(result.electrodes) == (18 if what == "drop" else 19)
    assert result.quality.valid.all() == (what != "keep")
    if what == "interpolate":
        assert abs(result.eeg[5] - eeg[5]).max() < 0.15 * abs(eeg[5]).max()
        np.testing.assert_allclose(result.eeg[:5], eeg[:5], atol=1e-3)


@pytest.mark.parametrize(
    ("names", "bad"), [(["C3", "CZ", "C4"], "CZ"), ([*NAMES, "T1"], "T1"), ([*NAMES, "FP1-F7"], "FP1-F7")]
)
def test_a_bad_electrode_without_a_known_place_or_fellows_is_kept_with_a_warning(names: list[str], bad: str) -> None:
    raw = raw_of(names, 200.0, noise(len(names), 5, 200))
    raw.info["bads"] = [bad]
    result = pipeline.prepare(raw, Pipeline(NO_FILTERS))
    assert result.electrodes == names and bad in result.report["warnings"][0]


def test_weights_of_interpolation_are_mnes_own() -> None:
    names = mne.channels.make_standard_montage("biosemi64").ch_names
    raw = raw_of(names, 200.0, noise(64, 1, 200))
    expected = raw.copy().set_montage(next(n for n in bads.PLACES if n in mne.channels.get_builtin_montages()))
    expected.info["bads"] = ["Cz", "P9"]
    expected.interpolate_bads(verbose="error")
    upper = [name.upper() for name in names]
    found = bads.weights(upper, ["CZ", "P9"]) @ raw.get_data()  # type: ignore[operator]
    wanted = expected.get_data(["Cz", "P9"])
    assert abs(found - wanted).max() < 0.1 * wanted.std()
