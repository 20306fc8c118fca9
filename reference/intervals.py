"""Bootstrap intervals over subjects of what the cells predicted, kept in a file: 1000 draws take seconds."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from files import digest_of, write_json
from reference import records
from results.read import Predictions
from results.subjects import LEVEL, drawn_metrics, subjects_of
from training import metrics

logger = logging.getLogger("reference")

DRAWS = 1000
FILE = "intervals.json"
Ends = dict[str, list[float]]  # lower and upper end, by metric

NAMES = metrics.METRICS[records.TASK]


def pooled(found: Sequence[dict[str, Any]]) -> list[Predictions]:
    """Of each record of a cell all runs' predictions together."""
    return [records.predictions(record["runs"]) for record in found]


class Intervals:
    """Intervals of means over seeds, and of their differences from another cell's, computed once."""

    def __init__(self, folder: Path) -> None:
        """folder: of the JSONs, in which they are kept. Raises InputError if the file is damaged."""
        self.path = folder / FILE
        self._values: dict[str, np.ndarray] = {}  # means over seeds of each draw, (draws, metrics)
        self._used: dict[str, Ends] = {}
        self._kept: dict[str, Ends] = {}
        try:
            if self.path.is_file():
                self._kept = dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.path} cannot be read ({error}): delete it, it is made anew") from error

    def of_mean(self, found: Sequence[dict[str, Any]]) -> Ends:
        """Of the mean over a cell's records."""
        return self._get(found[0]["cell"], pooled(found), None)

    def of_difference(self, found: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> Ends:
        """Of a cell's mean less another's, on the same draws of subjects."""
        return self._get(f"{found[0]['cell']} less {base[0]['cell']}", pooled(found), pooled(base))

    def save(self) -> None:
        """Keep what was asked for."""
        write_json(self.path, self._used)

    def _get(self, title: str, runs: list[Predictions], base: list[Predictions] | None) -> Ends:
        key = f"{title}, {_digest([*runs, *(base or [])])}"
        if key not in self._kept:
            values = self._drawn(runs) - (0 if base is None else self._drawn(base))
            values = values[np.isfinite(values).all(axis=1)]
            tail = (100 - LEVEL) / 2
            ends = (
                np.percentile(values, [tail, 100 - tail], axis=0) if len(values) else np.full((2, len(NAMES)), np.nan)
            )
            self._kept[key] = {name: [round(float(x), 4) for x in ends[:, i]] for i, name in enumerate(NAMES)}
        self._used[key] = self._kept[key]
        return self._used[key]

    def _drawn(self, runs: list[Predictions]) -> np.ndarray:
        key = _digest(runs)
        if key not in self._values:
            drawn = drawn_metrics(records.TASK, runs, subjects_of(runs[0]), draws=DRAWS)
            self._values[key] = drawn.mean(axis=1)
        return self._values[key]


def _digest(runs: Sequence[Predictions]) -> str:
    return digest_of([part for run in runs for part in (run.logits, run.labels, run.subjects.tolist())])
