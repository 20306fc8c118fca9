#!/usr/bin/env bash
# An EDF whose unit MNE does not know is read as volts, without a word.
# Guess: 30 uV are 30 uV however the unit is spelt, and an unknown unit is an error or at least a warning.
# Seen with MNE 1.13.2, Python 3.11: "uV" and "mV" are converted. "uv", "UV", "microV", "nV", "µV" in the code page of DOS
# and a blank unit (which exports leave) give values 1,000,000 times too large (nV: 10^9), typed EEG, without a warning;
# of "uv" and "UV" the recording even says that the original unit was µV.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import warnings

import mne
import numpy as np

mne.set_log_level("warning")


def edf(path, labels, rates, signals, unit="uV", reserved="", notes=None):
    """Write EDF with records of 1 s; signals in `unit`; notes: of each record, as EDF+ has them."""
    labels, rates, n = list(labels), list(rates), len(labels) + bool(notes)
    counts = [np.rint(np.asarray(signal) * 10).astype("<i2") for signal in signals]
    if notes:
        labels, rates = [*labels, "EDF Annotations"], [*rates, 32]
    seconds = len(signals[0]) // rates[0]
    head = f"{0:<8}{'X X X X':<80}{'Startdate X X X X':<80}01.01.0100.00.00{256 * (n + 1):<8}{reserved:<44}"
    head += f"{seconds:<8}{1:<8}{n:<4}" + "".join(f"{label:<16}" for label in labels) + " " * 80 * n
    for values in ([unit] * n, [-3276.8] * n, [3276.7] * n, [-32768] * n, [32767] * n):
        head += "".join(f"{value:<8}" for value in values)
    head += " " * 80 * n + "".join(f"{rate:<8}" for rate in rates) + " " * 32 * n
    body = b""
    for s in range(seconds):
        body += b"".join(c[s * r : (s + 1) * r].tobytes() for c, r in zip(counts, rates))
        body += notes[s].encode().ljust(64, b"\0") if notes else b""
    open(path, "wb").write(head.encode("latin-1") + body)


def spread(unit):
    edf("a.edf", ["Cz"], [200], [30 * np.sin(2 * np.pi * 10 * np.arange(2000) / 200)], unit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        raw = mne.io.read_raw_edf("a.edf")
    assert not caught and raw.get_channel_types() == ["eeg"]
    return np.abs(raw.get_data()).max(), raw._orig_units["Cz"]


print(f"MNE {mne.__version__}: the largest value in V of 30 in the unit that the file states")
for unit, volts in (("uV", 30e-6), ("mV", 30e-3), *((unit, 30) for unit in ("uv", "UV", "microV", "nV", "\xe6V", ""))):
    value, called = spread(unit)
    print(f"{unit!r:10} {value:.3g} V, called {called}")
    assert abs(value / volts - 1) < 0.01
PY
venv/bin/python show.py
