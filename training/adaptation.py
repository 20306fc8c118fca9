"""Choose which part of the classifier learns in stage 3: everything, the last blocks, the head, or LoRA adapters.

Paper, appendix: on TUEV it was best to train the last eight of twelve blocks. LoRA: Hu et al., arXiv 2106.09685,
through the `peft` library. Every mode keeps the classifier's parameter names (LoRA adds some), so checkpoints, weight
averaging and layer-wise learning-rate decay work in all of them.
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
    """Add the flags for what learns, and for how long."""
    group = parser.add_argument_group("adaptation (default: everything learns)")
    group.add_argument(
        "--freeze_blocks",
        type=int,
        default=0,
        metavar="K",
        help="freeze the embeddings and the first K blocks (the paper's best TUEV result: 4 of 12)",
    )
    group.add_argument("--linear_probe", action="store_true", help="train only the head, on features computed once")
    group.add_argument(
        "--lora",
        type=int,
        default=None,
        metavar="R",
        help="train adapters of rank R on attention, the norm and the head",
    )
    group.add_argument("--lora_alpha", type=float, default=None, help="scale adapters by alpha/R (default: 2 R)")
    group.add_argument("--lora_dropout", type=float, default=None, help="dropout before each adapter (default: 0)")
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
        raise UsageError(f"--{modes[0]} and --{modes[1]} exclude each other: choose one of them")
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
        logger.warning("--%s without --finetune: the frozen part keeps its random weights.", modes[0])


def import_peft() -> Any:
    """Import the `peft` package; only --lora does, because it takes seconds. Raises UsageError if it is not there."""
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
    """Freeze or adapt a classifier with loaded weights as the flags say, before it is distributed."""
    if args.freeze_blocks:
        freeze_blocks(model, args.freeze_blocks)
    if args.linear_probe:
        freeze_all_but_head(model)
        model.takes_features = not args.eval
    if args.lora is not None:
        add_lora(model, args.lora, alpha=args.lora_alpha, dropout=args.lora_dropout or 0.0)


def freeze_blocks(model: NeuralTransformer, blocks: int) -> None:
    """Let only the blocks after the first `blocks`, the final norm and the head learn.

    The embeddings and the CLS token enter below the first block and are frozen with it: their gradient would have to
    pass through all frozen blocks.
    """
    _learn(model, [*model.blocks[blocks:], model.norm, model.fc_norm, model.head])
    model.frozen = (model.embed_drop, model.patch_embed, *model.blocks[:blocks])


def freeze_all_but_head(model: NeuralTransformer) -> None:
    """Let only the head learn. The norm before it is frozen, too, so that features do not change."""
    freeze_blocks(model, len(model.blocks))
    _learn(model, [model.head])


def _learn(model: NeuralTransformer, parts: Iterable[nn.Module | None]) -> None:
    model.requires_grad_(False)
    for part in parts:
        if part is not None:
            part.requires_grad_(True)


def add_lora(model: NeuralTransformer, rank: int, *, alpha: float | None = None, dropout: float = 0.0) -> None:
    """Put adapters on each block's qkv and proj; they, the final norm and the head learn. alpha: default 2 x rank.

    New adapters add nothing. The blocks keep dropout and drop path in training.
    """
    peft = import_peft()
    scale = _scale(rank, alpha)
    config = peft.LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=ADAPTED)
    # Into the model, not around it: names get a suffix and no prefix.
    peft.inject_adapter_in_model(config, model)
    adapters = [part for name, part in model.named_modules() if name.split(".")[-1] in ("lora_A", "lora_B")]
    _learn(model, [*adapters, model.norm, model.fc_norm, model.head])
    # Saved with the weights, which are useless without it.
    model.register_buffer(ALPHA, torch.tensor(scale))
    model.register_load_state_dict_post_hook(_check_alpha)


def _check_alpha(model: Any, _: Any) -> None:
    saved, used = float(getattr(model, ALPHA)), model.blocks[0].attn.qkv.lora_alpha["default"]
    if not math.isclose(saved, used, rel_tol=1e-6):
        raise InputError(f"the checkpoint's adapters were trained with --lora_alpha {saved:g}, not {used:g}: use that")


def merged(model: NeuralTransformer) -> NeuralTransformer:
    """Return a copy of a classifier whose adapters are merged into its matrices: an ordinary classifier."""
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
    """Write a classifier with LoRA as an ordinary one, model-merged.pth, for --finetune and --eval.

    data_set: description of the data, as in a run's checkpoints.
    """

    def write() -> None:
        state = {"model": merged(model).state_dict(), "epoch": epoch, "stage": "classifier", "args": plain(vars(args))}
        if data_set is not None:
            state["data_set"] = data_set
        checkpoints.save(state, run.output_dir / "model-merged.pth")

    run.run_on_rank0(write)


class FeatureWindows(LabelledWindows):
    """A split whose EEG is replaced by the features that a frozen trunk computes from it."""

    def __init__(self, windows: LabelledWindows, features: Tensor) -> None:
        """features: (samples, D), in the order of the windows."""
        vars(self).update(vars(windows))  # labels, recordings, subjects, names: for reports and predictions
        self.windows, self.features = windows, features

    def __getitem__(self, key: Key) -> tuple[Any, Tensor, Any, int]:
        """Return features (D,), channels (N + 1,), label, index among the usable samples."""
        return self.features[key[2]], self.channels, self.labels[key[2]], key[2]

    def describe(self, key: Key) -> dict[str, Any]:
        """Return where a sample is from and the largest value of its EEG."""
        return self.windows.describe(key)


def collate_features(samples: Sequence[tuple[Tensor, Tensor, Any, int]]) -> LabelledBatch:
    """Make a labelled batch whose `eeg` are features (B, D)."""
    features, channels, labels, index = zip(*samples, strict=True)
    return LabelledBatch(
        torch.stack(features), channels[0], torch.from_numpy(np.stack(labels)), torch.tensor(index, dtype=torch.long)
    )


def build_feature_loaders(model: NeuralTransformer, loaders: Loaders, args: argparse.Namespace, run: Run) -> Loaders:
    """Compute the features of all samples once; return loaders of the same batches with features in place of EEG.

    Every process must call it; they share the work, and each keeps all features in memory.
    """
    model.eval()
    size = 0

    def convert(loader: DataLoader) -> DataLoader:
        nonlocal size
        windows: Any = loader.dataset
        features = compute_features(model, windows, args, run)
        size += features.nbytes
        # No loading processes: there is nothing to read, and each would need a copy of the features.
        return DataLoader(
            FeatureWindows(windows, features),
            batch_sampler=loader.batch_sampler,
            collate_fn=collate_features,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),  # else the loader draws from the global one
        )

    train = convert(loaders.train)
    val, test = (convert(loader) if loader is not None else None for loader in (loaders.val, loaders.test))
    logger.info("Linear probe: features of every sample are computed, %.1f MB in memory of each process.", size / 1e6)
    return Loaders(train, val, test)


@torch.no_grad()
def compute_features(model: NeuralTransformer, windows: LabelledWindows, args: argparse.Namespace, run: Run) -> Tensor:
    """Compute the head's input for every window: (samples, D) on the CPU, the same on every process."""
    plan = EvaluationBatches([len(windows)], args.batch_size, rank=run.rank, processes=run.processes)
    loader = make_loader(windows, plan, args, run, collate_labelled)
    features = torch.zeros(len(windows), model.width, dtype=run.dtype, device=run.device)
    for batch in run.evaluation_batches(loader, f"features of {windows.split}"):
        eeg, channels, _, index = batch.to(run)
        with run.autocast():
            features[index.to(run.device)] = model.forward_features(eeg, channels).to(run.dtype)
    dist.all_reduce(features)  # every sample is on one process and zero on the others: the sum is exact
    return features.cpu()
