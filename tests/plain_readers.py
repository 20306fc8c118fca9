"""What a process without any of the project's code reads from mutated files, compared with what the project gave.

`python plain_readers.py REQUESTS.json`: a list of `[form, source, made, options]`; prints a JSON list, for each the
difference in words or null. MNE, h5py and csv only.
"""

import csv
import json
import math
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np

RATE = 200  # Hz
ENDS = ("digital_min", "digital_max", "physical_min", "physical_max")
MICROVOLTS = {"uV": 1.0, "µV": 1.0, "mV": 1e3, "V": 1e6}
RECORDINGS = ("a.edf", "b c.edf", "sub/d.edf")  # beside a manifest


def electrode(name: str) -> str:
    """Return the electrode of a channel of these files."""
    return re.sub(r"(^EEG\s+)|(\s*-\s*(REF|LE|AR|AVG)$)", "", re.sub(r"-\d$", "", name.strip().upper())).rstrip(". ")


def bridged(eeg: np.ndarray) -> np.ndarray:
    """Return eeg (N, time) with straight lines in the place of what is not finite."""
    eeg = eeg.copy()
    for row in eeg:
        good = np.isfinite(row)
        row[~good] = np.interp(np.flatnonzero(~good), np.flatnonzero(good), row[good]) if good.any() else 0
    return eeg


def filtered(raw: mne.io.BaseRaw) -> np.ndarray:
    """Return a recording (N, time) in volts after SPEC's pipeline by MNE's own methods."""
    half = raw.info["sfreq"] / 2
    low_pass = 75 if half > 75.5 else None
    raw.filter(0.1, low_pass, verbose="error")
    if half > 50.7:
        raw.notch_filter(50, verbose="error")
    return raw.resample(RATE, verbose="error").get_data()


def edf(source: str, made: list[str], with_filters: bool) -> str | None:
    """Compare a recording with its group in a pre-training file. made: file, group."""
    raw = mne.io.read_raw(source, preload=True, encoding="latin1", verbose="error")  # of annotations, which may be any
    with h5py.File(made[0]) as file:
        group = file[made[1]]
        eeg, names, rate = group["eeg"][:], list(group["eeg"].attrs["chOrder"]), group["eeg"].attrs["rsFreq"]
        valid = group["valid"][:]
    channels = [name for name in raw.ch_names if electrode(name) in [name.upper() for name in names]]
    if [electrode(name) for name in channels] != [name.upper() for name in names]:
        return f"electrodes {names} of the channels {raw.ch_names}"
    raw.pick(channels)
    source_rate, volts = raw.info["sfreq"], raw.get_data()
    spoilt = {int(index / source_rate) for index in np.flatnonzero(~np.isfinite(volts).all(axis=0))}
    if any(valid[second] for second in spoilt if second < len(valid)):
        return f"the seconds {sorted(spoilt)} are not finite but valid"
    raw[:, :] = bridged(volts)
    expected = (filtered(raw) if with_filters else raw.get_data()) * 1e6
    if rate != (RATE if with_filters else source_rate) or eeg.shape != expected.shape:
        return f"{eeg.shape} at {rate} Hz instead of {expected.shape}"
    away = 1e-5 * np.abs(expected).max() + 1e-9 if with_filters else 0.0
    if not (np.abs(eeg - expected.astype(np.float32)) <= away).all():
        return f"differs by up to {np.abs(eeg - expected).max()} uV of {np.abs(expected).max()}"
    return None


def eeghdf(source: str, made: list[str], _: Any) -> str | None:
    """Compare an eeghdf recording with its group in a pre-training file. made: file, group."""
    with h5py.File(source) as file:
        record = file["record-0"]
        names, units = (as_text(record[key][:]) for key in ("signal_labels", "physical_dimensions"))
        ends = {key: record[f"signal_{key}s"][:].astype(float)[:, None] for key in ENDS}
        rate, counts = float(record.attrs["sample_frequency"]), record["signals"][:].astype(float)
        if not defined(record["signals"]):
            return None
    slope = (ends["physical_max"] - ends["physical_min"]) / (ends["digital_max"] - ends["digital_min"])
    with h5py.File(made[0]) as file:
        data = file[made[1]]["eeg"]
        eeg, electrodes, made_rate = data[:], list(data.attrs["chOrder"]), data.attrs["rsFreq"]
    rows = [row for row, name in enumerate(names) if electrode(name) in electrodes and units[row].strip() in MICROVOLTS]
    if [electrode(names[row]) for row in rows] != electrodes or abs(rate - made_rate) > 1e-5:
        return f"electrodes {electrodes} of {names}, {made_rate} Hz instead of {rate}"
    physical = (counts - ends["digital_min"]) * slope + ends["physical_min"]
    expected = bridged(np.stack([physical[row] * MICROVOLTS[units[row].strip()] for row in rows]))
    if eeg.shape != expected.shape or not np.allclose(eeg, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()):
        return f"other values, {eeg.shape} instead of {expected.shape}"
    return None


