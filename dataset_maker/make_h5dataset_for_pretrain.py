"""Turn recordings (EDF, BDF, CNT, GDF, BrainVision, EEGLAB, FIF) into pre-training HDF5, one file per montage.

`python -m dataset_maker.make_h5dataset_for_pretrain --input recordings/ --output data/pretrain`
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from dataset_maker import jobs, pipeline
from dataset_maker.pretraining import convert_recordings
from dataset_maker.sources import find_files
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import ArgumentParser, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
    pipeline.add_arguments(parser)
    jobs.add_arguments(parser)
    return parser.parse_args()


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
        spread=jobs.Spread.from_args(args),
    )


if __name__ == "__main__":
    run_script(main, get_args())
