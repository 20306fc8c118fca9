#!/usr/bin/env bash
# mne-bids takes one JSON sidecar of a recording, and loses what stands only in the one above it.
# Guess: BIDS' inheritance principle lets a JSON file further down add to the one at the top of the data set, key by key,
# so `PowerLineFrequency` at the top holds for a recording whose own sidecar does not name it.
# Seen with mne-bids 0.20.0, MNE 1.13.2, Python 3.11: line_freq is None as soon as the recording has a sidecar at all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne-bids==0.20.0 mne==1.13.2 numpy==2.4.6 scipy==1.17.1 \
  edfio==0.4.18
cat > show.py <<'PY'
import json
from pathlib import Path

import mne
import mne_bids
import numpy as np

eeg = np.random.default_rng(0).standard_normal((2, 2000)) * 2e-5
raw = mne.io.RawArray(eeg, mne.create_info(["C3", "C4"], 200, "eeg"), verbose="error")
path = mne_bids.BIDSPath(subject="1", task="rest", datatype="eeg", root="data")
path = mne_bids.write_raw_bids(raw, path, format="EDF", allow_preload=True, verbose="error")
Path("data/task-rest_eeg.json").write_text(json.dumps({"PowerLineFrequency": 60}))
own = path.fpath.with_suffix(".json")
own.write_text(json.dumps({"TaskName": "rest"}))
merged = mne_bids.read_raw_bids(path, verbose="error").info["line_freq"]
own.unlink()
alone = mne_bids.read_raw_bids(path, verbose="error").info["line_freq"]
print(f"mne-bids {mne_bids.__version__}: line_freq {merged} with two sidecars, {alone} with the upper one alone")
assert merged is None and alone == 60
PY
venv/bin/python show.py
