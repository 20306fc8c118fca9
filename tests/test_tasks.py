"""Several data sets at once in stage 3: one trunk, a head for each; each against what it would be alone."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from timm.models import create_model
from torch import Tensor, nn

import inference
import modeling_pretrain
import optim_factory
import run_class_finetuning
from data_helpers import differences, script_args
from eeg_data import labelled
from eeg_data.labelled_files import read_labelled
from eeg_data.loader import Loaders, training_batches
from engine_for_finetuning import Task, train_one_epoch
from errors import UsageError
from golden_recipe import fill
from inference import weights
from modeling_finetune import load_pretrained
from ranks import smaller_sizes
from results.read import read_runs
from results.tables import make_groups
from run_helpers import CLASSIFIER, call, checkpoint, differing, labelled_file, log, predictions, stopped_at
from training.state import TrainingState
from utils import setup_run

TINY = "labram_tiny_patch200_200"
TINY_MASKED = next(name for name in modeling_pretrain.SIZES if "tiny" in name)
SCRIPT = "run_class_finetuning"
WIDTH = 100  # of models smaller than the tiny one
N = 12  # training samples of each data set
SETS: dict[str, dict[str, Any]] = {  # of different tasks, montages and windows; `age_y` is the head age-y
    "fists": {"counts": {"train": N, "val": 7, "test": 6}, "electrodes": ("C3", "CZ", "C4", "PZ")},
    "sleep": {"counts": {"train": N, "val": 6}, "electrodes": ("FP1", "O2"), "seconds": 3, "classes": ("a", "b", "c")},
    "age_y": {"counts": {"train": N, "val": 5, "test": 4}, "electrodes": ("C3", "O1"), "classes": ("y",)},
}
KINDS = {"fists": "binary", "sleep": "multiclass", "age_y": "regression"}
HEADS = ("fists", "sleep", "age-y")
PLACES = ["--pool", "electrodes", "--center", "subject"]  # of which each head has its own


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Models of two blocks."""
    with smaller_sizes():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each task, and one of stage 2 to start from."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, options in SETS.items():
        path = labelled_file(folder / f"{name}.hdf5", task=KINDS[name], **options)
        if KINDS[name] == "regression":
            with h5py.File(path, "r+") as file:
                for split in file.values():
                    n = len(split["label"])
                    del split["label"]
                    split["label"] = np.linspace(-1, 1, n, dtype=np.float32)[:, None]
    torch.save({"model": fill(create_model(TINY_MASKED, vocab_size=8)).state_dict()}, folder / "masked.pth")
    return folder


def words(data: Path, *more: Any, names: Any = tuple(SETS)) -> list[Any]:
    return [*CLASSIFIER, "--dataset", *(data / f"{name}.hdf5" for name in names), "--lr", "2e-3", *more]


