"""Stage 1: train the neural tokenizer on EEG recordings. Paper, section 2.2."""

import argparse
import functools
import logging
from pathlib import Path

from timm.models import create_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import modeling_vqnsp
import optim_factory
import utils
from eeg_data import pretraining as eeg_data
from engine_for_vqnsp import evaluate, initialize_codebook, train_one_epoch
from errors import ArgumentParser, InputError, run_script
from norm_ema_quantizer import CodebookRevival
from training import checkpoints
from training.batch_size import settle_batch_size
from training.state import TrainingState

logger = logging.getLogger(__name__)

PAPER_BATCH = 1024
LR_BATCH = 128  # batch that --lr is meant for: the released code scales it by the total batch over this


def get_args() -> argparse.Namespace:
    """Return the flags, with the defaults of stage 1."""
    parser = ArgumentParser(description=__doc__)
    model = parser.add_argument_group("model")
    utils.add_size(model, "model", modeling_vqnsp.SIZES, "vqnsp_encoder_base_decoder_3x200x12")
    model.add_argument("--codebook_n_emd", type=int, default=8192, help="codes")
    model.add_argument("--codebook_emd_dim", type=int, default=64, help="width of a code")
    model.add_argument("--ema_decay", type=float, default=0.99, help="of the codebook's moving average")
    utils.add_switch(model, "quantize_kmeans_init", default=True, help="start the codebook by k-means")
    utils.add_switch(model, "revive_codes", default=True, help="re-seed codes that have long been unused")
    words = "distance between angles, as in the paper, or between points on the unit circle"
    model.add_argument("--phase_loss", choices=[*modeling_vqnsp.PHASE_LOSSES], default="angle", help=words)
    model.add_argument("--input_size", type=int, default=1600, help="nominal window in samples; any of 1-16 s fits")
    eeg_data.add_pretraining_arguments(parser, window_stride=200)
    optim_factory.add_arguments(parser)
    utils.add_arguments(parser)
    parser.add_argument("--eval", action="store_true", help="evaluate a checkpoint on --val_data and stop")
    parser.add_argument("--disable_eval", action="store_true", help="no evaluation during training")
    parser.add_argument("--calculate_codebook_usage", action="store_true", help="as --eval, and on --train_data too")
    parser.set_defaults(
        output_dir=Path("checkpoints/vqnsp"),
        batch_size=128,
        epochs=100,
        save_ckpt_freq=20,
        lr=5e-5,
        min_lr=1e-5,
        warmup_epochs=10,
        weight_decay=1e-4,
        opt_betas=(0.9, 0.99),
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Train, or with --eval evaluate, a tokenizer."""
    with utils.setup_run(args) as run:
        model = create_model(
            args.model,
            n_code=args.codebook_n_emd,
            code_dim=args.codebook_emd_dim,
            EEG_size=args.input_size,
            decay=args.ema_decay,
            quantize_kmeans_init=args.quantize_kmeans_init,
            phase_loss=args.phase_loss,
            num_electrodes=args.num_electrodes,
        )
        model = run.distribute(model)
        settle_batch_size(args, run, model, functools.partial(probe, model), paper_batch=PAPER_BATCH)
        if args.eval or args.calculate_codebook_usage:
            report_evaluation(args, run, model.module)
            return
        accumulation = optim_factory.micro_batches(args, run)
        loaders = eeg_data.build_pretraining_loaders(args, run, accumulation=accumulation)
        steps = loaders.steps_per_epoch
        batches = {"accumulation": accumulation, "lr_batch": LR_BATCH, "paper_batch": PAPER_BATCH}
        update = optim_factory.build_update(model, args, run, steps_per_epoch=steps, **batches)
        revival = CodebookRevival(model.module.quantize, total_steps=args.epochs * steps, seed=args.seed)
        extras = {"revival": revival}
        state = TrainingState(model, update, run, args, stage="tokenizer", extras=extras, inputs=loaders.summary())
        first = state.resume()
        initialize_codebook(model.module, loaders.train, run, epoch=first, accumulation=accumulation)
        with run.interruption.listening():
            for epoch in range(first, args.epochs):
                stats = train_one_epoch(state, loaders.train, epoch, revival=revival if args.revive_codes else None)
                if loaders.val is not None and not args.disable_eval:
                    stats |= evaluate(model.module, loaders.val, run)
                state.finish_epoch(epoch, {**stats, "train_revived": revival.state_dict()["revived"]})


def probe(model: DistributedDataParallel, eeg: Tensor, channels: Tensor) -> Tensor:
    """Compute the loss of windows that the codebook must neither start from nor follow."""
    model.module.quantize.eval()
    return model(eeg.flatten(2), channels)[0]


def report_evaluation(args: argparse.Namespace, run: utils.Run, model: modeling_vqnsp.VQNSP) -> None:
    """Log losses and codebook use of a checkpoint on the validation data and, if asked, on the training data."""
    names = ("val_data", "train_data") if args.calculate_codebook_usage else ("val_data",)
    sets = {name: eeg_data.build_evaluation_loader(f"--{name}", args, run) for name in names}
    loaders = {name: loader for name, loader in sets.items() if loader is not None}
    if not loaders:
        raise InputError("--eval has nothing to evaluate on: give --val_data PATH")
    checkpoints.load_for_evaluation(model, args, run, stage="tokenizer")
    for name, data in loaders.items():
        stats = evaluate(model, data, run)
        logger.info("%s: %s", name, ", ".join(f"{key} {value:.5g}" for key, value in stats.items()))


if __name__ == "__main__":
    run_script(main, get_args())
