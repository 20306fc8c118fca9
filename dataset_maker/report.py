"""What a maker reports at its end, on the terminal and as JSON beside its output.

Paths, channel names, counts and reasons: nothing from a recording's header but its channels' names.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_maker.convert import Entry, Plan
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS
from files import write_json


def report_path(output: Path) -> Path:
    """Return where the report of an output goes: beside it."""
    return output.with_name(f"{output.stem if output.suffix.lower() in SUFFIXES else output.name}.report.json")


def summary(entries: Sequence[Entry], made: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Return what holds for every kind of output."""
    good = [entry for entry in entries if "error" not in entry]
    dropped: dict[str, Counter[str]] = {}  # reason -> channel -> recordings
    for entry in good:
        for channel, reason in entry["dropped"].items():
            dropped.setdefault(reason, Counter())[channel] += 1
    return {
        "output": str(output),
        "made": dict(made),
        "recordings": len(entries),
        "converted": len(good),
        "hours": round(sum(entry["seconds"] for entry in good) / 3600, 4),
        "invalid_seconds": sum(entry["invalid_seconds"] for entry in good),
        "left_out": [{"path": entry["open"], "reason": entry["error"]} for entry in entries if "error" in entry],
        "warnings": [warning for entry in good for warning in entry["warnings"]],
        "dropped_channels": {reason: dict(sorted(names.items())) for reason, names in sorted(dropped.items())},
        "notes": dict(Counter(note for entry in good for note in entry["notes"])),
    }


def montages(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return recordings and hours of each montage, the largest first."""
    seconds: dict[tuple[str, ...], list[float]] = {}
    for entry in entries:
        if "error" not in entry:
            seconds.setdefault(tuple(entry["electrodes"]), []).append(entry["seconds"])
    rows = [
        {"electrodes": list(names), "recordings": len(each), "hours": round(sum(each) / 3600, 4)}
        for names, each in seconds.items()
    ]
    return sorted(rows, key=lambda row: (-row["hours"], row["electrodes"]))


def labelled(entries: Sequence[Entry], plan: Plan, output: Path) -> dict[str, Any]:
    """Return the report of a labelled data set: with its splits, and the subjects in more than one of them."""
    description: Mapping[str, Any] = plan.description or {}
    whole = summary(entries, plan.made, output)
    whole |= {key: description[key] for key in ("name", "task", "classes", "electrodes", "window")}
    good = [entry for entry in entries if "error" not in entry]
    counts: Counter[str] = Counter()
    sides: dict[str, set[str]] = {}
    for entry in good:
        counts.update(entry["counts"])
        sides.setdefault(entry["subject"], set()).update(entry["samples"])
    names = {str(number): label for number, label in enumerate(description["classes"])} | {"all": "all"}  # regression
    splits: dict[str, Any] = {}
    for split in SPLITS:
        if inside := [entry for entry in good if split in entry["samples"]]:
            labels = sum((Counter(entry["samples"][split]) for entry in inside), Counter[str]())
            subjects = {entry["subject"] for entry in inside}
            splits[split] = {"recordings": len(inside), "subjects": len(subjects), "samples": labels.total()}
            splits[split]["labels"] = {names[key]: labels[key] for key in names if key in labels}
    two_sides = {subject: sorted(where) for subject, where in sorted(sides.items()) if len(where) > 1}
    return whole | {"counts": dict(counts), "splits": splits, "subjects_on_two_sides": two_sides}


def save(report: Mapping[str, Any]) -> None:
    """Write the report beside the output."""
    write_json(report_path(Path(report["output"])), report)


def show(report: Mapping[str, Any], new_seconds: float, took: float) -> None:
    """Print what people need of the report; doubts go to standard error.

    new_seconds: of EEG that this run converted; took: s.
    """
    output = Path(report["output"])
    for reason, names in report["dropped_channels"].items():
        print(f"dropped, {reason}: " + ", ".join(f"{name!r} ({count}x)" for name, count in names.items()))
    for note, count in report["notes"].items():
        print(f"{count} recordings: {note}")
    for what, count in report.get("counts", {}).items():
        print(f"{count} {what}")
    if invalid := report["invalid_seconds"]:
        print(f"{invalid} invalid seconds (not finite, or all electrodes flat) are marked in the files")
    for row in report.get("montages", ()):
        print(f"{output}: {len(row['electrodes'])} electrodes, {row['recordings']} recordings, {row['hours']:.2f} h")
    for split, part in report.get("splits", {}).items():
        labels = ", ".join(f"{label} {count}" for label, count in part["labels"].items() if label != "all")
        line = f"{split}: {part['samples']} samples, {part['recordings']} recordings, {part['subjects']} subjects"
        print(line + (f" ({labels})" if labels else ""))
        if report["task"] != "regression" and len(part["labels"]) == 1:
            print(f"warning: {split} has a single class", file=sys.stderr)
    if expected := report.get("expected_samples"):
        print("expected: " + ", ".join(f"{split} {count}" for split, count in expected.items()))
    if sides := report.get("subjects_on_two_sides"):
        first = ", ".join(list(sides)[:5])
        print(f"warning: {len(sides)} subjects are on more than one side: {first}", file=sys.stderr)
    if new_seconds:
        print(f"{new_seconds / 3600:.2f} h of EEG in {took:.1f} s, {new_seconds / took / 60:.1f} h a minute")
    print(f"report: {report_path(output)}")
