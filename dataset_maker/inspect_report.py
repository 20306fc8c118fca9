"""What `dataset_maker.inspect_data` says of pre-training files and labelled sets: collected as JSON, then as text.

Counts, names of electrodes, classes and subjects, paths: nothing else from a file. HDF5 only.
"""

import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_maker.scans import Scan, complete_recordings, complete_samples, recordings_quality, samples_quality
from eeg_data import quality
from eeg_data.hdf5 import files_below, open_file, printable, readable
from eeg_data.labelled_files import LabelledFile, joined_shards, published_sizes, read_eeg, read_labelled, read_samples
from eeg_data.pretraining_files import SAMPLING_RATE, Recording, by_montage, default_window, read_recordings
from eeg_data.quality import Quality
from electrodes import embedding_rows
from errors import InputError

WIDTH, INDENT, COLUMN = 80, 20, 14  # columns of the text: all, before the numbers, of a split
PERCENTILES = (1, 50, 99, 99.9)
WORST = 5  # electrodes that are named

Report = dict[str, Any]
Complain = Callable[[InputError], None]  # told of what cannot be read


@dataclass(frozen=True)
class Found:
    """A montage of pre-training files, or a labelled set."""

    title: str
    report: Report
    windows: Callable[[int], list[np.ndarray]]  # so many usable windows from all over it, (N, time) uV each


def look_into(path: Path, complain: Complain) -> Iterator[Found]:
    """Every montage of the pre-training files and every labelled set at a path. Raises InputError without files."""
    files = files_below(path) if path.is_dir() else [path]
    if not files or not (path.is_dir() or path.is_file()):
        raise InputError(f"no data found at {path}: give HDF5 files, or folders of them, made with dataset_maker")
    recordings: list[Recording] = []
    scans: dict[Path, Scan] = {}
    labelled: dict[str, list[LabelledFile]] = {}
    for file in files:
        try:
            with readable(file):
                is_labelled = "task" in open_file(file).attrs
            if is_labelled:
                shard = read_labelled(file)
                labelled.setdefault(shard.name, []).append(shard)
            else:
                own, scanned = complete_recordings(read_recordings(file), visible=True, thorough=True)
                recordings += own
                scans |= scanned
        except InputError as error:
            complain(error)
    for group in by_montage(recordings):
        yield _pretraining(path, group, recordings_quality(group, scans))
    for shards in labelled.values():
        try:
            yield _labelled(joined_shards(shards, path if len(shards) > 1 else shards[0].path))
        except InputError as error:
            complain(error)


def _signals(montage: Sequence[str], seen: Quality | None) -> Report:
    """What is said of any signals."""
    assert seen is not None  # `thorough`: everything was scanned
    warnings = quality.warnings(seen)
    try:
        embedding_rows(montage)
    except InputError as error:  # what training will say
        warnings.append(str(error))
    return {
        "electrodes": list(montage),
        "sampling_rate": SAMPLING_RATE,
        "amplitude_uV": {f"{p:g}": seen.percentile(p) for p in PERCENTILES},
        "seconds": seen.seconds,
        "invalid_seconds": int((~seen.valid).sum()),
        "flat_seconds": seen.flat,
        "saturated_seconds": seen.saturated,
        "not_finite_seconds": seen.not_finite,
        "warnings": warnings,
    }


