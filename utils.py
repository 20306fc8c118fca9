"""The surroundings of a run: flags, device, ranks, seed, precision, signals.

`setup_run` is the only place that knows devices, ranks, seeds and process groups.
"""

import argparse
import dataclasses
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from devices import PeerWatch, find_device, init_groups, use_compiler
from errors import INTERRUPTED, TERMINATED, InputError, Interrupted, PeerLost, UsageError
from files import check_writable
from layers import MAX_PATCHES, PATCH_SAMPLES, compile_blocks

logger = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

ALMOST_ONE = 0.999  # dropping everything leaves nothing to learn from
# Flags of all scripts whose numbers have limits, both allowed; window_stride is in samples, time_window in seconds.
FLAG_LIMITS = {
    "epochs save_ckpt_freq batch_size update_freq gradient_accumulation_steps lora": (1, math.inf),
    "codebook_n_emd codebook_emd_dim window_stride": (1, math.inf),
    "seed start_epoch num_workers warmup_epochs keep_last freeze_blocks patience": (0, math.inf),
    "lr min_lr weight_decay weight_decay_end clip_grad opt_eps": (0, math.inf),
    "lora_alpha task_weights": (math.nextafter(0, 1), math.inf),
    "drop drop_path attn_drop_rate smoothing lora_dropout": (0, ALMOST_ONE),
    "ema_decay model_ema_decay layer_decay": (0, 1),
    "opt_betas": (0, math.nextafter(1, 0)),
    "time_window": (1, MAX_PATCHES),
    "input_size": (PATCH_SAMPLES, MAX_PATCHES * PATCH_SAMPLES),
}
LOCAL_FLAGS = {"output_dir", "log_dir", "device", "num_workers"}  # may differ between the processes of a run
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # products of float32 with 10 bits of fraction, on GPUs
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
TF32_CAPABILITY = 8  # of GPUs that have TF32
EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGUSR1"):  # Windows has none
    EXIT_CODES[signal.SIGUSR1] = TERMINATED


def add_switch(parser: Any, name: str, *, default: bool | None, help: str) -> None:
    """Add `--name` and `--no_name`, in the released scripts' spelling of a boolean flag."""
    words = f"{help} (default)" if default else help
    parser.add_argument(f"--{name}", dest=name, action="store_true", default=default, help=words)
    parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=f"not: {help}")


def add_size(group: Any, name: str, sizes: Iterable[str], default: str) -> None:
    """Add the flag `--name` for a model's size."""
    names = list(sizes)
    group.add_argument(f"--{name}", choices=names, default=default, metavar="NAME", help=", ".join(names))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the run itself: output, device, seed, length, checkpoints, resumption."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--output_dir", type=Path, help="folder for checkpoints, log.txt and environment.json")
    add("--log_dir", type=Path, help="folder for TensorBoard scalars (default: none)")
    add("--device", default="auto", help="cuda or cpu (default: cuda on a machine with GPUs)")
    words = "auto: bf16 where the GPU has it, else fp16 with a gradient scaler, fp32 on a CPU"
    add("--precision", choices=["auto", *PRECISIONS], default="auto", help=words)
    words = "compile transformer blocks, which takes minutes at first (default: on GPUs, not on CPUs)"
    add_switch(group, "compile", default=None, help=words)
    words = "have a GPU repeat recorded steps, for models whose kernels it computes faster than the host launches them"
    add_switch(group, "cuda_graphs", default=False, help=words)
    add("--seed", type=int, default=0)
    add("--epochs", type=int)
    add("--start_epoch", type=int, default=0, help="first epoch of a run that resumes nothing")
    add("--resume", type=Path, help="checkpoint to continue from")
    add_switch(group, "auto_resume", default=True, help="continue from output_dir/checkpoint.pth if it exists")
    add("--resume_anyway", action="store_true", help="begin an epoch again if its steps would now hold other windows")
    add("--save_ckpt_freq", type=int, help="also keep checkpoint-<epoch>.pth every so many epochs")
    words = "also write checkpoint.pth inside an epoch (default: %(default)s; 0: never)"
    add("--save_every_minutes", type=float, default=30.0, metavar="M", help=words)
    add("--keep_last", type=int, default=0, metavar="N", help="keep only the last N checkpoint-<epoch>.pth (0: all)")
    add_switch(group, "save_ckpt", default=True, help="write checkpoints")


def add_trunk_arguments(group: Any) -> None:
    """Add the flags of the transformer that stages 2 and 3 share."""
    add = group.add_argument
    add("--layer_scale_init_value", type=float, metavar="VALUE", help="default: 0.1 base, 1e-5 large, 1e-6 huge")
    add("--drop_path", type=float, help="rate of the last block; 0.2 for huge in stage 3")
    add("--drop", type=float, default=0.0, help="dropout")
    add("--attn_drop_rate", type=float, default=0.0)
    add("--input_size", type=int, help="nominal samples, only checked: windows follow the data")
    add_switch(group, "abs_pos_emb", default=True, help="electrode embedding")
    add("--grad_checkpoint", action="store_true", help="less memory, slower: compute the blocks twice")


