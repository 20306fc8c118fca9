#!/usr/bin/env bash
# MNE's GDF reader gives another channel's values under the name of the one that was asked for.
# Guess: read_raw_gdf(include=["C4"]) reads C4, as read_raw_edf(include=["C4"]) does.
# Seen with MNE 1.13.2, NumPy 2.4.6, Python 3.11: one channel comes, named C4, with the values of the file's first one.
# `exclude` does the same: the channels that are left bear the values of the first ones. The reader counts the channels
# that it keeps from 0 instead of keeping their places in the record. EDF is right. No warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import struct

import mne
import numpy as np

names, seconds, rate = ["C3", "Cz", "C4"], 4, 100
fixed = (b"GDF 2.20" + bytes(176) + struct.pack("<H", 1 + len(names))).ljust(236, b"\0")
header = fixed + struct.pack("<qIIHH", seconds, 1, 1, len(names), 0)
header += b"".join(name.encode().ljust(16, b"\0") for name in names) + bytes(3 * 86) + struct.pack("<3H", *[4275] * 3)  # uV
for limit in (-3276.8, 3276.7, -32768.0, 32767.0):
    header += struct.pack("<3d", *[limit] * 3)
header += bytes(3 * 80) + struct.pack("<3i", *[rate] * 3) + struct.pack("<3i", *[3] * 3) + bytes(3 * 32)
record = b"".join(np.full(rate, 10 * value, "<i2").tobytes() for value in (10, 20, 30))  # uV of C3, Cz and C4
with open("a.gdf", "wb") as file:
    file.write(header + seconds * record + struct.pack("<B3Bf", 1, 0, 0, 0, rate))


def values(**options):
    raw = mne.io.read_raw_gdf("a.gdf", verbose="error", **options)
    return {name: round(float(row.mean()) * 1e6) for name, row in zip(raw.ch_names, raw.get_data())}


print(f"MNE {mne.__version__}, uV: all {values()}, include C4 {values(include=['C4'])}, exclude C3 {values(exclude=['C3'])}")
assert values() == {"C3": 10, "Cz": 20, "C4": 30}
assert values(include=["C4"]) == {"C4": 10} and values(exclude=["C3"]) == {"Cz": 10, "C4": 20}
PY
venv/bin/python show.py
