"""The state of one training: position, meters, log files, checkpoints, resumption; and loading for evaluation.

A run continues after its last finished epoch.
"""

import argparse
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tensorboardX import SummaryWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import checkpoints
from errors import InputError
from files import written_aside
from optim_factory import Update
from progress import MetricLog, Progress, duration, plain, write_json
from utils import Run, environment

logger = logging.getLogger(__name__)

LOG_ONLY = ("_lr", "_decay", "_total_loss", "_seconds", "_per_second")  # in log.txt, not on the terminal


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
    epoch = state.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


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
        update: Update,
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
        decision = [path]  # process 0's: the others may not see its folder, and must not start anew on their own
        dist.broadcast_object_list(decision, src=0)
        path = decision[0]
        epoch = self._start(args) if path is None else self._continue(path)
        if self.run.is_main:
            write_json(self.run.output_dir / "environment.json", environment(args, self.run))
        return epoch

    def _start(self, args: argparse.Namespace) -> int:
        self.update.step = args.start_epoch * self.update.steps_per_epoch
        self._set_log_aside()
        return int(args.start_epoch)

    def _continue(self, path: Path) -> int:
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
            if name not in state["extras"]:
                raise InputError(f"{path} holds no {name}: resume with the flags that it was made with")
            extra.load_state_dict(state["extras"][name])
        epoch = int(state["epoch"]) + 1
        self._cut_log(epoch)
        self._set_later_best_aside(epoch)
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
        with written_aside(log) as part:
            part.write_text("".join(f"{line}\n" for line in kept))

    def _set_later_best_aside(self, epoch: int) -> None:
        """Rename a best checkpoint of an epoch that will be trained again: `--eval` must not take it for this run's."""
        best = self.run.output_dir / "checkpoint-best.pth"
        if not self.run.is_main or not best.is_file():
            return
        try:
            later = int(checkpoints.read(best)["epoch"]) >= epoch
        except (InputError, KeyError):
            later = True
        if later:
            os.replace(best, best.with_name("checkpoint-best.previous.pth"))
            logger.warning("%s is of a later epoch: it is now checkpoint-best.previous.pth.", best)
