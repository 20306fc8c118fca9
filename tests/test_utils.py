"""What every run needs: set-up and tear-down, flags, signals, files that are whole, log.txt, checkpoints."""

import argparse
import dataclasses
import json
import math
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
import torch.distributed as dist
from timm.models import create_model

import files
import run_class_finetuning
import run_vqnsp_training
from data_helpers import TINY, only_line, script_args
from devices import use_compiler
from eeg_data.batches import TrainingBatches
from eeg_data.pretraining import Batch
from errors import InputError, Interrupted, UsageError
from norm_ema_quantizer import Later
from optim_factory import Outcome, build_update
from ranks import together
from training.checkpoints import load_for_evaluation
from training.state import TrainingState
from utils import Interruption, setup_run

SMALL = ("--model", TINY, "--codebook_n_emd", 24, "--codebook_emd_dim", 8, "--device", "cpu", "--num_workers", 0)


def flags(folder: Path, *words: Any) -> argparse.Namespace:
    return script_args(run_vqnsp_training, *SMALL, "--output_dir", folder, *words)


def test_a_run_without_torchrun_is_one_process_and_is_torn_down_also_after_an_error(tmp_path: Path) -> None:
    with setup_run(flags(tmp_path / "new" / "folder", "--seed", 5)) as run:
        assert dist.is_initialized() and dist.get_world_size() == 1
        assert (run.rank, run.processes, run.is_main, run.seed) == (0, 1, True, 5)
        assert (run.device, run.amp_dtype, run.dtype) == (torch.device("cpu"), None, torch.float32)
    assert not dist.is_initialized()
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


def refused(args: argparse.Namespace) -> str:
    """Check that flags are refused as wrong usage before anything was set up; return the line."""
    with pytest.raises(UsageError) as error, setup_run(args):
        pytest.fail("the run began")
    assert error.value.exit_code == 2 and not dist.is_initialized()
    return only_line(error)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--device", "cuda:3"), ("--device cuda:3", "0 found")),
        (("--device", "gpu"), ("--device gpu", "allowed: cuda")),
        (("--precision", "fp16"), ("--precision fp16 needs a GPU",)),
        (("--precision", "tf32"), ("--precision tf32 needs a GPU", "use fp32")),
        (("--epochs", 0), ("--epochs 0: allowed are numbers from 1",)),
        (("--opt_betas", 0.9, 1.0), ("--opt_betas 1.0: allowed are numbers from 0",)),
    ],
)
def test_flags_that_cannot_be_are_wrong_usage_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[Any, ...], parts: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = refused(flags(tmp_path, *words))
    assert all(part in text for part in parts) and list(tmp_path.iterdir()) == []


def test_cuda_graphs_refuse_what_they_cannot_record(tmp_path: Path) -> None:
    words = ("--output_dir", tmp_path, "--cuda_graphs")
    line = refused(script_args(run_class_finetuning, *words, "--grad_checkpoint"))
    assert "--cuda_graphs" in line and "--grad_checkpoint" in line
    with setup_run(script_args(run_class_finetuning, *words, "--device", "cpu")) as run:
        assert not run.graphs
        with pytest.raises(UsageError, match="--cuda_graphs is for one data set"):
            dataclasses.replace(run, graphs=True).distribute(torch.nn.Linear(2, 2), heads=2)


def test_an_output_folder_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"--output_dir {folder} cannot be written" in refused(flags(folder))
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("auto", (None, torch.float32)), ("fp64", (None, torch.float64)), ("bf16", (torch.bfloat16, torch.float32))],
)
def test_precision_on_a_cpu(tmp_path: Path, precision: str, expected: tuple) -> None:
    with setup_run(flags(tmp_path, "--precision", precision)) as run:
        assert (run.amp_dtype, run.dtype) == expected
        with run.autocast():
            half = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        assert half == (expected[0] or torch.float32)
        assert (run.place(torch.ones(2)).dtype, run.place(torch.tensor([3])).dtype) == (expected[1], torch.int64)
        assert {p.dtype for p in run.distribute(torch.nn.Linear(2, 2)).parameters()} == {expected[1]}


# Several processes


