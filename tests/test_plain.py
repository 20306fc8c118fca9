"""The straightforward formulation takes the same 20 steps as the product's engines, whose models have golden files."""

import importlib
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
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
from golden_recipe import eeg, fill
from training.state import TrainingState

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

entrants = importlib.import_module("entrants")
plain = importlib.import_module("plain")

STEPS = 20
LOSSES_AGREE = 1e-4  # relative, in float32
CHANNELS = torch.tensor([0, 5, 60, 17])
SHAPE = (4, 3, 2, 200)
CODES = 48
STAGES = {
    "tokenizer": "run_vqnsp_training",
    "pretraining": "run_labram_pretraining",
    "finetuning": "run_class_finetuning",
}


def given(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """EEG, mask and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    mask = torch.rand(SHAPE[0], 6, generator=generator).argsort(1) < 3
    return eeg(step, SHAPE), mask, torch.randint(2, SHAPE[:1], generator=generator)


def product(stage: str) -> tuple[nn.Module, Callable[..., Any], list[Any]]:
    """A stage's model, its engine as a function of state and loader, and the batches."""
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=CODES, quantize_kmeans_init=False)
    inputs = [given(step) for step in range(STEPS)]
    if stage == "tokenizer":
        batches: list[Any] = [Batch(x, CHANNELS, torch.empty(0, dtype=torch.bool)) for x, _, _ in inputs]
        return tokenizer, engine_for_vqnsp.train_one_epoch, batches
    if stage == "pretraining":
        train = partial(engine_for_pretraining.train_one_epoch, tokenizer=fill(tokenizer).eval().requires_grad_(False))
        model = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=CODES)
        return model, train, [Batch(x, CHANNELS, mask) for x, mask, _ in inputs]
    train = partial(engine_for_finetuning.train_one_epoch, tasks=[engine_for_finetuning.Task("binary")])
    batches = [LabelledBatch(x, CHANNELS, labels, torch.arange(len(x))) for x, _, labels in inputs]
    return create_model("labram_tiny_patch200_200"), train, batches


def straightforward(stage: str) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The same of `plain.py`: the model, and its loss of EEG, mask and labels."""
    tokenizer = fill(plain.VQNSP(depths=(4, 1), n_code=CODES))
    if stage == "tokenizer":
        return tokenizer.train(), lambda x, mask, labels: tokenizer(x.flatten(2), CHANNELS)
    if stage == "pretraining":
        model, codes = fill(plain.MaskedModel(depth=4, vocab_size=CODES)), tokenizer.eval().codes
        return model, lambda x, mask, labels: model.loss(x, CHANNELS, mask, codes(x, CHANNELS))
    model, bce = fill(plain.Classifier(depth=4)).train(), F.binary_cross_entropy_with_logits
    return model, lambda x, mask, labels: bce(model(x, CHANNELS)[:, 0], labels.float())


def product_losses(stage: str, folder: Path) -> list[float]:
    """Let an engine take a step with each batch; returns their losses."""
    words = ["--output_dir", folder, "--no_save_ckpt", "--epochs", 1, "--warmup_epochs", 0, "--batch_size", SHAPE[0]]
    words += ["--device", "cpu", "--total_batch_size", SHAPE[0]]
    args = script_args(importlib.import_module(STAGES[stage]), *words)
    model, train, batches = product(stage)
    losses: list[float] = []
    original = optim_factory.Update.__call__

    def recorded(update: Any, loss: Tensor) -> bool:
        losses.append(loss.item())
        return original(update, loss)

    with ExitStack() as stack:
        run = stack.enter_context(utils.setup_run(args))
        ddp = run.distribute(fill(model))
        update = optim_factory.build_update(ddp, args, run, steps_per_epoch=STEPS)
        state = TrainingState(ddp, update, run, args, stage=stage)
        with patch.object(optim_factory.Update, "__call__", recorded):
            train(state, entrants.Batches(batches), epoch=0)
    return losses


def plain_losses(stage: str) -> list[float]:
    """Take the same steps in a plain loop with the same learning rate, decay and clipping."""
    args = script_args(importlib.import_module(STAGES[stage]), "--device", "cpu")
    model, loss_of = straightforward(stage)
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
        loss = loss_of(*given(step))
        losses.append(loss.item())
        golden_recipe.step(model, optimizer, loss, clip=args.clip_grad or math.inf)
    return losses


@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_have_the_losses_of_the_products_engine(stage: str, tmp_path: Path) -> None:
    found, expected = plain_losses(stage), product_losses(stage, tmp_path)
    assert len(found) == STEPS
    np.testing.assert_allclose(found, expected, rtol=LOSSES_AGREE)
    assert abs(found[-1] - found[0]) > 10 * LOSSES_AGREE * found[0], "nothing was learnt: this proves little"
