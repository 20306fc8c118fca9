"""Which windows each step takes: counted, and compared with one process that makes whole batches."""

from collections import Counter

import numpy as np
import pytest

from eeg_data.batches import EvaluationBatches, Key, TrainingBatches, montage_order

SIZES = [[7], [8], [5, 3, 16], [1, 2, 40], [24, 24]]
SHARES = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]  # processes, micro-batches a step


def epoch_of(batches: TrainingBatches, epoch: int = 0) -> list[list[Key]]:
    batches.set_epoch(epoch)
    return list(batches)


def whole_steps(sizes: list[int], batch: int, processes: int, accumulation: int, epoch: int = 0) -> list[list[Key]]:
    """Return each step's keys, the processes' micro-batches joined by process and then by micro-batch."""
    parts = [
        epoch_of(
            TrainingBatches(sizes, batch, seed=5, rank=rank, processes=processes, accumulation=accumulation), epoch
        )
        for rank in range(processes)
    ]
    steps = len(parts[0]) // accumulation
    assert all(len(part) == steps * accumulation for part in parts)
    return [
        [key for part in parts for micro in part[step * accumulation : (step + 1) * accumulation] for key in micro]
        for step in range(steps)
    ]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("processes", "accumulation"), SHARES)
def test_every_window_comes_once_an_epoch_and_repeats_only_complete_a_montages_last_batch(
    sizes: list[int], processes: int, accumulation: int
) -> None:
    total = 2 * processes * accumulation
    steps = whole_steps(sizes, 2, processes, accumulation)
    plan = TrainingBatches(sizes, 2, seed=5, processes=processes, accumulation=accumulation)
    assert plan.steps == len(steps) and len(plan) == len(steps) * accumulation
    for montage, size in enumerate(sizes):
        taken = [[window for _, m, window in step if m == montage] for step in steps]
        taken = [windows for windows in taken if windows]
        flat = [window for windows in taken for window in windows]
        assert sorted(flat[:size]) == list(range(size)), "a window was left out or came twice before all had come"
        assert len(flat) - size == plan.repeated[montage] < total
        assert flat[size:] == [flat[i % size] for i in range(len(flat) - size)], "not the montage's own first windows"
        assert all(len(windows) == total for windows in taken)


@pytest.mark.parametrize("sizes", SIZES)
def test_repeated_says_how_many_windows_come_twice(sizes: list[int]) -> None:
    plan = TrainingBatches(sizes, 8, seed=0)
    counts = Counter(key[1:] for batch in plan for key in batch)
    extra = [sum(n - 1 for (m, _), n in counts.items() if m == montage) for montage in range(len(sizes))]
    assert plan.repeated == extra == [-size % 8 for size in sizes]


def test_a_montage_smaller_than_a_batch_takes_part() -> None:
    batches = [batch for batch in TrainingBatches([3, 64], 16, seed=0) if batch[0][1] == 0]
    assert len(batches) == 1 and len(batches[0]) == 16
    counts = Counter(window for _, _, window in batches[0])
    assert counts.keys() == {0, 1, 2} and sorted(counts.values()) == [5, 5, 6]


def test_each_batch_holds_one_montage() -> None:
    for batch in TrainingBatches([5, 3, 16], 4, seed=0):
        assert len({montage for _, montage, _ in batch}) == 1


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("processes", "accumulation"), SHARES)
def test_processes_and_micro_batches_joined_are_the_batch_of_one_process(
    sizes: list[int], processes: int, accumulation: int
) -> None:
    one = epoch_of(TrainingBatches(sizes, 2 * processes * accumulation, seed=5), epoch=3)
    assert whole_steps(sizes, 2, processes, accumulation, epoch=3) == one


def test_an_order_is_fixed_by_seed_and_epoch_and_differs_between_them() -> None:
    first = epoch_of(TrainingBatches([60, 20], 4, seed=1), 2)
    used = TrainingBatches([60, 20], 4, seed=1)
    for epoch in (0, 7, 2):
        again = epoch_of(used, epoch)
    assert again == first
    windows = [[key[1:] for batch in plan for key in batch] for plan in (first, epoch_of(used, 3))]
    other_seed = [key[1:] for batch in epoch_of(TrainingBatches([60, 20], 4, seed=2), 2) for key in batch]
    assert windows[0] != windows[1] and windows[0] != other_seed
    assert {key[0] for batch in first for key in batch} == {2}


def test_windows_are_shuffled_and_montages_differently() -> None:
    plan = epoch_of(TrainingBatches([50, 50], 10, seed=0))
    orders = [[w for batch in plan for _, m, w in batch if m == montage] for montage in (0, 1)]
    assert orders[0] != sorted(orders[0]) and orders[0] != orders[1]


