"""What every run needs around its training step: device and processes, the metric log, and the state of a training.

`setup_run` is the only place that knows devices, ranks, seeds and process groups; `TrainingState` is the only one
that knows positions, log files, checkpoints and resumption. The optimizer step itself is `optim_factory.Update`.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import checkpoints
from errors import InputError, UsageError
from layers import check_window
from progress import MetricLog, Progress, duration, plain, write_json
from version import code_version

if TYPE_CHECKING:
    from optim_factory import Update

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "h5py", "mne", "einops", "tensorboardX")
_last_group: list[Any] = []
LOG_ONLY = ("_lr", "_decay", "_total_loss", "_seconds", "_per_second")  # in log.txt, not on the terminal
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_switch(parser: Any, name: str, *, default: bool, help: str) -> None:
    """Add `--name` and `--no_name`, in the released scripts' spelling of a boolean flag."""
    parser.add_argument(f"--{name}", dest=name, action="store_true", default=default, help=help)
    parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=f"not: {help}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the run itself: output, device, seed, length, checkpoints, resumption."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, help="folder for checkpoints, log.txt and environment.json")
    group.add_argument("--log_dir", type=Path, default=None, help="folder for TensorBoard scalars (default: none)")
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    group.add_argument(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="auto: bf16 where the GPU has it, else fp16 with a gradient scaler, fp32 on a CPU",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--epochs", type=int)
    group.add_argument("--start_epoch", type=int, default=0, help="first epoch where nothing is resumed")
    group.add_argument("--resume", type=Path, default=None, help="checkpoint to continue from")
    add_switch(group, "auto_resume", default=True, help="continue from output_dir/checkpoint.pth where it exists")
    group.add_argument("--save_ckpt_freq", type=int, help="also keep checkpoint-<epoch>.pth every so many epochs")
    add_switch(group, "save_ckpt", default=True, help="write checkpoints")


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

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and log lines."""
        return self.rank == 0

    def place(self, tensor: Tensor) -> Tensor:
        """A tensor on the run's device; floating-point ones in the run's type."""
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """Autocast in the run's half precision, if it has one."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def distribute(self, model: nn.Module) -> DistributedDataParallel:
        """Move a model to the device and wrap it so that gradients are averaged over processes (also over one)."""
        model.to(self.device, self.dtype)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are the codebook's, which is kept equal by the quantiser itself.
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


@contextmanager
def setup_run(args: argparse.Namespace) -> Iterator[Run]:
    """Set up device, seed, logging, process group and output folder, and tear the group down again, also on errors.

    Under torchrun the group has its processes (NCCL on GPUs, Gloo on CPUs), otherwise one. Raises UsageError for a
    GPU that is not there or an output folder that cannot be written.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s", stream=sys.stderr)
    device = _device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
    _check_flags(args)
    _make_output_dir(args.output_dir)
    amp_dtype, dtype = _precision(args.precision, device)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed % 2**32)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    else:
        backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # Kept until the next run: a model that frees its group right after an exchange can wait for Gloo's thread, which
    # waits for Python, for ever.
    _last_group[:] = [dist.group.WORLD]
    try:
        run = Run(device, rank, processes, args.seed, args.output_dir, amp_dtype, dtype)
        if run.is_main and not getattr(args, "eval", False):
            write_json(args.output_dir / "environment.json", environment(args, run))
        yield run
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is no device; allowed: cuda, cuda:<index>, cpu") from error
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise UsageError(
                f"--device {name}: GPU {index} is not there ({found} found); use --device cpu, or fewer "
                "processes (--nproc_per_node)"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UsageError(f"--device {name} is not supported; allowed: cuda, cuda:<index>, cpu")
    return device


def _precision(name: str, device: torch.device) -> tuple[torch.dtype | None, torch.dtype]:
    """Autocast type (None for none) and type of the weights."""
    if name == "auto":
        if device.type == "cpu":
            return None, torch.float32
        return (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16), torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
    dtype = PRECISIONS[name]
    return (None, dtype) if dtype in (torch.float32, torch.float64) else (dtype, torch.float32)


def _check_flags(args: argparse.Namespace) -> None:
    limits = {
        "epochs": 1,
        "seed": 0,
        "start_epoch": 0,
        "save_ckpt_freq": 1,
        "batch_size": 1,
        "num_workers": 0,
        "update_freq": 1,
        "gradient_accumulation_steps": 1,
    }
    for name, lowest in limits.items():
        if getattr(args, name, lowest) < lowest:
            raise UsageError(f"--{name} {getattr(args, name)}: allowed are whole numbers from {lowest}")
    try:
        check_window(args.input_size)
    except InputError as error:
        raise UsageError(f"--input_size {args.input_size}: {error}") from error


def _make_output_dir(folder: Path) -> None:
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--output_dir {folder} cannot be written ({error.strerror}): choose another folder"
        ) from error


def environment(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Code version, library versions, hardware and flags of a run."""
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else None
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "hardware": {
            "machine": platform.machine(),
            "cpu_cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(run.device),
            "gpu": gpu,
            "processes": run.processes,
        },
        "flags": plain(vars(args)),
    }


