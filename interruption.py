"""Signals that ask a run to stop, and how its processes agree on the moment: all at the same call.

SIGTERM and SIGUSR1 (what clusters send before they take a machine away) and Ctrl-C only leave a note; `agree()`, which
every process calls after every micro-batch and every batch of an evaluation, tells all of it at the same time.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from errors import INTERRUPTED, TERMINATED, Interrupted

EXIT_CODES = {
    getattr(signal, name): code
    for name, code in (("SIGTERM", TERMINATED), ("SIGUSR1", TERMINATED), ("SIGINT", INTERRUPTED))
    if hasattr(signal, name)  # Windows has no SIGUSR1
}


class Interruption:
    """What signals ask for, agreed on by all processes. Without `listening()` signals act as usual."""

    def __init__(self, group: Any = None) -> None:
        """Not listening yet. group: of all processes, on CPUs and of its own, so that no GPU is waited for."""
        self._asked = 0
        self._listening = False
        self._group = group
        self._under_way: tuple[torch.Tensor, Any] | None = None
        self.on_stop: Callable[[signal.Signals], NoReturn] = self._stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals down instead of dying from them."""
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._note) for number in EXIT_CODES} if main else {}
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self._asked == number:
            raise KeyboardInterrupt
        self._asked = number

    def agree(self, save: bool = False) -> bool:
        """Tell the others what signals ask of this process; end the run if any asked any process by the last call.

        save: whether this process wants a checkpoint; returns whether any wanted one by the last call. What is asked
        travels between two calls, so it counts one call late, on all processes alike.
        """
        if not self._listening:
            return False
        asked = torch.tensor([self._asked, int(save)])
        if self._group is None:
            answer = asked
        else:
            answer = self._answer()
            work = dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._under_way = asked, work
        number, wanted = answer.tolist()
        if number:
            self.on_stop(signal.Signals(number))
        return bool(wanted)

    def _answer(self) -> torch.Tensor:
        if self._under_way is None:
            return torch.zeros(2, dtype=torch.long)
        answer, work = self._under_way
        work.wait()
        return answer

    @staticmethod
    def _stop(number: signal.Signals) -> NoReturn:
        raise Interrupted(f"stopped by {number.name}", EXIT_CODES[number])