@pytest.mark.parametrize("batches", [[1, 1], [1, 9], [10, 3, 1], [40, 7, 7, 2], [100, 1, 1, 1, 1], [5]])
def test_interleaved_every_prefix_holds_each_montages_share_to_within_one_batch(batches: list[int]) -> None:
    order = montage_order(batches, interleaved=True)
    assert Counter(order) == dict(enumerate(batches))
    for step in range(1, len(order) + 1):
        taken = np.bincount(order[:step], minlength=len(batches))
        assert np.abs(taken - np.array(batches) * step / len(order)).max() <= 1 + 1e-9


def test_sequential_takes_one_montage_after_the_other() -> None:
    assert montage_order([2, 1, 3], interleaved=False) == [0, 0, 1, 2, 2, 2]
    plan = TrainingBatches([8, 4], 4, seed=0, interleaved=False)
    assert [batch[0][1] for batch in plan] == [0, 0, 1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_overfit_batch_takes_the_same_windows_at_every_step_and_epoch(accumulation: int) -> None:
    plan = TrainingBatches([40, 9], 4, seed=3, accumulation=accumulation, overfit_batch=True)
    ordinary = TrainingBatches([40, 9], 4, seed=3, accumulation=accumulation)
    expected = epoch_of(ordinary)[:accumulation]
    assert len({key for batch in expected for key in batch}) == 4 * accumulation
    for epoch in (0, 1, 5):
        assert epoch_of(plan, epoch) == expected * ordinary.steps


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("sizes", [[1], [7, 12], [3, 1, 25]])
def test_evaluation_covers_each_window_exactly_once(sizes: list[int], processes: int) -> None:
    plans = [EvaluationBatches(sizes, 4, rank=rank, processes=processes) for rank in range(processes)]
    parts = [list(plan) for plan in plans]
    assert [len(plan) for plan in plans] == [len(part) for part in parts]
    keys = [key for part in parts for batch in part for key in batch]
    assert sorted(keys) == [(0, montage, window) for montage, size in enumerate(sizes) for window in range(size)]
    assert all(len(batch) <= 4 and len({key[1] for key in batch}) == 1 for part in parts for batch in part)


def test_evaluation_shares_batches_evenly_and_keeps_their_order() -> None:
    parts = [list(EvaluationBatches([22], 4, rank=rank, processes=2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    assert [batch[0][2] for batch in parts[0]] == [0, 8, 16] and [batch[0][2] for batch in parts[1]] == [4, 12, 20]
    assert [len(batch) for batch in parts[1]] == [4, 4, 2]


@pytest.mark.parametrize("montages", [2, 3, 4, 6, 12, 30])
def test_any_100_steps_hold_each_montages_share_to_within_one_batch(montages: int) -> None:
    generator, judged = np.random.default_rng(montages), 0
    for _ in range(6):
        counts = np.minimum(1 + (generator.pareto(1, montages) * 50).astype(int), 700)
        order = np.array(montage_order(counts.tolist(), interleaved=True))
        assert np.bincount(order, minlength=montages).tolist() == counts.tolist()
        judged += len(order) >= 100
        for montage, n in enumerate(counts):
            before = np.concatenate(([0], np.cumsum(order == montage)))
            found = before[100:] - before[:-100]
            assert np.abs(found - 100 * n / len(order)).max(initial=0) <= 1 + 1e-6, counts
    assert judged >= 2, "too short to hold 100 steps"


@pytest.mark.parametrize(("processes", "accumulation"), SHARES)
def test_an_epoch_that_begins_at_a_step_is_the_rest_of_the_whole_one(processes: int, accumulation: int) -> None:
    plan = TrainingBatches([9, 20, 3], 2, seed=4, rank=processes - 1, processes=processes, accumulation=accumulation)
    whole = epoch_of(plan, 3)
    for step in range(plan.steps + 1):
        plan.set_epoch(3, step)
        assert list(plan) == whole[step * accumulation :]
        if step < plan.steps:
            assert plan.step_keys(3, step) == whole[step * accumulation : (step + 1) * accumulation]
            assert plan.montage(step) == whole[step * accumulation][0][1]


def test_all_processes_of_an_evaluation_know_how_many_rounds_there_are() -> None:
    for processes in (1, 2, 3, 8):
        plans = [EvaluationBatches([7, 4], 2, rank=rank, processes=processes) for rank in range(processes)]
        assert {plan.rounds for plan in plans} == {max(len(plan) for plan in plans)}
