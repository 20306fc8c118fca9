"""Annotated one-second events of TUEV: reading `.rec` files, and which window belongs to which event.

Held against `tests/golden/tuev_events.npz`. A row of a `.rec` file is one channel's event, so the same window may come
several times, with one label or several; all are kept, as the published numbers have it, and counted.
"""

import math
from pathlib import Path

import numpy as np

from dataset_maker.pipeline import Windows
from errors import InputError

EVENT, MARGIN = 1, 2  # s: how long an event lasts, what its window shows before and after it
WINDOW = EVENT + 2 * MARGIN  # s
LABELS = range(1, 7)  # as the files have them
MAX_ROWS = 100_000  # in one file: the corpus has a few hundred, 22 channels every second for an hour would be 79,200
MAX_LINE = 256  # bytes


def read_events(path: Path) -> np.ndarray:
    """Return a `.rec` file's rows (events, 4) float64: channel, start s, end s, label 1-6; blank lines do not count.

    Raises InputError, naming the line, for anything else and for more than `MAX_ROWS` rows.
    """
    rows = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1):
                if number > MAX_ROWS:
                    raise InputError(f"{path}: more than {MAX_ROWS} lines: this is no file of events of TUEV")
                if len(line) == MAX_LINE:
                    raise InputError(f"{path}, line {number}: longer than an event's row")
                if line.strip():
                    rows.append(_row(line, f"{path}, line {number}"))
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{path}: {reason}; TUEV has a file of events beside every EDF") from error
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _row(line: bytes, where: str) -> list[float]:
    """Return a line's four numbers. Raises InputError if they are no event; quotes nothing of it."""
    try:
        channel, start, end, label = (float(word) for word in line.decode("ascii").split(","))
    except ValueError:
        raise InputError(f"{where}: not four numbers `channel,start,end,label`") from None
    if not (channel >= 0 and channel.is_integer()):  # also what is not finite
        raise InputError(f"{where}: the channel must be an integer from 0")
    if not (0 <= start < math.inf and 0 <= end < math.inf):
        raise InputError(f"{where}: start and end must be seconds from 0")
    if label not in LABELS:
        raise InputError(f"{where}: the label must be an integer from {LABELS[0]} to {LABELS[-1]}")
    return [channel, start, end, label]


def first_samples(times: np.ndarray, rate: float, limit: int) -> np.ndarray:
    """Return the first sample at or after each time (s), sample k being at k / rate; `limit` for all from there on."""
    times = np.minimum(times, limit / rate)
    samples = np.ceil(times * rate)
    samples -= (samples - 1) / rate >= times  # the product above is rounded: k / rate decides
    samples += samples / rate < times
    return samples.astype(np.int64)


def event_windows(events: np.ndarray, length: int, rate: float) -> Windows:
    """Return the window of each event: from 2 s before its start to 2 s after its end; label - 1.

    events: (events, 4) of `read_events`; length: samples of the recording. Windows that reach over an edge have
    negative starts, or ends beyond the length: they wrap round. Events that are not one second long or end after the
    recording are left out, and all where the recording is shorter than a window. Notes count these and the repeated.
    """
    second = round(rate)
    starts, ends = (first_samples(events[:, column], rate, length + 1) for column in (1, 2))
    beyond = ends > length
    odd = ~beyond & (ends - starts != EVENT * second)
    fits = length >= WINDOW * second
    kept = ~beyond & ~odd & fits
    first = starts[kept] - MARGIN * second
    labels = events[kept, 3].astype(np.int64) - LABELS[0]
    pairs = np.unique(np.stack((first, labels), axis=1), axis=0)
    repeats, kinds = (np.unique(values, return_counts=True)[1] for values in (first, pairs[:, 0]))
    notes = {
        "events that end after the recording, left out": beyond.sum(),
        f"events that are not {EVENT} s long, left out": odd.sum(),
        f"events in recordings shorter than {WINDOW} s, left out": 0 if fits else (~beyond & ~odd).sum(),
        "windows that wrap round at the recording's edge": ((first < 0) | (first + WINDOW * second > length)).sum(),
        "windows that come more than once": (repeats > 1).sum(),
        "windows that come with different labels": (kinds > 1).sum(),
    }
    return Windows(first, labels, notes={note: int(count) for note, count in notes.items() if count})
