"""Results by recording and by subject, and bootstrap intervals over subjects, from prediction files.

A subject's (recording's) score is the mean probability of its windows; the metric is then taken over subjects. Windows
of one subject are no independent samples: intervals come from drawing whole subjects.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit, softmax
from tqdm import tqdm

from results.read import Predictions
from training import metrics

LEVEL = 95  # percent of an interval
ALMOST_SURE = 1e-15  # a probability of 0 or 1 has no finite logit


class Units(NamedTuple):
    """Recordings or subjects."""

    kind: str  # `recording` or `subject`
    names: list[str]
    places: list[np.ndarray]  # which samples are of each


class Intervals(NamedTuple):
    """Bootstrap intervals of metrics."""

    mean: dict[str, tuple[float, float]]  # of the mean over runs: lower and upper end
    runs: list[dict[str, tuple[float, float]]]  # of each run
    draws: int  # that were used
    skipped: int  # for lacking a class, say


def units_of(kind: str, names: Sequence[str]) -> Units:
    """Samples by name, in the order of the names."""
    each, owner = np.unique(np.asarray(names), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=len(each)))[:-1]
    return Units(kind, [str(name) for name in each], np.split(order, ends))


def recordings_of(found: Predictions) -> Units:
    """The recordings of a set."""
    return units_of("recording", found.recordings.tolist())


def subjects_of(found: Predictions) -> Units:
    """The subjects of a set; its recordings where a subject is not known."""
    names = found.subjects.tolist()
    return units_of("subject", names) if all(name.strip() for name in names) else recordings_of(found)


def probabilities(task: str, logits: np.ndarray) -> np.ndarray:
    """logits: (n, outputs) -> (n,) of class 1 for two classes, (n, classes) for more."""
    return expit(logits[:, 0]) if task == "binary" else softmax(logits, axis=1)


def predicted_classes(task: str, logits: np.ndarray) -> np.ndarray:
    """logits: (n, outputs) -> the class that each window is taken for, (n,), by the rule of `metrics`."""
    return (logits[:, 0] >= 0).astype(int) if task == "binary" else logits.argmax(axis=1)


def labels_of(found: Predictions, units: Units) -> np.ndarray | None:
    """The class of each unit, (units,); None if one has windows of several classes."""
    if any(len(np.unique(found.labels[places])) > 1 for places in units.places):
        return None
    return np.array([found.labels[places[0]] for places in units.places])


def unit_metrics(task: str, found: Predictions, units: Units) -> dict[str, float] | None:
    """Metrics over units, each with the mean probability of its windows; None where a unit has several classes."""
    labels = None if task == "regression" else labels_of(found, units)
    if labels is None:
        return None
    scores = probabilities(task, found.logits)
    means = np.stack([scores[places].mean(axis=0) for places in units.places])
    if task == "binary":  # metrics take logits, of which these are the same order and threshold
        means = logit(np.clip(means, ALMOST_SURE, 1 - ALMOST_SURE))
    return metrics.compute(task, means, labels)


def unit_rows(task: str, runs: Sequence[Predictions], units: Units) -> list[dict[str, Any]]:
    """What is known of each unit, means over runs, by name: `name`, `windows`, and what the task has.

    For classes `labels`, `right` (share of windows) and, of two, `probability` of class 1; for regression `rmse`,
    `pearson`.
    """
    rows = []
    for name, places in zip(units.names, units.places, strict=True):
        row: dict[str, Any] = {"name": name, "windows": len(places)}
        if task == "regression":
            found = [metrics.regression_metrics(run.logits[places], run.labels[places]) for run in runs]
            row |= {key: float(np.mean([one[key] for one in found])) for key in ("rmse", "pearson")}
        else:
            row["labels"] = sorted({int(label) for label in runs[0].labels[places]})
            right = [predicted_classes(task, run.logits[places]) == run.labels[places] for run in runs]
            row["right"] = float(np.mean(right))
            if task == "binary":
                row["probability"] = float(np.mean([probabilities(task, run.logits[places]) for run in runs]))
        rows.append(row)
    return rows


def drawn_metrics(task: str, runs: Sequence[Predictions], units: Units, *, draws: int, seed: int = 0) -> np.ndarray:
    """All metrics of all runs on draws of whole units, (draws, runs, metrics); NaN where one is not defined.

    The draws depend on seed and number of units alone, so that calls for other runs can be compared draw by draw. In a
    draw without one of the classes no metric is defined: means over those that it has would be of another task.
    """
    generator = np.random.default_rng(seed)
    labels = runs[0].labels
    classes = 0 if task == "regression" else len(np.unique(labels))
    values = []
    for _ in tqdm(range(draws), desc="drawing subjects", disable=not sys.stderr.isatty(), leave=False):
        drawn = generator.integers(len(units.places), size=len(units.places))
        places = np.concatenate([units.places[i] for i in drawn])
        if classes and len(np.unique(labels[places])) < classes:
            values.append([[math.nan] * len(metrics.METRICS[task])] * len(runs))
            continue
        measured = [metrics.compute(task, run.logits[places], run.labels[places]) for run in runs]
        values.append([list(one.values()) for one in measured])
    return np.array(values)


def bootstrap(task: str, runs: Sequence[Predictions], units: Units, *, draws: int, seed: int = 0) -> Intervals:
    """Percentile intervals of all metrics over draws of whole units; all runs are measured on the same draws.

    runs: predictions of the same samples. A draw in which a metric is not defined is left out and counted.
    """
    table = drawn_metrics(task, runs, units, draws=draws, seed=seed)
    defined = np.isfinite(table).all(axis=(1, 2))
    names, table = metrics.METRICS[task], table[defined]
    if not len(table):
        return Intervals({}, [{} for _ in runs], 0, draws)
    tail = (100 - LEVEL) / 2

    def ends(one: np.ndarray) -> dict[str, tuple[float, float]]:
        low, high = np.percentile(one, [tail, 100 - tail], axis=0)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}

    each = [ends(table[:, run]) for run in range(len(runs))]
    return Intervals(ends(table.mean(axis=1)), each, len(table), int((~defined).sum()))