def share(folder: Path, datasets: list[str]) -> None:
    """Be one of three processes that exchange results, errors, differences and signals; write down what came."""
    rank, seen, texts = int(os.environ["RANK"]), [], []
    words = ("--output_dir", folder / f"out{rank}", "--data_dir", folder / f"data{rank}", "--dataset", datasets[rank])

    def work() -> dict[str, Any]:
        seen.append(rank)
        return {"a": [torch.arange(3), (torch.tensor(1.5), True)], "b": torch.zeros(0)}

    def refuse() -> None:
        raise InputError("refused on process 0")

    try:
        with setup_run(script_args(run_class_finetuning, "--device", "cpu", *words)) as run:
            texts += [str(run.run_on_rank0(work)), str(seen)]
            for bad in (lambda: run.run_on_rank0(refuse), lambda: run.check_same({"x": rank}, "the way out")):
                with pytest.raises(InputError) as error:
                    bad()
                texts.append(str(error.value))
            with run.interruption.listening():
                for step in range(20):
                    if step == 7 and rank == 1:
                        os.kill(os.getpid(), signal.SIGUSR1)
                    if run.interruption.sync_signals(save=step == 3 and rank == 0):
                        texts.append(f"save at {step}")
    except InputError as error:
        texts.append(str(error))
        dist.destroy_process_group()
    except Interrupted as stop:
        texts.append(f"{stop.exit_code} at {step}")
    (folder / f"result.{rank}").write_text(json.dumps(texts))


def test_processes_share_results_errors_differences_and_signals(tmp_path: Path) -> None:
    results = []
    for datasets in (["0/MyPath.hdf5", "1/MyPath.hdf5", "2/MyPath.hdf5"], ["TUAB"] * 3):
        assert together(share, (tmp_path, datasets), processes=3) == [0, 0, 0]
        results.append([json.loads((tmp_path / f"result.{rank}").read_text()) for rank in range(3)])
    # Other folders are no difference, other --dataset are, whatever their names.
    for (text,) in results[0]:
        assert text.startswith("process 1 has another --dataset (['1/MyPath.hdf5']) than process 0")
    same = "process 1 has another x (1) than process 0 (0): the way out"
    for rank, (shared, seen, *others) in enumerate(results[1]):
        assert shared == results[1][0][0] and "tensor([0, 1, 2])" in shared
        assert seen == ("[0]" if rank == 0 else "[]")
        # The wish to save of step 3 takes effect in step 4, the signal of step 7 in step 8.
        assert others == ["refused on process 0", same, "save at 4", "143 at 8"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_at_the_next_call_and_not_before(number: signal.Signals, code: int) -> None:
    interruption, done = Interruption(), []
    before = signal.getsignal(number)
    with interruption.listening():
        interruption.sync_signals()
        os.kill(os.getpid(), number)
        done.append("the rest of the step")
        with pytest.raises(Interrupted) as stop:
            interruption.sync_signals()
    assert done and stop.value.exit_code == code and number.name in str(stop.value)
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once() -> None:
    with Interruption().listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_json_file_is_replaced_whole_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, name = tmp_path / "a.json", os.fsdecode(b"M\xfcller/\xc3\xa9.edf")  # no UTF-8
    files.write_json(path, {"a": 1})
    files.write_json(path, {"path": name})
    assert json.loads(path.read_text(encoding="utf-8")) == {"path": name} and list(tmp_path.iterdir()) == [path]

    def stopped(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"c": 3})
    assert json.loads(path.read_text()) == {"path": name} and list(tmp_path.iterdir()) == [path]


