#!/usr/bin/env bash
# A trigger channel that is faster than the EEG makes an EDF recording longer and its EEG slower.
# Guess: 60 s of EEG at 256 Hz beside a trigger channel at 2048 Hz are read as 60 s, at 256 or at 2048 Hz.
# Seen with MNE 1.13.2, Python 3.11: the rate is 256 Hz, as channels that are called trigger do not decide it, but all
# channels get as many samples as the fastest one: 480 s, in which a sine of 5 Hz has 0.625 Hz. Nothing is raised or
# warned of. With exclude=["Trigger"], or under a name that is none of a trigger, all is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
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


def read(name, **options):
    seconds = np.arange(60 * 256) / 256
    edf("a.edf", ["Cz", name], [256, 2048], [30 * np.sin(2 * np.pi * 5 * seconds), np.zeros(60 * 2048)])
    raw = mne.io.read_raw_edf("a.edf", preload=True, **options)
    power = np.abs(np.fft.rfft(raw.get_data(["Cz"])[0]))
    return raw.info["sfreq"], raw.n_times / raw.info["sfreq"], power.argmax() * raw.info["sfreq"] / raw.n_times


print(f"MNE {mne.__version__}: rate, seconds, frequency of a sine of 5 Hz in 60 s at 256 Hz")
for name, options in (("Trigger", {}), ("Trigger", {"exclude": ["Trigger"]}), ("X", {})):
    rate, seconds, frequency = read(name, **options)
    print(f"{name} {options}: {rate:g} Hz, {seconds:g} s, {frequency:g} Hz")
    assert (seconds, frequency) == ((480, 0.625) if name == "Trigger" and not options else (60, 5))
PY
venv/bin/python show.py
