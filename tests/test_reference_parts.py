"""Parts of the reference run that its cells on tiny recordings leave out: curves, the two recordings, expected time."""

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib import pyplot as plt

from demo import data
from files import sha256
from reference import cell, cells, eeghdf, figures

HERE = Path(cells.__file__).parent

# Text


def measured(cell_name: str) -> list[tuple[float, float, float]]:
    """Return the tokenizer's held-out loss, nats gained and AUROC of an ablation, by seed, from the shipped files."""
    found = []
    for seed in range(3):
        record = json.loads((HERE / f"results/ablation-{cell_name}.seed-{seed}.json").read_text())
        tokenizer, masked = (run["log"][-1] for run in record["runs"][:2])
        gain = masked["val_unigram_loss"] / 2 - masked["val_loss"] / (1 if "one-mask" in cell_name else 2)
        found.append((tokenizer["test_loss"], gain, record["metrics"]["roc_auc"]))
    return found


@pytest.mark.parametrize(
    ("row", "against", "column", "words"),
    [
        ("no-revival", "all", 0, "is higher by {} for it (512 codes)"),
        ("codes-8192-no-revival", "codes-8192", 0, "by {} (8192)"),
        ("no-kmeans", "all", 0, "(a loss higher by {})"),
        ("sequential", "all", 0, "the tokenizer's loss is higher by {}, and"),
        ("all", "sequential", 1, "the masked model gains less by {} nats, which leaves it above"),
        ("all", "no-electrodes", 1, "the masked model gains less by {} nats and stays above"),
        ("all", "one-mask", 1, "one mask in as many epochs (by {} nats)"),
        ("one-mask-twice", "all", 1, "which cost as much (by {})"),
        ("all", "codes-2048", 1, "gains less by {} nats, with 8192"),
        ("all", "codes-8192", 1, "with 8192 by {}, and neither"),
        ("all", "codes-2048", 2, "with 2048 codes AUROC is lower by {}."),
    ],
)
def test_differences_of_the_ablations_are_those_of_the_files(row: str, against: str, column: int, words: str) -> None:
    more = [
        f"{max(one[column] - other[column], 0):.3f}"
        for one, other in zip(measured(row), measured(against), strict=True)
    ]
    said = words.format("{}, {} and {}".format(*more))
    assert said in " ".join((HERE / "README.md").read_text(encoding="utf-8").split())


def test_only_one_ablation_changes_auroc_to_the_same_side_three_times() -> None:
    names = [path.name.partition(".")[0] for path in HERE.glob("results/ablation-*.seed-0.json")]
    names.remove("ablation-all")
    assert len(names) == 9
    base = measured("all")
    signs = {
        name: {one[2] > other[2] for one, other in zip(measured(name.removeprefix("ablation-")), base, strict=True)}
        for name in names
    }
    assert [name for name, found in signs.items() if len(found) == 1] == ["ablation-codes-2048"]


def test_scores_in_the_text_about_mental_arithmetic_stand_in_its_tables() -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    text = text.partition("## MentalArithmetic, by")[2].partition("## Does each part")[0]
    tables, prose = "", ""
    for piece in re.split("<!-- begin ", text):
        name, end, rest = piece.rpartition("<!-- end ")
        tables, prose = tables + name, prose + (rest.partition("-->")[2] if end else piece)
    scores = set(re.findall(r"\b0\.\d{3}\b", prose))
    assert len(scores) > 20 and tables.count("| method |") == 2 and "| method |" not in prose
    trained, scratch = aurocs("pretrained-even"), aurocs("scratch-even")
    told = [
        "{:.3f}, {:.3f} and {:.3f}".format(*np.subtract(trained, scratch)),
        f"they differ by {np.ptp(trained):.3f}, from scratch they range from {min(scratch):.3f} to {max(scratch):.3f}",
    ]
    for words in told:
        assert words in " ".join(prose.split())
    assert not scores - set(re.findall(r"\b0\.\d{3}\b", " ".join([tables, *told])))
    short = " ".join((HERE.parent / "README.md").read_text(encoding="utf-8").split())
    said = re.search(r"AUROC ([\d.]+) against ([\d.]+) from scratch in eight folds.*?band powers \(([\d.]+)\)", short)
    means = [f"{np.mean(found):.3f}" for found in (trained, scratch, aurocs("logistic-even"))]
    assert said and list(said.groups()) == means


def aurocs(row: str) -> list[float]:
    """Return a method's AUROC in cross-validation, by seed, from the shipped files."""
    records = [json.loads(path.read_text()) for path in sorted(HERE.glob(f"results/cv-{row}.seed-*.json"))]
    return [record["metrics"]["roc_auc"] for record in records]


# Curves


def logged(**columns: list[float | None]) -> dict[str, Any]:
    """Return a cell's record whose first run logged these columns, an epoch a row; None: the epoch lacks the key."""
    lines: list[dict[str, Any]] = []
    for epoch, values in enumerate(zip(*columns.values(), strict=True)):
        logged_ones = {key: value for key, value in zip(columns, values, strict=True) if value is not None}
        lines.append({"epoch": epoch, **logged_ones})
    return {"runs": [{"log": lines}, {"log": []}]}


def curves(axis: Any) -> dict[str, list[tuple[float, float]]]:
    """Return label -> points of what an axis shows."""
    return {line.get_label(): [tuple(map(float, point)) for point in line.get_xydata()] for line in axis.lines}


