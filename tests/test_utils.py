"""What every run needs: set-up and tear-down, log.txt, checkpoints, and resumption that changes nothing."""

import argparse
import json
import logging
import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.models import create_model

import files
import run_class_finetuning
import run_vqnsp_training
import utils
from data_helpers import TINY, assert_equal, only_line, script_args
from eeg_data.batches import TrainingBatches
from errors import InputError, UsageError
from optim_factory import build_update
from run_helpers import ROOT, start
from training.state import TrainingState, load_for_evaluation
from utils import environment, setup_run

SMALL = ("--model", TINY, "--codebook_n_emd", 24, "--codebook_emd_dim", 8, "--device", "cpu", "--num_workers", 0)


def flags(folder: Path, *words: Any) -> argparse.Namespace:
    return script_args(run_vqnsp_training, *SMALL, "--output_dir", folder, *words)


# Set-up and tear-down


def test_a_run_without_torchrun_is_one_process_and_is_torn_down(tmp_path: Path) -> None:
    with setup_run(flags(tmp_path / "new" / "folder", "--seed", 5)) as run:
        assert dist.is_initialized() and dist.get_world_size() == 1
        assert (run.rank, run.processes, run.is_main, run.seed) == (0, 1, True, 5)
        assert (run.device, run.amp_dtype, run.dtype) == (torch.device("cpu"), None, torch.float32)
        total = torch.ones(2)
        dist.all_reduce(total)
        assert total.tolist() == [1, 1]
    assert not dist.is_initialized()


def test_a_run_that_fails_is_torn_down_too_and_another_can_follow(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), setup_run(flags(tmp_path)):
            raise ZeroDivisionError
        assert not dist.is_initialized()


def test_the_seed_fixes_torch_and_numpy(tmp_path: Path) -> None:
    def draws(seed: int) -> tuple[float, float]:
        with setup_run(flags(tmp_path, "--seed", seed)):
            return float(torch.rand(())), float(np.random.rand())

    assert draws(3) == draws(3)
    assert draws(3)[0] != draws(4)[0] and draws(3)[1] != draws(4)[1]


def refused(folder: Path, *words: Any) -> str:
    """Check that flags are refused as wrong usage before anything was set up; return the line."""
    with pytest.raises(UsageError) as error, setup_run(flags(folder, *words)):
        pytest.fail("the run began")
    assert error.value.exit_code == 2 and not dist.is_initialized()
    return only_line(error)


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_where_none_is_there_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = refused(tmp_path, "--device", device)
    assert f"--device {device}" in text and "0 found" in text and "--device cpu" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu0"])
def test_another_device_is_wrong_usage(tmp_path: Path, device: str) -> None:
    text = refused(tmp_path, "--device", device)
    assert f"--device {device}" in text and "cuda, cuda:<index>, cpu" in text


def test_an_output_folder_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        text = refused(folder)
        assert f"--output_dir {folder} cannot be written" in text and "another folder" in text
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("flag", "value", "lowest"),
    [
        ("epochs", 0, 1),
        ("batch_size", 0, 1),
        ("save_ckpt_freq", 0, 1),
        ("num_workers", -1, 0),
        ("start_epoch", -1, 0),
        ("seed", -1, 0),
    ],
)
def test_lengths_that_cannot_be_are_wrong_usage(tmp_path: Path, flag: str, value: int, lowest: int) -> None:
    assert f"--{flag} {value}: allowed are numbers from {lowest}" in refused(tmp_path, f"--{flag}", value)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.99)], ids=str)
def test_betas_that_no_optimizer_takes_are_wrong_usage(tmp_path: Path, betas: tuple[float, float]) -> None:
    flags = ["--output_dir", tmp_path, "--device", "cpu", "--opt_betas", *betas]
    with pytest.raises(UsageError) as error, setup_run(script_args(run_class_finetuning, *flags)):
        pytest.fail("the run began")
    only_line(error, "--opt_betas", "numbers from 0 to 0.99999")


