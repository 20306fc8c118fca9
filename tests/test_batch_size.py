"""`--batch_size auto` takes the largest power of two that fits, on all ranks the same."""

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from errors import UsageError
from training import batch_size
from training.batch_size import largest_batch, settle_batch_size


@pytest.mark.parametrize(
    ("most_that_fits", "share", "expected"),
    [(100, 512, 64), (64, 512, 64), (1000, 512, 512), (1000, 96, 32), (1000, 7, 1), (1, 512, 1)],
)
def test_the_batch_is_the_largest_power_of_two_that_fits_and_divides(
    most_that_fits: int, share: int, expected: int
) -> None:
    assert largest_batch(lambda batch: batch <= most_that_fits, share) == expected


def settle(
    monkeypatch: pytest.MonkeyPatch,
    *,
    gb: float,
    others: int = 512,
    device: str = "cuda",
    full: Exception = torch.OutOfMemoryError("CUDA out of memory"),  # noqa: B008 (a constant)
    copies: int = 0,
    **flags: Any,
) -> Namespace:
    """Settle the flags on a GPU that has `gb` GB left where a window takes 1, and whose other rank fits `others`."""

    def step_bytes(*given: Any) -> float:
        if given[3] > gb:
            raise full
        return given[3] * 1e9

    monkeypatch.setattr(batch_size, "step_bytes", step_bytes)
    monkeypatch.setattr(batch_size, "gather", lambda own: [own, others])
    for name, value in {"mem_get_info": ((gb - 2) * 1e9, 0), "memory_reserved": 2e9, "empty_cache": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    args = Namespace(**({"batch_size": None, "total_batch_size": None, "time_window": None} | flags))
    run: Any = SimpleNamespace(device=torch.device(device), processes=2)
    model: Any = torch.nn.Linear(1_000_000, 500, bias=False, device="meta")  # 2 GB
    settle_batch_size(args, run, model, torch.sum, copies=copies)
    return args


@pytest.mark.parametrize(
    ("flags", "batch", "total"),
    [
        ({"gb": 40}, 32, 512),  # a tenth stays free
        ({"gb": 35}, 16, 512),
        ({"gb": 37.5}, 32, 512),
        ({"gb": 37.5, "copies": 1}, 16, 512),
        ({"gb": 40, "full": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")}, 32, 512),
        ({"gb": 40, "full": RuntimeError("Triton Error [CUDA]: out of memory")}, 32, 512),
        ({"gb": 5000}, 256, 512),  # the paper's batch in two processes
        ({"gb": 5000, "total_batch_size": 64}, 32, 64),
        ({"gb": 40, "others": 8}, 8, 512),
        ({"gb": 40, "batch_size": 5}, 5, None),
    ],
)
def test_auto_leaves_a_tenth_free_and_all_ranks_take_the_smallest(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], batch: int, total: int | None
) -> None:
    args = settle(monkeypatch, **flags)
    assert (args.batch_size, args.total_batch_size) == (batch, total)


@pytest.mark.parametrize(
    ("flags", "named"), [({"time_window": 4}, "--time_window"), ({"device": "cpu"}, "--batch_size 16")]
)
def test_where_auto_cannot_know_it_asks_for_a_number(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        settle(monkeypatch, gb=40, **flags)


def test_an_error_that_is_none_of_memory_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="illegal instruction"):
        settle(monkeypatch, gb=40, full=RuntimeError("CUDA error: illegal instruction"))
