"""Broken recordings end in one clean line or in the values that MNE sees. `make nightly` runs this.

The environment variable LABRAM_FUZZ sets how many broken recordings are tried (by default 160).
"""

import json
import os
from pathlib import Path

import h5py
import mne
import numpy as np
import pytest

import mutants
from dataset_maker import make_h5dataset_for_pretrain
from maker_helpers import run_maker

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
NUMBER = int(os.environ.get("LABRAM_FUZZ", "160"))
HEADER_TEXTS = ("Roe", "Jane", "FEB-1981", "0234567")


def unclean(message: str) -> bool:
    """Whether a message is not one short printable line without a header's text, or a fault of our code."""
    bad = ("Traceback", "cannot be converted", *HEADER_TEXTS)
    return not 0 < len(message) < 1500 or not message.isprintable() or any(text in message for text in bad)


def differs(source: Path, eeg: h5py.Dataset) -> str | None:
    """Return how a converted recording differs from what MNE alone reads, if it does."""
    raw = mne.io.read_raw_edf(source, preload=True, encoding="latin1", verbose="error")
    names = [name.upper() for name in eeg.attrs["chOrder"]]
    plain = {name: name.strip(" .").upper().removeprefix("EEG ").removesuffix("-REF").strip() for name in raw.ch_names}
    raw.pick([name for name in raw.ch_names if plain[name] in names])
    if [plain[name] for name in raw.ch_names] != names:
        return f"electrodes {names} of the channels {raw.ch_names}"
    expected = raw.get_data() * 1e6
    if eeg.shape != expected.shape:
        return f"{eeg.shape} instead of {expected.shape}"
    finite = np.isfinite(expected)
    away = np.abs(eeg[:] - expected)[finite]
    return f"differs by up to {away.max()} uV" if (away > 1e-6 * np.abs(expected[finite])).any() else None


def test_broken_recordings_convert_to_what_mne_reads_or_are_left_out_with_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(NUMBER):
        (tmp_path / "in" / f"{number:04d}.edf").write_bytes(mutants.broken_edf(number))
    words = ("--l_freq", 0, "--h_freq", 0, "--notch", 0, "--rsfreq", 0, "--time_limit", 60)
    made = tmp_path / "out"
    code = run_maker(make_h5dataset_for_pretrain, "--input", tmp_path / "in", "--output", made, *words)
    shown = "".join(capfd.readouterr())
    report = json.loads((tmp_path / "out.report.json").read_text())
    left_out = {Path(entry["path"]).stem: entry["reason"] for entry in report["left_out"]}
    assert code == 1 and "Traceback" not in shown and not any(text in shown for text in HEADER_TEXTS)
    defects = {name: reason for name, reason in left_out.items() if unclean(reason)}
    converted = set()
    for path in made.glob("*.hdf5"):
        with h5py.File(path) as file:
            for name, group in file.items():
                converted.add(name)
                if problem := differs(tmp_path / "in" / f"{name}.edf", group["eeg"]):
                    defects[name] = problem
    assert not defects
    assert len(converted) >= NUMBER // 8 and len(converted) + len(left_out) == NUMBER
