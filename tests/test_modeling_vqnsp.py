"""The tokenizer against golden numbers, NumPy's Fourier transform and brute force; loading a trained one."""

import numpy as np
import pytest
import torch
from timm.models import create_model

import golden_recipe
from errors import InputError
from golden_recipe import adamw, assert_forward, assert_trajectory, eeg, fill
from layers import to_patches
from modeling_vqnsp import VQNSP, load_tokenizer, spectrum_targets

BASE = "vqnsp_encoder_base_decoder_3x200x12"
TINY = "vqnsp_encoder_tiny_decoder_1x200x4"
LOG_PARTS = ("quant_loss", "rec_loss", "rec_angle_loss", "total_loss")


def tiny(**options: object) -> VQNSP:
    return fill(create_model(TINY, **{"n_code": 32, "code_dim": 8, **options})).eval()


@pytest.mark.parametrize("case", ["32x8", "tuh23x4"])
def test_forward_pass_gives_the_golden_numbers(case: str) -> None:
    golden = golden_recipe.arrays(f"vqnsp_base_forward_{case}")
    channels = golden_recipe.rows(golden)
    np.testing.assert_array_equal(channels, golden["input_chans"])
    model = fill(create_model(BASE)).eval()
    x = eeg(golden["eeg_seed"], golden["eeg_shape"])
    B, N, samples = x.shape
    with torch.no_grad():
        patches = to_patches(x)
        assert_forward(model.to_code_space(patches, channels)[:, :8], golden["pre_quantizer"])
        quantized, codes, quant_loss = model.encode(patches, channels)
        amplitude, phase = model.decode(quantized, channels)
        loss, log = model(x, channels)
    assert quantized.shape == (B, 64, N, samples // 200) and codes.shape == (B * N * samples // 200,)
    assert amplitude.shape == phase.shape == (B, N * samples // 200, 200)
    clear = golden["code_margin"] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(codes.view(B, -1).numpy()[clear], golden["codes"][clear])
    assert_forward(amplitude[:, :6], golden["rec_amplitude"])
    assert_forward(phase[:, :6], golden["rec_phase"])
    for part in LOG_PARTS:
        assert log[f"val/{part}"].item() == pytest.approx(golden[part].item(), rel=1e-4), part
    assert loss.item() == log["val/total_loss"].item() and quant_loss.item() == log["val/quant_loss"].item()


def test_training_follows_the_golden_trajectory() -> None:
    golden = golden_recipe.arrays("vqnsp_base_train")
    channels = golden_recipe.rows(golden)
    model = fill(create_model(BASE, n_code=int(golden["n_code"]))).train()
    optimizer = adamw(model, "vqnsp_base", golden)
    losses, norms, usage = [], [], []
    for step in range(len(golden["losses"])):
        loss, log = model(eeg(golden["eeg_seed"] + step, golden["eeg_shape"]), channels)
        losses.append([log[f"train/{part}"].item() for part in ("total_loss", *LOG_PARTS[:3])])
        norms.append(golden_recipe.step(model, optimizer, loss))
        usage.append(model.quantize.cluster_size.clone())
    assert_trajectory(losses, golden["losses"])
    assert_trajectory(norms, golden["grad_norm"])
    assert_forward(torch.stack(usage), golden["cluster_size"])
    np.testing.assert_allclose(model.quantize.embedding.weight.numpy(), golden["codebook"], rtol=1e-3, atol=1e-5)


def standardized(x: np.ndarray) -> np.ndarray:
    """z-score of each sample with the unbiased standard deviation."""
    flat = x.reshape(len(x), -1)
    return ((flat - flat.mean(1, keepdims=True)) / flat.std(1, ddof=1, keepdims=True)).reshape(x.shape)


def test_spectrum_targets_are_numpys_fft_standardised_over_the_sample() -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 200)) * [[[[1.0]]], [[[5.0]]], [[[0.01]]]]
    # The two real bins are made positive: the phase of a negative one is +pi or -pi, as the sign of its zero falls.
    x += 0.5 * np.abs(x).max((1, 2, 3), keepdims=True) * (np.arange(200) % 2 == 0)
    amplitude, phase = spectrum_targets(torch.tensor(x))
    spectrum = np.fft.fft(x)
    assert spectrum[..., [0, 100]].real.min() > 0
    for found, expected in ((amplitude, np.abs(spectrum)), (phase, np.angle(spectrum))):
        assert found.shape == (3, 8, 200)
        np.testing.assert_allclose(found.numpy(), standardized(expected).reshape(3, 8, 200), rtol=1e-8, atol=1e-8)