def _pretraining(path: Path, recordings: Sequence[Recording], seen: Quality | None) -> Found:
    """A montage of pre-training files."""
    montage = recordings[0].montage
    window = default_window(len(montage))
    runs = [recording.windows(window, SAMPLING_RATE) for recording in recordings]
    ends = np.cumsum([sum(map(len, kept)) for kept, _ in runs])
    apart = sum(len(run) for r in recordings for run in r.windows(window, window)[0])
    windows = {"seconds": window // SAMPLING_RATE, "stride_1_s": int(ends[-1]), "without_overlap": apart}
    windows |= {
        "left_out": sum(left_out for _, left_out in runs),
        "too_short": sum(r.length < window for r in recordings),
    }
    files = list(dict.fromkeys(str(recording.path) for recording in recordings))
    samples = sum(recording.length for recording in recordings)
    report = {"kind": "pre-training", "path": str(path), "files": files, **_signals(montage, seen)}
    report |= {"recordings": len(recordings), "hours": samples / SAMPLING_RATE / 3600, "windows": windows}

    def draw(count: int) -> list[np.ndarray]:
        drawn = []
        for index in _spread(int(ends[-1]), count):
            which = int(np.searchsorted(ends, index, side="right"))
            starts = list(itertools.chain.from_iterable(runs[which][0]))
            start = starts[index - (int(ends[which - 1]) if which else 0)] * SAMPLING_RATE
            drawn.append(recordings[which].read(start, window))
        return drawn

    return Found(f"{path}: pre-training, {len(montage)} electrode(s), {len(files)} file(s)", report, draw)


def _labelled(file: LabelledFile) -> Found:
    """A labelled set."""
    stated = {split: read_samples(file, split) for split in file.splits}
    parts = complete_samples(stated, montage=file.montage, seconds=file.seconds, visible=True, thorough=True)
    seen = samples_quality([part for found in parts.values() for part in found])
    splits, labels, subjects, usable = {}, {}, {}, []
    for split, found in parts.items():
        own = np.concatenate([part.labels for part in found])
        kept = [part.valid.all(axis=1) for part in found if part.valid is not None]
        people = [subject for part in found for subject in part.subjects]
        recordings = {recording for part in found for recording in part.recordings}
        splits[split] = {"samples": len(own), "left_out": int(sum((~k).sum() for k in kept))}
        splits[split] |= {"recordings": len(recordings), "subjects": len(set(people)), **_targets(file, own)}
        labels[split], subjects[split] = own, people
        usable += [
            (part.path, split, int(row)) for part, k in zip(found, kept, strict=True) for row in np.flatnonzero(k)
        ]
    samples = sum(split["samples"] for split in splits.values())
    sides = Counter(subject for people in subjects.values() for subject in set(people))
    report: Report = {
        "kind": "labelled",
        "path": str(file.path),
        "files": list(map(str, file.shards)),
        "name": file.name,
    }
    report |= {"task": file.task, "classes": list(file.classes), **_signals(file.montage, seen)}
    report |= {"hours": samples * file.seconds / 3600, "windows": {"seconds": file.seconds}, "splits": splits}
    report |= {"subjects_on_several_sides": sorted(subject for subject, n in sides.items() if n > 1)}
    sizes = {split: entry["samples"] for split, entry in splits.items()}
    compared = quality.compare_with_published(file.name, sizes, published_sizes())
    report["published"] = {"says": compared[0], "same": compared[1]} if compared else None
    report["warnings"] += quality.split_warnings({} if file.task == "regression" else labels, subjects, file.classes)

    def draw(count: int) -> list[np.ndarray]:
        return [read_eeg(*usable[index]) for index in _spread(len(usable), count)]

    return Found(f"{file.path}: labelled, {file.name}, {file.task}", report, draw)


def _targets(file: LabelledFile, labels: np.ndarray) -> Report:
    """Samples of each class, or mean and standard deviation of each output."""
    if file.task == "regression":
        values = zip(file.classes, labels.T.astype(np.float64), strict=True)  # labels: (samples, outputs)
        return {"targets": {name: [float(v.mean()), float(v.std())] if len(v) else None for name, v in values}}
    counts = np.bincount(labels, minlength=len(file.classes))
    return {"labels": dict(zip(file.classes, map(int, counts), strict=True))}


def _spread(number: int, count: int) -> list[int]:
    """Up to `count` of so many, evenly spread."""
    return sorted({int(place) for place in (np.arange(count) + 0.5) / count * number}) if number else []


def text(found: Found) -> list[str]:
    """A report as lines of at most 80 columns (titles and warnings may hold longer words)."""
    report = found.report
    lines = [printable(found.title)]
    lines += _row("electrodes", f"{len(report['electrodes'])}: {' '.join(report['electrodes'])}")
    lines += _row("hours", f"{report['hours']:.2f} at {report['sampling_rate']} Hz")
    lines += _split_rows(report) if report["kind"] == "labelled" else _recording_rows(report)
    amplitude = [f"{p} %: {'none' if v is None else f'{v:.3g}'}" for p, v in report["amplitude_uV"].items()]
    lines += _row("|EEG| in uV", ", ".join(amplitude))
    lines += _row("seconds looked at", f"{report['seconds']}; invalid: {report['invalid_seconds']}")
    for key in ("flat", "saturated", "not_finite"):
        lines += _row(f"  {key.replace('_', ' ')}", _worst(report[f"{key}_seconds"], report["seconds"]))
    if report.get("published"):
        lines += _row("published", report["published"]["says"])
    for warning in report["warnings"]:
        lines += textwrap.wrap(f"warning: {printable(warning)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _row(title: str, content: str) -> list[str]:
    space = " " * INDENT
    return textwrap.wrap(
        printable(content),
        WIDTH,
        initial_indent=f"  {title}".ljust(INDENT),
        subsequent_indent=space,
        break_on_hyphens=False,
    )


def _worst(seconds: Mapping[str, int], of: int) -> str:
    worst = sorted(seconds, key=lambda name: -seconds[name])
    return quality.some([f"{name} {seconds[name]} ({seconds[name] / of:.1%})" for name in worst], WORST) or "none"


def _recording_rows(report: Report) -> list[str]:
    windows = report["windows"]
    lines = _row("recordings", f"{report['recordings']} (subjects are not stored)")
    content = f"{windows['stride_1_s']} with a stride of 1 s, {windows['without_overlap']} without overlap"
    if windows["left_out"]:
        content += f"; {windows['left_out']} that touch an invalid second are left out"
    if windows["too_short"]:
        content += f"; {windows['too_short']} recordings are shorter"
    return lines + _row(f"windows of {windows['seconds']} s", content)


def _split_rows(report: Report) -> list[str]:
    """The table of the splits: one column each, one row a class, so that any number of classes fits."""
    splits = report["splits"]
    rows: list[tuple[str, list[Any]]] = [("", list(splits))]
    rows += [(key, [s[key] for s in splits.values()]) for key in ("recordings", "subjects", "samples")]
    if any(split["left_out"] for split in splits.values()):
        rows.append(("with invalid seconds", [split["left_out"] for split in splits.values()]))
    for name in report["classes"]:
        if report["task"] == "regression":
            values = [split["targets"][name] for split in splits.values()]
            rows.append((f"{name}, mean (sd)", ["none" if v is None else f"{v[0]:.3g} ({v[1]:.2g})" for v in values]))
        else:
            rows.append((name, [split["labels"][name] for split in splits.values()]))
    lines = _row("windows", f"{report['windows']['seconds']} s each")
    most = WIDTH - 3 - COLUMN * len(splits)  # columns left for names
    wide = max(INDENT - 2, *(min(most, len(printable(title))) for title, _ in rows))
    for title, cells in rows:
        name = printable(title) if len(printable(title)) <= wide else printable(title)[: wide - 3] + "..."
        lines.append((f"  {name:{wide}}" + "".join(f"{cell!s:>{COLUMN}}" for cell in cells)).rstrip())
    return lines
