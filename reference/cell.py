"""Run cells of the reference run: the commands of a cell, one after the other, then one JSON with their results.

`python -m reference.cell [data tokenizer ...] --data reference_run --output my_results`

The recipe of a cell is the list of commands in `reference/results/NAME.seed-0.json`; a new cell is a copy of such a
file with other commands. In commands DATA, EEGMAT and EEGMMIDB stand for folders. A finished cell is not run again. A
stopped cell continues: finished commands are not repeated, and the scripts go on from their last checkpoint.
"""

import argparse
import datetime
import glob
import json
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from errors import INTERRUPTED, TERMINATED, ArgumentParser, InputError, Interrupted, UsageError, run_script
from files import check_writable, code_version, plain, write_json
from results.read import Predictions, read_log, read_predictions
from training import metrics

logger = logging.getLogger("reference")

PROJECT = Path(__file__).resolve().parents[1]
SHIPPED = PROJECT / "reference" / "results"
TASK = "binary"  # MentalArithmetic
MARK = "command.json"  # in a run folder: the command, its seconds so far, whether it is finished
KEPT = ("tokenizer", "pretraining")  # cells whose checkpoints others start from begin with these
# Scripts that have moved since the recipes ran.
MOVED = {"dataset_maker/make_eeghdf.py": "demo/make_eeghdf.py", "reference.eeghdf": "demo.data"}
LIBRARIES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "mne", "h5py", "braindecode")
WAYS = ["logistic", "logistic-even", "features-even", "pretrained-even", "scratch-even", "probe-even", "eegnet-even"]
WAYS += ["last8-even", "pretrained", "scratch", "probe", "eegnet", "last8", "cls-even", "long-even"]
# With few subjects: from the model that `make demo` pre-trains, in DATA/demo_run.
FEW = ["logistic-even-center", "eegnet-even", "eegnet-even-center", "ridge-mean", "ridge-mean-center"]
FEW += ["ridge-electrodes", "ridge-electrodes-center", "ridge-flatten-center", "ridge-spectrum"]
FEW += ["ridge-spectrum-center", "ridge-spectrum-center-8"]
TUNED = ["paper", "small", "electrodes", "center", "electrodes-center", "small-electrodes-center", "attention-center"]
FEW += [f"tuned-{way}" for way in [*TUNED, "spectrum-center", "small-spectrum-center", "scale"]]
OTHERS = ["adabrain-logistic", "adabrain-logistic-center", "adabrain-ridge-spectrum", "adabrain-ridge-spectrum-center"]
OTHERS += ["tasks-all", "tasks-ma", "tasks-scp1", "tasks-imagery"]
PARTS = ["all", "one-mask", "one-mask-twice", "no-kmeans", "no-revival", "sequential", "no-electrodes"]
PARTS += ["codes-2048", "codes-8192", "codes-8192-no-revival", "sincos", "from-tokenizer"]
CELLS = {  # of each table, in the order of its rows; "others" have none
    "data": ["data"],
    "stages": ["tokenizer", "pretraining", "tokenizer-eegmat", "pretraining-eegmat"],
    "cv": [f"cv-{way}" for way in WAYS],
    "fixed": [f"fixed-{way}" for way in WAYS],
    "few": [f"cv-{way}" for way in FEW],
    "few-fixed": [f"fixed-{way}" for way in FEW],
    "others": OTHERS,
    "ablation": [f"ablation-{part}" for part in PARTS],
}


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.cell", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of cells (default: all with this seed)")
    parser.add_argument("--data", type=Path, default=Path("reference_run"), help="folder of HDF5 files and runs")
    parser.add_argument("--output", type=Path, default=Path("my_results"), help="folder of the JSONs")
    parser.add_argument("--recipes", type=Path, default=SHIPPED, metavar="DIR", help="folder of NAME.seed-0.json")
    parser.add_argument("--seed", type=int, default=0, help="another seed than the recipe's 0")
    parser.add_argument("--eegmat", type=Path, metavar="DIR", help="recordings of eegmat, for the cell data")
    parser.add_argument("--eegmmidb", type=Path, metavar="DIR", help="recordings of eegmmidb, for the cell data")
    return parser.parse_args()


