"""Errors that a user can cause, and how a script ends on them.

Everything may import this module and it imports nothing of the project. What only we can cause is an `assert`
or an ordinary exception with its traceback; what a user can cause is one line and an exit code.
"""

import os
import sys
from collections.abc import Callable
from typing import Any


class InputError(ValueError):
    """Data, a file or a checkpoint that cannot be used: the message says what, where and the way out."""

    exit_code = 1


class UsageError(InputError):
    """A wrong command line: a flag's value that cannot be right on this machine or for this model."""

    exit_code = 2


def run_script(main: Callable[[Any], None], args: Any) -> None:
    """Call `main(args)`; an InputError becomes one line on stderr and its exit code, everything else stays as it is."""
    try:
        main(args)
    except InputError as error:
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[process {rank}] "
        print(f"{where}error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
