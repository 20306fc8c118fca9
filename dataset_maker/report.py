"""What a maker reports at its end, on the terminal and as JSON in the folder of its output.

Paths, channel names, counts and reasons: nothing from a recording's header but its channels' names.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_maker.writers import DataSet
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS
from files import write_json

PUBLISHED = Path(__file__).with_name("published_splits.json")

Entry = Mapping[str, Any]  # what became of a recording


def report_path(output: Path) -> Path:
    """Return where the report of an output goes: into its folder."""
    return output.with_name(f"{output.stem if output.suffix.lower() in SUFFIXES else output.name}.report.json")


def write(
    entries: Sequence[Entry], made: Mapping[str, Any], output: Path, data_set: DataSet | None = None
) -> dict[str, Any]:
    """Write and print the report of an output, and return it. data_set: of a labelled one."""
    good = [entry for entry in entries if "error" not in entry]
    dropped: dict[str, Counter[str]] = {}  # reason -> channel -> recordings
    for entry in good:
        for channel, reason in entry["dropped"].items():
            dropped.setdefault(reason, Counter())[channel] += 1
    whole = {
        "output": str(output),
        "made": dict(made),
        "recordings": len(entries),
        "converted": len(good),
        "hours": _hours(good),
        "invalid_seconds": sum(entry["invalid_seconds"] for entry in good),
        "left_out": [{"path": entry["open"], "reason": entry["error"]} for entry in entries if "error" in entry],
        "warnings": [warning for entry in good for warning in entry["warnings"]],
        "dropped_channels": {reason: dict(sorted(names.items())) for reason, names in sorted(dropped.items())},
        "notes": dict(Counter(note for entry in good for note in entry["notes"])),
    }
    whole |= _splits(good, data_set) if data_set else {"montages": _montages(good)}
    write_json(report_path(output), whole)
    _show(whole)
    return whole


def _hours(entries: Sequence[Entry]) -> float:
    return round(sum(entry["seconds"] for entry in entries) / 3600, 4)


def _montages(good: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return recordings and hours of each montage, the most frequent first."""
    rows = []
    for names, count in Counter(tuple(entry["electrodes"]) for entry in good).most_common():
        hours = _hours([entry for entry in good if tuple(entry["electrodes"]) == names])
        rows.append({"electrodes": list(names), "recordings": count, "hours": hours})
    return rows


def _splits(good: Sequence[Entry], data_set: DataSet) -> dict[str, Any]:
    """Return what a labelled data set holds by split, and the subjects in more than one of them."""
    names = {str(number): label for number, label in enumerate(data_set.classes)} | {"all": "all"}  # regression
    counts: Counter[str] = Counter()
    sides: dict[str, list[str]] = {}
    for entry in good:
        counts.update(entry["counts"])
    parts: dict[str, Any] = {}
    for split in SPLITS:
        if inside := [entry for entry in good if split in entry["samples"]]:
            labels = sum((Counter(entry["samples"][split]) for entry in inside), Counter[str]())
            subjects = {entry["subject"] for entry in inside}
            for subject in sorted(subjects):
                sides.setdefault(subject, []).append(split)
            parts[split] = {"recordings": len(inside), "subjects": len(subjects), "samples": labels.total()}
            parts[split]["labels"] = {names[key]: labels[key] for key in names if key in labels}
    return {
        **{key: getattr(data_set, key) for key in ("name", "task", "classes", "electrodes", "window")},
        "counts": dict(counts),
        "splits": parts,
        "subjects_on_two_sides": {subject: where for subject, where in sides.items() if len(where) > 1},
    }


def published_counts(name: str) -> dict[str, dict[str, int]]:
    """Return the published samples a split of a data set, by name and version."""
    sizes = json.loads(PUBLISHED.read_text(encoding="utf-8"))["sizes"]
    return {key: dict(zip(SPLITS, sizes[key], strict=True)) for key in sizes if key.partition(" v")[0] == name}


def _show(report: Mapping[str, Any]) -> None:
    """Print what people need of the report; doubts go to standard error."""
    output = Path(report["output"])
    for reason, names in report["dropped_channels"].items():
        print(f"dropped, {reason}: " + ", ".join(f"{name!r} ({count}x)" for name, count in names.items()))
    notes = {f"recordings: {note}": count for note, count in report["notes"].items()} | report.get("counts", {})
    for what, count in notes.items():
        print(f"{count} {what}")
    if invalid := report["invalid_seconds"]:
        print(f"{invalid} invalid seconds (not finite, or all electrodes flat) are marked in the files")
    for row in report.get("montages", ()):
        print(f"{output}: {len(row['electrodes'])} electrodes, {row['recordings']} recordings, {row['hours']:.2f} h")
    for split, part in report.get("splits", {}).items():
        labels = ", ".join(f"{label} {count}" for label, count in part["labels"].items())
        inside = f"{part['recordings']} recordings, {part['subjects']} subjects ({labels})"
        print(f"{split}: {part['samples']} samples, {inside}")
        if report["task"] != "regression" and len(part["labels"]) == 1:
            print(f"warning: {split} has a single class", file=sys.stderr)
    for version, sizes in published_counts(report.get("name", "")).items():
        print(f"published, {version}: " + ", ".join(f"{split} {count}" for split, count in sizes.items()))
    if sides := report.get("subjects_on_two_sides"):
        first = ", ".join(list(sides)[:5])
        print(f"warning: {len(sides)} subjects are on more than one side: {first}", file=sys.stderr)
    print(f"report: {report_path(output)}")