def read_record(path: Path) -> dict[str, Any]:
    """Read a cell's JSON. Raises InputError if it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = {"cell", "title", "seed", "commands", "runs"} - record.keys()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a cell ({error}): name a cell of {SHIPPED.name}/") from error
    if missing:
        raise InputError(f"{path} is not a cell: it has no `{min(missing)}`")
    return record


def recipe(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """The cell, title, seed, commands and names of the runs, from the recipe of seed 0."""
    record = read_record(folder / f"{name}.seed-0.json")
    commands = [command.replace(f"/{name}.seed-0/", f"/{name}.seed-{seed}/") for command in record["commands"]]
    commands = [re.sub(r"--seed \d+", f"--seed {seed}", command) for command in commands]
    names = [run["name"] for run in record["runs"]]
    return {"cell": name, "title": record["title"], "seed": seed, "commands": commands, "names": names}


def fill(words: Sequence[str], places: Mapping[str, Path | None]) -> Iterator[str]:
    """Put real folders for DATA, EEGMAT and EEGMMIDB and resolve patterns of files there.

    Raises UsageError for a folder that was not given, InputError for a pattern without files.
    """
    for word in words:
        name, _, rest = word.partition("/")
        if name not in places:
            yield MOVED.get(word, word)
            continue
        if (folder := places[name]) is None:
            raise UsageError(f"this cell reads recordings: name their folder with --{name.lower()} DIR")
        files = sorted(map(str, folder.glob(rest))) if glob.has_magic(rest) else [str(folder / rest)]
        if not files:
            raise InputError(f"--{name.lower()} {folder}: no file {rest} there; reference/README.md lists the files")
        yield from files


def call(words: list[str]) -> None:
    """Run a command. Ctrl-C and SIGTERM reach it, and it ends by itself. Raises InputError if it fails."""
    environment = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), **os.environ}
    with subprocess.Popen([sys.executable, *words], cwd=PROJECT, env=environment) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = None
        while code is None:
            with suppress(KeyboardInterrupt):  # the command, in the same terminal, got it too and saves its state
                code = process.wait()
        signal.signal(signal.SIGTERM, before)
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code in (TERMINATED, -signal.SIGTERM):
        raise Interrupted("stopped by SIGTERM; the same command goes on from here", TERMINATED)
    if code:
        raise InputError(f"{' '.join(words[:2])} failed: see its message above")


def run_command(command: str, folder: Path, places: Mapping[str, Path | None]) -> float:
    """Run a command unless its run folder says that it is finished; return its seconds in all attempts together."""
    mark: dict[str, Any] = {"command": command, "seconds": 0.0, "finished": False}
    with suppress(OSError, ValueError, TypeError, LookupError):
        held = json.loads((folder / MARK).read_text(encoding="utf-8"))
        mark = held if held["command"] == command else mark
    if not mark["finished"]:
        logger.info("\n$ %s", command)
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            call(list(fill(command.split()[1:], places)))
            mark["finished"] = True
        finally:
            mark["seconds"] += time.monotonic() - start
            write_json(folder / MARK, mark)
    return mark["seconds"]


def result_of(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """What a command left in its run folder: lines of log.txt, and the predictions of the test (else val) set."""
    found: dict[str, Any] = {"name": name, "seconds": round(seconds, 1)}
    notes: list[str] = []
    if (folder / "log.txt").is_file():
        found["log"] = read_log(folder / "log.txt", notes)
    if notes:
        raise InputError(f"{folder}: {notes[0]}")
    for split in ("test", "val"):
        path = folder / f"predictions-{split}.npz"
        if path.is_file():
            held = read_predictions(path)
            selected = next(line for line in found["log"] if line["epoch"] == held.epoch)
            found["metrics"] = {"selected": selected, "last": found["log"][-1]}
            found["predictions"] = {  # arrays as words in one line
                "split": split,
                "epoch": held.epoch,
                "logits": " ".join(f"{value:.6g}" for value in held.logits[:, 0]),
                "labels": " ".join(map(str, held.labels)),
                "subjects": " ".join(held.subjects),
            }
            break
    return found


def predictions_of(runs: Sequence[dict[str, Any]]) -> Predictions | None:
    """The predictions of all runs of a cell together (by cross-validation: every subject once); None without any."""
    parts = [run["predictions"] for run in runs if "predictions" in run]
    if not parts:
        return None
    logits, labels, subjects = (
        np.concatenate([np.array(part[name].split(), dtype=kind) for part in parts])
        for name, kind in (("logits", np.float64), ("labels", np.int64), ("subjects", np.str_))
    )
    return Predictions(-1, logits[:, None], labels, subjects, subjects, None, ())


def machine() -> dict[str, Any]:
    """Date, code, hardware and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code_version": code_version(),
        "processor": (names or [platform.machine()])[0],
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "python": platform.python_version(),
        "libraries": {one.name: one.version for one in metadata.distributions() if one.name in LIBRARIES},
    }


def run_cell(name: str, seed: int, args: argparse.Namespace) -> None:
    """Run a cell that is not finished and write its JSON. Raises InputError for a JSON of other commands."""
    path = args.output / f"{name}.seed-{seed}.json"
    settings = recipe(args.recipes, name, seed)
    names = settings.pop("names")
    runs = args.data / "runs" / f"{name}.seed-{seed}"
    if path.is_file():
        if read_record(path)["commands"] != settings["commands"]:
            raise InputError(f"{path} was made by other commands: delete it, or name another folder with --output")
        logger.info("%s is finished.", path)
        return
    places = {"DATA": args.data.absolute(), "EEGMAT": args.eegmat, "EEGMMIDB": args.eegmmidb}
    places = {key: place and place.absolute() for key, place in places.items()}
    words = [word for command in settings["commands"] for word in command.split() if word.startswith("EEG")]
    list(fill(words, places))  # missing recordings are an error before anything is run
    results = []
    for run, command in zip(names, settings["commands"], strict=True):
        results.append(result_of(run, runs / run, run_command(command, runs / run, places)))
    held = predictions_of(results)
    measured = metrics.compute(TASK, held.logits, held.labels) if held else {}
    seconds = round(sum(result["seconds"] for result in results), 1)
    record = {**settings, "seconds": seconds, "machine": machine(), "metrics": measured, "runs": results}
    write_json(path, plain(record))
    for checkpoint in () if name.startswith(KEPT) else runs.glob("*/*.pth*"):  # 0.35 GB each
        checkpoint.unlink()
    logger.info("%s: %.1f minutes.", path, seconds / 60)


def main(args: argparse.Namespace) -> None:
    """Run cells, one after the other."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_writable(args.data, "--data")
    check_writable(args.output, "--output")
    order = dict.fromkeys(name for names in CELLS.values() for name in names)  # some are rows of two tables
    known = [name for name in order if (args.recipes / f"{name}.seed-{args.seed}.json").is_file()]
    for name in args.names or known:
        run_cell(name, args.seed, args)


if __name__ == "__main__":
    run_script(main, get_args())