def test_micro_batches_below_one_are_wrong_usage(tmp_path: Path) -> None:
    args = script_args(run_class_finetuning, "--output_dir", tmp_path, "--device", "cpu", "--update_freq", 0)
    with pytest.raises(UsageError) as error, setup_run(args):
        pytest.fail("the run began")
    only_line(error, "--update_freq 0", "from 1")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("auto", (None, torch.float32)),
        ("fp32", (None, torch.float32)),
        ("fp64", (None, torch.float64)),
        ("bf16", (torch.bfloat16, torch.float32)),
    ],
)
def test_precision_on_a_cpu(tmp_path: Path, precision: str, expected: tuple) -> None:
    with setup_run(flags(tmp_path, "--precision", precision)) as run:
        assert (run.amp_dtype, run.dtype) == expected
        with run.autocast():
            half = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        assert half == (expected[0] or torch.float32)
        assert run.place(torch.ones(2)).dtype == expected[1]
        assert run.place(torch.tensor([3])).dtype == torch.int64
        model = run.distribute(torch.nn.Linear(2, 2))
        assert {p.dtype for p in model.parameters()} == {expected[1]}


def test_fp16_on_a_cpu_is_wrong_usage(tmp_path: Path) -> None:
    assert "--precision fp16 needs a GPU" in refused(tmp_path, "--precision", "fp16")


def test_environment_json_says_what_ran(tmp_path: Path) -> None:
    args = flags(tmp_path, "--epochs", 7, "--log_dir", tmp_path / "log")
    with setup_run(args) as run:
        content = json.loads(json.dumps(environment(args, run)))
    assert content["code_version"] == files.code_version()
    assert content["libraries"]["torch"] == metadata.version("torch") and "timm" in content["libraries"]
    assert content["hardware"]["device"] == "cpu" and content["hardware"]["processes"] == 1
    assert content["hardware"]["cpu_cores"] == os.cpu_count() and content["hardware"]["gpu"] is None
    assert content["flags"]["epochs"] == 7 and content["flags"]["log_dir"] == str(tmp_path / "log")
    assert content["flags"].keys() == vars(flags(tmp_path)).keys()


def test_the_code_version_begins_with_the_version_and_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.code_version().startswith(files.__version__)

    def no_git(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError("git")

    files.code_version.cache_clear()
    monkeypatch.setattr(subprocess, "run", no_git)
    assert files.code_version() == files.__version__
    files.code_version.cache_clear()


# Several processes

TOGETHER = """
import sys
sys.path.insert(0, {root!r})
import argparse, torch
from errors import InputError
from run_vqnsp_training import get_args
from utils import setup_run
sys.argv[1:] = ["--output_dir", "out", "--device", "cpu"]
with setup_run(get_args()) as run:
    def work():
        seen.append(run.rank)
        return {{"a": [torch.arange(3), (torch.tensor(1.5), True)], "b": torch.zeros(0), "c": torch.tensor([True])}}
    def refuse():
        raise InputError("refused on process 0")
    seen = []
    got = run.run_on_rank0(work)
    texts = [str(got), str(seen)]
    for bad in (refuse, lambda: run.check_same({{"same": 1, "other": run.rank}}, "the way out")):
        try:
            run.run_on_rank0(bad) if bad is refuse else bad()
        except InputError as error:
            texts.append(str(error))
    run.check_same({{"same": 1}}, "now")
    open(f"result.{{run.rank}}", "w").write("|".join(texts))
"""


def test_process_0_reads_for_all_and_what_differs_between_processes_is_named(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER.format(root=str(ROOT)))
    start([script], cwd=tmp_path, processes=2)
    first, second = ((tmp_path / f"result.{rank}").read_text().split("|") for rank in range(2))
    assert first[0] == second[0] and "tensor([0, 1, 2])" in first[0] and "tensor(1.5000)" in first[0]
    assert (first[1], second[1]) == ("[0]", "[]")
    assert first[2:] == second[2:] and first[2] == "refused on process 0"
    assert first[3] == "process 1 has another other (1) than process 0 (0): the way out"


# Training state


@contextmanager
def training(folder: Path, *words: Any, extras: dict | None = None) -> Iterator[tuple[TrainingState, Any]]:
    """Give the state of a training of a tiny tokenizer that takes two steps an epoch."""
    args = flags(folder, "--epochs", 4, "--save_ckpt_freq", 2, *words)
    with setup_run(args) as run:
        model = run.distribute(create_model(TINY, n_code=8, code_dim=4, quantize_kmeans_init=False))
        update = build_update(model, args, run, steps_per_epoch=2)
        yield TrainingState(model, update, run, args, stage="tokenizer", extras=extras), args


class FakeBatch(SimpleNamespace):
    """A batch of four windows that only says where it goes."""

    def __init__(self) -> None:
        super().__init__(eeg=torch.zeros(4, 1))

    def to(self, run: utils.Run) -> "FakeBatch":
        return self


class FakeLoader:
    """Two batches of one montage."""

    def __init__(self) -> None:
        self.batch_sampler = TrainingBatches([8], 4, seed=0)
        self.dataset = SimpleNamespace(groups=["2ch"])
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[FakeBatch]:
        self.epochs.append(self.batch_sampler.epoch)
        return (FakeBatch() for _ in self.batch_sampler)


def log_of(folder: Path) -> list[dict[str, Any]]:
    def never(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=never) for line in (folder / "log.txt").read_text().splitlines()]


