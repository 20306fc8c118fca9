"""The codebook: nearest rows, gradients, moving average, k-means, usage and revival; processes: test_processes.py."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import norm_ema_quantizer
from data_helpers import random
from errors import InputError
from norm_ema_quantizer import (
    CodebookRevival,
    NormEMAVectorQuantizer,
    kmeans,
    l2_normalize,
    sample_rows,
    usage,
)

K, WIDTH = 12, 6


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def quantizer(*, k: int = K, kmeans_init: bool = False, seed: int = 1, decay: float = 0.99) -> NormEMAVectorQuantizer:
    """Return a quantiser in float64 and training mode, with known rows."""
    made = NormEMAVectorQuantizer(k, WIDTH, kmeans_init=kmeans_init, decay=decay).double()
    for rows in (made.embedding.weight, made.embedding.embed_avg):
        rows.copy_(l2_normalize(random(k, WIDTH, seed=seed)))
    return made.train()


def brute_force(z: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Index of the row at the smallest Euclidean distance from each vector at unit length."""
    return ((unit(z)[:, None] - rows[None]) ** 2).sum(-1).argmin(1)


def moved(rows: np.ndarray, z: np.ndarray, decay: float = 0.99) -> np.ndarray:
    """The specified update, row by row: unused rows stay."""
    codes, after = brute_force(z, rows), rows.copy()
    for row in set(codes):
        after[row] = unit(decay * rows[row] + (1 - decay) * unit(unit(z)[codes == row].mean(0)))
    return after


