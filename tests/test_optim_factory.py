"""Parameter groups and schedules against golden numbers, one optimizer step against the same thing by hand."""

import copy
import functools
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

import golden_recipe
import modeling_finetune  # noqa: F401  # registers its models, as the two below
import modeling_pretrain  # noqa: F401
import modeling_vqnsp  # noqa: F401
import optim_factory
from data_helpers import differences, only_line, parse, plain_run, process_group
from errors import InputError, UsageError
from optim_factory import Update, build_update, cosine_schedule, micro_batches, parameter_groups

SCHEDULES = golden_recipe.table("cosine_schedules")


@pytest.mark.parametrize(
    ("table", "model", "options"),
    [
        ("finetune_base_layer_decay_0.65", "labram_base_patch200_200", {"weight_decay": 0.05, "layer_decay": 0.65}),
        ("pretrain_base", "labram_base_patch200_1600_8k_vocab", {"weight_decay": 0.05}),
        ("vqnsp_base", "vqnsp_encoder_base_decoder_3x200x12", {"weight_decay": 1e-4}),
    ],
)
def test_parameter_groups_are_those_of_the_released_code(table: str, model: str, options: dict[str, float]) -> None:
    expected = golden_recipe.table("parameter_groups")[table]
    module = create_model(model)
    groups = parameter_groups(module, **options)
    found = {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}
    assert found == {name: entry for name, entry in expected.items() if not name.startswith(golden_recipe.NOT_CARRIED)}
    by_identity = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in groups:
        assert [by_identity[id(parameter)] for parameter in group["params"]] == group["names"]
    assert sum(len(group["params"]) for group in groups) == len(found)


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules_are_those_of_the_released_code(case: str) -> None:
    golden = SCHEDULES[case]
    values = cosine_schedule(*golden["args"], **golden["kwargs"])
    assert values.tolist() == golden["values"]


def test_a_run_shorter_than_its_warm_up_still_has_a_value_for_every_step() -> None:
    values = cosine_schedule(1.0, 0.1, 2, 10, warmup_epochs=5)
    np.testing.assert_allclose(values, np.arange(20) / 19, rtol=1e-12)


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


def make(folder: Path, *, kind: Any = torch.optim.AdamW, steps: int = 20, lr: float = 0.05, **options: Any) -> Update:
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


def settle(update: Update) -> bool:
    assert update.outcome is not None
    return update.settle(update.outcome)


def weights(update: Update) -> dict[str, Tensor]:
    return copy.deepcopy(update.model.module.state_dict())


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


def test_the_gradient_is_clipped_to_the_norm_and_grad_norm_is_that_before(tmp_path: Path) -> None:
    update = make(tmp_path, kind=torch.optim.SGD, lr=1.0, decay=0.0, decay_values=np.zeros(99), clip_grad=0.5)
    before, (x, y) = weights(update), samples(8)
    model = Small()
    (model(x) - y).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert norm > 0.5
    update(mse(update, x, y))
    assert update.stats["grad_norm"].item() == pytest.approx(norm, rel=1e-12)
    for name, value in weights(update).items():
        torch.testing.assert_close(before[name] - value, gradients[name] * 0.5 / norm, rtol=1e-5, atol=1e-12)


FUSED = functools.partial(torch.optim.AdamW, fused=True)  # the default: the device skips the step
FUSED_SGD = functools.partial(torch.optim.SGD, momentum=0.9, fused=True)


@pytest.mark.parametrize("kind", [FUSED, FUSED_SGD])
def test_a_first_step_that_is_skipped_leaves_nothing_behind(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: torch.full_like(x, math.nan))  # whatever memory held
    update, other = make(tmp_path, kind=kind), make(tmp_path, kind=kind)
    x, y = samples(4)
    update(mse(update, x * math.nan, y))
    for step in range(3):
        update(mse(update, *samples(4, step)))
        other(mse(other, *samples(4, step)))
    assert not differences(weights(update), weights(other))


@pytest.mark.parametrize(
    ("kind", "accumulation", "bad"),
    [(FUSED, 1, math.inf), (FUSED, 2, math.nan), (FUSED_SGD, 2, math.nan), (torch.optim.AdamW, 1, math.nan)],
)
def test_a_step_whose_loss_is_not_finite_changes_nothing(
    tmp_path: Path, kind: Any, accumulation: int, bad: float
) -> None:
    update = make(tmp_path, kind=kind, accumulation=accumulation)
    for step in range(6 * accumulation):
        update(mse(update, *samples(4, step)))
    before = weights(update), copy.deepcopy(update.optimizer.state_dict()["state"])
    for again in (1, 2):
        for micro in range(accumulation):
            x, y = samples(4, 99 + micro)
            update(mse(update, x * bad if micro == 0 else x, y))
        assert not settle(update) and not update.overflowed and update.nonfinite_in_a_row == again
        assert [bool(one) for one in update.outcome.finite] == [False, *[True] * (accumulation - 1)]
    assert update.step == 8
    assert not differences(before, (weights(update), update.optimizer.state_dict()["state"]))
    complete = [update(mse(update, *samples(4, micro))) for micro in range(accumulation)]
    assert complete == [False] * (accumulation - 1) + [True] and settle(update) and update.nonfinite_in_a_row == 0
    assert all(bool(value.isfinite().all()) for value in weights(update).values())