def as_text(values: Any) -> list[str]:
    """Return an attribute's or a data set's texts."""
    return [value.decode() if isinstance(value, bytes) else value for value in np.atleast_1d(values).ravel()]


def defined(data: h5py.Dataset) -> bool:
    """Return whether the chunks have their size; HDF5 (2.0 and before) fills up with whatever is in memory."""
    if data.chunks is None or data.shuffle or data.fletcher32:
        return True
    size = math.prod(data.chunks) * data.dtype.itemsize
    chunks = [data.id.get_chunk_info(i) for i in range(data.id.get_num_chunks())]
    if data.compression is None:
        return all(chunk.size >= size for chunk in chunks)
    packed = [data.id.read_direct_chunk(chunk.chunk_offset)[1] for chunk in chunks]
    return all(len(zlib.decompress(content)) >= size for content in packed)


def signals(folder: Path) -> dict[Path, np.ndarray]:
    """Return the EEG of the recordings beside a manifest, (2, time) in uV."""
    raws = {
        (folder / name).resolve(): mne.io.read_raw(folder / name, preload=True, verbose="error") for name in RECORDINGS
    }
    channels = ["EEG Fp1", "C3", "EEG Cz-REF"]
    return {name: (raw.get_data(channels) * 1e6).astype(np.float32) for name, raw in raws.items()}


def manifest(source: str, made: str, _: Any) -> str | None:
    """Compare a labelled file of windows of a second with the rows of its manifest."""
    folder = Path(source).parent
    eeg = signals(folder)
    with Path(source).open(encoding="utf-8-sig", newline="") as file:
        lines = [[field.strip() for field in row] for row in csv.reader(file)]
    columns, *rows = [line for line in lines if any(line)]
    targets = sorted((c for c in columns if c.startswith("target_")), key=lambda c: int(c[7:]))
    expected: dict[tuple[Path, str], list[Any]] = {}
    for values in rows:
        row = dict(zip(columns, values, strict=True))
        name = (folder / row["path"]).resolve()
        if name not in eeg:
            continue  # unreadable: left out, and said so
        signal = eeg[name]
        length = signal.shape[1]
        first = math.ceil(round(float(row["start"] or 0) * RATE, 6))
        last = min(length, math.ceil(round(float(row["stop"]) * RATE, 6)) if row["stop"] else length)
        label = tuple(np.float32(row[target]) for target in targets) if targets else row["label"]
        windows = [signal[:, at : at + RATE] for at in range(first, last - RATE + 1, RATE)]
        own = expected.setdefault((name, row["subject"]), [])
        own += [(row["split"].lower(), label, row["subject"], window) for window in windows]
    samples = [sample for own in expected.values() for sample in own]
    with h5py.File(made) as file:
        classes = list(file.attrs["classes"])
        for split in ("train", "val", "test"):
            wanted = [sample for sample in samples if sample[0] == split]
            if not wanted or split not in file:
                if wanted or split in file:
                    return f"{split}: there or not there"
                continue
            group = file[split]
            labels = [tuple(row) if targets else classes[row] for row in group["label"][:]]
            if labels != [sample[1] for sample in wanted]:
                return f"{split}: {len(labels)} labels instead of {len(wanted)}, or others"
            if list(group["subject"].asstr()) != [sample[2] for sample in wanted]:
                return f"{split}: other subjects"
            if not np.array_equal(group["eeg"][:], np.stack([sample[3] for sample in wanted])):
                return f"{split}: other values"
    return None


FORMS = {"edf": edf, "eeghdf": eeghdf, "manifest": manifest}


def main() -> None:
    """Answer all requests."""
    answers = []
    for form, *request in json.loads(Path(sys.argv[1]).read_text()):
        try:
            answers.append(FORMS[form](*request))
        except Exception as error:
            answers.append(f"a plain reader cannot read it: {type(error).__name__} {error}"[:300])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
