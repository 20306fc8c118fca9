"""Parameter groups, schedules, and `Update`, which makes one optimizer step.

Paper, tables 3 to 5 of the appendix (hyperparameters). Source of the layer-wise learning-rate decay: BEiT.
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from devices import Graphs
from errors import InputError, UsageError
from norm_ema_quantizer import Later
from utils import Run

logger = logging.getLogger(__name__)

MAX_OVERFLOWS = 20  # steps in a row whose gradient overflows in fp16; each halves the scale
MAX_NONFINITE = 10  # steps in a row whose loss or gradient is not finite
NO_DECAY = ("cls_token", "pos_embed", "time_embed")  # like biases and one-dimensional tensors; the mask token decays
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # these have a fused kernel on CPUs and GPUs
FIRST_LAYER = ("cls_token", "mask_token", "pos_embed")  # like the patch encoder; the time embedding has scale 1


def add_arguments(parser: argparse.ArgumentParser, *, accumulation: str = "gradient_accumulation_steps") -> None:
    """Add the flags of the optimizer and its schedules. accumulation: name of the flag for micro-batches per step."""
    group = parser.add_argument_group("optimizer")
    group.add_argument("--opt", default="adamw", help="any optimizer that timm knows")
    group.add_argument("--opt_eps", type=float, default=1e-8)
    group.add_argument("--opt_betas", type=float, nargs=2, default=(0.9, 0.999))
    group.add_argument("--clip_grad", type=float, default=None, help="largest gradient norm (default: no clipping)")
    group.add_argument("--weight_decay", type=float)
    group.add_argument("--weight_decay_end", type=float, default=None, help="cosine to this value (default: constant)")
    group.add_argument(f"--{accumulation}", type=int, default=1, metavar="N", help="micro-batches per step")
    group.add_argument(
        "--total_batch_size",
        type=int,
        default=None,
        metavar="N",
        help="windows per step over all processes; sets the micro-batches (default: from the other flags)",
    )
    group.add_argument(
        "--nonfinite",
        choices=("skip", "stop"),
        default="skip",
        help=f"what a step does whose loss or gradient is not finite; {MAX_NONFINITE} in a row always stop the run",
    )
    group.add_argument("--lr", type=float, help="highest learning rate")
    group.add_argument("--min_lr", type=float, help="learning rate at the end; never scaled by the batch")
    group.add_argument("--warmup_epochs", type=int)
    group.add_argument("--warmup_steps", type=int, default=-1, help="replaces --warmup_epochs if positive")


def cosine_schedule(
    base: float, final: float, epochs: int, steps_per_epoch: int, *, warmup_epochs: int = 0, warmup_steps: int = -1
) -> np.ndarray:
    """Compute a value for every step: linear warm-up from 0 to base, both included, then half a cosine to final."""
    total = epochs * steps_per_epoch
    warmup = min(warmup_steps if warmup_steps > 0 else warmup_epochs * steps_per_epoch, total)
    steps = np.arange(total - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / max(len(steps), 1)))
    return np.concatenate((np.linspace(0, base, warmup), cosine))


def layer_scale(name: str, depth: int, decay: float) -> float:
    """Return the learning-rate scale of a parameter of a trunk with `depth` blocks: decay^(depth + 1 - layer)."""
    if name in FIRST_LAYER or name.startswith("patch_embed."):
        return decay ** (depth + 1)
    if name.startswith("blocks."):
        return decay ** (depth - int(name.split(".")[1]))
    return 1.0


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group learnable parameters by weight decay and learning-rate scale. Each group lists their `names`."""
    depth = len(list(model.get_submodule("blocks").children())) if layer_decay != 1.0 else 0
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name.split(".")[-1] not in NO_DECAY
        scale = layer_scale(name, depth, layer_decay) if layer_decay != 1.0 else 1.0
        key = (scale, weight_decay if decays else 0.0, decays)
        group = groups.setdefault(
            key, {"params": [], "names": [], "lr_scale": scale, "weight_decay": key[1], "decays": decays}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


class Outcome(NamedTuple):
    """What became of a step. The host reads it while the GPU computes the next one, so that no step waits."""

    taken: Later  # () bool: False if the step was skipped
    finite: list[Tensor]  # for each micro-batch, whether its loss on this process was finite


class Update:
    """One optimizer step: accumulation, gradient exchange, scaling, finite check, clipping, schedules, step count.

    An engine runs its forward pass in `with update.forward():` and then calls `update(loss)`, once per micro-batch. A
    step whose loss or gradient is not finite is skipped on all processes, by the device, before anything has changed:
    `taken` says so to the device, and `settle(outcome)` to the host, at best one step later.
    lr, weight_decay: values at every step; clip_grad: largest gradient norm; accumulation: micro-batches per step.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        run: Run,
        *,
        lr: np.ndarray,
        weight_decay: np.ndarray,
        steps_per_epoch: int,
        clip_grad: float | None = None,
        accumulation: int = 1,
    ) -> None:
        self.model, self.optimizer, self.run = model, optimizer, run
        self.lr_values, self.weight_decay_values = lr, weight_decay
        self.steps_per_epoch = steps_per_epoch
        self.clip_grad = clip_grad if clip_grad else float("inf")
        self.accumulation = accumulation
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp_dtype == torch.float16)
        self.step = 0
        self.stats: dict[str, Tensor | float] = {}  # of the latest step
        self.micro_batch = 0  # index, within the step, of the next micro-batch
        self.taken = torch.ones((), dtype=torch.bool, device=run.device)  # False: the latest step was skipped
        self.outcome: Outcome | None = None  # of the latest step
        self.overflowed = False  # whether the last settled step was skipped only because fp16 cannot hold its gradient
        self.nonfinite_in_a_row = self.overflows_in_a_row = 0
        self.warming_up = False
        self._finite: list[Tensor] = []  # of the step's micro-batches so far
        self._learnable = [p for p in model.parameters() if p.requires_grad]
        self._gradients: Tensor | None = None
        if run.graphs:  # all gradients stay in their places in one tensor, whatever DDP would do with them
            sizes = [p.numel() for p in self._learnable]
            self._gradients = run.place(torch.zeros(sum(sizes)))
            self._places = [g.view_as(p) for g, p in zip(self._gradients.split(sizes), self._learnable, strict=True)]
        self._clear_gradients()

    @property
    def lr(self) -> float:
        """Learning rate of the current step."""
        return float(self.lr_values[min(self.step, len(self.lr_values) - 1)])

    def _exchange(self) -> AbstractContextManager[None]:
        """Exchange gradients between processes, if there are several, with the step's last micro-batch only."""
        last = (self.micro_batch == self.accumulation - 1 or self.warming_up) and not self.run.graphs
        # To exchange nothing DDP would copy each gradient: a tenth of all kernels of a step with Base.
        return nullcontext() if last and self.run.processes > 1 else self.model.no_sync()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Wrap the forward pass of a micro-batch: autocast, if the run uses it."""
        with self._exchange(), self.run.autocast():
            yield

    @contextmanager
    def warm_up_ddp(self) -> Iterator[None]:
        """Run a micro-batch that changes nothing, random state included, while `warming_up` is true.

        After its first backward pass DDP changes the layout of gradients, and with it the order in which more than two
        processes add them up. A resumed run warms up first, to add in the same order as an uninterrupted one.
        """
        devices = [self.run.device] if self.run.device.type == "cuda" else []
        self.warming_up = True
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            self.warming_up = False

    def recorded(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward pass with its backward pass as CUDA graphs, if the run uses them, otherwise as it is.

        forward: from tensors of a batch to a loss and other tensors; all is a function of these and of the weights.
        """
        if not self.run.graphs:
            return forward

        def both(*batch: Tensor) -> Any:
            loss, *others = forward(*batch)
            with torch.autocast(self.run.device.type, enabled=False):
                self._backward(loss)
            return tree_map(Tensor.detach, (loss, *others))

        return Graphs(both)

    def _backward(self, loss: Tensor) -> None:
        # A loss that is not finite makes its gradient NaN, and so the sum that all processes receive.
        poisoned = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        with self._exchange():
            self.scaler.scale(poisoned / self.accumulation).backward()

    def _clear_gradients(self) -> None:
        if self._gradients is None:
            self.optimizer.zero_grad(set_to_none=True)
            return
        self._gradients.zero_()
        for parameter, place in zip(self._learnable, self._places, strict=True):
            parameter.grad = place

    def __call__(self, loss: Tensor) -> bool:
        """Run the backward pass and, with the last micro-batch, the step. Returns True if the step is complete.

        A skipped step changes nothing except the step count and, in fp16, the scale. A `recorded` pass has run the
        backward pass already.
        """
        if loss.requires_grad or not self.run.graphs:
            self._backward(loss)
        if self.warming_up:
            self._clear_gradients()
            return False
        self._finite.append(torch.isfinite(loss.detach()))
        self.micro_batch = (self.micro_batch + 1) % self.accumulation
        if self.micro_batch:
            return False
        if self._gradients is not None and self.run.processes > 1:
            torch.distributed.all_reduce(self._gradients.mul_(1 / self.run.processes))
        self._set_schedules()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._learnable, self.clip_grad)
        # All processes have the same gradient, so all skip or none does.
        self.taken = torch.isfinite(norm)
        self._step_if_taken()
        if self.scaler.is_enabled():
            self.scaler.update()
        self._clear_gradients()
        rates, decays = ([group[key] for group in self.optimizer.param_groups] for key in ("lr", "weight_decay"))
        self.stats = {"lr": max(rates), "min_lr": min(rates), "weight_decay": max(decays), "grad_norm": norm}
        self.outcome, self._finite = Outcome(Later(self.taken), self._finite), []
        self.step += 1
        return True

    def _step_if_taken(self) -> None:
        # Fused Adam leaves everything as it is where `found_inf` is 1. So does fused SGD, but a skipped first step
        # leaves its momentum uninitialised (torch 2.11); the other optimizers know nothing of it, so these two wait.
        if isinstance(self.optimizer, torch.optim.Adam) and self.optimizer.defaults["fused"]:
            vars(self.optimizer).update(grad_scale=None, found_inf=(~self.taken).float())
            self.optimizer.step()
        elif bool(self.taken):
            self.optimizer.step()

    def _set_schedules(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_scale"]
            if group["decays"]:
                group["weight_decay"] = float(self.weight_decay_values[min(self.step, len(self.lr_values) - 1)])

    def settle(self, outcome: Outcome) -> bool:
        """Read on the host whether a step was taken; every process must call it, in the order of steps.

        A skipped one counts as an overflow if all losses are finite in fp16 (the scaler expects these), otherwise as a
        bad step.
        """
        self.overflowed = False
        if bool(outcome.taken.read()):
            self.nonfinite_in_a_row = self.overflows_in_a_row = 0
            return True
        overflow = False
        if self.scaler.is_enabled():
            finite = torch.stack(outcome.finite).all().float()
            torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
            overflow = bool(finite)
        self.overflows_in_a_row += overflow
        self.overflowed = overflow and self.overflows_in_a_row <= MAX_OVERFLOWS
        self.nonfinite_in_a_row += not self.overflowed
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what exact resumption needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "kind": type(self.optimizer).__name__,  # the state fits no other class
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "overflows_in_a_row": self.overflows_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. Raises InputError for another optimizer or other parameter groups."""
        given, own, kind = state["optimizer"], self.optimizer.param_groups, type(self.optimizer).__name__
        try:
            if state.get("kind", kind) != kind:
                raise ValueError(f"it is {state['kind']}, not {kind}")
            if len(given["param_groups"]) != len(own):
                raise ValueError(f"it has {len(given['param_groups'])} parameter groups, not {len(own)}")
            # Keep this run's options, which may differ; torch would take the checkpoint's. Each step sets the rates.
            kept = [{k: v for k, v in group.items() if k not in ("params", "lr", "weight_decay")} for group in own]
            groups = [saved | options for saved, options in zip(given["param_groups"], kept, strict=True)]
            self.optimizer.load_state_dict({**given, "param_groups": groups})
        except (ValueError, KeyError) as error:
            raise InputError(
                f"the checkpoint's optimizer does not fit this run ({error}): use the flags it was made with, or "
                "--no_auto_resume with another --output_dir"
            ) from error
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self.nonfinite_in_a_row = int(state["nonfinite_in_a_row"])
        self.overflows_in_a_row = int(state["overflows_in_a_row"])


def micro_batches(args: argparse.Namespace, run: Run, *, flag: str = "gradient_accumulation_steps") -> int:
    """Return micro-batches per step: from --total_batch_size, or else from `flag`. Raises UsageError if they differ."""
    chosen, total, one = int(getattr(args, flag)), args.total_batch_size, args.batch_size * run.processes
    if total is None:
        return chosen
    if total < 1 or total % one:
        raise UsageError(
            f"--total_batch_size {total} is no multiple of --batch_size {args.batch_size} x {run.processes} "
            f"process(es) = {one}: change one of them"
        )
    if chosen not in (1, total // one):
        raise UsageError(f"--total_batch_size {total} needs {total // one} micro-batches, --{flag} says {chosen}")
    return total // one


def build_update(
    model: DistributedDataParallel,
    args: argparse.Namespace,
    run: Run,
    *,
    steps_per_epoch: int,
    accumulation: int = 1,
    layer_decay: float = 1.0,
    lr_batch: int | None = None,
    paper_batch: int = 512,
) -> Update:
    """Build the optimizer, the schedules and the Update from the flags. Raises UsageError for an unknown optimizer.

    lr_batch: batch that --lr belongs to; the base rate (not --min_lr) is multiplied by total batch / lr_batch.
    """
    total_batch = args.batch_size * run.processes * accumulation
    base = args.lr * total_batch / lr_batch if lr_batch else args.lr
    parts = f"{args.batch_size} x {run.processes} process(es) x {accumulation} micro-batch(es)"
    rates = f"lr {base:.3g} to {args.min_lr:.3g}; {steps_per_epoch} steps per epoch"
    logger.info("Total batch %d = %s (the paper's: %d); %s", total_batch, parts, paper_batch, rates)
    if args.opt.lower() not in list_optimizers():
        raise UsageError(f"--opt {args.opt} is unknown; allowed: {', '.join(map(str, list_optimizers()))}")
    info = get_optimizer_info(args.opt.lower())
    known = {"eps": info.has_eps, "betas": info.has_betas, "fused": info.opt_class in FUSED}
    values = {"eps": args.opt_eps, "betas": tuple(args.opt_betas), "fused": True}
    options: dict[str, Any] = {name: values[name] for name, has in known.items() if has}
    groups = parameter_groups(model.module, weight_decay=args.weight_decay, layer_decay=layer_decay)
    optimizer = create_optimizer_v2(groups, opt=args.opt.lower(), lr=base, weight_decay=0.0, **options)
    end = args.weight_decay if args.weight_decay_end is None else args.weight_decay_end
    length, warmup = (args.epochs, steps_per_epoch), (args.warmup_epochs, args.warmup_steps)
    return Update(
        model,
        optimizer,
        run,
        lr=cosine_schedule(base, args.min_lr, *length, warmup_epochs=warmup[0], warmup_steps=warmup[1]),
        weight_decay=cosine_schedule(args.weight_decay, end, *length),
        steps_per_epoch=steps_per_epoch,
        clip_grad=args.clip_grad,
        accumulation=accumulation,
    )
