"""What `choices.py` times: operations of the models as the product does them, and otherwise.

Each group gives ways of computing the same numbers by name, the product's first; a way returns what it computed
(outputs, and where there is a backward pass gradients), by which `tests/test_choices_benchmark.py` holds them together.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F

import layers
from electrodes import ELECTRODES, embedding_rows
from modeling_pretrain import code_loss, random_mask

Found = tuple[Tensor, ...]
Ways = dict[str, Callable[[], Found]]
PIECE = 2**21  # bytes of attention weights that are held at a time, by hand


@dataclass(frozen=True)
class Size:
    """Windows and model of a measurement: base's, with 16 windows of 32 electrodes x 8 s, or a tiny one's."""

    windows: int = 16
    electrodes: int = 32
    seconds: int = 8
    codes: int = 8192
    model: str = "base"

    width = 200
    heads = 10

    @property
    def tokens(self) -> int:
        """Tokens of a window, CLS among them."""
        return self.electrodes * self.seconds + 1

    @property
    def channels(self) -> list[int]:
        """Rows of the position embedding."""
        return embedding_rows(list(ELECTRODES[: self.electrodes]))

    def draw(self, *shape: int) -> Tensor:
        """Noise, the same each time."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    def eeg(self, windows: int | None = None) -> Tensor:
        """Windows of noise, (B, N, A, T)."""
        return 0.3 * self.draw(windows or self.windows, self.electrodes, self.seconds, layers.PATCH_SAMPLES)

    def build(self, kind: str, **options: Any) -> Any:
        """A model: `labram_base_patch200_200` and so on, always with the same weights."""
        torch.manual_seed(0)
        return create_model(f"labram_{self.model}_patch200_{kind}", **options)


TINY = Size(windows=3, electrodes=5, seconds=2, codes=64, model="tiny")


def learning(forward: Callable[..., Tensor], upstream: Tensor, *inputs: Tensor) -> Callable[[], Found]:
    """Return a forward and a backward pass: the output and the gradients of the inputs."""

    def step() -> Found:
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = forward(*leaves)
        return (found.detach(), *torch.autograd.grad(found, leaves, upstream))

    return step


def training(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Found]:
    """Return a forward and a backward pass of a model: its loss and all gradients."""
    learnable = list(model.parameters())

    def step() -> Found:
        value = loss()
        found = torch.autograd.grad(value, learnable, allow_unused=True)
        return (value.detach(), *(gradient for gradient in found if gradient is not None))

    return step


# Attention


def two_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with its matrix of weights."""
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v


def in_pieces(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same for a few heads at a time, whose weights fit the processor's cache."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    size = max(1, PIECE // (4 * q.shape[1] ** 2))
    parts = zip(*(x.split(size) for x in (q, k, v)), strict=True)
    return torch.cat([two_products(*part) for part in parts])


def padded(q: Tensor, k: Tensor, v: Tensor, *, width: int) -> Tensor:
    """Fused attention of heads that zeros make wider."""
    scale, own = q.shape[-1] ** -0.5, v.shape[-1]
    q, k, v = (F.pad(x, (0, width - own)) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :own]


def attention(size: Size) -> Ways:
    """Of all windows at once, forward and backward."""
    shape = (size.windows, size.heads, size.tokens, size.width // size.heads)
    q, k, v, upstream = (size.draw(4, *shape)).unbind()
    run = lambda function: learning(function, upstream, q, k, v)  # noqa: E731
    return {
        "`scaled_dot_product_attention`": run(F.scaled_dot_product_attention),
        "two products and a softmax": run(two_products),
        "these for a few heads at a time": run(lambda *x: in_pieces(*x).view(shape)),
        "fused, heads of width 20 padded to 24": run(functools.partial(padded, width=24)),
        "fused, heads of width 20 padded to 32": run(functools.partial(padded, width=32)),
    }


# Norms and linear layers


def by_variance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm by `var_mean`."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + layers.LAYER_NORM_EPS) * weight + bias


def by_products(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm whose means are matrix products."""
    average = x.new_full((x.shape[-1], x.shape[-1]), 1 / x.shape[-1])
    centred = x - x @ average
    return centred * torch.rsqrt(centred.square() @ average + layers.LAYER_NORM_EPS) * weight + bias


def head_norm(size: Size) -> Ways:
    """Of every head's q, forward and backward."""
    width = size.width // size.heads
    x, upstream = size.draw(2, size.windows, size.heads, size.tokens, width).unbind()
    weight, bias = size.draw(2, width).unbind()
    run = lambda function: learning(function, upstream, x, weight, bias)  # noqa: E731
    return {
        "`layer_norm`": run(lambda x, w, b: F.layer_norm(x, (width,), w, b, layers.LAYER_NORM_EPS)),
        "`var_mean`": run(by_variance),
        "means by matrix products": run(by_products),
    }


