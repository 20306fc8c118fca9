"""What `speed.py` times: one step of each stage, code extraction and embedding, by the product and by others.

The product's training steps are taken by its own engines (`train_one_epoch` over batches that lie ready), so that all
that a step costs is in them. Beside it: `plain.py`, and from the package index braindecode's `Labram` and the cosine
EMA quantiser of vector-quantize-pytorch. All get the same data, type, threads and optimizer.
"""

import functools
import importlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
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
from modeling_pretrain import SIZES as MASKED
from modeling_pretrain import random_mask
from modeling_vqnsp import SIZES as TOKENIZERS
from norm_ema_quantizer import CodebookRevival, NormEMAVectorQuantizer
from optim_factory import build_update
from training.state import TrainingState

SCRIPTS = {"a": "run_vqnsp_training", "c": "run_labram_pretraining", "d": "run_class_finetuning"}
CODES, CODE_DIM = 8192, 64
VECTORS = 32768  # for the quantiser alone
EPOCHS = 1000  # of the schedule: more than are ever timed


@dataclass(frozen=True)
class Setting:
    """What is timed: windows of so many electrodes and seconds, on which model and device."""

    case: str  # a tokenizer step, b codes, c pre-training step, d fine-tuning step, e embedding, q quantiser alone
    electrodes: int
    window: int  # seconds
    model: str  # base, large or huge
    batch: int
    device: str
    precision: str
    tiny: bool = False  # four blocks and 64 codes, for tests

    @property
    def sizes(self) -> dict[str, Any]:
        """Width, depth, heads and layer scale of the transformer of stages 2 and 3."""
        return dict(CLASSIFIERS[f"labram_{'tiny' if self.tiny else self.model}_patch200_200"])

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return 64 if self.tiny else CODES

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer; there is no huge one."""
        wanted = "tiny" if self.tiny else "base" if self.model == "base" else "large"
        return next(name for name in TOKENIZERS if f"encoder_{wanted}_" in name)

    @property
    def depths(self) -> tuple[int, int]:
        """Blocks of the tokenizer's encoder and decoder."""
        sizes = TOKENIZERS[self.tokenizer]
        return sizes["encoder_depth"], sizes["decoder_depth"]


class OneBatch:
    """A loader of the same batch again and again, with what `TrainingState.steps` asks of one."""

    def __init__(self, batch: Any, steps: int) -> None:
        """steps: optimizer steps an epoch."""
        self.batch, self.steps = batch, steps
        self.batch_sampler = SimpleNamespace(set_epoch=lambda *_: None, montage=lambda _: 0, steps=steps)
        self.dataset = SimpleNamespace(groups=["benchmark"])

    def __len__(self) -> int:
        """Micro-batches an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        """The batch, and again."""
        return iter([self.batch] * self.steps)


@dataclass
class Inputs:
    """The same for all entrants: on the CPU for the product's loaders, on the device for the others."""

    eeg: Tensor  # (B, N, A, T), units of 100 uV
    channels: Tensor  # (N + 1,)
    mask: Tensor  # (B, N*A) bool
    labels: Tensor  # (B,) 0 or 1
    names: list[str]
    run: utils.Run

    @functools.cached_property
    def there(self) -> "Inputs":
        """The same on the device."""
        eeg, channels, mask, labels = map(self.run.place, (self.eeg, self.channels, self.mask, self.labels))
        return Inputs(eeg, channels, mask, labels, self.names, self.run)


def inputs(setting: Setting, run: utils.Run) -> Inputs:
    """Draw them."""
    generator = torch.Generator().manual_seed(0)
    names = list(ELECTRODES[: setting.electrodes])
    shape = (setting.batch, setting.electrodes, setting.window, 200)
    mask = random_mask(setting.batch, setting.electrodes * setting.window, generator=generator)
    eeg = 0.3 * torch.randn(shape, generator=generator)
    return Inputs(eeg, torch.tensor(embedding_rows(names)), mask, torch.arange(setting.batch) % 2, names, run)


Step = Callable[[], object]  # one or, of a training, `steps` steps


def entrants(setting: Setting, steps: int, stack: ExitStack, only: str | None = None) -> dict[str, Step]:
    """Set up a case: the step of each entrant, by name. What has to be closed goes onto the stack; only: that one."""
    module = importlib.import_module(SCRIPTS.get(setting.case, SCRIPTS["d"]))
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    words = ["--output_dir", folder, "--device", setting.device, "--precision", setting.precision, "--no_save_ckpt"]
    words += ["--epochs", str(EPOCHS), "--batch_size", str(setting.batch), "--num_workers", "0", "--warmup_epochs", "0"]
    with patch.object(sys, "argv", ["benchmark", *words]):
        args = module.get_args()
    run = stack.enter_context(utils.setup_run(args))
    data = inputs(setting, run)
    builders = {name: build for name, build in CASES[setting.case].items() if only in (None, name)}
    return {name: build(setting, data, steps, args) for name, build in builders.items()}


