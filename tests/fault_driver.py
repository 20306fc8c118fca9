"""A rank process of a training script that meets its faults at chosen moments.

`fault_driver.py PLAN.json SCRIPT flags...` under torchrun. PLAN: `notes`, a folder for what happened; `faults`, one for
each attempt in their order; `words`, more flags of each attempt. A fault has the `rank` that it strikes, the optimizer
step `after` which it is armed, counted over the whole training, and a place `at` which it strikes:
  step      the next call of the update: before it, or behind it if `behind`
  save      `number` writings of a checkpoint later, when half of its bytes are written
  replace   `number` renamings of a file later: before it, or behind it if `behind`
  evaluate  batch `number` of the next evaluation
What strikes is `signal`, to the process or, with `worker`, to its first loading process; or a `limit` on the bytes of
a file, as a full disk.
"""

import atexit
import importlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from eeg_data.batches import EvaluationBatches
from optim_factory import Update
from training.state import TrainingState

TRACEBACK = 99  # exit code of an error that the script let through


class Fault:
    """One fault of a plan, on its way to happen in this process."""

    def __init__(self, notes: Path, number: int, fault: dict[str, Any]) -> None:
        """notes: where to say that it happened."""
        self.note = notes / f"fault-{number}"
        self.fault = fault
        self.armed, self.spent = False, False
        self.left = int(fault.get("number", 1))  # passages of the place until it strikes
        self.step = 0

    def strike(self) -> None:
        """Let it happen, once."""
        self.spent = True
        self.note.write_text(json.dumps({"step": self.step, **self.fault}))
        if "limit" in self.fault:
            limit_files(self.fault["limit"])
            return
        victim = multiprocessing.active_children()[0].pid if self.fault.get("worker") else os.getpid()
        assert victim is not None
        os.kill(victim, getattr(signal, self.fault["signal"]))

    def passes(self, place: str, *, behind: bool = False) -> bool:
        """Whether it strikes here; counts the passage."""
        if self.spent or not self.armed or self.fault["at"] != place or behind != bool(self.fault.get("behind")):
            return False
        self.left -= 1
        return self.left <= 0

    def update(self, original: Any, update: Update, *arguments: Any, **options: Any) -> Any:
        """In place of the update."""
        self.step = update.step
        self.armed |= update.step >= self.fault["after"]
        if self.passes("step"):
            self.strike()
        result = original(update, *arguments, **options)
        if self.passes("step", behind=True):
            self.strike()
        return result

    def save(self, original: Any, state: Any, target: Any, *arguments: Any, **options: Any) -> Any:
        """In place of torch.save."""
        # A tensor that is sent to another process is saved, too.
        if not isinstance(state, dict) or not self.passes("save"):
            return original(state, target, *arguments, **options)
        whole = io.BytesIO()
        original(state, whole, *arguments, **options)
        half = whole.getvalue()[: whole.tell() // 2]
        if hasattr(target, "write"):
            target.write(half)
            target.flush()
        else:
            Path(target).write_bytes(half)
        return self.strike()

    def replace(self, original: Any, source: Any, target: Any) -> None:
        """In place of os.replace."""
        if self.passes("replace"):
            self.strike()
        original(source, target)
        if self.passes("replace", behind=True):
            self.strike()

    def batches(self, original: Any, batches: EvaluationBatches) -> Iterator[Any]:
        """In place of an evaluation's batches."""
        for batch in original(batches):
            if self.passes("evaluate"):
                self.strike()
            yield batch


def note_start(notes: Path, attempt: int) -> None:
    """Make every run say at which step it goes on."""
    original = TrainingState.resume

    def resume(state: TrainingState, *arguments: Any) -> Any:
        result = original(state, *arguments)
        if state.run.is_main:
            (notes / f"start-{attempt}").write_text(json.dumps({"epoch": state.epoch, "step": state.step}))
        return result

    patch.object(TrainingState, "resume", resume).start()


def limit_files(size: int | None) -> None:
    """Let no file of this process grow beyond so many bytes; None: beyond what it may at most."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))


def note_code(note: Path, code: int) -> None:
    """Write down how this process ends."""
    note.write_text(json.dumps({"code": code}))


def note_end(note: Path) -> None:
    """Make this process, but none that it starts, leave its exit code, whichever way it ends on its own."""
    own, original = os.getpid(), os._exit

    def end(code: int) -> None:
        if os.getpid() == own:
            note_code(note, code)
        limit_files(None)  # where lines are counted, their file is written now
        original(code)

    patch.object(os, "_exit", end).start()


def meet(fault: Fault) -> None:
    """Put the fault's hands into the places."""
    places: list[tuple[Any, str, Any]] = [(Update, "__call__", fault.update), (torch, "save", fault.save)]
    places += [(os, "replace", fault.replace), (EvaluationBatches, "__iter__", fault.batches)]
    for owner, name, hand in places:
        original = getattr(owner, name)

        def place(*arguments: Any, hand: Any = hand, original: Any = original, **options: Any) -> Any:
            return hand(original, *arguments, **options)

        patch.object(owner, name, place).start()


def main() -> None:
    """Run the script."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    notes, rank = Path(plan["notes"]), int(os.environ["RANK"])
    attempt = len(list(notes.glob(f"attempt-*-{rank}")))
    (notes / f"attempt-{attempt}-{rank}").write_text(str(os.getpid()))
    note_start(notes, attempt)
    if attempt < len(plan["faults"]) and plan["faults"][attempt]["rank"] == rank:
        meet(Fault(notes, attempt, plan["faults"][attempt]))
    script = importlib.import_module(sys.argv[2])
    words = plan["words"][attempt % len(plan["words"])] if plan["words"] else []
    sys.argv = [f"{sys.argv[2]}.py", *sys.argv[3:], *words]
    # Loading processes look this often whether theirs is there still, and until then keep its connections open.
    patch("torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL", 0.2).start()
    note = notes / f"exit-{attempt}-{rank}"
    note_end(note)
    code: Any = 0
    try:
        script.run_script(script.main, script.get_args())
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = TRACEBACK
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    atexit._run_exitfuncs()  # which torchrun's copies of itself leave out
    note_code(note, 0)


if __name__ == "__main__":
    main()
