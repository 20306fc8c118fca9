"""Errors that a user can cause, and how a script ends on them.

Everything may import this module and it imports nothing of the project. What only we can cause is an `assert`
or an ordinary exception with its traceback; what a user can cause is one line and an exit code.
"""

import argparse
import errno
import itertools
import json
import os
import re
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code of a process that Ctrl-C ended, as shells count
TERMINATED = 143  # of one that SIGTERM ended
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE)  # by a file system
OTHERS_WAIT = 2  # seconds before further processes of a machine say their error: mostly it is the first one's too


class InputError(ValueError):
    """Data, a file or a checkpoint that cannot be used: the message says what, where and the way out."""

    exit_code = 1


class UsageError(InputError):
    """A wrong command line: a flag's value that cannot be right on this machine or for this model."""

    exit_code = 2


class PeerLost(InputError):
    """Another process of the run ended, so this one cannot go on. That one's message says why."""


class Interrupted(BaseException):  # no error: nothing that handles errors may catch it
    """A signal ended the run, after everything was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        """text: what to say; exit_code: of the process."""
        super().__init__(text)
        self.exit_code = exit_code


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
        if "default" in text or action.default in (None, False, [], argparse.SUPPRESS):
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
        lines = [re.sub(r"^errors\.\w+: ", "", lines[-1])]
    text = " ".join(" ".join(lines).split())
    # Names and labels from files may hold what a terminal obeys.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run_script(main: Callable[[Any], None], args: Any) -> None:
    """Call `main(args)`; an InputError becomes one line on stderr and its exit code, Ctrl-C a line and 130.

    What the file system refuses (a folder that is closed to us, a name that is too long) becomes a line as well, and
    everything else stays as it is. In a run of several processes the first error is the one that is shown, by the
    process itself and in torchrun's summary, and nothing that is still under way keeps a process from ending.
    """
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    try:
        main(args)
    except InputError as error:
        _end(f"error: {one_line(error)}", error.exit_code, together, quiet=isinstance(error, PeerLost))
    except Interrupted as stop:
        _end(str(stop) if os.environ.get("RANK", "0") == "0" else "", stop.exit_code, together=False)
    except KeyboardInterrupt:
        _end("stopped; the same command goes on from here", INTERRUPTED, together)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
            said = InputError(f"{error.filename}: {error.strerror}; open it to you, or name another place")
            _end(f"error: {one_line(said)}", said.exit_code, together)
        if not together:
            raise
        _end("".join(traceback.format_exception(error)).rstrip(), 1, together)


def _end(text: str, code: int, together: bool, *, quiet: bool = False) -> NoReturn:
    """Say how this process ends, and end it. quiet: the reason is another process's, which says it."""
    rank = os.environ.get("RANK", "0")
    if together and not quiet:
        _tell_torchrun(text)
    if together and (quiet or os.environ.get("LOCAL_RANK", "0") != "0"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # with which torchrun ends the others
        time.sleep(OTHERS_WAIT)
    if text:
        print(text if rank == "0" else f"[process {rank}] {text}", file=sys.stderr, flush=True)
    if together:
        os._exit(code)  # an exchange with the other processes may still be under way, and would be waited for
    sys.exit(code)


def _tell_torchrun(text: str) -> None:
    """Leave the message where torchrun's summary looks for the first error."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        details = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))
