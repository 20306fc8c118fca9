"""Pictures of `run_inference.py`: predictions over time, spectra, features in the plane. PNG, memory of fixed size."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from sklearn.manifold import TSNE

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first: there may be no display

from errors import InputError, UsageError
from files import check_file, written_aside
from inference.recordings import Windows
from layers import PATCH_SAMPLES

COLUMNS = 1500  # of a trace: each shows the least and the largest value of its samples
POINTS = 3000  # windows in a t-SNE picture, drawn by chance where there are more
LONGEST = 100  # bytes of a recording's name in that of its picture
EXAMPLES = 3  # electrodes whose spectra are drawn
INK, STRONG, GRID = "#1f2d3d", "#c0392b", "#e6ebf0"

matplotlib.rcParams["text.parse_math"] = False  # names may hold dollars

Arrays = Mapping[str, np.ndarray]


def picture(verb: str, path: Path, *, many: bool) -> Any:
    """What draws a verb's picture, fed with `add` and `end`, finished with `finish`. many: of several recordings."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: the name must end with .png")
    check_file(path, "--plot")
    return {"predict": Timeline, "reconstruct": SpectraPicture, "embed": TSNEPicture}[verb](path, many)


class _Picture:
    """One file for each recording, named after it where there are several."""

    def __init__(self, path: Path, many: bool) -> None:
        self.path, self.many = path, many

    def save(self, figure: Any, name: str = "") -> None:
        """Write the file, aside first."""
        if len(name.encode()) > LONGEST:
            name = f"{name[: LONGEST // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        path = self.path.with_name(f"{self.path.stem}-{name}.png") if self.many and name else self.path
        with written_aside(path) as part:
            figure.savefig(part, dpi=110, format="png")
        plt.close(figure)

    def forget(self) -> None:
        """What was added of a recording that failed on the way."""

    def finish(self) -> None:
        """After the last recording."""