# The product


def state_of(model: nn.Module, data: Inputs, steps: int, args: Any, stage: str, **options: Any) -> TrainingState:
    """Everything that an engine needs of a run, as the run scripts build it."""
    ddp = data.run.distribute(model)
    update = build_update(ddp, args, data.run, steps_per_epoch=steps, **options)
    return TrainingState(ddp, update, data.run, args, stage=stage)


def tokenizer_of(setting: Setting) -> Any:
    """The product's tokenizer."""
    return create_model(setting.tokenizer, n_code=setting.codes, code_dim=CODE_DIM, quantize_kmeans_init=False)


def our_tokenizer_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case a."""
    model = tokenizer_of(setting)
    state = state_of(model, data, steps, args, "tokenizer", lr_batch=128)
    revival = CodebookRevival(model.quantize, total_steps=EPOCHS * steps, seed=0)
    loader: Any = OneBatch(Batch(data.eeg, data.channels, torch.empty(0, dtype=torch.bool)), steps)
    epoch = iter(range(EPOCHS))
    return lambda: engine_for_vqnsp.train_one_epoch(state, loader, next(epoch), revival=revival)


def our_codes(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """Case b."""
    model = data.run.prepare(tokenizer_of(setting)).eval()

    def step() -> Tensor:
        with data.run.autocast():
            return model.get_codebook_indices(data.there.eeg, data.channels.tolist())

    return step


def masked_name(setting: Setting) -> str:
    """Name of the masked model."""
    return next(name for name in MASKED if f"_{'tiny' if setting.tiny else setting.model}_" in name)


def our_pretraining_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case c, tokenisation included."""
    return pretraining_step(setting, data, steps, args, Batch(data.eeg, data.channels, data.mask))


def our_cached_pretraining_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case c with codes from a cache (--cache_codes)."""
    codes = torch.randint(setting.codes, data.mask.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(data.eeg, data.channels, data.mask, codes.to(torch.int16))
    return pretraining_step(setting, data, steps, args, batch)


def pretraining_step(setting: Setting, data: Inputs, steps: int, args: Any, batch: Batch) -> Step:
    """Case c on a batch with or without codes."""
    tokenizer = data.run.prepare(tokenizer_of(setting)).eval().requires_grad_(False)
    model = create_model(masked_name(setting), vocab_size=setting.codes)
    state = state_of(model, data, steps, args, "pretraining")
    loader: Any = OneBatch(batch, steps)
    epoch = iter(range(EPOCHS))
    return lambda: engine_for_pretraining.train_one_epoch(state, loader, tokenizer, next(epoch))


def our_finetuning_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case d."""
    model = create_model(f"labram_{'tiny' if setting.tiny else setting.model}_patch200_200", drop_path_rate=0.0)
    state = state_of(model, data, steps, args, "classifier", layer_decay=args.layer_decay)
    loader: Any = OneBatch(LabelledBatch(data.eeg, data.channels, data.labels, torch.arange(len(data.eeg))), steps)
    epoch = iter(range(EPOCHS))
    return lambda: engine_for_finetuning.train_one_epoch(state, loader, next(epoch), "binary")


def our_embedding(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """Case e."""
    model: Any = create_model(f"labram_{'tiny' if setting.tiny else setting.model}_patch200_200")
    data.run.prepare(model).eval()
    return without_gradient(data, lambda: model.forward_features(data.there.eeg, data.channels.tolist()))


def without_gradient(data: Inputs, forward: Step) -> Step:
    """A forward pass in the run's precision."""

    def step() -> object:
        with torch.no_grad(), data.run.autocast():
            return forward()

    return step


# The straightforward formulation, and other libraries


def training(
    model: nn.Module, data: Inputs, steps: int, args: Any, loss: Callable[[], Tensor], clip: float | None = None
) -> Step:
    """A plain training loop with the product's optimizer settings."""
    options = {"betas": tuple(args.opt_betas), "eps": args.opt_eps, "weight_decay": args.weight_decay}
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnable, lr=args.lr, **options)
    scaler = torch.amp.GradScaler(data.run.device.type, enabled=data.run.amp_dtype == torch.float16)
    model.train()

    def step() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            with data.run.autocast():
                value = loss()
            scaler.scale(value).backward()
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(learnable, clip)
            scaler.step(optimizer)
            scaler.update()

    return step


def plain_model(build: Callable[..., nn.Module], data: Inputs, **sizes: Any) -> Any:
    """A model of `plain.py` on the device."""
    return plain.initialize(build(**sizes)).to(data.run.device)


def plain_tokenizer(setting: Setting, data: Inputs) -> Any:
    """Its tokenizer."""
    return plain_model(plain.VQNSP, data, depths=setting.depths, n_code=setting.codes)


