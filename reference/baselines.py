"""What MentalArithmetic is without LaBraM: logistic regression on band powers, EEGNet; and on LaBraM's own features.

`python -m reference.baselines logistic|eegnet|features --dataset FILE.hdf5 --output_dir DIR`

All see the same windows and splits as `run_class_finetuning.py`, select as it does, by validation AUROC, and leave the
same files, log.txt and predictions. Logistic regression selects the strength of its regularisation, EEGNet the epoch.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.signal import welch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eeg_data.hdf5 import UNIT, readable
from eeg_data.labelled import LabelledWindows, balanced_weights
from eeg_data.labelled_files import SAMPLING_RATE, read_labelled
from eeg_data.levels import OWNERS
from engine_for_finetuning import save_predictions, task_loss
from errors import ArgumentParser, InputError, UsageError, run_script
from files import check_writable, written_aside
from training import metrics
from training.centring import Centring
from training.metrics import SELECT_BY, BestEpoch

TASK = "binary"
BANDS = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}  # Hz
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C: the smaller, the stronger the regularisation
EEGNET_BATCH, EEGNET_RATE, EEGNET_EPOCHS = 64, 1e-3, 20
WAY_OUT = "make it with run_inference.py embed --pool mean"  # of a file of features

Logits = dict[str, np.ndarray]  # of each split, (samples, 1)
Attempts = Iterator[tuple[dict[str, Any], Logits]]  # of each attempt: what to log, logits


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.baselines", description=__doc__)
    parser.add_argument("kind", choices=("logistic", "eegnet", "features"))
    parser.add_argument("--dataset", type=Path, required=True, metavar="FILE", help="labelled HDF5 of two classes")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="for log.txt and predictions")
    parser.add_argument("--class_weights", choices=("none", "balanced"), default="none", help="as in stage 3")
    parser.add_argument("--center", choices=(*OWNERS, "none"), default="none", help="of features, or EEGNet's outputs")
    parser.add_argument("--features", type=Path, metavar="FILE", help="HDF5 of `run_inference.py embed --pool mean`")
    parser.add_argument("--epochs", type=int, default=EEGNET_EPOCHS, help="of EEGNet")
    parser.add_argument("--seed", type=int, default=0, help="of EEGNet; the others draw nothing")
    return parser.parse_args()


def band_powers(eeg: np.ndarray) -> np.ndarray:
    """Log band powers by Welch's method. eeg: (n, N, time) uV at 200 Hz -> (n, 5 N): electrode after electrode.

    Segments of 2 s overlap by half. A band's power is the mean of the density over the bins from its lower end to below
    its upper one, in uV^2/Hz.
    """
    frequencies, density = welch(eeg.astype(np.float64), SAMPLING_RATE, nperseg=min(2 * SAMPLING_RATE, eeg.shape[-1]))
    inside = [(frequencies >= low) & (frequencies < high) for low, high in BANDS.values()]
    powers = np.stack([density[..., bins].mean(axis=-1) for bins in inside], axis=-1)  # (n, N, 5)
    return np.log(powers + np.finfo(np.float64).tiny).reshape(len(eeg), -1)


def read_splits(path: Path) -> dict[str, LabelledWindows]:
    """The usable windows of each split.

    Raises InputError for other than two classes, for nothing in val, and for a train that holds a single class.
    """
    file = read_labelled(path)
    found = {split: LabelledWindows(file, split) for split in file.splits}
    splits = {split: windows for split, windows in found.items() if len(windows)}
    if file.task != TASK or "val" not in splits:
        raise InputError(f"{path}: a file of two classes with a group val is needed, which selects")
    if "train" not in splits or len(set(splits["train"].labels)) < 2:
        raise InputError(f"{path}: a group train with usable windows of both classes is needed: make the file again")
    return splits


def eeg_of(windows: LabelledWindows) -> np.ndarray:
    """All windows of a split, (n, N, time) in uV."""
    return np.stack([windows.samples.read(index) for index in range(len(windows))])


def features_of(path: Path, windows: LabelledWindows) -> np.ndarray:
    """Rows of a file of features that belong to a split's windows, (n, D), whatever split they have there.

    Windows of a recording are in order in both. Raises InputError where the file has other windows, or more than one
    row of features a window.
    """
    rows: dict[str, list[np.ndarray]] = {}
    with readable(f"--features {path}", WAY_OUT), h5py.File(path) as file:
        for group in file.values():
            if group["features"].ndim != 2:
                raise InputError(f"--features {path}: `features` must be (windows, D): {WAY_OUT}")
            for name, row in zip(group["recording"].asstr()[()], group["features"][()], strict=True):
                rows.setdefault(name, []).append(row)
    counts = Counter(windows.recordings)
    if any(len(rows.get(name, ())) != count for name, count in counts.items()):
        raise InputError(f"--features {path} has other windows than {windows.path}: make it from a file of the same")
    following = {name: iter(rows[name]) for name in counts}
    return np.stack([next(following[name]) for name in windows.recordings])


def logistic(features: dict[str, np.ndarray], labels: Logits, weights: str) -> Attempts:
    """Fit with each strength of regularisation, the strongest first."""
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, class_weight=None if weights == "none" else weights, max_iter=2000)
        model = make_pipeline(StandardScaler(), fitted).fit(features["train"], labels["train"])
        yield {"C": strength}, {split: model.decision_function(x)[:, None] for split, x in features.items()}


def eegnet(eeg: dict[str, np.ndarray], labels: Logits, weights: str, *, epochs: int, seed: int) -> Attempts:
    """Train braindecode's EEGNet with its defaults, an attempt after each epoch."""
    try:
        from braindecode.models import EEGNet
    except ImportError as error:
        raise UsageError(
            f"EEGNet is braindecode's, which cannot be imported ({error}): pip install --requirement "
            "benchmarks/requirements.txt --constraint constraints.txt"
        ) from error
    torch.manual_seed(seed)
    data = {split: torch.from_numpy(values / UNIT).float() for split, values in eeg.items()}
    target = torch.from_numpy(labels["train"])
    class_weights = balanced_weights(labels["train"], 2) if weights == "balanced" else None
    model = EEGNet(n_chans=data["train"].shape[1], n_outputs=1, n_times=data["train"].shape[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=EEGNET_RATE)
    for _ in range(epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(target)).split(EEGNET_BATCH):
            loss = task_loss(TASK, model(data["train"][rows]), target[rows], class_weights=class_weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        model.eval()
        with torch.no_grad():
            parts = {split: [model(part) for part in x.split(EEGNET_BATCH)] for split, x in data.items()}
        logits = {split: torch.cat(part).double().numpy() for split, part in parts.items()}
        yield {"train_loss": float(np.mean(losses))}, logits


def attempts(args: argparse.Namespace, splits: dict[str, LabelledWindows]) -> Attempts:
    """What the flags ask for, one attempt after the other."""
    labels = {split: windows.labels for split, windows in splits.items()}

    def centred(values: Logits) -> Logits:
        if args.center == "none":
            return values
        rule = Centring(args.center)
        return {split: rule.centre(x, rule.groups(splits[split])) for split, x in values.items()}

    if args.kind == "eegnet":
        eeg = {split: eeg_of(windows) for split, windows in splits.items()}
        for logged, logits in eegnet(eeg, labels, args.class_weights, epochs=args.epochs, seed=args.seed):
            yield logged, centred(logits)
        return
    if args.kind == "features":
        features = {split: features_of(args.features, windows) for split, windows in splits.items()}
    else:
        features = {split: band_powers(eeg_of(windows)) for split, windows in splits.items()}
    yield from logistic(centred(features), labels, args.class_weights)


def main(args: argparse.Namespace) -> None:
    """Fit, select by validation AUROC, write log.txt and the predictions."""
    if (args.kind == "features") != (args.features is not None):
        raise UsageError("--features FILE belongs to the kind `features`, which needs it")
    if args.epochs < 1:
        raise UsageError(f"--epochs {args.epochs}: must be at least 1")
    check_writable(args.output_dir, "--output_dir")
    splits = read_splits(args.dataset)
    measured = {name: windows for name, windows in splits.items() if name != "train"}
    best, lines = BestEpoch(SELECT_BY[TASK], TASK), []
    selected: Logits = {}
    last: Logits = {}
    for epoch, (logged, last) in enumerate(attempts(args, splits)):
        stats: dict[str, float] = {}
        for name, windows in measured.items():
            found = metrics.compute(TASK, last[name], windows.labels)
            stats |= {f"{name}_{key}": value for key, value in found.items()}
        lines.append({"epoch": epoch, **logged, **stats})
        if best.update(epoch, stats):
            selected = last
    assert best.epoch is not None
    for name, windows in measured.items():
        path = args.output_dir / f"predictions-{name}.npz"
        save_predictions(path, windows, selected=(best.epoch, selected[name]), last=(len(lines) - 1, last[name]))
    with written_aside(args.output_dir / "log.txt") as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    run_script(main, get_args())
