"""The reference run: all its cells on tiny recordings with tiny models, its baselines, records, tables."""

import fnmatch
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import mne
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from timm.models import create_model
from torch.nn import functional as F

from data_helpers import only_line
from dataset_maker.make_eegmat import ELECTRODES
from errors import InputError, UsageError
from maker_helpers import eeghdf_file, noise
from modeling_pretrain import MaskedModel, random_mask
from reference import baselines, cell, cells, intervals, one_mask, settings, tables
from results.subjects import bootstrap, subjects_of
from run_helpers import ROOT, labelled_file, log, predictions
from waiting import wait_for

SIZE = "test"


def write_edf(path: Path, names: list[str], rate: float, seconds: int, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    raw = mne.io.RawArray(
        noise(len(names), seconds, int(rate), seed=seed) * 1e-6, mne.create_info(names, rate, "eeg"), verbose="error"
    )
    mne.export.export_raw(path, raw, physical_range=(-200, 200), verbose="error")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders eegmat, eegmmidb and run/downloads with recordings as the real ones are, but few, short and of noise."""
    folder = tmp_path_factory.mktemp("recordings")
    for subject in (0, 20, 28):
        for part in (1, 2):
            path = folder / "eegmat" / f"Subject{subject:02d}_{part}.edf"
            write_edf(path, [*ELECTRODES, "A2-A1", "ECG"], 200, 11, 10 * subject + part)
    for run in (1, 10, 13):
        write_edf(folder / "eegmmidb" / f"S001R{run:02d}.edf", ["C3", "CZ", "C4"], 160, 21, run)
    (folder / "run" / "downloads").mkdir(parents=True)
    for name in ("absence_epilepsy.eeg.h5", "spasms.eeg.h5"):
        eeghdf_file(folder / "run" / "downloads" / name, samples=2100)
    return folder


def words(recordings: Path) -> list[Any]:
    places = {"data": "run", "output": "results", "eegmat": "eegmat", "eegmmidb": "eegmmidb"}
    flags = [(f"--{flag}", recordings / folder) for flag, folder in places.items()]
    return ["--size", SIZE, *(word for pair in flags for word in pair)]


def run_here(words: list[str]) -> None:
    """Stand in for `cell.call`: run a command of a cell in this process, which saves its imports."""
    name = words[1] if words[0] == "-m" else words[0].removesuffix(".py").replace("/", ".")
    module, threads = importlib.import_module(name), torch.get_num_threads()
    torch.set_num_threads(1)
    further = (
        ["--num_workers", "0"] if words[0].startswith("run_") and "embed" not in words else []
    )  # no number changes
    with patch.object(sys, "argv", [name, *words[2 if words[0] == "-m" else 1 :], *further]):
        try:
            module.main(module.get_args())
        finally:
            torch.set_num_threads(threads)


def run_cell(name: str, *flags: Any) -> None:
    with patch.object(sys, "argv", ["cell", name, *map(str, flags)]), patch.object(cell, "call", run_here):
        cell.main(cell.get_args())


CELLS = ("data", "tokenizer", "pretraining", "tokenizer-eegmat", "cv-logistic-even", "cv-pretrained-even")
CELLS += ("cv-scratch", "cv-probe", "cv-features-even", "fixed-logistic", "ablation-one-mask")


@pytest.fixture(scope="module")
def chain(recordings: Path) -> Path:
    """Results of the cells that others start from, and one of each kind."""
    for name in CELLS[:-1]:
        run_cell(name, *words(recordings))
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr(MaskedModel, "forward", MaskedModel.forward)  # put back what one_mask replaces
        run_cell(CELLS[-1], *words(recordings))
    return recordings


def result(recordings: Path, name: str) -> dict[str, Any]:
    return json.loads((recordings / "results" / f"{name}.seed-0.json").read_text())


# The chain


def test_every_cell_leaves_one_json_with_all_that_is_needed_to_repeat_it(chain: Path) -> None:
    results = sorted((chain / "results").glob("*.json"))
    assert [path.name for path in results] == sorted(f"{name}.seed-0.json" for name in CELLS)
    for path in results:
        record = json.loads(path.read_text())
        assert record["size"] == SIZE and record["seed"] == 0 and len(record["commands"]) == len(record["runs"])
        assert str(chain) not in path.read_text(), "places of this machine"
        assert record["machine"]["libraries"]["torch"] and record["machine"]["code_version"]
        assert record["commands"] and all(command.startswith("python ") for command in record["commands"])
        assert record["seconds"] == pytest.approx(sum(run["seconds"] for run in record["runs"]), abs=0.1)


def test_of_checkpoints_only_those_are_kept_that_other_cells_start_from(chain: Path) -> None:
    left = {path.parent.parent.name for path in (chain / "run" / "runs").glob("*/*/*.pth")}
    assert left == {"tokenizer.seed-0", "pretraining.seed-0", "tokenizer-eegmat.seed-0"}


def test_a_finished_cell_that_was_stopped_before_it_removed_its_checkpoints_does_so_when_it_is_run_again(
    chain: Path, tmp_path: Path
) -> None:
    here = chain / "run" / "runs" / "ablation-one-mask.seed-0" / "pretraining" / "checkpoint.pth"
    here.write_bytes(b"0.35 GB")
    elsewhere = tmp_path / here.relative_to(chain / "run")  # the same cell, in the midst of a run of somebody else's
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(b"goes on from here")
    for folder in (chain / "run", tmp_path):
        run_cell("ablation-one-mask", *words(chain), "--data", folder)
    assert not here.exists() and elsewhere.exists()


def test_weights_of_cross_validation_have_not_seen_eegmat_and_the_others_its_training_subjects_only() -> None:
    found = cells.cells("cpu")
    ablations, validated = ([name for name in found if name.startswith(kind)] for kind in ("ablation", "cv-"))
    assert ablations and validated
    for name in ("tokenizer", "pretraining", *ablations):
        stages = [command for command in cell.commands_of(found[name], 0) if "--train_data" in command]
        assert stages and not any("eegmat" in command for command in stages)
    for name in validated:
        assert not any("pretraining-eegmat" in command for command in cell.commands_of(found[name], 0))
    (unlabelled,) = [c for c in cell.commands_of(found["data"], 0) if "pretrain/eegmat" in c]
    patterns = [word.removeprefix("EEGMAT/") for word in unlabelled.split() if word.startswith("EEGMAT/")]
    names = [f"Subject{subject:02d}_{part}.edf" for subject in range(36) for part in (1, 2)]
    taken = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert taken == names[:56], "subjects 00 to 27"


def test_cross_validation_tests_every_subject_once_with_the_logits_of_its_fold(chain: Path) -> None:
    record = result(chain, "cv-pretrained-even")
    tested = [set(run["predictions"]["subjects"].split()) for run in record["runs"]]
    assert sorted(subject for subjects in tested for subject in subjects) == ["Subject00", "Subject20", "Subject28"]
    for run in record["runs"]:
        folder = chain / "run" / "runs" / "cv-pretrained-even.seed-0" / run["name"]
        with np.load(folder / "predictions-test.npz") as held:
            logits = np.array(run["predictions"]["logits"].split(), float)
            np.testing.assert_allclose(logits, held["logits"][:, 0], rtol=1e-5)
            assert run["metrics"]["selected"]["epoch"] == held["epoch"]
        assert run["log"] == [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    logits, labels = (
        np.concatenate([np.array(run["predictions"][key].split(), float) for run in record["runs"]])
        for key in ("logits", "labels")
    )
    assert record["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(labels, logits))
    assert record["metrics"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits >= 0))


def test_the_fixed_split_is_measured_on_validation_where_there_are_no_test_subjects(chain: Path) -> None:
    (run,) = result(chain, "fixed-logistic")["runs"]
    assert run["predictions"]["split"] == "val" and set(run["predictions"]["subjects"].split()) == {"Subject28"}


def test_a_cell_whose_json_is_there_is_not_run_again_and_one_of_other_settings_is_refused(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chain / "results" / "tokenizer.seed-0.json"
    before = path.read_bytes()
    with patch.object(cell, "run_step", lambda *_: pytest.fail("it was run again")):
        run_cell("tokenizer", *words(chain))
        longer = replace(settings.SIZES[SIZE].stages, tokenizer_epochs=3)
        monkeypatch.setitem(settings.SIZES, SIZE, replace(settings.SIZES[SIZE], stages=longer))
        with pytest.raises(InputError) as error:
            run_cell("tokenizer", *words(chain))
    only_line(error, str(path), "`--epochs 1`, now `--epochs 3`", "--output")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("note", "begun"),
    [
        ('{"command": "python a", "seconds": 2.5, "finished": true}', (2.5, True)),
        ('{"command": "python b", "seconds": 2.5, "finished": true}', (0, False)),
        ('{"command": "python a", "sec', (0, False)),
        ("[]", (0, False)),
        ("\x00", (0, False)),
        (None, (0, False)),
    ],
)
def test_a_command_is_done_only_if_its_own_whole_note_says_so(
    note: str | None, begun: tuple[float, bool], tmp_path: Path
) -> None:
    if note is not None:
        (tmp_path / cell.MARK).write_text(note)
    found = cell.mark_of(tmp_path, "python a")
    assert (found["command"], found["seconds"], found["finished"]) == ("python a", *begun)


def test_a_folder_of_recordings_that_is_not_given_is_said_before_anything_is_run(tmp_path: Path) -> None:
    flags = ["--size", SIZE, "--data", tmp_path / "run", "--output", tmp_path / "results"]
    with patch.object(cell, "run_step", lambda *_: pytest.fail("a command was run")):
        with pytest.raises(UsageError, match="--eegmmidb DIR"):
            run_cell("data", *flags)
        with pytest.raises(InputError, match=r"no file there is called"):
            run_cell("data", *flags, "--eegmat", tmp_path, "--eegmmidb", tmp_path)


def test_a_cell_without_what_it_starts_from_says_what_to_run_first(chain: Path, tmp_path: Path) -> None:
    flags = ["--size", SIZE, "--data", chain / "run", "--output", tmp_path]
    with pytest.raises(InputError, match=rf"needs cell data.*reference.cell data --size {SIZE} .*--output {tmp_path}"):
        run_cell("cv-scratch", *flags)
    shutil.copy(chain / "results" / "data.seed-0.json", tmp_path)
    with pytest.raises(InputError, match="was run elsewhere"):
        run_cell("cv-scratch", *flags[:2], "--data", tmp_path, *flags[4:])


def test_recordings_that_are_not_there_are_named(recordings: Path, tmp_path: Path) -> None:
    flags = ["--size", SIZE, "--data", recordings / "run", "--output", tmp_path]
    places = {"DATA": tmp_path, "EEGMAT": None, "EEGMMIDB": tmp_path}
    with pytest.raises(InputError, match="--eegmat DIR"):
        list(cell.filled(("x", "EEGMAT/Subject[01]?_[12].edf"), places))
    with pytest.raises(InputError, match="no file there is called S"):
        list(cell.filled(("EEGMMIDB/S*R0[1-9].edf",), places))
    with pytest.raises(InputError, match="--seed 7"):
        run_cell("tokenizer", *flags, "--seed", 7)


def test_a_killed_cell_goes_on_with_its_unfinished_command(chain: Path, tmp_path: Path) -> None:
    """Of the steps only the one that was cut off is run again, and the JSON is that of a cell never stopped."""
    work, output = tmp_path / "run", tmp_path / "results"
    for name in ("fold-0", "fold-1", "fold-2"):
        shutil.copytree(chain / "run" / name, work / name)
    shutil.copytree(chain / "run" / "runs" / "data.seed-0", work / "runs" / "data.seed-0")
    output.mkdir()
    shutil.copy(chain / "results" / "data.seed-0.json", output)
    calls: list[str] = []

    def cut(words: list[str]) -> None:
        calls.append(next(word for word in words if "fold-" in word and word.endswith("hdf5")).split("/")[-2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        run_here(words)

    flags = ["--size", SIZE, "--data", work, "--output", output]
    with patch.object(sys, "argv", ["cell", "cv-scratch", *map(str, flags)]), patch.object(cell, "call", cut):
        with pytest.raises(KeyboardInterrupt):
            cell.main(cell.get_args())
        assert not (output / "cv-scratch.seed-0.json").exists()
        cell.main(cell.get_args())
    assert calls == ["fold-0", "fold-1", "fold-1", "fold-2"]
    whole, again = result(chain, "cv-scratch"), json.loads((output / "cv-scratch.seed-0.json").read_text())
    assert [run["predictions"] for run in again["runs"]] == [run["predictions"] for run in whole["runs"]]


def test_sigterm_reaches_the_command_which_ends_by_itself(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'told')!r}).touch(), sys.exit(143)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )
    outer = f"from reference.cell import call\nfrom errors import run_script\nrun_script(call, ['-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "ready")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert (tmp_path / "told").exists() and process.returncode == 143 and "goes on" in said


def test_run_sh_goes_through_the_plan_and_past_a_cell_that_fails(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\nif [ "$3" = --plan ]; then printf "a 0 7 min\\nb 0\\nb 1\\n"; exit; fi\n'
        f'echo "$@" >> {tmp_path}/calls\n[ "$3" != a ]\n'
    )
    fake.chmod(0o755)
    command = ["bash", ROOT / "reference" / "run.sh", "--size", "cpu"]
    ended = subprocess.run(command, env={"PYTHON": str(fake), "PATH": os.environ["PATH"]}, check=False)
    assert ended.returncode == 1
    lines = (tmp_path / "calls").read_text().splitlines()
    assert lines == [f"-m reference.cell {name} --seed {seed} --size cpu" for name, seed in ("a0", "b0", "b1")]


@pytest.mark.parametrize("size", settings.SIZES)
def test_the_plan_holds_every_cell_and_seed_once_and_what_a_cell_needs_before_it(size: str) -> None:
    order, found = cells.plan(size), cells.cells(size)
    assert sorted(order) == sorted((one.name, seed) for one in found.values() for seed in one.seeds)
    for name, seed in order:
        assert all(order.index((needed, 0)) < order.index((name, seed)) for needed in found[name].needs)


@pytest.mark.parametrize("size", settings.SIZES)
def test_every_command_of_every_cell_is_one_that_its_script_takes(size: str) -> None:
    """Parsed by the scripts' own parsers, nothing is run."""
    places = {"DATA": Path("d"), "EEGMAT": Path("e"), "EEGMMIDB": Path("m")}
    seen: set[str] = set()
    for one in cells.cells(size).values():
        for step in one.steps(0):
            words = list(cell.words_of(one, 0, step))
            words = [word.replace("*", "").replace("[", "").replace("]", "").replace("?", "") for word in words]
            filled = list(cell.filled(tuple(words), places))
            start = 2 if filled[0] == "-m" else 1
            name = filled[1] if start == 2 else filled[0].removesuffix(".py").replace("/", ".")
            module = importlib.import_module(name)
            with patch.object(sys, "argv", [name, *filled[start:]]):
                module.get_args()
            seen.add(name)
    assert {"reference.baselines", "reference.one_mask", "run_inference", "dataset_maker.make_eegmat"} <= seen


# Baselines


def test_band_powers_are_means_of_a_density_computed_by_hand() -> None:
    """Segments of 2 s, half overlapping, mean removed, periodic Hann window, one-sided density: by NumPy alone."""
    eeg = noise(2, 5, 200, seed=3)[None]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    found = []
    for signal_ in eeg[0]:
        segments = [signal_[start : start + 400] for start in range(0, 601, 200)]
        powers = [np.abs(np.fft.rfft((s - s.mean()) * window)) ** 2 / (200 * (window**2).sum()) for s in segments]
        density = np.mean(powers, axis=0)
        density[1:-1] *= 2
        frequencies = np.arange(201) / 2
        for low, high in ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45)):
            found.append(np.log(density[(frequencies >= low) & (frequencies < high)].mean()))
    np.testing.assert_allclose(baselines.band_powers(eeg)[0], found, rtol=1e-9)


