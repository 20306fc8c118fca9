"""Choose which part of the classifier learns in stage 3: everything, the last blocks, the head, or LoRA adapters.

Paper, appendix: on TUEV it was best to train the last eight of twelve blocks. LoRA: Hu et al., arXiv 2106.09685,
through the `peft` library. Every mode keeps the classifier's parameter names (LoRA adds some), so checkpoints, weight
averaging and layer-wise learning-rate decay work in all of them.
"""

import argparse
import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import modeling_finetune
from eeg_data.batches import EvaluationBatches
from eeg_data.labelled import LabelledBatch, LabelledWindows
from eeg_data.loader import Loader, Loaders, make_loader
from errors import InputError, UsageError
from files import plain
from layers import PATCH_SAMPLES
from modeling_finetune import NeuralTransformer
from training import centring, checkpoints
from training.centring import Centring
from training.state import TrainingState
from utils import Run

logger = logging.getLogger(__name__)

ADAPTED = r"blocks\.\d+\.attn\.(qkv|proj)"  # matrices that LoRA adapts
ALPHA = "lora_alpha"  # buffer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what learns, and for how long."""
    group = parser.add_argument_group("adaptation (default: everything learns)")
    add = group.add_mutually_exclusive_group().add_argument
    add("--freeze_blocks", type=int, default=0, metavar="K", help="freeze the embeddings and the first K blocks")
    words = "train only the head, on features computed once; ridge: solve it at once, strength by subjects left out"
    add("--linear_probe", nargs="?", const=True, default=False, choices=("ridge",), help=words)
    add("--lora", type=int, metavar="R", help="train adapters of rank R on attention, the norm and the head")
    add = group.add_argument
    add("--lora_alpha", type=float, help="scale adapters by alpha/R (default: 2 R)")
    add("--lora_dropout", type=float, help="dropout before each adapter (default: 0)")
    add("--patience", type=int, metavar="P", help="stop after P epochs in a row without a better score (0: never)")
    centring.add_arguments(parser)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for combinations that make no sense, before any data are read."""
    depth = modeling_finetune.SIZES[args.model]["depth"]
    if args.freeze_blocks > depth:
        raise UsageError(f"--freeze_blocks {args.freeze_blocks}: {args.model} has {depth} blocks: give at most {depth}")
    if args.lora is None and (args.lora_alpha is not None or args.lora_dropout is not None):
        raise UsageError("--lora_alpha and --lora_dropout belong to --lora R: add it or leave them out")
    if args.patience and args.disable_eval_during_finetuning:
        raise UsageError("--patience needs a score after every epoch: leave out --disable_eval_during_finetuning")
    if centring.centring_of(vars(args)) and args.linear_probe and args.pool == "attention":
        way_out = f"use --freeze_blocks {depth} in place of --linear_probe, or another --pool"
        raise UsageError(f"--center needs means of features, which --pool attention changes: {way_out}")
    if args.linear_probe == "ridge" and (args.model_ema or args.pool == "attention"):
        rest = "--model_ema" if args.model_ema else "--pool attention, whose query would not learn (as --pool mean)"
        raise UsageError(f"--linear_probe ridge takes no steps, so it does not go with {rest}: leave one of them out")
    if (args.freeze_blocks or args.linear_probe or args.lora) and args.finetune is None and not args.eval:
        logger.warning("Without --finetune the frozen part keeps its random weights.")


def setup_adaptation(model: NeuralTransformer, args: argparse.Namespace) -> None:
    """Freeze or adapt a classifier with loaded weights as the flags say, before it is distributed."""
    if args.freeze_blocks:
        freeze_blocks(model, args.freeze_blocks)
    if args.linear_probe:
        freeze_blocks(model, len(model.blocks))
        _learn(model, [model.head, model.heads])  # not the norm before it either, so that features do not change
    if args.lora is not None:
        add_lora(model, args.lora, alpha=args.lora_alpha, dropout=args.lora_dropout or 0.0)


def freeze_blocks(model: NeuralTransformer, blocks: int) -> None:
    """Let only the blocks after the first `blocks`, the final norm and the head learn.

    The embeddings and the CLS token enter below the first block and are frozen with it: their gradient would have to
    pass through all frozen blocks.
    """
    _learn(model, [*model.blocks[blocks:], model.norm, model.fc_norm, model.head, model.heads])
    model.frozen = (model.embed_drop, model.patch_embed, *model.blocks[:blocks])


def _learn(model: NeuralTransformer, parts: Iterable[nn.Module | None]) -> None:
    model.requires_grad_(False)
    for part in parts:
        if part is not None:
            part.requires_grad_(True)


def add_lora(model: NeuralTransformer, rank: int, *, alpha: float | None = None, dropout: float = 0.0) -> None:
    """Put adapters on each block's qkv and proj; they, the final norm and the head learn. alpha: default 2 x rank.

    New adapters add nothing. The blocks keep dropout and drop path in training.
    """
    import peft  # takes seconds

    scale = float(2 * rank if alpha is None else alpha)
    options: dict[str, Any] = {"r": rank, "lora_alpha": scale, "lora_dropout": dropout, "target_modules": ADAPTED}
    # Into the model, not around it: names get a suffix and no prefix.
    peft.inject_adapter_in_model(peft.LoraConfig(**options), model)
    adapters = [part for name, part in model.named_modules() if name.split(".")[-1] in ("lora_A", "lora_B")]
    _learn(model, [*adapters, model.norm, model.fc_norm, model.head, model.heads])
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


def save_merged(model: NeuralTransformer, state: TrainingState, epoch: int) -> None:
    """Write a classifier with LoRA as an ordinary one, model-merged.pth, for --finetune and --eval."""
    content = {"model": merged(model).state_dict(), "epoch": epoch, "stage": state.stage}
    content |= {"args": plain(vars(state.args)), "data_set": state.data_set}
    state.run.run_on_rank0(lambda: checkpoints.save(content, state.run.output_dir / "model-merged.pth"))


class FeatureLoader:
    """The batches of a loader with features, computed once, in place of EEG."""

    def __init__(self, loader: Loader, features: list[Tensor]) -> None:
        """features: of each part of the loader's data set, (samples, ...) of `probe_features` in its order."""
        self.dataset: Any = loader.dataset  # LabelledWindows or JoinedWindows
        self.batch_sampler: Any = loader.batch_sampler
        self.features = features

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[LabelledBatch]:
        """Yield batches whose `eeg` are features."""
        for keys in self.batch_sampler:
            part = keys[0][1]
            features = self.features[part][[sample for _, _, sample in keys]]
            yield self.dataset.parts[part].batch(keys, features, None)


