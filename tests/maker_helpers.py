"""What the tests of the dataset makers share: running a maker, small recordings, reading what was made."""

import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import h5py
import mne
import numpy as np

from dataset_maker import making
from errors import run_script

# EDF: fields of the header's first part with their widths, then the fields of signals, each for all signals.
EDF_FIELDS = {"version": 8, "patient": 80, "recording": 80, "date": 8, "time": 8}
EDF_FIELDS |= {"bytes": 8, "reserved": 44, "records": 8, "duration": 8, "signals": 4}
SIGNAL_FIELDS = {"label": 16, "transducer": 80, "unit": 8, "pmin": 8, "pmax": 8, "dmin": 8, "dmax": 8}
SIGNAL_FIELDS |= {"prefilter": 80, "samples": 8, "rest": 32}


def run_maker(maker: ModuleType, *words: Any) -> int:
    """Run a maker as its command line would; return the exit code."""
    if "jobs" in maker.__dict__ or hasattr(maker, "find_recordings"):
        words = ("--jobs", 1, *words)  # one process to start instead of one for each core
    with patch.object(sys, "argv", [maker.__name__, *map(str, words)]):
        try:
            if hasattr(maker, "find_recordings"):
                making.run(maker.__name__)
            else:
                run_script(maker.main, maker.get_args())
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def raw_of(names: list[str], rate: float, eeg: np.ndarray, types: Any = "eeg") -> mne.io.BaseRaw:
    """Return a recording of eeg (N, time) in uV."""
    return mne.io.RawArray(eeg * 1e-6, mne.create_info(names, rate, types), verbose="error")


def noise(electrodes: int, seconds: float, rate: float, seed: int = 0) -> np.ndarray:
    """Return (electrodes, time) in uV, standard deviation 20."""
    return np.random.default_rng(seed).standard_normal((electrodes, int(seconds * rate))) * 20


