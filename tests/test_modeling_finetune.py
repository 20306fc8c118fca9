"""The classifier against golden numbers; pooling; loading stage 2 into it with every key accounted for."""

import logging
import re

import numpy as np
import pytest
import torch
from scipy.signal import welch
from timm.models import create_model
from torch import Tensor, nn

import golden_recipe
import modeling_pretrain
import modeling_vqnsp
from errors import InputError
from golden_recipe import adamw, assert_forward, assert_trajectory, eeg, fill
from modeling_finetune import NeuralTransformer, load_pretrained

BASE = "labram_base_patch200_200"
TINY = "labram_tiny_patch200_200"
TINY_MASKED = next(name for name in modeling_pretrain.SIZES if "tiny" in name)
TINY_TOKENIZER = next(name for name in modeling_vqnsp.SIZES if "tiny" in name)
CHANNELS = [0, 5, 9, 2]


def tiny(**options: object) -> NeuralTransformer:
    return fill(create_model(TINY, **options)).eval()


def masked_weights(**options: object) -> dict[str, Tensor]:
    """Return a stage 2 state dict of tiny size, with the keys that only published files have."""
    weights = fill(create_model(TINY_MASKED, vocab_size=20, **options)).state_dict()
    extra = {"student.lm_head.weight": (20, 200), "student.lm_head.bias": (20,), "projection_head.0.weight": (9, 200)}
    return weights | {key: golden_recipe.weight(key, shape) for key, shape in extra.items()}


@pytest.mark.parametrize("case", ["base_tuab", "base_tuev", "large_forward"])
def test_forward_pass_gives_the_golden_numbers(case: str) -> None:
    golden = golden_recipe.arrays(f"finetune_{case}")
    name = BASE.replace("base", case.split("_")[0])
    options = {"num_classes": int(golden["num_classes"]), "init_values": float(golden["init_values"])}
    model = fill(create_model(name, use_mean_pooling=bool(golden["use_mean_pooling"]), **options)).eval()
    x, channels = eeg(golden["eeg_seed"], golden["eeg_shape"]), golden_recipe.rows(golden)
    with torch.no_grad():
        assert_forward(model(x, channels), golden["logits"])
        assert_forward(model.forward_features(x, channels), golden["pooled"])
        tokens = model.forward_features(x, channels, return_patch_tokens=True)
    assert tokens.shape == (len(x), x.shape[1] * x.shape[2], model.width)
    assert_forward(tokens[:, :6], golden["patch_tokens"])


@pytest.mark.parametrize("case", ["base_tuab", "base_tuev"])
def test_training_follows_the_golden_trajectory(case: str) -> None:
    golden = golden_recipe.arrays(f"finetune_{case}")
    channels, classes = golden_recipe.rows(golden), int(golden["num_classes"])
    model = fill(create_model(BASE, num_classes=classes, init_values=float(golden["init_values"]))).train()
    optimizer = adamw(model, "finetune_base_layer_decay_0.65", golden)
    losses, norms = [], []
    for step, target in enumerate(torch.tensor(golden["targets"])):
        logits = model(eeg(golden["eeg_seed"] + 1 + step, golden["eeg_shape"]), channels)
        if classes == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.float())
        else:
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
        losses.append(loss.item())
        norms.append(golden_recipe.step(model, optimizer, loss))
    assert_trajectory(losses, golden["losses"])
    assert_trajectory(norms, golden["grad_norm"])


# Pooling and head


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_features_and_tokens_come_after_the_norm_of_the_pooling(use_mean_pooling: bool) -> None:
    model, x = tiny(use_mean_pooling=use_mean_pooling, num_classes=3), eeg(1, (2, 3, 2, 200))
    norm = model.fc_norm if use_mean_pooling else model.norm  # golden numbers show that it is LayerNorm
    assert isinstance(norm, nn.LayerNorm)
    with torch.no_grad():
        tokens = model.run_blocks(model.embed(x, CHANNELS))  # (2, 7, 200)
        patches = model.forward_features(x, CHANNELS, return_patch_tokens=True)
        assert torch.equal(model.forward_features(x, CHANNELS, return_all_tokens=True), norm(tokens))
        assert torch.equal(patches, norm(tokens[:, 1:]))
        pooled = tokens[:, 1:].mean(1) if use_mean_pooling else tokens[:, 0]
        assert torch.equal(model.forward_features(x, CHANNELS), norm(pooled))
        assert model(x, CHANNELS, return_all_tokens=True).shape == (2, 7, 3)
        assert torch.equal(model(x, CHANNELS, return_patch_tokens=True), model.head(patches))


