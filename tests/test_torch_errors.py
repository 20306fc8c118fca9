"""Errors of torch's that a user can do something about are one line with the flags that help."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import layers
from data_helpers import TINY, TRIO, signal, write_pretraining
from errors import InputError, PeerLost, UsageError, friendly_error
from inference_helpers import random_module, saved
from run_helpers import CLASSIFIER, MASKED, TOKENIZER, call, labelled_file, pretraining_file

# As PyTorch's CUDA allocator says it.
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.05 GiB is "
    "free. Process 4711 has 78.04 GiB memory in use.\nOf the allocated memory 70 GiB is allocated by PyTorch."
)


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError(CUDA)


def error_of(script: str, words: Sequence[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a script whose blocks find no memory; return the one line that it says on standard error."""
    capsys.readouterr()
    with patch.object(layers.Block, "forward", full):
        assert call(script, *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(errors) == 1 and errors[0].startswith("error: --device cpu has too little memory (CUDA out of memory.")
    assert "Tried to allocate 2.00 GiB)" in errors[0] and "4711" not in errors[0]
    return errors[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pretraining_file(folder / "pretrain" / "a.hdf5", seconds=(12,))
    labelled_file(folder / "task.hdf5", counts={"train": 8, "val": 4})
    saved(folder / "tokenizer.pth", random_module(TINY, n_code=16, code_dim=8))
    return folder


def test_a_gpu_without_memory_is_one_line_in_stage_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TOKENIZER, "--train_data", data / "pretrain", "--output_dir", tmp_path]
    line = error_of("run_vqnsp_training", words, capsys)
    assert line.endswith(": lower --batch_size 4 (--total_batch_size N keeps the windows of a step)")


def test_a_gpu_without_memory_is_one_line_in_stage_2_unless_it_is_checkpointed_already(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*MASKED, "--train_data", data / "pretrain", "--tokenizer_weight", data / "tokenizer.pth"]
    words += ["--output_dir", tmp_path]
    line = error_of("run_labram_pretraining", words, capsys)
    assert "lower --batch_size 4 (" in line and line.endswith(", or add --grad_checkpoint")
    assert "--grad_checkpoint" not in error_of("run_labram_pretraining", [*words, "--grad_checkpoint"], capsys)


@pytest.mark.parametrize("further", [(), ("--linear_probe",)], ids=" ".join)
def test_a_gpu_without_memory_is_one_line_in_stage_3_and_names_what_helps_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], further: tuple[str, ...]
) -> None:
    words = [*CLASSIFIER, "--dataset", data / "task.hdf5", "--output_dir", tmp_path, *further]
    line = error_of("run_class_finetuning", words, capsys)
    # A linear probe computes no gradient in the blocks.
    assert "lower --batch_size 4 (" in line and ("--grad_checkpoint" in line) == ("--linear_probe" not in further)


@pytest.mark.parametrize("batch", [32, 1])
def test_a_gpu_without_memory_ends_inference_before_the_next_recording(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", TRIO, [signal(3, 1000), signal(3, 800, seed=1)])
    words = ["tokenize", "--checkpoint", data / "tokenizer.pth", "--input", path, "--output", tmp_path / "out.npz"]
    words += ["--window", 2]
    line = error_of("run_inference", [*words, "--batch_size", batch], capsys)
    helps = "lower --batch_size 32" if batch > 1 else "take a smaller model, shorter windows, or a device with more"
    assert helps in line and not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 "
        "bytes. Error code 12 (Cannot allocate memory)",
    ],
)
def test_every_way_in_which_torch_says_that_memory_is_lacking_is_known(text: str) -> None:
    given = Namespace(device="cuda", batch_size=8)
    with (
        pytest.raises(UsageError, match=r"cuda has too little memory .*: lower --batch_size 8$"),
        friendly_error(given),
    ):
        raise RuntimeError(text)


def test_a_cpu_that_has_no_such_memory_says_so_as_expected() -> None:
    with pytest.raises(UsageError, match="too little memory"), friendly_error(Namespace(device="cpu", batch_size=8)):
        torch.empty(2**58, dtype=torch.uint8)


OF_A_DATASET = IndexError("Caught IndexError in DataLoader worker process 0.\nOriginal Traceback: ...")


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("a"), OF_A_DATASET]
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, friendly_error(Namespace()):
        raise error
    assert caught.value is error


def test_a_loading_process_that_was_killed_is_named_with_what_helps() -> None:
    with pytest.raises(InputError, match="try fewer --num_workers"), friendly_error(Namespace()):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


def test_a_compilers_reason_is_told_which_stands_on_its_second_line() -> None:
    def backend(module: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler")

    says = r"torch.compile failed \(.*no C\+\+ compiler\): .*--no_compile"
    with pytest.raises(InputError, match=says), friendly_error(Namespace()):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))


def test_what_is_in_words_already_stays_as_it_is() -> None:
    error = InputError("a file of that name: Broken pipe, out of memory")
    with pytest.raises(InputError) as caught, friendly_error(Namespace(), processes=2):
        raise error
    assert caught.value is error


def test_a_lost_connection_is_another_process_only_where_there_are_several() -> None:
    error = RuntimeError("Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(PeerLost), friendly_error(Namespace(), processes=2):
        raise error
    with pytest.raises(RuntimeError, match="4711"), friendly_error(Namespace()):
        raise error
