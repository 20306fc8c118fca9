"""What `speed.py` times: a step of each stage, code extraction, embedding.

The product's training steps are taken by its own engines (`train_one_epoch` over batches in memory), so they contain
all that a step costs. The others are `plain.py` and braindecode's `Labram`. All get the same data, precision, threads
and optimizer settings.
"""

import argparse
import importlib
import itertools
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import plain
import torch
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F

import engine_for_finetuning
import engine_for_pretraining
import engine_for_vqnsp
import utils
from eeg_data.labelled import LabelledBatch
from eeg_data.pretraining import Batch
from electrodes import ELECTRODES, embedding_rows
from modeling_finetune import SIZES as CLASSIFIERS
from modeling_pretrain import random_mask
from modeling_vqnsp import SIZES as TOKENIZERS
from norm_ema_quantizer import CodebookRevival
from optim_factory import build_update
from training.state import TrainingState

SCRIPTS = {"a": "run_vqnsp_training", "c": "run_labram_pretraining"}  # the others: run_class_finetuning
CODES, CODE_DIM = 8192, 64
EPOCHS = 1000  # of the schedule: more than are ever timed

Step = Callable[[], object]  # one step; for a training, `Bench.steps` steps


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    case: str  # a key of CASES
    electrodes: int
    window: int  # seconds
    model: str  # base, large or huge
    batch: int  # windows
    device: str
    precision: str
    tiny: bool = False  # four blocks and 64 codes, for tests

    @property
    def size(self) -> str:
        """Size of the models of stages 2 and 3."""
        return "tiny" if self.tiny else self.model

    @property
    def sizes(self) -> dict[str, Any]:
        """Width, depth, heads and layer scale of the transformer of stages 2 and 3."""
        return dict(CLASSIFIERS[f"labram_{self.size}_patch200_200"])

    @property
    def codes(self) -> int:
        """Number of codes."""
        return 64 if self.tiny else CODES

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer; there is no huge one."""
        encoder = self.size if self.size in ("tiny", "base") else "large"
        return next(name for name in TOKENIZERS if f"encoder_{encoder}_" in name)


class Batches:
    """A loader of batches in memory, with what `TrainingState.steps` asks of a loader."""

    def __init__(self, batches: Sequence[Any]) -> None:
        """batches: of every epoch."""
        self.batches = batches
        self.batch_sampler = SimpleNamespace(set_epoch=lambda *_: None, montage=lambda _: 0, steps=len(batches))
        self.dataset = SimpleNamespace(groups=["benchmark"])

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """Go through them."""
        return iter(self.batches)


class Bench:
    """What all entrants of a case share: the run, flags and inputs, on the CPU and on the device."""

    def __init__(self, setting: Setting, steps: int, args: argparse.Namespace, run: utils.Run) -> None:
        """steps: optimizer steps of a training that are timed together."""
        self.setting, self.steps, self.args, self.run = setting, steps, args, run
        generator = torch.Generator().manual_seed(0)
        shape = (setting.batch, setting.electrodes, setting.window, 200)
        self.names = list(ELECTRODES[: setting.electrodes])
        self.mask = random_mask(setting.batch, setting.electrodes * setting.window, generator=generator)
        self.eeg = 0.3 * torch.randn(shape, generator=generator)  # (B, N, A, T), units of 100 uV
        self.channels = torch.tensor(embedding_rows(self.names))  # (N + 1,)
        self.labels = torch.arange(setting.batch) % 2  # (B,)
        tensors = (self.eeg, self.channels, self.mask, self.labels)
        self.x, self.rows, self.hidden, self.truth = map(run.place, tensors)  # the same on the device

    def forward(self, call: Step) -> Step:
        """A forward pass without gradient in the run's precision."""

        def step() -> object:
            with torch.no_grad(), self.run.autocast():
                return call()

        return step

    def engine(self, model: nn.Module, batch: Any, stage: str, train: Callable[..., Any], **options: Any) -> Step:
        """Let an engine train the model. train: called with state, loader and epoch; options: of build_update."""
        ddp = self.run.distribute(model)
        update = build_update(ddp, self.args, self.run, steps_per_epoch=self.steps, **options)
        state = TrainingState(ddp, update, self.run, self.args, stage=stage)
        loader, epochs = Batches([batch] * self.steps), itertools.count()
        return lambda: train(state, loader, epoch=next(epochs))

    def loop(self, model: nn.Module, loss: Callable[[], Tensor], clip: float | None = None) -> Step:
        """A plain training loop with the product's optimizer settings."""
        args = self.args
        learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        options = {"betas": tuple(args.opt_betas), "eps": args.opt_eps, "weight_decay": args.weight_decay}
        optimizer = torch.optim.AdamW(learnable, lr=args.lr, **options)
        scaler = torch.amp.GradScaler(self.run.device.type, enabled=self.run.amp_dtype == torch.float16)
        model.train()

        def step() -> None:
            for _ in range(self.steps):
                optimizer.zero_grad()
                with self.run.autocast():
                    value = loss()
                scaler.scale(value).backward()
                if clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(learnable, clip)
                scaler.step(optimizer)
                scaler.update()

        return step

    def tokenizer(self) -> Any:
        """The product's tokenizer."""
        options: dict[str, Any] = {"n_code": self.setting.codes, "code_dim": CODE_DIM, "quantize_kmeans_init": False}
        return create_model(self.setting.tokenizer, **options)

    def plain(self, build: Callable[..., nn.Module], **sizes: Any) -> Any:
        """A model of `plain.py` on the device."""
        return plain.initialize(build(**sizes)).to(self.run.device)

    def plain_tokenizer(self) -> Any:
        """The tokenizer of `plain.py`."""
        sizes = TOKENIZERS[self.setting.tokenizer]
        depths = sizes["encoder_depth"], sizes["decoder_depth"]
        return self.plain(plain.VQNSP, depths=depths, n_code=self.setting.codes)

    def braindecode(self) -> tuple[nn.Module, Callable[..., Any]]:
        """Labram of braindecode in the same size: the model, and its forward as a function of keywords."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from braindecode.models import Labram
        sizes = self.setting.sizes
        model = Labram(
            n_times=self.setting.window * 200,
            n_outputs=1,
            n_chans=self.setting.electrodes,
            sfreq=200,
            embed_dim=sizes["width"],
            num_layers=sizes["depth"],
            num_heads=sizes["heads"],
            conv_out_channels=sizes["width"] // 25,
            init_values=sizes.get("init_values", 0.1),
            use_mean_pooling=True,
        ).to(self.run.device)
        signals = self.x.flatten(2)
        return model, lambda **options: model(signals, ch_names=self.names, **options)


Builders = Mapping[str, Callable[[], Step]]  # of a case's entrants, by name


def tokenizer_training(b: Bench) -> Builders:
    """Stage 1."""

    def ours() -> Step:
        model = b.tokenizer()
        revival = CodebookRevival(model.quantize, total_steps=EPOCHS * b.steps, seed=0)
        train = partial(engine_for_vqnsp.train_one_epoch, revival=revival)
        batch = Batch(b.eeg, b.channels, torch.empty(0, dtype=torch.bool))
        return b.engine(model, batch, "tokenizer", train, lr_batch=128)

    def straightforward() -> Step:
        model = b.plain_tokenizer()
        return b.loop(model, lambda: model(b.x.flatten(2), b.rows))

    return {"ours": ours, "plain": straightforward}


def code_extraction(b: Bench) -> Builders:
    """The tokenizer's codes, as stage 2 needs them."""

    def ours() -> Step:
        model = b.run.prepare(b.tokenizer()).eval()
        return b.forward(lambda: model.get_codebook_indices(b.x, b.channels.tolist()))

    def straightforward() -> Step:
        model = b.plain_tokenizer().eval()
        return b.forward(lambda: model.codes(b.x, b.rows))

    return {"ours": ours, "plain": straightforward}


