"""The linear probe in closed form, against scikit-learn's Ridge on features that the test computes."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import Ridge
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


def column(path: Path, split: str, name: str) -> np.ndarray:
    with h5py.File(path, locking=False) as file:
        return file[split][name][:]


def problem(kind: str, labels: np.ndarray, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return targets (n, outputs) and weights (n,)."""
    counts = np.bincount(labels) if balanced else np.ones(1)
    weights = (len(labels) / (len(counts) * counts))[labels] if balanced else np.ones(len(labels))
    if kind == "regression":
        return labels, weights
    return 2.0 * (labels[:, None] if kind == "binary" else np.eye(3)[labels]) - 1, weights


def solved(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ratio: float) -> tuple[float, Ridge]:
    """Solve with scikit-learn; the strength is in units of the mean eigenvalue."""
    rooted = np.sqrt(weights)[:, None] * (x - np.average(x, axis=0, weights=weights))
    strength = float((np.linalg.svd(rooted, compute_uv=False) ** 2).sum() / min(x.shape) * ratio)
    return strength, Ridge(alpha=strength).fit(x, y, sample_weight=weights)


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
        ("regression", ["--center", "recording", "--recipe", "small"]),
    ],
)
def test_the_head_is_scikit_learns_with_the_strength_that_left_out_subjects_choose(
    kind: str, words: list[str], tmp_path: Path
) -> None:
    path, n = tmp_path / "task.hdf5", len(CLASSES[kind])
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(n), [12, 6] if n == 2 else [9, 6, 3]))
    if kind == "regression":
        labels = np.random.default_rng(1).standard_normal((18, 2))
    labelled_file(path, counts=COUNTS, classes=CLASSES[kind], labels=labels, task=kind)
    with h5py.File(path, "r+") as file:  # no validation set is needed
        del file["val"]
        if kind == "regression":
            del file["test/label"]
            file["test/label"] = np.random.default_rng(2).standard_normal((COUNTS["test"], 2))
    flags = ["--dataset", path, "--output_dir", tmp_path / "run", "--precision", "fp64", "--epochs", 9, *words]
    assert call("run_class_finetuning", *CLASSIFIER, *flags, "--linear_probe", "ridge") == 0
    (line,), state = log(tmp_path / "run"), checkpoint(tmp_path / "run" / "checkpoint-best.pth")["model"]

    length = {"subject": 4, "recording": 2}.get(words[1])
    features = {split: features_of(state, path, split) for split in ("train", "test")}
    if length:
        features = {split: centred(values, length) for split, values in features.items()}
    x, (y, weights) = features["train"], problem(kind, labels, "balanced" in words)
    subjects = np.unique(column(path, "train", "subject"), return_inverse=True)[1]
    assert subjects.max() == 4  # five, each left out once
    outputs = np.empty((len(RATIOS), *y.shape))
    for own, ratio in zip(outputs, RATIOS, strict=True):
        for subject in range(5):
            out = subjects == subject
            own[out] = solved(x[~out], y[~out], weights[~out], ratio)[1].predict(x[out]).reshape(-1, y.shape[1])
    best = int(np.argmax([round(SCORES[kind](labels, own), 12) for own in outputs]))
    strength, ridge = solved(x, y, weights, RATIOS[best])
    assert line["train_ridge_strength"] == pytest.approx(strength, rel=1e-9)
    weight, bias = state["head.weight"].numpy(), state["head.bias"].numpy()
    coefficients = np.atleast_2d(ridge.coef_)
    scale = 1.0 if kind == "regression" else np.linalg.norm(weight) / np.linalg.norm(coefficients)
    np.testing.assert_allclose(weight, scale * coefficients, rtol=0, atol=1e-7 * scale)
    np.testing.assert_allclose(bias, scale * np.atleast_1d(ridge.intercept_), rtol=0, atol=1e-7 * scale)
    found = predictions(tmp_path / "run" / "predictions-test.npz")["logits"]
    np.testing.assert_allclose(found, scale * ridge.predict(features["test"]).reshape(found.shape), atol=1e-7 * scale)
    if kind == "binary":  # nothing to learn: the lowest factor
        assert scale == pytest.approx(np.exp(-2), rel=1e-3)
    if kind == "multiclass":

        def loss(factor: float) -> float:
            return -float(log_softmax(factor * outputs[best], axis=1)[np.arange(len(labels)), labels].mean())

        assert all(loss(scale) < loss(other * scale) for other in (0.8, 1.25))


def test_one_training_subject_cannot_choose_a_strength_and_what_is_not_finite_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = labelled_file(tmp_path / "task.hdf5", counts={"train": 4})
    flags = ["--dataset", path, "--output_dir", tmp_path / "run", "--linear_probe", "ridge"]
    assert call("run_class_finetuning", *CLASSIFIER, *flags) == 1
    assert "are of one subject (train-subject0), and others" in capsys.readouterr().err
    path = labelled_file(tmp_path / "odd.hdf5", counts={"train": 8})
    with h5py.File(path, "r+") as file:
        file["train/eeg"][5, 0, 0] = np.nan
    assert call("run_class_finetuning", *CLASSIFIER, *flags, "--dataset", path) == 1
    assert "group train, recording train-recording2: the model's output is not finite" in capsys.readouterr().err
