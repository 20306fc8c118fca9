"""What a cell leaves: one JSON with its commands, the runs' logs, metrics and predictions, time, machine, versions."""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from files import code_version, plain, written_aside
from results.read import Predictions, read_log, read_predictions
from training import metrics

LIBRARIES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "mne", "h5py", "braindecode")
TASK = "binary"  # MentalArithmetic
DIGITS = 6  # of a logit


def path_of(output: Path, cell: str, seed: int) -> Path:
    """Where a cell's JSON is."""
    return output / f"{cell}.seed-{seed}.json"


def read(path: Path) -> dict[str, Any]:
    """A cell's JSON. Raises InputError if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = {"cell", "seed", "size", "commands", "runs", "seconds", "machine"} - found.keys()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it and run the cell again") from error
    if missing:
        raise InputError(f"{path} is no result of a cell, for it has no `{min(missing)}`: move it elsewhere")
    return found


def finished(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a cell has its JSON. settings: cell, seed, size, commands. Raises InputError where they are others."""
    if not path.is_file():
        return False
    held = read(path)
    if all(held[name] == value for name, value in settings.items()):
        return True
    raise InputError(
        f"{path} was made with other settings ({_difference(held, settings)}): delete it, or name another folder with "
        "--output"
    )


def _difference(held: dict[str, Any], settings: dict[str, Any]) -> str:
    for name in ("cell", "seed", "size"):
        if held[name] != settings[name]:
            return f"{name} {held[name]}, now {settings[name]}"
    for old, new in zip(held["commands"], settings["commands"], strict=False):
        a, b = old.split(), new.split()
        if a != b:
            places = range(min(len(a), len(b)))
            place = next((place for place in places if a[place] != b[place]), len(places))
            first = max(place - 1, 0)
            return f"`{' '.join(a[first : place + 1])}`, now `{' '.join(b[first : place + 1])}`"
    return f"{len(held['commands'])} commands, now {len(settings['commands'])}"


def of_run(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """What one command left in its folder: lines of log.txt, and the predictions that count (test, else val)."""
    found: dict[str, Any] = {"name": name, "seconds": round(seconds, 1)}
    notes: list[str] = []
    if (folder / "log.txt").is_file():
        found["log"] = read_log(folder / "log.txt", notes)
    if notes:
        raise InputError(f"{folder}: {notes[0]}")
    for split in ("test", "val"):
        path = folder / f"predictions-{split}.npz"
        if path.is_file():
            held = read_predictions(path, TASK)
            found["metrics"] = {"selected": _line(found["log"], held.epoch), "last": found["log"][-1]}
            found["predictions"] = {"split": split, "epoch": held.epoch, **_as_text(held)}
            break
    return found


def _line(log: list[dict[str, float]], epoch: int) -> dict[str, float]:
    return next(line for line in log if line["epoch"] == epoch)


def _as_text(held: Predictions) -> dict[str, str]:
    """Arrays as words in a row: a number in a line would make files of 50,000 lines."""
    return {
        "logits": " ".join(f"{value:.{DIGITS}g}" for value in held.logits[:, 0]),
        "labels": " ".join(str(label) for label in held.labels),
        "subjects": " ".join(held.subjects),
    }


def predictions(found: Sequence[dict[str, Any]]) -> Predictions:
    """The predictions of all runs of a cell together: with cross-validation every subject once."""
    parts = [run["predictions"] for run in found if "predictions" in run]
    logits, labels, subjects = (
        np.concatenate([np.array(part[name].split(), dtype=kind) for part in parts])
        for name, kind in (("logits", np.float64), ("labels", np.int64), ("subjects", np.str_))
    )
    return Predictions(-1, logits[:, None], labels, subjects, subjects, None, ())


def pooled_metrics(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics over all windows of all runs' predictions; {} where there are none."""
    if not any("predictions" in run for run in found):
        return {}
    held = predictions(found)
    return metrics.compute(TASK, held.logits, held.labels)


def machine() -> dict[str, Any]:
    """Date, code, hardware and versions."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # braindecode is wanted by two rows only
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "python": platform.python_version(),
        "libraries": versions,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a cell's JSON, a line for each line of a log; NaN is null."""
    with written_aside(path) as part:
        part.write_text(_dump(plain(record), 0) + "\n", encoding="utf-8")


def _dump(value: Any, depth: int) -> str:
    """JSON whose innermost objects and lists stand in a line."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, dict | list) for item in items):
        return json.dumps(value, ensure_ascii=False)
    inner = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(name)}: {_dump(one, depth + 1)}" for name, one in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}"
    return "[\n" + ",\n".join(f"{inner}{_dump(one, depth + 1)}" for one in value) + f"\n{' ' * depth}]"
