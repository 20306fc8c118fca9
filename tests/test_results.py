"""Runs' folders to tables: which epoch counts, means and deviations, published rows, and what is odd in one line."""

import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

from results.read import read_runs
from results.tables import Table, make_tables
from run_helpers import ROOT, call, log
from training.metrics import compute

FLAGS = {"dataset": "TUAB", "lr": 5e-4, "epochs": 4, "select_by": None, "patience": None, "data_dir": "data"}
SUBJECTS = 6
WINDOWS = 24


def predicted(seed: int, epoch: int, split: str) -> dict[str, np.ndarray]:
    """Return logits, labels, recordings and subjects of an invented epoch."""
    random = np.random.default_rng([seed, epoch, len(split)])
    labels = np.arange(WINDOWS) // (WINDOWS // SUBJECTS) % 2
    return {
        "logits": random.standard_normal((WINDOWS, 1)) + 0.3 * labels[:, None],
        "labels": labels,
        "recording": np.array([f"{split}-{i // 2}" for i in range(WINDOWS)]),
        "subject": np.array([f"s{i // (WINDOWS // SUBJECTS)}" for i in range(WINDOWS)]),
    }


def write_run(folder: Path, seed: int = 0, *, epochs: int = 4, name: str = "TUAB", **flags: Any) -> Path:
    """Write the files of a run of stage 3, as training writes them, from invented logits."""
    folder.mkdir(parents=True)
    lines = []
    for epoch in range(epochs):
        line: dict[str, Any] = {"train_loss": 1 / (epoch + 1), "epoch": epoch, "n_parameters": 7}
        for split in ("val", "test"):
            held = predicted(seed, epoch, split)
            line |= {f"{split}_{k}": v for k, v in compute("binary", held["logits"], held["labels"]).items()}
            line[f"{split}_loss"] = 0.5
        lines.append(line)
    values = [line["val_roc_auc"] for line in lines]
    selected, last = values.index(max(values)), epochs - 1
    write_log(folder, lines)
    for split in ("val", "test"):
        held = predicted(seed, selected, split) | {"epoch": selected, "last_epoch": last}
        held |= {"last_logits": predicted(seed, last, split)["logits"]}
        names = {"name": name, "task": "binary", "classes": ["normal", "abnormal"]}
        np.savez(folder / f"predictions-{split}.npz", **held, **names)
    environment = {"code_version": "1", "flags": {**FLAGS, "seed": seed, "output_dir": str(folder), **flags}}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_log(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))


def metric_line(epoch: int, **values: Any) -> dict[str, Any]:
    every = {f"{split}_{name}": 0.5 for split in ("val", "test") for name in ("loss", "accuracy", "balanced_accuracy")}
    return {"train_loss": 1.0, **every, "val_pr_auc": 0.5, "test_pr_auc": 0.5, "epoch": epoch, **values}


def change_predictions(folder: Path, **changed: Any) -> None:
    with np.load(folder / "predictions-test.npz") as file:
        held = dict(file)
    np.savez(folder / "predictions-test.npz", **(held | changed))


def table_of(*folders: Path) -> tuple[Table, list[str]]:
    runs, notes = read_runs(folders)
    (table,) = make_tables(runs, notes)
    return table, notes


Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Return what the command prints without a page of figures."""

    def text(*words: Any) -> str:
        capsys.readouterr()
        assert call("summarize_results", *words, "--no_report") == 0
        return capsys.readouterr().out

    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a run."""
    return write_run(tmp_path / "run")


# Which epoch, and means over runs


def test_the_epoch_is_the_one_that_validation_selects_and_no_other(tmp_path: Path) -> None:
    # The best of the test set, of validation accuracy, of the training loss and the last one are four other epochs.
    lines = [
        metric_line(0, val_roc_auc=0.6, test_roc_auc=0.99),
        metric_line(1, val_roc_auc=0.7, test_roc_auc=0.61, val_accuracy=0.4),
        metric_line(2, val_roc_auc=0.7, test_roc_auc=0.98, val_accuracy=0.9),
        metric_line(3, val_roc_auc=None, test_roc_auc=0.97),
        metric_line(4, val_roc_auc=0.5, test_roc_auc=0.96, train_loss=0.1),
    ]
    for rule, epoch, value in ((None, 1, 0.61), ("accuracy", 2, 0.98)):
        folder = write_run(tmp_path / str(rule), epochs=1, select_by=rule)
        write_log(folder, lines)
        (run,), _ = read_runs([folder])
        assert (run.epoch, run.value("test_roc_auc")) == (epoch, value)


