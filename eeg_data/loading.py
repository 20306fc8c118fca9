"""Processes that load data: they grow from a server that never trained, and live as long as their run.

A copy of the training process would inherit locks that its other threads held at that moment (of OpenMP, Gloo, a
progress bar), and some day wait for one for ever. So Python's fork server starts them: it imports what the run has
imported, while the run builds its model, and has one thread. Python itself starts processes so from 3.14 on.
"""

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from multiprocessing.context import BaseContext
from pathlib import Path

from utils import EXIT_CODES


def context() -> BaseContext:
    """How loading processes start: by the server, or spawned where that was chosen or is the system's way."""
    if "spawn" in (multiprocessing.get_start_method(allow_none=True), multiprocessing.get_all_start_methods()[0]):
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["torch", *_imported()])
    _start_server()
    return made


def _imported() -> list[str]:
    """The project's modules that this process has imported: its children need not read them again."""
    here = Path(__file__).resolve().parent
    files = {name: getattr(module, "__file__", None) for name, module in [*sys.modules.items()]}
    return sorted(name for name, file in files.items() if file and Path(file).parent == here and name != "__main__")


def _start_server() -> None:
    """Start the server, if it does not run, with signals to the whole job held back: it ends when its run does."""
    held = EXIT_CODES.keys()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        multiprocessing.resource_tracker.ensure_running()  # lets some of these signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_loading(run: int, _: int = 0) -> None:
    """For a loading process, when it begins: a signal to the whole job must not take it away before the run is done.

    run: the process that has it load. Its SIGTERM ends it: so Python ends, at its own end, what is left of such
    processes.
    """
    for number in EXIT_CODES:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere SIGTERM ends it whoever sends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_end, args=(run,), daemon=True).start()
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """End this process when its run has been killed: else it and the server would wait for each other."""
    parent.join()
    os._exit(1)


def _wait_for_end(run: int) -> None:
    """End this process when its run sends SIGTERM; that of others is taken and forgotten."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)  # as torch's loading processes do: another code is an error to the run