def one_dnn(x: Tensor, weight: Tensor) -> Tensor:
    """A linear layer by oneDNN (a private operation of torch), where it is built in."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def products(size: Size, *, of_weights: bool) -> Ways:
    """Of a block's four matrices with all tokens, forward; or the products that are the matrices' gradients."""
    wide, rows = size.width, size.windows * size.tokens
    shapes = ((wide, 3 * wide), (wide, wide), (wide, 4 * wide), (4 * wide, wide))
    given = [(size.draw(rows, into), size.draw(out, into)) for into, out in shapes]
    if of_weights:
        given = [(size.draw(rows, out).t().contiguous(), size.draw(rows, into).t()) for into, out in shapes]
    ways: Ways = {"torch's own": lambda: tuple(F.linear(x, weight) for x, weight in given)}
    if torch.backends.mkldnn.is_available():
        ways["oneDNN's"] = lambda: tuple(one_dnn(x, weight) for x, weight in given)
    return ways


# Parts of a step


def loss_over_codes(size: Size) -> Ways:
    """Of all patches, forward and backward."""
    n = size.windows * (size.tokens - 1)
    head = nn.Linear(size.width, size.codes)
    tokens, upstream = size.draw(n, size.width), torch.ones(())
    codes, shares = torch.arange(n) % size.codes, torch.full((n,), 1 / n)

    def whole(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (F.cross_entropy(F.linear(x, weight, bias), codes, reduction="none") * shares).sum()

    def pieces(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer: Any = SimpleNamespace(weight=weight, bias=bias)
        return code_loss(x, layer, codes, shares)[0]

    run = lambda function: learning(function, upstream, tokens, head.weight, head.bias)  # noqa: E731
    return {"8 MB of logits at a time": run(pieces), "all logits": run(whole)}


def two_masks(size: Size) -> Ways:
    """Loss and gradients of a mask and its inverse, of the masked model."""
    windows = max(1, size.windows // 2)
    model = size.build("1600_8k_vocab", vocab_size=size.codes).train()
    patches = size.tokens - 1
    mask = random_mask(windows, patches, generator=torch.Generator().manual_seed(0))
    codes = (torch.arange(windows * patches) % size.codes).view(windows, patches)
    eeg = size.eeg(windows)

    def apart() -> Tensor:
        losses = []
        for side in (mask, ~mask):
            tokens = model.student(eeg, size.channels, side)[side]
            shares = torch.full((len(tokens),), 1 / len(tokens))
            losses.append(code_loss(tokens, model.lm_head, codes[side], shares)[0])
        return torch.stack(losses).sum()

    together = lambda: model(eeg, size.channels, mask, codes).loss  # noqa: E731
    return {"both masks in one batch": training(model, together), "one after the other": training(model, apart)}


def embedding(size: Size) -> Ways:
    """Features of all windows, without a gradient."""
    model = size.build("200").eval()
    eeg = size.eeg()

    def features() -> Found:
        with torch.no_grad():
            return (model.forward_features(eeg, size.channels),)

    def at_once() -> Found:
        with patch.object(layers, "CACHED_TOKENS", 2**40):
            return features()

    return {"1024 tokens at a time through all blocks": features, "all windows through each block": at_once}


def classifier_loss(size: Size, model: Any) -> Callable[[], Tensor]:
    """Return the mean square of a classifier's outputs, with a gradient."""
    eeg = size.eeg()
    return lambda: model(eeg, size.channels).square().mean()


def gelu(size: Size) -> Ways:
    """Forward and backward pass of the classifier, whose blocks keep GELU's outputs for the gradient, too."""
    model = size.build("200").train()
    step = training(model, classifier_loss(size, model))

    def kept() -> Found:
        with patch.object(layers.Mlp, "forward", lambda mlp, x: mlp.fc2(F.gelu(mlp.fc1(x)))):
            return step()

    return {"GELU computed again for the gradient": step, "GELU's outputs kept": kept}


def checkpointing(size: Size) -> Ways:
    """Forward and backward pass of the classifier, what enters each block kept alone."""
    plain, lean = (size.build("200", grad_checkpoint=lean).train() for lean in (False, True))
    return {
        "everything kept": training(plain, classifier_loss(size, plain)),
        "`--grad_checkpoint`": training(lean, classifier_loss(size, lean)),
    }


def compiled(size: Size) -> Ways:
    """Forward and backward pass of the classifier, through `torch.compile`."""
    plain, made = (size.build("200").train() for _ in range(2))
    layers.compile_blocks(made)
    return {
        "not compiled": training(plain, classifier_loss(size, plain)),
        "`torch.compile` of the blocks": training(made, classifier_loss(size, made)),
    }


def optimizer(size: Size) -> Ways:
    """AdamW's step on the classifier's weights; each way has a copy of its own."""

    def step(**options: Any) -> Callable[[], Found]:
        weights = [parameter.detach().clone().requires_grad_() for parameter in size.build("200").parameters()]
        for weight in weights:
            weight.grad = size.draw(*weight.shape)
        update = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.05, **options)

        def once() -> Found:
            update.step()
            return tuple(weight.detach() for weight in weights)

        return once

    return {"fused": step(fused=True), "a few operations over all weights": step(foreach=True)}


GROUPS: Mapping[str, Callable[[Size], Ways]] = {
    "attention": attention,
    "norm of q": head_norm,
    "matrices of a block, forward": functools.partial(products, of_weights=False),
    "gradients of these matrices": functools.partial(products, of_weights=True),
    "loss over codes": loss_over_codes,
    "pre-training, half the windows": two_masks,
    "embedding": embedding,
    "fine-tuning, GELU": gelu,
    "fine-tuning, memory": checkpointing,
    "fine-tuning, compiled": compiled,
    "AdamW": optimizer,
}