class Timeline(_Picture):
    """The signal, electrodes below each other, and below them the prediction of each window."""

    def __init__(self, path: Path, many: bool) -> None:
        """See `picture`."""
        super().__init__(path, many)
        self.forget()

    def forget(self) -> None:
        """See `_Picture`."""
        self.low = self.high = np.empty((0, 0))
        self.predicted: list[np.ndarray] = []

    def add(self, windows: Windows, part: slice, arrays: Arrays) -> None:
        """Take some windows' signals and predictions."""
        starts = _starts(windows)
        seconds = starts[-1] + windows.samples / PATCH_SAMPLES
        if not self.predicted:
            columns = min(COLUMNS, round(seconds * PATCH_SAMPLES))
            self.low = np.full((len(windows.electrodes), columns), np.inf)
            self.high = -self.low
        columns = self.low.shape[1]
        for number, eeg in zip(range(part.start, part.stop), windows.batch(part.start, part.stop), strict=True):
            places = ((starts[number] + np.arange(windows.samples) / PATCH_SAMPLES) / seconds * columns).astype(int)
            firsts = np.flatnonzero(np.diff(places, prepend=-1))
            low, high = np.minimum.reduceat(eeg, firsts, axis=1), np.maximum.reduceat(eeg, firsts, axis=1)
            at = np.minimum(places[firsts], columns - 1)
            self.low[:, at] = np.minimum(self.low[:, at], low)
            self.high[:, at] = np.maximum(self.high[:, at], high)
        self.predicted.append(arrays["probabilities"])

    def end(self, windows: Windows, model: Any) -> None:
        """Draw the recording and forget it."""
        height = 2.4 + 0.16 * len(windows.electrodes)
        figure, (upper, lower) = plt.subplots(
            2,
            1,
            figsize=(12, height + 2.4),
            sharex=True,
            layout="constrained",
            gridspec_kw={"height_ratios": [height, 2.4]},
        )
        seconds = _starts(windows)[-1] + windows.samples / PATCH_SAMPLES
        self._draw_signal(upper, windows, seconds)
        self._draw_prediction(lower, windows, model, np.concatenate(self.predicted))
        lower.set(xlabel="time, s", xlim=(0, seconds))
        self.save(figure, windows.name)
        self.forget()

    def _draw_signal(self, axis: Any, windows: Windows, seconds: float) -> None:
        low, high = self.low, self.high
        seen = np.isfinite(low).all(axis=0)
        low[:, ~seen] = high[:, ~seen] = np.nan  # columns that no window covers
        middle = np.median((low + high)[:, seen] / 2, axis=1, keepdims=True)
        extent = np.percentile(np.abs(np.stack([low, high])[:, :, seen] - middle), 98) or 1.0
        spacing = 2.2 * float(extent)
        offsets = -spacing * np.arange(len(low))[:, None]
        both = np.stack([low - middle, high - middle], axis=2).reshape(len(low), -1)  # (N, 2 x columns)
        times = np.repeat((np.arange(low.shape[1]) + 0.5) / low.shape[1] * seconds, 2)
        axis.plot(times, (np.clip(both, -1.5 * spacing, 1.5 * spacing) + offsets).T, color=INK, linewidth=0.4)
        axis.set_yticks(offsets[:, 0], windows.electrodes, fontsize=7)
        axis.tick_params(axis="y", length=0)
        axis.set(ylim=(offsets[-1, 0] - 1.5 * spacing, 1.5 * spacing))
        axis.set_title(
            f"{windows.name}: {len(low)} electrodes, {spacing:.0f} uV between their lines", loc="left", fontsize=10
        )
        _plain(axis, "top", "right", "left")

    @staticmethod
    def _draw_prediction(axis: Any, windows: Windows, model: Any, predicted: np.ndarray) -> None:
        starts, width = _starts(windows), windows.samples / PATCH_SAMPLES
        regression = model.description.task == "regression"
        shown = range(1, 2) if len(model.classes) == 2 and not regression else range(len(model.classes))
        for number in shown:
            color = STRONG if len(shown) == 1 else plt.get_cmap("tab10")(number % 10)
            label = f"{model.classes[number]}, mean {predicted[:, number].mean():.3f}"
            axis.hlines(predicted[:, number], starts, starts + width, color=color, linewidth=2.5, label=label)
        axis.legend(fontsize=8, loc="upper right", framealpha=0.9)
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_ylabel("value" if regression else "probability")
        if not regression:
            axis.set_ylim(-0.04, 1.04)
        _plain(axis, "top", "right")


