"""Stage 2: pre-train the masked model on a tokenizer's codes. Paper, section 2.3."""

import argparse
import functools
from pathlib import Path

import torch
from timm.models import create_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import modeling_pretrain
import modeling_vqnsp
import optim_factory
import utils
from eeg_data import pretraining as eeg_data
from engine_for_pretraining import evaluate, train_one_epoch
from errors import ArgumentParser, UsageError, run_script
from training import checkpoints, hub
from training.batch_size import settle_batch_size
from training.state import TrainingState


def get_args() -> argparse.Namespace:
    """Return the flags, with the defaults of stage 2."""
    parser = ArgumentParser(description=__doc__)
    model = parser.add_argument_group("model")
    utils.add_size(model, "model", modeling_pretrain.SIZES, "labram_base_patch200_1600_8k_vocab")
    utils.add_size(model, "tokenizer_model", modeling_vqnsp.SIZES, "vqnsp_encoder_base_decoder_3x200x12")
    model.add_argument(
        "--tokenizer_weight",
        type=Path,
        default=Path("checkpoints/vqnsp.pth"),
        help=f"checkpoint of stage 1, or {hub.FORM}",
    )
    words = "start from the tokenizer's encoder instead of random weights"
    model.add_argument("--init_from_tokenizer", action="store_true", help=words)
    model.add_argument("--codebook_size", type=int, default=None, help="codes (default: the tokenizer's)")
    model.add_argument("--codebook_dim", type=int, default=None, help="width of a code (default: the tokenizer's)")
    model.add_argument("--mask_ratio", type=float, default=0.5, help="share of a window's patches that is masked")
    utils.add_trunk_arguments(model)
    eeg_data.add_pretraining_arguments(parser, window_stride=800)
    optim_factory.add_arguments(parser)
    utils.add_arguments(parser)
    parser.set_defaults(
        input_size=1600,
        drop_path=0.0,
        output_dir=Path("checkpoints/labram_base"),
        batch_size=64,
        epochs=50,
        save_ckpt_freq=5,
        lr=5e-4,
        min_lr=1e-5,
        warmup_epochs=5,
        weight_decay=0.05,
        opt_betas=(0.9, 0.98),
        clip_grad=3.0,
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Pre-train a masked model."""
    if not 0 < args.mask_ratio < 1:
        raise UsageError(f"--mask_ratio {args.mask_ratio}: allowed are shares between 0 and 1, without the ends")
    with utils.setup_run(args) as run:
        weights = run.run_on_rank0(lambda: checkpoints.read_model(args.tokenizer_weight, stage="tokenizer"))
        tokenizer = modeling_vqnsp.load_tokenizer(
            args.tokenizer_model,
            weights,
            where=args.tokenizer_weight,
            codebook_size=args.codebook_size,
            codebook_dim=args.codebook_dim,
            num_electrodes=args.num_electrodes,
        )
        make_mask = functools.partial(modeling_pretrain.random_mask, 1, ratio=args.mask_ratio)
        model = create_model(args.model, vocab_size=tokenizer.quantize.codebook_size, **utils.trunk_options(args))
        if args.init_from_tokenizer:
            trunk = model.get_submodule("student")
            modeling_pretrain.start_from_encoder(trunk, weights, where=str(args.tokenizer_weight))
        model = run.distribute(model)
        run.prepare(tokenizer)
        if run.amp_dtype is not None and run.device.type == "cuda":
            tokenizer.halve_encoder()
        settle_batch_size(args, run, model, functools.partial(probe, model, tokenizer))
        accumulation = optim_factory.micro_batches(args, run)
        loaders = eeg_data.build_pretraining_loaders(args, run, accumulation=accumulation, make_mask=make_mask)
        steps = loaders.steps_per_epoch
        update = optim_factory.build_update(model, args, run, steps_per_epoch=steps, accumulation=accumulation)
        inputs = loaders.summary() | {"tokenizer weights": checkpoints.digest_of_weights(weights)}
        inputs |= run.run_on_rank0(lambda: hub.described(args.tokenizer_weight))
        state = TrainingState(model, update, run, args, stage="pretraining", inputs=inputs)
        first = state.resume()
        with run.interruption.listening():
            for epoch in range(first, args.epochs):
                stats = train_one_epoch(state, loaders.train, tokenizer, epoch)
                if loaders.val is not None:
                    stats |= evaluate(model.module, loaders.val, tokenizer, run)
                state.finish_epoch(epoch, stats)


def probe(model: DistributedDataParallel, tokenizer: modeling_vqnsp.VQNSP, eeg: Tensor, channels: Tensor) -> Tensor:
    """Compute the loss of windows of which half is masked."""
    mask = torch.arange(eeg[0, :, :, 0].numel(), device=eeg.device) % 2 == 0  # (N*A,)
    return model(eeg, channels, mask.expand(len(eeg), -1), tokenizer.get_codebook_indices(eeg, channels)).loss


if __name__ == "__main__":
    run_script(main, get_args())
