"""Errors that a user can cause, and how a script ends on them.

Everything may import this module and it imports nothing of the project. What only we can cause is an `assert`
or an ordinary exception with its traceback; what a user can cause is one line and an exit code.
"""

import argparse
import itertools
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code of a process that Ctrl-C ended, as shells count


class InputError(ValueError):
    """Data, a file or a checkpoint that cannot be used: the message says what, where and the way out."""

    exit_code = 1


class UsageError(InputError):
    """A wrong command line: a flag's value that cannot be right on this machine or for this model."""

    exit_code = 2


class HelpFormatter(argparse.HelpFormatter):
    """Adds a flag's default to its help, where there is one worth saying, and keeps a description's paragraphs."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap paragraphs to the terminal; lines that are indented (lists) stay as they are."""
        parts: list[str] = []
        for paragraph in text.strip().split("\n\n"):
            for listed, group in itertools.groupby(paragraph.splitlines(), key=lambda line: line.startswith(" ")):
                lines = list(group)
                if not listed:
                    lines = textwrap.wrap(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)
                parts += lines
            parts.append("")
        return "\n".join(parts).rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "default" in text or action.default in (None, False, argparse.SUPPRESS):
            return text
        if action.default is True:
            return f"{text} (default)" if action.const is True else text
        return f"{text} (default: %(default)s)".strip()


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with errors of one line."""

    def __init__(self, **options: Any) -> None:
        """options: as for argparse."""
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def one_line(error: BaseException) -> str:
    """Message of an error in one printable line; of a loading process's error without that process's traceback."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Caught ") and "worker process" in lines[0]:
        lines = [lines[-1].removeprefix("errors.InputError: ")]
    text = " ".join(" ".join(lines).split())
    # Names and labels from files may hold what a terminal obeys.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run_script(main: Callable[[Any], None], args: Any) -> None:
    """Call `main(args)`; an InputError becomes one line on stderr and its exit code, Ctrl-C a line and 130.

    Everything else stays as it is.
    """
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"[process {rank}] "
    try:
        main(args)
    except InputError as error:
        print(f"{where}error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{where}stopped; the same command goes on from here", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
