"""Building blocks: patch encoder, attention, block, embeddings and initialisation against NumPy and closed forms."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.special import erf
from scipy.stats import truncnorm
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F

import golden_recipe
import layers
import modeling_finetune
import modeling_pretrain  # noqa: F401  (registers its models, as the next one does)
import modeling_vqnsp  # noqa: F401
from data_helpers import random
from electrodes import embedding_rows
from errors import InputError
from golden_recipe import NOT_CARRIED, fill, kept_bytes
from layers import Block, GeluLinear, Mlp, to_patches

TOKENIZER = "vqnsp_encoder_tiny_decoder_1x200x4"
MASKED = "labram_tiny_patch200_1600_8k_vocab"
CLASSIFIER = "labram_tiny_patch200_200"
GAMMA = {"tiny": 0.1, "base": 0.1, "large": 1e-5, "huge": 1e-6}  # of the paper's sizes


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in module.state_dict().items()}


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def test_to_patches_cuts_every_electrode_into_consecutive_seconds() -> None:
    eeg = torch.arange(2 * 3 * 800.0).view(2, 3, 800)
    patches = to_patches(eeg)
    assert patches.shape == (2, 3, 4, 200)
    assert torch.equal(patches[1, 2, 3], eeg[1, 2, 600:800])


@pytest.mark.parametrize("samples", [0, 300, 799, 3400])
def test_windows_other_than_1_to_16_whole_seconds_are_refused(samples: int) -> None:
    with pytest.raises(InputError, match=rf"{samples} samples .*3200"):
        to_patches(torch.zeros(2, 3, samples))


def test_mlp_uses_the_exact_gelu_has_its_gradient_and_keeps_one_large_tensor_for_it() -> None:
    mlp, x = fill(Mlp(6, drop=0.0)).double(), random(2, 3, 6).requires_grad_()
    w = values(mlp)
    assert w["fc1.weight"].shape == (24, 6)
    hidden = gelu(x.detach().numpy() @ w["fc1.weight"].T + w["fc1.bias"])
    expected = hidden @ w["fc2.weight"].T + w["fc2.bias"]
    np.testing.assert_allclose(mlp(x).detach().numpy(), expected, rtol=1e-9, atol=1e-11)
    assert torch.autograd.gradcheck(lambda x, *_: mlp(x), (x, *mlp.parameters()))
    large = 2 * 3 * 24 * 8
    assert large <= kept_bytes(lambda: mlp(x), mlp) < 2 * large


@pytest.mark.parametrize("frozen", [[], ["weight"], ["weight", "bias"]])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_gelu_and_linear_layer_have_autograds_gradients_in_half_precision_and_where_a_part_is_frozen(
    kind: torch.dtype, frozen: list[str]
) -> None:
    results = []
    for forward in (lambda h, layer: GeluLinear.apply(h, layer.weight, layer.bias), lambda h, layer: layer(F.gelu(h))):
        layer, hidden = fill(nn.Linear(6, 4)), random(2, 10, 6).to(kind).requires_grad_()
        for name in frozen:
            layer.get_parameter(name).requires_grad_(False)
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            out = forward(hidden, layer)
        out.float().square().sum().backward()
        results.append([out, hidden.grad, layer.weight.grad, layer.bias.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def block_of(init_values: float = 0.1, drop_path: float = 0.0) -> Block:
    return fill(
        Block(
            12, 3, qkv_bias=False, qk_norm=True, init_values=init_values, drop=0.0, attn_drop=0.0, drop_path=drop_path
        )
    ).double()


def test_drop_path_drops_a_part_for_a_whole_sample_and_scales_the_rest() -> None:
    block = block_of(drop_path=0.5)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)  # the second part adds nothing: only the attention's drop is seen
    x = random(1, 4, 12).expand(64, 4, 12)
    torch.manual_seed(0)
    with torch.no_grad():
        added = block.eval()(x, block.draw_paths(x)) - x
        block.train()
        trained = block(x, block.draw_paths(x)) - x
    dropped = trained.abs().amax(dim=(1, 2)) == 0
    assert 16 <= int(dropped.sum()) <= 48
    torch.testing.assert_close(trained[~dropped], 2 * added[~dropped])


@pytest.mark.parametrize(("depth", "rates"), [(5, [0, 0.05, 0.1, 0.15, 0.2]), (1, [0])])
def test_drop_path_rises_linearly_from_0_to_the_rate(depth: int, rates: list[float]) -> None:
    model = create_model(CLASSIFIER, depth=depth, drop_path_rate=0.2)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx(rates)


def test_without_gradient_samples_go_through_the_blocks_in_pieces_with_the_same_outputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "CACHED_TOKENS", 9)
    model, x = fill(create_model(CLASSIFIER)).double(), random(5, 2, 2, 200)
    sizes: list[int] = []
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole = model(x, [0, 1, 2]).detach()
    with torch.no_grad():
        pieces = model(x, [0, 1, 2])
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-14)
    assert sizes == [5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_each_dropout_acts_in_training_and_not_in_evaluation(rate: str) -> None:
    torch.manual_seed(0)
    model = fill(create_model(CLASSIFIER, **{rate: 0.5}))
    x = random(4, 2, 2, 200).float()
    with torch.no_grad():
        assert not torch.equal(model.train()(x, [0, 1, 2]), model(x, [0, 1, 2]))
        assert torch.equal(model.eval()(x, [0, 1, 2]), model(x, [0, 1, 2]))
        plain = fill(create_model(CLASSIFIER)).train()
        assert torch.equal(plain(x, [0, 1, 2]), model(x, [0, 1, 2]))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def block_scale(name: str) -> float:
    """1 / sqrt(2 i) for the output projections of block i, counted from 1."""
    found = re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)$", name)
    return 1 / math.sqrt(2 * (int(found[1]) + 1)) if found else 1.0


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **({"init_scale": 1.0, "num_classes": 40} if name == CLASSIFIER else {}))


@pytest.mark.parametrize("name", [TOKENIZER, CLASSIFIER])
def test_weights_have_std_002_and_a_far_cut_biases_are_0_and_convolutions_as_pytorch_makes_them(name: str) -> None:
    model = build(name)
    assert all(torch.count_nonzero(part.bias) == 0 for part in linears(model).values() if part.bias is not None)
    for part in (part for part in model.modules() if isinstance(part, nn.Conv2d)):
        bound = 1 / math.sqrt(part.weight[0].numel())  # uniform in +-1/sqrt(fan in), weights and biases
        assert 0.7 * bound < part.weight.abs().max().item() <= bound and 0 < part.bias.abs().max().item() <= bound
    tables = {key: p for key, p in model.named_parameters() if re.search(r"(pos|time)_embed$|cls_token$", key)}
    weights = {key: part.weight for key, part in linears(model).items()}
    assert len(tables) in (3, 6) and len(weights) >= 4 * 4
    for key, weight in {**tables, **weights}.items():
        tolerance = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a standard deviation
        assert weight.std().item() == pytest.approx(0.02 * block_scale(key), rel=tolerance), key
        if weight.numel() > 10_000:
            assert weight.abs().max().item() > 3.5 * 0.02 * block_scale(key), key


def test_masked_model_cuts_its_weights_at_one_standard_deviation() -> None:
    model = build(MASKED)
    expected = 0.02 * truncnorm(-1, 1).std()  # 0.0108
    weights = {key: part.weight for key, part in linears(model).items()}
    weights |= {k: p for k, p in model.named_parameters() if re.search(r"(pos|time)_embed$|(cls|mask)_token$", k)}
    convolutions = {k: m for k, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    weights |= {key: part.weight for key, part in convolutions.items()}
    assert len(weights) == 4 * 4 + 1 + 4 + 3
    for key, weight in weights.items():
        scale = block_scale(key)
        assert weight.abs().max().item() <= 0.02 * scale * (1 + 1e-6), key
        assert weight.std().item() == pytest.approx(expected * scale, rel=4 / math.sqrt(2 * weight.numel())), key
    assert all(torch.count_nonzero(part.bias) == 0 for part in convolutions.values())


def test_layer_scale_starts_at_the_value_of_the_size() -> None:
    for name in modeling_finetune.SIZES:
        model = create_model(name, depth=1)
        found = [p for key, p in model.named_parameters() if key.endswith(("gamma_1", "gamma_2"))]
        assert len(found) == 2 and all(torch.equal(p, torch.full_like(p, GAMMA[name.split("_")[1]])) for p in found)


@pytest.mark.parametrize("name", golden_recipe.table("state_dicts"))
def test_state_dict_and_parameter_counts_are_the_published_ones_without_what_nothing_uses(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    published = golden_recipe.table("state_dicts")[name]
    used = {key: shape for key, shape in published["state_dict"].items() if not key.startswith(NOT_CARRIED)}
    unused = sum(math.prod(shape) for key, shape in published["state_dict"].items() if key not in used)
    state = model.state_dict()
    assert list(state) == list(used) and {key: list(value.shape) for key, value in state.items()} == used
    assert sum(p.numel() for p in model.parameters()) == published["parameters"] - unused
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == published["learnable"] - unused


@pytest.mark.parametrize(
    ("channels", "named"),
    [
        ([0, 1], "for 2 electrodes.*length 3"),
        ([0, 5, 129], "row 129.*num_electrodes=136"),
        ([0, 5, -1], "row -1"),
        (None, "129 entries for 2 .*None: all 128 electrodes"),
    ],
)
def test_input_chans_that_do_not_fit_are_refused_with_what_does(channels: list[int] | None, named: str) -> None:
    model = create_model(CLASSIFIER, depth=1).eval()
    with pytest.raises(InputError, match=named):
        model.embed(torch.zeros(1, 2, 1, 200), channels)
    x = torch.zeros(1, 128, 1, 200)
    assert torch.equal(model.embed(x, None), model.embed(x, list(range(129))))


def test_num_electrodes_136_grows_the_table_to_the_last_eight_names() -> None:
    model = create_model(CLASSIFIER, num_electrodes=136)
    assert model.pos_embed.shape == (1, 137, 200)
    channels = embedding_rows(["FP1-F3", "P4-O2"], table_rows=137)
    assert channels == [0, 129, 136]
    tokens = model.embed(torch.zeros(1, 2, 1, 200), channels)
    moved = model.embed(torch.zeros(1, 2, 1, 200), [0, 129, 135])
    torch.testing.assert_close((tokens - moved)[0, 2], (model.pos_embed[0, 136] - model.pos_embed[0, 135]))


@pytest.mark.parametrize(("electrodes", "seconds"), [(1, 1), (128, 2)])
def test_one_to_128_electrodes_and_one_second_work_in_training(electrodes: int, seconds: int) -> None:
    model = fill(create_model(CLASSIFIER, num_classes=3)).train()
    logits = model(random(2, electrodes, seconds, 200).float(), list(range(electrodes + 1)))
    assert logits.shape == (2, 3) and bool(logits.isfinite().all())
    logits.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_checkpointed_blocks_have_the_same_gradients_and_keep_far_less() -> None:
    gradients, kept = [], []
    for grad_checkpoint in (False, True):
        options = {"drop_path_rate": 0.5, "drop_rate": 0.2, "attn_drop_rate": 0.2, "grad_checkpoint": grad_checkpoint}
        model = fill(create_model(CLASSIFIER, **options)).double().train()

        def loss(model: nn.Module = model) -> Tensor:
            torch.manual_seed(3)  # of the dropouts
            return model(random(4, 3, 2, 200), [0, 1, 2, 3]).square().sum()

        kept.append(kept_bytes(loss, model))
        loss().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert (gradients[1][key] - gradient).abs().max() <= 1e-12 * max(1.0, gradient.abs().max()), key
    assert kept[1] < 0.5 * kept[0]