def test_sincos_measures_the_squared_distance_on_the_unit_circle() -> None:
    model, x, channels = tiny(phase_loss="sincos").double(), eeg(1, (2, 3, 400)).double(), [0, 4, 9, 2]
    with torch.no_grad():
        predicted = model.decode(model.encode(to_patches(x), channels)[0], channels)[1].numpy()  # (2, 6, 400)
        loss, log = model(x, channels)
        torch.nn.init.zeros_(model.decode_task_layer_sincos[2].weight)
        torch.nn.init.zeros_(model.decode_task_layer_sincos[2].bias)
        ignorant = model(x, channels)[1]["val/rec_angle_loss"].item()
    phases = np.angle(np.fft.fft(to_patches(x).numpy())).reshape(2, 6, 200)
    distance = np.abs(predicted[..., :200] + 1j * predicted[..., 200:] - np.exp(1j * phases)) ** 2
    assert log["val/rec_angle_loss"].item() == pytest.approx(distance.mean(), rel=1e-9) and distance.std() > 0.1
    assert loss.item() == pytest.approx(sum(log[f"val/{part}"].item() for part in LOG_PARTS[:3]), rel=1e-12)
    assert ignorant == pytest.approx(1, rel=1e-12), "as much as of a z-scored angle"


def test_only_the_angle_loss_punishes_a_phase_that_is_right_but_for_a_whole_turn() -> None:
    time = torch.arange(200) / 200
    just_below, just_above = (
        torch.cos(2 * torch.pi * 10 * time + torch.pi + e).view(1, 1, 1, -1) for e in (-0.01, 0.01)
    )
    for kind, jump in (("angle", True), ("sincos", False)):
        first, second = (spectrum_targets(x, kind)[1].view(-1, 200)[:, 10] for x in (just_below, just_above))
        assert ((first - second).abs().max() > 0.5) == jump


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("kind", ["angle", "sincos"])
def test_a_flat_recording_has_a_finite_loss_and_gradient(value: float, kind: str) -> None:
    model = tiny(phase_loss=kind).train()
    loss, log = model(torch.full((2, 3, 400), value), [0, 1, 2, 3])
    loss.backward()
    assert all(bool(part.isfinite()) for part in [loss, *log.values()])
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert [part for part in spectrum_targets(torch.zeros(1, 2, 2, 200), kind) if torch.count_nonzero(part)] == []


def test_the_smooth_loss_is_quadratic_near_zero_and_linear_beyond_one() -> None:
    model, x, channels = tiny(smooth_l1_loss=True), eeg(1, (2, 3, 400)) * 3, [0, 4, 9, 2]
    with torch.no_grad():
        quantized, _, quant_loss = model.encode(to_patches(x), channels)
        loss, log = model(x, channels)
        predicted = model.decode(quantized, channels)
    losses = {"quant_loss": quant_loss.item()}
    for name, target, prediction in zip(LOG_PARTS[1:3], spectrum_targets(to_patches(x)), predicted, strict=True):
        error = np.abs(target.numpy() - prediction.numpy())
        assert (error < 1).any() and (error > 1).any()
        losses[name] = float(np.where(error < 1, error**2 / 2, error - 0.5).mean())
    losses["total_loss"] = sum(losses.values())
    assert {key: value.item() for key, value in log.items()} == pytest.approx(
        {f"val/{name}": value for name, value in losses.items()}, rel=1e-5
    )
    assert loss.item() == log["val/total_loss"].item()


def test_codes_are_the_nearest_rows_of_the_encoders_outputs_in_electrode_major_order() -> None:
    model = tiny()
    x, channels = eeg(2, (2, 3, 4, 200)), [0, 4, 9, 2]
    with torch.no_grad():
        z = model.to_code_space(x, channels)
        quantized, codes, _ = model.encode(x, channels)
    rows = model.quantize.embedding.weight.numpy()
    u = z.numpy() / np.linalg.norm(z.numpy(), axis=-1, keepdims=True)
    expected = ((u[:, :, None] - rows) ** 2).sum(-1).argmin(-1)
    assert z.shape == (2, 12, 8) and len(np.unique(expected)) > 3
    np.testing.assert_array_equal(codes.view(2, 12).numpy(), expected)
    np.testing.assert_allclose(quantized[1, :, 2, 3].numpy(), rows[expected[1, 2 * 4 + 3]], atol=1e-6)
    tokens = model.get_tokens(x, channels)
    assert tokens["token"].dtype == torch.int64
    np.testing.assert_array_equal(tokens["token"].numpy(), expected)
    np.testing.assert_array_equal(model.get_codebook_indices(x, channels).numpy(), expected)
    np.testing.assert_allclose(tokens["quantize"].numpy(), rows[expected], atol=1e-6)
    assert tokens["input_img"] is x and set(tokens) == {"token", "input_img", "quantize"}