def test_an_epochs_line_is_json_with_null_for_what_is_no_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with training(tmp_path) as (state, _):
        for i, _ in enumerate(state.steps(FakeLoader(), 0)):
            state.log.add({"loss": 1.0 + i}, n=4)
        line = state.finish_epoch(0, {"test_roc_auc": math.nan, "test_x": math.inf, "test_y": 2})
        expected = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    entry = log_of(tmp_path)[0]
    assert entry["train_loss"] == 1.5 and entry["test_y"] == 2 and entry["epoch"] == 0
    assert entry["test_roc_auc"] is None and entry["test_x"] is None
    assert entry["n_parameters"] == expected and entry["samples_per_second"] > 0
    assert math.isnan(line["test_roc_auc"]) and line["train_loss"] == 1.5
    assert "epoch 0: train_loss 1.5" in caplog.text and "nan" not in caplog.text


def test_steps_choose_the_epochs_order_and_count_samples_and_start_the_means_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loader = FakeLoader()
    with training(tmp_path, "--lr", 3e-4) as (state, _):
        for epoch in (0, 3):
            for _ in state.steps(loader, epoch):
                state.log.add({"loss": float(epoch)}, n=4)
            assert state.samples == 8 and state.log.mean("loss") == epoch
            assert state.finish_epoch(epoch)["train_loss_2ch"] == epoch
    assert loader.epochs == [0, 3]
    shown = [text for text in caplog.messages if "step 2/2" in text]
    assert len(shown) == 2 and "epoch 3, step 2/2: loss 3.0000, lr " in shown[1]
    assert "samples/s" in shown[1] and "left 0:00:00" in shown[1]


def test_random_numbers_of_an_epoch_depend_on_seed_epoch_and_process_only(tmp_path: Path) -> None:
    with training(tmp_path) as (state, _):

        def draws(epoch: int, **changed: int) -> list[float]:
            torch.rand(7)
            state.run = type(state.run)(**{**vars(state.run), **changed})
            state.step = 0
            return [float(torch.rand(())) for _ in state.steps(FakeLoader(), epoch)]

        first = draws(1)
        assert draws(1) == first
        others = [draws(2), draws(1, rank=1), draws(1, rank=0, seed=9)]
        assert all(other != first for other in others) and len({tuple(other) for other in others}) == 3
        assert draws(1, seed=0) == first


def pth_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