def load_for_evaluation(
    model: nn.Module, args: argparse.Namespace, run: Run, *, stage: str, averaged: bool = False
) -> int:
    """Load `--resume`, or the output folder's best or latest checkpoint, for `--eval`. Returns its epoch.

    averaged: take the averaged weights (--model_ema). Raises InputError for another stage or architecture.
    """
    kept = [run.output_dir / name for name in ("checkpoint-best.pth", "checkpoint.pth")]
    path = args.resume or next((path for path in kept if path.is_file()), kept[-1])
    state = checkpoints.read(path)
    weights = checkpoints.model_state(state, path)
    checkpoints.check_stage(weights, [stage], path)
    if averaged:
        if "model_ema" not in state.get("extras", {}):
            raise InputError(f"{path} holds no averaged weights: leave out --model_ema or train with it")
        weights = checkpoints.model_state({"model": state["extras"]["model_ema"]}, path)
    checkpoints.load_strictly(model, weights, where=str(path))
    logger.info("Evaluating %s.", path)
    return int(state.get("epoch", 0))


def _epoch_of(line: str) -> float:
    """Epoch of a line of log.txt; infinity for one that a killed run left unfinished."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TrainingState:
    """Position, meters, log files, checkpoints and resumption of one training; `steps()` is its loop."""

    def __init__(
        self,
        model: DistributedDataParallel,
        update: "Update",
        run: Run,
        args: argparse.Namespace,
        *,
        stage: str,
        extras: dict[str, Any] | None = None,
    ) -> None:
        """stage: a key of checkpoints.STAGES; extras: further things with state_dict and load_state_dict, by name."""
        self.model, self.update, self.run, self.stage = model, update, run, stage
        self.extras = extras or {}
        self.epochs = args.epochs
        self.flags = plain(vars(args))
        self.save_every = args.save_ckpt_freq if args.save_ckpt else None
        self.log = MetricLog()
        self.seconds = 0.0
        self.samples = 0
        self._writer = SummaryWriter(str(args.log_dir)) if run.is_main and args.log_dir else None
        self.n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(
            "%s: %.2f million learnable parameters, %d process(es) on %s",
            args.model,
            self.n_parameters / 1e6,
            run.processes,
            run.device,
        )

    def resume(self, args: argparse.Namespace) -> int:
        """Load `--resume` or, unless `--no_auto_resume`, output_dir/checkpoint.pth. Returns the first epoch."""
        latest = self.run.output_dir / "checkpoint.pth"
        path = args.resume or (latest if args.auto_resume and latest.is_file() else None)
        if path is None:
            self.update.step = args.start_epoch * self.update.steps_per_epoch
            self._set_log_aside()
            return int(args.start_epoch)
        state = checkpoints.read(path)
        weights = checkpoints.model_state(state, path)
        checkpoints.check_stage(weights, [self.stage], path)
        if "update" not in state:
            raise InputError(
                f"{path} holds weights but not the state of a run of this code (the released code's files "
                "and exports do not): it can start a run or be evaluated, not be resumed; "
                "use --no_auto_resume or another --output_dir"
            )
        checkpoints.load_strictly(self.model.module, weights, where=str(path))
        self.update.load_state_dict(state["update"] | {"optimizer": state["optimizer"], "scaler": state["scaler"]})
        for name, extra in self.extras.items():
            if name in state["extras"]:
                extra.load_state_dict(state["extras"][name])
        epoch = int(state["epoch"]) + 1
        self._cut_log(epoch)
        left = f"epoch {epoch} of {self.epochs}" if epoch < self.epochs else f"all {self.epochs} epochs are done"
        logger.info("Continuing from %s: %s.", path, left)
        return epoch

    def steps(self, loader: Any, epoch: int) -> Iterator[Any]:
        """Yield the epoch's batches on the device; between two of them numbers are shown and nothing else happens."""
        self.log, self.samples = MetricLog(), 0
        loader.batch_sampler.set_epoch(epoch)
        # Dropout and drop path differ between processes and are the same again when an epoch is repeated.
        torch.manual_seed(int(np.random.SeedSequence((self.run.seed, epoch, self.run.rank)).generate_state(1)[0]))
        progress = Progress(self.run.is_main, f"epoch {epoch}", len(loader))
        for batch in loader:
            yield batch.to(self.run)
            self.samples += len(batch.eeg) * self.run.processes
            progress.step(self._numbers(progress, epoch) if progress.due() else None)
        self.seconds = progress.close()

    def _numbers(self, progress: Progress, epoch: int) -> str:
        done = progress.done + 1
        left = progress.seconds / done * (progress.total * (self.epochs - epoch) - done)
        rate = self.samples / max(progress.seconds, 1e-9)
        return f"loss {self.log.mean('loss'):.4f}, lr {self.update.lr:.2g}, {rate:.1f} samples/s, left {duration(left)}"

    def finish_epoch(self, epoch: int, stats: dict[str, Any] | None = None, *, best: bool = False) -> dict[str, Any]:
        """Write the epoch's line to log.txt and TensorBoard and the checkpoints. stats: further entries of the line.

        best: also write checkpoint-best.pth. Every process must call it. Returns the line.
        """
        means = {f"train_{name}": value for name, value in self.log.means().items()}
        speed = self.samples / self.seconds if self.seconds else 0.0
        line = {
            **means,
            **(stats or {}),
            "epoch": epoch,
            "n_parameters": self.n_parameters,
            "epoch_seconds": round(self.seconds, 3),
            "samples_per_second": round(speed, 3),
        }
        if self.run.is_main:
            with (self.run.output_dir / "log.txt").open("a") as file:
                file.write(json.dumps(plain(line)) + "\n")
            numbers = {n: v for n, v in line.items() if n not in ("epoch", "n_parameters") and math.isfinite(v)}
            shown = [f"{name} {value:.4g}" for name, value in numbers.items() if not name.endswith(LOG_ONLY)]
            logger.info("epoch %d: %s", epoch, ", ".join(shown))
            if self._writer:
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, epoch)
                self._writer.flush()
            # After the log: where a run is killed in between, the epoch is trained and logged again.
            self._save(epoch, best)
        dist.barrier()
        return line

    def _save(self, epoch: int, best: bool) -> None:
        if self.save_every is None:
            return
        update = self.update.state_dict()
        state = {
            "model": self.model.module.state_dict(),
            "optimizer": update.pop("optimizer"),
            "scaler": update.pop("scaler"),
            "epoch": epoch,
            "args": self.flags,
            "stage": self.stage,
            "update": update,
            "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
        }
        names = ["checkpoint-best.pth"] if best else []
        if (epoch + 1) % self.save_every == 0:
            names.append(f"checkpoint-{epoch}.pth")
        for name in [*names, "checkpoint.pth"]:  # the latest comes last: it says that the others are there
            checkpoints.save(state, self.run.output_dir / name)

    def _set_log_aside(self) -> None:
        log = self.run.output_dir / "log.txt"
        if self.run.is_main and log.is_file():
            os.replace(log, log.with_name("log.previous.txt"))
            logger.info("A new run starts in %s: the old log.txt is now log.previous.txt.", self.run.output_dir)

    def _cut_log(self, epoch: int) -> None:
        """Leave out lines of epochs that the checkpoint does not cover: they will be trained and logged again."""
        log = self.run.output_dir / "log.txt"
        if not self.run.is_main or not log.is_file():
            return
        kept = [line for line in log.read_text().splitlines() if _epoch_of(line) < epoch]
        aside = log.with_name(".log.txt.tmp")
        aside.write_text("".join(f"{line}\n" for line in kept))
        os.replace(aside, log)