def features(weights: dict[str, Tensor], path: Path, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Return what the head sees of the training samples, and their labels, without the project's own reader."""
    model = create_model(TINY).double().eval()
    model.load_state_dict({key: value for key, value in weights.items() if key in model.state_dict()}, strict=False)
    with h5py.File(path, locking=False) as file:
        eeg, labels = (torch.tensor(file["train"]["eeg"][:]) / 100).double(), torch.tensor(file["train"]["label"][:])
    with torch.no_grad():
        tokens = model.run_blocks(model.embed(eeg.reshape(*eeg.shape[:2], -1, 200), rows))[:, 1:]
        return nn.functional.layer_norm(tokens.mean(1), (WIDTH,), eps=1e-6), labels


def test_each_head_learns_as_a_plain_loop_at_its_own_steps_and_rests_at_those_of_others(
    data: Path, tmp_path: Path
) -> None:
    epochs, base, final = 3, 0.05, 0.01
    # All samples of a set in every step of it, so that their order does not matter; heads that begin at zero.
    given = words(data, "--linear_probe", "--finetune", data / "masked.pth", "--batch_size", N, "--epochs", epochs)
    given += ["--init_scale", 0, "--precision", "fp64", "--lr", base, "--min_lr", final, "--smoothing", 0]
    assert call(SCRIPT, *given, "--output_dir", tmp_path) == 0
    found = checkpoint(tmp_path / "checkpoint.pth")["model"]
    start = {key.removeprefix("student."): value for key, value in checkpoint(data / "masked.pth")["model"].items()}
    rows = {"fists": [0, 40, 42, 44, 64], "sleep": [0, 1, 83], "age_y": [0, 40, 81]}  # CLS, electrodes
    losses = {
        "fists": lambda y, t: nn.functional.binary_cross_entropy_with_logits(y[:, 0], t.double()),
        "sleep": nn.functional.cross_entropy,
        "age_y": lambda y, t: (y - t).square().mean(),
    }
    steps = 3 * epochs
    for place, (name, head) in enumerate(zip(SETS, HEADS, strict=True)):
        x, labels = features(start, data / f"{name}.hdf5", rows[name])
        outputs = {"sleep": 3}.get(name, 1)
        weight, bias = (torch.zeros(*shape).double().requires_grad_() for shape in ((outputs, WIDTH), (outputs,)))
        groups = [{"params": [weight], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0}]
        optimizer = torch.optim.AdamW(groups)
        for step in range(place, steps, 3):  # one batch each in every epoch: in the order of the command
            for group in optimizer.param_groups:
                group["lr"] = final + (base - final) * (1 + np.cos(np.pi * step / steps)) / 2
            optimizer.zero_grad()
            losses[name](x @ weight.t() + bias, labels).backward()
            optimizer.step()
        torch.testing.assert_close(found[f"heads.{head}.weight"], weight.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(found[f"heads.{head}.bias"], bias.detach(), rtol=0, atol=1e-9)
        assert weight.abs().max() > 0.05


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_with_one_data_set_the_code_for_several_equals_the_single_task_to_the_bit(
    data: Path, tmp_path: Path, pool: str
) -> None:
    path, ends = data / "fists.hdf5", []
    for heads in (None, "fists"):
        args = script_args(run_class_finetuning, *words(data, "--output_dir", tmp_path / "run", "--epochs", 2))
        with setup_run(args) as run:
            options: Any = {"num_classes": 0, "tasks": {heads: {"num_classes": 1}}} if heads else {}
            model: Any = create_model(TINY, pool=pool, drop_path_rate=0.3, **options)
            (own,) = labelled.build_labelled_loaders(args, run, [read_labelled(path)])
            train: Any = own.train
            if heads:
                train.dataset = labelled.JoinedWindows([train.dataset])
                train.batch_sampler = training_batches([N], args, run, 1, weights=[0.7])
            ddp = run.distribute(model, heads=2 if heads else 1)
            update = optim_factory.build_update(ddp, args, run, steps_per_epoch=3)
            state = TrainingState(ddp, update, run, args, stage="classifier")
            for epoch in range(2):
                train_one_epoch(state, train, epoch, [Task("binary", heads)])
            ends.append({k.replace("heads.fists.", "head."): v for k, v in model.state_dict().items()})
    assert differences(*ends) == []


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, with all that it leaves behind."""
    folder = tmp_path_factory.mktemp("whole")
    assert call(SCRIPT, *every(data, folder)) == 0
    return folder


def every(data: Path, folder: Path) -> list[Any]:
    """Return flags with which a run has all kinds of state."""
    given = words(data, "--epochs", 2, "--drop_path", 0.3, "--model_ema", "--model_ema_decay", 0.5, "--class_weights")
    given += ["balanced", "--task_weights", 4, 1, 4, "--patience", 5, *PLACES]
    return [*given, "--output_dir", folder / "run", "--log_dir", folder / "board"]


@pytest.mark.parametrize("step", [4, 10])  # of two epochs of nine: inside the first, before the second
def test_a_run_that_is_stopped_and_goes_on_ends_bit_equal(data: Path, whole: Path, tmp_path: Path, step: int) -> None:
    with stopped_at(optim_factory.Update, "__call__", step):
        assert call(SCRIPT, *every(data, tmp_path)) == 143
    assert checkpoint(tmp_path / "run" / "checkpoint.pth")["step"] == step % 9
    assert call(SCRIPT, *every(data, tmp_path)) == 0
    assert differing(whole, tmp_path) == []


def test_steps_are_shared_as_the_weights_say_and_every_number_has_its_data_sets_name(whole: Path) -> None:
    optimizer = checkpoint(whole / "run" / "checkpoint.pth")["optimizer"]
    names = [name for group in optimizer["param_groups"] for name in group["names"]]
    steps = {name: int(optimizer["state"][number]["step"]) for number, name in enumerate(names)}
    assert [steps[f"heads.{head}.weight"] for head in HEADS] == [8, 2, 8] and steps["cls_token"] == 18
    lines = log(whole / "run")
    assert {"train_loss", "train_loss_sleep", "train_accuracy_fists", "test_fists_loss"} <= lines[0].keys()
    scores = [lines[1][f"val_{name}"] for name in ("fists_roc_auc", "sleep_cohen_kappa", "age-y_r2")]
    assert lines[1]["val_score"] == pytest.approx(np.mean(np.maximum(scores, 0)), abs=1e-12)


def test_each_data_set_selects_its_own_epoch_and_the_tables_read_it_as_a_run_of_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"fists": [0.9, 0.5, 0.6, 0.6], "sleep": [0.1, 0.3, 0.4, 0.3], "age_y": [-9.0, 0.4, -0.2, 0.0]}
    left, original = {name: list(values) for name, values in scores.items()}, run_class_finetuning.evaluate

    def evaluate(model: nn.Module, loader: Any, *rest: Any) -> tuple[dict[str, float], np.ndarray]:
        stats, logits = original(model, loader, *rest)
        if loader.dataset.split == "val":
            metric = {"fists": "roc_auc", "sleep": "cohen_kappa", "age_y": "r2"}[loader.dataset.name]
            stats[metric] = left[loader.dataset.name].pop(0)
        return stats, logits

    monkeypatch.setattr(run_class_finetuning, "evaluate", evaluate)
    given = words(data, "--epochs", 9, "--patience", 2, "--lora", 2, "--output_dir", tmp_path)
    assert call(SCRIPT, *given) == 0
    lines = log(tmp_path)
    assert [line["val_score"] for line in lines] == pytest.approx([1 / 3, 0.4, 1 / 3, 0.3]), "stopped by --patience"
    assert checkpoint(tmp_path / "checkpoint-best.pth")["epoch"] == 1
    assert checkpoint(tmp_path / "model-merged.pth")["epoch"] == 1
    learnt = {name for g in checkpoint(tmp_path / "checkpoint.pth")["optimizer"]["param_groups"] for name in g["names"]}
    assert {name for name in learnt if "lora" not in name and "norm" not in name} == {
        f"heads.{head}.{kind}" for head in HEADS for kind in ("weight", "bias")
    }
    epochs = {"fists": 0, "sleep": 2, "age-y": 1}
    for head, epoch in epochs.items():
        found = predictions(tmp_path / f"predictions-val-{head}.npz")
        assert (found["epoch"], found["last_epoch"]) == (epoch, 3)
        assert len(found["logits"]) == SETS[head.replace("-", "_")]["counts"]["val"]
    runs, notes = read_runs([tmp_path])
    assert {run.head: (run.epoch, run.name, run.task, run.finished) for run in runs} == {
        head: (epoch, head.replace("-", "_"), KINDS[head.replace("-", "_")], True) for head, epoch in epochs.items()
    }
    fists = runs[0]
    assert fists.value("test_accuracy") == lines[0]["test_fists_accuracy"] and fists.value("val_roc_auc") == 0.9
    assert fists.log["train_loss"].tolist() == [line["train_loss_fists"] for line in lines]
    assert "accuracy" in fists.metrics and "score" not in fists.metrics
    assert fists.predictions["test"].epoch == 0 and not notes
    monkeypatch.undo()
    given = words(data, "--epochs", 9, "--patience", 2, "--lora", 2, "--seed", 1, names=["fists"])
    assert call(SCRIPT, *given, "--output_dir", tmp_path / "alone") == 0
    groups = make_groups([fists, *read_runs([tmp_path / "alone"])[0]], notes)
    assert [group.remark.partition(": ")[2] for group in groups] == ["--dataset fists sleep age_y", "--dataset fists"]


def test_a_classifier_for_one_of_the_data_sets_is_taken_out(
    data: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, run = whole / "run" / "checkpoint.pth", tmp_path / "run"
    for name, head in (("sleep", "sleep"), ("age_y", "age-y")):
        expected = predictions(whole / "run" / f"predictions-val-{head}.npz")["last_logits"]
        one = tmp_path / f"{head}.safetensors"
        export = ["export", "--checkpoint", file, "--to", "safetensors", "--output", one, "--averaged", "--task", name]
        assert call("run_inference", *export) == 0
        given = words(data, *PLACES, "--output_dir", run, names=[name])
        assert call(SCRIPT, *given, "--eval", "--resume", one) == 0
        np.testing.assert_allclose(predictions(run / "predictions-val.npz")["logits"], expected, rtol=0, atol=1e-5)
        (run / "predictions-val.npz").unlink()
        found = weights.load(one)[1]
        assert (found.data_set, found.task, found.electrodes) == (name, KINDS[name], SETS[name]["electrodes"])
        assert found.window_seconds == SETS[name].get("seconds", 2)
    assert "its outputs are off" not in caplog.text
    assert call(SCRIPT, *given, "--center", "none", "--eval", "--resume", one) == 0
    assert "trained with --center subject and is evaluated with --center none" in caplog.text
    model = inference.load(file, task="age_y", averaged=True)
    assert model.classes == ("y",) and model.module.head.weight.shape == (1, 2 * WIDTH)
    several = "has a head for each of fists, sleep, age-y: choose one with --task"
    for task, part in ((None, several), ("x", f"^--task x: .* {several}")):
        with pytest.raises(UsageError, match=part):
            inference.load(file, task=task)
    with pytest.raises(UsageError, match="is not of several data sets: leave the flag out"):
        inference.load(one, task="age_y")


def test_a_run_starts_from_the_heads_of_data_sets_with_the_same_name_and_shape() -> None:
    def several(**outputs: int) -> Any:
        return create_model(TINY, num_classes=0, tasks={name: {"num_classes": n} for name, n in outputs.items()})

    given, new = several(same=2, wider=2, gone=3), several(same=2, wider=4, fresh=3)
    keys = load_pretrained(new, given.state_dict())
    assert [keys[what] for what in ("missing", "unexpected", "dropped")] == [
        [f"heads.{head}.{kind}" for head in heads for kind in ("weight", "bias")]
        for heads in (["wider", "fresh"], ["gone"], ["wider"])
    ]
    assert torch.equal(new.heads["same"].weight, given.heads["same"].weight)
    assert load_pretrained(create_model(TINY), given.state_dict())["missing"] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("names", "flags", "part"),
    [
        (["fists", "fists"], [], "its name fists cannot name a head, or names two"),
        (["fists", "sleep"], ["--task_weights", 1], "--task_weights has 1 number(s) for 2 data set(s)"),
        (["fists"], ["--task_weights", 1], "for 1 data set(s)"),
        (["fists", "sleep"], ["--task_weights", 1, 0], "--task_weights 0.0"),
        (["fists", "sleep"], ["--nb_classes", 3], "fists.hdf5 needs 1 output(s), "),
        (["fists", "sleep"], ["--select_by", "roc_auc"], "--select_by roc_auc: for multiclass tasks allowed are"),
    ],
)
def test_what_does_not_fit_several_data_sets_is_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], flags: list[Any], part: str
) -> None:
    assert call(SCRIPT, *words(data, *flags, names=names), "--output_dir", tmp_path) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert part in line
    assert not (tmp_path / "log.txt").exists()


def test_a_name_that_no_head_can_have_is_refused_with_the_way_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = labelled_file(tmp_path / "training.hdf5", counts={"train": 4})
    assert call(SCRIPT, *CLASSIFIER, "--dataset", path, data / "fists.hdf5", "--output_dir", tmp_path / "run") == 1
    assert "its name training cannot name a head, or names two: give it another one" in capsys.readouterr().err
    assert call(SCRIPT, *CLASSIFIER, "--dataset", path, "--output_dir", tmp_path / "run") == 0


def test_a_process_without_validation_batches_of_its_own_has_a_validation_set_to_wait_for() -> None:
    windows = SimpleNamespace(labels=np.zeros(3), classes=("a", "b"))
    train = SimpleNamespace(dataset=SimpleNamespace(parts=[windows]))
    args, task = script_args(run_class_finetuning, *CLASSIFIER, "--patience", 5), Task("binary")
    file = SimpleNamespace(path="x.hdf5")

    def add(val: Any) -> None:
        with patch.object(labelled, "build_labelled_loaders", lambda *_, **__: [Loaders(train, val, None)]):
            run_class_finetuning.add_data([task], [file], None, args, None, 1)

    add([])  # as of the second process, where a batch takes all samples
    assert task.loaders.val == []
    with pytest.raises(UsageError, match="no validation samples"):
        add(None)
