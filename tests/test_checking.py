"""`run_inference.py check` recognises wrong scales, rates and electrodes, and says when it cannot tell."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from data_helpers import TINY, signal, write_labelled
from inference import checking
from inference_helpers import random_module, saved
from maker_helpers import raw_of
from run_helpers import call

PLACES = next(name for name in ("colin27_1020", "standard_1020") if name in mne.channels.get_builtin_montages())
NAMES = ["Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "C3", "Cz", "C4", "P7", "P3", "Pz", "P4", "P8", "O1", "O2"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = random_module(TINY, n_code=64, code_dim=8, quantize_kmeans_init=False)
    return saved(tmp_path_factory.mktemp("tokenizer") / "t.pth", module)


def eeg_like(seconds: int = 24, rate: int = 250) -> np.ndarray:
    """Return (17, time) in uV: sources of 1/f noise and of 10 Hz under each electrode, that reach its neighbours."""
    random, samples = np.random.default_rng(0), seconds * rate
    hz = np.fft.rfftfreq(samples, 1 / rate)
    white = random.standard_normal((len(NAMES), len(hz))) + 1j * random.standard_normal((len(NAMES), len(hz)))
    sources = np.fft.irfft(white * (1 / np.sqrt(hz + 1) + np.exp(-((hz - 10) ** 2))), samples)
    places = mne.channels.make_standard_montage(PLACES).get_positions()["ch_pos"]
    at = np.array([places[name] for name in NAMES])
    eeg = np.exp(-((np.linalg.norm(at[:, None] - at, axis=2) / 0.06) ** 2)) @ sources
    return 12 * eeg / np.median(np.abs(eeg))


def mistakes(eeg: np.ndarray, names: list[str], rate: float) -> dict[str, tuple[mne.io.BaseRaw, str]]:
    """Return recordings with a mistake each, and what is to be said of them."""
    order = np.random.default_rng(1).permutation(len(names))
    return {
        "as given": (raw_of(names, rate, eeg), ""),
        "x 0.01": (raw_of(names, rate, eeg * 0.01), "--scale 100"),
        "x 100": (raw_of(names, rate, eeg * 100), "--scale 0.01"),
        "half the rate": (raw_of(names, rate / 2, eeg), "fits better x 2"),
        "twice the rate": (raw_of(names, rate * 2, eeg), "fits better x 0.5"),
        "shuffled": (raw_of(names, rate, eeg[order]), "no better than in random orders"),
    }


def said_of(tokenizer: Path, path: Path, capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """Return the error line of a check, or nothing where it ends with exit code 0."""
    code = call("run_inference", "check", "--checkpoint", tokenizer, "--input", path, *words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == bool(code)
    return "".join(lines)


def check_all(made: dict[str, Any], tokenizer: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (name, (raw, expected)) in enumerate(made.items()):
        raw.save(folder / f"{number}_raw.fif", fmt="double", verbose="error")
        text = said_of(tokenizer, folder / f"{number}_raw.fif", capsys, "--window", 2)
        assert expected in text and bool(text) == bool(expected) and ";" not in text, (name, text)


def test_each_mistake_is_recognised_and_nothing_else(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_all(mistakes(eeg_like(), NAMES, 250), tokenizer, tmp_path, capsys)


def test_each_mistake_is_recognised_in_real_eeg(
    shared: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = mne.io.read_raw(shared / "eegmat" / "Subject15_1.edf", preload=True, verbose="error").crop(0, 40)
    raw.drop_channels(["EEG A2-A1", "ECG ECG"])
    made = mistakes(raw.get_data() * 1e6, raw.ch_names, 500)
    check_all({name: made[name] for name in list(made)[3:]}, tokenizer, tmp_path, capsys)


def test_of_two_likely_scales_the_tokenizers_error_decides(caplog: pytest.LogCaptureFixture) -> None:
    errors = {"as given": [1.4, 1.5], "x 0.01": [1.6, 1.5], "x 100": [1.3, 1.5]}
    spectrum = np.zeros(401)
    found = checking.Findings(errors, medians=[1.2, 1.4], spectra=[spectrum, spectrum])
    with caplog.at_level("INFO"):
        assert checking.report(found) == ["the values fit better x 100: --scale 100"], "140 uV is likely as well"
    assert "rate: cannot tell" in caplog.text and "electrodes: cannot tell" in caplog.text
    assert checking.report(found, scale=10) == ["the values fit better x 100: --scale 1000"]
    found.medians[:] = 30, 40
    assert checking.report(found) == [], "whatever the error of 3500 uV"


def test_variants_are_the_recording_at_other_scales_and_rates() -> None:
    t = np.arange(1600) / 200
    windows = checking.Windows("a", "a", ("C3", "CZ"), 400, np.arange(4.0), lambda i: wave[:, 400 * i : 400 * i + 400])
    wave = np.stack([np.sin(2 * np.pi * 10 * t), np.cos(2 * np.pi * 4 * t)]).astype(np.float32)
    hz = {}
    for name, variant in checking.variants(windows):
        spectra = np.abs(np.fft.rfft(variant.batch(0, len(variant))[:, :, 100:300]))
        hz[name] = len(variant), sorted(spectra.mean(0).argmax(-1).tolist()), float(spectra.max())
    assert {name: found[:2] for name, found in hz.items()} == {
        **dict.fromkeys(("as given", "x 0.01", "x 100", "electrodes shuffled"), (4, [4, 10])),
        "half the rate": (8, [2, 5]),
        "twice the rate": (2, [8, 20]),
    }
    np.testing.assert_allclose([hz[name][2] / hz["as given"][2] for name in ("x 0.01", "x 100")], [0.01, 100], 1e-4)


def test_labelled_files_are_checked_and_what_cannot_be_used_is_named(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_labelled(tmp_path / "set.hdf5", {"train": (signal(4, 3, 400), [0, 1, 0, 1])})
    assert said_of(tokenizer, path, capsys) == "", "white noise on three electrodes: nothing can be told"
    assert "give --window 2" in said_of(tokenizer, path, capsys, "--window", 3)
    short = write_labelled(tmp_path / "short.hdf5", {"test": (signal(1, 3, 400), [0])})
    assert "none of the recordings" in said_of(tokenizer, short, capsys)
