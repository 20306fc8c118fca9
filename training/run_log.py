"""What a run writes down in its output folder beside checkpoints: log.txt, bad_steps.jsonl, TensorBoard scalars.

A resumed run cuts them to its checkpoint, so that no line is there twice and none is missing.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from errors import UsageError
from files import plain, written_aside

logger = logging.getLogger(__name__)

LOG_ONLY = ("_lr", "_decay", "_total_loss", "_seconds", "_per_second")  # in log.txt, not on the terminal
NAMED_WINDOWS = 3  # of a bad step on the terminal; all are in bad_steps.jsonl
WHOLE = -1  # in the place of a step: a line of a whole epoch
NOWHERE = (math.inf, math.inf)


class RunLog:
    """The files of process 0; on other processes nothing is written."""

    def __init__(self, folder: Path, tensorboard: Path | None, *, visible: bool) -> None:
        """tensorboard: folder of the scalars, if they are wanted; visible: on process 0."""
        self.log, self.bad_steps = folder / "log.txt", folder / "bad_steps.jsonl"
        self._tensorboard = tensorboard if visible else None
        self._visible = visible
        self._writer: EventsWriter | None = None

    def begin(self) -> None:
        """Start anew: what an earlier run in the same folder logged is set aside."""
        if not self._visible:
            return
        for path in (self.log, self.bad_steps):
            if path.is_file():
                before = path.with_name(f"{path.stem}.previous{path.suffix}")
                os.replace(path, before)
                logger.info("A new run starts in %s: the old %s is now %s.", path.parent, path.name, before.name)
        self._open(None)

    def cut(self, epoch: int, step: int) -> None:
        """Continue at a step of an epoch: leave out what will be logged again, here and in TensorBoard."""
        if not self._visible:
            return
        for path, end in ((self.log, (epoch, WHOLE)), (self.bad_steps, (epoch, step))):
            if path.is_file():
                kept = [line for line in path.read_text().splitlines() if _place_of(line) < end]
                with written_aside(path) as part:
                    part.write_text("".join(f"{line}\n" for line in kept))
        self._open(epoch)

    def _open(self, epoch: int | None) -> None:
        """Begin an event file. TensorBoard does not show what was written of this epoch and later ones before."""
        if self._tensorboard is None:
            return
        with self._writing_scalars() as folder:
            folder.mkdir(parents=True, exist_ok=True)
            # The suffix keeps runs that begin in the same second apart, whose files would have one name.
            self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            if epoch is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(wall_time=time.time(), step=epoch, session_log=start))
            self._writer.flush()

    @contextmanager
    def _writing_scalars(self) -> Iterator[Path]:
        assert self._tensorboard is not None
        try:
            yield self._tensorboard
        except OSError as error:
            raise UsageError(
                f"{self._tensorboard} cannot be written ({error.strerror or error}): free space, or choose another "
                "--log_dir"
            ) from error

    def epoch(self, epoch: int, line: Mapping[str, Any]) -> None:
        """Write an epoch's line, show it, and add its numbers to TensorBoard."""
        if not self._visible:
            return
        _append(self.log, line)
        numbers = {n: v for n, v in line.items() if n not in ("epoch", "n_parameters") and math.isfinite(v)}
        shown = [f"{name} {value:.4g}" for name, value in numbers.items() if not name.endswith(LOG_ONLY)]
        logger.info("epoch %d: %s", epoch, ", ".join(shown))
        if self._writer is None:
            return
        # Not through SummaryWriter, whose thread still holds numbers when a checkpoint says that they are written.
        with self._writing_scalars():
            for name, value in numbers.items():
                self._writer.write_event(Event(wall_time=time.time(), step=epoch, summary=scalar(name, value)))
            self._writer.flush()

    def bad_step(self, line: Mapping[str, Any]) -> None:
        """Write down a step that was not taken."""
        if self._visible:
            _append(self.bad_steps, line)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(plain(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())  # as checkpoints are
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror or error}): free space") from error


def _place_of(line: str) -> tuple[float, float]:
    """Epoch and step of a line; infinity for one that a killed run left unfinished."""
    try:
        values = json.loads(line)
        return float(values["epoch"]), float(values.get("step", WHOLE))
    except (ValueError, KeyError, TypeError, AttributeError):
        return NOWHERE


def named(windows: Sequence[Mapping[str, Any]]) -> str:
    """The first few windows of a bad step in words: those that hold values that are not finite, where there are any."""
    guilty = [window for window in windows if not window["finite"]]
    texts = []
    for window in (guilty or windows)[:NAMED_WINDOWS]:
        place = f"at {window['start_seconds']:g} s" if "start_seconds" in window else f"sample {window['sample']}"
        value = f"largest {window['largest_uv']:.3g} uV" if window["finite"] else "holds values that are not finite"
        texts.append(f"{window['file']}, {window['recording']}, {place} ({value})")
    return "; ".join(texts)