def features_by_numpy(pool: str, tokens: np.ndarray, model: NeuralTransformer) -> np.ndarray:
    """Pool tokens (B, N, A, D) of electrodes in the head's order."""

    def normed(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    weight, bias = (value.detach().numpy() for value in (model.fc_norm.weight, model.fc_norm.bias))
    if pool == "attention":
        scores = normed(tokens) @ model.head.query.detach().numpy() / np.sqrt(200)  # (B, N, A)
        shares = np.exp(scores) / np.exp(scores).sum((1, 2), keepdims=True)
        pooled = (shares[..., None] * tokens).sum((1, 2))
    elif pool == "spectrum":
        pooled = tokens.mean((1, 2))
    else:
        pooled = tokens.mean(2) if pool == "electrodes" else tokens
    return (normed(pooled) * weight + bias).reshape(len(tokens), -1)


@pytest.mark.parametrize("pool", ["electrodes", "flatten", "attention", "spectrum"])
def test_other_pools_are_numpys_whatever_the_order_of_the_electrodes(pool: str) -> None:
    model = tiny(pool=pool, electrodes=3, seconds=2, num_classes=3).double()
    if pool != "attention":
        model.head.rows.copy_(torch.tensor([9, 2, 5]))  # CHANNELS are 5, 9, 2
    x = eeg(1, (2, 3, 2, 200)).double()
    with torch.no_grad():
        tokens = model.run_blocks(model.embed(x, CHANNELS))[:, 1:].view(2, 3, 2, 200).numpy()
        expected = features_by_numpy(pool, tokens[:, [1, 2, 0]], model)
        if pool == "spectrum":  # of Welch's method: one-sided density, boxcar of a second, in units of 100 uV
            power = (
                welch(x[:, [1, 2, 0]].reshape(2, 3, 400).numpy(), 200, "boxcar", 200, 0, detrend=False)[1] * 200**2 / 2
            )
            expected = np.concatenate((expected, np.log(power[..., 1:46] + 1e-4).reshape(2, -1)), 1)
        found = model.forward_features(x, CHANNELS)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
        assert found.shape == (2, model.head.in_features) and model.head.in_features == expected.shape[1]
        torch.testing.assert_close(model(x, CHANNELS), model.head(found), rtol=0, atol=0)
        torch.testing.assert_close(model(model.probe_features(x, CHANNELS)), model(x, CHANNELS), rtol=0, atol=0)


def test_attention_begins_as_the_mean() -> None:
    model, mean, x = tiny(pool="attention"), tiny(), eeg(1, (2, 3, 2, 200))
    assert not create_model(TINY, pool="attention").head.query.any()
    model.head.query.data.zero_()
    torch.testing.assert_close(model.forward_features(x, CHANNELS), mean.forward_features(x, CHANNELS))


def test_a_head_for_places_refuses_other_electrodes_and_seconds() -> None:
    model = tiny(pool="flatten", electrodes=3, seconds=2)
    model.head.rows.copy_(torch.tensor([5, 9, 2]))
    for channels in ([0, 5, 9, 3], [0, 5, 9], [0, 5, 9, 2, 3]):
        with pytest.raises(InputError, match=r"has weights for AF7, AFZ, FPZ: give exactly these"):
            model(eeg(1, (2, len(channels) - 1, 2, 200)), channels)
    with pytest.raises(InputError, match=r"windows of 3 s, but .* has weights for 2 s"):
        model(eeg(1, (2, 3, 3, 200)), CHANNELS)


@pytest.mark.parametrize("scale", [0.001, 0.5])
def test_the_head_starts_at_init_scale_times_the_usual_weights(scale: float) -> None:
    head = create_model(TINY, num_classes=100, init_scale=scale).head
    assert head.weight.std().item() == pytest.approx(0.02 * scale, rel=5 / np.sqrt(2 * head.weight.numel()))
    assert torch.count_nonzero(head.bias) == 0
    default = create_model(TINY, num_classes=100).head.weight.std().item()
    assert default == pytest.approx(0.02 * 0.001, rel=0.03)


def test_the_order_of_electrodes_does_not_matter_as_long_as_their_rows_go_along() -> None:
    model, x, order = tiny(num_classes=3).double(), eeg(2, (2, 4, 3, 200)).double(), [2, 0, 3, 1]
    rows = torch.tensor([5, 9, 1, 100])
    with torch.no_grad():
        straight = model(x, [0, *rows.tolist()])
        torch.testing.assert_close(model(x[:, order], [0, *rows[order].tolist()]), straight, rtol=0, atol=1e-11)
        assert (model(x[:, order], [0, *rows.tolist()]) - straight).abs().max() > 1e-4


@pytest.mark.parametrize("of_features", [False, True])
def test_under_autocast_outputs_are_not_rounded_to_half_precision(of_features: bool) -> None:
    model, x = tiny(num_classes=1), eeg(1, (2, 3, 2, 200))
    with torch.no_grad():
        model.head.bias.fill_(50.1)  # years; bfloat16 has 50.0 and 50.25
        with torch.autocast("cpu", torch.bfloat16):
            features = model.forward_features(x, CHANNELS)
            found = model(features if of_features else x, CHANNELS)
        expected = features.double() @ model.head.weight.double().t() + model.head.bias.double()
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-4


# Loading stage 2


def loaded(
    model: NeuralTransformer, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> dict[str, list[str]]:
    """Load and check that every key of file and model is accounted for, in one line of the log."""
    with caplog.at_level(logging.INFO):
        keys = load_pretrained(model, weights)
    assert sorted([*keys["loaded"], *keys["missing"]]) == sorted(model.state_dict())
    assert sum(len(keys[what]) for what in ("loaded", "unexpected", "dropped")) == len(weights)
    text = caplog.messages[-1]
    assert f"{len(keys['loaded'])} tensors loaded" in text
    assert all(key in text for what in ("missing", "unexpected", "dropped") for key in keys[what])
    return keys


def test_a_stage_2_file_loads_without_its_prefix_and_every_key_is_accounted_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights, model = masked_weights(), create_model(TINY, num_classes=3)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    keys = loaded(model, weights, caplog)
    assert sorted(keys["missing"]) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert sorted(keys["unexpected"]) == ["lm_head.bias", "lm_head.weight", "mask_token", "norm.bias", "norm.weight"]
    assert sorted(keys["dropped"]) == ["lm_head.bias", "lm_head.weight", "projection_head.0.weight"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh[key] if key in keys["missing"] else weights[f"student.{key}"]), key


def test_a_stage_3_file_loads_and_only_a_head_of_another_shape_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    weights = tiny(num_classes=3).state_dict()
    same, other = create_model(TINY, num_classes=3), create_model(TINY, num_classes=5)
    assert len(loaded(same, weights, caplog)["loaded"]) == len(weights)
    assert all(torch.equal(value, weights[key]) for key, value in same.state_dict().items())
    keys = loaded(other, weights, caplog)
    assert sorted(keys["dropped"]) == sorted(keys["missing"]) == ["head.bias", "head.weight"]
    assert torch.equal(other.fc_norm.weight, weights["fc_norm.weight"])


def test_a_head_for_electrodes_is_loaded_only_for_the_same_electrodes(caplog: pytest.LogCaptureFixture) -> None:
    options = {"pool": "electrodes", "electrodes": 3}
    weights, same, other = tiny(**options).state_dict(), create_model(TINY, **options), create_model(TINY, **options)
    weights["head.rows"], other.head.rows[0] = torch.arange(1, 4), 7
    assert not loaded(same, weights, caplog)["missing"]
    assert sorted(loaded(other, weights, caplog)["dropped"]) == ["head.bias", "head.rows", "head.weight"]
    assert other.head.rows[0] == 7
    assert loaded(create_model(TINY), weights, caplog)["dropped"] == ["head.weight", "head.bias"]


def test_a_table_of_129_rows_loads_into_one_of_137_and_the_new_rows_stay_fresh(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights, model = masked_weights(), create_model(TINY, num_electrodes=136)
    fresh = model.pos_embed.detach().clone()
    assert "pos_embed" in loaded(model, weights, caplog)["loaded"]
    assert torch.equal(model.pos_embed[:, :129], weights["student.pos_embed"])
    assert torch.equal(model.pos_embed[:, 129:], fresh[:, 129:])
    assert bool((fresh[:, 129:].std(-1) > 0.01).all())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depth": 5}, "5 transformer blocks"),
        ({"width": 400, "heads": 16}, "cls_token"),
        ({"num_electrodes": 136}, "pos_embed"),
    ],
)
def test_another_architecture_is_refused_and_names_what_differs(options: dict[str, int], named: str) -> None:
    model = create_model(TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=rf"base\.pth is of another .*: .*{re.escape(named)}.*--model") as error:
        load_pretrained(model, masked_weights(**options), where="base.pth")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "half of it was loaded"