def baseline(tmp_path: Path, kind: str, *flags: str) -> list[dict[str, float]]:
    file = tmp_path / "task.hdf5"
    if not file.exists():
        labelled_file(file, counts={"train": 48, "val": 24, "test": 24})
    output = tmp_path / f"{kind}{''.join(flags)}"
    with patch.object(sys, "argv", ["x", kind, "--dataset", str(file), "--output_dir", str(output), *flags]):
        baselines.main(baselines.get_args())
    return log(output)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["features"], "features needs --features FILE"),
        (["logistic", "--features", "a.hdf5"], "--features a.hdf5: is for features, not for logistic"),
        (["logistic", "--epochs", "3"], "--epochs 3: is for eegnet, not for logistic"),
        (["eegnet", "--epochs", "0"], "--epochs 0: must be at least 1"),
    ],
)
def test_a_flag_that_a_baseline_would_not_use_is_refused(words: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        baseline(tmp_path, *words)
    only_line(error, says)


def test_logistic_regression_learns_classes_of_other_amplitude_and_is_selected_by_validation(tmp_path: Path) -> None:
    lines = baseline(tmp_path, "logistic")
    assert [line["C"] for line in lines] == list(baselines.STRENGTHS)
    best = max(range(len(lines)), key=lambda i: lines[i]["val_roc_auc"])
    held = predictions(tmp_path / "logistic" / "predictions-test.npz")
    assert held["epoch"] == best
    assert lines[best]["test_roc_auc"] == roc_auc_score(held["labels"], held["logits"][:, 0]) > 0.8


def test_weighted_logistic_regression_is_one_whose_samples_count_by_their_class() -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(60) % 4 == 0).astype(int)
    features = generator.standard_normal((60, 3)) + labels[:, None]
    scaled = (features - features.mean(0)) / features.std(0)
    for said, logits in baselines.logistic({"train": features}, {"train": labels}, "balanced"):
        expected = LogisticRegression(C=said["C"], max_iter=2000)
        expected.fit(scaled, labels, sample_weight=np.where(labels == 1, 60 / 30, 60 / 90))
        np.testing.assert_allclose(logits["train"][:, 0], expected.decision_function(scaled), rtol=1e-4, atol=1e-6)


