#!/usr/bin/env bash
# MNE reads the microvolts of Nexstim's eXimia files (.nxe) as volts.
# Guess: like every reader of MNE, `read_raw_eximia` returns EEG in volts, so 1000 digital steps of 0.0763 uV are 76.3e-6.
# Seen with MNE 1.13.2, NumPy 2.4.6, Python 3.11: it returns 76.3, a million times as much, and units and types say V, EEG.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import mne
import numpy as np

steps = np.zeros((1450, 64), "<i2")  # a second of 4 other channels and 60 electrodes
steps[:, 4:] = 1000
steps.tofile("a.nxe")
raw = mne.io.read_raw_eximia("a.nxe", verbose="error")
value, unit = float(raw.get_data("Cz")[0, 0]), raw.info["chs"][raw.ch_names.index("Cz")]["unit"]
print(f"MNE {mne.__version__}: 1000 steps of 0.0763 uV on Cz are {value:.1f} in unit {unit}")
assert np.isclose(value, 76.295, rtol=1e-4) and "FIFF_UNIT_V" in str(unit)
PY
venv/bin/python show.py
