"""LaBraM's features in scikit-learn's pipelines, MOABB's among them.

from inference.features import LabramFeatures

pipeline = make_pipeline(LabramFeatures("checkpoints/labram-base.pth", ch_names=names), LogisticRegression())
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import mne
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from eeg_data.pretraining_files import SAMPLING_RATE
from errors import InputError
from inference.model import BATCH, Model, load

_load = lru_cache(maxsize=2)(load)  # clones of a transformer, one for each fold, share the model


class LabramFeatures(TransformerMixin, BaseEstimator):
    """Features of trials under a trained model: (trials, electrodes, time) in uV -> (trials, features).

    checkpoint: of stage 2 or 3, a path or hf://ORG/REPO. ch_names: of the electrodes. sfreq: of the trials in Hz; other
    rates are resampled to 200. pool: of `inference.POOLS`; features of electrodes or patches follow each other. Of a
    trial whole seconds are used; where it is longer than a window of the model, its windows' features are averaged.
    Nothing is learnt by `fit`. MOABB's paradigms should not filter away what the model knows: fmin=0.1, fmax=75.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        ch_names: Sequence[str],
        *,
        sfreq: float = SAMPLING_RATE,
        pool: str = "mean",
        batch_size: int = BATCH,
        device: str = "cpu",
    ) -> None:
        self.checkpoint, self.ch_names, self.sfreq = checkpoint, ch_names, sfreq
        self.pool, self.batch_size, self.device = pool, batch_size, device

    def fit(self, X: Any, y: Any = None) -> "LabramFeatures":
        """Do nothing but return this object."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Return True: there is nothing to fit."""
        return True

    def transform(self, X: Any) -> np.ndarray:
        """Compute the features. Raises InputError for another shape, unknown electrodes, and EEG of another unit."""
        eeg = np.asarray(X, dtype=np.float64)
        if eeg.ndim != 3:
            raise InputError(f"LabramFeatures: trials of shape {eeg.shape}; expected (trials, electrodes, time)")
        if self.sfreq != SAMPLING_RATE:
            eeg = mne.filter.resample(eeg, SAMPLING_RATE, self.sfreq, method="polyphase", verbose="error")
        model: Model = _load(str(self.checkpoint), device=self.device)
        options: dict[str, Any] = {"electrodes": list(self.ch_names), "pool": self.pool, "batch_size": self.batch_size}
        features = model.embed(eeg, **options).features  # (trials * windows, ...)
        return features.reshape(len(eeg), -1, *features.shape[1:]).mean(axis=1).reshape(len(eeg), -1)
