"""The page of results, and its numbers by subject and bootstrap intervals against scikit-learn, SciPy, closed forms."""

import base64
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import bootstrap as scipys_bootstrap
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from results.read import Predictions
from results.report import drawn_metrics, interval, places_of, subjects_of, unit_metrics
from run_helpers import call
from test_results import WINDOWS, write_log, write_run
from training.metrics import METRICS

NAME = "<i>TUAB</i> & more"
ODD_CLASSES = ("spike and sharp wave, generalised", "<b>eyes</b>", "_artefact of $x$ {")
ACCURACY = METRICS["binary"].index("accuracy")


def predictions(
    logits: np.ndarray, labels: Any, recordings: list[str], subjects: list[str] | None = None
) -> Predictions:
    names = recordings if subjects is None else subjects
    return Predictions(0, logits, np.array(labels), np.array(recordings), np.array(names), "x", ())


def test_a_subjects_score_is_the_mean_probability_of_its_windows() -> None:
    random = np.random.default_rng(0)
    owner = random.permutation(np.repeat(np.arange(7), np.arange(3, 10)))
    names = [f"s{i}" for i in owner]
    one = predictions(2 * random.standard_normal((len(owner), 1)), owner % 2, names)
    means = [expit(one.logits[owner == i, 0]).mean() for i in range(7)]
    labels = np.arange(7) % 2
    measured = unit_metrics("binary", one, subjects_of(one))
    assert measured is not None
    assert measured["roc_auc"] == pytest.approx(roc_auc_score(labels, means))
    assert measured["pr_auc"] == pytest.approx(average_precision_score(labels, means))
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels, [mean >= 0.5 for mean in means]))


def test_a_subject_with_windows_of_two_classes_has_no_class() -> None:
    one = predictions(np.zeros((3, 1)), [0, 1, 0], ["a", "a", "b"])
    assert unit_metrics("binary", one, places_of(one.recordings)) is None


def test_recordings_stand_for_subjects_that_are_not_known() -> None:
    for subjects, number in ((["s", ""], 2), (["s", "s"], 1)):
        assert len(subjects_of(predictions(np.zeros((2, 1)), [0, 1], ["a", "b"], subjects))) == number


def test_intervals_are_scipys_percentile_intervals() -> None:
    random = np.random.default_rng(5)
    labels = np.tile([0, 1], 15)
    one = predictions(random.standard_normal((30, 1)) + labels[:, None], labels, [f"s{i:02d}" for i in range(30)])
    ends = interval(drawn_metrics("binary", [one], places_of(one.recordings), draws=400, seed=3))
    right = ((one.logits[:, 0] >= 0) == labels).astype(float)
    expected = scipys_bootstrap(
        (right,), np.mean, n_resamples=400, method="percentile", rng=np.random.default_rng(3), vectorized=True
    ).confidence_interval
    assert ends[:, 0, ACCURACY] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_whole_subjects_are_drawn_and_not_windows() -> None:
    # Of two subjects one is always right and one never: with windows drawn, every share between would come.
    labels = np.array([0, 1] * 10)
    logits = (np.repeat([1, -1], 10) * (2 * labels - 1)).astype(float)[:, None]
    one = predictions(logits, labels, ["a"] * 10 + ["b"] * 10)
    drawn = drawn_metrics("binary", [one], places_of(one.recordings), draws=100)[:, 0, ACCURACY]
    assert set(drawn) == {0.0, 0.5, 1.0}


@pytest.mark.filterwarnings("error")
def test_draws_of_one_class_are_left_out() -> None:
    one = predictions(np.array([[-1.0], [1.0]]), [0, 1], ["a", "b"])
    drawn = drawn_metrics("binary", [one], places_of(one.recordings), draws=1000)
    assert 420 < np.isnan(drawn[:, 0, ACCURACY]).sum() < 580, "half of the draws of two subjects are of one alone"
    assert (interval(drawn)[:, 0, ACCURACY] == 1).all()
    assert np.isnan(interval(np.full((5, 1, 4), np.nan))).all()


