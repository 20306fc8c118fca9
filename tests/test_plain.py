"""The straightforward formulation passes the golden files and takes the same 20 steps as the product's engines."""

import importlib
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F

import engine_for_finetuning
import engine_for_pretraining
import engine_for_vqnsp
import golden_recipe
import optim_factory
import utils
from data_helpers import script_args
from eeg_data.labelled import LabelledBatch
from eeg_data.pretraining import Batch
from golden_recipe import adamw, assert_forward, assert_trajectory, eeg, fill
from training.state import TrainingState

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

entrants = importlib.import_module("entrants")
plain = importlib.import_module("plain")

STEPS = 20
LOSSES_AGREE = 1e-4  # relative, in float32
CHANNELS = torch.tensor([0, 5, 60, 17])
SHAPE = (4, 3, 2, 200)
CODES = 48


def channels_of(golden: dict[str, np.ndarray]) -> Tensor:
    return torch.tensor(golden_recipe.rows(golden))


# Golden files


def test_its_tokenizer_gives_the_golden_losses_and_codes() -> None:
    golden = golden_recipe.arrays("vqnsp_base_forward_tuh23x4")
    model = fill(plain.VQNSP()).eval()
    x = eeg(golden["eeg_seed"], golden["eeg_shape"])
    with torch.no_grad():
        model(x, channels_of(golden))
        codes = model.codes(x.unflatten(2, (-1, 200)), channels_of(golden))
    for found, part in zip(model.losses, ("total_loss", "quant_loss", "rec_loss", "rec_angle_loss"), strict=True):
        assert found.item() == pytest.approx(golden[part].item(), rel=1e-4), part
    clear = golden["code_margin"] > 1e-5
    np.testing.assert_array_equal(codes.numpy()[clear], golden["codes"][clear])


def test_its_masked_model_follows_the_golden_training() -> None:
    golden = golden_recipe.arrays("pretrain_base_other_montage")
    model = fill(plain.MaskedModel(vocab_size=int(golden["vocab"])))
    optimizer = adamw(model, "pretrain_base", golden)
    losses, norms = [], []
    for step, (mask, codes) in enumerate(zip(*map(torch.tensor, (golden["masks"], golden["labels"])), strict=True)):
        x = eeg(golden["eeg_seed"] + step, golden["eeg_shape"])
        loss = model.loss(x, channels_of(golden), mask, codes)
        losses.append(loss.item())
        norms.append(golden_recipe.step(model, optimizer, loss, clip=float(golden["clip_grad"])))
    assert_trajectory(losses, golden["losses"].sum(1))
    assert_trajectory(norms, golden["grad_norm"])


def test_its_classifier_gives_the_golden_logits_and_features() -> None:
    golden = golden_recipe.arrays("finetune_base_tuab")
    model = fill(plain.Classifier(num_classes=1)).eval()
    with torch.no_grad():
        x = eeg(golden["eeg_seed"], golden["eeg_shape"])
        assert_forward(model(x, channels_of(golden)), golden["logits"])
        assert_forward(model.embed(x, channels_of(golden)), golden["pooled"])


# Twenty steps


