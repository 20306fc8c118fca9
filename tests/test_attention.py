"""Attention in bfloat16 on CPUs, and with the columns that kernels of GPUs want."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import attention
from attention import attend


def with_gradients(attended, qkv: Tensor, weights: Tensor) -> list[Tensor]:
    """Return attention of the three parts of `qkv`, (B, L, 3, H, d), and its weighted sum's gradient."""
    qkv = qkv.clone().requires_grad_()
    out = attended(*qkv.permute(2, 0, 3, 1, 4))
    (out * weights).sum().backward()
    return [out.detach(), qkv.grad]


@pytest.mark.parametrize("scores", [1, 3 * 17**2, 2**20])  # one, three, and all 10 heads at a time
def test_bfloat16_on_a_cpu_is_attention_with_its_gradients(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    monkeypatch.setattr(attention, "CACHED_SCORES", scores)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 17, 3, 5, 20, generator=generator).bfloat16()
    weights = torch.randn(2, 5, 17, 20, generator=generator).bfloat16()
    found = with_gradients(attend, qkv, weights)
    expected = with_gradients(F.scaled_dot_product_attention, qkv.double(), weights.double())
    for own, exact in zip(found, expected, strict=True):
        assert own.dtype == torch.bfloat16 and own.shape == exact.shape
        assert (own - exact).norm() < 0.01 * exact.norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_other_types_take_torchs_attention(kind: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 5, 17, 20, generator=torch.Generator().manual_seed(0)).to(kind)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_dropout_in_bfloat16_on_a_cpu_is_torchs() -> None:
    q, k, v = torch.randn(3, 2, 5, 17, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    outputs = []
    for attended in (lambda: attend(q, k, v, dropout=0.5), lambda: F.scaled_dot_product_attention(q, k, v, None, 0.5)):
        torch.manual_seed(0)
        outputs.append(attended())
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("capability", "dtype", "missing"),
    [
        (9, torch.float32, (0, 3, 2)),
        (9, torch.bfloat16, (0, 0, 0)),
        (8, torch.float16, (0, 0, 0)),
        (7, torch.float16, (4, 7, 6)),
        (7, torch.float32, (0, 0, 0)),
        (9, torch.float64, (0, 0, 0)),
    ],
)
def test_columns_are_added_only_where_a_gpu_would_take_its_slow_kernel(
    monkeypatch: pytest.MonkeyPatch, capability: int, dtype: torch.dtype, missing: tuple[int, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    heads: Any = [SimpleNamespace(is_cuda=True, dtype=dtype, shape=(2, 4, 9, width)) for width in (20, 25, 50)]
    assert tuple(map(attention.missing_columns, heads)) == missing
    assert attention.missing_columns(torch.zeros(2, 4, 9, 25)) == 0


@pytest.mark.parametrize("missing", [0, 3])
def test_attention_is_the_softmax_of_scaled_products_with_added_columns_too(
    monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    monkeypatch.setattr(attention, "missing_columns", lambda q: missing)
    q, k, v = torch.randn(3, 2, 4, 9, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected: Tensor = (q @ k.transpose(-1, -2) / math.sqrt(25)).softmax(-1) @ v
    torch.testing.assert_close(attention.attend(q, k, v), expected, rtol=0, atol=1e-14)
