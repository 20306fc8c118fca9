#!/usr/bin/env bash
# The pauses of an EDF+D are left out, while its annotations keep the times of the clock.
# Guess: a file that says that it is discontinuous is refused, or its pauses are filled or marked.
# Seen with MNE 1.13.2, Python 3.11: 60 s, a pause of 20 s and 60 s more are 120 s in one piece, without a word about
# the pause. An annotation at 85 s of the clock stays at 85 s, where the signal of 105 s lies; one at 125 s is dropped, as
# "outside data range", although its second is in the file.
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


starts = [*range(60), *range(80, 140)]
notes = [f"+{start}\x14\x14\0" for start in starts]
for clock in (85, 125):
    notes[starts.index(clock)] += f"+{clock}\x151\x14at {clock} s\x14\0"
signal = np.repeat(starts, 200).astype(float)  # uV: says at which second of the clock it was recorded
edf("a.edf", ["Cz"], [200], [signal], reserved="EDF+D", notes=notes)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    raw = mne.io.read_raw_edf("a.edf", preload=True)
print(f"MNE {mne.__version__}: {raw.n_times / 200:g} s; warnings: {[str(warning.message)[:60] for warning in caught]}")
print("annotations:", list(zip(raw.annotations.onset.tolist(), raw.annotations.description.tolist())))
value = round(raw.get_data()[0, 85 * 200] * 1e6)
print(f"the signal at 85 s was recorded at {value} s")
assert raw.n_times == 24000 and value == 105 and "at 85 s" in raw.annotations.description
PY
venv/bin/python show.py
