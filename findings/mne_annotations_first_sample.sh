#!/usr/bin/env bash
# The times of a FIF recording's annotations do not count from its first sample, those of its EDF twin do.
# Guess: `mne.read_annotations` gives seconds of the recording, so that sample onset * rate lies under the annotation.
# Seen with MNE 1.13.2, Python 3.11: a recording that was cropped at 30 s before it was saved as FIF says 60 s for what lies
# 30 s behind its first sample; `raw.first_time` is 30. Exported as EDF it says 30 s. Both are as MNE documents them, but
# code that cuts recordings by `read_annotations` is right for one format and silently 30 s late for the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1 edfio==0.4.18
cat > show.py <<'PY'
import mne
import numpy as np

mne.set_log_level("warning")

signal = np.zeros((1, 100 * 200))
signal[:, 60 * 200 : 61 * 200] = 50e-6
raw = mne.io.RawArray(signal, mne.create_info(["Cz"], 200, "eeg"))
raw.set_annotations(mne.Annotations([60], [1], ["here"]))
raw.crop(tmin=30).save("a_raw.fif")
mne.export.export_raw("a.edf", raw, physical_range=(-100, 100))
print(f"MNE {mne.__version__}: onset, and the signal (uV) at onset * rate from the first sample")
for name, onset, value in (("a_raw.fif", 60, 0), ("a.edf", 30, 50)):
    (seen,) = mne.read_annotations(name).onset
    at = mne.io.read_raw(name).get_data()[0, round(seen * 200)] * 1e6
    print(f"{name:10} {seen:g} s, {abs(at):.0f} uV")
    assert seen == onset and abs(at - value) < 1
PY
venv/bin/python show.py
