"""Look at data before training on them: `python -m dataset_maker.inspect_data data/pretrain data/TUAB.hdf5`.

Describes every montage of pre-training files and every labelled set: what it holds, which seconds cannot be used,
whether the unit may be wrong, how the splits compare. Lines to act on begin with `warning:`.
Of two paths or more it says which subjects and recordings they share, by names and by equal signals.
--mark first writes into the files of other programs which seconds are valid; training leaves the others out.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from dataset_maker import leakage
from eeg_data import verdicts
from eeg_data.hdf5 import close_files, files_below, open_file
from eeg_data.labelled_files import (
    LabelledFile,
    is_labelled,
    joined_shards,
    read_labelled,
    read_samples,
    split_warnings,
)
from eeg_data.pretraining_files import SAMPLING_RATE, Recording, Windows, by_montage, read_recordings, seconds_of
from eeg_data.quality import Quality, compared
from electrodes import embedding_rows
from errors import ArgumentParser, InputError, UsageError, one_line, printable, run_script
from files import check_file, written_aside

PERCENTILES = (1, 50, 99, 99.9)
MOST_SETS, MOST_WINDOWS, SHOWN = 8, 40, 12  # of the picture: rows, windows of a spectrum, seconds of the traces


@dataclass(frozen=True)
class DataSet:
    """A montage of pre-training files, or a labelled set."""

    title: str
    electrodes: tuple[str, ...]
    report: dict[str, Any]  # row -> values
    warnings: list[str]
    windows: int  # that can be drawn
    read: Callable[[int], np.ndarray]  # one of them, (N, time) in uV


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m dataset_maker.inspect_data", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="HDF5 files, or folders of them")
    words = "write `valid` into files without it (in a copy, which replaces the file)"
    parser.add_argument("--mark", action="store_true", help=words)
    shared = "of two paths or more: write the recordings that a later one has, too, one a line: a list for --exclude"
    parser.add_argument("--shared", type=Path, metavar="LIST", help=shared)
    subjects = "write the subjects of a split of labelled sets, and do nothing else: a list for --exclude"
    parser.add_argument("--list", nargs=2, metavar=("SPLIT", "LIST"), help=subjects)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a window and the spectrum of each set")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Print a report of every set, then what each two paths share; ends with exit code 1 if a file cannot be read."""
    if args.list:
        write_list(subjects_of(args.paths, args.list[0]), Path(args.list[1]))
        return
    if args.shared and len(args.paths) < 2:
        raise UsageError("--shared compares two paths or more: name a second one")
    for flag in ("plot", "shared"):
        if getattr(args, flag):
            check_file(getattr(args, flag), f"--{flag}")
    sets, failed = [], False
    for path in args.paths:
        for one in describe(path, mark=args.mark):
            if isinstance(one, InputError):
                failed = True
                print(f"error: {one_line(one)}", file=sys.stderr, flush=True)
            else:
                print(as_text(one), end="\n\n", flush=True)
                sets.append(one)
    if len(args.paths) > 1:
        shared = set[str]()
        for line in leakage.report(args.paths, shared):
            print(printable(line), flush=True)
        if args.shared and not failed:  # a list without what cannot be read would be taken for the whole
            write_list(shared, args.shared)
    if args.plot and sets:
        draw(sets[:MOST_SETS], args.plot)
    if failed:
        sys.exit(InputError.exit_code)


def write_list(names: Iterable[str], path: Path) -> None:
    """Write names for --exclude, one a line, and say how many."""
    lines = [f"{name}\n" for name in sorted(names)]
    with written_aside(path) as part:
        part.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} names")


def subjects_of(paths: Sequence[Path], split: str) -> set[str]:
    """Return the subjects of a split of all labelled sets below the paths. Raises InputError without any."""
    files = [file for path in paths for file in files_below(path) if is_labelled(file)]
    parts = [read_samples(file, split) for file in map(read_labelled, files) if split in file.splits]
    if not (subjects := {subject for part in parts for subject in part.subjects.tolist()}):
        raise InputError(f"--list {split}: no labelled set at {', '.join(map(str, paths))} has a sample in this split")
    return subjects


