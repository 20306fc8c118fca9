"""Turn recordings of any format that MNE reads into pre-training HDF5, one file per montage.

`python -m dataset_maker.make_h5dataset_for_pretrain --input recordings/ --output data/pretrain`
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
from collections.abc import Sequence
from pathlib import Path

from dataset_maker import making, pipeline, pool
from dataset_maker.sources import find_files
from errors import ArgumentParser, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
    pipeline.add_arguments(parser)
    pool.add_arguments(parser)
    return parser.parse_args()


def convert_recordings(
    args: argparse.Namespace, paths: Sequence[Path], *, maker: str, source: str, drop: Sequence[str] = ()
) -> None:
    """Turn recordings into pre-training HDF5 in the folder `args.output`; those that it holds already are skipped.

    maker: module with the hook `read`, if MNE does not read them. Raises InputError at the end if any was left out.
    """
    names = [path.name.removesuffix(".gz").rpartition(".")[0] for path in paths]
    tasks = [{"path": path, "recording": name} for path, name in zip(paths, names, strict=True)]
    making.make(args, maker, None, tasks, source=source, drop=drop)


def main(args: argparse.Namespace) -> None:
    """Convert every recording of --input; raises InputError at the end if any was left out."""
    maker = "dataset_maker.make_h5dataset_for_pretrain"
    convert_recordings(args, find_files(args.input, tell=True), maker=maker, source="recordings read by MNE")


if __name__ == "__main__":
    run_script(main, get_args())
