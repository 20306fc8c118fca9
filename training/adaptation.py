"""What of the classifier learns in stage 3: everything, its last blocks, the head alone, or LoRA adapters.

Paper, appendix: on TUEV training the last eight of twelve blocks was best. LoRA: Hu et al., arXiv 2106.09685, through
the `peft` library. Every mode leaves the classifier's parameter names as they are (LoRA adds to them), so that
checkpoints, weight averaging and layer-wise learning-rate decay work in all of them alike.
"""

import argparse
import copy
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

import modeling_finetune
from eeg_data.batches import EvaluationBatches, Key
from eeg_data.labelled import LabelledBatch, LabelledWindows, collate_labelled
from eeg_data.pretraining import Loaders, make_loader
from errors import InputError, UsageError
from files import plain
from modeling_finetune import NeuralTransformer
from training import checkpoints
from utils import Run

logger = logging.getLogger(__name__)

ADAPTED = r"blocks\.\d+\.attn\.(qkv|proj)"  # matrices that LoRA adapts
ALPHA = "lora_alpha"  # buffer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of what learns, and for how long."""
    group = parser.add_argument_group("adaptation (default: everything learns)")
    group.add_argument(
        "--freeze_blocks",
        type=int,
        default=0,
        metavar="K",
        help="the embeddings and the first K blocks do not learn (the paper's best TUEV result: 4 of 12)",
    )
    group.add_argument("--linear_probe", action="store_true", help="only the head learns, on features computed once")
    group.add_argument(
        "--lora", type=int, default=None, metavar="R", help="adapters of rank R on attention, norm and head learn"
    )
    group.add_argument("--lora_alpha", type=float, default=None, help="adapters count alpha/R times (default: 2 R)")
    group.add_argument("--lora_dropout", type=float, default=None, help="of what enters an adapter (default: 0)")
    group.add_argument(
        "--patience", type=int, default=None, metavar="P", help="stop after P epochs in a row without a better score"
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for values and combinations that make no sense, before any data are read."""
    depth, width = (modeling_finetune.SIZES[args.model][name] for name in ("depth", "width"))
    for name, low, high in (("freeze_blocks", 0, depth), ("lora", 1, width), ("patience", 1, math.inf)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            why = f" ({args.model} has {depth} blocks)" if name == "freeze_blocks" else ""
            allowed = f"from {low}" if high == math.inf else f"from {low} to {high}"
            raise UsageError(f"--{name} {value}: allowed are whole numbers {allowed}{why}")
    modes = [name for name in ("freeze_blocks", "linear_probe", "lora") if getattr(args, name)]
    if len(modes) > 1:
        raise UsageError(f"--{modes[0]} and --{modes[1]} say different things of what learns: choose one of them")
    if args.lora is None and (args.lora_alpha is not None or args.lora_dropout is not None):
        raise UsageError("--lora_alpha and --lora_dropout belong to --lora R: add it or leave them out")
    if args.lora_alpha is not None and not 0 < args.lora_alpha < math.inf:
        raise UsageError(f"--lora_alpha {args.lora_alpha}: allowed are numbers above 0")
    if args.lora_dropout is not None and not 0 <= args.lora_dropout < 1:
        raise UsageError(f"--lora_dropout {args.lora_dropout}: allowed are numbers from 0 to below 1")
    if args.linear_probe and args.grad_checkpoint:
        raise UsageError("--linear_probe computes no gradient in the blocks: leave out --grad_checkpoint")
    if args.patience is not None and args.disable_eval_during_finetuning:
        raise UsageError("--patience needs a score after every epoch: leave out --disable_eval_during_finetuning")
    if args.lora is not None:
        import_peft()
    if modes and args.finetune is None and not args.eval:
        logger.warning("--%s without --finetune: what does not learn keeps its random weights.", modes[0])


def import_peft() -> Any:
    """The `peft` package, imported only where it is needed, because that takes seconds. Raises UsageError without."""
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"--lora needs the package peft, which cannot be imported ({error}): pip install --requirement "
            "requirements.txt --constraint constraints.txt"
        ) from error
    return peft


def _scale(rank: int, alpha: float | None) -> float:
    return float(2 * rank if alpha is None else alpha)


def setup_adaptation(model: NeuralTransformer, args: argparse.Namespace) -> None:
    """Make of a classifier with loaded weights what the flags say, before it is distributed."""
    if args.freeze_blocks:
        freeze_blocks(model, args.freeze_blocks)
    if args.linear_probe:
        freeze_all_but_head(model)
        model.takes_features = not args.eval
    if args.lora is not None:
        add_lora(model, args.lora, alpha=args.lora_alpha, dropout=args.lora_dropout or 0.0)


def freeze_blocks(model: NeuralTransformer, blocks: int) -> None:
    """Let only the blocks from this one on, final norm and head learn.

    The electrode and time embeddings and the CLS token enter below the first block: they are frozen with it, for
    their gradient would have to be computed through everything that stays as it is.
    """
    _learn(model, [*model.blocks[blocks:], model.norm, model.fc_norm, model.head])
    model.frozen = (model.embed_drop, model.patch_embed, *model.blocks[:blocks])


def freeze_all_but_head(model: NeuralTransformer) -> None:
    """Let only the head learn: the norm before it, too, stays as it is, so that features do not change."""
    freeze_blocks(model, len(model.blocks))
    _learn(model, [model.head])


def _learn(model: NeuralTransformer, parts: Iterable[nn.Module | None]) -> None:
    model.requires_grad_(False)
    for part in parts:
        if part is not None:
            part.requires_grad_(True)


def add_lora(model: NeuralTransformer, rank: int, *, alpha: float | None = None, dropout: float = 0.0) -> None:
    """Put adapters on each block's qkv and proj; they, final norm and head learn. alpha: default 2 x rank.

    At first the adapters add nothing. Blocks keep dropout and drop path in training, because they do learn.
    """
    peft = import_peft()
    scale = _scale(rank, alpha)
    config = peft.LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=ADAPTED)
    # Into the model and not around it: names gain a suffix and no prefix.
    peft.inject_adapter_in_model(config, model)
    adapters = [part for name, part in model.named_modules() if name.split(".")[-1] in ("lora_A", "lora_B")]
    _learn(model, [*adapters, model.norm, model.fc_norm, model.head])
    # Saved with the weights, which say nothing without it.
    model.register_buffer(ALPHA, torch.tensor(scale))
    model.register_load_state_dict_post_hook(_check_alpha)


def _check_alpha(model: Any, _: Any) -> None:
    saved, used = float(getattr(model, ALPHA)), model.blocks[0].attn.qkv.lora_alpha["default"]
    if not math.isclose(saved, used, rel_tol=1e-6):
        raise InputError(f"the checkpoint's adapters were trained with --lora_alpha {saved:g}, not {used:g}: use that")


def merged(model: NeuralTransformer) -> NeuralTransformer:
    """A copy of a classifier in which what the adapters add is part of the matrices: an ordinary classifier."""
    whole = copy.deepcopy(model)
    for block in whole.blocks:
        for name in ("qkv", "proj"):
            adapted: Any = getattr(block.attn, name)
            adapted.merge()
            setattr(block.attn, name, adapted.get_base_layer())
    delattr(whole, ALPHA)
    return whole


def save_merged(
    model: NeuralTransformer, args: argparse.Namespace, run: Run, epoch: int, *, data_set: dict[str, Any] | None = None
) -> None:
    """Write a classifier with LoRA as one without, model-merged.pth, for --finetune and --eval.

    data_set: what it says of the data, as a run's checkpoints do.
    """

    def write() -> None:
        state = {"model": merged(model).state_dict(), "epoch": epoch, "stage": "classifier", "args": plain(vars(args))}
        if data_set is not None:
            state["data_set"] = data_set
        checkpoints.save(state, run.output_dir / "model-merged.pth")

    run.run_on_rank0(write)


class FeatureWindows(LabelledWindows):
    """A split whose EEG is replaced by the features that a frozen trunk makes of it; all else is as it was."""

    def __init__(self, windows: LabelledWindows, features: Tensor) -> None:
        """features: (samples, D), in the order of the windows."""
        vars(self).update(vars(windows))  # labels, recordings, subjects, names: what reports and predictions read
        self.windows, self.features = windows, features

    def __getitem__(self, key: Key) -> tuple[Any, Tensor, Any, int]:
        """Features (D,), channels (N + 1,), label, index among the usable samples."""
        return self.features[key[2]], self.channels, self.labels[key[2]], key[2]

    def describe(self, key: Key) -> dict[str, Any]:
        """Where a sample is from and the largest value of its EEG."""
        return self.windows.describe(key)


def collate_features(samples: Sequence[tuple[Tensor, Tensor, Any, int]]) -> LabelledBatch:
    """Make a labelled batch whose `eeg` are features (B, D)."""
    features, channels, labels, index = zip(*samples, strict=True)
    return LabelledBatch(
        torch.stack(features), channels[0], torch.from_numpy(np.stack(labels)), torch.tensor(index, dtype=torch.long)
    )


def build_feature_loaders(model: NeuralTransformer, loaders: Loaders, args: argparse.Namespace, run: Run) -> Loaders:
    """Loaders of the same batches in the same order, of features in place of EEG, computed here once and for all.

    Every process must call it; they share the work and all hold every feature in memory.
    """
    model.eval()
    found: list[DataLoader | None] = []
    size = 0
    for loader in (loaders.train, loaders.val, loaders.test):
        if loader is None:
            found.append(None)
            continue
        windows: Any = loader.dataset
        features = compute_features(model, windows, args, run)
        size += features.nbytes
        # No loading processes: there is nothing to read, and each would need the features.
        found.append(
            DataLoader(
                FeatureWindows(windows, features),
                batch_sampler=loader.batch_sampler,
                collate_fn=collate_features,
                pin_memory=loader.pin_memory,
                generator=torch.Generator(),  # of its own, because a loader draws from the global one
            )
        )
    logger.info("Linear probe: features of every sample are computed, %.1f MB in memory of each process.", size / 1e6)
    assert found[0] is not None
    return Loaders(found[0], found[1], found[2])


@torch.no_grad()
def compute_features(model: NeuralTransformer, windows: LabelledWindows, args: argparse.Namespace, run: Run) -> Tensor:
    """What the head sees of every window, (samples, D) on the CPU, the same on every process."""
    plan = EvaluationBatches([len(windows)], args.batch_size, rank=run.rank, processes=run.processes)
    loader = make_loader(windows, plan, args, run, collate_labelled)
    features = torch.zeros(len(windows), model.width, dtype=run.dtype, device=run.device)
    for batch in run.evaluation_batches(loader, f"features of {windows.split}"):
        eeg, channels, _, index = batch.to(run)
        with run.autocast():
            features[index.to(run.device)] = model.forward_features(eeg, channels).to(run.dtype)
    dist.all_reduce(features)  # every sample is on one process and zero on the others: the sum is exact
    return features.cpu()