def test_checkpoints_are_kept_every_so_many_epochs_and_where_selected(tmp_path: Path) -> None:
    with training(tmp_path) as (state, args):
        assert state.resume(args) == 0
        for epoch, expected in enumerate([{"checkpoint-best.pth"}, {"checkpoint-1.pth"}, set(), {"checkpoint-3.pth"}]):
            before = pth_files(tmp_path)
            state.finish_epoch(epoch, best=epoch == 0)
            assert pth_files(tmp_path) - before - {"checkpoint.pth", "checkpoint.previous.pth"} == expected
            assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["epoch"] == epoch
    best = torch.load(tmp_path / "checkpoint-best.pth", weights_only=True)
    assert best["epoch"] == 0 and best["stage"] == "tokenizer"
    assert {"model", "optimizer", "epoch", "scaler", "args"} <= best.keys() and best["args"]["epochs"] == 4
    assert [entry["epoch"] for entry in log_of(tmp_path)] == [0, 1, 2, 3]


def test_no_save_ckpt_writes_no_checkpoints_but_the_log(tmp_path: Path) -> None:
    with training(tmp_path, "--no_save_ckpt") as (state, args):
        state.resume(args)
        for epoch in range(2):
            state.finish_epoch(epoch, best=True)
    assert pth_files(tmp_path) == set() and len(log_of(tmp_path)) == 2


def test_resuming_takes_up_weights_optimizer_step_and_extras_and_cuts_the_log(tmp_path: Path) -> None:
    extra = SimpleNamespace(value=3)
    extra.state_dict = lambda: {"value": extra.value}
    extra.load_state_dict = lambda state: setattr(extra, "value", state["value"])
    with training(tmp_path, extras={"extra": extra}) as (state, args):
        state.resume(args)
        eeg = torch.randn(2, 2, 200)
        for _ in range(2):
            state.update(state.model(eeg, [0, 1, 2])[0])
        state.finish_epoch(0)
        saved = {key: value.clone() for key, value in state.model.module.state_dict().items()}
        optimizer = state.update.state_dict()
    with (tmp_path / "log.txt").open("a") as log:
        log.writelines(json.dumps({"epoch": epoch, "train_loss": 9}) + "\n" for epoch in (1, 2))
    extra.value = 0
    with training(tmp_path, extras={"extra": extra}) as (state, args):
        assert not torch.equal(state.model.module.state_dict()["encoder.cls_token"], saved["encoder.cls_token"])
        assert state.resume(args) == 1
        assert_equal(state.model.module.state_dict(), saved)
        assert_equal(state.update.state_dict(), optimizer)
        assert state.update.step == 2 and extra.value == 3
        assert [entry["epoch"] for entry in log_of(tmp_path)] == [0]
        state.finish_epoch(1)
    assert [entry["epoch"] for entry in log_of(tmp_path)] == [0, 1]


def test_a_half_written_last_line_of_the_log_does_not_stop_a_resumption(tmp_path: Path) -> None:
    with training(tmp_path) as (state, args):
        state.resume(args)
        state.finish_epoch(0)
    with (tmp_path / "log.txt").open("a") as log:
        log.write('{"train_loss": 1.2, "tr')
    with training(tmp_path) as (state, args):
        assert state.resume(args) == 1
    assert [entry["epoch"] for entry in log_of(tmp_path)] == [0]


