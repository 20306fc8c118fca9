"""The reference run: cells repeat their recipes, baselines are what they say, the README is what the JSONs give."""

import importlib
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from timm.models import create_model
from torch.nn import functional as F

from dataset_maker import making
from errors import InputError, UsageError
from modeling_pretrain import random_mask
from reference import baselines, cell, intervals, one_mask, tables
from run_helpers import ROOT, labelled_file, log, noise, predictions


def run(module: Any, *words: Any) -> None:
    with patch.object(sys, "argv", ["x", *map(str, words)]):
        module.main(module.get_args())


# Cells


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a recipe of two commands, one a fold, and their data."""
    commands = []
    for fold in range(2):
        labelled_file(tmp_path / f"data/fold-{fold}/task.hdf5", counts={"train": 24, "val": 12, "test": 8})
        flags = f"--dataset DATA/fold-{fold}/task.hdf5 --seed 0 --output_dir DATA/runs/mini.seed-0/fold-{fold}"
        commands.append(f"python -m reference.baselines logistic {flags}")
    runs = [{"name": f"fold-{fold}"} for fold in range(2)]
    (tmp_path / "recipes").mkdir()
    record = {"cell": "mini", "title": "small", "seed": 0, "commands": commands, "runs": runs}
    (tmp_path / "recipes/mini.seed-0.json").write_text(json.dumps(record))
    return tmp_path


def run_here(words: list[str]) -> None:
    """Stand in for `cell.call`: run the command in this process, which saves its imports."""
    run(importlib.import_module(words[1]), *words[2:])


def run_cell(room: Path, *words: Any, call: Any = run_here) -> dict[str, Any]:
    flags = ["--recipes", room / "recipes", "--data", room / "data", "--output", room / "out"]
    with patch.object(cell, "call", call):
        run(cell, "mini", *flags, *words)
    (path,) = (room / "out").iterdir()
    return json.loads(path.read_text())


def test_a_cell_leaves_one_json_with_the_predictions_of_all_its_runs(room: Path) -> None:
    record = run_cell(room, "--seed", 3)
    assert record["seed"] == 3 and all("--seed 3" in command for command in record["commands"])
    assert record["machine"]["libraries"]["torch"] and str(room) not in json.dumps(record), "places of this machine"
    logits, labels = [], []
    for result in record["runs"]:
        folder = room / "data/runs/mini.seed-3" / result["name"]
        held = predictions(folder / "predictions-test.npz")
        np.testing.assert_allclose(np.array(result["predictions"]["logits"].split(), float), held["logits"][:, 0], 1e-5)
        assert result["metrics"]["selected"]["epoch"] == held["epoch"] and result["log"] == log(folder)
        logits.append(held["logits"][:, 0])
        labels.append(held["labels"])
    whole = np.concatenate(labels), np.concatenate(logits)
    assert record["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(*whole))
    assert record["metrics"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(whole[0], whole[1] >= 0))


def test_a_stopped_cell_goes_on_with_its_unfinished_command_and_a_finished_one_is_not_run_again(room: Path) -> None:
    calls: list[str] = []

    def cut(words: list[str]) -> None:
        calls.append(words[-1].rpartition("/")[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        run_here(words)

    with pytest.raises(KeyboardInterrupt):
        run_cell(room, call=cut)
    assert not list((room / "out").iterdir())
    (room / "data/runs/mini.seed-0/fold-0/checkpoint.pth").write_bytes(b"0.35 GB")
    record = run_cell(room, call=cut)
    assert calls == ["fold-0", "fold-1", "fold-1"] and len(record["runs"]) == 2
    assert not list(room.rglob("*.pth")), "checkpoints of finished cells are removed"
    assert run_cell(room, call=cut) == record and len(calls) == 3
    recipe = room / "recipes/mini.seed-0.json"
    recipe.write_text(recipe.read_text().replace("logistic", "eegnet --epochs 3"))
    with pytest.raises(InputError, match="other commands"):
        run_cell(room, call=cut)


def test_a_folder_of_recordings_that_is_missing_is_named_before_anything_is_run(tmp_path: Path) -> None:
    words = ["data", "--data", tmp_path / "run", "--output", tmp_path / "out"]
    with patch.object(cell, "call", lambda words: pytest.fail("a command was run")):
        with pytest.raises(UsageError, match="--eegmmidb DIR"):
            run(cell, *words)
        with pytest.raises(InputError, match=r"S\*R0"):
            run(cell, *words, "--eegmat", tmp_path, "--eegmmidb", tmp_path)


SHIPPED = [(name, held["seed"], held) for name, records in tables.load(cell.SHIPPED).items() for held in records]


def test_the_shipped_cells_of_further_seeds_are_the_recipe_of_seed_0_with_another_seed() -> None:
    assert {seed for _, seed, _ in SHIPPED} == {0, 1, 2}
    for name, seed, record in SHIPPED:
        made = cell.recipe(cell.SHIPPED, name, seed)
        assert (made["commands"], made["title"]) == (record["commands"], record["title"])


def test_every_shipped_command_is_one_that_its_script_still_takes() -> None:
    """Parsed by the scripts' own parsers; nothing is run."""
    places = {"DATA": Path("d"), "EEGMAT": Path("e"), "EEGMMIDB": Path("m")}
    seen: set[str] = set()
    for command in [command for _, seed, record in SHIPPED if seed == 0 for command in record["commands"]]:
        script, *words = cell.fill(re.sub(r"[*?\[\]]|^python (-m )?", "", command).split(), places)
        script = script.removesuffix(".py").replace("/", ".")
        module = importlib.import_module(script)
        with patch.object(sys, "argv", [script, *words]), patch.object(making, "run_script"):
            module.get_args() if hasattr(module, "get_args") else making.run(script)
        seen.add(script)
    assert {"reference.baselines", "reference.one_mask", "run_inference", "dataset_maker.make_eegmat"} <= seen


