"""Which windows each step takes: training plans that all processes share, and evaluation that sees each window once.

An order is a pure function of (seed, epoch, montage), so nothing about loaders needs saving.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int, int]  # epoch, montage, window


def montage_order(batches: Sequence[int], *, interleaved: bool) -> list[int]:
    """Which montage each step takes, from the number of batches of each.

    Interleaved: always the montage furthest behind its share. Otherwise one after the other, as in the released code.
    """
    if not interleaved:
        return [montage for montage, n in enumerate(batches) for _ in range(n)]
    counts, total = np.array(batches, dtype=np.float64), sum(batches)
    taken, order = np.zeros(len(batches)), []
    for step in range(1, total + 1):
        montage = int(np.argmax(np.where(taken < counts, counts * step / total - taken, -np.inf)))
        taken[montage] += 1
        order.append(montage)
    return order


class TrainingBatches(Sampler[list[Key]]):
    """This process's share of every step's batch, each batch from one montage, the same plan on all processes.

    A montage's last batch is completed by wrapping round its own order. A step's batch is cut into consecutive pieces
    by process and then by micro-batch, so that two processes with B see what one with 2 B sees, in the same order.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
        interleaved: bool = True,
        overfit_batch: bool = False,
    ) -> None:
        """sizes: windows of each montage; batch_size: of a process and micro-batch."""
        self.sizes, self.batch_size, self.seed = list(sizes), batch_size, seed
        self.rank, self.processes, self.accumulation = rank, processes, accumulation
        self.overfit_batch = overfit_batch
        self.total_batch = batch_size * processes * accumulation
        self.batches = [-(-size // self.total_batch) for size in sizes]
        self.order = montage_order(self.batches, interleaved=interleaved)
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return len(self.order)

    @property
    def repeated(self) -> list[int]:
        """Windows of each montage that an epoch takes twice to complete the last batch."""
        return [n * self.total_batch - size for n, size in zip(self.batches, self.sizes, strict=True)]

    def __len__(self) -> int:
        """Micro-batches an epoch."""
        return self.steps * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of each micro-batch."""
        epoch = 0 if self.overfit_batch else self.epoch
        orders = [self._permutation(epoch, montage) for montage in range(len(self.sizes))]
        position = [0] * len(self.sizes)
        for montage in self.order:
            if self.overfit_batch:
                montage, position = self.order[0], [0] * len(self.sizes)
            first = position[montage] * self.total_batch + self.rank * self.batch_size * self.accumulation
            position[montage] += 1
            for micro in range(self.accumulation):
                places = first + micro * self.batch_size + np.arange(self.batch_size)
                yield [(epoch, montage, int(w)) for w in orders[montage][places % self.sizes[montage]]]

    def _permutation(self, epoch: int, montage: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch, montage)).permutation(self.sizes[montage])


class EvaluationBatches(Sampler[list[Key]]):
    """Every window exactly once whatever the number of processes, in order; process r takes batches r, r + W, ..."""

    def __init__(self, sizes: Sequence[int], batch_size: int, *, rank: int = 0, processes: int = 1) -> None:
        """sizes: windows of each montage; processes=1 on every process makes each see everything."""
        self.pieces = [
            (montage, start, min(start + batch_size, size))
            for montage, size in enumerate(sizes)
            for start in range(0, size, batch_size)
        ][rank::processes]

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.pieces)

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of each batch; the epoch is always 0, so masks stay the same."""
        for montage, start, stop in self.pieces:
            yield [(0, montage, window) for window in range(start, stop)]
