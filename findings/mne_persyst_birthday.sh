#!/usr/bin/env bash
# MNE cannot open a Persyst recording that does not say when the patient was born.
# Guess: the section [Patient] is optional, and an empty BirthDate means unknown.
# Seen with MNE 1.13.2, NumPy 2.4.6, Python 3.11: TypeError, with an empty BirthDate (as in anonymised files) and without
# the line. A birthday that is no date, such as `-`, opens the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
from pathlib import Path

import mne
import numpy as np

np.zeros((200, 1), "<i2").tofile("a.dat")
info = "[FileInfo]\nFile=a.dat\nSamplingRate=200\nCalibration=1\nWaveformCount=1\nDataType=0\n"
results = []
for birthday in ("BirthDate=01/02/80\n", "BirthDate=-\n", "BirthDate=\n", ""):
    Path("a.lay").write_text(f"{info}[Patient]\n{birthday}TestDate=0\nSex=\nHand=\n[ChannelMap]\nCz=1\n")
    try:
        result = f"{mne.io.read_raw_persyst('a.lay', verbose='error').n_times} samples"
    except TypeError as error:
        result = f"TypeError: {error}"
    print(f"MNE {mne.__version__}, {birthday.strip()!r}: {result}")
    results.append(result[:9])
assert results == ["200 sampl", "200 sampl", "TypeError", "TypeError"], results
PY
venv/bin/python show.py
