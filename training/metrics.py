"""Metrics of stage 3 over a whole set, by scikit-learn and SciPy, and the rule that selects an epoch.

Paper, section 3.3. Two classes: the positive class's probability against 0.5; more: argmax. Nothing is tuned on the
evaluated set. A metric that is undefined (if there is only one class, say) is NaN, never an invented score.
"""

import math
import warnings
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


def binary_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """logits: (n,) or (n, 1); labels: (n,) of 0 and 1 -> accuracy, balanced_accuracy, pr_auc, roc_auc."""
    logits = logits.reshape(len(labels))
    predicted = (expit(logits) >= 0.5).astype(int)
    both = len(np.unique(labels)) == 2
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "balanced_accuracy": _balanced_accuracy(labels, predicted),
        "pr_auc": float(sk.average_precision_score(labels, logits)) if both else math.nan,
        "roc_auc": float(sk.roc_auc_score(labels, logits)) if both else math.nan,
    }


def multiclass_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """logits: (n, classes); labels: (n,) -> accuracy, balanced_accuracy, cohen_kappa, f1_weighted."""
    predicted = logits.argmax(axis=1)
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "balanced_accuracy": _balanced_accuracy(labels, predicted),
        "cohen_kappa": _quiet(sk.cohen_kappa_score, labels, predicted),
        "f1_weighted": _quiet(sk.f1_score, labels, predicted, average="weighted", zero_division=0),
    }


def regression_metrics(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """outputs, targets: (n, outputs) -> pearson, r2 and rmse, each the mean over outputs."""
    outputs, targets = outputs.reshape(len(targets), -1), targets.reshape(len(targets), -1)
    correlations = [_quiet_pearson(outputs[:, i], targets[:, i]) for i in range(targets.shape[1])]
    return {
        "pearson": float(np.mean(correlations)),
        "r2": _r2(outputs, targets),
        "rmse": float(np.mean(np.sqrt(np.mean((outputs - targets) ** 2, axis=0)))),
    }


def compute(task: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of a task (a key of METRICS) from the logits and labels of every sample of a set."""
    functions = {"binary": binary_metrics, "multiclass": multiclass_metrics, "regression": regression_metrics}
    return functions[task](np.asarray(logits, dtype=np.float64), np.asarray(labels))


class BestEpoch:
    """Remembers the epoch that the validation set selects (without one, the last epoch), and when to stop."""

    def __init__(self, name: str, task: str, *, patience: int | None = None) -> None:
        """name: a metric of the task; patience: epochs in a row without a better value after which to stop.

        Raises UsageError for a metric that the task does not have.
        """
        if name not in METRICS[task]:
            raise UsageError(f"--select_by {name}: for {task} tasks allowed are {', '.join(METRICS[task])}")
        self.name, self.patience = name, patience
        self.waited = 0  # epochs in a row without a better value
        self.epoch: int | None = None
        self.stats: dict[str, float] = {}

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
        return self.patience is not None and self.waited >= self.patience

    def update(self, epoch: int, stats: dict[str, float]) -> bool:
        """Return whether this epoch is now selected. Ties keep the earlier epoch; NaN never replaces a number."""
        key = f"val_{self.name}"
        value, best = stats.get(key), self.stats.get(key, math.nan)
        if self.epoch is None or value is None:
            better = True
        elif math.isnan(value):
            better = False
        else:
            better = math.isnan(best) or (value < best if self.name in LOWER_IS_BETTER else value > best)
        self.waited = 0 if better else self.waited + 1
        if better:
            self.epoch, self.stats = epoch, dict(stats)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return what exact resumption needs."""
        return {"epoch": self.epoch, "stats": self.stats, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.epoch, self.stats, self.waited = state["epoch"], dict(state["stats"]), state["waited"]


def _r2(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean over outputs; NaN if targets do not vary, where scikit-learn's default would be 0 or 1."""
    if len(targets) < 2:
        return math.nan
    value = _quiet(sk.r2_score, targets, outputs, force_finite=False)
    return value if math.isfinite(value) else math.nan


def _balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return _quiet(sk.balanced_accuracy_score, labels, predicted)


def _quiet(function, *arguments, **options) -> float:  # type: ignore[no-untyped-def]  # scikit-learn's own signatures
    """Call a metric whose warnings (a class without samples, say) the numbers already show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(function(*arguments, **options))


def _quiet_pearson(output: np.ndarray, target: np.ndarray) -> float:
    return _quiet(lambda a, b: pearsonr(a, b).statistic, output, target) if len(output) > 1 else math.nan
