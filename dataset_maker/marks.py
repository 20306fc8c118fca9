"""Breaks, skips and bad stretches of a recording, from its annotations; its clock and where its seconds are stored.

What the annotations of each format mean, and what MNE makes of them, is a table in docs/recordings.md.
"""

from __future__ import annotations  # the types of mne would load half of it

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import mne
import numpy as np

if TYPE_CHECKING:
    from dataset_maker.recording import RawRecording

BREAK = re.compile(r"edge( boundary)?|bad boundary|boundary|new segment/.*|amplifier (dis|re)connected")
BREAK_OF = {  # reader -> further texts: EEGLAB's numbers, ANT's codes, GDF's "start of a new segment"
    "RawEEGLAB": ("-99", "-99.0"),
    "RawANT": ("9001", "9002", "impedance"),
    "RawGDF": ("32766",),
}
SKIP = ("bad_acq_skip", "bad_disconnection")  # beginnings: what lies in them was not recorded
BAD = "bad"  # begins what MNE leaves out, too
DECIMALS = 3  # of a sample: times in files are rounded


class Stretch(NamedTuple):
    """A piece of a recording without a break. `start` and `stop` count the stored signal: sample / rate, in s."""

    start: float
    stop: float
    clock: float  # s on the recording's own clock, as its annotations state them, at `start`


def on_clock(recording: RawRecording) -> list[tuple[float, float, str]]:
    """Return onset and duration in s and the text of each annotation, on the recording's clock.

    Of a file with pauses MNE drops or shortens those that reach behind its last stored second, so its annotations are
    read again; those that somebody added to `raw` stay where they lie in the stored signal.
    """
    notes = _rows(recording.raw.annotations)
    if recording.paused:
        of_file = _rows(recording.annotations_of_file())
        first = recording.raw.first_time  # where MNE lets those begin that a crop shortened
        stated = {(round(time, 3), text) for onset, _, text in of_file for time in (onset, first)}
        added = [note for note in notes if (round(note[0], 3), note[2]) not in stated]
        notes = of_file
        for onset, duration, text in added:
            begin, end = (_clock(recording.stretches, time - first) for time in (onset, onset + duration))
            notes.append((begin, end - begin, text))
    return notes


def _clock(stretches: Sequence[Stretch], time: float) -> float:
    """Return the time on the clock of a place in the stored signal, s."""
    start, _, clock = next((stretch for stretch in reversed(stretches) if stretch.start <= time), stretches[0])
    return clock + time - start


def _rows(notes: mne.Annotations) -> list[tuple[float, float, str]]:
    columns = notes.onset.tolist(), np.nan_to_num(notes.duration).tolist(), notes.description.tolist()
    return list(zip(*columns, strict=True))


def mark(recording: RawRecording) -> None:
    """Add to `recording` the breaks that its annotations mark, the seconds that they call bad or not recorded.

    A break ends a stretch at the first sample at or after it. BAD, SKIP: as MNE names them, in any case. Durations of
    breaks say how much was cut out, not what is stored.
    """
    raw, stretches = recording.raw, recording.stretches
    rate, further, cuts = float(raw.info["sfreq"]), BREAK_OF.get(type(raw).__name__, ()), set[float]()
    for onset, duration, text in on_clock(recording):
        kind = text.strip().lower()
        begin, end = (first_sample(stored(stretches, time), rate) / rate for time in (onset, onset + duration))
        if BREAK.fullmatch(kind) or kind in further:
            cuts.add(begin)
        elif kind.startswith(BAD) and begin < end:
            recording.invalid += [(begin, end)] if (begin, end) not in recording.invalid else []  # FIF says it twice
            cuts |= {begin, end} if kind.startswith(SKIP) else set()
    recording.stretches = [piece for stretch in stretches for piece in _split(stretch, cuts)]


def _split(stretch: Stretch, cuts: set[float]) -> Iterator[Stretch]:
    inside = sorted(cut for cut in cuts if stretch.start < cut < stretch.stop)
    for start, stop in pairwise([stretch.start, *inside, stretch.stop]):
        yield Stretch(start, stop, stretch.clock + start - stretch.start)


def first_sample(time: float, rate: float) -> int:
    """Return the first sample at or after a time (s) of the stored signal."""
    return math.ceil(round(time * rate, DECIMALS))


def stored(stretches: Sequence[Stretch], clock: float) -> float:
    """Return where in the stored signal (s) a time of the clock lies; within a pause, where the signal goes on."""
    for start, stop, its in stretches:
        if clock < its + stop - start:
            return start + max(clock - its, 0.0)
    return stretches[-1].stop


def parts(stretches: Sequence[Stretch], begin: float, end: float) -> list[tuple[float, float]]:
    """Return what of a segment, begin to end on the clock, is stored: begin and end in s, a part for each stretch."""
    spans = [(max(begin, clock), min(end, clock + stop - start), start - clock) for start, stop, clock in stretches]
    return [(first + shift, last + shift) for first, last, shift in spans if first < last]


def end(stretches: Sequence[Stretch]) -> float:
    """Return when a recording ends on its clock, s."""
    start, stop, clock = stretches[-1]
    return clock + stop - start


def cut_at(stretches: Sequence[Stretch], end: float) -> list[Stretch]:
    """Return what of the stretches lies before `end`, s of the stored signal."""
    return [Stretch(start, min(stop, end), clock) for start, stop, clock in stretches if start < end]


def breaks(stretches: Sequence[Stretch]) -> list[float]:
    """Return where in the stored signal the breaks lie, s."""
    return [stretch.start for stretch in stretches[1:]]


def unbroken(valid: np.ndarray, stretches: Sequence[Stretch]) -> np.ndarray:
    """Return valid (seconds,) without the second of each break, or the one before a break between two seconds.

    So no window of valid seconds spans a break.
    """
    valid = valid.copy()
    for time in breaks(stretches):
        valid[max(math.ceil(round(time, 6)) - 1, 0)] = False
    return valid


def without(valid: np.ndarray, invalid: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return valid (seconds,) without the seconds that these stretches (s) touch."""
    valid = valid.copy()
    for begin, end in invalid:
        valid[math.floor(begin + 1e-6) : math.ceil(end - 1e-6)] = False
    return valid
