"""Compare LaBraM's features with MOABB's own baseline, CSP + LDA: left or right fist, subject 1 of eegmmidb.

`python benchmarks/moabb_baseline.py --checkpoint FILE --eegmmidb DIR`

MOABB cuts the trials and evaluates both pipelines: ROC-AUC of five folds within the session, dealt with several seeds.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mne
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from errors import ArgumentParser, UsageError, run_script
from inference.features import LabramFeatures

FOLDER = "MNE-eegbci-data/files/eegmmidb/1.0.0/S001"  # where MOABB looks for the recordings


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="of stage 2 or 3, trained without these recordings")
    parser.add_argument("--eegmmidb", type=Path, required=True, metavar="DIR", help="holds S001R04.edf and so on")
    parser.add_argument("--seeds", type=int, default=3, help="of the folds (default: %(default)s)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Print the scores."""
    mne.set_log_level("error")
    try:
        from moabb.datasets import PhysionetMI
        from moabb.evaluations import WithinSessionEvaluation
        from moabb.paradigms import LeftRightImagery
        from pyriemann.estimation import Covariances
        from pyriemann.spatialfilters import CSP
    except ImportError:
        raise UsageError("this needs MOABB: python -m pip install -r requirements-peers.txt") from None
    with TemporaryDirectory() as folder:
        place = Path(folder, FOLDER)
        place.mkdir(parents=True)
        for path in args.eegmmidb.glob("S001R*.edf"):
            (place / path.name).symlink_to(path.resolve())
        os.environ["MNE_DATASETS_EEGBCI_PATH"] = folder
        source = PhysionetMI()
        source.subject_list = [1]
        wide, narrow = LeftRightImagery(fmin=0.1, fmax=75, resample=200), LeftRightImagery(fmin=8, fmax=32)
        names = wide.get_data(source, [1], return_epochs=True)[0].ch_names
        pipelines = {
            "CSP + LDA": (narrow, make_pipeline(Covariances("oas"), CSP(nfilter=6), LinearDiscriminantAnalysis()))
        }
        for pool, strength in (("mean", 1.0), ("electrodes", 0.01)):
            features = LabramFeatures(args.checkpoint, names, pool=pool)
            regression = LogisticRegression(C=strength, max_iter=1000)
            pipelines[f"LaBraM, {pool}"] = wide, make_pipeline(features, StandardScaler(), regression)
        for name, (paradigm, pipeline) in pipelines.items():
            options = {"paradigm": paradigm, "datasets": [source], "overwrite": True, "hdf5_path": folder}
            rows = [
                WithinSessionEvaluation(**options, random_state=seed).process({name: pipeline}).iloc[0]
                for seed in range(args.seeds)
            ]
            scores = ", ".join(f"{row['score']:.2f}" for row in rows)
            print(f"{name}: {scores} ({rows[0]['samples']:.0f} trials, {rows[0]['channels']} electrodes)", flush=True)


if __name__ == "__main__":
    run_script(main, get_args())