def test_warming_up_ddp_changes_nothing_random_state_included(tmp_path: Path) -> None:
    update = make(tmp_path, accumulation=2)
    update(mse(update, *samples(4)))
    before = weights(update), update.state_dict()
    torch.manual_seed(3)
    with update.warm_up_ddp():
        torch.rand(9)
        assert update(mse(update, *samples(4, 7))) is False
    assert update.outcome is None and update.micro_batch == 1
    assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert not differences(before, (weights(update), update.state_dict()))


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


def test_the_state_of_another_optimizer_is_refused_and_options_are_those_of_the_run_that_continues(
    tmp_path: Path,
) -> None:
    first, second = make(tmp_path), make(tmp_path)
    first(mse(first, *samples(4, 0)))
    for group in second.optimizer.param_groups:
        group.update(betas=(0.5, 0.6), eps=1e-3, lr_scale=0.25)
    second.load_state_dict(first.state_dict())
    for group in second.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr_scale"]) == ((0.5, 0.6), 1e-3, 0.25)
    assert not differences(first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"])
    second.optimizer = torch.optim.SGD(second.optimizer.param_groups, lr=0.1)
    with pytest.raises(InputError, match="it is AdamW, not SGD"):
        second.load_state_dict(first.state_dict())


def built(folder: Path, *words: Any, **options: Any) -> Update:
    defaults = {"batch_size": 64, "epochs": 4, "lr": 1e-3, "min_lr": 1e-5, "warmup_epochs": 1, "weight_decay": 0.05}
    args = parse(words, optim_factory.add_arguments, **defaults)
    model = DistributedDataParallel(Small())
    return build_update(model, args, plain_run(folder), steps_per_epoch=10, **options)


@pytest.mark.parametrize(("options", "factor"), [({"accumulation": 6}, 1), ({"lr_batch": 128, "accumulation": 6}, 3)])
def test_only_the_base_rate_is_scaled_by_the_total_batch(tmp_path: Path, options: dict, factor: float) -> None:
    update = built(tmp_path, **options)
    assert len(update.lr_values) == 40
    assert update.lr_values[9] == update.lr_values.max() == pytest.approx(1e-3 * factor)
    last = 1e-5 + 0.5 * (1e-3 * factor - 1e-5) * (1 + math.cos(math.pi * 29 / 30))
    assert update.lr_values[-1] == pytest.approx(last, rel=1e-9)
    assert update.accumulation == options.get("accumulation", 1)


def test_flags_reach_the_optimizer(tmp_path: Path) -> None:
    update = built(tmp_path, "--opt", "AdamW", "--opt_betas", 0.9, 0.98, "--opt_eps", 1e-6, "--clip_grad", 3)
    assert type(update.optimizer).__name__ == "AdamW" and update.clip_grad == 3
    for entry in update.optimizer.param_groups:
        assert tuple(entry["betas"]) == (0.9, 0.98) and entry["eps"] == 1e-6
    decays = {name: e["weight_decay"] for e in update.optimizer.param_groups for name in e["names"]}
    assert decays == {"first.weight": 0.05, "last.weight": 0.05, "first.bias": 0.0, "last.bias": 0.0}


def test_optimizers_of_timm_take_steps_and_an_unknown_one_is_wrong_usage_that_names_them(tmp_path: Path) -> None:
    update = built(tmp_path, "--opt", "lamb", "--warmup_epochs", 0, "--lr", 0.1)
    before = weights(update)
    assert update(mse(update, *samples(4))) and settle(update)
    assert all(not torch.equal(before[key], value) for key, value in weights(update).items())
    with pytest.raises(UsageError, match=r"--opt adamx.*adamw.*lamb"):
        built(tmp_path, "--opt", "adamx")


def test_gradient_overflows_in_half_precision_lower_the_scale_and_without_end_are_bad_steps(tmp_path: Path) -> None:
    update = make(tmp_path, kind=FUSED, steps=99)
    update.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # overflows after twenty halvings too
    before = weights(update)
    for _ in range(optim_factory.MAX_OVERFLOWS):
        update(mse(update, *samples(4)) * 1e304)
        assert not settle(update) and update.overflowed and update.nonfinite_in_a_row == 0
    update(mse(update, *samples(4)) * 1e304)
    assert not settle(update) and not update.overflowed and update.nonfinite_in_a_row == 1
    assert not differences(before, weights(update))
    assert update.scaler.get_scale() == 2.0 ** (60 - 21)
    update(mse(update, *samples(4)) * math.nan)  # no overflow either
    assert not settle(update) and not update.overflowed and update.nonfinite_in_a_row == 2
    assert not differences(before, weights(update))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--update_freq", 3), 3),
        (("--total_batch_size", 512), 4),
        (("--total_batch_size", 500), ("500", "64 x 2", "128")),
        (("--total_batch_size", 512, "--update_freq", 3), ("512", "4 micro-batches", "says 3")),
    ],
)
def test_the_total_batch_sets_the_micro_batches_or_is_wrong_usage(tmp_path: Path, words: tuple, expected: Any) -> None:
    args = parse(words, lambda parser: optim_factory.add_arguments(parser, accumulation="update_freq"), batch_size=64)
    run = plain_run(tmp_path, processes=2)
    if isinstance(expected, int):
        assert micro_batches(args, run, flag="update_freq") == expected
        return
    with pytest.raises(UsageError) as error:
        micro_batches(args, run, flag="update_freq")
    only_line(error, "--total_batch_size", *expected)
