#!/usr/bin/env bash
# MOABB marks each trial twice in a recording, at two times where a data set's interval does not begin at 0.
# Guess: `mne.find_events` (the trigger channel) and `mne.events_from_annotations` give the same samples of a Raw that
# `get_data` returns, so either may be used to cut trials.
# Seen with MOABB 1.7.2, MNE 1.13.2, Python 3.11: the trigger stands at the trial's start, the annotation `interval[0]`
# seconds later, at the cue (BNCI2014_001: 2 s). 32 of the 161 classes of moabb.datasets have such an interval.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check moabb==1.7.2 mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import os
from pathlib import Path

import numpy as np
from scipy.io import savemat

os.environ |= {"MNE_DATASETS_BNCI_PATH": os.getcwd(), "MOABB_DOWNLOAD_PROVIDER": "upstream"}
import mne
import moabb
from moabb.datasets import BNCI2014_001

STARTS = [1000, 3000]  # samples at 250 Hz


def run(starts, samples):
    """Return a run as in the data set's files."""
    names = np.array(["left hand", "right hand", "feet", "tongue"], dtype=object)
    eeg = np.random.default_rng(0).standard_normal((samples, 25))
    labels = np.arange(len(starts)) + 1
    return {
        **{"X": eeg, "trial": np.array(starts) + 1, "y": labels, "fs": 250, "classes": names},
        **{"artifacts": np.zeros(len(starts)), "gender": "male", "age": 22},
    }


folder = Path("MNE-bnci-data/~bci/database/001-2014")
folder.mkdir(parents=True)
for session in "TE":
    runs = np.empty(2, dtype=object)  # the first one without trials, as the eye movements there
    runs[:] = [run([], 500), run(STARTS, 5000)]
    savemat(folder / f"A01{session}.mat", {"data": runs})
mne.set_log_level("ERROR")
data_set = BNCI2014_001()
(raw,) = data_set.get_data([1])[1]["0train"].values()
trigger = mne.find_events(raw, shortest_event=0)[:, 0].tolist()
annotated = mne.events_from_annotations(raw)[0][:, 0].tolist()
print(f"MOABB {moabb.__version__}, interval {data_set.interval} s: trigger at {trigger}, annotations at {annotated}")
assert trigger == STARTS and annotated == [start + 2 * 250 for start in STARTS]
PY
venv/bin/python -W ignore show.py
