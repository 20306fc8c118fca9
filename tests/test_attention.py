"""Attention in bfloat16 on CPUs."""

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