def test_eegnet_learns_and_repeats_with_its_seed(tmp_path: Path) -> None:
    pytest.importorskip("braindecode")
    first = baseline(tmp_path, "eegnet", "--epochs", "4")
    assert first[-1]["train_loss"] < first[0]["train_loss"]
    assert baseline(tmp_path, "eegnet", "--epochs", "4") == first


def test_features_of_other_windows_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file["x/features"], file["x/recording"] = np.zeros((2, 3)), ["train-0", "train-0"]
    with pytest.raises(InputError, match="other windows"):
        baseline(tmp_path, "features", "--features", str(tmp_path / "f.hdf5"))
    with pytest.raises(InputError, match=r"run_inference\.py embed"):
        baseline(tmp_path, "features", "--features", str(tmp_path / "task.hdf5"))


# Without symmetric masking


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


# Tables


def tabled(results: Path, readme: Path, *flags: str) -> None:
    words = ["x", "--results", str(results), "--readme", str(readme), *flags]
    with patch.object(sys, "argv", words):
        tables.main(tables.get_args())


def test_the_shipped_readme_is_what_the_shipped_jsons_give() -> None:
    folder = ROOT / "reference"
    tabled(folder / "results", folder / "README.md", "--check")
    for name in re.findall(r"\]\((figures/[\w-]+\.png)\)", (folder / "README.md").read_text()):
        assert (folder / name).is_file()