# Baselines


def test_band_powers_are_means_of_a_density_computed_by_hand() -> None:
    """Segments of 2 s, half overlapping, mean removed, periodic Hann window, one-sided density: by NumPy alone."""
    eeg = noise((1, 2, 1000), seed=3)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    found = []
    for channel in eeg[0].astype(float):
        segments = [channel[start : start + 400] for start in range(0, 601, 200)]
        powers = [np.abs(np.fft.rfft((s - s.mean()) * window)) ** 2 / (200 * (window**2).sum()) for s in segments]
        density = np.mean(powers, axis=0)
        density[1:-1] *= 2
        frequencies = np.arange(201) / 2
        for low, high in ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45)):
            found.append(np.log(density[(frequencies >= low) & (frequencies < high)].mean()))
    np.testing.assert_allclose(baselines.band_powers(eeg)[0], found, rtol=1e-9)


def baseline(tmp_path: Path, kind: str, *flags: Any) -> list[dict[str, float]]:
    file = tmp_path / "task.hdf5"
    if not file.exists():
        labelled_file(file, counts={"train": 48, "val": 24, "test": 24})
    run(baselines, kind, "--dataset", file, "--output_dir", tmp_path / kind, *flags)
    return log(tmp_path / kind)


def test_logistic_regression_learns_classes_of_other_amplitude_and_is_selected_by_validation(tmp_path: Path) -> None:
    lines = baseline(tmp_path, "logistic")
    assert [line["C"] for line in lines] == list(baselines.STRENGTHS)
    best = max(range(len(lines)), key=lambda i: lines[i]["val_roc_auc"])
    held = predictions(tmp_path / "logistic" / "predictions-test.npz")
    assert held["epoch"] == best
    assert lines[best]["test_roc_auc"] == roc_auc_score(held["labels"], held["logits"][:, 0]) > 0.8
    baseline(tmp_path, "logistic", "--center", "subject")  # of centred features: the mean output is the bias
    held = predictions(tmp_path / "logistic" / "predictions-test.npz")
    means = [held["logits"][held["subject"] == name].mean() for name in sorted(set(held["subject"]))]
    np.testing.assert_allclose(means, means[0], atol=1e-9)