def test_mean_and_deviation_are_those_of_a_sample_over_runs(tmp_path: Path, shown: Shown) -> None:
    values = []
    for seed in range(3):
        lines = log(write_run(tmp_path / f"seed-{seed}", seed))
        values.append(max(lines, key=lambda line: line["val_roc_auc"])["test_roc_auc"])
    table, notes = table_of(tmp_path)
    mean, std = statistics.mean(values), statistics.stdev(values)
    assert table.groups[0].means("test")["roc_auc"].tolist() == pytest.approx([mean, std], abs=1e-12)
    assert not notes
    text = shown(tmp_path)
    assert re.search(rf"^here \(3 runs\) .* {mean:.4f} \u00b1 {std:.4f}$", text, re.MULTILINE)
    assert "epoch by validation roc_auc" in text


def test_without_a_test_set_validation_is_shown_as_such_and_no_published_row(folder: Path, shown: Shown) -> None:
    write_log(folder, [{k: v for k, v in line.items() if "test" not in k} for line in log(folder)])
    text = shown(folder)
    assert "VALIDATION set" in text and "LaBraM-Base" not in text


def test_the_first_two_stages_show_last_and_best_epoch(tmp_path: Path, shown: Shown) -> None:
    rows = [(0, 2.5, 3), (1, 1.5, 9), (2, 1.75, 7)]
    cases = [("tok", "quant_loss", "test", "used_code", "- +- +{} +-"), ("m", "mlm_acc", "val", "mlm_acc", "- +{} +-")]
    for name, sign, split, column, cells in cases:  # stage 1 calls its validation set test
        (tmp_path / name).mkdir()
        lines = [{f"{split}_loss": loss, f"{split}_{column}": value, "epoch": e} for e, loss, value in rows]
        write_log(tmp_path / name, [{"train_loss": 9, f"train_{sign}": 1, **line} for line in lines])
        text = shown(tmp_path / name)
        assert re.search(rf"^{name} last +2 +1\.7500 +{cells.format(7)}$", text, re.MULTILINE), text
        assert re.search(rf"^{name} best +1 +1\.5000 +{cells.format(9)}$", text, re.MULTILINE), text


# Published rows


def test_the_published_rows_are_those_that_were_given(shared: Path) -> None:
    ours = json.loads((ROOT / "results" / "published_results.json").read_text())
    given = json.loads((shared / "paper_numbers.json").read_text())
    tables = {name: values for name, values in given.items() if isinstance(values, dict) and "rows" in values}
    assert {"TUAB", "TUEV"} <= tables.keys()
    for name, values in tables.items():
        for key in ("metrics", "select", "rows"):
            assert ours[name][key] == values[key], (name, key)
        assert values["source"].startswith(ours[name]["source"])


def test_published_rows_are_printed_exactly_with_their_protocol(tmp_path: Path, shown: Shown) -> None:
    published = json.loads((ROOT / "results" / "published_results.json").read_text())
    for name, form, own in (("TUAB", "text", "tuab"), ("MentalArithmetic", "markdown", "MentalArithmetic")):
        text = shown(write_run(tmp_path / name, name=own), "--format", form)
        for label, pairs in published[name]["rows"].items():
            (line,) = [one for one in text.splitlines() if one.strip("| ").startswith(label.split(" (")[0])]
            assert re.findall(r"([\d.]+) \u00b1 ([\d.]+)", line) == [(f"{m:.4f}", f"{s:.4f}") for m, s in pairs], label
    assert "other preprocessing: 64 Hz, average reference" in text and published[name]["protocol"] in text


# What is odd


