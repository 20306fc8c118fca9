"""Run one cell of the reference run: its commands, one after the other, then one JSON with what came of them.

`python -m reference.cell tokenizer --data reference_run`

A cell whose JSON is there is not run again, and one that was stopped goes on: finished commands are not repeated, and
the project's scripts continue from their last checkpoint. `--plan` lists cells and seeds in the order of `run.sh`, of
the size cpu with the minutes expected on two free cores.
"""

import argparse
import glob
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import INTERRUPTED, TERMINATED, ArgumentParser, InputError, Interrupted, UsageError, run_script
from files import check_writable, write_json
from reference import records
from reference.cells import Cell, Step, cells, folder_of, plan
from reference.settings import SIZES, expected_minutes

logger = logging.getLogger("reference")

PROJECT = Path(__file__).resolve().parents[1]
MARK = "command.json"  # in a run folder: the command, its seconds so far, whether it is finished


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.cell", description=__doc__)
    parser.add_argument("name", nargs="?", help="of the cell; --plan lists them")
    parser.add_argument("--data", type=Path, default=Path("reference_run"), help="folder of HDF5 files and runs")
    parser.add_argument("--output", type=Path, default=PROJECT / "reference/results", help="folder of the JSONs")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="settings.py says what each is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eegmat", type=Path, metavar="DIR", help="recordings of eegmat, for the cell data")
    parser.add_argument("--eegmmidb", type=Path, metavar="DIR", help="recordings of eegmmidb, for the cell data")
    parser.add_argument("--plan", action="store_true", help="list cells and seeds in their order, and stop")
    args = parser.parse_args()
    if not args.plan and args.name not in cells(args.size):
        parser.error(f"{'no cell was named' if args.name is None else f'no cell {args.name}'}: --plan lists them")
    return args


def commands_of(cell: Cell, seed: int) -> list[str]:
    """The commands of a cell as they stand in its JSON, with the folders' placeholders."""
    return [shlex.join(("python", *words_of(cell, seed, step))).replace("'", "") for step in cell.steps(seed)]


def words_of(cell: Cell, seed: int, step: Step) -> tuple[str, ...]:
    """What follows `python`, the output included."""
    if step.output is not None:
        return (*step.words, "--output", step.output)
    return (*step.words, "--output_dir", folder_of(cell.name, seed, step.name))


def run_folder(data: Path, cell: str, seed: int, step: Step) -> Path:
    """Where a step's run lies in the folder that stands for DATA."""
    return data / folder_of(cell, seed, step.name).removeprefix("DATA/")


def filled(words: tuple[str, ...], places: Mapping[str, Path | None]) -> Iterator[str]:
    """Words with real folders for DATA, EEGMAT and EEGMMIDB, patterns of files in the latter resolved.

    Raises UsageError for a folder that was not given, InputError for a pattern that no file has.
    """
    for word in words:
        name, slash, rest = word.partition("/")
        if name not in places:
            yield word
            continue
        folder = places[name]
        if folder is None:
            raise UsageError(f"this cell reads recordings: name their folder with --{name.lower()} DIR")
        if not glob.has_magic(rest):
            yield str(folder / rest) if slash else str(folder)
            continue
        found = sorted(map(str, folder.glob(rest)))
        if not found:
            raise InputError(f"--{name.lower()} {folder}: no file there is called {rest}; README says what it holds")
        yield from found


def call(words: list[str]) -> None:
    """Run a command; Ctrl-C and SIGTERM reach it, and it ends as it does by itself. Raises InputError if it fails."""
    environment = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), **os.environ}
    with subprocess.Popen([sys.executable, *words], cwd=PROJECT, env=environment) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while True:
                try:
                    code = process.wait()
                    break
                except KeyboardInterrupt:  # the command, of the same terminal, has got it too and saves its state
                    continue
        finally:
            signal.signal(signal.SIGTERM, before)
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code in (TERMINATED, -signal.SIGTERM):
        raise Interrupted("stopped by SIGTERM; the same command goes on from here", TERMINATED)
    if code:
        raise InputError(f"{words[1] if words[0] == '-m' else words[0]} failed: see its message above")