def trunk_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return a model's keyword arguments from the flags of `add_trunk_arguments` and --num_electrodes."""
    return {
        "drop_rate": args.drop,
        "drop_path_rate": args.drop_path,
        "attn_drop_rate": args.attn_drop_rate,
        "init_values": args.layer_scale_init_value,
        "use_abs_pos_emb": args.abs_pos_emb,
        "num_electrodes": args.num_electrodes,
        "grad_checkpoint": args.grad_checkpoint,
    }


def gather(own: T) -> list[T]:
    """Collect every rank's object, on all ranks, in their order. Every process must call it."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


class Interruption:
    """Signals that ask a run to stop (clusters send SIGTERM or SIGUSR1), shared so that all ranks stop at one call.

    While `listening()`, they are only noted. `sync_signals()`, called after every step, shares the notes.
    """

    def __init__(self, cpu_group: Any = None) -> None:
        """cpu_group: all processes on CPUs, so that no GPU is waited for; None for a single process."""
        self._number = 0  # of the signal that this process received
        self._cpu_group = cpu_group
        self._under_way: tuple[Tensor, Any] | None = None
        self.on_stop: Callable[[], str] = str  # saves; returns what to say after "stopped by SIGTERM"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of dying from them."""
        before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self._number == number:
            raise KeyboardInterrupt
        self._number = number

    def sync_signals(self, save: bool = False) -> bool:
        """Share pending signals with all ranks. Raises Interrupted if any rank had one at the previous call.

        save: whether this rank wants a checkpoint. Returns whether any rank wanted one at the previous call. The
        exchange runs between two calls, so every request takes effect one call late, on all ranks alike.
        """
        request = torch.tensor([self._number, int(save)])
        if self._cpu_group is None:
            number, wanted = request.tolist()
        else:
            number, wanted = 0, 0
            if self._under_way is not None:
                shared, work = self._under_way
                work.wait()
                number, wanted = shared.tolist()
            work = dist.all_reduce(request, op=dist.ReduceOp.MAX, group=self._cpu_group, async_op=True)
            self._under_way = request, work
        if number:
            raise Interrupted(f"stopped by {signal.Signals(number).name}{self.on_stop()}", EXIT_CODES[number])
        return bool(wanted)


@dataclasses.dataclass(frozen=True)
class Run:
    """Where this process runs and what it may write."""

    device: torch.device
    rank: int
    processes: int
    seed: int
    output_dir: Path
    amp_dtype: torch.dtype | None  # of autocast; None: no autocast
    dtype: torch.dtype  # of weights and data: float32, or float64 for comparisons
    compiled: bool = False  # whether transformer blocks go through torch.compile
    interruption: Interruption = dataclasses.field(default_factory=Interruption)
    cpu_group: Any = None  # all processes on CPUs; None for a single process
    copies: torch.cuda.Stream | None = None  # on which a GPU receives batches; None on a CPU
    graphs: bool = False  # whether a GPU's steps are recorded as CUDA graphs

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and log lines."""
        return self.rank == 0

    def place(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the run's device; floating-point ones in the run's type."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype, non_blocking=True)

    def move(self, batch: T) -> T:
        """Return a batch on the run's device. A GPU copies it aside, while it computes what is due."""
        moved: Any = batch
        if self.copies is None:
            return moved.to(self)
        with torch.cuda.stream(self.copies):
            moved = moved.to(self)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self.copies)
        for tensor in moved:
            if tensor.is_cuda:
                tensor.record_stream(computing)  # no later batch gets its memory before that
        return moved

    def autocast(self) -> torch.autocast:
        """Return autocast in the run's half precision, if it has one."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Do work on rank 0 only; give its result, or its InputError, to all ranks. Files are read and written once."""
        shared: list[Any] = [None, None]  # result, error
        original: Exception | None = None
        if self.is_main:
            try:
                shared[0] = work()
            except Exception as error:  # the others must not wait for ever
                original = error
                shared[1] = error if isinstance(error, InputError) else PeerLost("ended because process 0 did")
        if self.cpu_group is not None:
            dist.broadcast_object_list(shared, src=0, group=self.cpu_group)
        if original or shared[1]:
            raise original or shared[1]
        return shared[0]

    def check_same(self, values: Mapping[str, Any], way_out: str) -> None:
        """Raise InputError, on all ranks, that names the first value that differs between ranks. way_out: its end."""
        gathered = gather(dict(values))
        for rank, other in enumerate(gathered):
            for name in sorted(gathered[0].keys() | other.keys()):
                first, own = gathered[0].get(name), other.get(name)
                if first != own:
                    raise InputError(f"process {rank} has another {name} ({own}) than process 0 ({first}): {way_out}")

    def evaluation_batches(self, loader: Any, title: str = "evaluating") -> Iterator[Any]:
        """Yield the batches of an evaluation, with a bar on a terminal; a signal may stop the run between two."""
        batches = iter(tqdm(loader, title, leave=False, disable=None if self.is_main else True))
        for _ in range(loader.batch_sampler.rounds):  # the same on all ranks, which exchange signals in each
            if (batch := next(batches, None)) is not None:
                yield batch
            self.interruption.sync_signals()

    def prepare(self, model: M) -> M:
        """Move a model to the device, in the run's type, and compile its blocks if the run compiles."""
        model.to(self.device, self.dtype)
        if self.compiled:
            compile_blocks(model)
        return model

    def distribute(self, model: nn.Module, *, heads: int = 1) -> DistributedDataParallel:
        """Prepare a model, give all ranks the weights of rank 0, and wrap it so that gradients are averaged.

        heads: of which a step uses one; the others get no gradient, so that the optimizer leaves them as they are.
        Raises UsageError for several with CUDA graphs, which keep all gradients in one tensor.
        """
        if heads > 1 and self.graphs:
            raise UsageError("--cuda_graphs is for one data set: leave it out, or give one --dataset")
        self.prepare(model)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are the codebook's, which the quantiser keeps equal.
        options: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=heads > 1, **options)