def test_a_device_or_pipe_is_written_directly_and_never_replaced(tmp_path: Path) -> None:
    files.check_file(Path("/dev/null"), "--json")
    files.write_json(Path("/dev/null"), {"a": 1})
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_json(pipe, {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1} and list(tmp_path.iterdir()) == [pipe]
    os.close(reader)


def test_flags_and_numbers_become_plain_json() -> None:
    values = {"path": Path("a/b"), 1: (0.9, math.inf), "nested": [{"x": math.nan, "y": np.float64("nan")}], "n": 3}
    expected = {"path": "a/b", "1": [0.9, None], "nested": [{"x": None, "y": None}], "n": 3}
    assert files.plain(values) == expected and json.loads(json.dumps(files.plain(values), allow_nan=False)) == expected


def test_the_code_version_begins_with_the_version_and_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.code_version().startswith(files.__version__)
    files.code_version.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert files.code_version() == files.__version__
    files.code_version.cache_clear()


@contextmanager
def training(folder: Path, *words: Any) -> Iterator[TrainingState]:
    """Give the state of a training of a tiny tokenizer that takes two steps an epoch."""
    args = flags(folder, "--epochs", 4, "--save_ckpt_freq", 2, *words)
    with setup_run(args) as run:
        model = run.distribute(create_model(TINY, n_code=8, code_dim=4, quantize_kmeans_init=False))
        update = build_update(model, args, run, steps_per_epoch=2)
        yield TrainingState(model, update, run, args, stage="tokenizer")


class FakeLoader:
    """Two batches of one montage."""

    def __init__(self) -> None:
        self.batch_sampler = TrainingBatches([8], 4, seed=0)
        self.dataset = SimpleNamespace(groups=["2ch"])

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(torch.zeros(4, 1, 1, 1), torch.zeros(2), torch.empty(0)) for _ in self.batch_sampler)


def test_random_numbers_of_an_epoch_depend_on_seed_epoch_and_process_only(tmp_path: Path) -> None:
    with training(tmp_path) as state:

        def draws(epoch: int, **changed: int) -> list[float]:
            torch.rand(7)
            state.run = type(state.run)(**{**vars(state.run), **changed})
            state.step = 0
            state.update.outcome = Outcome(Later(torch.tensor(True)), [])  # of the steps that the loop does not take
            return [float(torch.rand(())) for _ in state.steps(FakeLoader(), epoch)]

        first = draws(1)
        assert draws(1) == first
        others = [draws(2), draws(1, rank=1), draws(1, rank=0, seed=9)]
        assert all(other != first for other in others) and len({tuple(other) for other in others}) == 3
        assert draws(1, seed=0) == first


def test_no_auto_resume_starts_anew_and_start_epoch_places_the_schedule(tmp_path: Path) -> None:
    with training(tmp_path) as state:
        state.resume()
        state.finish_epoch(2)
    with training(tmp_path, "--no_auto_resume") as state:
        assert state.resume() == 0 and state.update.step == 0
    with training(tmp_path, "--no_auto_resume", "--start_epoch", 3) as state:
        assert state.resume() == 3 and state.update.step == 6


def test_evaluation_takes_the_best_checkpoint_before_the_latest_and_resume_before_both(tmp_path: Path) -> None:
    model = create_model(TINY, n_code=8, code_dim=4)
    for epoch, name in enumerate(["other.pth", "checkpoint.pth", "checkpoint-best.pth"]):
        weights = {key: torch.full_like(value, epoch) for key, value in model.state_dict().items()}
        torch.save({"model": weights, "epoch": epoch}, tmp_path / name)
    args = flags(tmp_path, "--eval")
    with setup_run(args) as run:
        for place, epoch in ((None, 2), (tmp_path / "other.pth", 0)):
            args.resume = place
            assert load_for_evaluation(model, args, run, stage="tokenizer") == epoch
            assert all((value == epoch).all() for value in model.state_dict().values())
        args.resume = None
        (tmp_path / "checkpoint-best.pth").unlink()
        assert load_for_evaluation(model, args, run, stage="tokenizer") == 1


def test_blocks_are_compiled_on_gpus_where_triton_can_build_and_in_few_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    cpu, gpu, header = torch.device("cpu"), torch.device("cuda", 0), tmp_path / "Python.h"
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(inductor, "compile_threads", 32)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", sys.executable)  # a program that is there
    assert [use_compiler(wanted, cpu) for wanted in (None, False)] == [False, False] and not caplog.messages
    assert not use_compiler(None, gpu) and "Python.h" in caplog.messages.pop()
    header.touch()
    assert inductor.compile_threads == 32 and use_compiler(None, gpu) and inductor.compile_threads == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert use_compiler(True, cpu) and inductor.compile_threads == 2
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert not use_compiler(None, gpu) and "a C compiler" in caplog.messages.pop()
    assert use_compiler(True, gpu), "who asks for it gets the compiler's own error"
