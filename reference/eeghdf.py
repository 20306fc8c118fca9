"""Get the two clinical recordings of the package eeghdf as `python -m demo` does, unless they are there."""

import argparse
import logging
from pathlib import Path

from demo.data import recordings
from errors import ArgumentParser, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.eeghdf", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the recordings")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Download the archive and take the recordings out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.output.mkdir(parents=True, exist_ok=True)
    recordings(args.output)


if __name__ == "__main__":
    run_script(main, get_args())
