"""Figures of the page of results. Each is narrow, with large type, so that it can be read on a telephone."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from sklearn import metrics as sk

from results.read import Predictions, RunResult
from results.subjects import Units, predicted_classes, probabilities

SIZE = (5.0, 4.2)  # inches
DPI = 160
STYLE: Any = {
    "font.size": 12,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "text.parse_math": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.5,
}
NAMED_RUNS = 6  # in a legend; more would cover the curves
ANNOTATED = 12  # classes of a confusion matrix with numbers in it, and of curves with a legend
POINTS = 3000  # of a scatter plot
LONGEST_NAME = 14  # letters along an axis, or of several names beside each other


def blank(*, size: tuple[float, float] = SIZE) -> tuple[Figure, Any]:
    """A figure with one pair of axes."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        return figure, figure.add_subplot()


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name as there is room for; with a blank before an underscore, at which matplotlib would leave it out."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= longest else f"{name[: longest - 1]}\u2026"


def colour(number: int) -> Any:
    """One of ten."""
    return colormaps["tab10"](number % 10)


def curves(runs: Sequence[RunResult], lines: dict[str, tuple[str, str]], title: str, *, mark: str = "") -> Figure:
    """Numbers of log.txt by epoch. lines: name -> what the legend says, line style; mark: name at the chosen epoch."""
    with rc_context(STYLE):
        figure, axes = blank()
        for number, run in enumerate(runs):
            for name, (_, style) in lines.items():
                points = [(line["epoch"], line[name]) for line in run.lines if name in line]
                if points:
                    marker = "." if len(points) < 30 else ""
                    axes.plot(*zip(*points, strict=True), style, color=colour(number), marker=marker)
            if run.best is not None and run.best.epoch is not None and mark in run.best.stats:
                axes.plot(run.best.epoch, run.best.stats[mark], "o", color=colour(number), ms=9, mfc="none", mew=2)
        for text, style in lines.values():
            axes.plot([], [], style, color="0.3", label=text)
        if 1 < len(runs) <= NAMED_RUNS:
            for number, run in enumerate(runs):
                axes.plot([], [], "-", color=colour(number), label=short(run.label))
        if mark:
            axes.plot([], [], "o", color="0.3", mfc="none", mew=2, label="selected")
        axes.set(xlabel="epoch", ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def confusion(task: str, runs: Sequence[Predictions], classes: Sequence[str]) -> Figure:
    """Share of each class's windows by what they were taken for, mean over runs."""
    every = np.arange(len(classes))
    shares = []
    for run in runs:
        counts = sk.confusion_matrix(run.labels, predicted_classes(task, run.logits), labels=every)
        shares.append(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    mean = np.mean(shares, axis=0)
    with rc_context(STYLE):
        figure, axes = blank(size=(5.0, 4.5))
        axes.grid(False)
        image = axes.imshow(mean, vmin=0, vmax=1, cmap="Blues")
        names = [short(name) for name in classes]
        tilted = len(names) > 3 or max(map(len, names)) > 9
        axes.set_xticks(every, names, rotation=45 if tilted else 0, ha="right" if tilted else "center")
        axes.set_yticks(every, names)
        axes.set(xlabel="taken for", ylabel="is")
        for row, column in np.ndindex(mean.shape) if len(classes) <= ANNOTATED else ():
            dark = mean[row, column] > 0.5
            size = 12 if len(classes) <= 6 else 8
            text = f"{mean[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", color="w" if dark else "k", size=size)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def class_curves(task: str, runs: Sequence[Predictions], classes: Sequence[str], *, kind: str) -> Figure:
    """ROC (kind `roc`) or precision-recall (`pr`) curves: of class 1, or of each class against the others."""
    with rc_context(STYLE):
        figure, axes = blank()
        shown = [1] if task == "binary" else list(range(len(classes)))
        for number, one in enumerate(shown):
            areas = []
            for run in runs:
                scores = probabilities(task, run.logits)
                scores = scores if task == "binary" else scores[:, one]
                truth = run.labels == one
                if truth.all() or not truth.any():
                    continue
                if kind == "roc":
                    x, y, _ = sk.roc_curve(truth, scores)
                    areas.append(sk.roc_auc_score(truth, scores))
                else:
                    y, x, _ = sk.precision_recall_curve(truth, scores)
                    areas.append(sk.average_precision_score(truth, scores))
                step = {} if kind == "roc" else {"drawstyle": "steps-post"}
                axes.plot(x, y, color=colour(number), alpha=1 if len(runs) == 1 else 0.6, **step)
            area = f"{np.mean(areas):.3f}" if areas else "not defined"
            axes.plot([], [], color=colour(number), label=f"{short(classes[one], 30)}: {area}")
        if kind == "roc":
            axes.plot([0, 1], [0, 1], "--", color="0.6", lw=1)
            axes.set(xlabel="false positive rate", ylabel="true positive rate")
        else:
            axes.set(xlabel="recall", ylabel="precision")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        title = "area" if kind == "roc" else "average precision"
        if len(classes) <= ANNOTATED:
            columns = 1 if max(map(len, classes)) > LONGEST_NAME else 2
            figure.legend(loc="outside lower center", title=title, ncols=columns)
    return figure


def scatter(runs: Sequence[RunResult], found: Sequence[Predictions], output: int, name: str) -> Figure:
    """Predicted against true values of one output."""
    with rc_context(STYLE):
        figure, axes = blank()
        for number, (run, one) in enumerate(zip(runs, found, strict=True)):
            truth, predicted = one.labels[:, output], one.logits[:, output]
            chosen = np.random.default_rng(0).permutation(len(truth))[:POINTS]
            label = short(run.label) if 1 < len(runs) <= NAMED_RUNS else None
            axes.plot(truth[chosen], predicted[chosen], ".", color=colour(number), alpha=0.5, ms=5, label=label)
        ends = [min(one.labels[:, output].min() for one in found), max(one.labels[:, output].max() for one in found)]
        axes.plot(ends, ends, "--", color="0.4", lw=1)
        axes.set(xlabel=f"{short(name, 40)}, true", ylabel="predicted")
        if 1 < len(runs) <= NAMED_RUNS:
            figure.legend(loc="outside lower center", ncols=3)
    return figure


def unit_figure(task: str, rows: Sequence[dict[str, Any]], units: Units) -> Figure:
    """Each unit's share of right windows, or its error, from the worst to the best."""
    key, title = ("rmse", "RMSE") if task == "regression" else ("right", "share of windows right")
    values = sorted((row[key] for row in rows if not math.isnan(row[key])), reverse=key == "rmse")
    with rc_context(STYLE):
        figure, axes = blank()
        axes.plot(np.arange(1, len(values) + 1), values, "o", ms=5 if len(values) < 60 else 3, color=colour(0))
        if values:
            axes.axhline(float(np.median(values)), ls="--", color="0.4", lw=1, label=f"median {np.median(values):.3f}")
            axes.legend()
        axes.set(xlabel=f"{units.kind}s, worst first", ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if key == "right":
            axes.set_ylim(-0.03, 1.03)
    return figure
