"""The page of results, looked at in a real browser: no error, nothing cut off, nothing from the network."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import browser
from run_helpers import call
from test_results import SUBJECTS, WINDOWS, write_log, write_run

NAME = "<i>TUAB</i> & more"
ODD_CLASSES = ("spike and sharp wave, generalised", "<b>eyes</b>", "_artefact of $x$ {")


def write_other_task(folder: Path, task: str) -> Path:
    """Write a run of several classes or of regression."""
    write_run(folder, name=None)
    random, outputs = np.random.default_rng(1), 3 if task == "multiclass" else 2
    metric = "cohen_kappa" if task == "multiclass" else "r2"
    lines = [{"epoch": e, "train_loss": 1.0} for e in range(4)]
    for line in lines:
        numbers = {"loss": 0.5, metric: line["epoch"] / 4, **({"accuracy": 1.0} if outputs == 3 else {"rmse": 0.2})}
        line |= {f"{split}_{name}": value for split in ("val", "test") for name, value in numbers.items()}
    write_log(folder, lines)
    for split in ("val", "test"):
        logits = random.standard_normal((WINDOWS, outputs))
        labels: Any = np.arange(WINDOWS) % 3 if task == "multiclass" else logits + 0.2
        logits = np.eye(3)[labels] if task == "multiclass" else logits
        held = {"logits": logits, "last_logits": logits, "labels": labels, "epoch": 3, "last_epoch": 3}
        held |= {"recording": [f"r{i % 6}" for i in range(WINDOWS)], "subject": [""] * WINDOWS, "name": task}
        classes = ODD_CLASSES if task == "multiclass" else ("left knee", "right knee")
        np.savez(folder / f"predictions-{split}.npz", classes=classes, **held)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with runs of every task and stage on it, one of them unfinished."""
    folder = tmp_path_factory.mktemp("page")
    for seed in range(2):
        write_run(folder / "runs" / f"seed-{seed}", seed, name=NAME, finetune="a/very/long/name/" * 8)
    write_run(folder / "runs" / "seed-2", 2, name=NAME, epochs=3, finetune="a/very/long/name/" * 8)
    write_other_task(folder / "runs" / "several", "multiclass")
    write_other_task(folder / "runs" / "gait", "regression")
    for name, sign in (("tokenizer", "quant_loss"), ("masked", "mlm_acc")):
        (folder / "runs" / name).mkdir()
        lines = [{"epoch": e, "train_loss": 3 - e, f"train_{sign}": 0.5, "train_unigram_loss": 2.0} for e in range(3)]
        write_log(folder / "runs" / name, [{**line, "train_used_code": 5, "train_perplexity": 4} for line in lines])
    assert call("summarize_results", folder / "runs", "--draws", "40", "--published", "MentalArithmetic") == 0
    return folder / "runs" / "report.html"


@pytest.fixture(scope="module")
def seen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that looks at the page at a width, once each."""
    if browser.browser() is None:
        pytest.skip(f"no browser here: none of {', '.join(browser.NAMES)} (Debian: apt-get install chromium)")
    found: dict[int, dict[str, Any]] = {}

    def look(width: int) -> dict[str, Any]:
        if width not in found:
            found[width] = browser.look_at(page, tmp_path_factory.mktemp("browser"), width=width)
        return found[width]

    return look


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_without_errors_and_cuts_nothing_off(seen: Any, width: int) -> None:
    found = seen(width)
    assert found["width"] == width
    assert found["errors"] == []
    assert found["overflow"] <= 0 and found["cut"] == [] and found["requests"] == []
    # Binary: 5 curves, 3 of predictions, recordings and subjects. Several classes: 3, 3, 1. Regression: 3, 2, 1.
    # Tokenizer: loss, its part, codes, perplexity. Pre-training: loss, accuracy.
    assert len(found["figures"]) == 10 + 7 + 6 + 4 + 2
    for figure in found["figures"]:
        assert figure["loaded"] and figure["natural"] >= 600 and 300 <= figure["width"] <= min(width, 560)


def test_what_the_table_says_stands_on_the_page(seen: Any) -> None:
    text = seen(1280)["text"]
    assert NAME in text and "<b>eyes</b>" in text and "&lt;" not in text, "names are text and no markup"
    for part in ("here (2 runs)", "0.9111 \u00b1 0.0163", "other preprocessing: 64 Hz, average reference"):
        assert part in text
    assert "seed-2: unfinished, 3 of 4 epochs" in text
    assert f"draws of {SUBJECTS} subjects with replacement" in text
    assert "whole recordings are drawn" in text
    assert "--finetune" in text


def test_the_page_names_no_source_but_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    loading = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)\s*=\s*[\"'](?!data:)([^\"']*)", text)
    assert loading == [] and not re.search(r"url\(\s*[\"']?https?:", text)


def test_a_place_that_cannot_be_written_and_too_few_draws_are_wrong_usage_and_give_no_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert call("summarize_results", folder, "--report", tmp_path / "file" / "x.html", "--draws", "2") == 2
    assert call("summarize_results", folder, "--report", tmp_path, "--draws", "2") == 2
    assert call("summarize_results", folder, "--draws", "1") == 2
    assert not list(tmp_path.rglob("*.html"))
