"""Pictures of `run_inference.py`: predictions over time, spectra, features in the plane. PNG, memory of fixed size."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sklearn.manifold import TSNE

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first: there may be no display

from errors import InputError, UsageError
from files import check_file, written_aside
from inference.output import ROWS, Entry
from inference.recordings import Windows
from layers import PATCH_SAMPLES

COLUMNS = 1500  # of a trace: each shows the least and the largest value of its samples
POINTS = 3000  # windows in a t-SNE picture, drawn by chance if there are more
LONGEST = 100  # bytes of a recording's name in the name of its picture
EXAMPLES = 3  # electrodes whose spectra are drawn
INK, STRONG, GRID = "#1f2d3d", "#c0392b", "#e6ebf0"

matplotlib.rcParams["text.parse_math"] = False  # names may hold dollars


def check_plot(path: Path) -> None:
    """Raise UsageError if a picture cannot be written there."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: the name must end with .png")
    check_file(path, "--plot")


def path_of(path: Path, name: str) -> Path:
    """Path of one recording's picture among several."""
    if len(name.encode()) > LONGEST:
        name = f"{name[: LONGEST // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return path.with_name(f"{path.stem}-{name}.png")


def _save(figure: Any, path: Path) -> None:
    with written_aside(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


# The signal and its predictions


def timeline(path: Path, windows: Windows, entry: Entry, model: Any) -> None:
    """Draw the signal, electrodes below each other, and below them the prediction of each window."""
    starts = windows.starts
    if windows.labels is not None:  # windows of a labelled split are of many recordings: side by side
        starts = np.arange(len(windows)) * windows.samples / PATCH_SAMPLES
    seconds = starts[-1] + windows.samples / PATCH_SAMPLES
    height = 2.4 + 0.16 * len(windows.electrodes)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(12, height + 2.4), sharex=True, layout="constrained", height_ratios=[height, 2.4]
    )
    _draw_signal(upper, windows, starts, seconds)
    _draw_predictions(lower, starts, windows.samples / PATCH_SAMPLES, entry.arrays["probabilities"][:], model)
    lower.set(xlabel="time, s", xlim=(0, seconds))
    _save(figure, path)


