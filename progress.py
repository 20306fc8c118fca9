"""Numbers of a run on their way to people: means of an epoch, progress on a terminal, JSON files."""

import json
import logging
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from files import written_aside

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 30  # between two lines where there is no terminal for a bar


class WrappedFormatter(logging.Formatter):
    """Breaks lines between words at the width of a terminal; elsewhere a message stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The message as it is shown."""
        text = super().format(record)
        if not sys.stderr.isatty():
            return text
        width = shutil.get_terminal_size().columns
        return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def log_to_terminal(level: int) -> None:
    """Send log messages from this level on to standard error, unless something already receives them."""
    handler = logging.StreamHandler()
    handler.setFormatter(WrappedFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class MetricLog:
    """Weighted means of an epoch, kept on the device so that adding to them never waits for it."""

    def __init__(self) -> None:
        """Start empty."""
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, stats: Mapping[str, Tensor | float], n: int = 1) -> None:
        """Add values (scalars) that are means over n samples."""
        for name, value in stats.items():
            value = torch.as_tensor(value).detach().double() * n
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + n

    def mean(self, name: str) -> float:
        """This process's mean so far (waits for the device)."""
        return float(self._sums[name]) / self._weights[name] if name in self._sums else math.nan

    def means(self) -> dict[str, float]:
        """Means over all processes. Every process must call it; a name may be missing on some."""
        own = {name: (float(self._sums[name]), self._weights[name]) for name in self._sums}
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, own)
        names = sorted({name for part in gathered for name in part})
        pairs = {name: [part[name] for part in gathered if name in part] for name in names}
        return {name: sum(p[0] for p in pair) / sum(p[1] for p in pair) for name, pair in pairs.items()}


class Progress:
    """A bar on a terminal, a line now and then elsewhere, nothing on processes other than the first."""

    def __init__(self, visible: bool, title: str, total: int) -> None:
        """visible: on the main process; title: for example `epoch 3`; total: steps."""
        self._visible = visible
        self.title, self.total, self.done = title, total, 0
        self._started = self._spoken = time.monotonic()
        self._bar = tqdm(
            total=total,
            desc=title,
            disable=not (visible and sys.stderr.isatty()),
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {n_fmt}/{total_fmt} {bar}{postfix}",
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def due(self) -> bool:
        """True when it is time to show numbers (reading them makes a GPU wait)."""
        pause = 1 if not self._bar.disable else PROGRESS_SECONDS
        return self._visible and (time.monotonic() - self._spoken >= pause or self.done in (0, self.total - 1))

    def step(self, text: str | None) -> None:
        """Count a step; text: numbers to show, or None."""
        self.done += 1
        self._bar.update()
        if text is None:
            return
        self._spoken = time.monotonic()
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            logger.info("%s, step %d/%d: %s", self.title, self.done, self.total, text)

    def close(self) -> float:
        """Take the bar away; returns the seconds since the start."""
        self._bar.close()
        return self.seconds


def watched(loader: Any, title: str, visible: bool) -> Iterator[Any]:
    """The batches of a loader, with a bar on a terminal while they last. visible: on the main process."""
    yield from tqdm(loader, desc=title, disable=not (visible and sys.stderr.isatty()), leave=False, dynamic_ncols=True)


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file aside, then rename it."""
    with written_aside(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def plain(value: Any) -> Any:
    """Flags and numbers as plain JSON: paths as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