@pytest.fixture
def found() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Cells with the logs of which all figures are drawn; what is drawn of them is closed."""
    stages = {
        "tokenizer": logged(
            train_loss=[3, 2], test_loss=[3.5, None], train_used_code=[10, 12], train_perplexity=[5, 6.5]
        ),
        "pretraining": logged(
            train_loss=[6, 5], val_loss=[6.5, 5.5], train_unigram_loss=[7, 6.9], val_unigram_loss=[None, None]
        ),
    }
    books = {
        "ablation-codes-8192": logged(test_used_code=[100, 4000], test_perplexity=[50, 2000], test_loss=[3, 2.5]),
        "ablation-codes-8192-no-revival": logged(test_used_code=[9, 1], test_perplexity=[3, 1], test_loss=[3, 2.75]),
    }
    folds = {
        "cv-pretrained-even": logged(train_loss=[0.7, 0.5], val_roc_auc=[0.5, 0.75]),
        "cv-scratch-even": logged(train_loss=[0.7, 0.6], val_roc_auc=[0.5, 0.625]),
    }
    yield {name: [record, logged(train_loss=[9])] for name, record in (stages | books | folds).items()}
    plt.close("all")


def test_curves_of_the_stages_are_the_logged_values_and_skip_epochs_without_one(found: dict[str, Any]) -> None:
    tokenizer, codebook, masked = figures.stage_curves(found).axes
    assert curves(tokenizer) == {"training": [(1, 3), (2, 2)], "held out": [(1, 3.5)]}
    assert curves(codebook) == {"codes in use": [(1, 10), (2, 12)], "perplexity": [(1, 5), (2, 6.5)]}
    assert curves(masked) == {
        "training": [(1, 6), (2, 5)],
        "held out": [(1, 6.5), (2, 5.5)],
        "code frequencies alone, training": [(1, 7), (2, 6.9)],
    }
    assert masked.get_xlabel() == "epoch" and masked.get_ylabel() == "loss (nats)"


def test_curves_of_the_codebook_show_it_with_and_without_revival(found: dict[str, Any]) -> None:
    used, perplexity, loss = figures.codebook_curves(found).axes
    assert curves(used) == {"revival": [(1, 100), (2, 4000)], "no revival": [(1, 9), (2, 1)]}
    assert curves(perplexity) == {"revival": [(1, 50), (2, 2000)], "no revival": [(1, 3), (2, 1)]}
    assert curves(loss) == {"revival": [(1, 3), (2, 2.5)], "no revival": [(1, 3), (2, 2.75)]}
    assert used.get_ylabel() == "codes in use of 8192, held out"


def test_curves_of_fine_tuning_show_it_with_and_without_pre_training(found: dict[str, Any]) -> None:
    loss, auc = figures.fine_tuning_curves(found).axes
    assert curves(loss) == {"pre-trained": [(1, 0.7), (2, 0.5)], "from scratch": [(1, 0.7), (2, 0.6)]}
    assert curves(auc) == {"pre-trained": [(1, 0.5), (2, 0.75)], "from scratch": [(1, 0.5), (2, 0.625)]}
    assert auc.get_ylabel() == "validation AUROC"


def test_a_figure_is_drawn_and_linked_when_all_its_cells_are_there(found: dict[str, Any], tmp_path: Path) -> None:
    del found["cv-scratch-even"]
    before = plt.get_fignums()
    figures.draw(found, tmp_path / "figures")
    drawn = {path.name: plt.imread(path) for path in (tmp_path / "figures").iterdir()}
    assert drawn.keys() == {"stage-curves.png", "codebook-curves.png"}
    assert all(len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 2 for picture in drawn.values())
    assert figures.link("fine-tuning curves", found) == "Not run yet: cv-scratch-even."
    assert figures.link("codebook curves", found).endswith("](figures/codebook-curves.png)")
    assert plt.get_fignums() == before, "figures are kept in memory"


# The two recordings


def test_recordings_come_out_of_the_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out" / "downloads"
    output.mkdir(parents=True)
    with tarfile.open(output / data.EEGHDF.file, "w:gz") as tar:
        for name in data.RECORDINGS:
            (tmp_path / name).write_bytes(name.encode())
            tar.add(tmp_path / name, arcname=f"eeghdf/data/{name}")
    source = data.Source("eeghdf", (), data.EEGHDF.file, sha256(output / data.EEGHDF.file))
    monkeypatch.setattr(eeghdf, "EEGHDF", source)
    monkeypatch.setattr(sys, "argv", ["eeghdf", "--output", str(output)])
    eeghdf.main(eeghdf.get_args())
    assert {name: (output / name).read_bytes() for name in data.RECORDINGS} == {
        name: name.encode() for name in data.RECORDINGS
    }
    (output / data.EEGHDF.file).unlink()
    with patch.object(data.subprocess, "run", lambda *_: pytest.fail("it was downloaded again")):
        eeghdf.main(eeghdf.get_args())


# Expected time


@pytest.mark.parametrize("size", ["cpu", "test"])
def test_the_plan_is_a_line_for_each_cell_and_seed_with_its_minutes_where_they_are_known(
    size: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cell", "--plan", "--size", size])
    cell.main(cell.get_args())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(name, int(seed)) for name, seed, *_ in lines] == cells.plan(size)
    if size == "test":
        assert all(len(line) == 2 for line in lines)
        return
    assert all(line[3] == "min" and int(line[2]) > 0 for line in lines)
    minutes = {name: int(number) for name, _, number, _ in lines}
    weighted = [name for name in minutes if f"{name}-even" in minutes]
    assert weighted and all(minutes[name] == minutes[f"{name}-even"] for name in weighted), "weights take no time"
    assert minutes["cv-scratch"] > minutes["fixed-scratch"], "of eight trainings and of one"
