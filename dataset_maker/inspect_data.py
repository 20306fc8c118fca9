"""Look at data before training on them: `python -m dataset_maker.inspect_data data/pretrain data/TUAB.hdf5`.

Says for every montage of pre-training files and for every labelled set what it holds, which seconds cannot be used,
whether the unit may be wrong, and how the splits compare with the published ones. Lines to act on begin with
`warning:`. Files without stored quality are scanned once; the result is kept in a cache folder ($LABRAM_CACHE).
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from dataset_maker import inspect_report
from errors import ArgumentParser, InputError, one_line, run_script
from files import check_file, write_json


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m dataset_maker.inspect_data", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE", help="HDF5 files, or folders of them")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a few windows and the spectrum of each set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed as JSON, too")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Print a report of every set; ends with exit code 1 if a file cannot be read."""
    for flag, output in (("--plot", args.plot), ("--json", args.json)):
        if output is not None:
            check_file(output, flag)
    found: list[inspect_report.Found] = []
    unreadable = []

    def complain(error: InputError) -> None:
        unreadable.append(error)
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)

    for path in args.paths:
        try:
            for one in inspect_report.look_into(path, complain):
                print("\n".join(inspect_report.text(one)), end="\n\n", flush=True)
                found.append(one)
        except InputError as error:
            complain(error)
    if args.json:
        write_json(args.json, [one.report for one in found])
    if args.plot and found:
        from dataset_maker import inspect_plot  # only here: matplotlib takes a second to start

        inspect_plot.draw(found, args.plot)
    if unreadable:
        sys.exit(InputError.exit_code)


if __name__ == "__main__":
    run_script(main, get_args())
