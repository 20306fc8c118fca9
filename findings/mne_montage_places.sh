#!/usr/bin/env bash
# Two of MNE's standard montages put electrodes where their names do not say.
# Guess: an electrode's direction from the centre of the head is about the same in all montages with 10-10 names.
# Seen with MNE 1.13.2, NumPy 2.4.6, Python 3.11: biosemi64, easycap-M1 and colin27_1005 agree within 13 degrees, but
# spherical_1005 has T7 20 degrees higher than biosemi64 has it, where C5 would be; colin27_prefixed has aF3, of the
# left half, in the very place of aF4, on the right. No warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import mne
import numpy as np


def directions(montage):
    places = mne.channels.make_standard_montage(montage).get_positions()["ch_pos"]
    points = np.array(list(places.values()))
    sphere = np.linalg.lstsq(np.c_[2 * points, np.ones(len(points))], (points**2).sum(1), rcond=None)[0]
    points = points - sphere[:3]
    return dict(zip(places, points / np.linalg.norm(points, axis=1, keepdims=True)))


def apart(one, other, electrode):
    return np.degrees(np.arccos(directions(one)[electrode] @ directions(other)[electrode]))


t7 = {montage: apart("biosemi64", montage, "T7") for montage in ("easycap-M1", "colin27_1005", "spherical_1005")}
prefixed = mne.channels.make_standard_montage("colin27_prefixed").get_positions()["ch_pos"]
print(f"MNE {mne.__version__}: T7, degrees from biosemi64's: { {name: round(float(angle), 1) for name, angle in t7.items()} }")
print(f"colin27_prefixed: aF3 {prefixed['aF3'].round(3)}, aF4 {prefixed['aF4'].round(3)} (x > 0 is right)")
assert t7["easycap-M1"] < 5 and t7["colin27_1005"] < 13 < 15 < t7["spherical_1005"]
assert prefixed["aF3"][0] > 0 and np.allclose(prefixed["aF3"], prefixed["aF4"])
PY
venv/bin/python show.py