@torch.no_grad()
def build_feature_loaders(
    model: NeuralTransformer,
    loaders: Sequence[Loaders],
    heads: Sequence[str | None],
    args: argparse.Namespace,
    run: Run,
) -> list[Loaders]:
    """Compute the features of all samples once; return loaders of the same batches with features in place of EEG.

    loaders: of the data set of each head. Every process must call it; they share the work, and each keeps all features
    in memory. With --center those of the training samples are centred; an evaluation centres what the head makes of
    the others.
    """
    model.eval()

    def convert(loader: Any, heads: Sequence[str | None]) -> Any:
        if loader is None:
            return None
        pairs = zip(loader.dataset.parts, heads, strict=True)
        return FeatureLoader(loader, [compute_features(model, part, args, run, task=head) for part, head in pairs])

    train = convert(loaders[0].train, heads)
    if args.center != "none":
        every = Centring(args.center)
        for number, part in enumerate(train.dataset.parts):
            centred = every.centre(train.features[number].numpy(), every.groups(part))
            train.features[number] = torch.from_numpy(centred)
    pairs = zip(loaders, heads, strict=True)
    return [Loaders(train, convert(own.val, [head]), convert(own.test, [head])) for own, head in pairs]


def compute_features(
    model: NeuralTransformer, windows: LabelledWindows, args: argparse.Namespace, run: Run, *, task: str | None = None
) -> Tensor:
    """Compute `probe_features` of every window: (samples, ...) on the CPU, the same on every process."""
    electrodes, samples = windows.shape([])
    tokens = electrodes * samples // PATCH_SAMPLES
    shape = (tokens, model.width) if model.pool == "attention" else (model.head_of(task).in_features,)
    features = torch.zeros(len(windows), *shape, dtype=run.dtype, device=run.device)
    for own, index in _own_features(partial(model.probe_features, task=task), windows, args, run):
        features[index] = own
    dist.all_reduce(features)  # every sample is on one process and zero on the others: the sum is exact
    return features.cpu()


