"""How a script ends on an error that a user caused, and on one that only we can."""

import errno
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from errors import GRACE_SECONDS, InputError, Interrupted, PeerLost, UsageError, run_script, translated


def raising(error: BaseException) -> Any:
    def main(args: Any) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("a.hdf5 is bad:\n  make it\tagain"), 1, "error: a.hdf5 is bad: make it again\n"),
        (UsageError("bad"), 2, "error: bad\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command continues from here\n"),
        (OSError(errno.ENAMETOOLONG, "Name too long", "a" * 300), 1, f"error: {'a' * 300}: Name too long; "),
        # What a terminal would obey is escaped.
        (
            InputError("the class \x1b[2J\x9bé is \udcff unknown"),
            1,
            "error: the class \\x1b[2J\\x9bé is \\udcff unknown\n",
        ),
    ],
)
def test_each_kind_of_error_is_one_line_and_its_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_script(raising(error), Namespace())
    shown = capsys.readouterr()
    assert end.value.code == code and shown.out == ""
    assert shown.err.startswith(text) and shown.err.count("\n") == 1


def test_under_torchrun_processes_other_than_the_first_say_which_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        run_script(raising(InputError("bad")), Namespace())
    assert capsys.readouterr().err == "[process 3] error: bad\n"


# Errors of torch

# As PyTorch's CUDA allocator says it.
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.05 GiB is "
    "free. Process 4711 has 78.04 GiB memory in use.\nOf the allocated memory 70 GiB is allocated by PyTorch."
)
LIBRARY = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), LIBRARY, CPU], ids=["cuda", "library", "cpu"])
def test_every_way_in_which_torch_lacks_memory_is_wrong_usage(error: Exception) -> None:
    known = translated(error, Namespace(device="cuda", grad_checkpoint=False, batch_size=8))
    assert isinstance(known, UsageError) and "4711" not in str(known)
    for part in ("--device cuda has too little memory", "lower --batch_size", "add --grad_checkpoint"):
        assert part in str(known)


LOST = RuntimeError("Connection closed by peer [127.0.0.1]:4711")


def test_other_errors_stay_as_they_are() -> None:
    for error in (RuntimeError("size mismatch"), ValueError("out of memory"), LOST):
        assert translated(error, Namespace(device="cpu")) is None
    assert translated(ConnectionResetError(104, "of a maker's cluster"), Namespace()) is None


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (RuntimeError("[unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation"), "same command again"),
        (LOST, "another process of the run did"),
    ],
)
def test_what_ends_one_process_of_several_is_named_with_what_helps(error: Exception, way_out: str) -> None:
    known = translated(error, Namespace(device="cpu"), distributed=True)
    assert way_out in str(known) and isinstance(known, PeerLost) == (error is LOST)


def test_a_compilers_reason_is_shown_which_stands_on_its_second_line() -> None:
    def backend(module: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler")

    with pytest.raises(Exception) as error:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert re.search(r"no C\+\+ compiler.*--no_compile", str(translated(error.value, Namespace(device="cpu"))))


@pytest.fixture
def error_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make this process one of two, which torchrun ends with SIGTERM; give the file that torchrun's summary reads."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield tmp_path / "error.json"
    signal.signal(signal.SIGTERM, before)


def ended(error: BaseException) -> int:
    """Return the exit code of a process whose script raises this."""
    with pytest.raises(SystemExit) as end, patch.object(time, "time", lambda: 1234.5):
        run_script(raising(error), Namespace())
    return int(str(end.value.code))


def summary(error_file: Path) -> str:
    """Return what torchrun prints of this process at the end."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(error_file))
    assert failure.timestamp == 1234
    return ChildFailedError("script.py", {0: failure}).format_msg()


def test_torchruns_summary_shows_the_line_of_a_users_error_and_the_traceback_of_ours(
    error_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(UsageError("a.hdf5 is\nbad")) == 2
    assert capsys.readouterr().err == "error: a.hdf5 is bad\n"
    assert "error: a.hdf5 is bad\n" in summary(error_file)
    error_file.unlink()
    assert ended(KeyError("ours")) == 1
    assert capsys.readouterr().err.startswith("Traceback")
    assert "raise error" in summary(error_file) and "KeyError: 'ours'" in summary(error_file)


@pytest.mark.parametrize(
    ("place", "error"), [("0", PeerLost("another one ended")), ("1", InputError("bad"))], ids=["lost", "second"]
)
def test_who_lost_another_process_and_who_is_not_first_wait_to_be_ended_before_they_say_anything(
    place: str, error: InputError, error_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        assert capsys.readouterr().err == "" and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setenv("LOCAL_RANK", place)
    monkeypatch.setenv("RANK", place)
    assert ended(error) == 1 and waited == [GRACE_SECONDS]
    assert capsys.readouterr().err.endswith(f"error: {error}\n")
    assert error_file.exists() == (place == "1"), "a process that lost another one is not the first error"


@pytest.mark.parametrize(("rank", "shown"), [("0", "stopped by SIGTERM\n"), ("1", "")])
@pytest.mark.usefixtures("error_file")
def test_a_run_that_a_signal_stopped_says_so_once_and_ends_with_its_code(
    rank: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert ended(Interrupted("stopped by SIGTERM", 143)) == 143
    assert capsys.readouterr().err == shown
