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
from scipy.io import savemat

from dataset_maker import making
from errors import run_script

NAMES = ["C3", "Cz", "C4"]
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
    path: Path, labels: Sequence[str], *, rate: int = 200, seconds: int = 5, remark: str = "T0", **fields: Any
) -> Path:
    """Write an EDF+ recording of noise (standard deviation 30 uV) and an annotation in each record of one second."""
    random = np.random.default_rng(sum(path.name.encode()))
    counts = {label: random.standard_normal(rate * seconds) * 300 for label in labels}
    texts = {"patient": "MCH-0234567 F 03-FEB-1981 Roe_Jane", "recording": "Startdate 04-MAR-2019 X Roe_Jane X"}
    texts |= {"date": "04.03.19", "time": "10.11.12", "transducer": "AgAgCl", "prefilter": "HP:0.1Hz"}
    path.parent.mkdir(parents=True, exist_ok=True)
    return edf_of(path, counts, onsets=range(seconds), remark=remark, **{"reserved": "EDF+C"} | texts | fields)


def edf_of(
    path: Path,
    counts: dict[str, np.ndarray],
    *,
    onsets: Sequence[float] = (),
    remark: str | Sequence[str] = "",
    **fields: Any,
) -> Path:
    """Write an EDF file (BDF if the suffix is .bdf) of digital values, records of one second.

    counts: label -> (samples,), each at its own rate; as many seconds as `onsets`, or as the file lasts. onsets: times
    of the records (makes it EDF+D). remark: an annotation in each record, or one for each (empty: none). fields: of the
    header; those of signals are one text for all or a list of them.
    """
    seconds = len(onsets) or fields.pop("seconds")
    rates = [len(values) // seconds for values in counts.values()]
    names, is_bdf = [*counts, *["EDF Annotations"] * bool(onsets)], path.suffix == ".bdf"
    width = 3 if is_bdf else 2
    fixed: dict[str, Any] = {"version": "0", "patient": "X X X X", "recording": "Startdate X X X X", "date": "01.01.01"}
    fixed |= {"time": "00.00.00", "bytes": 256 * (1 + len(names)), "reserved": "EDF+D" * bool(onsets)}
    fixed |= {"records": seconds, "duration": 1, "signals": len(names)}
    texts = [(str(fields.pop(key, fixed[key])), size) for key, size in EDF_FIELDS.items()]
    header = b"".join(text.encode("latin-1").ljust(size)[:size] for text, size in texts)
    header = (b"\xffBIOSEMI" if is_bdf else header[:8]) + header[8:]
    low, high = (-8_000_000, 8_000_000) if is_bdf else (-32768, 32767)
    signal: dict[str, Any] = {"label": names, "unit": "uV", "pmin": low / 10, "pmax": high / 10}
    signal |= {"dmin": low, "dmax": high, "samples": [*rates, *[126 // width] * bool(onsets)]} | fields
    for key, size in SIGNAL_FIELDS.items():
        own = signal.get(key, "")
        own = (own if isinstance(own, list) else [own] * len(names)) + ["1"] * len(names)
        own = own[: len(names)]  # of the annotations, too
        header += b"".join((t if isinstance(t, bytes) else str(t).encode("latin-1")).ljust(size)[:size] for t in own)
    content = bytearray(header)
    for record in range(seconds):
        for values, rate in zip(counts.values(), rates, strict=True):
            piece = values[record * rate : (record + 1) * rate].astype("<i4")
            content += piece.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
        if onsets:
            text = remark if isinstance(remark, str) else remark[record]
            note = f"+{onsets[record] + 0.5:g}\x150.25\x14{text}\x14\0" if text else ""
            content += f"+{onsets[record]:g}\x14\x14\0{note}".encode().ljust(126, b"\0")
    path.write_bytes(content)
    return path


def brainvision(
    path: Path,
    eeg: np.ndarray,
    *,
    names: Sequence[str] = NAMES,
    unit: str = "µV",
    step: float | None = None,
    marks: Sequence[str] = ("Stimulus,S  7,401,1,0",),
    comment: str = "",
    stem: str = "",
    short: int = 0,
    **header: Any,
) -> Path:
    """Write a BrainVision recording; eeg: (N, time) in `unit`.

    step: of int16 (None: float32). stem: of the files that it names. short: bytes that its signal lacks. header: of
    its first section.
    """
    common = {"DataFile": f"{stem or path.stem}.eeg", "MarkerFile": f"{stem or path.stem}.vmrk", "DataFormat": "BINARY"}
    common |= {"DataOrientation": "MULTIPLEXED", "NumberOfChannels": len(eeg), "SamplingInterval": 5000} | header
    lines = ["Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]"]
    lines += [*(f"{key}={value}" for key, value in common.items()), "[Binary Infos]"]
    lines += [f"BinaryFormat={'INT_16' if step else 'IEEE_FLOAT_32'}", "[Channel Infos]"]
    lines += [f"Ch{i}={name},,{step or 1},{unit}" for i, name in enumerate(names[: len(eeg)], 1)]
    path.write_text("\n".join([*lines, "[Comment]", comment]), encoding="utf-8")
    lines = ["Brain Vision Data Exchange Marker File, Version 1.0", "[Common Infos]", f"DataFile={common['DataFile']}"]
    lines += ["[Marker Infos]", *(f"Mk{i}={mark}" for i, mark in enumerate(marks, 1))]
    path.with_suffix(".vmrk").write_text("\n".join(lines), encoding="utf-8")
    values = eeg if common["DataOrientation"] == "VECTORIZED" else eeg.T
    content = (values / step).astype("<i2").tobytes() if step else values.astype("<f4").tobytes()
    path.with_suffix(".eeg").write_bytes(content[: len(content) - short])
    return path


def eeglab(
    path: Path,
    eeg: np.ndarray,
    events: Sequence[tuple[int, float, Any]] = (),
    *,
    names: Sequence[str] = NAMES,
    rate: float = 200,
    tmin: float = 0.0,
    dtype: str = "f4",
    as_struct: bool = True,
    compress: bool = False,
    **more: Any,
) -> Path:
    """Write a `.set`; eeg: (N, time[, epochs]) in uV; events: epoch, s from its time zero, type; more: fields."""
    points, places = eeg.shape[1], [(name,) for name in names[: len(eeg)]]
    rows = [(1 + points * epoch + (at - tmin) * rate, kind, 1) for epoch, at, kind in events]
    none = np.array([])
    fields = {"data": eeg.astype(dtype), "nbchan": len(eeg), "pnts": points, "trials": eeg[0, 0].size}
    fields |= {"srate": float(rate), "xmin": tmin, "xmax": tmin + (points - 1) / rate, "ref": "common"}
    fields |= {"event": np.array(rows, dtype=[(key, "O") for key in ("latency", "type", "duration")])}
    fields |= {"chanlocs": np.array(places, dtype=[("labels", "O")]), "chaninfo": {"nodatchans": none}, "epoch": none}
    fields |= dict.fromkeys(("icawinv", "icasphere", "icaweights"), none) | more
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"EEG": fields} if as_struct else fields, appendmat=False, oned_as="row", do_compression=compress)
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
