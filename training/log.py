"""Numbers of a run on their way to people: means of an epoch, progress on a terminal."""

import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 30  # between two lines where there is no terminal for a bar


class MetricLog:
    """Weighted means and counts of an epoch, kept on the device so that adding to them never waits for it.

    A held log notes what it is given only with `commit()`, so that a step that was not taken can be forgotten.
    """

    def __init__(self, *, held: bool = False) -> None:
        """Start empty. held: see above."""
        self.held = held
        self.group: str | None = None  # of what is added next: its loss also gets a mean of its own, `loss_<group>`
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._counts: dict[str, Tensor] = {}
        self._waiting: list[tuple[dict[str, Tensor], float, dict[str, Tensor]]] = []

    def add(self, stats: Mapping[str, Tensor | float], n: int = 1) -> None:
        """Add values (scalars) that are means over n samples."""
        values = {
            name: value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            for name, value in stats.items()
        }
        if self.group is not None and "loss" in values:
            values[f"loss_{self.group}"] = values["loss"]
        self._note(values, n, {})

    def count(self, name: str, counts: Tensor) -> None:
        """Add to a vector of counts that only this process keeps."""
        self._note({}, 0, {name: counts.detach()})

    def _note(self, values: dict[str, Tensor], n: int, counts: dict[str, Tensor]) -> None:
        self._waiting.append((values, n, counts))
        if not self.held:
            self.commit()

    def commit(self) -> None:
        """Take up what a held log was given."""
        for values, n, counts in self._waiting:
            for name, value in values.items():
                value = value.double() * n
                self._sums[name] = self._sums[name] + value if name in self._sums else value
                self._weights[name] = self._weights.get(name, 0.0) + n
            for name, vector in counts.items():
                self._counts[name] = self._counts[name] + vector if name in self._counts else vector.clone()
        self._waiting.clear()

    def discard(self) -> None:
        """Forget what a held log was given."""
        self._waiting.clear()

    def total(self, name: str, size: int) -> Tensor:
        """This process's counts of a name, (size,), zeros where there were none."""
        return self._counts.get(name, torch.zeros(size, dtype=torch.long))

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

    def state_dict(self) -> dict[str, Any]:
        """What exact resumption needs, on the CPU."""
        parts = {"sums": self._sums, "counts": self._counts}
        host = {part: {name: value.cpu() for name, value in values.items()} for part, values in parts.items()}
        return {**host, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state_dict()`."""
        self._sums, self._counts = (
            {name: value.to(device) for name, value in state[part].items()} for part in ("sums", "counts")
        )
        self._weights = dict(state["weights"])


class Progress:
    """A bar on a terminal, a line now and then elsewhere, nothing on processes other than the first."""

    def __init__(self, visible: bool, title: str, total: int, *, done: int = 0) -> None:
        """visible: on the main process; title: for example `epoch 3`; total: steps, of which `done` are."""
        self._visible = visible
        self.title, self.total, self.done, self.first = title, total, done, done
        self._started = self._spoken = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
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
        return self._visible and (time.monotonic() - self._spoken >= pause or self.done in (self.first, self.total - 1))

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


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