@contextmanager
def setup_run(args: argparse.Namespace) -> Iterator[Run]:
    """Set up device, seed, logging, process group and output folder; tear the group down at the end, also on errors.

    Under torchrun the group has its processes (NCCL on GPUs, Gloo on CPUs), otherwise one. Raises UsageError for a
    device that cannot be used or an output folder that cannot be written, PeerLost if another process ended.
    """
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")  # warnings come once
    device = find_device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
    args.device = device.type if args.device == "auto" else args.device
    _check_flags(args)
    if rank == 0:  # the others write nothing, and on other machines they may not be able to
        for flag, folder in (("output_dir", args.output_dir), ("log_dir", args.log_dir)):
            if folder is not None:
                check_writable(folder, f"--{flag}")
    types = set_precision(args.precision, device)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed % 2**32)
    cpu_group = init_groups(device)
    processes = dist.get_world_size()
    place = (device, dist.get_rank(), processes, args.seed, args.output_dir, *types)
    copies = torch.cuda.Stream() if device.type == "cuda" else None
    graphs = args.cuda_graphs and copies is not None
    if args.cuda_graphs and not graphs:
        logger.warning("--cuda_graphs is for GPUs: on a CPU it changes nothing.")
    if graphs:  # only the default stream's work cannot be recorded
        torch.cuda.set_stream(torch.cuda.Stream())
    run = Run(*place, use_compiler(args.compile, device), Interruption(cpu_group), cpu_group, copies, graphs)
    watch = PeerWatch() if processes > 1 else None
    try:
        run.check_same(_common_flags(args), "start all machines with the same command")
        with logging_redirect_tqdm():  # lines of the log stand above a bar
            yield run
    finally:
        # After an error of one process the others still wait for it in an exchange, and a group with an exchange
        # under way cannot be destroyed: `errors.run_script` ends such a process without.
        error = sys.exc_info()[1]
        if processes == 1 or error is None or isinstance(error, Interrupted):
            if watch is not None:
                watch.leave()
            dist.destroy_process_group()


def _common_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Flags that must match on every rank. Paths may differ between machines, so only their presence is compared."""

    def has_path(value: Any) -> bool:
        return isinstance(value, Path) or (isinstance(value, list) and any(map(has_path, value)))

    return {f"--{name}": has_path(flag) or flag for name, flag in vars(args).items() if name not in LOCAL_FLAGS}


def set_precision(name: str, device: torch.device) -> tuple[torch.dtype | None, torch.dtype]:
    """Return the type of autocast (None: no autocast) and the type of the weights; switch TF32 on or off.

    name: of PRECISIONS or auto. Raises UsageError for one that the device does not have.
    """
    if name == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        name = "fp32" if device.type == "cpu" else "bf16" if bf16 else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    tf32 = name == "tf32"
    if tf32 and (device.type == "cpu" or torch.cuda.get_device_capability(device)[0] < TF32_CAPABILITY):
        raise UsageError("--precision tf32 needs a GPU of compute capability 8.0 (Ampere) or newer; use fp32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    dtype = PRECISIONS[name]
    return (dtype, torch.float32) if dtype.itemsize == torch.half.itemsize else (None, dtype)


def _check_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for a number that cannot be right, whichever script it belongs to."""
    if args.cuda_graphs and getattr(args, "grad_checkpoint", False):
        raise UsageError("--cuda_graphs cannot record what --grad_checkpoint computes again: leave one of them out")
    for names, (low, high) in FLAG_LIMITS.items():
        for name in names.split():
            value = getattr(args, name, None)
            for number in value if isinstance(value, list | tuple) else [value]:
                if number is not None and not low <= number <= high:
                    least = "above 0" if low == math.nextafter(0, 1) else f"from {low}"
                    allowed = f"numbers {least}" + ("" if high == math.inf else f" to {high}")
                    raise UsageError(f"--{name} {number}: allowed are {allowed}")