@pytest.mark.parametrize("electrodes", [1, 3])
def test_one_second_windows_train_and_give_one_code_per_electrode(electrodes: int) -> None:
    model = tiny().train()
    x, channels = eeg(4, (2, electrodes, 200)), list(range(electrodes + 1))
    loss, _ = model(x, channels)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    assert model.encoder.patch_embed.conv1.weight.grad.abs().max() > 0
    assert model.eval().get_tokens(to_patches(x), channels)["token"].shape == (2, electrodes)


def test_between_encoder_and_quantiser_nothing_is_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny(), torch.randn(2, 6, 200, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(model.encoder, "forward", lambda x, channels: tokens)
    x = eeg(6, (2, 3, 2, 200))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.to_code_space(x)
        half = model.encode_task_layer(tokens)
    exact = tokens.double()
    for layer in (model.encode_task_layer[0], None, model.encode_task_layer[2]):
        exact = exact @ layer.weight.double().t() + layer.bias.double() if layer is not None else exact.tanh()
    assert (found - exact).abs().max() < 1e-6 < (half - exact).abs().max()


def test_codes_are_not_computed_in_bfloat16_unlike_what_is_learnt() -> None:
    model, x = tiny(), (eeg(6, (2, 3, 2, 200)), [0, 1, 2, 3])
    codes, exact = model.get_codebook_indices(*x), model.to_code_space(*x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.get_codebook_indices(*x), codes)
        assert torch.equal(model.get_tokens(*x)["token"], codes)
        assert not torch.equal(model.to_code_space(*x), exact)
        with torch.no_grad():
            assert torch.equal(model.to_code_space(*x), exact)


# Loading


def test_a_halved_encoder_computes_what_autocast_does_with_a_whole_one() -> None:
    model = tiny()
    x = to_patches(eeg(5, (2, 3, 400))), [0, 1, 2, 3]
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        expected = model.to_code_space(*x)
        model.halve_encoder()
        assert model.encoder.blocks[0].mlp.fc1.weight.dtype == torch.float16
        assert torch.equal(model.to_code_space(*x), expected)


def test_a_loaded_tokenizer_is_frozen_in_evaluation_and_gives_the_same_codes() -> None:
    loaded = load_tokenizer(TINY, tiny().state_dict(), where="vqnsp.pth", codebook_size=32, codebook_dim=8)
    assert not loaded.training and not [p for p in loaded.parameters() if p.requires_grad]
    assert not any(part.training for part in loaded.modules())
    x = eeg(7, (2, 3, 2, 200))
    assert torch.equal(loaded.get_codebook_indices(x, [0, 1, 2, 3]), tiny().get_codebook_indices(x, [0, 1, 2, 3]))
    codebook = loaded.quantize.embedding.weight.clone()
    loaded(x.flatten(2), [0, 1, 2, 3])
    assert torch.equal(loaded.quantize.embedding.weight, codebook)


def test_a_tokenizer_loads_as_the_kind_that_it_is_and_not_as_the_other() -> None:
    weights = tiny(phase_loss="sincos").state_dict()
    assert load_tokenizer(TINY, weights, where="sincos.pth").phase_loss == "sincos"
    with pytest.raises(RuntimeError, match="decode_task_layer_sincos"):
        tiny().load_state_dict(weights)


def test_a_tokenizer_with_a_larger_electrode_table_loads_with_it() -> None:
    wide = tiny(num_electrodes=136).state_dict()
    assert load_tokenizer(TINY, wide, where="wide.pth").encoder.pos_embed.shape == (1, 137, 200)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"codebook_size": 8192}, "size 32, --codebook_size says 8192.*--codebook_size 32"),
        ({"codebook_dim": 64}, "dim 8, --codebook_dim says 64.*--codebook_dim 8"),
    ],
)
def test_another_codebook_is_refused_by_the_flag_that_sets_it(asked: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=f"vqnsp.pth holds a codebook of {message}") as error:
        load_tokenizer(TINY, tiny().state_dict(), where="vqnsp.pth", **asked)
    assert "\n" not in str(error.value)