def test_the_interval_of_a_mean_over_runs_is_of_the_same_draws() -> None:
    labels, names = np.tile([0, 1], 10), [f"s{i}" for i in range(20)]
    logits = np.random.default_rng(1).standard_normal((20, 1))
    runs = [predictions(one, labels, names) for one in (logits, -logits)]
    drawn = drawn_metrics("binary", runs, places_of(runs[0].recordings), draws=100)[:, :, ACCURACY]
    # Where one run is right the other is wrong: their mean accuracy is a half in every draw.
    assert interval(drawn.mean(axis=1)) == pytest.approx([0.5, 0.5]) and interval(drawn)[0, 0] < 0.4


# The page


def write_other_task(folder: Path, task: str) -> None:
    """Write a run of several classes or of regression."""
    write_run(folder)
    random, outputs = np.random.default_rng(1), 3 if task == "multiclass" else 2
    metric = "cohen_kappa" if task == "multiclass" else "r2"
    numbers = {"loss": 0.5, **({"accuracy": 1.0} if task == "multiclass" else {"rmse": 0.2})}
    splits = {f"{split}_{name}": value for split in ("val", "test") for name, value in numbers.items()}
    lines = [{"epoch": e, "train_loss": 1.0, f"val_{metric}": e / 4, f"test_{metric}": e / 4} for e in range(4)]
    write_log(folder, [line | splits for line in lines])
    for split in ("val", "test"):
        logits = random.standard_normal((WINDOWS, outputs))
        labels: Any = np.arange(WINDOWS) % 3 if task == "multiclass" else logits + 0.2
        logits = np.eye(3)[labels] if task == "multiclass" else logits
        held = {"logits": logits, "last_logits": logits, "labels": labels, "epoch": 3, "last_epoch": 3}
        held |= {"recording": [f"r{i % 6}" for i in range(WINDOWS)], "subject": [""] * WINDOWS, "name": task}
        classes = ODD_CLASSES if task == "multiclass" else ("left knee", "right knee")
        np.savez(folder / f"predictions-{split}.npz", classes=classes, **held)


def test_the_page_holds_tables_and_figures_of_every_task_and_loads_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, epochs in ((0, 4), (1, 4), (2, 3)):
        write_run(runs / f"seed-{seed}", seed, name=NAME, epochs=epochs)
    write_other_task(runs / "several", "multiclass")
    write_other_task(runs / "gait", "regression")
    for name, sign in (("tokenizer", "quant_loss"), ("masked", "mlm_acc")):
        (runs / name).mkdir()
        lines = [{"epoch": e, "train_loss": 3 - e, f"train_{sign}": 0.5, "train_used_code": 5} for e in range(3)]
        write_log(runs / name, lines)
    assert call("summarize_results", runs, "--draws", "40") == 0
    page = (runs / "report.html").read_text(encoding="utf-8")
    sources = [source.partition(",") for source in re.findall(r'(?:src|href)="(.*?)"', page)]
    assert {kind for kind, _, _ in sources} == {"data:image/png;base64"}, "nothing is loaded"
    assert not {"script", "link", "b", "i"} & set(re.findall(r"<(\w+)", page)), "names are text and no markup"
    images = [base64.b64decode(content) for _, _, content in sources]
    # Binary: loss, 4 metrics, 3 of predictions. Several classes: 3 and 3. Regression: 3, an output each. Tokenizer:
    # loss, its part, codes. Pre-training: loss, accuracy.
    assert len(images) == 8 + 6 + 5 + 3 + 2
    assert all(image.startswith(b"\x89PNG") and len(image) > 5000 for image in images)
    text = html.unescape(re.sub(r"<.*?>", "", page))
    for part in (NAME, "here (2 runs)", "seed-2: unfinished, 3 of 4 epochs"):
        assert part in text
    assert "draws of whole subjects" in text and "draws of whole recordings" in text


def test_a_place_that_cannot_be_written_and_too_few_draws_are_wrong_usage_and_give_no_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    for words in (("--report", tmp_path / "file" / "x.html"), ("--report", tmp_path), ("--draws", "1")):
        assert call("summarize_results", folder, *words) == 2
    assert not list(tmp_path.rglob("*.html"))
