"""What the demo shows at its end: losses and baselines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from eeg_data.hdf5 import UNIT, find_files
from eeg_data.labelled_files import read_labelled, read_samples
from eeg_data.pretraining_files import SAMPLING_RATE, Windows, read_recordings
from electrodes import embedding_rows
from modeling_vqnsp import VQNSP, spectrum_targets
from norm_ema_quantizer import usage


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's log.txt, one for each epoch."""
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def load_windows(folder: Path, stride: int) -> tuple[Tensor, Tensor]:
    """All windows of the demo's one montage: EEG (n, N, A, T) in units of 100 uV, channels (N + 1,)."""
    recordings = [recording for path in find_files([folder], "--train_data") for recording in read_recordings(path)]
    windows = Windows(recordings, stride=stride)
    eeg = torch.from_numpy(np.stack([windows[i] for i in range(len(windows))]) / UNIT)  # (n, N, A*T)
    return eeg.unflatten(-1, (-1, SAMPLING_RATE)), torch.tensor(embedding_rows(windows.montage))


def selected(folder: Path) -> dict[str, Any]:
    """The line of log.txt of the epoch that the validation set selected."""
    with np.load(folder / "predictions-test.npz", allow_pickle=False) as predictions:
        epoch = int(predictions["epoch"])
    return next(line for line in read_log(folder) if line["epoch"] == epoch)


def one_code_losses(eeg: Tensor) -> tuple[float, float]:
    """Least amplitude and phase loss that a tokenizer with a single code can reach on these windows.

    Its decoder sees only electrode and time, so the best it can predict is their mean spectrum over these windows.
    eeg: (n, N, A, T).
    """
    losses = [float((target - target.mean(0)).square().mean()) for target in spectrum_targets(eeg)]
    return losses[0], losses[1]


@torch.no_grad()
def tokenizer_losses(tokenizer: VQNSP, eeg: Tensor, channels: Tensor) -> dict[str, float]:
    """Amplitude and phase loss of a trained tokenizer on the same windows, and the use of its codes."""
    amplitude = phase = 0.0
    codes = []
    for batch in eeg.split(16):
        quantized, indices, _ = tokenizer.encode(batch, channels)
        truth, predicted = spectrum_targets(batch), tokenizer.decode(quantized, channels)
        amplitude += float((predicted[0] - truth[0]).square().mean()) * len(batch) / len(eeg)
        phase += float((predicted[1] - truth[1]).square().mean()) * len(batch) / len(eeg)
        codes.append(indices)
    counts = torch.bincount(torch.cat(codes), minlength=tokenizer.quantize.codebook_size)
    return {"amplitude": amplitude, "phase": phase, **usage(counts)}


def logistic_regression(task: Path) -> float:
    """Test balanced accuracy of a logistic regression on half-second means, fitted on all training trials."""
    file = read_labelled(task)
    features, labels = {}, {}
    for split in file.splits:
        data = read_samples(file, split).usable()
        eeg = np.stack([data.read(i) for i in range(len(data))])  # (n, N, A*T)
        features[split] = eeg.reshape(*eeg.shape[:2], -1, 100).mean(-1).reshape(len(eeg), -1)
        labels[split] = data.labels
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(*(np.concatenate([part["train"], part["val"]]) for part in (features, labels)))
    return float(balanced_accuracy_score(labels["test"], model.predict(features["test"])))
