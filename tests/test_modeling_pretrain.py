"""The masked model against golden numbers; masks; what a masked place can and cannot see."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from timm.models import create_model
from torch import Tensor, nn

import golden_recipe
import modeling_pretrain
import modeling_vqnsp  # noqa: F401 (registers its models)
from errors import InputError
from golden_recipe import NOT_CARRIED, adamw, assert_forward, assert_trajectory, eeg, fill
from layers import load_strictly
from modeling_pretrain import MaskedModel, code_loss, random_mask, start_from_encoder
from training import checkpoints

BASE = "labram_base_patch200_1600_8k_vocab"
TINY = "labram_tiny_patch200_1600_8k_vocab"


def tiny(**options: object) -> MaskedModel:
    return fill(create_model(TINY, **{"vocab_size": 50, **options})).double().eval()


def golden_model(golden: dict[str, np.ndarray]) -> MaskedModel:
    return fill(create_model(BASE, vocab_size=int(golden["vocab"])))


def test_a_published_file_loads_and_reports_the_keys_that_nothing_uses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = golden_recipe.published_weights(BASE)
    torch.save({"model": weights, "epoch": 49}, tmp_path / "labram-base.pth")
    model = create_model(BASE)
    state = checkpoints.read_model(tmp_path / "labram-base.pth", stage="pretraining")
    with caplog.at_level(logging.INFO):
        load_strictly(model, state, where="labram-base.pth")
    unused = [key for key in weights if key.startswith(NOT_CARRIED)]
    assert len(unused) >= 4 and all(key in caplog.text for key in unused)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert set(weights) > set(model.state_dict()), "the caller's dict stays as it was"
    with pytest.raises(InputError, match=r"another architecture: .*student\.other"):
        load_strictly(model, state | {"student.other": torch.zeros(1)}, where="labram-base.pth")


def test_a_model_that_starts_from_an_encoder_computes_what_the_encoder_does_without_what_only_one_has() -> None:
    tokenizer = fill(create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16, code_dim=8)).eval()
    for block in tokenizer.encoder.blocks:
        torch.nn.init.zeros_(block.attn.q_bias)
        torch.nn.init.zeros_(block.attn.v_bias)
    model = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=16, init_values=0.0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_from_encoder(model.student, tokenizer.state_dict(), where="vqnsp.pth")
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if "_norm" in name or "mask_token" in name or "lm_head" in name}
    for block in model.student.blocks:
        block.attn.q_norm = block.attn.k_norm = torch.nn.Identity()
    model.student.cls_position_row = "own"
    x, channels = eeg(3, (2, 3, 2, 200)), [0, 5, 9, 2]
    with torch.no_grad():
        assert_forward(model.student(x, channels), tokenizer.encoder(x, channels).numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 100, "heads": 5}, "cls_token"),
        ({"depth": 3}, r"Unexpected.*blocks\.3"),
        ({"depth": 5}, r"Missing.*blocks\.4"),
        ({"num_electrodes": 136}, "pos_embed"),
    ],
)
def test_an_encoder_of_another_size_is_refused(options: dict[str, int], message: str) -> None:
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16, code_dim=8)
    model = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=16, **options)
    with pytest.raises(InputError, match=f"vqnsp.pth, for --init_from_tokenizer: another architecture: .*{message}"):
        start_from_encoder(model.student, tokenizer.state_dict(), where="vqnsp.pth")


@pytest.mark.parametrize("case", ["pretrain_base_train", "pretrain_base_other_montage"])
def test_training_follows_the_golden_trajectory(case: str) -> None:
    golden = golden_recipe.arrays(case)
    channels = golden_recipe.rows(golden)
    model = golden_model(golden).train()
    optimizer = adamw(model, "pretrain_base", golden)
    losses, norms = [], []
    for step, (mask, codes) in enumerate(zip(*map(torch.tensor, (golden["masks"], golden["labels"])), strict=True)):
        logits, logits_sym = model(eeg(golden["eeg_seed"] + step, golden["eeg_shape"]), channels, mask)
        if step == 0:
            assert_forward(logits[:4, :64], golden["logits_first"])
            assert_forward(logits_sym[:4, :64], golden["logits_sym_first"])
        loss = nn.functional.cross_entropy(logits, codes[mask])
        loss_sym = nn.functional.cross_entropy(logits_sym, codes[~mask])
        losses.append([loss.item(), loss_sym.item()])
        norms.append(golden_recipe.step(model, optimizer, loss + loss_sym, clip=float(golden["clip_grad"])))
    assert_trajectory(losses, golden["losses"])
    assert_trajectory(norms, golden["grad_norm"])


def test_cls_gets_the_position_of_the_inputs_first_electrode_and_golden_numbers_tell() -> None:
    golden = golden_recipe.arrays("pretrain_base_other_montage")
    assert golden["channels"][0] != "FP1"
    model, x = golden_model(golden), eeg(golden["eeg_seed"], golden["eeg_shape"])
    mask = torch.tensor(golden["masks"][0])
    with torch.no_grad():
        model.student.pos_embed[:, 0] = 1e3  # row 0 is not used
        assert_forward(model(x, golden_recipe.rows(golden), mask)[0][:4, :64], golden["logits_first"])
        fill(model).student.cls_position_row = "own"
        wrong = model(x, golden_recipe.rows(golden), mask)[0][:4, :64].numpy()
    assert np.abs(wrong - golden["logits_first"]).max() > 1e-3


# The loss


def by_hand(model: MaskedModel, x: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, list[float]]:
    """Loss and accuracies from the logits of each side, which are held as a whole."""
    loss, hits = torch.zeros((), dtype=x.dtype), []
    for logits, places in zip(model(x, list(range(x.shape[1] + 1)), mask), (mask, ~mask), strict=True):
        probability = logits.exp() / logits.exp().sum(1, keepdim=True)
        own = codes[places]
        if len(own):
            loss = loss - probability[torch.arange(len(own)), own].log().mean()
        hits.append(float((logits.argmax(1) == own).double().mean()) if len(own) else 0.0)
    return loss, hits


@pytest.mark.parametrize("held", [130, 2**20])  # logits at a time
@pytest.mark.parametrize(("shape", "ratio"), [((3, 4, 5), 0.5), ((2, 1, 3), 0.3), ((2, 1, 1), 0.5)])
def test_the_loss_and_its_gradient_are_those_of_the_logits_each_side_over_its_own_tokens(
    shape: tuple[int, int, int], ratio: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(modeling_pretrain.LOGITS, "cpu", held)
    model, x = tiny(), eeg(3, (*shape, 200)).double()
    generator = torch.Generator().manual_seed(5)
    mask = random_mask(shape[0], shape[1] * shape[2], ratio=ratio, generator=generator)
    with torch.no_grad():
        likely = torch.cat([logits.argmax(1) for logits in model(x, list(range(shape[1] + 1)), mask)])
    codes = likely[torch.randint(len(likely), mask.shape, generator=generator)]  # so that some are right
    expected, hits = by_hand(model, x, mask, codes)
    (3 * expected).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    found = model(x, list(range(shape[1] + 1)), mask, codes)
    (3 * found.loss).backward()
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert [float(found.accuracy), float(found.accuracy_sym)] == pytest.approx(hits)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12)


def test_the_loss_over_codes_keeps_nothing_that_grows_with_tokens_times_codes() -> None:
    head, n = nn.Linear(8, 1000), 400
    tokens, codes = torch.randn(n, 8, requires_grad=True), torch.arange(n)
    shares = torch.full((n,), 1 / n)
    logits = 4 * n * 1000
    assert golden_recipe.kept_bytes(lambda: code_loss(tokens, head, codes, shares)[0], head) < logits / 20


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_loss_is_that_of_float32_to_its_rounding(kind: torch.dtype) -> None:
    torch.manual_seed(1)
    head, n = nn.Linear(16, 300), 200
    tokens, codes = torch.randn(n, 16, requires_grad=True), torch.randint(300, (n,))
    shares = torch.full((n,), 1 / n)
    expected = nn.functional.cross_entropy(head(tokens), codes)
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


# Masks


@pytest.mark.parametrize("patches", [1, 57, 64])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_every_sample_has_exactly_its_share_masked(patches: int, ratio: float) -> None:
    mask = random_mask(20, patches, ratio=ratio)
    assert mask.dtype == torch.bool and mask.shape == (20, patches)
    assert set(mask.sum(1).tolist()) == {patches - math.floor(patches * (1 - ratio))}


def test_masks_are_uniform_over_places_and_over_whole_masks() -> None:
    mask = random_mask(12_000, 6, generator=torch.Generator().manual_seed(0))
    subsets = (mask.long() * 2 ** torch.arange(6)).sum(1).bincount(minlength=64)
    assert int((subsets > 0).sum()) == 20, "there are 20 ways to choose 3 of 6"
    assert chisquare(subsets[subsets > 0].numpy()).pvalue > 1e-3
    ragged = random_mask(12_000, 5, ratio=0.3, generator=torch.Generator().manual_seed(0))
    assert chisquare(ragged.sum(0).numpy()).pvalue > 1e-3


# What a masked place sees


def test_swapping_patches_among_masked_places_changes_no_logit_and_among_visible_ones_it_does() -> None:
    # Swapped rather than changed, because GroupNorm's statistics run over all patches and would tell a change.
    model, channels = tiny(), [0, 1, 2, 3, 4]
    x = eeg(1, (1, 4, 4, 200)).double()
    mask = random_mask(1, 16, generator=torch.Generator().manual_seed(0))

    def with_swapped(places: Tensor) -> Tensor:
        swapped = x.view(16, 200).clone()
        swapped[places] = swapped[places].roll(1, dims=0)
        return model(swapped.view_as(x), channels, mask)[0]

    with torch.no_grad():
        logits = model(x, channels, mask)[0]
        torch.testing.assert_close(with_swapped(mask[0]), logits, rtol=0, atol=1e-11)
        assert (with_swapped(~mask[0]) - logits).abs().max() > 1e-3


def test_logits_come_in_the_order_of_the_masks_true_entries() -> None:
    model, channels = tiny(), [0, 9, 5, 1]
    x, mask = eeg(1, (2, 3, 3, 200)).double(), random_mask(2, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(x, channels, mask)
        for logits, places in zip(found, (mask, ~mask), strict=True):
            tokens = model.student(x, channels, places)
            expected = [model.lm_head(tokens[b, place]) for b in range(2) for place in range(9) if places[b, place]]
            torch.testing.assert_close(logits, torch.stack(expected))
