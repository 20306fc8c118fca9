"""The linear probe in closed form, against scikit-learn's Ridge on features that the test computes."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import cohen_kappa_score, r2_score, roc_auc_score

from run_helpers import CLASSIFIER, call, checkpoint, labelled_file, log, predictions
from test_centring import centred, features_of
from training.ridge import RATIOS, ridge_path

COUNTS = {"train": 18, "val": 12, "test": 6}
CLASSES = {"binary": ("a", "b"), "multiclass": ("a", "b", "c"), "regression": ("x", "y")}


@pytest.mark.parametrize("shape", [(40, 7), (9, 30)])
def test_every_strength_gives_scikit_learns_solution(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    x, y, weights = random.standard_normal(shape) + 3, random.standard_normal((shape[0], 2)), random.random(shape[0])
    found = ridge_path(*map(torch.from_numpy, (x, y, weights)))
    assert len(found) == len(RATIOS) and found[0][0] > found[-1][0]
    for strength, weight, bias in found:
        ridge = Ridge(alpha=strength, solver="svd").fit(x, y, sample_weight=weights)
        np.testing.assert_allclose(weight.numpy(), ridge.coef_, rtol=0, atol=1e-8)
        np.testing.assert_allclose(bias.numpy(), ridge.intercept_, rtol=0, atol=1e-8)


def labels_of(path: Path, split: str) -> np.ndarray:
    with h5py.File(path, locking=False) as file:
        return file[split]["label"][:]


def oracle(kind: str, strength: float, balanced: bool) -> Any:
    if kind == "regression":
        return Ridge(alpha=strength)
    return RidgeClassifier(alpha=strength, class_weight="balanced" if balanced else None)


SCORES = {
    "binary": lambda labels, outputs: roc_auc_score(labels, outputs),
    "multiclass": lambda labels, outputs: cohen_kappa_score(labels, outputs.argmax(1)),
    "regression": lambda labels, outputs: r2_score(labels, outputs),
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("binary", ["--center", "subject", "--class_weights", "balanced"]),
        ("multiclass", ["--class_weights", "balanced"]),
        ("regression", ["--center", "recording"]),
    ],
)
def test_the_head_is_scikit_learns_with_the_strength_that_validation_chooses(
    kind: str, words: list[str], tmp_path: Path
) -> None:
    path, n = tmp_path / "task.hdf5", len(CLASSES[kind])
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(n), [12, 6] if n == 2 else [9, 6, 3]))
    if kind == "regression":
        labels = np.random.default_rng(1).standard_normal((18, 2))
    labelled_file(path, counts=COUNTS, classes=CLASSES[kind], labels=labels, task=kind)
    if kind == "regression":
        with h5py.File(path, "r+") as file:
            for split in ("val", "test"):
                del file[split]["label"]
                file[split]["label"] = np.random.default_rng(2).standard_normal((COUNTS[split], 2))
    flags = ["--dataset", path, "--output_dir", tmp_path / "run", "--precision", "fp64", "--epochs", 9, *words]
    assert call("run_class_finetuning", *CLASSIFIER, *flags, "--linear_probe", "ridge") == 0
    (line,), state = log(tmp_path / "run"), checkpoint(tmp_path / "run" / "checkpoint-best.pth")["model"]

    length = {"subject": 4, "recording": 2}.get(words[1])
    features = {split: features_of(state, path, split) for split in COUNTS}
    if length:
        features = {split: centred(values, length) for split, values in features.items()}
    fitted = {}
    eigenvalues = np.linalg.svd(weighted(features["train"], labels, kind, "balanced" in words), compute_uv=False) ** 2
    for strength in eigenvalues.sum() / min(features["train"].shape) * RATIOS:
        fitted[strength] = oracle(kind, strength, "balanced" in words).fit(features["train"], labels)
    truth = labels_of(path, "val")
    outputs = {
        strength: model.predict(features["val"]) if kind == "regression" else model.decision_function(features["val"])
        for strength, model in fitted.items()
    }
    scores = {strength: SCORES[kind](truth, values) for strength, values in outputs.items()}
    chosen = max(scores, key=lambda strength: (round(scores[strength], 12), strength))
    assert line["train_ridge_strength"] == pytest.approx(chosen, rel=1e-9)
    weight, bias = state["head.weight"].numpy(), state["head.bias"].numpy()
    coefficients = np.atleast_2d(fitted[chosen].coef_)
    scale = 1.0 if kind == "regression" else np.linalg.norm(weight) / np.linalg.norm(coefficients)
    np.testing.assert_allclose(weight, scale * coefficients, rtol=0, atol=1e-7 * scale)
    np.testing.assert_allclose(bias, scale * np.atleast_1d(fitted[chosen].intercept_), rtol=0, atol=1e-7 * scale)
    found = predictions(tmp_path / "run" / "predictions-val.npz")["logits"]
    np.testing.assert_allclose(found, scale * outputs[chosen].reshape(found.shape), rtol=0, atol=1e-7 * scale)
    if kind == "binary":

        def loss(logits: np.ndarray) -> float:
            return float(np.logaddexp(0, -(2 * truth - 1) * logits[:, 0]).mean())

        assert line["val_loss"] == pytest.approx(loss(found))
        assert all(loss(found) <= loss(factor * found) + 1e-6 for factor in (0.8, 1.25)) or scale == pytest.approx(
            np.exp(-2), rel=1e-3
        )


def weighted(features: np.ndarray, labels: np.ndarray, kind: str, balanced: bool) -> np.ndarray:
    """Return features as the problem weighs them: minus their weighted mean, times the root of the weights."""
    weights = np.ones(len(features))
    if balanced:
        counts = np.bincount(labels)
        weights = (len(labels) / (len(counts) * counts))[labels]
    return np.sqrt(weights)[:, None] * (features - np.average(features, axis=0, weights=weights))