@pytest.mark.parametrize("held", [2**21, 7 * K + K // 2])  # similarities at a time; 120 vectors are no multiple of 7
def test_a_code_is_the_row_at_the_smallest_distance_whatever_the_vectors_length(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(norm_ema_quantizer.SIMILARITIES, "cpu", held)
    made = quantizer().eval()
    z = random(3, 40, WIDTH) * torch.logspace(-3, 3, 40, dtype=torch.float64)[:, None]
    rows = made.embedding.weight.numpy()
    expected = brute_force(z.numpy().reshape(-1, WIDTH), rows)
    quantized, codes, _ = made(z)
    assert codes.dtype == torch.int64 and len(set(expected)) > K // 2
    np.testing.assert_array_equal(codes.numpy(), expected)
    np.testing.assert_allclose(quantized.numpy(), rows[expected].reshape(3, 40, WIDTH), atol=1e-15)


def test_autocast_does_not_change_codes_though_half_precision_would() -> None:
    made = NormEMAVectorQuantizer(512, 64, kmeans_init=False).eval()
    z = random(2000, 64).float()
    quantized, codes, loss = made(z)
    with torch.autocast("cpu", torch.bfloat16):
        half, half_codes, half_loss = made(z)
        naive = (l2_normalize(z) @ made.embedding.weight.t()).argmax(1)
    assert int((naive != codes).sum()) > 10, "half precision finds the same rows: the test shows nothing"
    assert torch.equal(codes, half_codes) and torch.equal(quantized, half) and torch.equal(loss, half_loss)
    assert half.dtype == half_loss.dtype == torch.float32


def test_gradients_pass_straight_through_and_through_the_normalisation() -> None:
    made = quantizer()
    z = random(20, WIDTH).requires_grad_()
    upstream = random(20, WIDTH, seed=2)
    rows = made.embedding.weight.clone().numpy()  # training moves the rows: the gradient is of those before
    quantized, codes, loss = made(z)
    ((quantized * upstream).sum() + 3 * loss).backward()
    x = z.detach().numpy()
    u, length = unit(x), np.linalg.norm(x, axis=1, keepdims=True)
    gradient = upstream.numpy() + 3 * 2 / x.size * (u - rows[codes.numpy()])
    expected = (gradient - (gradient * u).sum(1, keepdims=True) * u) / length  # the derivative of x / |x|
    np.testing.assert_allclose(z.grad.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert not [p for p in made.parameters() if p.requires_grad]


def test_used_rows_follow_the_mean_of_their_inputs_and_unused_rows_stay_to_the_bit() -> None:
    made = quantizer(decay=0.5)
    z = random(8, WIDTH)
    before = made.embedding.weight.clone()
    codes = made(z)[1]
    unused = np.setdiff1d(np.arange(K), codes.numpy())
    assert 0 < len(unused) < K
    assert torch.equal(made.embedding.weight[unused], before[unused])
    expected = moved(before.numpy(), z.numpy(), 0.5)
    np.testing.assert_allclose(made.embedding.weight.numpy(), expected, rtol=0, atol=1e-15)


def test_two_deferred_micro_batches_equal_one_batch_of_both() -> None:
    whole, parts = quantizer(), quantizer()
    a, b = random(30, WIDTH, seed=3), random(20, WIDTH, seed=4)
    codes = whole(torch.cat((a, b)))[1]
    parts.deferred = True
    before = parts.embedding.weight.clone()
    first, second = parts(a)[1], parts(b)[1]
    assert torch.equal(parts.embedding.weight, before) and torch.count_nonzero(parts.cluster_size) == 0
    counts, vectors = parts.apply_update()
    assert torch.equal(torch.cat((first, second)), codes)
    assert torch.equal(counts.long(), torch.bincount(codes, minlength=K))
    torch.testing.assert_close(vectors, l2_normalize(torch.cat((a, b))), rtol=0, atol=1e-15)
    assert not torch.equal(parts.embedding.weight, before)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=0, atol=1e-12)


def test_a_discarded_step_leaves_no_trace() -> None:
    made, other = quantizer(), quantizer()
    made.deferred = True
    start = {key: value.clone() for key, value in made.state_dict().items()}
    made(random(30, WIDTH, seed=3))
    made.discard_update()
    assert all(torch.equal(made.state_dict()[key], value) for key, value in start.items())
    made(random(20, WIDTH, seed=4))
    made.apply_update()
    other(random(20, WIDTH, seed=4))
    assert all(torch.equal(made.state_dict()[key], value) for key, value in other.state_dict().items())
    assert torch.equal(made.epoch_counts, other.epoch_counts)


def test_a_step_that_the_device_skips_leaves_no_trace_even_of_nan() -> None:
    made = quantizer()
    made.deferred = True
    for taken in (True, False):
        start = {key: value.clone() for key, value in {**made.state_dict(), "counts": made.epoch_counts}.items()}
        made(random(30, WIDTH, seed=3) * (1.0 if taken else math.nan))
        counts, _ = made.apply_update(torch.tensor(taken))
        same = [torch.equal(value, start[key]) for key, value in made.state_dict().items()]
        assert (float(counts.sum()), torch.equal(made.epoch_counts, start["counts"])) == (30.0 * taken, not taken)
        assert all(same) is not taken


@pytest.mark.parametrize("training", [True, False])
def test_usage_statistics_are_099_old_plus_001_count_in_training_and_in_evaluation(training: bool) -> None:
    made = quantizer().train(training)
    first = np.bincount(made(random(50, WIDTH, seed=3))[1].numpy(), minlength=K)
    np.testing.assert_allclose(made.cluster_size.numpy(), 0.01 * first, rtol=1e-12)
    second = np.bincount(made(random(70, WIDTH, seed=4))[1].numpy(), minlength=K)
    np.testing.assert_allclose(made.cluster_size.numpy(), 0.99 * 0.01 * first + 0.01 * second, rtol=1e-12)
    np.testing.assert_array_equal(made.epoch_counts.numpy(), first + second)
    made.reset_usage()
    assert torch.count_nonzero(made.cluster_size) == torch.count_nonzero(made.epoch_counts) == 0
    assert torch.count_nonzero(made.embedding.cluster_size) == 0, "this entry of the published layout takes no part"


def test_usage_of_known_counts() -> None:
    found = usage(torch.tensor([90, *[1] * 10, *[0] * 9]))
    assert (found["used_code"], found["unused_code"]) == (11, 9)
    assert found["perplexity"] == pytest.approx(math.exp(-0.9 * math.log(0.9) + 0.1 * math.log(100)), rel=1e-6)
    assert found["top10_share"] == pytest.approx(0.99, rel=1e-12)
    assert usage(torch.zeros(20))["perplexity"] == 0, "nothing was counted"


def clusters() -> tuple[Tensor, np.ndarray]:
    """Five narrow clusters of unequal size round orthogonal directions: unit vectors, and which cluster each is of."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [10, 20, 30, 40, 50]))
    return torch.tensor(unit(np.eye(WIDTH)[labels] + 0.05 * rng.standard_normal((150, WIDTH)))), labels


def test_kmeans_runs_ten_cosine_iterations_from_a_sample_of_the_vectors() -> None:
    vectors = l2_normalize(random(400, WIDTH))
    x, centres = vectors.numpy(), sample_rows(vectors, 30, torch.Generator().manual_seed(5)).numpy()
    found = kmeans(vectors, 30, generator=torch.Generator().manual_seed(5)).numpy()
    passes = [centres]
    for _ in range(11):
        codes = brute_force(x, passes[-1])
        passes.append(np.stack([unit(x[codes == k].sum(0)) if k in codes else passes[-1][k] for k in range(30)]))
    np.testing.assert_allclose(found, passes[10], rtol=0, atol=1e-12)
    assert np.abs(passes[9] - passes[10]).max() > 1e-3 and np.abs(passes[11] - passes[10]).max() > 1e-3


def test_the_first_training_batch_initialises_the_rows_once() -> None:
    made = quantizer(kmeans_init=True)
    assert made.needs_initialization and made.embedding.initted.item() == 0
    before = made.embedding.weight.clone()
    x, _ = clusters()
    codes = made(x)[1]
    rows = made.embedding.weight.clone()
    assert not made.needs_initialization and made.embedding.initted.item() == 1
    assert (rows[codes] * x).sum(1).min() > 0.95 > (before @ x.t()).amax(0).min(), "the rows do not fit their vectors"
    far = -x
    made(far)
    np.testing.assert_allclose(made.embedding.weight.numpy(), moved(rows.numpy(), far.numpy()), rtol=0, atol=1e-14)


@pytest.mark.parametrize("initialised", [True, False])
def test_whether_the_rows_are_initialised_survives_saving_and_loading(initialised: bool) -> None:
    made = quantizer(kmeans_init=True)
    if initialised:
        made(clusters()[0])
    other = quantizer(kmeans_init=True, seed=9)
    assert other.needs_initialization
    parent = torch.nn.Sequential(other)  # loading through a parent must count as well
    parent.load_state_dict({f"0.{key}": value for key, value in made.state_dict().items()})
    assert other.needs_initialization is not initialised
    assert torch.equal(other.embedding.weight, made.embedding.weight)
    assert not quantizer(kmeans_init=False).needs_initialization


def counts_without(row: int, vectors: int, k: int = 8) -> Tensor:
    """Counts over k rows that sum to `vectors`, none for `row`; all others are used where there are enough."""
    counts = torch.zeros(k, dtype=torch.float64)
    for other in itertools.islice(itertools.cycle(i for i in range(k) if i != row), vectors):
        counts[other] += 1
    return counts


@pytest.mark.parametrize(
    ("counts", "steps", "expected"),
    [
        # In the step after 5 x 8 vectors and at least 10 steps; and, still without a vector, once more after as long.
        (lambda _: counts_without(7, 3), range(30), [14, 29]),
        (lambda _: counts_without(7, 1), range(82), [40, 81]),
        (lambda _: counts_without(7, 100), range(22), [10, 21]),
        # Idle for nine steps, for eight, then for nine again; then idle for good.
        (lambda step: counts_without(-1 if step in (9, 18, 28) else 7, 8), range(40), [39]),
        # Used in the step that would replace it; that step is skipped; an earlier one is.
        (lambda step: counts_without(-1 if step == 10 else 7, 100), range(22), [21]),
        (lambda step: counts_without(7, 0 if step == 10 else 100), range(22), [11]),
        (lambda step: counts_without(7, 0 if step == 3 else 100), range(22), [11]),
        # Nothing is revived in the last tenth of training.
        (lambda _: counts_without(7, 100), range(889, 1000), [899]),
        (lambda _: counts_without(7, 100), range(890, 1000), []),
    ],
)
def test_a_row_is_revived_once_it_was_idle_long_enough(
    counts: Callable[[int], Tensor], steps: range, expected: list[int]
) -> None:
    made, changed, revived = quantizer(k=8), [], 0
    revival = CodebookRevival(made, total_steps=1000, seed=0)
    for step in steps:
        before = made.embedding.weight.clone()
        if step % 3 == 0:  # as after a resumption
            revival, other = CodebookRevival(made, total_steps=1000, seed=0), revival
            revival.load_state_dict(other.state_dict())
        revival(step, counts(step), l2_normalize(random(30, WIDTH, seed=step)))
        new = (made.embedding.weight != before).any(dim=1)
        changed += [step] if new[7] else []
        revived += int(new.sum())
    assert changed == expected
    assert revival.state_dict()["revived"] == revived


def test_only_idle_rows_are_reseeded_and_with_distinct_vectors_of_the_step() -> None:
    made = quantizer(k=8)
    revival = CodebookRevival(made, total_steps=1000, seed=0)
    before = made.embedding.weight.clone()
    counts = torch.tensor([0, 5, 5, 0, 5, 5, 5, 0])
    for step in range(11):
        vectors = l2_normalize(random(30, WIDTH, seed=step))
        revival(step, counts, vectors)
    rows, idle = made.embedding.weight, counts == 0
    assert revival.state_dict()["revived"] == 3
    assert torch.equal(rows[~idle], before[~idle])
    matches = (rows[idle][:, None] == vectors).all(-1)
    assert matches.sum(1).tolist() == [1, 1, 1] and matches.any(0).sum() == 3


def test_kmeans_leaves_out_vectors_that_are_not_finite_and_refuses_nothing_but_them() -> None:
    vectors = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    clean, dirty = (NormEMAVectorQuantizer(3, 4) for _ in range(2))
    clean.initialize(vectors, generator=torch.Generator().manual_seed(1))
    nan = torch.full((2, 4), torch.nan)
    dirty.initialize(torch.cat((nan, vectors, nan)), generator=torch.Generator().manual_seed(1))
    assert torch.equal(dirty.embedding.weight, clean.embedding.weight)
    with pytest.raises(InputError, match="no finite value"):
        NormEMAVectorQuantizer(3, 4).initialize(nan)