def test_a_new_run_in_an_old_folder_sets_the_old_log_aside(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text('{"epoch": 0, "of": "the old run"}\n')
    with training(tmp_path) as (state, args):
        assert state.resume(args) == 0
        state.finish_epoch(0)
    assert "the old run" in (tmp_path / "log.previous.txt").read_text()
    assert len(log_of(tmp_path)) == 1 and "of" not in log_of(tmp_path)[0]


def test_no_auto_resume_starts_anew_and_start_epoch_places_the_schedule(tmp_path: Path) -> None:
    with training(tmp_path) as (state, args):
        state.resume(args)
        state.finish_epoch(2)
    with training(tmp_path, "--no_auto_resume") as (state, args):
        assert state.resume(args) == 0 and state.update.step == 0
    with training(tmp_path, "--no_auto_resume", "--start_epoch", 3) as (state, args):
        assert state.resume(args) == 3 and state.update.step == 6


def test_weights_without_the_state_of_a_run_are_not_resumed(tmp_path: Path) -> None:
    with training(tmp_path / "one") as (state, args):
        torch.save({"model": state.model.module.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
        args.resume = tmp_path / "weights.pth"
        with pytest.raises(InputError) as error:
            state.resume(args)
    only_line(error, tmp_path / "weights.pth", "--no_auto_resume")


def test_a_checkpoint_of_another_stage_is_not_resumed_and_the_log_stays(tmp_path: Path) -> None:
    classifier = create_model("labram_tiny_patch200_200")
    torch.save({"model": classifier.state_dict()}, tmp_path / "checkpoint.pth")
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n')
    with training(tmp_path) as (state, args), pytest.raises(InputError) as error:
        state.resume(args)
    only_line(error, tmp_path / "checkpoint.pth", "classifier", "tokenizer")
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'


def test_tensorboard_scalars_are_written_where_a_log_folder_is_given(tmp_path: Path) -> None:
    with training(tmp_path / "out", "--log_dir", tmp_path / "board") as (state, args):
        state.resume(args)
        state.finish_epoch(0, {"test_loss": 1.5, "test_bad": math.nan})
    events = list((tmp_path / "board").iterdir())
    assert len(events) == 1
    content = events[0].read_bytes()
    assert b"test_loss" in content and b"samples_per_second" in content and b"test_bad" not in content


def test_evaluation_takes_the_best_checkpoint_before_the_latest_and_resume_before_both(tmp_path: Path) -> None:
    model = create_model(TINY, n_code=8, code_dim=4)
    states = {}
    for epoch, name in enumerate(["other.pth", "checkpoint.pth", "checkpoint-best.pth"]):
        states[name] = {key: torch.full_like(value, epoch + 1.0) for key, value in model.state_dict().items()}
        torch.save({"model": states[name], "epoch": epoch}, tmp_path / name)
    args = flags(tmp_path, "--eval")
    with setup_run(args) as run:
        assert load_for_evaluation(model, args, run, stage="tokenizer") == 2
        assert_equal(dict(model.state_dict()), states["checkpoint-best.pth"])
        args.resume = tmp_path / "other.pth"
        assert load_for_evaluation(model, args, run, stage="tokenizer") == 0
        assert_equal(dict(model.state_dict()), states["other.pth"])
        args.resume = None
        (tmp_path / "checkpoint-best.pth").unlink()
        assert load_for_evaluation(model, args, run, stage="tokenizer") == 1
        (tmp_path / "checkpoint.pth").unlink()
        with pytest.raises(InputError) as error:
            load_for_evaluation(model, args, run, stage="tokenizer")
        only_line(error, tmp_path / "checkpoint.pth", "does not exist")


def test_averaged_weights_are_evaluated_only_where_the_file_has_them(tmp_path: Path) -> None:
    model = create_model(TINY, n_code=8, code_dim=4)
    state = dict(model.state_dict())
    average = {f"module.{key}": torch.full_like(value, 2.0) for key, value in state.items()}
    torch.save({"model": state, "epoch": 0}, tmp_path / "plain.pth")
    torch.save({"model": state, "epoch": 0, "extras": {"model_ema": average}}, tmp_path / "ema.pth")
    args = flags(tmp_path, "--eval", "--resume", tmp_path / "plain.pth")
    with setup_run(args) as run:
        with pytest.raises(InputError) as error:
            load_for_evaluation(model, args, run, stage="tokenizer", averaged=True)
        only_line(error, tmp_path / "plain.pth", "averaged", "--model_ema")
        args.resume = tmp_path / "ema.pth"
        load_for_evaluation(model, args, run, stage="tokenizer", averaged=True)
    assert_equal(dict(model.state_dict()), {key.removeprefix("module."): value for key, value in average.items()})