def pretraining(b: Bench) -> Builders:
    """Stage 2, tokenisation included."""

    def ours() -> Step:
        tokenizer = b.run.prepare(b.tokenizer()).eval().requires_grad_(False)
        model = create_model(f"labram_{b.setting.size}_patch200_1600_8k_vocab", vocab_size=b.setting.codes)
        train = partial(engine_for_pretraining.train_one_epoch, tokenizer=tokenizer)
        return b.engine(model, Batch(b.eeg, b.channels, b.mask), "pretraining", train)

    def straightforward() -> Step:
        tokenizer = b.plain_tokenizer().eval().requires_grad_(False)
        model = b.plain(plain.MaskedModel, **b.setting.sizes, vocab_size=b.setting.codes)
        loss = lambda: model.loss(b.x, b.rows, b.hidden, tokenizer.codes(b.x, b.rows))  # noqa: E731
        return b.loop(model, loss, b.args.clip_grad)

    return {"ours": ours, "plain": straightforward}


def finetuning(b: Bench) -> Builders:
    """Stage 3 with one output."""

    def loss(logits: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[:, 0].float(), b.truth.float())

    def ours() -> Step:
        model = create_model(f"labram_{b.setting.size}_patch200_200", drop_path_rate=0.0)
        train = partial(engine_for_finetuning.train_one_epoch, tasks=[engine_for_finetuning.Task("binary")])
        batch = LabelledBatch(b.eeg, b.channels, b.labels, torch.arange(len(b.eeg)))
        return b.engine(model, batch, "classifier", train, layer_decay=b.args.layer_decay)

    def straightforward() -> Step:
        model = b.plain(plain.Classifier, **b.setting.sizes)
        return b.loop(model, lambda: loss(model(b.x, b.rows)))

    def library() -> Step:
        model, forward = b.braindecode()
        return b.loop(model, lambda: loss(forward()))

    return {"ours": ours, "plain": straightforward, "braindecode": library}


