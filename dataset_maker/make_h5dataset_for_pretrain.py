"""Turn recordings of any format that MNE reads into pre-training HDF5, one file per montage.

`python -m dataset_maker.make_h5dataset_for_pretrain --input recordings/ --output data/pretrain`
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_maker import bids, jobs, making, pipeline, pool
from dataset_maker.sources import find_files, read_list
from errors import ArgumentParser, InputError, UsageError, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    inputs = "files, folders, or BIDS data sets, of which raw EEG alone is taken"
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help=inputs)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
    exclude = "text file of subjects or recordings to leave out, one a line; '*' and '?' make patterns"
    parser.add_argument("--exclude", type=Path, metavar="LIST", help=exclude)
    pipeline.add_arguments(parser)
    pool.add_arguments(parser)
    bids.add_arguments(parser)
    return parser.parse_args()


def convert_recordings(
    args: argparse.Namespace, paths: Sequence[Path], *, maker: str, source: str, drop: Sequence[str] = ()
) -> None:
    """Turn recordings into pre-training HDF5 in the folder `args.output`; those that it holds already are skipped.

    maker: module with the hook `read`, if MNE does not read them. Raises InputError at the end if any was left out.
    """
    making.make(args, maker, None, tasks_of(paths), source=source, drop=drop)


def tasks_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a task for each recording, which is called as its file."""
    return [{"path": path, "recording": path.name.removesuffix(".gz").rpartition(".")[0]} for path in paths]


def left_in(args: argparse.Namespace, tasks: Sequence[jobs.Task]) -> tuple[list[jobs.Task], list[str]]:
    """Return the tasks that --exclude leaves, and the paths of the others.

    Raises InputError if it leaves none, or if the output folder holds a recording that it names.
    """
    entries_of, used = read_list(args.exclude, "--exclude"), set[str]()
    if there := [path for path in jobs.held(args.output) if entries_of(Path(path))]:
        advice = "delete this folder, or name another --output"
        raise InputError(f"{args.output} holds {there[0]} already, which --exclude {args.exclude} names: {advice}")
    kept, excluded = list[jobs.Task](), list[str]()
    for task in tasks:
        used |= (entries := entries_of(Path(task["path"])))
        if entries:
            excluded.append(str(task["path"]))
        else:
            kept.append(task)
    print(f"--exclude {args.exclude}: {len(excluded)} of {len(tasks)} recordings are left out, by {len(used)} entries")
    if not excluded:
        print(f"warning: --exclude {args.exclude} names none of the recordings", file=sys.stderr)
    if not kept:
        raise InputError(f"--exclude {args.exclude} leaves no recording; correct it, or --input")
    return kept, excluded


def main(args: argparse.Namespace) -> None:
    """Convert every recording of --input; raises InputError at the end if any was left out."""
    roots = [path for path in args.input if (path / bids.DESCRIPTION).is_file()]
    others = [path for path in args.input if path not in roots]
    if others and (given := [f"--{flag}" for flag in bids.ENTITIES if getattr(args, flag)]):
        raise UsageError(f"{' '.join(given)}: of BIDS data sets alone; {others[0]} has no {bids.DESCRIPTION}")
    tasks = [task for root in roots for task in bids.find(root, args, "--input")]
    tasks += tasks_of(find_files(others, tell=True)) if others else []
    tasks, excluded = left_in(args, tasks) if args.exclude else (tasks, [])
    bids.settle_notch(args, tasks)
    maker = "dataset_maker.make_h5dataset_for_pretrain"
    making.make(args, maker, None, tasks, source="recordings read by MNE", excluded=excluded)


if __name__ == "__main__":
    run_script(main, get_args())
