"""Python that has imported the large libraries already: a session's many short commands begin at once.

`serve SOCKET` imports them and waits; `run SOCKET PYTHON words...` lets a copy of that process do what `PYTHON
words...` does, in this process's folder, environment and files, and ends with its exit code; `snippets` executes the
snippets that come as lines of JSON, one after the other in one namespace. Nothing of the project is imported
beforehand.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import random
import runpy
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = ("torch", "timm", "timm.models", "timm.optim", "timm.utils", "h5py", "mne", "scipy.signal")
LIBRARIES += ("sklearn.metrics", "sklearn.linear_model", "matplotlib.pyplot", "tensorboardX", "tqdm", "joblib")
MOST = 1 << 20  # bytes of a request


def run(place: str, python: str, words: list[str]) -> int:
    """Have a command done; return its exit code. python: what its own processes are to be started with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(place)
        request = {"python": python, "words": words, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        return int(server.recv(MOST) or b"1")


def serve(place: str) -> dict[str, Any]:
    """Answer requests for ever; returns a request only in the copy of this process that is to do it."""
    if hasattr(os, "sched_setaffinity"):  # a machine of one core, on which no run starts loading processes
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()  # copies need not look through what never changes
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(place)
        server.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for what answers
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return answer(caller)
            caller.close()


def answer(caller: socket.socket) -> dict[str, Any]:
    """Return the request in a copy of this process, and tell the caller how that one ended."""
    text, files, _, _ = socket.recv_fds(caller, MOST, 3)
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            caller.send(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    caller.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return json.loads(text)


def begin(request: dict[str, Any]) -> NoReturn:
    """Do what `python words...` does, in this process, and end it."""
    code: Any = 1
    try:
        execute(request)
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:  # as Python ends, but for clearing away all libraries, which takes longer than many a command
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def execute(request: dict[str, Any]) -> None:
    """Run a script or module."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable, words = request["python"], request["words"]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], str(Path.cwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def snippets() -> None:
    """Answer each line of JSON, `[name, text]`, with `[whether it went well, what it printed]`."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    sys.path[0] = str(Path.cwd())
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, text = json.loads(line)
        printed, well = io.StringIO(), True
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(text, name, "exec"), namespace)
            except BaseException:
                well = False
                traceback.print_exc(file=printed)
        print(json.dumps([well, printed.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        begin(serve(sys.argv[2]))
    elif sys.argv[1] == "run":
        sys.exit(run(*sys.argv[2:4], sys.argv[4:]))
    else:
        snippets()
