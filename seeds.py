"""Stage 3 with several seeds, one after the other: each is an ordinary run in a folder of its own, then the table.

So each resumes by itself, and the folder of a seed can be continued with `--seed N --output_dir .../seed-N`.
"""

import argparse
import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path

import results
import table_formats
from errors import InputError, UsageError
from labelled_files import labelled_path
from progress import log_to_terminal
from result_tables import make_tables

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flag of several seeds."""
    parser.add_argument_group("several runs").add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=None,
        metavar="N",
        help="train with these seeds one after the other, in output_dir/seed-N, and print the table of their results",
    )


def run_each(args: argparse.Namespace, run_one: Callable[[argparse.Namespace], None]) -> None:
    """Call `run_one` with the flags of each seed, then print the table of all. Every process must call it.

    Raises UsageError for seeds that cannot be right, before the first one begins.
    """
    main = int(os.environ.get("RANK", 0)) == 0
    log_to_terminal(logging.INFO if main else logging.WARNING)
    check_flags(args)
    if args.eval:
        check_data(args)
    for number, seed in enumerate(args.seeds, start=1):
        logger.info("Seed %d (%d of %d).", seed, number, len(args.seeds))
        run_one(flags_of(args, seed))
        gc.collect()  # what a model keeps in cycles would stand in the memory of the next one
    if main:
        print_table(args)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for seeds and flags that do not go together."""
    if min(args.seeds) < 0:
        raise UsageError(f"--seeds {min(args.seeds)}: allowed are numbers from 0")
    twice = sorted({seed for seed in args.seeds if args.seeds.count(seed) > 1})
    if twice:
        raise UsageError(f"--seeds has {twice[0]} twice: the second run would be the first one again")
    if args.resume is not None:
        raise UsageError(
            f"--resume {args.resume} is of one run, --seeds are several: leave it out (each seed goes on from its own "
            "folder), or use --seed"
        )


def check_data(args: argparse.Namespace) -> None:
    """Raise UsageError where other data are to be evaluated: the table is of what the runs' logs hold."""
    runs, _ = results.read_runs([flags_of(args, seed).output_dir for seed in args.seeds])
    given = _place(args.dataset, args.data_dir)
    for run in runs:
        trained = run.flags.get("dataset", args.dataset)
        if _place(trained, run.flags.get("data_dir", args.data_dir)) not in (None, given):
            raise UsageError(
                f"--seeds and --eval measure runs on the set of their training, --dataset {trained}: for "
                f"{args.dataset} use --eval --resume {run.folder}/checkpoint-best.pth with another --output_dir"
            )


def _place(dataset: str, data_dir: Path | str) -> str | None:
    """Where a data set lies; None if it is not there any more."""
    try:
        return os.path.realpath(labelled_path(str(dataset), Path(data_dir)))
    except InputError:
        return None


def flags_of(args: argparse.Namespace, seed: int) -> argparse.Namespace:
    """The flags with which a run of its own would do what one of `--seeds` does."""
    places = {name: getattr(args, name) for name in ("output_dir", "log_dir")}
    own = {name: folder and folder / f"seed-{seed}" for name, folder in places.items()}
    return argparse.Namespace(**{**vars(args), **own, "seed": seed, "seeds": None})


def print_table(args: argparse.Namespace) -> None:
    """The results of all seeds beside the published ones, on standard output."""
    folders = [flags_of(args, seed).output_dir for seed in args.seeds]
    runs, notes = results.read_runs(folders, select_by=args.select_by)
    if not runs:
        raise InputError(f"{args.output_dir}: {'; '.join(notes)}")
    tables = make_tables(runs, notes)
    table_formats.write_out(table_formats.as_text(tables, notes))
    logger.info("python summarize_results.py %s makes a page of figures of them.", args.output_dir)