def plain_tokenizer_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case a."""
    model, x = plain_tokenizer(setting, data), data.there
    return training(model, data, steps, args, lambda: model(x.eeg.flatten(2), x.channels))


def plain_codes(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """Case b."""
    model, x = plain_tokenizer(setting, data).eval(), data.there
    return without_gradient(data, lambda: model.codes(x.eeg, x.channels))


def plain_pretraining_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case c."""
    tokenizer, x = plain_tokenizer(setting, data).eval().requires_grad_(False), data.there
    model = plain_model(plain.MaskedModel, data, **setting.sizes, vocab_size=setting.codes)
    loss = lambda: model.loss(x.eeg, x.channels, x.mask, tokenizer.codes(x.eeg, x.channels))  # noqa: E731
    return training(model, data, steps, args, loss, args.clip_grad)


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of one output."""
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())


def plain_finetuning_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case d."""
    model, x = plain_model(plain.Classifier, data, **setting.sizes), data.there
    return training(model, data, steps, args, lambda: binary_loss(model(x.eeg, x.channels), x.labels))


def plain_embedding(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """Case e."""
    model, x = plain_model(plain.Classifier, data, **setting.sizes).eval(), data.there
    return without_gradient(data, lambda: model.embed(x.eeg, x.channels))


def braindecode_model(setting: Setting, data: Inputs) -> Callable[..., Any]:
    """Its Labram of the same size, as a function of the EEG."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from braindecode.models import Labram
    sizes = setting.sizes
    model = Labram(
        n_times=setting.window * 200,
        n_outputs=1,
        n_chans=setting.electrodes,
        sfreq=200,
        embed_dim=sizes["width"],
        num_layers=sizes["depth"],
        num_heads=sizes["heads"],
        conv_out_channels=sizes["width"] // 25,
        init_values=sizes.get("init_values", 0.1),
        use_mean_pooling=True,
    ).to(data.run.device)
    return functools.partial(model, ch_names=data.names)


def braindecode_finetuning_step(setting: Setting, data: Inputs, steps: int, args: Any) -> Step:
    """Case d."""
    forward: Any = braindecode_model(setting, data)
    x, eeg = data.there, data.there.eeg.flatten(2)
    return training(forward.func, data, steps, args, lambda: binary_loss(forward(eeg), x.labels))


def braindecode_embedding(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """Case e."""
    forward: Any = braindecode_model(setting, data)
    forward.func.eval()
    eeg = data.there.eeg.flatten(2)
    return without_gradient(data, lambda: forward(eeg, return_features=True))


# The quantiser alone: a training step of its own, forward, codebook's update and gradient


def quantiser_step(model: nn.Module, setting: Setting, data: Inputs, loss_of: Callable[[Any], Tensor]) -> Step:
    """Case q."""
    vectors = 64 * setting.codes if setting.tiny else VECTORS
    z = torch.randn(1, vectors, CODE_DIM, generator=torch.Generator().manual_seed(0)).to(data.run.device)
    z.requires_grad_()
    model.to(data.run.device).train()

    def step() -> None:
        z.grad = None
        loss_of(model(z)).backward()

    return step


def our_quantiser(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """The product's."""
    model = NormEMAVectorQuantizer(setting.codes, CODE_DIM, kmeans_init=False)
    return quantiser_step(model, setting, data, lambda found: found[2] + found[0].mean())


def plain_quantiser(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """The straightforward one."""
    model = plain.Quantizer(setting.codes, CODE_DIM)
    return quantiser_step(model, setting, data, lambda found: found[2] + found[0].mean())


def library_quantiser(setting: Setting, data: Inputs, _: int, args: Any) -> Step:
    """vector-quantize-pytorch's."""
    from vector_quantize_pytorch import VectorQuantize

    model = VectorQuantize(
        CODE_DIM, setting.codes, use_cosine_sim=True, decay=0.99, commitment_weight=1.0, rotation_trick=False
    )
    return quantiser_step(model, setting, data, lambda found: found[2].sum() + found[0].mean())


CASES: Mapping[str, Mapping[str, Callable[[Setting, Inputs, int, Any], Step]]] = {
    "a": {"ours": our_tokenizer_step, "plain": plain_tokenizer_step},
    "b": {"ours": our_codes, "plain": plain_codes},
    "c": {"ours": our_pretraining_step, "cached": our_cached_pretraining_step, "plain": plain_pretraining_step},
    "d": {"ours": our_finetuning_step, "plain": plain_finetuning_step, "braindecode": braindecode_finetuning_step},
    "e": {"ours": our_embedding, "plain": plain_embedding, "braindecode": braindecode_embedding},
    "q": {"ours": our_quantiser, "plain": plain_quantiser, "library": library_quantiser},
}
