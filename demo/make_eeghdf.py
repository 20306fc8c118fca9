"""Turn recordings in the eeghdf format (`*.eeg.h5`: int16 signals with a calibration) into pre-training HDF5.

`python -m demo.make_eeghdf --input absence_epilepsy.eeg.h5 spasms.eeg.h5 --output data/pretrain`

The package eeghdf 0.2.4 carries two such clinical recordings (Stanford; 200 Hz; mains 60 Hz, hence this maker's
default). Of their 36 channels the 19 of the 10-20 system are kept; the file's patient fields are never read.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("demo"))  # for a start by the file's path

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np

from dataset_maker import pipeline, pool
from dataset_maker.make_h5dataset_for_pretrain import convert_recordings
from dataset_maker.reasons import recording_readable
from dataset_maker.sources import find_files
from errors import ArgumentParser, run_script

UNITS = {"uV": 1e-6, "µV": 1e-6, "mV": 1e-3, "V": 1.0}  # volts
GROUND_AND_POLYGRAPHY = ("E", "Pg1", "Pg2", "X2", "X3", "X4", "X5", "X6", "X7")
BEYOND_TEN_TWENTY = ("A1", "A2", "FT9", "FT10")


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="*.eeg.h5 or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the HDF5 files")
    pipeline.add_arguments(parser)
    parser.set_defaults(notch=60.0)
    pool.add_arguments(parser)
    return parser.parse_args()


def read(task: Mapping[str, Any]) -> mne.io.BaseRaw:
    """Read the first record of an eeghdf file: channels in volts at its nominal rate, nothing else of the file."""
    path = Path(task["path"])
    with recording_readable(path), h5py.File(path, "r", locking=False) as file:
        record = file["record-0"]
        names = [name.strip() for name in record["signal_labels"].asstr()[:]]
        units = [UNITS.get(unit.strip()) for unit in record["physical_dimensions"].asstr()[:]]
        d_min, d_max, p_min, p_max = (
            record[f"signal_{kind}"][:].astype(np.float64)[:, None]
            for kind in ("digital_mins", "digital_maxs", "physical_mins", "physical_maxs")
        )
        eeg = record["signals"][:].astype(np.float64)  # (N, time), digital
        eeg = (eeg - d_min) * ((p_max - p_min) / (d_max - d_min)) + p_min  # (N, time), physical
        eeg *= np.array([unit or 1.0 for unit in units])[:, None]  # (N, time), V
        rate = round(float(record.attrs["sample_frequency"]), 6)  # 200.00000000000003 Hz in these files
        info = mne.create_info(names, rate, ["eeg" if unit else "misc" for unit in units])
        return mne.io.RawArray(eeg, info, verbose="error")


def main(args: argparse.Namespace) -> None:
    """Convert every recording found; raises InputError at the end if any was left out."""
    paths, drop = find_files(args.input, suffixes=(".eeg.h5",)), GROUND_AND_POLYGRAPHY + BEYOND_TEN_TWENTY
    convert_recordings(args, paths, maker="demo.make_eeghdf", source="eeghdf", drop=drop)


if __name__ == "__main__":
    run_script(main, get_args())
