#!/usr/bin/env bash
# A BrainVision recording in vectorised order that is cut short is read with the channels mixed up.
# Guess: the header announces DataPoints=1000, the file holds 900 points of each channel's worth: MNE refuses, or warns.
# Seen with MNE 1.13.2, NumPy 2.4.6, Python 3.11: the length is taken from the file's size alone, so the second channel
# begins inside the first one. There is no error and no warning.
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
lines = ["Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]", "Codepage=UTF-8", "DataFile=a.eeg"]
lines += ["DataFormat=BINARY", "DataOrientation=VECTORIZED", "NumberOfChannels=2", "DataPoints=1000"]
lines += ["SamplingInterval=5000", "[Binary Infos]", "BinaryFormat=INT_16", "[Channel Infos]"]
Path("a.vhdr").write_text("\n".join([*lines, "Ch1=Fz,,1,uV", "Ch2=Cz,,1,uV"]))
np.repeat([1, 2], 1000).astype("<i2")[:1800].tofile("a.eeg")  # Fz is 1 uV, Cz 2 uV; the last 200 values are missing
raw = mne.io.read_raw_brainvision("a.vhdr", verbose="warning")
cz = raw.get_data("Cz")[0] * 1e6
print(f"MNE {mne.__version__}: {raw.n_times} points; Cz is {cz[0]:g} uV in its first {np.sum(cz < 1.5)} points, then {cz[-1]:g} uV")
assert raw.n_times == 900 and np.sum(cz < 1.5) == 100
PY
venv/bin/python show.py
