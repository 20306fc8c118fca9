"""Manifests: CSV files that say which seconds of which recording have which label, read strictly.

Every fault is an InputError that names the line and the column. Separators are commas, decimals have points, the text
is UTF-8 with or without a byte-order mark, the order of columns does not matter.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eeg_data.labelled_files import SPLITS
from errors import InputError

COLUMNS = ("path", "start", "stop", "label", "split", "subject")
MAX_BYTES = 256 << 20  # some three million rows
MAX_SECONDS = 1e9  # 30 years: beyond that is no place in a recording
MAX_TARGET = float(np.finfo(np.float32).max)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Segment(NamedTuple):
    """A row of a manifest."""

    line: int
    path: Path
    start: float  # s
    stop: float | None  # s; None: the recording's end
    label: str | tuple[float, ...]  # a class, or the targets of a regression
    split: str | None
    subject: str


def number(text: str) -> float | None:
    """Return a text as a finite number, or None if it is none."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def _shown(text: str) -> str:
    """A value for a message, cut short."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the stripped fields of every row that is not blank. Raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MB, too large for a manifest")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct --manifest") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: no UTF-8 text; save the manifest as CSV, UTF-8, with commas") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                if any(_CONTROL.search(field) for field in fields):
                    raise InputError(f"{path}, line {reader.line_num}: a control character; write plain text")
                yield reader.line_num, fields
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no CSV ({error}); check the quotation marks") from None


def _header(names: Sequence[str], where: str) -> list[str]:
    """Check the columns' names; return those of the targets, in order. Raises InputError."""
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        raise InputError(f"{where}: columns must be separated by commas, decimals by points; save the manifest so")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(f"{where}: the column {_shown(twice[0])} is there twice; delete or rename one")
    targets = [f"target_{index}" for index in range(sum(name.startswith("target_") for name in names))]
    known = {*COLUMNS, *targets}
    if unknown := [name for name in names if name not in known]:
        allowed = f"{', '.join(COLUMNS)}, or target_0, target_1, ... (without gaps) instead of label"
        raise InputError(f"{where}: unknown column {_shown(unknown[0])}; allowed: {allowed}. Delete or rename it")
    if ("label" in names) == bool(targets):
        both = "both label and target_0" if targets else "neither label nor target_0, target_1, ..."
        raise InputError(f"{where}: {both}; needed is a label for classes or targets for regression")
    for name in ("path", "start", "stop"):
        if name not in names:
            raise InputError(f"{where}: the column {name} is missing")
    if "subject" not in names:
        reason = "without it nobody can tell whether somebody is in training and in test"
        raise InputError(f"{where}: the column subject is missing; {reason}. Give each recorded person a number")
    return targets


class _Row:
    """A row by its columns' names; its methods raise InputError with the line and the column."""

    def __init__(self, path: Path, line: int, values: dict[str, str]) -> None:
        self.path, self.line, self.values = path, line, values

    def wrong(self, column: str, allowed: str) -> InputError:
        """Return the error for a value."""
        value = _shown(self.values[column]) if self.values[column] else "empty"
        return InputError(f"{self.path}, line {self.line}, column {column}: is {value}; {allowed}")

    def text(self, column: str, allowed: str) -> str:
        """Return a text that is no missing value."""
        if self.values[column].lower() in ("", "nan"):  # other words, such as none, may be a class
            raise self.wrong(column, allowed)
        return self.values[column]

    def seconds(self, column: str) -> float | None:
        """Return seconds from 0, None if there is nothing."""
        if not self.values[column]:
            return None
        value = number(self.values[column])
        if value is None or not 0 <= value <= MAX_SECONDS:
            raise self.wrong(column, "expected seconds from the recording's start, such as 12.5, or nothing")
        return value

    def target(self, column: str) -> float:
        """Return a regression's target, which float32 must hold."""
        value = number(self.values[column])
        if value is None or abs(value) > MAX_TARGET:
            raise self.wrong(column, "expected a number, such as -0.25; leave out rows without one")
        return value

    def segment(self, targets: Sequence[str]) -> Segment:
        """Return what the row says."""
        path = self.path.parent / self.text("path", "expected a recording, relative to the manifest")
        try:
            there = path.exists()
        except OSError:  # such as a name that is too long
            there = False
        if not there:
            raise self.wrong("path", f"there is no such file or folder in {self.path.parent}")
        start, stop = self.seconds("start") or 0.0, self.seconds("stop")
        if stop is not None and stop <= start:
            raise self.wrong("stop", f"expected more than the start, {start:g}")
        if targets:
            label: str | tuple[float, ...] = tuple(map(self.target, targets))
        else:
            label = self.text("label", "expected a class; leave out rows without one")
        split = self.values["split"].lower() if "split" in self.values else None
        if split not in (*SPLITS, None):
            raise self.wrong("split", f"allowed: {', '.join(SPLITS)}; without this column --seed splits by subject")
        subject = self.text("subject", "expected a number or code of the recorded person")
        return Segment(self.line, path, start, stop, label, split, subject)


def read_manifest(path: Path) -> tuple[list[Segment], list[str]]:
    """Return a manifest's rows in order and the names of its targets (none: classes). Raises InputError."""
    rows = _rows(path)
    line, names = next(rows, (1, [""]))
    targets = _header(names, f"{path}, line {line}")
    segments = []
    for line, fields in rows:
        if len(fields) != len(names):
            hint = "put texts with commas into quotation marks, write decimals with points"
            raise InputError(f"{path}, line {line}: {len(fields)} values for {len(names)} columns; {hint}")
        segments.append(_Row(path, line, dict(zip(names, fields, strict=True))).segment(targets))
    if not segments:
        raise InputError(f"{path}: has no rows below its header")
    _refuse_doubled(segments, path)
    return segments, targets


def _refuse_doubled(segments: Sequence[Segment], path: Path) -> None:
    """Raise InputError for the same seconds of a recording in two splits, or twice with one subject and label."""
    first: dict[tuple, Segment] = {}
    for segment in segments:
        seconds = (segment.path, segment.start, segment.stop)
        other = first.setdefault(seconds, segment)
        twice = first.setdefault((*seconds, segment.subject, segment.label), segment)
        reason = "in another split" if other.split != segment.split else "" if twice is segment else "with its label"
        if reason:
            line = (other if other.split != segment.split else twice).line
            same = f"the same seconds of {segment.path.name} as in line {line}, {reason}"
            raise InputError(f"{path}, line {segment.line}: {same}; delete one of the two rows")
