"""How a script ends on an error that a user caused, and on one that only we can."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from errors import GRACE_SECONDS, ArgumentParser, InputError, Interrupted, PeerLost, UsageError, run_script


def raising(error: BaseException) -> Any:
    def main(args: Any) -> None:
        raise error

    return main


@pytest.mark.parametrize(("kind", "code"), [(InputError, 1), (UsageError, 2)])
def test_bad_data_end_with_1_and_wrong_usage_with_2_in_one_line(
    kind: type[InputError], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as end:
        run_script(raising(kind("a.hdf5 is bad:\n  make it\tagain")), None)
    assert end.value.code == code
    shown = capsys.readouterr()
    assert shown.err == "error: a.hdf5 is bad: make it again\n" and shown.out == ""


@pytest.mark.parametrize(("rank", "start"), [("0", "error: "), ("3", "[process 3] error: ")])
def test_under_torchrun_processes_other_than_the_first_say_which_they_are(
    rank: str, start: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit):
        run_script(raising(InputError("bad")), None)
    assert capsys.readouterr().err == f"{start}bad\n"


def test_ctrl_c_ends_in_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(raising(KeyboardInterrupt()), None)
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped; the same command continues from here\n"


@pytest.mark.parametrize("error", [ValueError("ours"), AssertionError("ours")])
def test_other_errors_keep_their_traceback(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised:
        run_script(raising(error), None)
    assert raised.value is error and capsys.readouterr().err == ""


def test_what_the_file_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        run_script(lambda _: Path("x" * 300).exists(), None)
    assert (
        capsys.readouterr().err
        == f"error: {'x' * 300}: File name too long; change its permissions or name another place\n"
    )


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_script(raising(InputError("the class \x1b[2J\x9bé is \udcff unknown")), None)
    assert capsys.readouterr().err == "error: the class \\x1b[2J\\x9bé is \\udcff unknown\n"


def test_main_gets_the_arguments_and_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    run_script(seen.append, "the flags")
    assert seen == ["the flags"] and capsys.readouterr() == ("", "")


def test_a_usage_error_is_an_input_error_is_a_value_error() -> None:
    assert issubclass(UsageError, InputError) and issubclass(InputError, ValueError)


def test_a_description_is_wrapped_to_the_terminal_but_its_paragraphs_and_lists_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    first = "a well-known path/of/many-parts " * 6
    shown = ArgumentParser(description=f"{first}\n\nColumns\n  one   as it   is\n  two\nand so on").format_help()
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 60 and not any(line.endswith("-") for line in lines)
    assert "\n\nColumns\n  one   as it   is\n  two\nand so on\n" in shown


# In a run of several processes


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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
        run_script(raising(error), None)
    return int(str(end.value.code))


def summary(said: Path) -> str:
    """Return what torchrun prints of this process at the end."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(said))
    assert failure.timestamp == 1234
    return ChildFailedError("script.py", {0: failure}).format_msg()


def test_torchruns_summary_shows_the_line_of_the_process_that_failed_first(
    said: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(UsageError("a.hdf5 is\nbad")) == 2
    assert capsys.readouterr().err == "error: a.hdf5 is bad\n"
    assert "error: a.hdf5 is bad\n" in summary(said)


def test_torchruns_summary_shows_the_traceback_of_an_error_that_only_we_can_cause(
    said: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(KeyError("ours")) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "in main\n    raise error\n" in shown and "KeyError: 'ours'" in shown
    found = [line.strip() for line in summary(said).splitlines()]
    assert "raise error" in found and "KeyError: 'ours'" in found


@pytest.mark.parametrize(
    ("place", "error"), [("0", PeerLost("another one ended")), ("1", InputError("bad"))], ids=["lost", "second"]
)
def test_who_lost_another_process_and_who_is_not_first_wait_to_be_ended_before_they_say_anything(
    place: str, error: InputError, said: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert said.exists() == (place == "1"), "a process that lost another one is not the first error"


@pytest.mark.parametrize(("rank", "shown"), [("0", "stopped by SIGTERM\n"), ("1", "")])
@pytest.mark.usefixtures("said")
def test_a_run_that_a_signal_stopped_says_so_once_and_ends_with_its_code(
    rank: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert ended(Interrupted("stopped by SIGTERM", 143)) == 143
    assert capsys.readouterr().err == shown
