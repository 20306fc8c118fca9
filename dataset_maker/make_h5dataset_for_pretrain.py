"""Turn recordings of any format that MNE reads into pre-training HDF5, one file per montage.

`python -m dataset_maker.make_h5dataset_for_pretrain --input recordings/ --output data/pretrain`
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_maker import bids, making, pipeline, pool
from dataset_maker.sources import find_files
from errors import ArgumentParser, UsageError, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    inputs = "files, folders, or BIDS data sets, of which raw EEG alone is taken"
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help=inputs)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
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


def main(args: argparse.Namespace) -> None:
    """Convert every recording of --input; raises InputError at the end if any was left out."""
    roots = [path for path in args.input if (path / bids.DESCRIPTION).is_file()]
    others = [path for path in args.input if path not in roots]
    if others and (given := [f"--{flag}" for flag in bids.ENTITIES if getattr(args, flag)]):
        raise UsageError(f"{' '.join(given)}: of BIDS data sets alone; {others[0]} has no {bids.DESCRIPTION}")
    tasks = [task for root in roots for task in bids.find(root, args, "--input")]
    tasks += tasks_of(find_files(others, tell=True)) if others else []
    bids.settle_notch(args, tasks)
    maker = "dataset_maker.make_h5dataset_for_pretrain"
    making.make(args, maker, None, tasks, source="recordings read by MNE")


if __name__ == "__main__":
    run_script(main, get_args())
