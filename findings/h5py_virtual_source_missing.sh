#!/usr/bin/env bash
# A virtual data set whose source file is gone reads as zeros.
# Guess: reading it raises, as opening an external link to the same file does.
# Seen with h5py 3.16.0 (HDF5 2.0.0), Python 3.11: the part of a missing file is 0.0 and nothing is raised or warned
# of; the external link raises KeyError. A source that is shorter than announced raises OSError.
# HDF5 documents the fill value for unmapped places; that it also stands for lost files costs silent seconds of EEG.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check h5py==3.16.0 numpy==2.4.6
cat > show.py <<'PY'
import os

import h5py
import numpy as np

for name, samples in (("first.h5", 100), ("second.h5", 100), ("short.h5", 50)):
    with h5py.File(name, "w") as file:
        file["eeg"] = np.full((4, samples), 7.0, np.float32)
with h5py.File("joined.h5", "w") as file:
    for whole, last in (("eeg", "second.h5"), ("with_short", "short.h5")):
        layout = h5py.VirtualLayout((4, 200), np.float32)
        layout[:, :100] = h5py.VirtualSource("first.h5", "eeg", (4, 100))
        layout[:, 100:] = h5py.VirtualSource(last, "eeg", (4, 100))
        file.create_virtual_dataset(whole, layout)
    file["link"] = h5py.ExternalLink("second.h5", "/eeg")
os.remove("second.h5")
with h5py.File("joined.h5") as file:
    eeg = file["eeg"][:]
    print(f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}: values of the missing half", np.unique(eeg[:, 100:]))
    assert (eeg[:, :100] == 7).all() and (eeg[:, 100:] == 0).all()
    for name, error in (("link", KeyError), ("with_short", OSError)):
        try:
            file[name][:]
        except error as raised:
            print(f"{name}: {type(raised).__name__}")
        else:
            raise SystemExit(f"{name} was read")
PY
venv/bin/python show.py
