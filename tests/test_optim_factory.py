"""Parameter groups and schedules against golden numbers, one optimizer step against the same thing by hand."""

import copy
import io
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import create_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import modeling_finetune  # noqa: F401  # registers its models, as the two below
import modeling_pretrain  # noqa: F401
import modeling_vqnsp  # noqa: F401
import optim_factory
from data_helpers import assert_equal, only_line, parse, plain_run, process_group
from errors import InputError, UsageError
from optim_factory import Update, build_update, cosine_schedule, layer_scale, micro_batches, parameter_groups

GOLDEN = Path(__file__).parent / "golden"
SCHEDULES = json.loads((GOLDEN / "cosine_schedules.json").read_text())
UNUSED = ("student.lm_head.", "projection_head.")  # in the published files only


# Parameter groups


@pytest.mark.parametrize(
    ("table", "model", "options"),
    [
        ("finetune_base_layer_decay_0.65", "labram_base_patch200_200", {"weight_decay": 0.05, "layer_decay": 0.65}),
        ("pretrain_base", "labram_base_patch200_1600_8k_vocab", {"weight_decay": 0.05}),
        ("vqnsp_base", "vqnsp_encoder_base_decoder_3x200x12", {"weight_decay": 1e-4}),
    ],
)
def test_parameter_groups_are_those_of_the_released_code(table: str, model: str, options: dict[str, float]) -> None:
    expected = json.loads((GOLDEN / "parameter_groups.json").read_text())[table]
    module = create_model(model)
    groups = parameter_groups(module, **options)
    found = {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}
    assert found == {name: entry for name, entry in expected.items() if not name.startswith(UNUSED)}
    by_identity = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in groups:
        assert [by_identity[id(parameter)] for parameter in group["params"]] == group["names"]
    assert sum(len(group["params"]) for group in groups) == len(found)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("cls_token", 0),
        ("mask_token", 0),
        ("pos_embed", 0),
        ("patch_embed.conv2.weight", 0),
        ("blocks.0.attn.qkv.weight", 1),
        ("blocks.3.gamma_1", 4),
        ("blocks.11.mlp.fc2.bias", 12),
        ("time_embed", 13),
        ("fc_norm.weight", 13),
        ("norm.bias", 13),
        ("head.weight", 13),
    ],
)
def test_layer_decay_follows_the_layers(name: str, layer: int) -> None:
    assert layer_scale(name, 12, 0.65) == pytest.approx(0.65 ** (13 - layer), rel=1e-12)


def test_frozen_tensors_are_in_no_group() -> None:
    model = create_model("labram_tiny_patch200_200")
    model.cls_token.requires_grad_(False)
    names = {name for group in parameter_groups(model, weight_decay=0.1) for name in group["names"]}
    assert names == {name for name, _ in model.named_parameters()} - {"cls_token"}


# Schedules


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules_are_those_of_the_released_code(case: str) -> None:
    golden = SCHEDULES[case]
    values = cosine_schedule(*golden["args"], **golden["kwargs"])
    assert values.tolist() == golden["values"]


def test_warm_up_is_a_line_from_zero_to_the_base_both_included() -> None:
    values = cosine_schedule(3e-4, 1e-5, 10, 20, warmup_epochs=2)
    assert len(values) == 200 and values[0] == 0 and values[39] == 3e-4
    np.testing.assert_allclose(values[:40], [3e-4 * i / 39 for i in range(40)], rtol=1e-12)
    assert values[40] == 3e-4  # the cosine starts at the top


def test_after_warm_up_half_a_cosine_passes_the_middle_half_way_and_stops_one_step_short_of_the_end() -> None:
    values = cosine_schedule(1.0, 0.2, 12, 10, warmup_epochs=2)
    assert values[20] == 1.0 and values[70] == pytest.approx(0.6, rel=1e-12)
    assert values[-1] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 99 / 100)), rel=1e-12)
    assert (np.diff(values[20:]) < 0).all()


