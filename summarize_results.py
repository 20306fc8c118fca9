"""Results of runs beside the published ones: a table, and a page of figures, report.html.

DIR is the --output_dir of a run of any stage, or a folder of such folders. The epoch
that counts is the one with the best validation AUROC (two classes), Cohen's kappa (more) or R2 (regression), never one
that the test set chose. Standard deviations are those of a sample (n - 1).
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from errors import ArgumentParser, InputError, UsageError, run_script
from files import check_writable, written_aside
from results import NO_ROWS, published_sets

logger = logging.getLogger(__name__)

NAME = "report.html"
FORMATS = ("text", "markdown", "latex", "csv", "json")


def get_args() -> argparse.Namespace:
    """Read the flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run, or of several")
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the table")
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help="of the table (default: the terminal)"
    )
    parser.add_argument(
        "--report", type=Path, default=None, metavar="FILE.html", help=f"(default: {NAME} in the folder of all runs)"
    )
    parser.add_argument("--no_report", action="store_true", help="make no page of figures, which takes seconds")
    parser.add_argument(
        "--published",
        choices=[*published_sets(), NO_ROWS],
        metavar="NAME",
        help=f"whose published rows to show: {', '.join(published_sets())} or {NO_ROWS} (default: the data set's own)",
    )
    parser.add_argument("--select_by", metavar="METRIC", help="of the validation set, instead of the paper's rule")
    parser.add_argument("--draws", type=int, default=1000, help="of subjects, for the page's bootstrap intervals")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Print the table and write the page. Raises InputError if there is no run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.draws < 2:
        raise UsageError(f"--draws {args.draws}: allowed are numbers from 2")
    for flag, path in (("--output", args.output), ("--report", args.report)):
        if path is not None and path.is_dir():
            raise UsageError(f"{flag} {path} is a folder: name a file in it")
    from results import tables as result_tables  # here, because pandas takes a second that --help need not wait for
    from results.read import read_runs

    runs, notes = read_runs(args.folders, select_by=args.select_by)
    if not runs:
        raise InputError("; ".join(notes))
    tables = result_tables.make_tables(runs, notes, published=args.published)
    text = result_tables.FORMATS[args.format](tables, notes)
    if args.output is None:
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack characters
        print(text, end="", flush=True)
    else:
        check_writable(args.output.parent, "--output")
        with written_aside(args.output) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    if not args.no_report:
        path = args.report or folder_of_all([run.folder for run in runs]) / NAME
        from results import report as report_page

        check_writable(path.parent, "--report")
        report_page.write(path, tables, notes, draws=args.draws)
        logger.info("Figures: %s", path)


def folder_of_all(folders: list[Path]) -> Path:
    """The run's own folder, or the deepest one that holds all of several; relative if they all are."""
    if len({folder.is_absolute() for folder in folders}) > 1:
        folders = [folder.absolute() for folder in folders]
    return Path(os.path.commonpath(folders) or ".")


if __name__ == "__main__":
    run_script(main, get_args())
