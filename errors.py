"""Errors that a user can cause, and how a script ends on them.

Every module may import this one; it imports nothing of the project. What a user can cause is one line and an exit
code. What only we can cause is an `assert` or an ordinary exception with its traceback.
"""

import argparse
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # exit code after Ctrl-C, as shells count
TERMINATED = 143  # exit code after SIGTERM
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE)  # by a file system
GRACE_SECONDS = 2  # in which torchrun can end a process before it prints an error that another one printed already

# torch has no types for most of its errors, so they are recognised by their texts.
COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
LOST_PEER = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "remote process exited")
TIMED_OUT = "Timed out waiting"  # for another process, as Gloo says it
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # of CUDA, of its libraries, on CPUs
LESS_MEMORY = {  # what helps, for scripts that have the flag
    "batch_size": "lower --batch_size",
    "total_batch_size": "keep the windows of a step with --total_batch_size",
    "grad_checkpoint": "when blocks learn, add --grad_checkpoint",
}


class InputError(ValueError):
    """Data, a file or a checkpoint that cannot be used. The message says what, where and the way out."""

    exit_code = 1


class UsageError(InputError):
    """A wrong command line: a flag's value that cannot be right on this machine or for this model."""

    exit_code = 2


class PeerLost(InputError):
    """Another process of the run ended, so this one cannot go on. The other one prints the reason."""


class Interrupted(BaseException):  # no Exception: code that handles errors must not catch it
    """A signal ended the run after everything was saved."""

    def __init__(self, text: str, exit_code: int) -> None:
        """text: the line to print; exit_code: of the process."""
        super().__init__(text)
        self.exit_code = exit_code


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Adds useful defaults to the help of flags and leaves a description as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, []) or isinstance(action.default, bool) or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with defaults in the help and errors of one line."""

    def __init__(self, **options: Any) -> None:
        """options: as for argparse."""
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(UsageError.exit_code, f"error: {message} (see {self.prog} --help)\n")


def one_line(error: BaseException) -> str:
    """Return the message of an error in one printable line."""
    return printable(" ".join(str(error).split()))


def printable(text: object) -> str:
    """Escape what a terminal cannot show, or would obey, in a text from a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def first_few(words: Sequence[str], most: int = 5) -> str:
    """Join the first few of a list, and say how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def run_script(main: Callable[[Any], None], args: argparse.Namespace) -> None:
    """Call `main(args)`; turn an InputError into one line on stderr and its exit code, Ctrl-C into a line and 130.

    So are errors of torch and of the file system that a user can act on. All others keep their traceback. In a run of
    several processes the first error is printed by its process and in torchrun's summary.
    """
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    try:
        main(args)
    except Interrupted as stop:
        _end(str(stop) if os.environ.get("RANK", "0") == "0" else "", stop.exit_code, distributed=False)
    except KeyboardInterrupt:
        _end("stopped; the same command continues from here", INTERRUPTED, distributed)
    except Exception as error:
        known = error if isinstance(error, InputError) else translated(error, args, distributed=distributed)
        if known is not None:
            _end(f"error: {one_line(known)}", known.exit_code, distributed, quiet=isinstance(known, PeerLost))
        if not distributed:
            raise
        _end("".join(traceback.format_exception(error)).rstrip(), 1, distributed)


def _end(text: str, code: int, distributed: bool, *, quiet: bool = False) -> NoReturn:
    """Print how this process ends, and end it. quiet: another process prints the reason."""
    rank = os.environ.get("RANK", "0")
    summary = os.environ.get("TORCHELASTIC_ERROR_FILE")  # where torchrun looks for the first error
    if distributed and not quiet and summary:
        details = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(summary).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))
    if distributed and (quiet or os.environ.get("LOCAL_RANK", "0") != "0"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun ends the other processes with it
        time.sleep(GRACE_SECONDS)
    if text:
        print(text if rank == "0" else f"[process {rank}] {text}", file=sys.stderr, flush=True)
    if distributed:
        os._exit(code)  # an exchange with other processes may be under way; a normal exit would wait for it
    sys.exit(code)


def translated(error: Exception, args: argparse.Namespace, *, distributed: bool = False) -> InputError | None:
    """Return what to print in place of an error that a user can act on; None for any other error."""
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
        return InputError(f"{error.filename}: {error.strerror}; change its permissions or name another place")
    if not hasattr(args, "device"):  # a script without torch, whose errors are all that follows
        return None
    text = str(error).strip() or type(error).__name__
    lines = text.splitlines()
    reason = lines[1].strip() if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]  # a compiler's reason
    if distributed and isinstance(error, RuntimeError) and any(sign in text for sign in LOST_PEER):
        return PeerLost("ended because another process of the run did")
    if TIMED_OUT in text:
        way_out = "see what keeps it on its machine, then start the same command again"
        return InputError(f"another process of the run took too long ({reason}): {way_out}")
    if isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY):
        reason = ". ".join(reason.split(". ")[:2])  # how much was wanted; what follows says who holds the rest
        ways = [way for flag, way in LESS_MEMORY.items() if flag in args and getattr(args, flag) not in (1, True)]
        ways.append("use shorter windows or a smaller model")
        return UsageError(f"--device {args.device} has too little memory ({reason}): {', '.join(ways)}")
    if type(error).__module__.startswith(COMPILER_MODULES):
        return InputError(f"--compile: torch.compile failed ({reason}): leave it out with --no_compile")
    return None
