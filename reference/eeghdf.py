"""Get the two clinical recordings that the package eeghdf carries, unless they are there: as `python -m demo` does."""

import argparse
import logging
from pathlib import Path

from demo.data import EEGHDF, RECORDINGS, extract, fetch
from errors import ArgumentParser, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.eeghdf", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the recordings")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Download and take the recordings out of the archive."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.output.mkdir(parents=True, exist_ok=True)
    if not all((args.output / name).is_file() for name in RECORDINGS):
        extract(fetch(EEGHDF, args.output), RECORDINGS, args.output)


if __name__ == "__main__":
    run_script(main, get_args())