def given(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """EEG, mask and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    mask = torch.rand(SHAPE[0], 6, generator=generator).argsort(1) < 3
    return eeg(step, SHAPE), mask, torch.randint(2, SHAPE[:1], generator=generator)


def tokenizer() -> Any:
    return create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=CODES, quantize_kmeans_init=False)


def product_losses(script: str, model: nn.Module, train: Any, batches: list[Any], folder: Path) -> list[float]:
    """Let an engine take a step with each batch; returns their losses."""
    words = ["--output_dir", folder, "--no_save_ckpt", "--epochs", 1, "--warmup_epochs", 0, "--batch_size", SHAPE[0]]
    args = script_args(importlib.import_module(script), *words, "--device", "cpu", "--total_batch_size", SHAPE[0])
    losses: list[float] = []
    original = optim_factory.Update.__call__

    def recorded(update: Any, loss: Tensor) -> bool:
        losses.append(loss.item())
        return original(update, loss)

    with ExitStack() as stack:
        run = stack.enter_context(utils.setup_run(args))
        ddp = run.distribute(fill(model))
        update = optim_factory.build_update(ddp, args, run, steps_per_epoch=STEPS)
        state = TrainingState(ddp, update, run, args, stage="tokenizer")
        with patch.object(optim_factory.Update, "__call__", recorded):
            train(state, entrants.Batches(batches))
    return losses


def plain_losses(model: nn.Module, script: str, loss_of: Any) -> list[float]:
    """Take the same steps in a plain loop with the same learning rate, decay and clipping."""
    args = script_args(importlib.import_module(script), "--device", "cpu")
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        table = name.split(".")[-1] in ("cls_token", "pos_embed", "time_embed")
        if parameter.requires_grad:
            decays[parameter.ndim > 1 and not table].append(parameter)
    groups = [{"params": decays[True], "weight_decay": args.weight_decay}, {"params": decays[False], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=tuple(args.opt_betas), eps=args.opt_eps)
    losses = []
    for step in range(STEPS):
        share = 0.5 * (1 + math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = args.min_lr + (args.lr - args.min_lr) * share
        loss = loss_of(step)
        losses.append(loss.item())
        golden_recipe.step(model, optimizer, loss, clip=args.clip_grad or math.inf)
    return losses


def agree(product: list[float], straightforward: list[float]) -> None:
    assert len(product) == len(straightforward) == STEPS
    np.testing.assert_allclose(product, straightforward, rtol=LOSSES_AGREE)
    assert abs(product[-1] - product[0]) > 10 * LOSSES_AGREE * product[0], "nothing was learnt: this proves little"


def test_twenty_steps_of_the_tokenizer_have_its_losses(tmp_path: Path) -> None:
    batches = [Batch(given(step)[0], CHANNELS, torch.empty(0, dtype=torch.bool)) for step in range(STEPS)]
    train = lambda state, loader: engine_for_vqnsp.train_one_epoch(state, loader, 0)  # noqa: E731
    product = product_losses("run_vqnsp_training", tokenizer(), train, batches, tmp_path)
    model = fill(plain.VQNSP(depths=(4, 1), n_code=CODES)).train()
    agree(product, plain_losses(model, "run_vqnsp_training", lambda step: model(given(step)[0].flatten(2), CHANNELS)))


def test_twenty_steps_of_pretraining_have_its_losses(tmp_path: Path) -> None:
    batches = [Batch(given(step)[0], CHANNELS, given(step)[1]) for step in range(STEPS)]
    codes = fill(tokenizer()).eval().requires_grad_(False)
    train = lambda state, loader: engine_for_pretraining.train_one_epoch(state, loader, codes, 0)  # noqa: E731
    made = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=CODES)
    product = product_losses("run_labram_pretraining", made, train, batches, tmp_path)
    model, vq = (
        fill(plain.MaskedModel(depth=4, vocab_size=CODES)),
        fill(plain.VQNSP(depths=(4, 1), n_code=CODES)).eval(),
    )

    def loss(step: int) -> Tensor:
        x, mask, _ = given(step)
        return model.loss(x, CHANNELS, mask, vq.codes(x, CHANNELS))

    agree(product, plain_losses(model, "run_labram_pretraining", loss))


def test_twenty_steps_of_fine_tuning_have_its_losses(tmp_path: Path) -> None:
    batches = []
    for step in range(STEPS):
        x, _, labels = given(step)
        batches.append(LabelledBatch(x, CHANNELS, labels, torch.arange(len(x))))
    train = lambda state, loader: engine_for_finetuning.train_one_epoch(state, loader, 0, "binary")  # noqa: E731
    product = product_losses("run_class_finetuning", create_model("labram_tiny_patch200_200"), train, batches, tmp_path)
    model = fill(plain.Classifier(depth=4)).train()

    def loss(step: int) -> Tensor:
        x, _, labels = given(step)
        return F.binary_cross_entropy_with_logits(model(x, CHANNELS)[:, 0], labels.float())

    agree(product, plain_losses(model, "run_class_finetuning", loss))
