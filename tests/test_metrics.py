"""Metrics against formulas and other libraries' functions, the rule that selects an epoch by hand-made cases."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import linregress, mannwhitneyu

from data_helpers import only_line
from errors import UsageError
from training.metrics import METRICS, BestEpoch, compute, mean_score

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 200)
LOGITS = RNG.standard_normal(200) + LABELS - 0.2
CLASSES = RNG.integers(0, 4, 300)
SCORES = RNG.standard_normal((300, 4)) + 1.2 * np.eye(4)[CLASSES]


def test_two_classes_against_the_definitions() -> None:
    found = compute("binary", LOGITS[:, None], LABELS)
    positive, negative = LOGITS[LABELS == 1], LOGITS[LABELS == 0]
    pairs = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    order = np.argsort(-LOGITS)
    precision = np.cumsum(LABELS[order]) / np.arange(1, 201)
    predicted = (LOGITS >= 0).astype(int)
    recalls = [(predicted[c == LABELS] == c).mean() for c in (0, 1)]
    assert found == {
        "accuracy": pytest.approx((predicted == LABELS).mean(), rel=1e-12),
        "balanced_accuracy": pytest.approx(np.mean(recalls), rel=1e-12),
        "pr_auc": pytest.approx(precision[LABELS[order] == 1].mean(), rel=1e-12),
        "roc_auc": pytest.approx(pairs, rel=1e-12),
    }


def test_more_classes_against_the_definitions() -> None:
    found = compute("multiclass", SCORES, CLASSES)
    predicted = softmax(SCORES, axis=1).argmax(1)
    table = np.zeros((4, 4))
    np.add.at(table, (CLASSES, predicted), 1)
    agreed, by_chance = np.trace(table) / 300, (table.sum(0) * table.sum(1)).sum() / 300**2
    f1 = 2 * np.diag(table) / (table.sum(0) + table.sum(1))
    assert found == {
        "accuracy": pytest.approx(agreed, rel=1e-12),
        "balanced_accuracy": pytest.approx((np.diag(table) / table.sum(1)).mean(), rel=1e-12),
        "cohen_kappa": pytest.approx((agreed - by_chance) / (1 - by_chance), rel=1e-12),
        "f1_weighted": pytest.approx((f1 * table.sum(1)).sum() / 300, rel=1e-12),
    }


def test_regression_against_the_definitions() -> None:
    targets = RNG.standard_normal((80, 2)) * [1, 5]
    outputs = targets * 0.7 + RNG.standard_normal((80, 2)) + 0.3
    found = compute("regression", outputs, targets.astype(np.float32))
    targets = targets.astype(np.float32).astype(np.float64)
    residual = ((outputs - targets) ** 2).mean(0)
    assert found == {
        "pearson": pytest.approx(np.mean([linregress(outputs[:, i], targets[:, i]).rvalue for i in (0, 1)]), rel=1e-6),
        "r2": pytest.approx(np.mean(1 - residual / targets.var(0)), rel=1e-6),
        "rmse": pytest.approx(np.mean(np.sqrt(residual)), rel=1e-6),
    }


def test_one_class_only_or_targets_that_do_not_vary_give_no_invented_number() -> None:
    found = compute("binary", np.array([-1.0, 0.5, 2.0]), np.zeros(3, int))
    assert math.isnan(found["roc_auc"]) and math.isnan(found["pr_auc"])
    assert found["accuracy"] == pytest.approx(1 / 3)
    found = compute("regression", np.full((4, 1), 3.0), np.full((4, 1), 2.0))
    assert math.isnan(found["r2"]) and math.isnan(found["pearson"]) and found["rmse"] == 1


def selected(values: list[float | None], name: str = "roc_auc", task: str = "binary") -> tuple[int | None, list[bool]]:
    best = BestEpoch(name, task)
    news = [best.update(e, {} if v is None else {f"val_{name}": v, "test_x": e}) for e, v in enumerate(values)]
    return best.epoch, news


def test_the_best_value_wins_a_tie_keeps_the_earlier_epoch_and_without_validation_the_last_is_taken() -> None:
    assert selected([0.5, 0.7, 0.7, 0.6]) == (1, [True, True, False, False])
    assert selected([0.5, 0.7, 0.3, 0.3], "rmse", "regression") == (2, [True, False, True, False])
    assert selected([None, None, None]) == (2, [True, True, True])


def test_nan_never_replaces_a_number_and_any_number_replaces_nan() -> None:
    assert selected([math.nan, math.nan, 0.4, math.nan, 0.6, math.nan]) == (4, [True, False, True, False, True, False])


@pytest.mark.parametrize(
    ("values", "stopped_after"),
    [
        ([0.5, 0.4, 0.6, 0.5, 0.6], 4),  # a tie is no better
        ([0.5, math.nan, math.nan], 2),
        ([None, None, None, None], None),  # nothing to judge by
    ],
)
def test_patience_ends_after_that_many_epochs_in_a_row_without_a_better_value(
    values: list[float | None], stopped_after: int | None
) -> None:
    best = BestEpoch("roc_auc", "binary", patience=2)
    for epoch, value in enumerate(values):
        assert not best.stopped
        best.update(epoch, {} if value is None else {"val_roc_auc": value})
        if best.stopped:
            break
    assert (epoch if best.stopped else None) == stopped_after


def test_a_selection_continues_from_its_state() -> None:
    straight, resumed = BestEpoch("r2", "regression"), BestEpoch("r2", "regression")
    for epoch, value in enumerate([0.1, 0.4]):
        straight.update(epoch, {"val_r2": value})
    resumed.load_state_dict(straight.state_dict())
    for best in (straight, resumed):
        assert [best.update(epoch, {"val_r2": value}) for epoch, value in ((2, 0.4), (3, 0.5))] == [False, True]
    assert straight.state_dict() == resumed.state_dict()
    assert straight.epoch == 3 and straight.stats == straight.last == {"val_r2": 0.5}


def test_selection_by_a_metric_that_the_task_lacks_is_wrong_usage() -> None:
    with pytest.raises(UsageError) as error:
        BestEpoch("roc_auc", "multiclass")
    only_line(error, "--select_by roc_auc", "multiclass", *METRICS["multiclass"])


def test_the_score_of_several_data_sets_is_the_mean_of_what_is_known_and_lower_is_better_turns_round() -> None:
    def last(name: str, task: str, **stats: float) -> BestEpoch:
        best = BestEpoch(name, task)
        best.update(0, stats)
        return best

    auc, kappa = last("roc_auc", "binary", val_roc_auc=0.8), last("cohen_kappa", "multiclass", val_cohen_kappa=-0.5)
    undefined, unseen = last("r2", "regression", val_r2=math.nan), last("r2", "regression", test_r2=0.9)
    assert mean_score([auc, kappa, undefined, unseen]) == {"val_score": 0.4}
    assert mean_score([last("rmse", "regression", val_rmse=3.0), last("rmse", "regression", val_rmse=1.0)]) == {
        "val_score": -2.0
    }
    assert math.isnan(mean_score([undefined])["val_score"]) and mean_score([unseen]) == {}
