#!/usr/bin/env bash
# Missing samples of a GDF file become the lowest value that its channel can have.
# Guess: they are NaN, as in BioSig, the reference reader, which takes values at the digital limits for missing. The data
# sets of the BCI Competition IV (2a, 2b) mark the breaks between their runs so.
# Seen with MNE 1.13.2, Python 3.11: the code -32768 of a channel of -100 to 100 uV reads as -100 uV, without a warning: a
# step of 100 uV, which a high-pass filter spreads over the seconds around it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import struct
import warnings

import mne
import numpy as np

mne.set_log_level("warning")

def gdf(path, counts, rate):
    """Write GDF 2.20 of one channel, int16, records of 1 s, -100 to 100 uV on -32768 to 32767."""
    fixed = b"GDF 2.20" + bytes(176) + struct.pack("<H", 2) + bytes(50)
    fixed = fixed[:8] + b"X".ljust(66, b"\0") + fixed[74:] + struct.pack("<qIIHH", len(counts) // rate, 1, 1, 1, 0)
    head = b"Cz".ljust(16, b"\0") + bytes(86) + struct.pack("<H4d", 4275, -100, 100, -32768, 32767) + bytes(80)
    head += struct.pack("<2i", rate, 3) + bytes(32)
    open(path, "wb").write(fixed + head + counts.astype("<i2").tobytes() + struct.pack("<B3Bf", 1, 0, 0, 0, rate))


counts = np.zeros(20 * 250, int)
counts[10 * 250 : 10 * 250 + 100] = -32768
gdf("a.gdf", counts, 250)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    raw = mne.io.read_raw_gdf("a.gdf", preload=True)
eeg = raw.get_data()[0] * 1e6
print(f"MNE {mne.__version__}: the missing samples are {np.unique(eeg[2500:2600].round(3))} uV, {len(caught)} warnings")
filtered = raw.filter(0.5, None).get_data()[0] * 1e6
print(f"half a second later, after a high-pass at 0.5 Hz: {filtered[2725]:.0f} uV in place of 0")
assert not caught and (eeg[2500:2600].round(3) == -100).all() and abs(filtered[2725]) > 10
PY
venv/bin/python show.py