def test_an_unfinished_run_is_named_and_in_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "seed-0", 0)
    write_run(tmp_path / "seed-1", 1, epochs=3)
    table, notes = table_of(tmp_path)
    assert notes == ["seed-1: unfinished, 3 of 4 epochs: in no mean"] and table.groups[0].label == "here (1 run)"
    assert table.groups[0].means("test")["roc_auc"]["mean"] == table.runs[0].value("test_roc_auc")


def test_a_run_that_patience_stopped_is_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=1, patience=2)
    write_log(folder, [metric_line(e, val_roc_auc=v, test_roc_auc=v) for e, v in enumerate((0.9, 0.8, 0.7))])
    assert read_runs([folder])[0][0].finished
    write_log(folder, [metric_line(e, val_roc_auc=v, test_roc_auc=v) for e, v in enumerate((0.9, 0.8, 0.95))])
    assert not read_runs([folder])[0][0].finished


def test_a_log_that_was_cut_in_a_line_counts_up_to_there_and_settings_may_be_missing(folder: Path) -> None:
    text = (folder / "log.txt").read_text()
    (folder / "log.txt").write_text(text[: text.rindex('"epoch"')] + "\n[1]\nnull\n")
    (folder / "environment.json").unlink()
    (run,), notes = read_runs([folder])
    assert len(run.log) == 3 and run.finished and "environment.json is missing" in " ".join(notes)
    assert [n for n in range(7) if f"line {n} of 6 of log.txt is damaged" in " ".join(notes)] == [4, 5, 6]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("missing", "is missing"),
        ("cut", "is damaged"),
        ("pickle", "is damaged"),
        ("other task", "left out"),
        ("other epoch", "is of epoch 0, validation roc_auc selects epoch 3"),
        ("other weights", "accuracy 0.7917, in log.txt 0.7927"),
    ],
)
def test_predictions_that_cannot_be_used_are_named_and_the_rest_counts(folder: Path, damage: str, reason: str) -> None:
    path = folder / "predictions-test.npz"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "pickle":
        change_predictions(folder, labels=np.array([{}] * WINDOWS, dtype=object))
    elif damage == "other task":
        change_predictions(folder, logits=np.zeros((WINDOWS, 3)), last_logits=np.zeros((WINDOWS, 3)))
    elif damage == "other epoch":
        change_predictions(folder, epoch=0, last_epoch=0)
    else:
        write_log(folder, [line | {"test_accuracy": line["test_accuracy"] + 0.001} for line in log(folder)])
    (run,), (note,) = read_runs([folder])
    assert note.startswith("run: predictions-test.npz ") and reason in note and "--eval writes it" in note
    assert set(run.predictions) == {"val"} and run.epoch == 3 and len(run.log) == 4


def test_runs_are_taken_once_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    for seed in (10, 2, 0):
        write_run(tmp_path / f"seed-{seed}", seed)
    runs, _ = read_runs([tmp_path, tmp_path / "seed-2", tmp_path / "seed-10" / ".." / "seed-2"])
    assert [run.label for run in runs] == ["seed-0", "seed-2", "seed-10"]
    (tmp_path / "chosen").mkdir()
    for name, seed in (("a", 2), ("b", 10)):
        (tmp_path / "chosen" / name).symlink_to(tmp_path / f"seed-{seed}")
    runs, _ = read_runs([tmp_path / "chosen"])
    assert [run.label for run in runs] == ["a", "b"] and runs[0].folder.parent == tmp_path / "chosen"


def test_a_folder_without_runs_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    for folder, what in (("empty", "has no log.txt"), ("nowhere", "is no folder")):
        assert call("summarize_results", tmp_path / folder) == 1
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and f"{folder} {what}" in err
    write_run(tmp_path / "run")
    assert call("summarize_results", tmp_path / "empty", tmp_path / "run", "--no_report") == 0
    assert "empty has no log.txt" in caplog.text


# Groups


def test_runs_with_other_settings_are_not_averaged(tmp_path: Path, shown: Shown) -> None:
    for seed, rate in ((0, 1e-3), (1, 1e-3), (2, 5e-4)):
        write_run(tmp_path / f"seed-{seed}", seed, lr=rate, num_workers=seed, device=f"cuda:{seed}")
    table, _ = table_of(tmp_path)
    assert [group.label for group in table.groups] == ["here (2 runs)", "here (1 run)"]
    assert [group.remark for group in table.groups] == ["seed-0, seed-1: --lr 0.001", "seed-2: --lr 0.0005"]
    text = shown(tmp_path)
    assert re.search(r"^here \(2 runs\) \[1\]", text, re.MULTILINE) and "[1] seed-0, seed-1: --lr 0.001\n" in text