def describe(path: Path, *, mark: bool = False) -> Iterator[DataSet | InputError]:
    """Describe every montage and every labelled set of a file or folder, and yield an error for each unreadable one."""
    if not (files := files_below(path)):
        yield InputError(f"no data found at {path}: give HDF5 files, or folders of them, made with dataset_maker")
    recordings: list[Recording] = []
    labelled: dict[str, list[LabelledFile]] = {}
    for file in files:
        try:
            if mark and mark_file(file):
                print(f"{printable(file)}: valid seconds are marked now")
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


def mark_file(path: Path) -> bool:
    """Write `valid` and the scan's counts into a file's groups without them. Returns whether there were any.

    The signals are copied byte for byte and the copy replaces the file, so a kill leaves the file as it was.
    """
    path = Path(os.path.realpath(path))
    scans: dict[str, Callable[[], tuple[Quality, Mapping[str, float | None]]]]
    if is_labelled(path):
        file = read_labelled(path)
        splits = [read_samples(file, split) for split in file.splits]
        scans = {samples.split: samples.scanned for samples in splits if samples.unmarked}
    else:
        recordings = [recording for recording in read_recordings(path) if recording.valid is None]
        scans = {recording.name: partial(_scanned, recording) for recording in recordings}
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
                for name, (result, levels) in results.items():
                    *samples, _, length = copy[name]["eeg"].shape
                    copy[name]["valid"] = result.valid.reshape(*samples, seconds_of(length))
                    copy[name].attrs["quality"] = result.to_json()
                    if levels and "amplitude" not in copy[name]:
                        known = [levels.get(recording) or np.nan for recording in copy[name]["recording"].asstr()]
                        copy[name]["amplitude"] = np.array(known, np.float32)
    return bool(results)


def _scanned(recording: Recording) -> tuple[Quality, dict[str, float | None]]:
    return recording.scan(), {}


