"""Metrics of stage 3 over a whole set, by scikit-learn and SciPy, and the rule that selects an epoch.

Paper, section 3.3. Two classes: the positive class's probability against 0.5; more: argmax. Nothing is tuned on the
evaluated set. A metric that is undefined (if there is only one class, say) is NaN, never an invented score.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import pearsonr
from sklearn import metrics as sk

from errors import UsageError

METRICS = {
    "binary": ("accuracy", "balanced_accuracy", "pr_auc", "roc_auc"),
    "multiclass": ("accuracy", "balanced_accuracy", "cohen_kappa", "f1_weighted"),
    "regression": ("pearson", "r2", "rmse"),
}
LOWER_IS_BETTER = ("rmse",)
SELECT_BY = {"binary": "roc_auc", "multiclass": "cohen_kappa", "regression": "r2"}  # the paper's rule


def _classification(task: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """logits: (n,) or (n, 1) for two classes, else (n, classes); labels: (n,)."""
    if task == "binary":
        logits = logits.reshape(len(labels))
        predicted = (expit(logits) >= 0.5).astype(int)
        both = len(np.unique(labels)) == 2
        others = {
            "pr_auc": sk.average_precision_score(labels, logits) if both else math.nan,
            "roc_auc": sk.roc_auc_score(labels, logits) if both else math.nan,
        }
    else:
        predicted = logits.argmax(axis=1)
        others = {
            "cohen_kappa": sk.cohen_kappa_score(labels, predicted),
            "f1_weighted": sk.f1_score(labels, predicted, average="weighted", zero_division=0),
        }
    accuracy = sk.accuracy_score(labels, predicted)
    return {"accuracy": accuracy, "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted), **others}


def _regression(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """outputs, targets: (n, outputs); each metric is the mean over outputs."""
    outputs, targets = outputs.reshape(len(targets), -1), targets.reshape(len(targets), -1)
    pairs = zip(outputs.T, targets.T, strict=True)
    r2 = sk.r2_score(targets, outputs, force_finite=False)
    return {
        "pearson": np.mean([pearsonr(*pair).statistic if len(targets) > 1 else math.nan for pair in pairs]),
        "r2": r2 if math.isfinite(r2) else math.nan,  # infinite where targets do not vary
        "rmse": np.mean(np.sqrt(np.mean((outputs - targets) ** 2, axis=0))),
    }


def compute(task: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the METRICS of a task from the logits and labels of every sample of a set."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class without samples, say: the numbers show it
        values = _regression(logits, labels) if task == "regression" else _classification(task, logits, labels)
    return {name: float(value) for name, value in values.items()}


class BestEpoch:
    """Remembers the epoch that the validation set selects (without one, the last epoch), and when to stop."""

    def __init__(self, name: str, task: str | None, *, patience: int | None = None) -> None:
        """name: a metric of the task; patience: epochs in a row without a better value after which to stop (0: never).

        task=None: of several data sets, whose `mean_score` has the name. Raises UsageError for a metric that the task
        does not have.
        """
        if task is not None and name not in METRICS[task]:
            raise UsageError(f"--select_by {name}: for {task} tasks allowed are {', '.join(METRICS[task])}")
        self.name, self.task, self.patience = name, task, patience
        self.waited = 0  # epochs in a row without a better value
        self.epoch: int | None = None
        self.stats: dict[str, float] = {}
        self.last: dict[str, float] = {}  # metrics of the last epoch
        self.logits: dict[str, Any] = {}  # of the selected epoch, by set, as the evaluation leaves them here

    @property
    def rule(self) -> str:
        """Say in words how the epoch is selected."""
        value = self.stats.get(f"val_{self.name}")
        if value is None:
            return "the last one; there is no validation set"
        if math.isnan(value):
            return f"the first one; validation {self.name} is undefined"
        return f"validation {self.name}"

    @property
    def stopped(self) -> bool:
        """True when patience is at its end."""
        return self.patience is not None and 0 < self.patience <= self.waited

    def update(self, epoch: int, stats: dict[str, float]) -> bool:
        """Return whether this epoch is now selected. Ties keep the earlier epoch; NaN never replaces a number."""
        key = f"val_{self.name}"
        value, best = stats.get(key), self.stats.get(key, math.nan)
        if self.epoch is None or value is None or (math.isnan(best) and not math.isnan(value)):
            better = True
        else:
            better = value < best if self.name in LOWER_IS_BETTER else value > best  # never if one of them is NaN
        self.waited = 0 if better else self.waited + 1
        self.last = dict(stats)
        if better:
            self.epoch, self.stats = epoch, dict(stats)
        return better

    @property
    def score(self) -> float:
        """The last epoch's value, higher is better: of an error its negative, of other metrics at least 0, a guess."""
        value = self.last.get(f"val_{self.name}", math.nan)
        return -value if self.name in LOWER_IS_BETTER else max(value, 0.0)  # NaN stays NaN

    def state_dict(self) -> dict[str, Any]:
        """Return what exact resumption needs."""
        return {name: getattr(self, name) for name in ("epoch", "stats", "waited", "last", "logits")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        vars(self).update(state)


def mean_score(tasks: Sequence[BestEpoch]) -> dict[str, float]:
    """Return `val_score`, the mean over data sets of their `score` in the last epoch; {} if none has a validation set.

    A metric that is undefined is left out of the mean.
    """
    scores = np.array([task.score for task in tasks if f"val_{task.name}" in task.last])
    known = scores[~np.isnan(scores)]
    return {"val_score": float(known.mean()) if len(known) else math.nan} if len(scores) else {}
