#!/usr/bin/env bash
# MNE takes a BrainVision electrode whose unit is spelt with the Greek letter mu for no EEG.
# Guess: `μV` (U+03BC) and `µV` (U+00B5), which look the same, are both microvolts, or the first one is refused.
# Seen with MNE 1.13.2, NumPy 2.4.6, Python 3.11: electrodes in U+03BC, `microV`, `UV` or `mv` are typed misc, their values
# are not scaled, and pick("eeg") leaves them out, without a warning. raw._orig_units says µV for U+03BC even so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import warnings
from pathlib import Path

import mne
import numpy as np

warnings.simplefilter("error")


def read(unit):
    lines = ["Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]", "Codepage=UTF-8", "DataFile=a.eeg"]
    lines += ["DataFormat=BINARY", "DataOrientation=MULTIPLEXED", "NumberOfChannels=1", "SamplingInterval=5000"]
    lines += ["[Binary Infos]", "BinaryFormat=INT_16", "[Channel Infos]", f"Ch1=Cz,,0.1,{unit}"]
    Path("a.vhdr").write_text("\r\n".join(lines), encoding="utf-8")
    np.full(1000, 200, "<i2").tofile("a.eeg")  # 20 of the unit
    raw = mne.io.read_raw_brainvision("a.vhdr", verbose="warning")
    return raw.get_channel_types()[0], float(raw.get_data()[0, 0]), raw._orig_units["Cz"]


print(f"MNE {mne.__version__}: unit in the header, type, value of 20 of the unit in V, unit as MNE has it")
for unit, expected in (("\u00b5V", "eeg"), ("\u03bcV", "misc"), ("microV", "misc"), ("UV", "misc"), ("mv", "misc")):
    kind, value, stated = read(unit)
    print(f"{ascii(unit):10} {kind:5} {value:g} {ascii(stated)}")
    assert kind == expected and np.isclose(value, 20e-6 if expected == "eeg" else 20.0)
PY
venv/bin/python show.py