def test_warm_up_steps_take_the_place_of_warm_up_epochs() -> None:
    values = cosine_schedule(1.0, 0.0, 10, 10, warmup_epochs=3, warmup_steps=7)
    assert values.tolist() == cosine_schedule(1.0, 0.0, 10, 10, warmup_steps=7).tolist()
    assert values[6] == 1.0 and values[5] == pytest.approx(5 / 6)
    for unset in (-1, 0):
        assert cosine_schedule(1.0, 0.0, 10, 10, warmup_epochs=3, warmup_steps=unset)[29] == 1.0


@pytest.mark.parametrize("warmup", [{"warmup_epochs": 5}, {"warmup_steps": 50}, {"warmup_epochs": 2}])
def test_a_run_shorter_than_its_warm_up_still_has_a_value_for_every_step(warmup: dict[str, int]) -> None:
    values = cosine_schedule(1.0, 0.1, 2, 10, **warmup)
    np.testing.assert_allclose(values, np.arange(20) / 19, rtol=1e-12)


# One step


class Small(nn.Module):
    """Two layers and a bias, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with process_group():
        yield


def samples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(n, 6, generator=generator).double(), torch.randn(n, 1, generator=generator).double()


def make(folder: Path, *, kind: type = torch.optim.AdamW, steps: int = 20, lr: float = 0.05, **options: Any) -> Update:
    model = DistributedDataParallel(Small())
    groups = parameter_groups(model.module, weight_decay=options.pop("decay", 0.1))
    optimizer = kind(groups, lr=lr)
    return Update(
        model,
        optimizer,
        plain_run(folder),
        lr=options.pop("lr_values", np.full(steps, lr)),
        weight_decay=options.pop("decay_values", np.full(steps, 0.1)),
        steps_per_epoch=5,
        **options,
    )


def mse(update: Update, x: Tensor, y: Tensor) -> Tensor:
    with update.forward():
        return (update.model(x) - y).square().mean()


def weights(update: Update) -> dict[str, Tensor]:
    return copy.deepcopy(update.model.module.state_dict())


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_give_what_one_batch_of_all_gives(tmp_path: Path, accumulation: int) -> None:
    whole, parts = make(tmp_path), make(tmp_path, accumulation=accumulation)
    for step in range(5):
        x, y = samples(8, step)
        assert whole(mse(whole, x, y))
        pieces = zip(x.chunk(accumulation), y.chunk(accumulation), strict=True)
        assert [parts(mse(parts, *piece)) for piece in pieces] == [False] * (accumulation - 1) + [True]
        assert parts.stats["grad_norm"].item() == pytest.approx(whole.stats["grad_norm"].item(), rel=1e-12)
    assert whole.step == parts.step == 5
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=1e-12)


def test_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    lr = np.linspace(0.01, 0.1, 6)
    update = make(tmp_path, lr_values=lr, steps=6)
    model = Small()
    biases = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    plain = torch.optim.AdamW([{"params": biases, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}])
    for step in range(6):
        x, y = samples(8, step)
        update(mse(update, x, y))
        for entry in plain.param_groups:
            entry["lr"] = lr[step]
        plain.zero_grad()
        (model(x) - y).square().mean().backward()
        plain.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights(update)[name], value, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("clip", "share"), [(0.5, None), (1e9, 1.0), (None, 1.0), (0.0, 1.0)])
def test_the_gradient_is_clipped_to_the_norm_and_grad_norm_is_that_before(
    tmp_path: Path, clip: float | None, share: float | None
) -> None:
    update = make(tmp_path, kind=torch.optim.SGD, lr=1.0, decay=0.0, decay_values=np.zeros(99), clip_grad=clip)
    before, (x, y) = weights(update), samples(8)
    model = Small()
    (model(x) - y).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert norm > 0.5
    update(mse(update, x, y))
    assert update.stats["grad_norm"].item() == pytest.approx(norm, rel=1e-12)
    scale = share if share is not None else 0.5 / norm
    for name, value in weights(update).items():
        torch.testing.assert_close(before[name] - value, gradients[name] * scale, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_whose_loss_is_not_finite_changes_nothing(tmp_path: Path, accumulation: int, bad: float) -> None:
    update = make(tmp_path, accumulation=accumulation)
    for step in range(6 * accumulation):
        update(mse(update, *samples(4, step)))
    before = weights(update), copy.deepcopy(update.optimizer.state_dict()["state"])
    for again in (1, 2):
        for micro in range(accumulation):
            x, y = samples(4, 99 + micro)
            assert update(mse(update, x * bad if micro == 0 else x, y)) is False
        assert update.skipped and not update.overflowed and update.nonfinite_in_a_row == again
        assert [bool(one) for one in update.finite] == [False, *[True] * (accumulation - 1)]
    assert update.step == 8
    assert_equal(before, (weights(update), update.optimizer.state_dict()["state"]))
    taken = [update(mse(update, *samples(4, micro))) for micro in range(accumulation)]
    assert taken[-1] and not update.skipped and update.nonfinite_in_a_row == 0
    assert all(bool(value.isfinite().all()) for value in weights(update).values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_infinite_loss_skips_the_step_even_where_its_gradient_is_finite(tmp_path: Path, accumulation: int) -> None:
    update = make(tmp_path, accumulation=accumulation)
    before = weights(update)
    for micro in range(accumulation):
        update(mse(update, *samples(4, micro)) + (math.inf if micro == 0 else 0))
    assert update.skipped
    assert_equal(before, weights(update))


def test_a_rehearsal_changes_nothing_random_numbers_included(tmp_path: Path) -> None:
    update = make(tmp_path, accumulation=2)
    update(mse(update, *samples(4)))
    before = weights(update), update.state_dict()
    torch.manual_seed(3)
    with update.warm_up_ddp():
        torch.rand(9)
        assert update(mse(update, *samples(4, 7))) is False
    assert update.skipped and update.micro_batch == 1
    assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert_equal(before, (weights(update), update.state_dict()))


def test_the_schedules_are_applied_at_each_step_and_scaled_by_each_groups_lr_scale(tmp_path: Path) -> None:
    lr, decay = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.3])
    update = make(tmp_path, lr_values=lr, decay_values=decay)
    update.optimizer.param_groups[0]["lr_scale"] = 0.25
    for step in (0, 1, 2, 2):  # past the end the last value stays
        assert update.lr == lr[step]
        update(mse(update, *samples(4, step)))
        rates = [entry["lr"] for entry in update.optimizer.param_groups]
        assert rates == [lr[step] * 0.25, lr[step]]
        assert update.stats["lr"] == lr[step] and update.stats["min_lr"] == lr[step] * 0.25
        assert update.stats["weight_decay"] == decay[step]


def test_weight_decay_changes_only_where_there_is_any(tmp_path: Path) -> None:
    update = make(tmp_path, decay_values=np.linspace(0.1, 0.7, 20))
    for step in range(20):
        update(mse(update, *samples(4, step)))
    decays = {name: e["weight_decay"] for e in update.optimizer.param_groups for name in e["names"]}
    assert decays == {"first.weight": 0.7, "last.weight": 0.7, "first.bias": 0.0, "last.bias": 0.0}


def test_a_state_dict_through_a_file_continues_to_the_last_bit(tmp_path: Path) -> None:
    lr = np.linspace(0.01, 0.1, 8)

    def train(update: Update, steps: range) -> None:
        for step in steps:
            update(mse(update, *samples(4, step)))

    straight = make(tmp_path, lr_values=lr)
    train(straight, range(8))
    first = make(tmp_path, lr_values=lr)
    train(first, range(5))
    file = io.BytesIO()
    torch.save({"model": first.model.module.state_dict(), "update": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = make(tmp_path, lr_values=lr)
    second.model.module.load_state_dict(state["model"])
    second.load_state_dict(state["update"])
    assert second.step == 5 and second.lr == lr[5]
    train(second, range(5, 8))
    assert_equal(weights(straight), weights(second))
    assert_equal(straight.state_dict(), second.state_dict())


def test_options_of_the_optimizer_are_those_of_the_run_that_continues(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    first(mse(first, *samples(4, 0)))
    for group in second.optimizer.param_groups:
        group.update(betas=(0.5, 0.6), eps=1e-3, lr_scale=0.25)
    second.load_state_dict(first.state_dict())
    for group in second.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr_scale"]) == ((0.5, 0.6), 1e-3, 0.25)
    assert_equal(first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"])


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    update, other = make(tmp_path), make(tmp_path)
    other.optimizer = torch.optim.SGD(other.optimizer.param_groups, lr=0.1)
    with pytest.raises(InputError) as error:
        other.load_state_dict(update.state_dict())
    only_line(error, "optimizer does not fit this run (it is AdamW, not SGD)")


def test_the_state_of_other_parameter_groups_is_refused(tmp_path: Path) -> None:
    update, other = make(tmp_path), make(tmp_path)
    other.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 1.0, "decays": False})
    with pytest.raises(InputError) as error:
        other.load_state_dict(update.state_dict())
    only_line(error, "optimizer does not fit this run (it has 2 parameter groups, not 3)", "--no_auto_resume")


# From flags


def built(folder: Path, *words: Any, **options: Any) -> Update:
    defaults = {"batch_size": 64, "epochs": 4, "lr": 1e-3, "min_lr": 1e-5, "warmup_epochs": 1, "weight_decay": 0.05}
    args = parse(words, optim_factory.add_arguments, **defaults)
    model = DistributedDataParallel(Small())
    return build_update(model, args, plain_run(folder), steps_per_epoch=10, **options)


@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, 1), ({"lr_batch": 128}, 0.5), ({"lr_batch": 128, "accumulation": 6}, 3), ({"accumulation": 6}, 1)],
)
def test_only_the_base_rate_is_scaled_by_the_total_batch(tmp_path: Path, options: dict, factor: float) -> None:
    update = built(tmp_path, **options)
    assert len(update.lr_values) == 40
    assert update.lr_values[9] == update.lr_values.max() == pytest.approx(1e-3 * factor)
    last = 1e-5 + 0.5 * (1e-3 * factor - 1e-5) * (1 + math.cos(math.pi * 29 / 30))
    assert update.lr_values[-1] == pytest.approx(last, rel=1e-9)
    assert update.accumulation == options.get("accumulation", 1)


def test_all_processes_count_in_the_total_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    args = parse([], optim_factory.add_arguments, batch_size=128, epochs=100, lr=5e-5, min_lr=1e-5, warmup_epochs=10)
    args.weight_decay = 1e-4
    run = plain_run(tmp_path, processes=8)
    update = build_update(DistributedDataParallel(Small()), args, run, steps_per_epoch=3, lr_batch=128)
    assert update.lr_values.max() == pytest.approx(4e-4)  # the paper's batch of 1024
    assert "Total batch 1024 = 128 x 8 process(es) x 1 micro-batch(es)" in caplog.text


def test_weight_decay_is_constant_without_an_end_and_half_a_cosine_with_one(tmp_path: Path) -> None:
    assert set(built(tmp_path).weight_decay_values) == {0.05}
    values = built(tmp_path, "--weight_decay_end", 0.25).weight_decay_values
    assert len(values) == 40 and values[0] == pytest.approx(0.05) and values[20] == pytest.approx(0.15)
    assert values[39] == pytest.approx(0.25 - 0.1 * (1 + math.cos(math.pi * 39 / 40)))


def test_weight_decay_end_of_zero_is_an_end(tmp_path: Path) -> None:
    assert built(tmp_path, "--weight_decay_end", 0).weight_decay_values[20] == pytest.approx(0.025)


def test_flags_reach_the_optimizer(tmp_path: Path) -> None:
    update = built(tmp_path, "--opt", "AdamW", "--opt_betas", 0.9, 0.98, "--opt_eps", 1e-6, "--clip_grad", 3)
    assert type(update.optimizer).__name__ == "AdamW" and update.clip_grad == 3
    for entry in update.optimizer.param_groups:
        assert tuple(entry["betas"]) == (0.9, 0.98) and entry["eps"] == 1e-6
    decays = {name: e["weight_decay"] for e in update.optimizer.param_groups for name in e["names"]}
    assert decays == {"first.weight": 0.05, "last.weight": 0.05, "first.bias": 0.0, "last.bias": 0.0}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adadelta"])
def test_optimizers_of_timm_take_steps_that_change_the_weights(tmp_path: Path, name: str) -> None:
    update = built(tmp_path, "--opt", name, "--warmup_epochs", 0, "--lr", 0.1)
    before = weights(update)
    assert update(mse(update, *samples(4)))
    assert all(not torch.equal(before[key], value) for key, value in weights(update).items())


@pytest.mark.parametrize("name", ["adamx", "", "torch.optim.AdamW"])
def test_an_unknown_optimizer_is_wrong_usage_and_names_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as error:
        built(tmp_path, "--opt", name)
    only_line(error, f"--opt {name} is unknown", "adamw", "lamb")


def test_weight_decay_may_start_at_zero_and_rise(tmp_path: Path) -> None:
    update = make(tmp_path, decay=0.0, decay_values=np.linspace(0, 0.2, 20))
    for step in range(3):
        update(mse(update, *samples(4, step)))
    found = {name: group["weight_decay"] for group in update.optimizer.param_groups for name in group["names"]}
    expected = np.linspace(0, 0.2, 20)[2]
    assert found == {name: expected if p.ndim > 1 else 0.0 for name, p in update.model.module.named_parameters()}


def half_precision(update: Update, scale: float = 2.0**16) -> Update:
    """Give the update the gradient scaler of fp16; the arithmetic stays float64."""
    update.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return update


def test_a_gradient_overflow_in_half_precision_skips_the_step_and_lowers_the_scale(tmp_path: Path) -> None:
    update = half_precision(make(tmp_path))
    before = weights(update)
    loss = mse(update, *samples(4)) * 1e304  # finite, but not times the scale
    assert update(loss) is False and update.skipped and update.step == 1
    assert_equal(before, weights(update))
    assert update.scaler.get_scale() == 2.0**15 and update.stats == {}
    assert update(mse(update, *samples(4))) is True and not update.skipped
    assert math.isfinite(float(update.stats["grad_norm"]))


def test_overflows_without_end_are_bad_steps(tmp_path: Path) -> None:
    update = half_precision(make(tmp_path, steps=99), scale=2.0**60)  # overflows after twenty halvings too
    for _ in range(optim_factory.MAX_OVERFLOWS):
        update(mse(update, *samples(4)) * 1e304)
        assert update.overflowed and update.nonfinite_in_a_row == 0
    update(mse(update, *samples(4)) * 1e304)
    assert update.skipped and not update.overflowed and update.nonfinite_in_a_row == 1


def test_a_loss_that_is_not_finite_is_no_overflow_in_half_precision_either(tmp_path: Path) -> None:
    update = half_precision(make(tmp_path))
    before = weights(update)
    update(mse(update, *samples(4)) * math.nan)
    assert update.skipped and not update.overflowed and update.nonfinite_in_a_row == 1
    assert_equal(before, weights(update))


# Batch arithmetic


@pytest.mark.parametrize(
    ("words", "processes", "expected"),
    [((), 1, 1), (("--update_freq", 3), 2, 3), (("--total_batch_size", 512), 2, 4), (("--total_batch_size", 64), 1, 1)],
)
def test_the_total_batch_sets_the_micro_batches(tmp_path: Path, words: tuple, processes: int, expected: int) -> None:
    args = parse(words, lambda parser: optim_factory.add_arguments(parser, accumulation="update_freq"), batch_size=64)
    assert micro_batches(args, plain_run(tmp_path, processes=processes), flag="update_freq") == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--total_batch_size", 500), ("500", "64 x 2", "128")),
        (("--total_batch_size", 0), ("0", "128")),
        (("--total_batch_size", 512, "--gradient_accumulation_steps", 3), ("512", "4 micro-batches", "says 3")),
    ],
)
def test_a_total_batch_that_cannot_be_is_wrong_usage(tmp_path: Path, words: tuple, says: tuple) -> None:
    args = parse(words, optim_factory.add_arguments, batch_size=64)
    with pytest.raises(UsageError) as error:
        micro_batches(args, plain_run(tmp_path, processes=2))
    only_line(error, "--total_batch_size", *says)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "the paper's is 512: --total_batch_size 512 (8 micro-batches) would match"),
        ({"accumulation": 8}, "as in the paper"),
        ({"paper_batch": 100}, "the paper's is 100, which is no multiple of 64"),
    ],
)
def test_the_papers_batch_is_said_beside_the_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict, said: str
) -> None:
    caplog.set_level(logging.INFO)
    built(tmp_path, **options)
    assert said in caplog.text