def _describe_signals(
    montage: Sequence[str], scan: Quality, levels: Mapping[str, float | None], unmarked: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return rows of a report and warnings.

    levels: of `compared`. unmarked: whether some of the data do not say which seconds are valid.
    """
    warnings, invalid = verdicts.warnings(scan, levels), int((~scan.valid).sum())
    if unmarked and invalid:
        warnings.append("Not all invalid seconds are marked in the files, so training takes them: --mark changes that.")
    try:
        embedding_rows(montage)
    except InputError as error:  # training will end with it
        warnings.append(str(error))
    rows: dict[str, Any] = {"hours": len(scan.valid) / 3600, "electrodes": list(montage)}
    rows["amplitude, uV"] = {f"{p:g} %": scan.percentile(p) for p in PERCENTILES}
    rows["seconds"] = {"scanned": scan.seconds, "invalid": invalid}
    for name, counts in (("flat", scan.flat), ("saturated", scan.saturated), ("not finite", scan.not_finite)):
        if counts:
            rows[name] = verdicts.worst_first(counts, scan.seconds)
    return rows, warnings


def _describe_montage(path: Path, recordings: Sequence[Recording]) -> DataSet:
    windows = Windows(recordings)
    files = {recording.path for recording in recordings}
    report: dict[str, Any] = {"recordings": len(recordings)}
    report["windows"] = {
        "seconds": windows.window // SAMPLING_RATE,
        "stride 1 s": len(windows),
        "without overlap": len(Windows(recordings, stride=windows.window)),
        "left out": windows.left_out,
        "recordings too short": windows.too_short,
    }
    scans = ((recording.where, recording.quality() or recording.scan()) for recording in recordings)
    unmarked = any(recording.valid is None for recording in recordings)
    rows, warnings = _describe_signals(windows.montage, *compared(scans), unmarked)
    title = f"{path}: pre-training, {len(windows.montage)} electrode(s), {len(files)} file(s)"
    return DataSet(title, windows.montage, report | rows, warnings, len(windows), windows.__getitem__)


def _describe_labelled(path: Path, shards: list[LabelledFile]) -> DataSet:
    file = joined_shards(shards, path if len(shards) > 1 else shards[0].path)
    splits = {split: read_samples(file, split) for split in file.splits}
    usable = {split: samples.usable() for split, samples in splits.items()}
    report: dict[str, Any] = {}
    for split, samples in splits.items():
        report[split] = {"samples": len(samples), "left out": usable[split].left_out}
        report[split] |= {"recordings": len(set(samples.recordings)), "subjects": len(set(samples.subjects))}
        if file.task == "regression":
            columns = zip(file.classes, samples.labels.T.astype(np.float64), strict=True)
            values = {name: {"mean": float(v.mean()), "std": float(v.std())} for name, v in columns if len(v)}
            report[split]["targets"] = values
        else:
            counts = np.bincount(samples.labels, minlength=len(file.classes))
            report[split]["labels"] = dict(zip(file.classes, counts.tolist(), strict=True))
    scans, levels = zip(*(samples.scanned() for samples in splits.values()), strict=True)
    scan, every = Quality.merged(scans), {name: level for own in levels for name, level in own.items()}
    rows, warnings = _describe_signals(file.montage, scan, every, any(s.unmarked for s in splits.values()))
    title = f"{file.path}: labelled, {file.name}, {file.task}, {file.seconds} s, {len(file.shards)} file(s)"
    drawn = max(usable.values(), key=len)
    return DataSet(title, file.montage, report | rows, warnings + split_warnings(splits), len(drawn), drawn.read)


def as_text(one: DataSet) -> str:
    """Write a report as lines `key  value`, warnings last."""
    lines = [f"  {key:20}{_words(value)}" for key, value in one.report.items()]
    return "\n".join(map(printable, [one.title, *lines, *(f"warning: {text}" for text in one.warnings)]))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(sets: Sequence[DataSet], path: Path) -> None:
    """Write a PNG with a row for each set: stacked traces of a window, and the power spectrum of up to 40 windows."""
    from matplotlib.figure import Figure
    from scipy.signal import welch

    heights = [2.2 + 0.16 * len(one.electrodes) for one in sets]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    axes = figure.subplots(len(sets), 2, squeeze=False, width_ratios=[2.3, 1], height_ratios=heights)
    for one, (left, right) in zip(sets, axes, strict=True):
        left.set_title(printable(one.title), loc="left")
        spread = np.unique(np.linspace(0, one.windows, MOST_WINDOWS, endpoint=False, dtype=int))
        windows = [window for window in map(one.read, spread if one.windows else ()) if np.isfinite(window).all()]
        if not windows:
            left.set_xlabel("no usable window")
            continue
        traces = windows[len(windows) // 2][:, : SHOWN * SAMPLING_RATE]  # (N, samples)
        traces = traces - np.median(traces, axis=1, keepdims=True)
        spacing = 2.2 * float(np.percentile(np.abs(traces), 98)) or 1.0  # uV
        offsets = -spacing * np.arange(len(traces))
        rows = traces.clip(-1.5 * spacing, 1.5 * spacing) + offsets[:, None]  # a wild electrode covers no others
        left.plot(np.arange(rows.shape[1]) / SAMPLING_RATE, rows.T, color="black", linewidth=0.5)
        left.set_yticks(offsets, one.electrodes, fontsize=7)
        left.set_xlabel(f"time in a window, s; {spacing:.3g} uV from electrode to electrode")
        length = min(windows[0].shape[1], 2 * SAMPLING_RATE)
        frequencies, power = welch(np.stack(windows), SAMPLING_RATE, nperseg=length)  # power: (windows, N, bins)
        right.semilogy(frequencies[1:], power.mean(axis=0)[:, 1:].T, color="lightgray", linewidth=0.6)
        right.semilogy(frequencies[1:], power.mean(axis=(0, 1))[1:], color="red")
        right.set(xlabel=f"frequency, Hz; mean of {len(windows)} windows", ylabel="power, uV²/Hz")
    with written_aside(path) as part:
        figure.savefig(part, dpi=110, format="png")


if __name__ == "__main__":
    run_script(main, get_args())
