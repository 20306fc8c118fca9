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

from dataset_maker import make_h5dataset_for_pretrain
from maker_helpers import EDF_FIELDS, SIGNAL_FIELDS, edf, run_maker

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]
NUMBER = int(os.environ.get("LABRAM_FUZZ", "160"))
HEADER_TEXTS = ("Roe", "Jane", "FEB-1981", "0234567")
LABELS = ("EEG Fp1", "C3", "EEG Cz-REF", "ECG")
UGLY = ("", "0", "-1", "1", "7", "-32768", "65536", "99999999", "nan", "inf", "1e308", "1e-308", "12.5", "1,5", "1_0")
UGLY += ("\0", "\x1b[31m", "\xff\xfe", "²³", "\n\n", "%s%n", "Fp1", "C3", "EDF Annotations", "EDF+D", "mV", "V", "T7")


def write_broken(path: Path, number: int) -> None:
    """Write an EDF file with changed bytes, lost bytes, or header fields that say what cannot be."""
    random = np.random.default_rng(number)
    content = bytearray(edf(path, LABELS).read_bytes())
    header = 256 * (2 + len(LABELS))
    if number % 4 == 0:
        for at in random.integers(0, header if random.random() < 0.7 else len(content), random.integers(1, 5)):
            content[at] = random.integers(256)
    elif number % 4 == 1:
        start, stop = sorted(random.integers(0, len(content), 2))
        content[start:] = content[stop:] if random.random() < 0.5 else b""
    else:
        widths = [*EDF_FIELDS.values(), *(width for width in SIGNAL_FIELDS.values() for _ in (*LABELS, "annotations"))]
        for field in random.integers(0, len(widths), random.integers(1, 4)):
            at, width = sum(widths[:field]), widths[field]
            content[at : at + width] = UGLY[random.integers(len(UGLY))].encode("latin-1")[:width].ljust(width)
    path.write_bytes(content)


def unclean(message: str) -> bool:
    """Whether a message is not one short printable line without a header's text, or a fault of our code."""
    bad = ("Traceback", "cannot be converted", *HEADER_TEXTS)
    return not 0 < len(message) < 1500 or not message.isprintable() or any(text in message for text in bad)


def differs(source: Path, eeg: h5py.Dataset) -> bool:
    """Whether a converted recording differs from what MNE alone reads."""
    raw = mne.io.read_raw_edf(source, encoding="latin1", verbose="error")
    names = [name.upper() for name in eeg.attrs["chOrder"]]
    plain = {name: name.strip(" .").upper().removeprefix("EEG ").removesuffix("-REF").strip() for name in raw.ch_names}
    raw.pick([name for name in raw.ch_names if plain[name] in names]).load_data()
    expected = (raw if raw.info["sfreq"] == 200 else raw.resample(200, verbose="error")).get_data() * 1e6
    if [plain[name] for name in raw.ch_names] != names or eeg.shape != expected.shape:
        return True
    finite = np.isfinite(expected)
    return bool((np.abs(eeg[:] - expected)[finite] > 1e-6 * np.abs(expected[finite])).any())


def test_broken_recordings_convert_to_what_mne_reads_or_are_left_out_with_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    for number in range(NUMBER):
        write_broken(tmp_path / "in" / f"{number:04d}.edf", number)
    words = ("--l_freq", 0, "--h_freq", 0, "--notch", 0, "--time_limit", 60)
    code = run_maker(make_h5dataset_for_pretrain, "--input", tmp_path / "in", "--output", tmp_path / "out", *words)
    shown = "".join(capfd.readouterr())
    assert code == 1 and "Traceback" not in shown and not any(text in shown for text in HEADER_TEXTS)
    report = json.loads((tmp_path / "out.report.json").read_text())
    left_out = {Path(entry["path"]).stem: entry["reason"] for entry in report["left_out"]}
    assert not {name: reason for name, reason in left_out.items() if unclean(reason)}
    converted = set()
    for path in (tmp_path / "out").glob("*.hdf5"):
        with h5py.File(path) as file:
            converted |= set(file)
            assert not [name for name, group in file.items() if differs(tmp_path / "in" / f"{name}.edf", group["eeg"])]
    assert len(converted) >= NUMBER // 8 and len(converted) + len(left_out) == NUMBER
