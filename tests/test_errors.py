"""How a script ends on an error that a user caused, and on one that only we can."""

from typing import Any

import pytest

from errors import ArgumentParser, InputError, UsageError, run_script


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
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped; the same command goes on from here\n"


@pytest.mark.parametrize("error", [ValueError("ours"), AssertionError("ours")])
def test_other_errors_keep_their_traceback(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised:
        run_script(raising(error), None)
    assert raised.value is error and capsys.readouterr().err == ""


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
