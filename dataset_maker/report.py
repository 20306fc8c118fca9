"""What a maker reports at its end, on the terminal and as JSON beside its output.

Paths, channel names, counts and reasons: nothing from a recording's header but its channels' names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS
from files import write_json

Entry = Mapping[str, Any]  # what became of a recording


def report_path(output: Path) -> Path:
    """Return where the report of an output goes: beside it."""
    return output.with_name(f"{output.stem if output.suffix.lower() in SUFFIXES else output.name}.report.json")


def summary(entries: Sequence[Entry], made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what holds for every kind of output."""
    good = [entry for entry in entries if "error" not in entry]
    dropped: dict[str, Counter[str]] = {}  # reason -> channel -> recordings
    for entry in good:
        for channel, reason in entry["dropped"].items():
            dropped.setdefault(reason, Counter())[channel] += 1
    return {
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


def splits(entries: Sequence[Entry], classes: Sequence[str]) -> dict[str, Any]:
    """Return recordings, subjects, samples and label counts of each split."""
    rows: dict[str, Any] = {}
    for split in SPLITS:
        inside = [entry for entry in entries if "error" not in entry and split in entry["samples"]]
        labels: Counter[str] = Counter()
        for entry in inside:
            labels.update(entry["samples"][split])
        if inside:
            names = {str(number): label for number, label in enumerate(classes)} | {"all": "all"}  # of a regression
            subjects = {entry["subject"] for entry in inside}
            rows[split] = {"recordings": len(inside), "subjects": len(subjects), "samples": labels.total()}
            rows[split]["labels"] = {names[key]: labels[key] for key in names if key in labels}
    return rows


def two_sides(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the subjects with samples in more than one split, and in which."""
    sides: dict[str, set[str]] = {}
    for entry in entries:
        if "error" not in entry:
            sides.setdefault(entry["subject"], set()).update(entry["samples"])
    return {subject: sorted(where) for subject, where in sorted(sides.items()) if len(where) > 1}


def show(report: Mapping[str, Any]) -> None:
    """Print what people need to see of any report."""
    for reason, names in report["dropped_channels"].items():
        print(f"dropped, {reason}: " + ", ".join(f"{name!r} ({count}x)" for name, count in names.items()))
    for note, count in report["notes"].items():
        print(f"{count} recordings: {note}")
    for what, count in report.get("counts", {}).items():
        print(f"{count} {what}")
    if invalid := report["invalid_seconds"]:
        print(f"{invalid} invalid seconds (not finite, or all electrodes flat) are marked in the files")


def show_end(output: Path, new_seconds: float, took: float) -> None:
    """Print how fast this run converted, if it did anything, and where the report is. Both in s, the first of EEG."""
    if new_seconds:
        print(f"{new_seconds / 3600:.2f} h of EEG in {took:.1f} s, {new_seconds / took / 60:.1f} h a minute")
    print(f"report: {report_path(output)}")


def save(report: Mapping[str, Any], output: Path) -> None:
    """Write the report's JSON beside the output."""
    write_json(report_path(output), report)
