"""Pictures of `run_inference.py`: predictions over time, spectra, features in the plane. PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
from sklearn.manifold import TSNE

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first: there may be no display

from errors import InputError
from files import written_aside
from inference.output import recordings_of
from inference.recordings import Windows
from layers import PATCH_SAMPLES

COLUMNS = 1500  # of a trace: each shows the least and the largest value of its samples
POINTS = 3000  # windows in a t-SNE picture, drawn by chance if there are more
EXAMPLES = 3  # electrodes whose spectra are drawn
NAMED = 20  # most names in a legend

matplotlib.rcParams |= {"text.parse_math": False, "figure.constrained_layout.use": True}  # names may hold dollars
matplotlib.rcParams |= {"axes.titlelocation": "left", "axes.titlesize": 9, "legend.fontsize": 8}


def _save(figure: Any, path: Path) -> None:
    with written_aside(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def timeline(path: Path, windows: Windows, group: h5py.Group, model: Any) -> None:
    """Draw the signal, a line for each electrode, and below it the prediction of each window.

    Of two classes only the second is drawn.
    """
    width, starts = windows.samples / PATCH_SAMPLES, windows.starts
    if windows.labels is not None:  # windows of a labelled split are of many recordings: side by side
        starts = np.arange(len(windows)) * width
    height = 2.4 + 0.16 * len(windows.electrodes)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(12, height + 2.4), sharex=True, height_ratios=[height, 2.4])
    _draw_signal(upper, windows, starts)
    predictions, regression = group["probabilities"][:], model.description.task == "regression"
    shown = range(1, 2) if len(model.classes) == 2 and not regression else range(len(model.classes))
    for number in shown:
        label = f"{model.classes[number]}, mean {predictions[:, number].mean():.3f}"
        lower.hlines(predictions[:, number], starts, starts + width, f"C{number % 10}", linewidth=2.5, label=label)
    lower.legend(loc="upper right")
    lower.set(xlabel="time, s", ylabel="value" if regression else "probability", xlim=(0, starts[-1] + width))
    if not regression:
        lower.set_ylim(-0.04, 1.04)
    _save(figure, path)


def _draw_signal(axis: Any, windows: Windows, starts: np.ndarray) -> None:
    """Draw the least and the largest value of every `step` samples, so that a long recording gives few points."""
    step = max(1, len(windows) * windows.samples // COLUMNS)
    firsts = np.arange(0, windows.samples, step)
    times, traces = [], []
    for number, start in enumerate(starts):
        eeg = windows.read(number)
        extremes = [extreme.reduceat(eeg, firsts, axis=1) for extreme in (np.minimum, np.maximum)]
        gap = np.full((len(eeg), 1), np.nan)  # no line from window to window
        traces.append(np.hstack([np.stack(extremes, axis=2).reshape(len(eeg), -1), gap]))
        times.append(start + np.append(np.repeat(firsts, 2), windows.samples) / PATCH_SAMPLES)
    values = np.hstack(traces)
    values = values - np.nanmedian(values, axis=1, keepdims=True)
    spacing = 2.2 * (float(np.nanpercentile(np.abs(values), 98)) or 1.0)
    offsets = -spacing * np.arange(len(values))[:, None]
    lines = np.clip(values, -1.5 * spacing, 1.5 * spacing) + offsets
    axis.plot(np.concatenate(times), lines.T, color="0.2", linewidth=0.4)
    axis.set_yticks(offsets[:, 0], windows.electrodes, fontsize=7)
    axis.set_title(f"{windows.name}: {len(values)} electrodes, {spacing:.0f} uV between their lines")


def spectra(path: Path, windows: Windows, group: h5py.Group, model: Any) -> None:
    """Draw the true and predicted spectra of a few electrodes, in the first second of the middle window."""
    middle = len(windows) // 2
    electrodes = np.unique(np.linspace(0, len(windows.electrodes) - 1, EXAMPLES).astype(int))
    figure, axes = plt.subplots(len(electrodes), 2, figsize=(12, 2.3 * len(electrodes) + 0.8), squeeze=False)
    shown = slice(PATCH_SAMPLES // 2 + 1)  # the other half mirrors it
    for row, electrode in zip(axes, electrodes, strict=True):
        for axis, name in zip(row, ("amplitude", "phase"), strict=True):
            for key, label in ((name, "signal"), (f"predicted_{name}", "from the code")):
                axis.plot(group[key][middle, electrode, 0, shown], linewidth=1.2, label=label)
            error, code = group[f"{name}_error"][middle, electrode, 0], group["codes"][middle, electrode, 0]
            axis.set_title(f"{windows.electrodes[electrode]}, {name}, code {code}: mean squared error {error:.2f}")
            unit = "rad" if name == "phase" and model.module.phase_loss == "sincos" else "z-score"
            axis.set(xlabel="frequency, Hz", ylabel=unit, xlim=(0, PATCH_SAMPLES // 2))
    axes[0, 0].legend()
    figure.suptitle(f"{windows.name}, the second from {windows.starts[middle]:g} s on", fontsize=10)
    _save(figure, path)


def mean_features(groups: Sequence[h5py.Group]) -> tuple[np.ndarray, list[str]]:
    """Mean features (W, D) of the windows of all recordings, and the class or the recording of each window."""
    means, names = list[np.ndarray](), list[str]()
    for group in groups:
        features = group["features"][:]
        means.append(features.reshape(len(features), -1, features.shape[-1]).mean(1))
        is_class = "label" in group and group["label"].ndim == 1
        names += [group.attrs["classes"][label] for label in group["label"][:]] if is_class else recordings_of(group)
    return np.concatenate(means), names


def tsne(path: Path, features: np.ndarray, names: Sequence[str]) -> None:
    """Draw windows in the plane, by t-SNE of their features (W, D), coloured by name.

    Raises InputError for fewer than three windows.
    """
    if len(features) < 3:
        raise InputError(f"--plot {path}: {len(features)} window(s) are too few for t-SNE; leave --plot out")
    chosen = np.sort(np.random.default_rng(0).permutation(len(features))[:POINTS])
    perplexity = min(30, (len(chosen) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features[chosen])
    figure, axis = plt.subplots(figsize=(8, 7))
    owners = np.array(names)[chosen]
    for name in np.unique(owners):
        x, y = places[owners == name].T
        axis.scatter(x, y, s=14, alpha=0.75, label=f"{name} ({len(x)})")
    axis.set_title(f"t-SNE of the features of {len(chosen)} of {len(features)} windows")
    axis.set(xticks=[], yticks=[])
    if len(np.unique(owners)) <= NAMED:
        axis.legend()
    _save(figure, path)
