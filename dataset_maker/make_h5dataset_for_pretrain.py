"""Turn recordings (EDF, BDF, CNT, GDF, BrainVision, EEGLAB, FIF) into pre-training HDF5, one file per montage.

`python -m dataset_maker.make_h5dataset_for_pretrain --input recordings/ --output data/pretrain`
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from dataset_maker import jobs, pipeline, report
from dataset_maker.jobs import Plan, Spread
from dataset_maker.pipeline import Pipeline
from dataset_maker.sources import find_files
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import ArgumentParser, InputError, run_script
from files import check_writable


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
    pipeline.add_arguments(parser)
    jobs.add_arguments(parser)
    return parser.parse_args()


def convert_recordings(
    paths: Sequence[Path], output: Path, *, maker: str, source: str, pipeline: Pipeline, spread: Spread
) -> None:
    """Turn recordings into pre-training HDF5 in the folder `output`, with a bar, a summary and a report.

    maker: module with the hook `read`, if MNE does not read them. Recordings that the folder holds already are passed
    over. One that fails is left out and named; an InputError at the end says how many these are.
    """
    began, output = time.monotonic(), output.resolve()
    tasks = jobs.stamped(
        {"path": path, "recording": path.name.removesuffix(".gz").rpartition(".")[0]} for path in paths
    )
    plan = Plan(maker, pipeline, output, {"source": source} | pipeline.described())
    check_writable(report.report_path(output).parent)
    with jobs.only_maker(plan), spread.executor() as executor:
        entries, seconds = jobs.run(plan, tasks, executor, others_allowed=True)
    whole = report.summary(entries, plan.made, output) | {"montages": report.montages(entries)}
    report.save(whole)
    report.show(whole, seconds, time.monotonic() - began)
    if count := len(whole["left_out"]):
        others = f"the others are in {output}" if whole["converted"] else "nothing was converted"
        raise InputError(f"{count} of {len(tasks)} recordings were left out, named above; {others}")


def main(args: argparse.Namespace) -> None:
    """Convert every recording found; raises InputError at the end if any was left out."""
    if args.rsfreq != SAMPLING_RATE:
        print(
            f"warning: with --rsfreq {args.rsfreq:g} the files cannot train this project's models, which take "
            f"{SAMPLING_RATE} Hz",
            file=sys.stderr,
        )
    convert_recordings(
        find_files(args.input),
        args.output,
        maker="dataset_maker.make_h5dataset_for_pretrain",
        source="recordings read by MNE",
        pipeline=pipeline.build_pipeline(args),
        spread=Spread.from_args(args),
    )


if __name__ == "__main__":
    run_script(main, get_args())