def embedding(b: Bench) -> Builders:
    """What the classifier's head sees."""

    def ours() -> Step:
        model: Any = b.run.prepare(create_model(f"labram_{b.setting.size}_patch200_200")).eval()
        return b.forward(lambda: model.forward_features(b.x, b.channels.tolist()))

    def straightforward() -> Step:
        model = b.plain(plain.Classifier, **b.setting.sizes).eval()
        return b.forward(lambda: model.embed(b.x, b.rows))

    def library() -> Step:
        model, forward = b.braindecode()
        model.eval()
        return b.forward(lambda: forward(return_features=True))

    return {"ours": ours, "plain": straightforward, "braindecode": library}


CASES: Mapping[str, Callable[[Bench], Builders]] = {
    "a": tokenizer_training,
    "b": code_extraction,
    "c": pretraining,
    "d": finetuning,
    "e": embedding,
}


def entrants(setting: Setting, steps: int, stack: ExitStack, only: str | None = None) -> dict[str, Step]:
    """Set up a case and return each entrant's step. stack: closes the run; only: this entrant alone."""
    module = importlib.import_module(SCRIPTS.get(setting.case, "run_class_finetuning"))
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    words = ["--output_dir", folder, "--device", setting.device, "--precision", setting.precision, "--no_save_ckpt"]
    words += ["--epochs", str(EPOCHS), "--batch_size", str(setting.batch), "--num_workers", "0", "--warmup_epochs", "0"]
    with patch.object(sys, "argv", ["benchmark", *words]):
        args = module.get_args()
    bench = Bench(setting, steps, args, stack.enter_context(utils.setup_run(args)))
    return {name: build() for name, build in CASES[setting.case](bench).items() if only in (None, name)}
