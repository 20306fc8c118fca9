"""Results of runs next to the published ones: a table, and a page of figures, report.html.

DIR is the --output_dir of a run of any stage, or a folder of such folders. The epoch that counts is the one that the
training selected: with the best validation AUROC (two classes), Cohen's kappa (more), R2 (regression) or --select_by.
Standard deviations are those of a sample (n - 1). Published rows are those of the data set's name.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from errors import ArgumentParser, InputError, UsageError, run_script
from files import check_file

logger = logging.getLogger(__name__)

NAME = "report.html"
FORMATS = ("text", "markdown", "csv")


def get_args() -> argparse.Namespace:
    """Read the flags."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run, or of several")
    add("--format", choices=FORMATS, default="text", help="of the table")
    add("--report", type=Path, metavar="FILE.html", help=f"(default: {NAME} in the folder of all runs)")
    add("--no_report", action="store_true", help="make no page of figures, which takes seconds")
    add("--draws", type=int, default=1000, help="of subjects, for the page's bootstrap intervals")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Print the table and write the page. Raises InputError if there is no run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.draws < 2:
        raise UsageError(f"--draws {args.draws}: allowed are numbers from 2")
    if args.report is not None:
        check_file(args.report, "--report")
    from results import tables as result_tables  # here, because pandas takes a second that --help need not wait for
    from results.read import read_runs

    runs, notes = read_runs(args.folders)
    if not runs:
        raise InputError("; ".join(notes))
    tables = result_tables.make_tables(runs, notes)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack characters
    print(getattr(result_tables, f"as_{args.format}")(tables), flush=True)
    for note in notes:
        logger.warning("note: %s", note)
    if not args.no_report:
        from results import report as report_page

        path = args.report or Path(os.path.commonpath([run.folder.absolute() for run in runs])) / NAME
        check_file(path, "--report")
        report_page.write(path, tables, notes, draws=args.draws)
        logger.info("Figures: %s", path)


if __name__ == "__main__":
    run_script(main, get_args())
