"""Turn recordings (EDF, BDF, CNT, GDF, BrainVision, EEGLAB, FIF) into pre-training HDF5, one file per montage.

`python -m dataset_maker.make_h5dataset_for_pretrain --input recordings/ --output data/pretrain`
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder is not on Python's path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_maker import common
from errors import ArgumentParser, run_script


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
    common.add_arguments(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Convert every recording found; raises InputError at the end if any was left out."""
    options = common.pipeline_options(args)
    paths = common.find_files(args.input)
    common.convert_recordings(paths, common.read_raw, args.output, source="recordings read by MNE", **options)


if __name__ == "__main__":
    run_script(main, get_args())
