"""The page of results, report.html: one file with tables and figures that loads nothing from the network.

It also measures recordings and subjects (their score is the mean probability of their windows) and draws bootstrap
intervals over whole subjects, because the windows of a subject are not independent samples.
"""

import base64
import html
import io
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.special import expit, logit, softmax
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay, confusion_matrix
from tqdm import tqdm

from errors import printable
from files import written_aside
from results.read import Predictions, RunResult
from results.tables import Grid, Group, Table, grid, grids, mean_and_std, number, spread
from training import metrics

LEVEL = 95  # percent of an interval
ALMOST_SURE = 1e-15  # a probability of 0 or 1 has no finite logit
LONGEST_NAME = 24  # characters in a figure
STYLE: Any = {"axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 9, "text.parse_math": False}
STYLES = {"train": "-", "val": "--", "test": ":"}  # of lines; stage 1 calls its validation set test
CURVES = {  # numbers of log.txt that are drawn by epoch
    "tokenizer": ("loss", "rec_loss", "rec_angle_loss", "quant_loss", "used_code", "perplexity", "top10_share"),
    "pretraining": ("loss", "mlm_acc", "mlm_acc_sym", "code_entropy"),
    "classifier": ("loss",),
}
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font-family: sans-serif; max-width: 1200px; margin: 0 auto; padding: 0 0.6rem; overflow-wrap: anywhere; }}
figure {{ display: inline-block; margin: 0.5rem 0.5rem 0.5rem 0; width: 100%; max-width: 560px; vertical-align: top; }}
img {{ width: 100%; }} figcaption, p {{ font-size: 0.85rem; color: #555; margin: 0 0 0.4rem; }}
.scroll {{ overflow: auto; margin-bottom: 0.7rem; }} table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ padding: 0.15rem 0.7rem 0.15rem 0; text-align: right; white-space: nowrap; font-weight: normal; }}
th:first-child {{ text-align: left; }} thead th {{ border-bottom: 1px solid #999; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


Units = Sequence[np.ndarray]  # the samples of each recording, or of each subject

# Recordings and subjects


def places_of(names: np.ndarray) -> list[np.ndarray]:
    """Return the samples of each recording or subject. names: (samples,), of what each belongs to."""
    return [*pd.Series(names).groupby(names).indices.values()]


def subjects_of(preds: Predictions) -> list[np.ndarray]:
    """Return the samples of each subject, or of each recording if a subject is unknown."""
    return places_of(preds.subjects if _names_subjects(preds) else preds.recordings)


def _names_subjects(preds: Predictions) -> bool:
    return all(name.strip() for name in preds.subjects)


def predicted_classes(task: str, logits: np.ndarray) -> np.ndarray:
    """Return the class that each window is taken for, (n,). logits: (n, outputs)."""
    return (logits[:, 0] >= 0).astype(int) if task == "binary" else logits.argmax(axis=1)


def probabilities(task: str, logits: np.ndarray) -> np.ndarray:
    """logits: (n, outputs) -> (n,) of class 1 for two classes, (n, classes) for more."""
    return expit(logits[:, 0]) if task == "binary" else softmax(logits, axis=1)


def unit_metrics(task: str, preds: Predictions, units: Units) -> dict[str, float] | None:
    """Measure recordings or subjects by the mean probability of their windows, whose places `units` holds.

    None if one has windows of several classes.
    """
    if task == "regression" or any(len(np.unique(preds.labels[places])) > 1 for places in units):
        return None
    scores = probabilities(task, preds.logits)
    means = np.stack([scores[places].mean(axis=0) for places in units])
    if task == "binary":  # metrics want logits; these keep order and threshold
        means = logit(np.clip(means, ALMOST_SURE, 1 - ALMOST_SURE))
    return metrics.compute(task, means, np.array([preds.labels[places[0]] for places in units]))


def class_names(task: str, preds: Predictions) -> list[str]:
    """Return names of the classes, or of a regression's outputs, that fit a figure; numbers if the file says none."""
    names = preds.classes or tuple(map(str, range(2 if task == "binary" else preds.logits.shape[1])))
    # Legends leave out what begins with an underscore.
    return [name.lstrip("_")[:LONGEST_NAME] for name in names]


def drawn_metrics(task: str, runs: Sequence[Predictions], units: Units, *, draws: int, seed: int = 0) -> np.ndarray:
    """Measure all runs on draws of whole units: (draws, runs, metrics). NaN: not defined.

    The draws depend only on the seed and the number of units, so calls for other runs can be compared draw by draw.
    In a draw without one of the classes no metric is defined: a mean over fewer classes would be of another task.
    """
    generator = np.random.default_rng(seed)
    labels = runs[0].labels
    classes = 0 if task == "regression" else len(np.unique(labels))
    values = np.full((draws, len(runs), len(metrics.METRICS[task])), math.nan)
    for draw in tqdm(range(draws), desc="drawing subjects", disable=not sys.stderr.isatty(), leave=False):
        places = np.concatenate([units[i] for i in generator.integers(len(units), size=len(units))])
        if len(np.unique(labels[places])) >= classes:
            for i, run in enumerate(runs):
                values[draw, i] = list(metrics.compute(task, run.logits[places], run.labels[places]).values())
    return values


def interval(values: np.ndarray) -> np.ndarray:
    """Return the lower and upper end over the draws in which a metric is defined, (draws, ...) -> (2, ...)."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of a metric that no draw defines: NaN
        return np.nanpercentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)


# Figures


def curves(runs: Sequence[RunResult], name: str, splits: Sequence[str]) -> Figure:
    """Draw a number of log.txt by epoch, a colour for each run. A circle marks the epoch that counts."""
    figure, axes = _blank()
    for split in splits:
        axes.plot([], [], STYLES[split], color="0.3", label=split)
    for i, run in enumerate(runs):
        axes.plot([], [], color=f"C{i % 10}", label=run.label)
        for split in splits:
            values = run.log.get(f"{split}_{name}", pd.Series()).dropna()
            axes.plot(values, STYLES[split], color=f"C{i % 10}", marker=".")
        if not math.isnan(chosen := run.value(f"val_{name}")):
            axes.plot(run.epoch, chosen, "o", color=f"C{i % 10}", ms=9, mfc="none", mew=2)
    axes.set(xlabel="epoch", ylabel=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def confusion(task: str, runs: Sequence[Predictions]) -> Figure:
    """Draw the share of each class's windows by predicted class, mean over runs."""
    names = class_names(task, runs[0])
    shares = [
        confusion_matrix(run.labels, predicted_classes(task, run.logits), labels=range(len(names)), normalize="true")
        for run in runs
    ]
    figure, axes = _blank()
    axes.grid(False)
    shown = ConfusionMatrixDisplay(np.mean(shares, axis=0), display_labels=names)
    limits = {"vmin": 0, "vmax": 1}
    shown.plot(ax=axes, cmap="Blues", colorbar=False, xticks_rotation=45, values_format=".2f", im_kw=limits)
    axes.set(xlabel="predicted", ylabel="is")
    return figure


def class_curves(task: str, runs: Sequence[Predictions], display: Any, area: str) -> Figure:
    """Draw the curve of class 1, or of each class against the others.

    display: scikit-learn's of the curve; area: its attribute with the area below it, whose mean over runs is shown.
    """
    figure, axes = _blank()
    names = class_names(task, runs[0])
    for i in [1] if task == "binary" else range(len(names)):
        areas = []
        for run in runs:
            scores, truth = probabilities(task, run.logits), run.labels == i
            if truth.any() and not truth.all():
                shown = display.from_predictions(truth, scores if task == "binary" else scores[:, i], ax=axes)
                areas.append(getattr(shown, area))
                axes.lines[-1].set(color=f"C{i % 10}", label="_hidden")
        mean = f"{np.mean(areas):.3f}" if areas else "not defined"
        axes.plot([], [], color=f"C{i % 10}", label=f"{names[i]}: {mean}")
    axes.set(xlabel=axes.get_xlabel().partition(" (")[0], ylabel=axes.get_ylabel().partition(" (")[0])
    axes.legend_ = None  # each display adds one
    figure.legend(loc="outside lower center", title=area, ncols=2)
    return figure


def scatter(preds: Sequence[Predictions], output: int, name: str) -> Figure:
    """Draw predicted against true values of one output, a colour for each run."""
    figure, axes = _blank()
    for one in preds:
        axes.plot(one.labels[:, output], one.logits[:, output], ".", alpha=0.5, ms=5)
    truth = preds[0].labels[:, output]
    axes.plot([truth.min(), truth.max()], [truth.min(), truth.max()], "--", color="0.4", lw=1)
    axes.set(xlabel=f"{name}, true", ylabel="predicted")
    return figure


def _blank() -> tuple[Figure, Any]:
    """Make a figure with one pair of axes, readable on a telephone."""
    figure = Figure(figsize=(5.0, 4.2), dpi=160, layout="constrained")
    return figure, figure.add_subplot()


# The page


def as_table(cells: pd.DataFrame, below: Sequence[str]) -> str:
    """Write a table that scrolls inside itself, and the lines below it."""
    table = cells.rename(index=printable).to_html(border=0)
    return f'<div class="scroll">{table}</div>' + "".join(f"<p>{_shown(line)}</p>" for line in below)


def as_figure(figure: Figure, caption: str) -> str:
    """Write a figure into the page itself."""
    figure.savefig(buffer := io.BytesIO(), format="png")
    image = f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    return f"<figure>{image}<figcaption>{_shown(caption)}</figcaption></figure>"


def _shown(text: str) -> str:
    return html.escape(printable(text))


def write(path: Path, tables: Sequence[Table], notes: Sequence[str], *, draws: int = 1000) -> None:
    """Write the page of these tables, whole or not at all. draws: of the bootstrap."""
    title = tables[0].title if len(tables) == 1 else "Results"
    parts = []
    with rc_context(STYLE):
        for table in tables:
            parts.append(f"<h2>{_shown(table.title)}</h2>")
            parts += [as_table(*one) for one in grids(table)] or ["<p>No run was evaluated.</p>"]
            for group in table.groups:
                parts += [f"<h3>{_shown(group.remark)}</h3>"] if group.remark else []
                columns = {column for run in group.runs for column in run.log}
                for name in (*CURVES[table.stage], *group.runs[0].metrics * (table.task is not None)):
                    if splits := [split for split in STYLES if f"{split}_{name}" in columns]:
                        circles = f" Circles: the epoch that counts, by {table.rule}." if table.rule else ""
                        caption = f"{name} of each run by epoch.{circles}"
                        parts.append(as_figure(curves(group.runs, name, splits), caption))
                parts += predictions_of(table.task, table.split, group, draws) if table.task is not None else []
    parts += [f"<p>{_shown(note)}</p>" for note in notes]
    page = PAGE.format(title=_shown(title), body="\n".join(parts))
    with written_aside(path) as part:
        part.write_text(page, encoding="utf-8")


def predictions_of(task: str, split: str, group: Group, draws: int) -> list[str]:
    """Write figures and tables of the predictions of runs that differ only in their seed."""
    runs = [run for run in group.finished or group.runs if split in run.predictions]
    if not runs:
        return []
    preds = [run.predictions[split] for run in runs]
    if task == "regression":
        names = class_names(task, preds[0])
        figures = [(scatter(preds, i, n), f"Predicted {n}, {split} set; dashed: exact.") for i, n in enumerate(names)]
    else:
        shares = f"Share of a class's windows (each row adds up to 1), mean over runs; {split} set."
        figures = [
            (confusion(task, preds), shares),
            (class_curves(task, preds, RocCurveDisplay, "roc_auc"), f"ROC curve of each run; {split} set."),
            (
                class_curves(task, preds, PrecisionRecallDisplay, "average_precision"),
                f"Precision-recall curve of each run; {split} set.",
            ),
        ]
    return [*(as_figure(*one) for one in figures), as_table(*levels_grid(task, preds, draws))]


def levels_grid(task: str, preds: Sequence[Predictions], draws: int) -> Grid:
    """Tabulate metrics over windows, recordings and subjects, and the intervals of those over windows."""
    names, first = metrics.METRICS[task], preds[0]
    units = {"recordings": places_of(first.recordings)}
    units |= {"subjects": places_of(first.subjects)} if _names_subjects(first) else {}
    levels = {f"{len(first.labels)} windows": [metrics.compute(task, one.logits, one.labels) for one in preds]}
    for kind, places in units.items():
        if measured := [values for one in preds if (values := unit_metrics(task, one, places))]:
            levels[f"{len(places)} {kind}"] = measured
    frames = {label: spread(values) for label, values in levels.items()}
    rows = [[label, *(mean_and_std(*frame[name]) for name in names)] for label, frame in frames.items()]
    below = ["The score of a recording or subject is the mean probability of its windows; all must have one class."]
    if len(places) > 1:
        drawn = drawn_metrics(task, preds, places, draws=draws).mean(axis=1)  # (draws, metrics)
        ends = [" to ".join(map(number, pair)) if np.isfinite(pair).all() else "-" for pair in interval(drawn).T]
        rows.append([f"{LEVEL} % interval", *ends])
        used = int(np.isfinite(drawn).all(axis=1).sum())
        below.append(
            f"Percentile interval of the windows' metrics, mean over runs: {used} draws of whole {kind} with "
            f"replacement ({draws - used} more lack a class)."
        )
    return grid("over", names, rows, below)
