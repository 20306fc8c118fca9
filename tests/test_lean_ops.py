"""Operations with gradients of their own: the numbers of autograd's, with less kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import layers
from layers import gelu_linear
from modeling_pretrain import code_loss


def layer(inputs: int = 6, outputs: int = 4) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).double()


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Count what autograd keeps of a forward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("shape", [(3, 6), (2, 5, 6), (1, 1, 6), (0, 6)])
def test_gelu_and_linear_have_the_gradients_of_finite_differences(shape: tuple[int, ...]) -> None:
    made = layer()
    hidden = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gelu_linear(hidden, made), made(F.gelu(hidden)))
    inputs = (hidden, made.weight, made.bias)
    assert torch.autograd.gradcheck(lambda h, w, b: layers._GeluLinear.apply(h, w, b), inputs)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_does_not_learn_gets_no_gradient_and_the_others_theirs(frozen: str) -> None:
    results = []
    for forward in (gelu_linear, lambda h, made: made(F.gelu(h))):
        made, hidden = layer(), torch.linspace(-3, 3, 12, dtype=torch.float64).view(2, 6).requires_grad_()
        parts = {"hidden": hidden, "weight": made.weight, "bias": made.bias}
        parts[frozen].requires_grad_(False)
        forward(hidden, made).square().sum().backward()
        results.append({name: part.grad for name, part in parts.items()})
    assert results[0][frozen] is None
    for name in results[0].keys() - {frozen}:
        torch.testing.assert_close(results[0][name], results[1][name])


def test_of_gelu_and_linear_one_large_tensor_is_kept_where_autograd_keeps_two() -> None:
    made = nn.Linear(64, 2)
    hidden = torch.randn(1000, 64, requires_grad=True)
    large = hidden.nbytes
    assert kept_bytes(lambda: made(F.gelu(hidden))) > 2 * large
    assert large <= kept_bytes(lambda: gelu_linear(hidden, made)) < 1.1 * large


def test_under_autocast_the_numbers_are_autocasts() -> None:
    results = []
    for forward in (gelu_linear, lambda h, made: made(F.gelu(h))):
        made, hidden = layer().float(), torch.linspace(-3, 3, 60).view(10, 6).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = forward(hidden.bfloat16(), made)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        assert made.weight.grad.dtype == torch.float32
        results.append((out.float(), hidden.grad, made.weight.grad, made.bias.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_the_loss_over_codes_keeps_nothing_that_grows_with_tokens_times_codes() -> None:
    head, n = nn.Linear(8, 1000), 400
    tokens, codes = torch.randn(n, 8, requires_grad=True), torch.arange(n)
    shares = torch.full((n,), 1 / n)
    logits = 4 * n * 1000
    assert kept_bytes(lambda: F.cross_entropy(head(tokens), codes)) >= logits
    assert kept_bytes(lambda: code_loss(tokens, head, codes, shares)[0]) < logits / 20


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_loss_is_that_of_float32_to_its_rounding(kind: torch.dtype) -> None:
    torch.manual_seed(1)
    head, n = nn.Linear(16, 300), 200
    tokens, codes = torch.randn(n, 16, requires_grad=True), torch.randint(300, (n,))
    shares = torch.full((n,), 1 / n)
    expected = F.cross_entropy(head(tokens), codes)
    expected.backward()
    exact = [tokens.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    tokens.grad = head.weight.grad = head.bias.grad = None
    with torch.autocast("cpu", dtype=kind):
        loss, hits = code_loss(tokens, head, codes, shares)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-2) and hits.dtype == torch.bool
    for found, wanted in zip((tokens.grad, head.weight.grad, head.bias.grad), exact, strict=True):
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_fp16_holds_the_weights_gradient_of_a_collapsed_codebook() -> None:
    head, n = nn.Linear(4, 64), 8192
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    tokens = torch.full((n, 4), 16.0)
    with torch.autocast("cpu", dtype=torch.float16):
        loss, _ = code_loss(tokens, head, torch.zeros(n, dtype=torch.long), torch.full((n,), 1.0))
    loss.backward()
    # Each token pulls row 0 by 63/64 of itself and pushes the others by 1/64.
    expected = torch.full((64, 4), n * 16 / 64)
    expected[0] = -n * 16 * 63 / 64
    torch.testing.assert_close(head.weight.grad, expected, rtol=2e-3, atol=0)


def test_no_tokens_cost_nothing() -> None:
    loss, hits = code_loss(
        torch.zeros(0, 8, requires_grad=True), nn.Linear(8, 5), torch.zeros(0).long(), torch.zeros(0)
    )
    assert float(loss.detach()) == 0 and len(hits) == 0