def mark_of(folder: Path, command: str) -> dict[str, Any]:
    """What a folder notes of this command; of another one, or where the note is damaged, that nothing is done."""
    try:
        held = json.loads((folder / MARK).read_text(encoding="utf-8"))
        if held["command"] == command:
            return {"command": command, "seconds": float(held["seconds"]), "finished": held["finished"] is True}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"command": command, "seconds": 0.0, "finished": False}


def run_step(cell: Cell, seed: int, step: Step, places: Mapping[str, Path | None]) -> dict[str, Any]:
    """Run a command unless it is finished; returns what goes into the JSON."""
    data = places["DATA"]
    assert data is not None
    folder = run_folder(data, cell.name, seed, step)
    folder.mkdir(parents=True, exist_ok=True)
    words = words_of(cell, seed, step)
    command = shlex.join(("python", *words))
    mark = mark_of(folder, command)
    if not mark["finished"]:
        logger.info("\n$ %s", command)
        begun = time.monotonic()
        try:
            call(list(filled(words, places)))
            mark["finished"] = True
        finally:
            mark["seconds"] += time.monotonic() - begun
            write_json(folder / MARK, mark)
    return records.of_run(step.name, folder, mark["seconds"])


def tidy(cell: Cell, seed: int, data: Path) -> None:
    """Remove the checkpoints of finished runs, 0.35 GB each, but for the ones that other cells start from."""
    for step in cell.steps(seed):
        folder = run_folder(data, cell.name, seed, step)
        if not mark_of(folder, shlex.join(("python", *words_of(cell, seed, step))))["finished"]:
            continue  # the cell is finished, but in another folder
        for path in folder.glob("*.pth*"):
            if cell.table != "stages" or not path.name.startswith("checkpoint.pth"):
                path.unlink()


def check_needs(cell: Cell, args: argparse.Namespace) -> None:
    """Raise InputError where a cell that this one starts from is not finished here."""
    known = cells(args.size)
    for name in cell.needs:
        path = records.path_of(args.output, name, 0)
        flags = ("--size", args.size, "--data", str(args.data), "--output", str(args.output))
        begin = shlex.join(("python", "-m", "reference.cell", name, *flags))
        if not path.is_file():
            raise InputError(f"cell {cell.name} needs cell {name}, which has no {path}: run {begin} first")
        for step in known[name].steps(0):
            if not (run_folder(args.data, name, 0, step) / MARK).is_file():
                raise InputError(
                    f"cell {name} was run elsewhere: there is {path}, but what it made is not in {args.data}. Name "
                    "an empty folder with --output to run all of it here"
                )


def main(args: argparse.Namespace) -> None:
    """Run a cell, or list all."""
    if args.plan:
        for name, seed in plan(args.size):
            print(name, seed, *([f"{expected_minutes(name)} min"] if args.size == "cpu" else []))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cell = cells(args.size)[args.name]
    if args.seed not in cell.seeds:
        raise UsageError(f"--seed {args.seed}: cell {cell.name} has {', '.join(map(str, cell.seeds))}")
    path = records.path_of(args.output, cell.name, args.seed)
    settings = {"cell": cell.name, "seed": args.seed, "size": args.size, "commands": commands_of(cell, args.seed)}
    if records.finished(path, settings):
        logger.info("%s is there: nothing to do.", path)
        tidy(cell, args.seed, args.data)  # it may have been stopped before it came to that
        return
    check_writable(args.data, "--data")
    check_writable(args.output)
    check_needs(cell, args)
    resolved = {"DATA": args.data, "EEGMAT": args.eegmat, "EEGMMIDB": args.eegmmidb}
    places = {name: folder.resolve() if folder is not None else None for name, folder in resolved.items()}
    for step in cell.steps(args.seed):  # a folder that is missing is said before anything has been run
        list(filled(step.words, places))
    runs = [run_step(cell, args.seed, step, places) for step in cell.steps(args.seed)]
    record = {
        **settings,
        "title": cell.title,
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "machine": records.machine(),
        "metrics": records.pooled_metrics(runs),
        "runs": runs,
    }
    records.write(path, record)
    tidy(cell, args.seed, args.data)
    logger.info("%s: %.1f minutes.", path, record["seconds"] / 60)


if __name__ == "__main__":
    run_script(main, get_args())
