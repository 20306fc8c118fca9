"""Which windows each step takes: counted, and compared with one process that makes whole batches."""

from collections import Counter

import numpy as np
import pytest

from eeg_data.batches import EvaluationBatches, Key, TrainingBatches, montage_order

SIZES = [[7], [8], [5, 3, 16], [1, 2, 40], [24, 24]]  # windows of each montage
SHARES = [(2, 1), (3, 2)]  # processes, micro-batches a step


def epoch_of(batches: TrainingBatches, epoch: int = 0) -> list[list[Key]]:
    batches.set_epoch(epoch)
    return list(batches)


def whole_steps(sizes: list[int], processes: int, accumulation: int, epoch: int = 0) -> list[list[Key]]:
    """Return each step's keys, two a micro-batch, joined by process and then by micro-batch."""
    split = {"processes": processes, "accumulation": accumulation}
    parts = [epoch_of(TrainingBatches(sizes, 2, seed=5, rank=rank, **split), epoch) for rank in range(processes)]
    steps = len(parts[0]) // accumulation
    assert all(len(part) == steps * accumulation for part in parts)
    return [
        [key for part in parts for micro in part[step * accumulation : (step + 1) * accumulation] for key in micro]
        for step in range(steps)
    ]


@pytest.mark.parametrize(("processes", "accumulation"), SHARES)
def test_every_window_comes_once_an_epoch_and_repeats_only_complete_a_montages_last_batch(
    processes: int, accumulation: int
) -> None:
    total = 2 * processes * accumulation
    for sizes in SIZES:
        steps = whole_steps(sizes, processes, accumulation)
        plan = TrainingBatches(sizes, 2, seed=5, processes=processes, accumulation=accumulation)
        assert plan.steps == len(steps) and len(plan) == len(steps) * accumulation
        assert all(len({montage for _, montage, _ in step}) == 1 and len(step) == total for step in steps)
        for montage, size in enumerate(sizes):
            windows = [window for step in steps for _, m, window in step if m == montage]
            assert sorted(windows[:size]) == list(range(size)), "a window was left out or came twice too early"
            assert len(windows) - size == plan.repeated[montage] == -size % total
            assert windows[size:] == [windows[i % size] for i in range(len(windows) - size)], "not its own first ones"


@pytest.mark.parametrize(("processes", "accumulation"), SHARES)
def test_processes_and_micro_batches_joined_are_the_batch_of_one_process(processes: int, accumulation: int) -> None:
    for sizes in SIZES:
        one = epoch_of(TrainingBatches(sizes, 2 * processes * accumulation, seed=5), epoch=3)
        assert whole_steps(sizes, processes, accumulation, epoch=3) == one


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


def test_an_order_is_fixed_by_seed_and_epoch_and_differs_between_them_and_between_montages() -> None:
    used = TrainingBatches([60, 60], 4, seed=1)
    plans = [epoch_of(used, 2), epoch_of(used, 3), epoch_of(TrainingBatches([60, 60], 4, seed=2), 2)]
    assert epoch_of(used, 2) == plans[0] and {key[0] for batch in plans[0] for key in batch} == {2}
    orders = {tuple(key[2] for batch in plan for key in batch if key[1] == m) for plan in plans for m in (0, 1)}
    assert len(orders) == 6 and tuple(range(60)) not in orders


def test_an_order_is_the_one_that_checkpoints_of_earlier_versions_continue() -> None:
    plan = epoch_of(TrainingBatches([5, 3, 16], 4, seed=7), 1)
    order = [(2, [6, 5, 11, 1]), (0, [3, 0, 2, 1]), (2, [4, 7, 9, 8]), (2, [2, 10, 3, 13]), (0, [4, 3, 0, 2])]
    order += [(1, [2, 0, 1, 2]), (2, [14, 15, 0, 12])]  # montage, windows
    assert [(batch[0][1], [window for _, _, window in batch]) for batch in plan] == order
    assert montage_order([2, 1, 3], interleaved=False) == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("montages", [2, 12])
def test_any_100_steps_and_every_beginning_hold_each_montages_share_to_within_one_batch(montages: int) -> None:
    generator, judged = np.random.default_rng(montages), 0
    for _ in range(6):
        counts = np.minimum(1 + (generator.pareto(1, montages) * 50).astype(int), 700)
        order = np.array(montage_order(counts.tolist(), interleaved=True))
        assert np.bincount(order, minlength=montages).tolist() == counts.tolist()
        judged += len(order) >= 100
        for montage, n in enumerate(counts):
            before = np.concatenate(([0], np.cumsum(order == montage)))
            share = n / len(order)
            assert np.abs(before[100:] - before[:-100] - 100 * share).max(initial=0) <= 1 + 1e-6, counts
            assert len(order) > 100 or np.abs(before - share * np.arange(len(before))).max() <= 1 + 1e-6, counts
    assert judged >= 2, "too short to hold 100 steps"


def test_overfit_batch_takes_the_same_windows_at_every_step_and_epoch() -> None:
    plan = TrainingBatches([40, 9], 4, seed=3, accumulation=2, overfit_batch=True)
    ordinary = TrainingBatches([40, 9], 4, seed=3, accumulation=2)
    expected = epoch_of(ordinary)[:2]
    assert len({key for batch in expected for key in batch}) == 8
    for epoch in (0, 1, 5):
        assert epoch_of(plan, epoch) == expected * ordinary.steps


def test_weights_share_the_steps_whatever_the_sizes_and_a_later_epoch_takes_what_an_earlier_one_left() -> None:
    plan = TrainingBatches([40, 8, 12], 4, seed=3, weights=[1, 3, 1.5])  # 10, 2 and 3 batches in proportion
    seen = [[key[2] for batch in epoch_of(plan, epoch) for key in batch if key[1] == 0] for epoch in range(30)]
    assert np.bincount(plan.order).tolist() == [3, 8, 4] and plan.repeated == [12 - 40, 32 - 8, 16 - 12]
    assert all(len(set(own)) == 12 for own in seen) and set().union(*seen) == set(range(40))
    second = [key[2] for batch in epoch_of(plan, 0) for key in batch if key[1] == 1]
    assert Counter(second) == dict.fromkeys(range(8), 4), "each window as often as the others"
    assert np.bincount(TrainingBatches([4, 400], 4, seed=3, weights=[1e-9, 1]).order).tolist() == [1, 101]


def test_evaluation_covers_each_window_exactly_once_in_order_and_evenly() -> None:
    for processes in (1, 2, 3, 40):
        for sizes in ([1], [7, 12], [3, 1, 25]):
            plans = [EvaluationBatches(sizes, 4, rank=rank, processes=processes) for rank in range(processes)]
            parts = [list(plan) for plan in plans]
            assert [len(plan) for plan in plans] == [len(part) for part in parts]
            assert {plan.rounds for plan in plans} == {max(map(len, parts))}
            assert max(map(len, parts)) - min(map(len, parts)) < 2
            counts = Counter(key for part in parts for batch in part for key in batch)
            assert counts == Counter((0, montage, window) for montage, n in enumerate(sizes) for window in range(n))
            for part in parts:
                assert part == sorted(part) and all(len(b) <= 4 and len({key[1] for key in b}) == 1 for b in part)