class SpectraPicture(_Picture):
    """True and predicted amplitude and phase of some patches of the middle window."""

    def add(self, windows: Windows, part: slice, arrays: Arrays) -> None:
        """Keep the middle window's."""
        middle = len(windows) // 2
        if part.start <= middle < part.stop:
            self.kept = {name: array[middle - part.start] for name, array in arrays.items()}
            self.second = windows.starts[middle]

    def end(self, windows: Windows, model: Any) -> None:
        """Draw the recording."""
        electrodes = np.unique(np.linspace(0, len(windows.electrodes) - 1, EXAMPLES).astype(int))
        figure, axes = plt.subplots(
            len(electrodes),
            2,
            figsize=(12, 2.3 * len(electrodes) + 0.8),
            squeeze=False,
            layout="constrained",
            sharex=True,
        )
        frequencies = np.arange(PATCH_SAMPLES // 2 + 1)
        for row, electrode in zip(axes, electrodes, strict=True):
            for axis, name in zip(row, ("amplitude", "phase"), strict=True):
                true, predicted = self.kept[name][electrode, 0], self.kept[f"predicted_{name}"][electrode, 0]
                axis.plot(frequencies, true[frequencies], color=INK, linewidth=1, label="signal")
                axis.plot(frequencies, predicted[frequencies], color=STRONG, linewidth=1.6, label="from the code")
                error = float(np.mean((true - predicted) ** 2))
                code = int(self.kept["codes"][electrode, 0])
                title = f"{windows.electrodes[electrode]}, {name}, code {code}: mean squared error {error:.2f}"
                axis.set_title(title, loc="left", fontsize=9, color=INK)
                axis.grid(color=GRID, linewidth=0.8)
                _plain(axis, "top", "right")
            row[0].set_ylabel("z-score")
        axes[0, 0].legend(fontsize=8, frameon=False)
        for axis in axes[-1]:
            axis.set(xlabel="frequency, Hz", xlim=(0, PATCH_SAMPLES // 2))
        figure.suptitle(f"{windows.name}, the second from {self.second:g} s on", fontsize=10)
        self.save(figure, windows.name)


class TSNEPicture(_Picture):
    """Windows of all recordings in the plane, by t-SNE of their features' means."""

    def __init__(self, path: Path, many: bool) -> None:
        """See `picture`."""
        super().__init__(path, many)
        self.points: list[tuple[np.ndarray, str]] = []  # features and group
        self.seen = 0  # windows
        self._before = [*self.points], self.seen  # without the recording under way
        self._random = np.random.default_rng(0)
        self.what = "recording"

    def add(self, windows: Windows, part: slice, arrays: Arrays) -> None:
        """Take some windows' features."""
        features = arrays["features"]
        means = features.reshape(len(features), -1, features.shape[-1]).mean(1)
        labels = windows.labels if windows.labels is not None and windows.labels.ndim == 1 else None
        if labels is not None:
            self.what = "label"
        for number, row in zip(range(part.start, part.stop), means, strict=True):
            if labels is not None:
                group = windows.classes[int(labels[number])]
            else:
                group = windows.recordings[number] if windows.recordings else windows.name
            self._draw((row.copy(), group))

    def _draw(self, point: tuple[np.ndarray, str]) -> None:
        """Take a window such that all have the same chance to be among the points in the end."""
        self.seen += 1
        if len(self.points) < POINTS:
            self.points.append(point)
        elif (place := int(self._random.integers(self.seen))) < POINTS:
            self.points[place] = point

    def end(self, windows: Windows, model: Any) -> None:
        """One picture shows all recordings."""
        self._before = [*self.points], self.seen

    def forget(self) -> None:
        """See `_Picture`."""
        self.points, self.seen = [*self._before[0]], self._before[1]

    def finish(self) -> None:
        """Draw all. Raises InputError where there is too little to draw."""
        if len(self.points) < 3:
            raise InputError(f"--plot {self.path}: {self.seen} window(s) are too few for t-SNE; leave --plot out")
        features = np.stack([row for row, _ in self.points])
        place = TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0).fit_transform(features)
        figure, axis = plt.subplots(figsize=(8, 7), layout="constrained")
        groups = np.array([group for _, group in self.points])
        for number, name in enumerate(np.unique(groups)):
            mine = groups == name
            color = plt.get_cmap("tab10" if len(np.unique(groups)) <= 10 else "tab20")(number % 20)
            x, y = place[mine].T
            axis.scatter(x, y, s=14, color=color, alpha=0.75, linewidth=0, label=f"{name} ({mine.sum()})")
        count = f"{len(features)}" if len(features) == self.seen else f"{len(features)} of {self.seen}"
        axis.set_title(f"t-SNE of the features of {count} windows, by {self.what}", loc="left", fontsize=10)
        axis.set(xticks=[], yticks=[])
        if len(np.unique(groups)) <= 20:
            axis.legend(fontsize=8, framealpha=0.9)
        self.save(figure)


def _starts(windows: Windows) -> np.ndarray:
    """Where windows lie on the time axis: those of a labelled split, which are of many recordings, side by side."""
    if windows.labels is None:
        return windows.starts
    return np.arange(len(windows)) * windows.samples / PATCH_SAMPLES


def _plain(axis: Any, *sides: str) -> None:
    for side in sides:
        axis.spines[side].set_visible(False)
