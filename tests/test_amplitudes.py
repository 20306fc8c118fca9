"""Amplitudes: electrodes and recordings on another scale than their fellows, wrong units, what makes them right."""

import json
import re
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from data_helpers import pretraining_loaders, write_labelled, write_pretraining
from dataset_maker import inspect_data, make_h5dataset_for_pretrain, make_labelled
from dataset_maker.pipeline import FilterSettings, Pipeline, prepare
from eeg_data import hdf5
from eeg_data.quality import Quality, SignalScan
from eeg_data.verdicts import unit_warnings, warnings
from errors import InputError, UsageError
from inference.recordings import Options, of_array, of_raw
from maker_helpers import raw_of, run_maker
from test_labelled import loaders as labelled_loaders

NAMES = ["FP1", "FP2", "F3", "F4", "C3", "C4", "O1", "O2"]
RATE = 200  # Hz
UNFILTERED = FilterSettings(None, None, None, None)


def eeg(electrodes: int = len(NAMES), seconds: float = 30, *, uv: float = 20, seed: int = 0) -> np.ndarray:
    """Return noise with the spectrum of EEG, (electrodes, time) of standard deviation `uv`."""
    random, samples = np.random.default_rng(seed), int(seconds * RATE)
    spectrum = random.standard_normal((2, electrodes, samples // 2 + 1)) / np.maximum(
        np.fft.rfftfreq(samples, 0.005), 1
    )
    signal = np.fft.irfft(spectrum[0] + 1j * spectrum[1], samples)
    return signal / signal.std(axis=1, keepdims=True) * uv


def scaled(factors: Any, **options: Any) -> np.ndarray:
    """Return EEG whose electrodes have these factors, in order; the others have 1."""
    signal = eeg(**options)
    signal[: len(factors)] *= np.array(factors, float)[:, None]
    return signal


def scan(signal: np.ndarray) -> Quality:
    whole = SignalScan(NAMES[: len(signal)], RATE)
    whole.add(signal)
    return whole.result()


def save(path: Path, signal: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw_of(NAMES[: len(signal)], RATE, signal).save(path, fmt="double", verbose="error")
    return path


def convert(folder: Path, *words: Any, output: str = "out") -> int:
    return run_maker(make_h5dataset_for_pretrain, "--input", folder / "in", "--output", folder / output, *words)


def label(folder: Path, *words: Any) -> int:
    """Convert all recordings of the folder to labelled data, each of another class."""
    rows = [f"{path},,,class{i},train,{i}" for i, path in enumerate(sorted((folder / "in").iterdir()))]
    (folder / "m.csv").write_text("\n".join(["path,start,stop,label,split,subject", *rows]))
    manifest = ("--manifest", folder / "m.csv", "--output", folder / "out.hdf5", "--window", 2)
    return run_maker(make_labelled, *manifest, *words)


def inspected(path: Path) -> list[str]:
    """Return inspection's warnings about all sets at a path."""
    hdf5.close_files()
    return [text for one in inspect_data.describe(path) for text in getattr(one, "warnings", [])]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.report.json").read_text())


# ---- electrodes


def test_electrodes_on_another_scale_are_named_on_the_terminal_in_the_report_by_inspection_and_by_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "in" / "a_raw.fif", scaled([1, 1e6, 1, 1e-4]))
    save(tmp_path / "in" / "b_raw.fif", eeg(seed=1))
    assert convert(tmp_path) == 0
    (warned,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    pretraining_loaders("--train_data", tmp_path / "out", "--time_window", 1)
    for text in (warned, *report(tmp_path)["warnings"], " ".join(inspected(tmp_path / "out")), caplog.text):
        assert "FP2 (x 1e6)" in text and "F4 (x 1e-4)" in text
        assert not [name for name in NAMES if name not in ("FP2", "F4") and f"{name} (" in text]
    assert "a_raw.fif" in warned and "b_raw" not in warned
    assert label(tmp_path) == 0
    assert "FP2 (x 1e6)" in " ".join(inspected(tmp_path / "out.hdf5"))


def test_inference_names_them_too_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    signal = scaled([1e6])
    raw, options = raw_of(NAMES, RATE, signal), Options(window=2)
    for opened in (lambda: of_array(signal, NAMES, options), lambda: of_raw(raw, options)):
        assert len(opened()) == 15 and caplog.text.count("FP1 (x 1e6)") == 1
        caplog.clear()


def test_an_electrode_that_is_flat_for_most_of_a_recording_is_named() -> None:
    signal = eeg()
    signal[3] = 7
    signal[4, : signal.shape[1] // 3] = 7
    (warning,) = prepare(raw_of(NAMES, RATE, signal), Pipeline()).report["warnings"]
    assert "1 electrode(s) are flat" in warning and NAMES[3].upper() in warning


@pytest.mark.parametrize("block_bytes", [1 << 28, 100_000])
def test_what_is_no_other_scale_is_not_named(block_bytes: int) -> None:
    def named(signal: np.ndarray) -> dict[str, int]:
        return prepare(raw_of(NAMES, RATE, signal), Pipeline(block_bytes=block_bytes)).quality.other_scale

    noisy, offset, mains, flat, loose = eeg(), eeg(), eeg(), eeg(), eeg()
    noisy[0] *= 10
    offset += 2000 * np.arange(8)[:, None]  # of electrodes without a high-pass
    mains[2] += 3000 * np.sin(2 * np.pi * 50 * np.arange(mains.shape[1]) / RATE)
    flat[3] = 7
    loose[4, :2000] += eeg(1, uv=5000)[0, :2000]  # a third of the time
    for signal in (noisy, offset, mains, flat, loose):
        assert named(signal) == {}
    assert scan(offset).other_scale == {} and [*named(scaled([1e3]))] == ["FP1 (x 1e3)"]


def test_stretches_that_are_marked_as_bad_say_nothing_of_the_scale() -> None:
    signal = eeg()
    signal[:, :4000] += 1e5 * np.sin(np.arange(4000) / 9)  # two thirds of it
    raw = raw_of(NAMES, RATE, signal)
    with pytest.raises(InputError, match="noise"):
        prepare(raw.copy(), Pipeline())
    prepared = prepare(raw.set_annotations(mne.Annotations(0, 22, "BAD_taken_off")), Pipeline())
    assert prepared.report["warnings"] == [] and prepared.quality.valid.tolist() == [False] * 22 + [True] * 8


def test_electrodes_of_two_scales_have_no_one_factor() -> None:
    many = scaled([1e6] * 5)
    with pytest.raises(InputError, match=r"FP1 \(x 1e6\).*--drop") as error:
        prepare(raw_of(NAMES, RATE, many), Pipeline())
    assert "(factor" not in str(error.value)
    assert list(prepare(raw_of(NAMES, RATE, many), Pipeline(drop=NAMES[:5])).quality.other_scale) == []


# ---- recordings


@pytest.mark.parametrize("labelled", [False, True])
def test_a_recording_on_another_scale_than_the_others_is_named_everywhere(
    tmp_path: Path, labelled: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for seed, uv in enumerate((10, 20, 700, 30)):
        save(tmp_path / "in" / f"s{seed}_raw.fif", eeg(uv=uv, seed=seed))
    assert (label if labelled else convert)(tmp_path) == 0
    shown, output = capsys.readouterr().err, tmp_path / ("out.hdf5" if labelled else "out")
    if labelled:
        labelled_loaders(output)
    else:
        pretraining_loaders("--train_data", output, "--time_window", 1)
    for text in (shown, *report(tmp_path)["compared"], "\n".join(inspected(output)), caplog.text):
        (line,) = [line for line in text.splitlines() if "1 of 4 recordings" in line]
        assert "s2_raw" in line and not re.search("s[013]_raw", line.partition("scale than")[2])


def test_files_of_other_programs_are_compared_when_they_are_inspected(tmp_path: Path) -> None:
    signals = [eeg(3, uv=uv, seed=seed) for seed, uv in enumerate((20, 20, 2e4, 20))]
    path = write_pretraining(tmp_path / "a.hdf5", NAMES[:3], signals)
    assert any("recording2 (x 1e3)" in text for text in inspected(path))
    samples = np.concatenate([signal[None, :, :400].repeat(2, axis=0) for signal in signals])  # two of a recording
    path = write_labelled(tmp_path / "b.hdf5", {"train": (samples, np.arange(8) % 2)}, names=NAMES[:3])
    for _ in range(2):
        assert any("train-recording2" in text and "1 of 4" in text for text in inspected(path))
        inspect_data.mark_file(path)  # also of what was marked


def test_training_names_a_wrong_unit_in_files_that_nobody_has_scanned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", NAMES, [scaled([1e6], seed=seed) / 100 for seed in range(3)])
    pretraining_loaders("--train_data", path, "--time_window", 1)
    samples = eeg(3)[None].repeat(4, axis=0) / 100
    labelled_loaders(write_labelled(tmp_path / "b.hdf5", {"train": (samples[..., :400], [0, 1, 0, 1])}))
    assert caplog.text.count("factor 100)") == 2


# ---- units


@pytest.mark.parametrize("offset", [0, 400], ids=["", "offset"])
@pytest.mark.parametrize("factor", ["1e6", "1000", "1e9", "100", "0.001", "1e-6"])
def test_the_likely_factor_comes_first_and_following_the_advice_leaves_no_doubt(factor: str, offset: float) -> None:
    for uv in (10, 20, 40):
        true = eeg(uv=uv)
        stored = (true + offset * uv * np.linspace(1, 2, len(true))[:, None]) / float(factor)
        (text,) = unit_warnings(scan(stored))
        first, *others = re.findall(r"\(factor ([^)]*)\)", text)
        assert float(first) == float(factor)
        for advised in (first, *others):  # whichever is followed, it does not get worse
            followed = stored * float(advised)
            if offset:
                assert "constant offset" in text
                followed -= followed.mean(axis=1, keepdims=True)
            assert warnings(scan(followed)) == []


def test_an_offset_alone_and_raw_counts_are_told_from_a_unit() -> None:
    (text,) = unit_warnings(scan(eeg() + 5000))
    assert "constant offset" in text and "microvolts (factor 1)" in text
    counts = np.rint(eeg() / 0.001)
    (text,) = unit_warnings(scan(counts))
    assert "raw counts" in text and text.index("raw counts") < text.index("nanovolts")
    assert warnings(scan(counts * 0.001)) == []
    (text,) = unit_warnings(scan(eeg() * 1e-13))
    assert "factor" not in text
    assert unit_warnings(scan(np.rint(eeg()))) == []


def test_data_divided_by_100_are_mended_by_the_advice(tmp_path: Path) -> None:
    true = eeg()
    with pytest.raises(InputError, match=r"factor 100\).*--scale"):
        of_array(true / 100, NAMES, Options())
    windows = of_array(true / 100, NAMES, Options(scale=100, window=10))
    np.testing.assert_allclose(windows.read(1), true[:, 2000:4000], rtol=1e-5)
    path = write_pretraining(tmp_path / "a.hdf5", NAMES, [true / 100])
    assert any("factor 100)" in text for text in inspected(path))


def test_amplitudes_that_hardly_any_eeg_has_are_warned_about_and_used(caplog: pytest.LogCaptureFixture) -> None:
    for uv, word in ((0.8, "factor 100)"), (700, "raw counts")):  # of an amplifier with 0.03 uV a count
        assert len(of_array(eeg(uv=uv), NAMES, Options(window=2))) == 15
        assert word in caplog.text


@pytest.mark.parametrize("maker", [convert, label])
def test_a_recording_whose_scale_no_eeg_has_is_left_out_unless_its_factor_is_given(
    tmp_path: Path, maker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    signals = {name: eeg(seed=seed) for seed, name in enumerate("ab")}
    for name, signal in signals.items():
        save(tmp_path / "in" / f"{name}_raw.fif", signal * 1e-3)
    assert maker(tmp_path) == 1
    shown = capsys.readouterr().err
    assert "a_raw.fif: Half" in shown and "factor 1000)" in shown and "--scale" in shown
    assert maker(tmp_path, "--scale", 1000, "--l_freq", 0, "--h_freq", 0, "--notch", 0) == 0
    (path,) = tmp_path.rglob("*.hdf5") if maker is label else sorted((tmp_path / "out").glob("*.hdf5"))[:1]
    with h5py.File(path) as file:
        stored = file["train/eeg"][0] if maker is label else next(iter(file.values()))["eeg"][:, :400]
        assert json.loads(file.attrs["made"])["scale"] == 1000
    assert any(np.allclose(stored, signal[:, :400], rtol=1e-5) for signal in signals.values())


def test_scale_1_takes_values_as_they_are_and_0_is_refused() -> None:
    signal = eeg() * 1e-3
    settings: Any = {"filter": UNFILTERED, "scale": 1.0}
    np.testing.assert_allclose(prepare(raw_of(NAMES, RATE, signal), Pipeline(**settings)).eeg, signal, rtol=1e-5)
    for scale in (0, np.nan, np.inf):
        with pytest.raises(UsageError, match="--scale"):
            Pipeline(scale=scale)


# ---- what files say


def test_files_say_it_in_few_bytes_and_those_from_before_are_read() -> None:
    names = [f"E{n}" for n in range(256)]
    signal = np.random.default_rng(0).standard_normal((256, 2000)) * 10 ** np.linspace(-8, 4, 2000)
    signal[:64] *= 1e6
    signal[:, ::2] = 0
    whole = SignalScan(names, RATE)
    whole.add(signal)
    quality = whole.result()
    text = quality.to_json()
    assert len(text) < 60_000
    again = Quality.from_json(text, quality.valid)
    assert again.to_json() == text and (again.movement == quality.movement).all()
    both = Quality.merged([quality, again])
    assert both.movement.sum() == 2 * quality.movement.sum() and not both.whole
    older = {key: value for key, value in json.loads(text).items() if key not in ("movement", "whole", "other_scale")}
    assert warnings(Quality.from_json(json.dumps(older), quality.valid)) == warnings(
        Quality.from_json(json.dumps(older | {"movement": {}}), quality.valid)
    )


@pytest.mark.parametrize("recording", ["eegmat/Subject00_2.edf", "eegmmidb/S001R03.edf"])
def test_real_recordings_are_not_warned_about(shared: Path, tmp_path: Path, recording: str) -> None:
    flags = ["--drop", "EEG A2-A1"] if "eegmat" in recording else []
    assert (
        run_maker(make_h5dataset_for_pretrain, "--input", shared / recording, "--output", tmp_path / "out", *flags) == 0
    )
    assert report(tmp_path)["warnings"] == report(tmp_path)["compared"] == inspected(tmp_path / "out") == []