def test_without_any_cell_the_tables_say_so_and_give_no_number(tmp_path: Path) -> None:
    readme = shutil.copy(ROOT / "reference" / "README.md", tmp_path)
    tabled(tmp_path, readme)
    text = Path(readme).read_text()
    part = text[text.index("<!-- begin cross-validation -->") : text.index("<!-- end cross-validation -->")]
    assert part.count(tables.NOT_RUN) == len(cells.WAYS) and not re.search(r"\d\.\d", part)
    assert f"{len(cells.plan('cpu'))} of {len(cells.plan('cpu'))}" in text and not list(tmp_path.glob("figures/*"))


def test_tables_and_figures_are_made_of_the_cells_that_are_there(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "results", tmp_path / "results")
    readme = Path(shutil.copy(ROOT / "reference" / "README.md", tmp_path))
    with patch.object(intervals, "DRAWS", 20):
        tabled(tmp_path / "results", readme)
        tabled(tmp_path / "results", readme, "--check")
        text = readme.read_text()
        auc = result(chain, "cv-logistic-even")["metrics"]["roc_auc"]
        assert re.search(rf"\| the same, classes weighted \| 1 \|.*{auc:.3f} \[", text)
        log = result(chain, "tokenizer")["runs"][0]["log"]
        losses = [log[0]["train_loss"], log[-1]["train_loss"], log[-1]["test_loss"]]
        assert f"| tokenizer | 1 | 1 | {' | '.join(f'{loss:.3f}' for loss in losses)} |" in text
        masked = result(chain, "ablation-one-mask")["runs"]
        last = masked[1]["log"][-1]
        gained = last["val_unigram_loss"] / 2 - last["val_loss"]
        (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| no symmetric masking |")]
        assert row[2] == f"{masked[0]['log'][-1]['test_loss']:.3f}" and row[5] == f"{gained:.3f}"
        assert (tmp_path / "figures" / "stage-curves.png").stat().st_size > 10_000
        kept = json.loads((tmp_path / "results" / "intervals.json").read_text())
        assert len(kept) >= 3 and any("cv-scratch less cv-logistic-even" in key for key in kept)
        readme.write_text(text.replace(f"{auc:.3f} [", "0.999 ["))
        with pytest.raises(InputError, match=r"is not what .* gives"):
            tabled(tmp_path / "results", readme, "--check")


def test_intervals_of_a_cell_are_those_of_the_products_own_bootstrap(chain: Path, tmp_path: Path) -> None:
    record = result(chain, "cv-logistic-even")
    (held,) = intervals.pooled([record])
    with patch.object(intervals, "DRAWS", 50):
        found = intervals.Intervals(tmp_path).of_mean([record])
    expected = bootstrap("binary", [held], subjects_of(held), draws=50).mean
    for name, ends in expected.items():
        assert found[name] == pytest.approx(ends, abs=1e-4)


def test_cells_of_two_sizes_and_damaged_ones_are_refused(chain: Path, tmp_path: Path) -> None:
    record = result(chain, "tokenizer")
    (tmp_path / "a.json").write_text(json.dumps(record))
    (tmp_path / "b.json").write_text(json.dumps({**record, "size": "gpu"}))
    with pytest.raises(InputError, match="sizes gpu and test"):
        tables.load(tmp_path)
    (tmp_path / "b.json").write_text('{"cell": 1}')
    with pytest.raises(InputError, match="no result of a cell"):
        tables.load(tmp_path)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        tables.load(tmp_path)


def test_a_folder_of_results_that_is_not_there_is_an_error_and_not_an_empty_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder: name the --output of the cells"):
        tables.load(tmp_path / "none")
