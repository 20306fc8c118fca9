"""Bootstrap intervals over subjects of a cell's metrics, kept in a file because they take minutes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from files import digest_of, write_json
from reference.cell import TASK, predictions_of
from results.read import Predictions
from results.report import drawn_metrics, interval, subjects_of
from training import metrics

DRAWS = 1000
NAMES = metrics.METRICS[TASK]
Records = Sequence[dict[str, Any]]  # of a cell, one for each seed
Ends = dict[str, list[float]]  # lower and upper end, by metric


class Intervals:
    """Intervals of means over seeds, and of their differences from another cell's means."""

    def __init__(self, folder: Path) -> None:
        """folder: of the JSONs. Raises InputError if its file of intervals is damaged."""
        self.path = folder / "intervals.json"
        self._drawn: dict[str, np.ndarray] = {}  # by digest of the predictions: means over seeds, (draws, metrics)
        self._used: dict[str, Ends] = {}
        try:
            self._kept: dict[str, Ends] = dict(json.loads(self.path.read_text())) if self.path.is_file() else {}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.path} cannot be read ({error}): delete it, it is made again") from error

    def get(self, records: Records, base: Records = ()) -> Ends:
        """Interval of a cell's mean, or of its difference from the mean of `base` on the same draws of subjects."""
        own, other = ([held for r in part if (held := predictions_of(r["runs"]))] for part in (records, base))
        title = " less ".join(part[0]["cell"] for part in (records, base) if part)
        key = f"{title}, {_digest([*own, *other])}"
        if key not in self._kept:
            values = self._draws(own) - (self._draws(other) if other else 0)
            ends = interval(values)
            self._kept[key] = {name: [round(float(end), 4) for end in ends[:, i]] for i, name in enumerate(NAMES)}
        self._used[key] = self._kept[key]
        return self._used[key]

    def save(self) -> None:
        """Keep what was asked for."""
        write_json(self.path, self._used)

    def _draws(self, runs: list[Predictions]) -> np.ndarray:
        key = _digest(runs)
        if key not in self._drawn:
            self._drawn[key] = drawn_metrics(TASK, runs, subjects_of(runs[0]), draws=DRAWS).mean(axis=1)
        return self._drawn[key]


def _digest(runs: Sequence[Predictions]) -> str:
    return digest_of([part for run in runs for part in (run.logits, run.labels, run.subjects.tolist())])