def _own_features(
    compute: Callable[[Tensor, Tensor], Tensor], windows: LabelledWindows, args: argparse.Namespace, run: Run
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a model makes of this process's share of windows, and which they are."""
    plan = EvaluationBatches([len(windows)], args.batch_size, rank=run.rank, processes=run.processes)
    loader = make_loader(windows, plan, args, run)
    for batch in run.evaluation_batches(loader, f"features of {windows.split}"):
        eeg, channels, _, index = batch.to(run)
        with run.autocast():
            features = compute(eeg, channels)
        yield features.to(run.dtype), index.to(run.device)


class RunningMeans:
    """The mean features of each subject or recording of a training set, while the trunk learns.

    A step moves the mean of each that it shows towards that of its windows in the step, by their share of its windows
    in the set: the mean remembers about one pass. All processes and micro-batches of a step count together, and the
    step itself still subtracts the means before it.
    """

    def __init__(self, groups: np.ndarray, width: int, run: Run) -> None:
        """groups: (samples,), number of each training sample's subject or recording."""
        self.groups = torch.from_numpy(groups).to(run.device)
        self.counts = self.groups.bincount()[:, None]  # (groups, 1)
        self.means = torch.zeros(len(self.counts), width, dtype=run.dtype, device=run.device)
        self.started = False
        # Of the step so far: sums of features, and in the last column how many.
        self._sums = torch.zeros(len(self.counts), width + 1, dtype=torch.float64, device=run.device)

    @torch.no_grad()
    def start(
        self, model: NeuralTransformer, windows: LabelledWindows, args: argparse.Namespace, run: Run, task: str | None
    ) -> None:
        """Begin, unless resumed, with the exact means of a model's features. Every process must call it."""
        if self.started:
            return
        model.eval()
        for features, samples in _own_features(partial(model.forward_features, task=task), windows, args, run):
            self.add(features, samples)
        self.step(torch.tensor(True, device=run.device))
        self.started = True

    def of(self, samples: Tensor) -> Tensor:
        """Return the mean to subtract from each sample's features, (B, width)."""
        return self.means[self.groups[samples.to(self.groups.device, non_blocking=True)]]

    def add(self, features: Tensor, samples: Tensor) -> None:
        """Note the features (B, width) of a micro-batch, but of no window where they are not finite."""
        numbers = torch.arange(len(self.counts), device=self.groups.device)
        owners = self.groups[samples.to(self.groups.device, non_blocking=True)]
        features = nn.functional.pad(features.double(), (0, 1), value=1.0)
        features = torch.where(features.isfinite().all(1, keepdim=True), features, 0.0)
        # A product, because a GPU's index_add_ adds in another order each time.
        self._sums += (numbers[:, None] == owners).double() @ features

    def step(self, taken: Tensor) -> None:
        """Move the means, if the step was taken. Every process must call it."""
        dist.all_reduce(self._sums)
        sums, seen = self._sums[:, :-1], self._sums[:, -1:]
        moved = self.means + (seen / self.counts).clamp(max=1) * (sums / seen.clamp(min=1) - self.means)
        self.means = torch.where(taken, moved.to(self.means), self.means)
        self._sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return what exact resumption needs."""
        return {"means": self.means, "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; with other training data or groups begin again."""
        if state["means"].shape == self.means.shape:
            self.means, self.started = state["means"].to(self.means), state["started"]
