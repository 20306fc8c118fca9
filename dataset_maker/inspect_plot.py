"""The picture of `dataset_maker.inspect_data`: a few windows as stacked traces, and the power spectrum, a row a set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.signal import welch

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first: there may be no display

from dataset_maker.inspect_report import Found
from eeg_data.hdf5 import printable
from eeg_data.pretraining_files import SAMPLING_RATE
from files import written_aside

MOST_SETS = 8
TRACES = 2  # windows that are drawn
SPECTRUM_WINDOWS = 40  # that the spectrum is a mean of
SHOWN = 12  # s of signal at most
FLOOR = 1e-20  # uV^2/Hz: what is below is drawn there, for the logarithm of zero
RANGE = 60  # dB below the strongest frequency: further down is what filters leave of nothing
INK, PALE, STRONG, GRID = "#1f2d3d", "#9db4c8", "#c0392b", "#e6ebf0"


def draw(found: Sequence[Found], path: Path) -> None:
    """Write a PNG with one row for each of the first sets."""
    rows = found[:MOST_SETS]
    heights = [2.2 + 0.16 * len(one.report["electrodes"]) for one in rows]
    figure, axes = plt.subplots(
        len(rows),
        2,
        figsize=(13, sum(heights)),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": [2.3, 1], "height_ratios": heights},
    )
    for one, (left, right) in zip(rows, axes, strict=True):
        windows = [window for window in one.windows(SPECTRUM_WINDOWS) if np.isfinite(window).all()]
        left.set_title(printable(one.title), loc="left", fontsize=10, fontweight="bold", color=INK)
        if not windows:
            for axis in (left, right):
                axis.axis("off")
            left.text(0.5, 0.5, "no usable window", ha="center", va="center", transform=left.transAxes)
            continue
        _traces(left, windows, one.report["electrodes"])
        _spectrum(right, windows)
    with written_aside(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def _nice(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above the value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step * power for step in (1, 2, 5) if step * power <= value * 1.0001))


def _traces(axis: Any, windows: Sequence[np.ndarray], electrodes: Sequence[str]) -> None:
    """Electrodes below each other, windows beside each other, with a scale bar in uV."""
    picked = [windows[len(windows) // 4], windows[(3 * len(windows)) // 4]][: min(TRACES, len(windows))]
    samples = min(picked[0].shape[1], SHOWN * SAMPLING_RATE // len(picked))
    picked = [window[:, :samples] - np.median(window[:, :samples], axis=1, keepdims=True) for window in picked]
    spread = np.percentile(np.abs(np.concatenate(picked, axis=1)), 98)  # an electrode's share of the height
    spacing = 2.2 * float(spread) if spread > 0 else 1.0
    seconds, gap = samples / SAMPLING_RATE, samples / SAMPLING_RATE * 0.04
    offsets = -spacing * np.arange(len(electrodes))
    marks = np.arange(0, seconds, max(1, seconds // 4))
    for number, window in enumerate(picked):
        start = number * (seconds + gap)
        room = np.clip(window, -1.5 * spacing, 1.5 * spacing)  # one wild electrode does not cover the others
        axis.plot(start + np.arange(samples) / SAMPLING_RATE, (room + offsets[:, None]).T, color=INK, linewidth=0.5)
        for mark in marks:
            axis.axvline(start + mark, color=GRID, linewidth=0.8, zorder=0)
    starts = [number * (seconds + gap) for number in range(len(picked))]
    axis.set_xticks(
        [start + mark for start in starts for mark in marks], [f"{mark:g}" for _ in starts for mark in marks]
    )
    end = len(picked) * (seconds + gap) - gap
    bar = _nice(1.2 * spacing)
    axis.plot([end + gap / 2] * 2, [offsets[-1], offsets[-1] + bar], color=STRONG, linewidth=2.5, clip_on=False)
    axis.text(end + gap, offsets[-1] + bar / 2, f"{bar:g} uV", color=STRONG, fontsize=9, va="center")
    axis.set(xlim=(0, end), ylim=(offsets[-1] - 1.5 * spacing, 1.5 * spacing), xlabel="time in each window, s")
    axis.set_yticks(offsets, electrodes, fontsize=7)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _spectrum(axis: Any, windows: Sequence[np.ndarray]) -> None:
    """Power of each electrode, thin, and its mean over electrodes, thick."""
    length = min(windows[0].shape[1], 2 * SAMPLING_RATE)
    powers = [welch(window, SAMPLING_RATE, nperseg=length, axis=1)[1] for window in windows]
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLING_RATE)
    power = np.mean(powers, axis=0)  # (N, frequencies), uV^2/Hz
    axis.plot(frequencies[1:], 10 * np.log10(np.maximum(power[:, 1:], FLOOR)).T, color=PALE, linewidth=0.6)
    mean = 10 * np.log10(np.maximum(power.mean(axis=0), FLOOR))
    axis.plot(frequencies[1:], mean[1:], color=STRONG, linewidth=2, label="mean of electrodes")
    axis.set(xlim=(0, SAMPLING_RATE / 2), xlabel="frequency, Hz", ylabel="power, dB re 1 uV²/Hz")
    axis.set_ylim(bottom=max(mean[1:].max() - RANGE, axis.get_ylim()[0]))
    axis.set_title(f"mean of {len(windows)} windows", loc="left", fontsize=9, color=INK)
    axis.grid(color=GRID, linewidth=0.8)
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
