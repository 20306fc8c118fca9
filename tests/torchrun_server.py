"""Start torchrun again and again from a process that has imported everything, which takes longer than a tiny run.

`python torchrun_server.py` reads a line of JSON for each launch: `words` of torchrun's command line, `cwd`, `env`, and
the files `out` and `err`. It answers with the launch's process id and, at its end, with its exit code. Torchrun's own
`--start-method fork --run-path` makes the rank processes copies of it, too. Each is a process of its own that signals
reach like any other.
"""

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed.run as torchrun
import torch.multiprocessing

import run_class_finetuning  # noqa: F401
import run_labram_pretraining  # noqa: F401
import run_vqnsp_training  # noqa: F401


def as_a_process_begins() -> None:
    """Put back what a new process has and a copy of torchrun's has not: nothing but Ctrl-C is handled."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_together(original: Callable[..., Any], fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """In place of torch's start_processes: let the copies begin when all are made.

    A copy that begins at once connects to torchrun's store, one of whose threads then looks up an address; a further
    copy made in that moment finds the C library's lock for it taken, for ever.
    """
    gate, key = os.pipe()

    def begin(*given: Any) -> Any:
        os.close(key)
        os.read(gate, 1)  # ends when nobody has the key any more
        os.close(gate)
        return fn(*given)

    try:
        return original(begin, *arguments, **options)
    finally:
        os.close(gate)
        os.close(key)


def launch(request: dict[str, Any]) -> NoReturn:
    """Become torchrun."""
    code = 1
    try:
        os.setsid()
        for place, path in ((1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), place)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        torchrun.main(["--start-method", "fork", "--run-path", *request["words"]])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    original = torch.multiprocessing.start_processes
    patch.object(torch.multiprocessing, "start_processes", functools.partial(start_together, original)).start()
    os.register_at_fork(after_in_child=as_a_process_begins)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            launch(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