def save(path: Path, names: list[str], *, rate: float = 200.0, seconds: float = 6.0, seed: int = 0) -> Path:
    """Write a FIF recording of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw_of(names, rate, noise(len(names), seconds, rate, seed)).save(path, fmt="double", verbose="error")
    return path


def opened(folder: Path) -> dict[str, dict[str, h5py.Dataset]]:
    """Return file -> recording -> dataset for all HDF5 files of a folder."""
    return {path.name: {key: group["eeg"] for key, group in h5py.File(path).items()} for path in folder.glob("*.hdf5")}


def eeghdf_file(
    path: Path, names: tuple[str, ...] = ("EEG Fp1", "EEG A1", "X2", "EEG Mark1", "EEG Cz"), *, samples: int = 800
) -> np.ndarray:
    """Write a file as the package eeghdf does, with a patient; return its int16 counts (N, time)."""
    counts = np.random.default_rng(0).integers(-3000, 3000, (len(names), samples), dtype=np.int16)
    with h5py.File(path, "w") as file:
        file.create_group("patient").attrs.update(patient_name="Jane Roe", birthdate="1981-02-03")
        record = file.create_group("record-0")
        record.attrs.update(sample_frequency=200.00000000000003, start_isodatetime="2019-03-04", technician="Roe")
        record["signals"] = counts
        record["signal_labels"] = np.array([name.encode() for name in names], dtype=object)
        record["physical_dimensions"] = np.array([b"mV" if name == "EEG Cz" else b"uV" for name in names], dtype=object)
        for kind, value in {"digital_mins": -32768, "digital_maxs": 32767}.items():
            record[f"signal_{kind}"] = np.full(len(names), value, dtype=np.int32)
        for kind, value in {"physical_mins": -3200.0, "physical_maxs": 3199.902}.items():
            record[f"signal_{kind}"] = np.full(len(names), value)
    return counts


def edf(
    path: Path, labels: Sequence[str], *, rate: int = 200, seconds: int = 5, remark: str = "T0", **texts: str
) -> Path:
    """Write an EDF+ recording of noise (standard deviation 30 uV) and an annotation in each record of one second.

    texts: of fields of the header, a signal's field for all signals.
    """
    names, samples = [*labels, "EDF Annotations"], [*[rate] * len(labels), 64]
    values = {"version": "0", "patient": "MCH-0234567 F 03-FEB-1981 Roe_Jane", "date": "04.03.19", "time": "10.11.12"}
    values |= {"recording": "Startdate 04-MAR-2019 X Roe_Jane X", "bytes": str(256 * (1 + len(names)))}
    values |= {"reserved": "EDF+C", "records": str(seconds), "duration": "1", "signals": str(len(names))}
    values |= {"transducer": "AgAgCl", "unit": "uV", "pmin": "-3276.8", "pmax": "3276.7", "dmin": "-32768"}
    values |= {"dmax": "32767", "prefilter": "HP:0.1Hz", "rest": ""} | texts
    header = "".join(values[field][:width].ljust(width) for field, width in EDF_FIELDS.items())
    each = {"label": names, "samples": list(map(str, samples))}
    for field, width in SIGNAL_FIELDS.items():
        header += "".join(text.ljust(width) for text in each.get(field, [values.get(field, "")] * len(names)))
    random, content = np.random.default_rng(sum(path.name.encode())), bytearray(header.encode("latin-1"))
    for record in range(seconds):
        content += (random.standard_normal(rate * len(labels)) * 300).astype("<i2").tobytes()
        content += f"+{record}\x14\x14\0+{record}.5\x150.25\x14{remark}\x14\0".encode().ljust(128, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def edf_of(path: Path, counts: dict[str, np.ndarray], *, onsets: Sequence[float] = (), **fields: Any) -> Path:
    """Write an EDF file (BDF if the suffix is .bdf) of digital values, records of one second.

    counts: label -> (samples,), each at its own rate; as many seconds as `onsets`, or as the file lasts. onsets: times
    of the records (makes it EDF+D). fields: of signals, one text for all or a list of them; `records`: announced.
    """
    seconds = len(onsets) or fields.pop("seconds")
    rates = [len(values) // seconds for values in counts.values()]
    names, is_bdf = [*counts, *["EDF Annotations"] * bool(onsets)], path.suffix == ".bdf"
    width = 3 if is_bdf else 2
    fixed = {"version": "0", "patient": "X X X X", "recording": "Startdate X X X X", "date": "01.01.01"}
    fixed |= {"time": "00.00.00", "bytes": 256 * (1 + len(names)), "reserved": "EDF+D" * bool(onsets)}
    fixed |= {"records": fields.pop("records", seconds), "duration": 1, "signals": len(names)}
    header = b"".join(str(fixed[key]).encode().ljust(size) for key, size in EDF_FIELDS.items())
    header = (b"\xffBIOSEMI" if is_bdf else header[:8]) + header[8:]
    low, high = (-8_000_000, 8_000_000) if is_bdf else (-32768, 32767)
    signal: dict[str, Any] = {"label": names, "unit": "uV", "pmin": low / 10, "pmax": high / 10}
    signal |= {"dmin": low, "dmax": high, "samples": [*rates, *[60 // width] * bool(onsets)]} | fields
    for key, size in SIGNAL_FIELDS.items():
        texts = signal.get(key, "")
        texts = (texts if isinstance(texts, list) else [texts] * len(names)) + ["1"] * len(names)
        texts = texts[: len(names)]  # of the annotations, too
        header += b"".join((t if isinstance(t, bytes) else str(t).encode("latin-1")).ljust(size)[:size] for t in texts)
    content = bytearray(header)
    for record in range(seconds):
        for values, rate in zip(counts.values(), rates, strict=True):
            piece = values[record * rate : (record + 1) * rate].astype("<i4")
            content += piece.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
        if onsets:
            content += f"+{onsets[record]:g}\x14\x14\0".encode().ljust(60 // width * width, b"\0")
    path.write_bytes(content)
    return path


def gdf_of(path: Path, counts: dict[str, np.ndarray], seconds: int, *, code: int = 4275) -> Path:
    """Write a GDF 2 file of int16, a tenth of the unit a count, records of one second. code: of the unit."""
    n, rates = len(counts), [len(values) // seconds for values in counts.values()]
    fixed = (b"GDF 2.20" + bytes(176) + struct.pack("<H", n + 1) + bytes(50)).ljust(236, b"\0")
    head = fixed + struct.pack("<qIIHH", seconds, 1, 1, n, 0)
    head += (
        b"".join(name.encode().ljust(16, b"\0") for name in counts) + bytes(n * 86) + struct.pack(f"<{n}H", *[code] * n)
    )
    head += b"".join(struct.pack(f"<{n}d", *[limit] * n) for limit in (-3276.8, 3276.7, -32768, 32767)) + bytes(n * 80)
    head += struct.pack(f"<{n}i", *rates) + struct.pack(f"<{n}i", *[3] * n) + bytes(n * 32)
    body = b"".join(
        values[second * rate : (second + 1) * rate].astype("<i2").tobytes()
        for second in range(seconds)
        for values, rate in zip(counts.values(), rates, strict=True)
    )
    path.write_bytes(head + body + struct.pack("<B3Bf", 1, 0, 0, 0, float(max(rates))))
    return path