def test_eegnet_learns_and_repeats_with_its_seed(tmp_path: Path) -> None:
    pytest.importorskip("braindecode")
    first = baseline(tmp_path, "eegnet", "--epochs", 4)
    assert first[-1]["train_loss"] < first[0]["train_loss"]
    assert baseline(tmp_path, "eegnet", "--epochs", 4) == first


def test_features_belong_to_the_windows_of_the_data_set_or_are_refused(tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "task.hdf5", counts={"train": 4, "val": 4})
    windows = baselines.read_splits(file)["val"]
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as features:
        features["x/features"] = np.arange(12.0).reshape(4, 3)
        one, other = dict.fromkeys(windows.recordings)
        features["x/recording"] = [other, one, other, one]
    assert baselines.features_of(path, windows)[:, 0].tolist() == [3, 9, 0, 6]
    with pytest.raises(InputError, match="other windows"):
        baselines.features_of(path, baselines.read_splits(file)["train"])
    with h5py.File(path, "w") as features:
        features["x/features"], features["x/recording"] = np.zeros((4, 2, 3)), ["val-0"] * 4
    with pytest.raises(InputError, match=r"run_inference\.py embed"):
        baselines.features_of(path, windows)


def test_the_loss_of_one_mask_is_cross_entropy_at_the_masked_places_alone() -> None:
    torch.manual_seed(0)
    model = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=11).eval()
    eeg, channels = torch.randn(2, 3, 4, 200), torch.tensor([0, 5, 6, 7])
    mask = random_mask(2, 12, generator=torch.Generator().manual_seed(1))
    codes = torch.randint(11, (2, 12))
    found = one_mask.forward(model, eeg, channels, mask, codes)
    logits, _ = model(eeg, channels, mask)
    assert float(found.loss.detach()) == pytest.approx(float(F.cross_entropy(logits, codes[mask])), rel=1e-5)
    assert float(found.accuracy) == pytest.approx(float((logits.argmax(1) == codes[mask]).float().mean()))
    assert math.isnan(found.accuracy_sym)


# Tables, intervals


def test_the_shipped_readme_is_what_the_shipped_jsons_give(tmp_path: Path) -> None:
    run(tables, "--check")
    readme = Path(shutil.copy(ROOT / "reference/README.md", tmp_path))
    readme.write_text(readme.read_text().replace("0.637 [", "0.999 ["))
    with pytest.raises(InputError, match=r"README\.md"):
        run(tables, "--check", "--readme", readme)
    few = Path(shutil.copy(ROOT / "docs/few_subjects.md", tmp_path))
    few.write_text(few.read_text().replace("<!-- end few subjects, fixed split -->", ""))
    with pytest.raises(InputError, match="few subjects, fixed split"):
        run(tables, "--check", "--few", few)


def test_intervals_are_percentiles_over_draws_of_whole_subjects(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    subjects, labels = np.repeat(np.arange(6), 5), np.tile([0, 1, 0, 1, 1], 6)
    logits = [generator.standard_normal(30) + labels for _ in range(2)]
    given = {"labels": " ".join(map(str, labels)), "subjects": " ".join(f"s{subject}" for subject in subjects)}
    texts = [given | {"logits": " ".join(map(str, x))} for x in logits]
    records = [{"cell": name, "runs": [{"predictions": one}]} for name, one in zip("ab", texts, strict=True)]
    with patch.object(intervals, "DRAWS", 40):
        kept = intervals.Intervals(tmp_path)
        own, less = kept.get(records[:1])["roc_auc"], kept.get(records[:1], records[1:])["roc_auc"]
    draws = np.random.default_rng(0)
    values = []
    for _ in range(40):
        places = np.concatenate([np.flatnonzero(subjects == i) for i in draws.integers(6, size=6)])
        values.append([roc_auc_score(labels[places], x[places]) for x in logits])
    one, other = np.array(values).T
    assert own == pytest.approx(np.percentile(one, [2.5, 97.5]), abs=1e-4)
    assert less == pytest.approx(np.percentile(one - other, [2.5, 97.5]), abs=1e-4)
