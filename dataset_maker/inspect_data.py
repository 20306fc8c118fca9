"""Look at data before training on them: `python -m dataset_maker.inspect_data data/pretrain data/TUAB.hdf5`.

Describes every montage of pre-training files and every labelled set: what it holds, which seconds cannot be used,
whether the unit may be wrong, how the splits compare with the published ones. Lines to act on begin with `warning:`.
With --mark it first writes into files that others made which seconds are valid, so that training leaves the others out.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
from pathlib import Path

from errors import ArgumentParser, InputError, one_line, printable, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m dataset_maker.inspect_data", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="HDF5 files, or folders of them")
    parser.add_argument(
        "--mark", action="store_true", help="write `valid` into files without it (in a copy, which replaces the file)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a few windows and the spectrum of each set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed as JSON, too")
    return parser.parse_args()


if __name__ == "__main__":
    ARGUMENTS = get_args()  # --help answers before the libraries below are loaded, which takes most of a second

# ruff: noqa: E402
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from eeg_data import labelled_files, quality
from eeg_data.hdf5 import close_files, files_below, open_file, readable
from eeg_data.labelled_files import LabelledFile, read_labelled, read_samples
from eeg_data.pretraining_files import SAMPLING_RATE, Recording, Windows, by_montage, read_recordings, seconds_of
from eeg_data.quality import Quality
from electrodes import embedding_rows
from files import check_file, write_json, written_aside

UNPRINTED = ("kind", "path", "files", "name", "task", "classes", "warnings")  # or printed apart
PERCENTILES = (1, 50, 99, 99.9)
MOST_SETS, SPECTRUM_WINDOWS, SHOWN = 8, 40, 6  # of the picture: rows, windows of a spectrum, seconds of each trace

Report = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """A montage of pre-training files, or a labelled set."""

    title: str
    report: Report
    windows: int  # that can be drawn
    read: Callable[[int], np.ndarray]  # one of them, (N, time) in uV


def main(args: argparse.Namespace) -> None:
    """Print a report of every set; ends with exit code 1 if a file cannot be read."""
    for flag, output in (("--plot", args.plot), ("--json", args.json)):
        if output is not None:
            check_file(output, flag)
    sets, failed = [], False
    for path in args.paths:
        for one in describe(path, mark=args.mark):
            if isinstance(one, InputError):
                failed = True
                print(f"error: {one_line(one)}", file=sys.stderr, flush=True)
            else:
                print(as_text(one), end="\n\n", flush=True)
                sets.append(one)
    if args.json:
        write_json(args.json, [one.report for one in sets])
    if args.plot and sets:
        draw(sets[:MOST_SETS], args.plot)
    if failed:
        sys.exit(InputError.exit_code)


def describe(path: Path, *, mark: bool = False) -> Iterator[DataSet | InputError]:
    """Describe every montage and every labelled set of a file or folder, and yield an error for each unreadable one."""
    files = files_below(path) if path.is_dir() else [path]
    if not files:
        yield InputError(f"no data found at {path}: give HDF5 files, or folders of them, made with dataset_maker")
    recordings: list[Recording] = []
    labelled: dict[str, list[LabelledFile]] = {}
    for file in files:
        try:
            if mark and mark_file(file):
                print(f"{printable(str(file))}: valid seconds are marked now")
            if is_labelled(file):
                shard = read_labelled(file)
                labelled.setdefault(shard.name, []).append(shard)
            else:
                recordings += read_recordings(file)
        except InputError as error:
            yield error
    sets = [partial(_describe_montage, path, group) for group in by_montage(recordings)]
    for describe_set in (*sets, *(partial(_describe_labelled, path, shards) for shards in labelled.values())):
        try:
            yield describe_set()
        except InputError as error:
            yield error


def is_labelled(path: Path) -> bool:
    """Tell labelled files from pre-training files."""
    with readable(path):
        return "task" in open_file(path).attrs


def mark_file(path: Path) -> bool:
    """Write `valid` and the scan's counts into a file's groups without them. Returns whether there were any.

    The signals are copied byte for byte and the copy replaces the file, so a kill leaves the file as it was.
    """
    path = Path(os.path.realpath(path))
    scans: dict[str, Callable[[], Quality]]
    if is_labelled(path):
        file = read_labelled(path)
        parts = [part for split in file.splits for part in read_samples(file, split) if part.valid is None]
        scans = {part.split: partial(part.scan, file.montage, file.seconds) for part in parts}
    else:
        scans = {recording.name: recording.scan for recording in read_recordings(path) if recording.invalid is None}
    for name in scans:
        if (owner := Path(open_file(path)[name].file.filename)) != path:
            raise InputError(f"{path}: `{printable(name)}` is in {owner}: mark that file")
    bar = tqdm(scans.items(), "scanning", leave=False, disable=not sys.stderr.isatty())
    results = {name: scan() for name, scan in bar}
    close_files()
    if results:
        with written_aside(path) as part:
            shutil.copy2(path, part)
            with h5py.File(part, "r+", locking=False) as copy:
                for name, result in results.items():
                    *samples, _, length = copy[name]["eeg"].shape
                    copy[name]["valid"] = result.valid.reshape(*samples, seconds_of(length))
                    copy[name].attrs["quality"] = result.to_json()
    return bool(results)


def _describe_signals(montage: Sequence[str], scans: Iterable[Quality], unmarked: int) -> Report:
    """unmarked: parts of the data (recordings, shards) without `valid`."""
    scan = Quality.merged(scans)
    warnings, invalid = quality.warnings(scan), int((~scan.valid).sum())
    if unmarked and invalid:
        warnings.append("Not all invalid seconds are marked in the files, so training takes them: --mark changes that.")
    try:
        embedding_rows(montage)
    except InputError as error:  # training will end with it
        warnings.append(str(error))
    return {
        "electrodes": list(montage),
        "sampling_rate": SAMPLING_RATE,
        "amplitude_uV": {f"{p:g} %": scan.percentile(p) for p in PERCENTILES},
        "seconds": scan.seconds,
        "invalid_seconds": invalid,
        "flat_seconds": scan.flat,
        "saturated_seconds": scan.saturated,
        "not_finite_seconds": scan.not_finite,
        "warnings": warnings,
    }


def _describe_montage(path: Path, recordings: Sequence[Recording]) -> DataSet:
    windows = Windows(recordings)
    files = list(dict.fromkeys(str(recording.path) for recording in recordings))
    report = {"kind": "pre-training", "path": str(path), "files": files, "recordings": len(recordings)}
    report |= {"hours": sum(recording.length for recording in recordings) / SAMPLING_RATE / 3600}
    report["windows"] = {
        "seconds": windows.window // SAMPLING_RATE,
        "stride_1_s": len(windows),
        "without_overlap": len(Windows(recordings, stride=windows.window)),
        "left_out": windows.left_out,
        "too_short": windows.too_short,
    }
    scans = (recording.quality() or recording.scan() for recording in recordings)
    unmarked = sum(recording.invalid is None for recording in recordings)
    report |= _describe_signals(windows.montage, scans, unmarked)
    title = f"{path}: pre-training, {len(windows.montage)} electrode(s), {len(files)} file(s)"
    return DataSet(title, report, len(windows), windows.__getitem__)


def _describe_labelled(path: Path, shards: list[LabelledFile]) -> DataSet:
    file = labelled_files.joined_shards(shards, path if len(shards) > 1 else shards[0].path)
    parts = {split: read_samples(file, split) for split in file.splits}
    usable = {split: labelled_files.UsableSamples(every) for split, every in parts.items()}
    every = [part for own in parts.values() for part in own]
    labels = {split: np.concatenate([part.labels for part in own]) for split, own in parts.items()}
    subjects = {split: [subject for part in own for subject in part.subjects] for split, own in parts.items()}
    splits = {
        split: {
            "samples": len(labels[split]),
            "left_out": usable[split].left_out,
            "recordings": len({recording for part in own for recording in part.recordings}),
            "subjects": len(set(subjects[split])),
            **_describe_labels(file, labels[split]),
        }
        for split, own in parts.items()
    }
    sizes = {split: entry["samples"] for split, entry in splits.items()}
    report: Report = {"kind": "labelled", "path": str(file.path), "files": list(map(str, file.shards))}
    report |= {"name": file.name, "task": file.task, "classes": list(file.classes), "splits": splits}
    report |= {"hours": sum(sizes.values()) * file.seconds / 3600, "windows": {"seconds": file.seconds}}
    report["published"] = quality.compare_with_published(file.name, sizes, labelled_files.published_sizes())
    scans = (part.quality or part.scan(file.montage, file.seconds) for part in every)
    report |= _describe_signals(file.montage, scans, sum(part.valid is None for part in every))
    report["warnings"] += quality.split_warnings({} if file.task == "regression" else labels, subjects, file.classes)
    drawn = next((samples for samples in usable.values() if len(samples)), usable[file.splits[0]])
    return DataSet(f"{file.path}: labelled, {file.name}, {file.task}", report, len(drawn), drawn.read)


def _describe_labels(file: LabelledFile, labels: np.ndarray) -> Report:
    """Count the samples of each class, or return mean and standard deviation of each output."""
    if file.task == "regression":
        values = zip(file.classes, labels.T.astype(np.float64), strict=True)  # labels: (samples, outputs)
        return {"targets": {name: [float(v.mean()), float(v.std())] if len(v) else None for name, v in values}}
    counts = np.bincount(labels, minlength=len(file.classes))
    return {"labels": dict(zip(file.classes, map(int, counts), strict=True))}


def as_text(one: DataSet) -> str:
    """Write a report as lines `key  value`, warnings last."""
    report = one.report
    rows = {key: value for key, value in report.items() if key not in UNPRINTED and value not in (None, [], {})}
    rows |= rows.pop("splits", {})
    for key in {"flat_seconds", "saturated_seconds", "not_finite_seconds"} & rows.keys():
        worst = sorted(rows[key].items(), key=lambda entry: -entry[1])
        rows[key] = quality.first_few([f"{name} {n} ({n / report['seconds']:.1%})" for name, n in worst])
    lines = [f"  {key.replace('_', ' '):20}{_words(value)}" for key, value in rows.items()]
    return "\n".join(map(printable, [one.title, *lines, *(f"warning: {text}" for text in report["warnings"])]))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(sets: Sequence[DataSet], path: Path) -> None:
    """Write a PNG with a row for each set: two windows as stacked traces, and the power spectrum."""
    from matplotlib.figure import Figure
    from scipy.signal import welch

    heights = [2.2 + 0.16 * len(one.report["electrodes"]) for one in sets]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    axes = figure.subplots(len(sets), 2, squeeze=False, width_ratios=[2.3, 1], height_ratios=heights)
    for one, (left, right) in zip(sets, axes, strict=True):
        left.set_title(printable(one.title), loc="left")
        spread = np.unique(np.linspace(0, one.windows, SPECTRUM_WINDOWS, endpoint=False, dtype=int))
        windows = [window for window in map(one.read, spread if one.windows else ()) if np.isfinite(window).all()]
        if not windows:
            left.set_xlabel("no usable window")
            continue
        shown = [window[:, : SHOWN * SAMPLING_RATE] for window in (windows[len(windows) // 4], windows[-1])]
        traces = np.concatenate([eeg - np.median(eeg, axis=1, keepdims=True) for eeg in shown], axis=1)
        spacing = 2.2 * float(np.percentile(np.abs(traces), 98)) or 1.0  # uV
        offsets = -spacing * np.arange(len(traces))
        rows = traces.clip(-1.5 * spacing, 1.5 * spacing) + offsets[:, None]  # a wild electrode covers no others
        left.plot(np.arange(rows.shape[1]) / SAMPLING_RATE, rows.T, color="black", linewidth=0.5)
        left.axvline(shown[0].shape[1] / SAMPLING_RATE, color="red")
        left.set_yticks(offsets, one.report["electrodes"], fontsize=7)
        left.set_xlabel(f"time in two windows, s; {spacing:.3g} uV from electrode to electrode")
        length = min(windows[0].shape[1], 2 * SAMPLING_RATE)
        frequencies, power = welch(np.stack(windows), SAMPLING_RATE, nperseg=length)  # power: (windows, N, bins)
        right.semilogy(frequencies[1:], power.mean(axis=0)[:, 1:].T, color="lightgray", linewidth=0.6)
        right.semilogy(frequencies[1:], power.mean(axis=(0, 1))[1:], color="red")
        right.set(xlabel=f"frequency, Hz; mean of {len(windows)} windows", ylabel="power, uV²/Hz")
    with written_aside(path) as part:
        figure.savefig(part, dpi=110, format="png")


if __name__ == "__main__":
    run_script(main, ARGUMENTS)
