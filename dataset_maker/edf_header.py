"""What MNE does not tell of an EDF or BDF header: how long it says the file is, and each channel's own rate.

Only numbers and channel names are read; names, dates and other texts in the header stay where they are.
"""

import math
from pathlib import Path

import mne

OWN, PER_SIGNAL = 256, 256  # bytes of the header that belong to the file, and to each signal
ANNOTATIONS = ("EDF Annotations", "BDF Annotations")  # names of signals that are none
SAMPLES_AT, NAME_BYTES, NUMBER_BYTES = 216, 16, 8  # bytes a signal before its samples per record; widths of fields


def is_edf(path: Path) -> bool:
    """Whether a file is EDF or BDF by its name."""
    return path.name.lower().endswith((".edf", ".bdf"))


def missing_seconds(path: Path, raw: mne.io.BaseRaw) -> tuple[float, float]:
    """Return the seconds that an EDF or BDF header announces beyond what the file holds, and all it announces.

    (0, 0) for other formats, for files that were never closed (they announce -1 records) and unreadable headers.
    """
    if not is_edf(path):
        return 0.0, 0.0
    with path.open("rb") as file:
        header = file.read(OWN)
    try:
        announced = int(header[236:244]) * float(header[244:252])
    except ValueError:
        return 0.0, 0.0
    missing = announced - raw.n_times / raw.info["sfreq"]
    return (missing, announced) if 0 < missing < math.inf and announced > 0 else (0.0, 0.0)


def samples_per_record(path: Path) -> list[tuple[str, int]]:
    """Return (name, samples per record) of each signal but annotations, which MNE keeps apart.

    A name may come twice. Nothing for other formats and unreadable headers.
    """
    if not is_edf(path):
        return []
    try:
        with path.open("rb") as file:
            signals = int(file.read(OWN)[252:256])
            header = file.read(signals * PER_SIGNAL)
        names = [header[NAME_BYTES * i : NAME_BYTES * (i + 1)].decode("latin1").strip() for i in range(signals)]
        counts = header[SAMPLES_AT * signals : (SAMPLES_AT + NUMBER_BYTES) * signals]
        each = [int(counts[NUMBER_BYTES * i : NUMBER_BYTES * (i + 1)]) for i in range(signals)]
    except (OSError, ValueError):
        return []
    return [(name, count) for name, count in zip(names, each, strict=True) if name not in ANNOTATIONS]
