"""Recordings of every format: the reader follows from the bytes, values from the file, reasons are the true ones."""

import importlib.util
import json
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from scipy.io import savemat

from dataset_maker import jobs, make_h5dataset_for_pretrain, marks, pipeline, sources
from dataset_maker.formats import FORMATS, format_of
from dataset_maker.opening import open_raw
from dataset_maker.pipeline import FilterSettings, Pipeline
from dataset_maker.reasons import NoRecording
from electrodes import resolve
from errors import InputError
from maker_helpers import NAMES, brainvision, edf, edf_of, eeglab, gdf_of, noise, raw_of, run_maker, save

EXTRAS = {form.extra for form in FORMATS.values() if form.extra}


def eeg_of(path: Path, **options: Any) -> np.ndarray:
    """Return the EEG of a recording as it is opened, (N, time) uV."""
    return open_raw(path, **options)[0].get_data(picks="eeg", verbose="error") * 1e6


def reason_of(path: Path) -> str:
    """Return why a file cannot be opened."""
    with pytest.raises(InputError) as caught:
        open_raw(path)
    text = str(caught.value)
    assert "\n" not in text and path.parent.name in text
    return text


def needs(*packages: str) -> None:
    """Skip a test without packages that some formats need."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-formats.txt")


def with_fdt(path: Path, eeg: np.ndarray, data: str) -> Path:
    """Write a .set that names a file for its signal, and that signal under its own name."""
    path.with_suffix(".fdt").write_bytes(eeg.T.astype("<f4").tobytes())
    return eeglab(path, eeg, data=data)


def persyst(path: Path, eeg: np.ndarray, *patient: str, **info: Any) -> Path:
    """Write a Persyst recording of int16, a tenth of a uV a count."""
    head = {"File": f"{path.stem}.dat", "SamplingRate": 200, "Calibration": 0.1, "WaveformCount": 3, "DataType": 0}
    lines = ["[FileInfo]", *(f"{key}={value}" for key, value in (head | info).items()), "[Patient]", *patient]
    path.write_text("\n".join([*lines, "[ChannelMap]", *(f"{n}-Ref={i}" for i, n in enumerate(NAMES, 1))]))
    path.with_suffix(".dat").write_bytes(np.rint(eeg * 10).T.astype("<i2").tobytes())
    return path


# ---- which reader


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"0       X X X X", "EDF"),
        (b"\xffBIOSEMI", "BDF"),
        (b"GDF 1.25", "GDF"),
        (b"Version 3.0", "Neuroscan CNT"),
        (b"RIFF\x10\0\0\0CNT LIST", "ANT CNT"),
        (b"RF64\x10\0\0\0\0\0\0\0CNT LIST", "ANT CNT"),
        (b"EEG-1200A V01.00", "Nihon Kohden"),
        (b"\xef\xbb\xbfBrainVision Data Exchange Header File Version 2.0", "BrainVision"),
        (b"\0\0\0\x64\0\0\0\x1f\0\0\0\x14", "FIF"),
        (b"[FileInfo]\r\nFile=x.dat", "Persyst"),
    ],
)
@pytest.mark.parametrize("name", ["a.edf", "a.cnt", "a.dat", "a"])
def test_the_first_bytes_choose_the_format_whatever_the_name(head: bytes, kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(head.ljust(400, b" "))
    assert format_of(tmp_path / name) == kind


@pytest.mark.parametrize("name", ["a.cnt", "a.eeg", "a.raw", "a.dat", "a.data", "a.lay", "a.nedf", "a.txt"])
def test_a_suffix_that_other_programs_use_proves_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something else" * 50)
    assert name[1:] in reason_of(tmp_path / name)


def test_edf_and_bdf_of_any_name_keep_their_values_and_their_file(tmp_path: Path) -> None:
    counts = {name: np.rint(noise(1, 4, 200, seed)[0] * 10) for seed, name in enumerate(NAMES)}
    for written, name in (("a.edf", "b.bdf"), ("a.bdf", "c.EDF"), ("a.edf", "d.rec")):
        path = edf_of(tmp_path / written, counts, seconds=4).rename(tmp_path / name)
        np.testing.assert_allclose(eeg_of(path), np.array([*counts.values()]) / 10, atol=1e-3)
        assert [Path(str(file)) for file in open_raw(path)[0].filenames] == [path], "and it can be read later"


# ---- content that is elsewhere, missing companions


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--a.edf\n", "git annex get"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"", "empty"),
    ],
)
def test_what_is_no_recording_says_what_it_is_also_as_a_companion(content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "a.edf").write_bytes(content)
    assert word in reason_of(tmp_path / "a.edf")
    path = brainvision(tmp_path / "b.vhdr", noise(3, 4, 200))
    path.with_suffix(".eeg").write_bytes(content)
    assert word in (text := reason_of(path)) and "b.eeg" in text
    (tmp_path / "c.edf").symlink_to(".git/annex/objects/x")
    assert "git annex get" in reason_of(tmp_path / "c.edf")


def test_files_renamed_together_are_read_and_both_names_are_said(tmp_path: Path) -> None:
    eeg = noise(3, 10, 200)
    path = brainvision(tmp_path / "sub-01_eeg.vhdr", eeg, stem="P01")
    raw, notes = open_raw(path)
    np.testing.assert_allclose(raw.get_data() * 1e6, eeg, atol=1e-3)
    assert raw.annotations.onset.tolist() == [2.0]
    assert any("P01.eeg" in note and "sub-01_eeg.eeg" in note for note in notes)
    for name in ("x.set", "y.set"):
        path = with_fdt(tmp_path / name, eeg, "P01.fdt" if name == "x.set" else "y")
        np.testing.assert_allclose(eeg_of(path), eeg, atol=1e-3)
        assert any(".fdt" in note for note in open_raw(path)[1])


def test_recordings_are_read_where_symlinks_are_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError("as on Windows")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    eeg = noise(3, 4, 200)
    np.testing.assert_allclose(eeg_of(persyst(tmp_path / "a.lay", eeg)), eeg, atol=0.06)
    path = edf_of(tmp_path / "a.edf", {"C3": np.zeros(800)}, onsets=[0, 1, 12, 13], remark="x")
    assert [row[0] for row in marks.on_clock(pipeline.read(path, Pipeline()))] == [0.5, 1.5, 12.5, 13.5]


@pytest.mark.parametrize(
    ("write", "lost", "there"),
    [
        (lambda path: brainvision(path.with_suffix(".vhdr"), noise(3, 4, 200)), "a.eeg", "other.eeg"),
        (lambda path: with_fdt(path.with_suffix(".set"), noise(3, 4, 200), "a.fdt"), "a.fdt", "other.fdt"),
        (lambda path: persyst(path.with_suffix(".lay"), noise(3, 4, 200)), "a.dat", "other.dat"),
    ],
)
def test_a_missing_companion_is_named_and_what_lies_there(write: Any, lost: str, there: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    (tmp_path / lost).rename(tmp_path / there)
    assert lost in (text := reason_of(path)) and there in text


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("a.gdf", lambda content: content[:236] + struct.pack("<q", -1) + content[244:], "does not say how long"),
        ("a.gdf", lambda content: b"GDF 1.25" + content[8:800], "cut short: holds"),
        ("a.edf", lambda content: b"Fp1,Fp2" * 300, "does not begin as EDF"),
        ("a.bdf", lambda content: bytes(3000), "does not begin as BDF"),
        ("a.set", lambda content: content[: len(content) // 2], "cut short"),
        ("a_raw.fif.gz", lambda content: content[: len(content) // 2], "cut short"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_its_bytes_show(
    name: str, change: Callable[[bytes], bytes], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith(".set"):
        savemat(path, {"EEG": {"data": noise(3, 4, 200)}}, appendmat=False)
    else:
        save(path, NAMES) if ".fif" in name else gdf_of(path, {"C3": np.arange(800), "C4": np.arange(800)}, 4)
    path.write_bytes(change(path.read_bytes()))
    assert reason in reason_of(path)


def test_the_next_part_of_a_split_fif_is_named(tmp_path: Path) -> None:
    raw = raw_of(NAMES, 200, noise(3, 1000, 200))
    raw.save(tmp_path / "a_raw.fif", split_size="2MB", buffer_size_sec=1, verbose="error")
    assert open_raw(tmp_path / "a_raw.fif")[0].n_times == 1000 * 200
    (tmp_path / "a_raw-1.fif").rename(tmp_path / "b_raw-1.fif")
    assert "a_raw-1.fif" in (text := reason_of(tmp_path / "a_raw.fif")) and "b_raw-1.fif" in text


# ---- announced and there


@pytest.mark.parametrize("points", [{}, {"DataPoints": 800}])
def test_a_short_brainvision_recording_says_so_or_is_refused(points: dict[str, int], tmp_path: Path) -> None:
    eeg = noise(3, 4, 200)
    raw, notes = open_raw(brainvision(tmp_path / "a.vhdr", eeg, short=4 * 3 * 200, **points))
    assert raw.n_times == 600 and ["1 of 4 s" in note for note in notes] == [True] * len(points)
    for short in (4 * 3 * 200, 4):
        path = brainvision(tmp_path / "b.vhdr", eeg, short=short, DataOrientation="VECTORIZED", **points)
        if points or short % 12:  # without a number of points, a third of a sample less is the only sign
            assert "b.eeg" in reason_of(path)


def test_short_signals_of_eeglab_and_fif_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    eeg = noise(3, 10, 200)
    path = with_fdt(tmp_path / "a.set", eeg, "a.fdt")
    path.with_suffix(".fdt").write_bytes(path.with_suffix(".fdt").read_bytes()[: 4 * 3 * 500 + 7])
    raw, notes = open_raw(path)
    np.testing.assert_allclose(raw.get_data() * 1e6, eeg[:, :500], atol=1e-3)
    assert "7.5 of 10 s" in notes[0]
    path = save(tmp_path / "b_raw.fif", NAMES, seconds=60)
    whole = eeg_of(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = eeg_of(path)
    np.testing.assert_array_equal(part, whole[:, : part.shape[1]])
    assert 20 * 200 < part.shape[1] <= 30 * 200 and "cut short" in open_raw(path)[1][0]


# ---- header texts that are not needed, warnings


@pytest.mark.parametrize(
    "patient",
    [
        (),
        ("BirthDate=", "TestDate=", "Sex=X", "Hand="),
        ("BirthDate=3.2.1981", "TestDate=someday", "Sex=", "Hand="),
        ("First=Jane", "BirthDate=99/99/99", "TestDate=2014.12.19", "TestTime=noon"),
    ],
)
def test_what_persyst_says_of_a_patient_is_read_around(patient: tuple[str, ...], tmp_path: Path) -> None:
    eeg = noise(3, 4, 200)
    np.testing.assert_allclose(eeg_of(persyst(tmp_path / "a.lay", eeg, *patient)), eeg, atol=0.06)
    assert "header" in reason_of(persyst(tmp_path / "b.lay", eeg, *patient, HeaderLength=512))


def test_warnings_of_mne_are_translated_counted_and_never_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(path: Path, **options: Any) -> mne.io.BaseRaw:
        for text in ("Channel names are not unique, found: Jane", "Jane Roe", "Invalid measurement date 1981"):
            mne.utils.warn(text)
        return raw_of(NAMES, 200, noise(3, 4, 200))

    monkeypatch.setattr(mne.io, "read_raw_gdf", warned)
    notes = open_raw(gdf_of(tmp_path / "a.gdf", dict.fromkeys(NAMES, np.zeros(800)), 4))[1]
    assert len(notes) == 2 and "share a name" in notes[0] and "1 times" in notes[1] and "Jane" not in str(notes)


# ---- folders


def test_parts_of_recordings_are_none_and_other_files_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.mff").mkdir()
    for name in ("a.vhdr", "a.eeg", "a.vmrk", "b.lay", "b.dat", "c.cdt", "c.cdt.dpa", "d.dat", "d.dap", "e.data"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("x.mff/signal1.bin", "x.mff/info.xml", "f.json", "g.dat", "h.eeg", "i.set", "i.fdt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "k.EEG").write_bytes(b"EEG-1100C V01.00")
    (tmp_path / "l.eeg").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    found = [path.name for path in sources.find_files([tmp_path], tell=True)]
    assert found == ["a.vhdr", "b.lay", "c.cdt", "d.dat", "i.set", "k.EEG", "l.eeg", "x.mff"]
    (line,) = caplog.messages
    assert all(text in line for text in ("4 other files", "1 .json", "1 .dat", "1 .eeg", "1 .data"))
    for part, whole in (("a.eeg", "a.vhdr"), ("b.dat", "b.lay"), ("c.cdt.dpa", "c.cdt"), ("d.dap", "d.dat")):
        with pytest.raises(InputError, match=f"recording {whole}"):
            sources.find_files([tmp_path / part])
        assert whole in reason_of(tmp_path / part)


def test_a_recording_whose_signal_changed_in_another_file_is_not_taken_for_converted(tmp_path: Path) -> None:
    path = brainvision(tmp_path / "a.vhdr", noise(3, 4, 200))
    words = ("--notch", 0, "--output", tmp_path / "out", "--input", path)
    assert [run_maker(make_h5dataset_for_pretrain, *words) for _ in range(2)] == [0, 0]
    path.with_suffix(".eeg").write_bytes(noise(3, 5, 200).T.astype("<f4").tobytes())
    assert run_maker(make_h5dataset_for_pretrain, *words) == 1


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sub-1_task-x_eeg.fif", "sub-1_task-x_channels.tsv"),
        ("a_raw.fif", "a_raw-1.fif"),
        ("sub-1_split-09_eeg.fif", "sub-1_split-10_eeg.fif"),
    ],
)
def test_bad_channels_and_later_parts_that_changed_are_noticed(name: str, other: str, tmp_path: Path) -> None:
    task = {"path": str(tmp_path / name), "recording": "a"}
    for content, file in (("a", name), ("name\tstatus\nC3\tgood\n", other)):
        (tmp_path / file).write_text(content)
    (before,) = jobs.stamped([task])
    assert before["also"] == [str(tmp_path / other)]
    (tmp_path / other).write_text("name\tstatus\nC3\tbad\n")
    assert jobs.stamped([task])[0]["stamps"] != before["stamps"]


def test_hypnograms_beside_recordings_are_passed_over_and_alone_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    edf(tmp_path / "in" / "night.edf", ["C3", "Cz"])
    edf(alone := tmp_path / "in" / "hypnogram.edf", [], duration="0")
    words = ("--notch", 0, "--output", tmp_path / "out", "--input")
    assert run_maker(make_h5dataset_for_pretrain, *words, tmp_path / "in") == 0
    assert "passed over" in (said := capsys.readouterr().err) and "hypnogram.edf" in said and "left out" not in said
    with pytest.raises(NoRecording):
        open_raw(alone)
    assert run_maker(make_h5dataset_for_pretrain, *words[:3], tmp_path / "other", "--input", alone) == 1


# ---- real recordings


def test_a_package_that_is_missing_is_named_and_no_other(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("dataset_maker.reasons.find_spec", lambda name: None if name in EXTRAS else find_spec(name))
    for name, package in (("ant/test_CA_208.cnt", "antio"), ("neuroelectrics/testdata.nedf", "defusedxml")):
        assert f"pip install {package}" in reason_of(shared / "formats" / name)
    for name in ("edf/chtypes_edf.edf", "nicolet/test_nicolet_raw.data", "eeglab/test_raw_chanloc.set"):
        assert len(eeg_of(shared / "formats" / name))


def test_vendor_twins_agree(shared: Path) -> None:
    folder = shared / "formats" / "nihon_kohden"
    twins = [open_raw(folder / f"MB0400FU.{suffix}")[0].pick("eeg") for suffix in ("EEG", "EDF")]
    kept = [resolve(raw.ch_names).kept for raw in twins]
    a, b = (raw.get_data(list(names)) for raw, names in zip(twins, kept, strict=True))
    assert [*kept[0].values()] == [*kept[1].values()] and len(a) == 21 and np.abs(a - b).max() < 0.11e-6
    needs("antio", "curryreader")
    a, b = (eeg_of(shared / "formats" / "ant" / f"test_CA_208.{suffix}") for suffix in ("cnt", "vhdr"))
    assert np.abs(a - b[: len(a)]).max() < 0.01
    files = sorted(shared.glob("formats/curry/*.dat")) + sorted(shared.glob("formats/curry/*.cdt"))
    first, *others = map(eeg_of, files)
    assert len(others) == 3 and max(np.abs(eeg - first).max() for eeg in others) <= 0.5, "text has five digits"


def test_units_of_curry_are_those_of_its_header(shared: Path, tmp_path: Path) -> None:
    needs("curryreader")
    for path in shared.glob("formats/curry/*Curry 8.*"):
        text = path.read_bytes().replace(b"= uV", b"= mV") if path.suffix == ".dpa" else path.read_bytes()
        (tmp_path / path.name).write_bytes(text)
    settings = Pipeline(FilterSettings(None, None, None, None), scale=1.0)
    (path,) = tmp_path.glob("*.cdt")
    eeg = pipeline.prepare(pipeline.read(path, settings), settings).eeg
    (path,) = shared.glob("formats/curry/*Curry 8.cdt")
    np.testing.assert_allclose(eeg, 1000 * eeg_of(path), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "sd"), [("nexstim/test_eximia.nxe", 60), ("neuroelectrics/testdata.nedf", 63), ("nicolet/*.data", 31)]
)
def test_values_without_a_twin_have_the_size_of_eeg(name: str, sd: float, shared: Path) -> None:
    (path,) = shared.glob(f"formats/{name}")
    needs(*filter(None, [FORMATS[format_of(path)].extra]))
    assert np.median(eeg_of(path).std(axis=1)) == pytest.approx(sd, rel=0.02)  # uV


# File -> flags that its message proposes, and a word of the reason why it is refused all the same. An offset is more
# than a high-pass takes off where a recording lasts a second or two.
REFUSED = {
    "bdf/test.bdf": ("", "offset"),
    "brainvision/test_VAmp.ahdr": ("--drop 'POO1' 'POO2'", "no second is usable"),
    "eeglab/test_epochs_onefile.set": ("", "--epochs"),
    "eeglab/test_raw_chanloc_fids.set": ("--cap GSN-HydroCel-129", "offset"),
    "egi/egi_dig_test.raw": ("--cap GSN-HydroCel-257", "offset"),
    "gdf/test_1ch.gdf": ("", "no EEG channel"),
}
FLAGS = {
    "edf/short_psg.edf": "--bipolar anode",
    "egi/test_egi_multiepoch_paused.mff": "--cap GSN-HydroCel-256",
    "nicolet/test_nicolet_raw.data": "--drop 'RS' 'PHO'",
    "persyst/sub-pt1_ses-02_task-monitor_acq-ecog_run-01_clip2.lay": "--drop 'POL NR1' 'POL NR2' 'POL BN1' 'POL BN2' "
    "'POL PAT' 'POL TECH'",
}


def test_every_real_recording_converts_with_what_its_message_proposes(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, output = shared / "formats", tmp_path / "out"
    run_maker(make_h5dataset_for_pretrain, "--input", folder, "--output", output)
    entries = json.loads((tmp_path / "out.report.json").read_text())["left_out"]
    left_out = {str(Path(e["path"]).relative_to(folder)): e["reason"] for e in entries}
    lacking = {name for name, text in left_out.items() if "pip install" in text}
    assert lacking <= {name for name in left_out if FORMATS[format_of(folder / name)].extra}
    expected = REFUSED.keys() | FLAGS.keys()
    assert expected - lacking <= left_out.keys() <= expected | lacking
    for name in expected - lacking:
        flags, reason = REFUSED.get(name, (FLAGS.get(name, ""), ""))
        assert (flags or reason) in left_out[name]
        if flags:
            capsys.readouterr()
            words = ("--input", folder / name, "--output", tmp_path / "one")
            assert run_maker(make_h5dataset_for_pretrain, *words, *shlex.split(flags)) == bool(reason), name
            assert reason in capsys.readouterr().err, name
