"""Choose the windows of each step. All processes share one plan; an evaluation sees each window once.

An order is a pure function of (seed, epoch, montage), so nothing about loaders needs saving.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

Key = tuple[int, int, int]  # epoch, montage, window

SPAN = 100  # steps over which montages have their share to within one batch
LATER = 1e12  # added to the deadline of a montage whose share has not come yet: after all that are due
ROUNDING = 1e-9


def montage_order(batches: Sequence[int], *, interleaved: bool) -> list[int]:
    """Choose the montage of each step, from the number of batches of each montage.

    Interleaved: any SPAN consecutive steps hold each montage's share to within one batch. A step takes the montage
    whose next batch is due first (earliest deadline first) among those that keep this rule. Otherwise one montage
    comes after the other, as in the released code.
    """
    if not interleaved:
        return [montage for montage, n in enumerate(batches) for _ in range(n)]
    counts, total = np.array(batches, dtype=np.float64), sum(batches)
    rate, share = counts / total, SPAN * counts / total
    taken, recent = np.zeros(len(batches)), np.zeros(len(batches))  # recent: in the last SPAN steps
    order: list[int] = []
    for step in range(total):
        due = rate * (step + 1) > taken
        deadline = np.where(taken < counts, (taken + 1) / rate + np.where(due, 0, LATER), np.inf)
        if step >= SPAN:
            leaving = order[step - SPAN]
            recent[leaving] -= 1
            fits = recent + 1 <= share + 1 + ROUNDING
            if recent[leaving] < share[leaving] - 1 - ROUNDING:
                fits &= np.arange(len(batches)) == leaving
            if np.isfinite(deadline[fits]).any():
                deadline[~fits] = np.inf
        montage = int(np.argmin(deadline))
        taken[montage] += 1
        recent[montage] += 1
        order.append(montage)
    return order


class TrainingBatches:
    """This process's share of every step's batch. Each batch is from one montage; all processes follow one plan.

    A montage's last batch is completed with the first windows of its order. A step's batch is cut into pieces by
    process and then by micro-batch, so two processes with batches of B see what one with 2 B sees, in the same order.
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
        weights: Sequence[float] | None = None,
    ) -> None:
        """sizes: windows of each montage; batch_size: of a process and micro-batch.

        weights: each montage's share of the steps (default: in proportion to its batches). An epoch then takes the
        first windows of a montage's order only, or goes round it more than once.
        """
        self.sizes, self.batch_size, self.seed = list(sizes), batch_size, seed
        self.rank, self.processes, self.accumulation = rank, processes, accumulation
        self.overfit_batch = overfit_batch
        self.total_batch = batch_size * processes * accumulation
        self.batches = [-(-size // self.total_batch) for size in sizes]
        if weights is not None:
            self.batches = [max(1, round(sum(self.batches) * weight / sum(weights))) for weight in weights]
        self.order = montage_order(self.batches, interleaved=interleaved)
        self.epoch, self.first_step = 0, 0
        counts = [itertools.count() for _ in sizes]
        self._batch = [next(counts[montage]) for montage in self.order]  # which of its montage's batches a step takes
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # montage -> epoch and its order, the latest

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return len(self.order)

    @property
    def repeated(self) -> list[int]:
        """Number of windows of each montage that an epoch takes again; negative: that it leaves to later epochs."""
        return [n * self.total_batch - size for n, size in zip(self.batches, self.sizes, strict=True)]

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch whose order comes next, and the step to start at."""
        self.epoch, self.first_step = epoch, first_step

    def montage(self, step: int) -> int:
        """Return the montage of a step."""
        return self.order[0 if self.overfit_batch else step]

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of each micro-batch."""
        for step in range(self.first_step, self.steps):
            yield from self.step_keys(self.epoch, step)

    def step_keys(self, epoch: int, step: int) -> list[list[Key]]:
        """Return the keys of each of this process's micro-batches of one step."""
        if self.overfit_batch:
            epoch, step = 0, 0
        montage = self.order[step]
        if self._orders.get(montage, (-1,))[0] != epoch:
            order = np.random.default_rng((self.seed, epoch, montage)).permutation(self.sizes[montage])
            self._orders[montage] = epoch, order
        first = self._batch[step] * self.total_batch + self.rank * self.batch_size * self.accumulation
        places = first + np.arange(self.accumulation * self.batch_size).reshape(self.accumulation, -1)
        windows = self._orders[montage][1][places % self.sizes[montage]]  # (micro-batches, B)
        return [[(epoch, montage, window) for window in micro] for micro in windows.tolist()]


class EvaluationBatches:
    """Every window exactly once, in order, for any number of processes W; process r takes batches r, r + W, ..."""

    def __init__(self, sizes: Sequence[int], batch_size: int, *, rank: int = 0, processes: int = 1) -> None:
        """sizes: windows of each montage; processes=1 on every process makes each see everything."""
        pieces = [
            (montage, start, min(start + batch_size, size))
            for montage, size in enumerate(sizes)
            for start in range(0, size, batch_size)
        ]
        self.pieces = pieces[rank::processes]
        self.rounds = -(-len(pieces) // processes)  # batches of the process that has most

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of each batch; the epoch is always 0, so masks stay the same."""
        for montage, start, stop in self.pieces:
            yield [(0, montage, window) for window in range(start, stop)]