def _extremes(windows: Windows, starts: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value in each column of the picture, (N, columns) each, NaN where no window is."""
    columns = min(COLUMNS, round(seconds * PATCH_SAMPLES))
    low = np.full((len(windows.electrodes), columns), np.nan)
    high = low.copy()
    for number, start in enumerate(starts):
        eeg = windows.read(number)
        places = ((start + np.arange(windows.samples) / PATCH_SAMPLES) / seconds * columns).astype(int)
        firsts = np.flatnonzero(np.diff(places, prepend=-1))
        at = np.minimum(places[firsts], columns - 1)
        low[:, at] = np.fmin(low[:, at], np.minimum.reduceat(eeg, firsts, axis=1))
        high[:, at] = np.fmax(high[:, at], np.maximum.reduceat(eeg, firsts, axis=1))
    return low, high


def _draw_signal(axis: Any, windows: Windows, starts: np.ndarray, seconds: float) -> None:
    low, high = _extremes(windows, starts, seconds)
    middle = np.nanmedian((low + high) / 2, axis=1, keepdims=True)
    spacing = 2.2 * (float(np.nanpercentile(np.abs(np.stack([low, high]) - middle), 98)) or 1.0)
    offsets = -spacing * np.arange(len(low))[:, None]
    both = np.stack([low - middle, high - middle], axis=2).reshape(len(low), -1)  # (N, 2 x columns)
    times = np.repeat((np.arange(low.shape[1]) + 0.5) / low.shape[1] * seconds, 2)
    axis.plot(times, (np.clip(both, -1.5 * spacing, 1.5 * spacing) + offsets).T, color=INK, linewidth=0.4)
    axis.set_yticks(offsets[:, 0], windows.electrodes, fontsize=7)
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(offsets[-1, 0] - 1.5 * spacing, 1.5 * spacing))
    title = f"{windows.name}: {len(low)} electrodes, {spacing:.0f} uV between their lines"
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _draw_predictions(axis: Any, starts: np.ndarray, width: float, predictions: np.ndarray, model: Any) -> None:
    """predictions: (W, classes); of two classes only the second is drawn."""
    regression = model.description.task == "regression"
    shown = range(1, 2) if len(model.classes) == 2 and not regression else range(len(model.classes))
    for number in shown:
        color = STRONG if len(shown) == 1 else plt.get_cmap("tab10")(number % 10)
        label = f"{model.classes[number]}, mean {predictions[:, number].mean():.3f}"
        axis.hlines(predictions[:, number], starts, starts + width, color=color, linewidth=2.5, label=label)
    axis.legend(fontsize=8, loc="upper right", framealpha=0.9)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_ylabel("value" if regression else "probability")
    if not regression:
        axis.set_ylim(-0.04, 1.04)
    axis.spines[["top", "right"]].set_visible(False)


# Spectra


def spectra(path: Path, windows: Windows, entry: Entry, model: Any) -> None:
    """Draw the true and predicted spectra of some electrodes, in the first second of the middle window."""
    middle = len(windows) // 2
    arrays = {name: array[middle] for name, array in entry.arrays.items()}
    electrodes = np.unique(np.linspace(0, len(windows.electrodes) - 1, EXAMPLES).astype(int))
    rows = len(electrodes)
    figure, axes = plt.subplots(
        rows, 2, figsize=(12, 2.3 * rows + 0.8), squeeze=False, layout="constrained", sharex=True
    )
    frequencies = np.arange(PATCH_SAMPLES // 2 + 1)
    for row, electrode in zip(axes, electrodes, strict=True):
        for axis, name in zip(row, ("amplitude", "phase"), strict=True):
            true, predicted = arrays[name][electrode, 0], arrays[f"predicted_{name}"][electrode, 0]
            axis.plot(frequencies, true[frequencies], color=INK, linewidth=1, label="signal")
            axis.plot(frequencies, predicted[frequencies], color=STRONG, linewidth=1.6, label="from the code")
            error, code = float(np.mean((true - predicted) ** 2)), int(arrays["codes"][electrode, 0])
            title = f"{windows.electrodes[electrode]}, {name}, code {code}: mean squared error {error:.2f}"
            axis.set_title(title, loc="left", fontsize=9, color=INK)
            axis.grid(color=GRID, linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("z-score")
    axes[0, 0].legend(fontsize=8, frameon=False)
    for axis in axes[-1]:
        axis.set(xlabel="frequency, Hz", xlim=(0, PATCH_SAMPLES // 2))
    figure.suptitle(f"{windows.name}, the second from {windows.starts[middle]:g} s on", fontsize=10)
    _save(figure, path)


# Features


def tsne(path: Path, entries: Sequence[Entry]) -> None:
    """Draw the windows of all recordings in the plane, by t-SNE of their mean features.

    Raises InputError for fewer than three windows.
    """
    points = [point for entry in entries for point in _points(entry)]
    if len(points) < 3:
        raise InputError(f"--plot {path}: {len(points)} window(s) are too few for t-SNE; leave --plot out")
    chosen = np.sort(np.random.default_rng(0).permutation(len(points))[:POINTS])
    features = np.stack([points[i][0] for i in chosen])
    groups = np.array([points[i][1] for i in chosen])
    place = TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0).fit_transform(features)
    figure, axis = plt.subplots(figsize=(8, 7), layout="constrained")
    names = np.unique(groups)
    for number, name in enumerate(names):
        mine = groups == name
        color = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")(number % 20)
        x, y = place[mine].T
        axis.scatter(x, y, s=14, color=color, alpha=0.75, linewidth=0, label=f"{name} ({mine.sum()})")
    count = f"{len(features)}" if len(features) == len(points) else f"{len(features)} of {len(points)}"
    what = "label" if any(_has_classes(entry) for entry in entries) else "recording"
    axis.set_title(f"t-SNE of the features of {count} windows, by {what}", loc="left", fontsize=10)
    axis.set(xticks=[], yticks=[])
    if len(names) <= 20:
        axis.legend(fontsize=8, framealpha=0.9)
    _save(figure, path)


def _has_classes(entry: Entry) -> bool:
    return "label" in entry.arrays and len(entry.arrays["label"].shape) == 1


def _points(entry: Entry) -> list[tuple[np.ndarray, str]]:
    """Mean features (D,) and class or recording of each window."""
    array = entry.arrays["features"]
    pieces = (array[first : first + ROWS] for first in range(0, len(array), ROWS))
    means = [row for piece in pieces for row in piece.reshape(len(piece), -1, piece.shape[-1]).mean(1)]
    if _has_classes(entry):
        groups = [entry.attributes["classes"][int(label)] for label in entry.arrays["label"][:]]
    else:
        groups = [str(name) for name in entry.arrays["recording"][:]] if "recording" in entry.arrays else []
    return list(zip(means, groups or [entry.name] * len(array), strict=True))