def test_runs_that_used_unlabelled_windows_say_so(tmp_path: Path, shown: Shown) -> None:
    write_run(tmp_path / "a", center="subject")
    assert "[1] transductive, all windows of each subject" in " ".join(shown(tmp_path).split())
    write_run(tmp_path / "b", center="subject", center_windows=8)
    write_run(tmp_path / "c", center="none")
    text = " ".join(shown(tmp_path).split())
    assert "the first 8 windows of each subject" in text and text.count("transductive") == 2


def test_runs_are_averaged_if_their_steps_have_as_many_windows(tmp_path: Path) -> None:
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("one", 8, {"batch_size": 64, "update_freq": 1, "total_batch_size": None}),
        ("same", 8, {"batch_size": 32, "update_freq": 2, "total_batch_size": None}),
        ("other", 1, {"batch_size": 64, "update_freq": 4, "total_batch_size": 256}),
    ]
    for seed, (name, processes, flags) in enumerate(cases):
        path = write_run(tmp_path / name, seed, **flags) / "environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hardware": {"processes": processes}}))
    remarks = [group.remark for group in table_of(tmp_path)[0].groups]
    assert remarks == ["one, same: --total_batch_size 512", "other: --total_batch_size 256"]


def test_runs_on_other_samples_are_not_averaged(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}", seed)
    change_predictions(tmp_path / "seed-1", recording=np.array(["x"] * WINDOWS))
    (tmp_path / "seed-2" / "predictions-test.npz").unlink()  # nothing speaks against it
    table, _ = table_of(tmp_path)
    assert [group.remark for group in table.groups] == ["seed-0, seed-2: other samples", "seed-1: other samples"]
    (tmp_path / "seed-1" / "environment.json").unlink()
    assert table_of(tmp_path)[0].groups[1].remark == "seed-1: unknown settings"


def test_the_same_seed_twice_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert "a and b have the same seed 3" in table_of(tmp_path)[1][0]


# How it is printed


def test_names_are_no_markup_in_markdown(tmp_path: Path, shown: Shown) -> None:
    text = shown(write_run(tmp_path / "run", name="a|b *c* <i>"), "--format", "markdown")
    assert text.startswith("## a\\|b \\*c\\* \\<i>, binary\n\n|")


def test_csv_holds_all_digits_of_each_run(tmp_path: Path, shown: Shown) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed-{seed}", seed)
    values = [(run.label, run.epoch, run.value("test_roc_auc")) for run in read_runs([tmp_path])[0]]
    table = pd.read_csv(io.StringIO(shown(tmp_path, "--format", "csv")))
    assert [*table[["run", "epoch", "test_roc_auc"]].itertuples(index=False, name=None)] == values


def test_a_metric_that_is_not_defined_is_a_dash(folder: Path, shown: Shown) -> None:
    write_log(folder, [metric_line(epoch, val_roc_auc=None, test_roc_auc=None) for epoch in range(4)])
    text = shown(folder)
    assert re.search(r"^here .* -$", text, re.MULTILINE) and re.search(r"^run +0 +- .* -$", text, re.MULTILINE)


def test_help_needs_no_pandas() -> None:
    code = "import sys, summarize_results; sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_and_letters_that_a_terminal_cannot_hold_are_replaced(tmp_path: Path) -> None:
    for number, name in enumerate((b"caf\xe9", b"a\nb")):
        write_run(tmp_path / "runs" / os.fsdecode(name), number)
    with (tmp_path / "out").open("w", encoding="ascii") as out, patch.object(sys, "stdout", out):
        assert call("summarize_results", tmp_path / "runs", "--no_report") == 0
    text = (tmp_path / "out").read_text()
    assert "caf\\udce9" in text and "a\\nb" in text and "0.8140 ? 0.0019" in text
