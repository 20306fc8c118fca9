"""Results by subject and bootstrap intervals, against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import bootstrap as scipys_bootstrap
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from results.read import Predictions
from results.report import bootstrap, recordings_of, subjects_of, unit_metrics, unit_table, units_of


def predictions(
    logits: np.ndarray, labels: np.ndarray, recordings: list[str], subjects: list[str] | None = None
) -> Predictions:
    names = recordings if subjects is None else subjects
    return Predictions(0, logits, labels, np.array(recordings), np.array(names), "x", ())


def subjects_with_one_class(classes: int, seed: int = 0) -> Predictions:
    """Seven subjects with a class and three to nine windows each, in no order."""
    random = np.random.default_rng(seed)
    owner = random.permutation(np.repeat(np.arange(7), np.arange(3, 10)))
    labels = owner % classes
    outputs = 1 if classes == 2 else classes
    logits = 2 * random.standard_normal((len(owner), outputs))
    return predictions(logits, labels, [f"r{o}" for o in owner], [f"s{o}" for o in owner])


def test_a_subjects_score_is_the_mean_probability_of_its_windows() -> None:
    found = subjects_with_one_class(2)
    means, labels = [], []
    for name in sorted(set(found.subjects)):
        own = [i for i, subject in enumerate(found.subjects) if subject == name]
        means.append(sum(expit(found.logits[i, 0]) for i in own) / len(own))
        labels.append(found.labels[own[0]])
    measured = unit_metrics("binary", found, subjects_of(found))
    assert measured is not None
    assert measured["roc_auc"] == pytest.approx(roc_auc_score(labels, means))
    assert measured["pr_auc"] == pytest.approx(average_precision_score(labels, means))
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels, [mean >= 0.5 for mean in means]))


def test_a_subject_with_windows_of_two_classes_has_no_class() -> None:
    found = predictions(np.zeros((3, 1)), np.array([0, 1, 0]), ["a", "a", "b"])
    assert unit_metrics("binary", found, recordings_of(found)) is None


def test_recordings_stand_for_subjects_that_are_not_known() -> None:
    found = predictions(np.zeros((2, 1)), np.array([0, 1]), ["a", "b"], ["s", ""])
    assert subjects_of(found).kind == "recording" and subjects_of(found).names == ["a", "b"]
    assert subjects_of(predictions(np.zeros((2, 1)), np.array([0, 1]), ["a", "b"], ["s", "t"])).kind == "subject"


def test_rows_count_windows_and_what_is_right() -> None:
    logits = np.array([[1.0], [-1.0], [2.0], [-3.0]])
    found = predictions(logits, np.array([1, 1, 0, 0]), ["b", "b", "a", "a"])
    table = unit_table("binary", [found, found], recordings_of(found))
    columns = ["recording", "windows", "class", "right"]
    assert table[columns].to_numpy().tolist() == [["a", 2, "0", 0.5], ["b", 2, "1", 0.5]]
    assert table["probability"][0] == pytest.approx((expit(2) + expit(-3)) / 2)


def test_rows_of_a_regression_hold_its_error() -> None:
    found = predictions(np.array([[1.0], [5.0], [0.0]]), np.array([[0.0], [2.0], [4.0]]), ["a", "a", "b"])
    table = unit_table("regression", [found], recordings_of(found))
    assert table["rmse"].tolist() == pytest.approx([np.sqrt((1 + 9) / 2), 4.0])


def test_intervals_are_scipys_percentile_intervals() -> None:
    random = np.random.default_rng(5)
    labels = np.tile([0, 1], 15)
    logits = random.standard_normal((30, 1)) + labels[:, None]
    names = [f"s{i:02d}" for i in range(30)]  # a window a subject
    found = predictions(logits, labels, names)
    drawn = bootstrap("binary", [found], units_of("subject", names), draws=400, seed=3)
    right = ((logits[:, 0] >= 0) == labels).astype(float)
    expected = scipys_bootstrap(
        (right,), np.mean, n_resamples=400, method="percentile", rng=np.random.default_rng(3), vectorized=True
    ).confidence_interval
    assert drawn.draws == 400 and drawn.skipped == 0
    assert drawn.runs[0]["accuracy"] == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert drawn.mean == drawn.runs[0]


def test_whole_subjects_are_drawn_and_not_windows() -> None:
    # Of two subjects one is always right and one never: with windows drawn, every share between would come.
    labels = np.array([0, 1] * 10)
    right = np.repeat([1, -1], 10)
    logits = (right * (2 * labels - 1)).astype(float)[:, None]
    found = predictions(logits, labels, ["a"] * 10 + ["b"] * 10)
    drawn = bootstrap("binary", [found], recordings_of(found), draws=300)
    assert drawn.mean["accuracy"] == (0.0, 1.0)


def test_draws_of_one_class_are_left_out_and_counted() -> None:
    found = predictions(np.array([[-1.0], [1.0]]), np.array([0, 1]), ["a", "b"])
    drawn = bootstrap("binary", [found], recordings_of(found), draws=1000)
    assert drawn.draws + drawn.skipped == 1000
    assert 420 < drawn.skipped < 580, "half of the draws of two subjects are of one alone"
    assert drawn.mean["accuracy"] == (1.0, 1.0)
    one = predictions(np.zeros((2, 1)), np.array([0, 0]), ["a", "b"])
    assert bootstrap("binary", [one], recordings_of(one), draws=20) == ({}, [{}], 0, 20)


def test_the_interval_of_a_mean_over_runs_is_of_the_same_draws() -> None:
    labels = np.tile([0, 1], 10)
    names = [f"s{i}" for i in range(20)]
    one = np.random.default_rng(1).standard_normal((20, 1))
    runs = [predictions(logits, labels, names) for logits in (one, -one)]
    drawn = bootstrap("binary", runs, recordings_of(runs[0]), draws=200)
    # Where one run is right the other is wrong: their mean accuracy is a half in every draw.
    assert drawn.mean["accuracy"] == pytest.approx((0.5, 0.5))
    assert drawn.runs[0]["accuracy"][0] < 0.4
