"""The state of one training: position, meters, checkpoints, resumption; and loading for evaluation.

A run that ended, in whatever way, continues after the last step that a checkpoint holds, to the last bit.
"""

import argparse
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from errors import InputError, Interrupted
from files import plain, sha256, write_json
from layers import load_strictly
from optim_factory import MAX_NONFINITE, Update
from training import checkpoints
from training.fingerprint import Fingerprint, check_same_run, digest_of_weights, same_batches
from training.log import MetricLog, Progress, duration
from training.run_log import RunLog, named
from utils import EXIT_CODES, Run, environment

logger = logging.getLogger(__name__)


def load_for_evaluation(
    model: nn.Module, args: argparse.Namespace, run: Run, *, stage: str, averaged: bool = False
) -> int:
    """Load `--resume`, or the output folder's best or latest checkpoint, for `--eval`. Returns its epoch.

    averaged: take the averaged weights (--model_ema). Raises InputError for another stage or architecture.
    """
    kept = [run.output_dir / name for name in (checkpoints.BEST, checkpoints.LATEST)]
    path = run.run_on_rank0(lambda: args.resume or next((path for path in kept if path.is_file()), kept[-1]))
    state = run.run_on_rank0(lambda: checkpoints.read(path))
    checkpoints.check_stage(checkpoints.model_state(state, path), [stage], path)
    weights = checkpoints.averaged_state(state, path) if averaged else checkpoints.model_state(state, path)
    load_strictly(model, weights, where=str(path))
    logger.info("Evaluating %s.", path)
    if not averaged and "model_ema" in state.get("extras", {}):
        logger.warning("%s: training evaluated the averaged weights it also holds: --model_ema takes them.", path)
    if state.get("step"):
        logger.warning(
            "%s was written after step %s of an epoch, so training has no metrics of it.", path, state["step"]
        )
    epoch = state.get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


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
        fingerprint: Fingerprint | None = None,
        data_set: dict[str, Any] | None = None,
    ) -> None:
        """stage: a key of checkpoints.STAGES; extras: further things with state_dict and load_state_dict, by name.

        fingerprint: what decides the run's numbers; without one nothing is compared on resumption.
        data_set: what checkpoints say of a classifier's data, for those who use it; nothing depends on it here.
        """
        self.model, self.update, self.run, self.stage = model, update, run, stage
        self.extras = extras or {}
        self.fingerprint, self.data_set = fingerprint, data_set
        self.epochs = args.epochs
        self.flags = plain(vars(args))
        self.save_every = args.save_ckpt_freq if args.save_ckpt else None
        self.save_seconds = args.save_every_minutes * 60 if args.save_ckpt else 0.0
        self.keep_last = args.keep_last
        self.stop_at_bad_step = args.nonfinite == "stop"
        self.log = MetricLog(held=True)
        self.epoch, self.step = 0, 0  # that come next
        self.resumed_from: str | None = None  # digest of the file that --resume named when the run began
        self.skipped_steps = 0  # of the epoch
        self.seconds, self.samples = 0.0, 0
        self._mark_step()
        self._saved = time.monotonic()
        self._continued: dict[str, Any] | None = None  # this process's part of a checkpoint inside an epoch
        # With one or two processes the order of a sum does not matter.
        self._warm_up_due = run.processes > 2
        self.run_log = RunLog(run.output_dir, args.log_dir, visible=run.is_main)
        self.n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(
            "%s: %.2f million learnable parameters, %d process(es) on %s",
            args.model,
            self.n_parameters / 1e6,
            run.processes,
            run.device,
        )

    # Resumption

    def resume(self, args: argparse.Namespace) -> int:
        """Load `--resume` or, unless `--no_auto_resume`, the output folder's newest whole checkpoint.

        Returns the epoch to go on with; `steps()` begins at the right step of it.
        """
        if self.run.is_main:
            for part in self.run.output_dir.glob(".*.part"):  # of a process that was killed while it wrote
                part.unlink(missing_ok=True)
        if self.fingerprint is not None:
            data = {**self.fingerprint["data"], **self.fingerprint["weights"]}
            self.run.check_same(data, "start all machines with the same data")
        found = self.run.run_on_rank0(lambda: self._find(args))
        if found is None:
            self.epoch = int(args.start_epoch)
            self.run.run_on_rank0(self.run_log.begin)
            self.run.run_on_rank0(lambda: checkpoints.settle_best(self.run.output_dir, {}))
        else:
            self._continue(*found, anyway=args.resume_anyway)
        self.update.step = self.epoch * self.update.steps_per_epoch + self.step
        if self.run.is_main:
            write_json(self.run.output_dir / "environment.json", environment(args, self.run))
        self.run.interruption.on_stop = self._stop
        return self.epoch

    def _find(self, args: argparse.Namespace) -> tuple[Path, dict[str, Any]] | None:
        """What to continue from. A second start of a command with --resume goes on with what the first one saved."""
        folder, newest = self.run.output_dir, None
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        if not args.resume:
            return checkpoints.read_newest(folder) if args.auto_resume or restarted else None
        if args.resume.is_file():  # else it is read, which says what to do
            self.resumed_from = sha256(args.resume)
            try:
                newest = checkpoints.read_newest(folder)
            except InputError as error:  # what --resume names may be the way out
                logger.warning("%s", error)
        if newest is not None and newest[1].get("resumed_from") == self.resumed_from:
            return newest
        return args.resume, checkpoints.read(args.resume)

    def _continue(self, path: Path, state: dict[str, Any], *, anyway: bool) -> None:
        weights = checkpoints.model_state(state, path)
        checkpoints.check_stage(weights, [self.stage], path)
        if "update" not in state or "processes" not in state:
            raise InputError(
                f"{path} holds weights but not the state of a run of this code (the released code's files "
                "and exports do not): it can start a run or be evaluated, not be resumed; "
                "use --no_auto_resume or another --output_dir"
            )
        self.resumed_from = self.resumed_from or state.get("resumed_from")
        self.epoch, self.step = int(state["epoch"]) + 1, int(state["step"])
        saved = state.get("fingerprint")
        if self.fingerprint is not None and saved is not None:
            check_same_run(saved, self.fingerprint, path, inside_epoch=self.step > 0, anyway=anyway)
            if self.step and not same_batches(saved, self.fingerprint):
                logger.warning("Steps hold other windows than in %s: epoch %d is begun again.", path, self.epoch)
                self.step = 0
        load_strictly(self.model.module, weights, where=str(path))
        self.update.load_state_dict(state["update"] | {"optimizer": state["optimizer"], "scaler": state["scaler"]})
        for name, extra in self.extras.items():
            if name not in state["extras"]:
                raise InputError(f"{path} holds no {name}: resume with the flags that it was made with")
            extra.load_state_dict(state["extras"][name])
        if self.step:
            self._continued = state["processes"][self.run.rank]
        if self.save_every is not None:
            self.run.run_on_rank0(lambda: self._take_over(path))
        self.run.run_on_rank0(lambda: self.run_log.cut(self.epoch, self.step))
        self.run.run_on_rank0(lambda: checkpoints.settle_best(self.run.output_dir, state))
        place = f"step {self.step} of epoch {self.epoch}" if self.step else f"epoch {self.epoch} of {self.epochs}"
        done = self.epoch >= self.epochs
        logger.info("Continuing from %s: %s.", path, f"all {self.epochs} epochs are done" if done else place)

    def _take_over(self, path: Path) -> None:
        """Make a file of --resume the run's newest checkpoint, before the log is cut to it."""
        latest = self.run.output_dir / checkpoints.LATEST
        there, before = latest.is_file(), latest.with_name(checkpoints.BEFORE)
        if path.resolve() == latest.resolve() or (there and sha256(path) == sha256(latest)):
            return
        if there and path.resolve() != before.resolve():
            checkpoints.rename(latest, before)
        checkpoints.copy(path, latest)

    # The loop

    def inside(self, epoch: int) -> bool:
        """Whether an epoch was begun before, and is to be continued."""
        return epoch == self.epoch and self.step > 0

    def steps(self, loader: Any, epoch: int) -> Iterator[Any]:
        """Yield the epoch's batches on the device; between two of them numbers are shown, and the run may be saved.

        loader: with `TrainingBatches`. Every process must go through all of it.
        """
        sampler, accumulation = loader.batch_sampler, self.update.accumulation
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0
        sampler.set_epoch(epoch, self.step)
        self._begin_epoch(epoch)
        begun = time.monotonic() - self.seconds
        done = self.step * accumulation
        with closing(Progress(self.run.is_main, f"epoch {epoch}", len(loader), done=done)) as progress:
            for batch in loader:
                batch = batch.to(self.run)
                if self._warm_up_due:
                    self._warm_up_due = False
                    with self.update.warm_up_ddp():
                        yield batch
                    self.log.discard()
                self.log.group = loader.dataset.groups[sampler.montage(self.step)]
                yield batch
                self.samples += len(batch.eeg) * self.run.processes
                self.seconds = time.monotonic() - begun
                if self.update.micro_batch == 0:
                    self._end_step(loader)
                self._agree()
                show = self.update.micro_batch == 0 and progress.due()
                progress.step(self._numbers(progress, epoch) if show else None)
        self.seconds = time.monotonic() - begun

    def _begin_epoch(self, epoch: int) -> None:
        self.log = MetricLog(held=True)
        if self._continued is None:
            self.samples, self.seconds, self.skipped_steps = 0, 0.0, 0
            # Dropout and drop path differ between processes and are the same again when an epoch is repeated.
            seed = np.random.SeedSequence((self.run.seed, epoch, self.run.rank)).generate_state(1)[0]
            torch.manual_seed(int(seed))
            self._mark_step()
            return
        own, self._continued = self._continued, None
        self.log.load_state_dict(own["log"], self.run.device)
        self.samples, self.seconds, self.skipped_steps = own["samples"], own["seconds"], own["skipped_steps"]
        torch.set_rng_state(own["generator"])
        if own["device_generator"] is not None and self.run.device.type == "cuda":
            torch.cuda.set_rng_state(own["device_generator"], self.run.device)
        self._mark_step()

    def _mark_step(self) -> None:
        """Note what the next step's micro-batches change, for a checkpoint that is written between two of them."""
        cuda = self.run.device.type == "cuda"
        self._mark = {
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state(self.run.device) if cuda else None,
            "samples": self.samples,
        }

    def _end_step(self, loader: Any) -> None:
        """Take the step's numbers up or, if it was skipped, forget them."""
        if self.update.skipped:
            self.log.discard()
            self.skipped_steps += 1
            if not self.update.overflowed:
                self._report_bad_step(loader)
        self.log.commit()
        self.step += 1
        self._mark_step()

    def _agree(self) -> None:
        """Stop or save where that is due: after every micro-batch, because a step of many may take long."""
        due = self.run.is_main and 0 < self.save_seconds <= time.monotonic() - self._saved
        due = due and self.update.micro_batch == 0  # inside a step there is nothing new to save
        if due:
            self._saved = time.monotonic()  # said once: the answer comes with the next call
        if self.run.interruption.sync_signals(due):
            self.save()

    def _report_bad_step(self, loader: Any) -> None:
        """Name the windows of a step whose loss or gradient is not finite; stop where asked to, or after too many."""
        finite = [bool(one) for one in self.update.finite]
        keys = loader.batch_sampler.step_keys(self.epoch, self.step)
        own = [
            {**loader.dataset.describe(key), "loss_finite": ok}
            for ok, batch in zip(finite, keys, strict=True)
            for key in batch
        ]
        gathered: list[Any] = [None] * self.run.processes
        dist.all_gather_object(gathered, own)
        windows = [window for part in gathered for window in part]
        # First those that must be it, then those of the micro-batches with a bad loss, then the largest values.
        windows.sort(key=lambda window: (window["finite"], window["loss_finite"], -window["largest_uv"]))
        stop = self.stop_at_bad_step or self.update.nonfinite_in_a_row >= MAX_NONFINITE
        line = {"epoch": self.epoch, "step": self.step, "taken": False, "windows": windows}
        self.run.run_on_rank0(lambda: self.run_log.bad_step(line))
        text = (
            f"loss or gradient is not finite at step {self.step} of epoch {self.epoch}, "
            f"{self.update.nonfinite_in_a_row} in a row; nothing was changed by it. Windows: "
            f"{named(windows)} (all {len(windows)} in {self.run_log.bad_steps})"
        )
        if stop:
            raise InputError(f"{text}: look for NaN or huge values there, lower --lr or set --clip_grad")
        logger.warning("%s.", text)

    def _numbers(self, progress: Progress, epoch: int) -> str:
        done = progress.done + 1
        left = progress.seconds / (done - progress.first) * (progress.total * (self.epochs - epoch) - done)
        rate = self.samples / max(self.seconds, 1e-9)
        return f"loss {self.log.mean('loss'):.4f}, lr {self.update.lr:.2g}, {rate:.1f} samples/s, left {duration(left)}"

    # What is written

    def finish_epoch(self, epoch: int, stats: dict[str, Any] | None = None, *, best: bool = False) -> dict[str, Any]:
        """Write the epoch's line to log.txt and TensorBoard and the checkpoints. stats: further entries of the line.

        best: also write checkpoint-best.pth. Every process must call it. Returns the line. Raises InputError where the
        processes' weights are not the same.
        """
        self._check_equal_weights(epoch)
        means = {f"train_{name}": value for name, value in self.log.means().items()}
        speed = self.samples / self.seconds if self.seconds else 0.0
        line = {
            **means,
            **(stats or {}),
            "train_skipped_steps": self.skipped_steps,
            "epoch": epoch,
            "n_parameters": self.n_parameters,
            "epoch_seconds": round(self.seconds, 3),
            "samples_per_second": round(speed, 3),
        }
        # The log first: where a run is killed in between, the epoch is trained and logged again.
        self.run.run_on_rank0(lambda: self.run_log.epoch(epoch, line))
        self.epoch, self.step = epoch + 1, 0
        self.log = MetricLog(held=True)
        names = [checkpoints.BEST] if best else []
        if self.save_every is not None and (epoch + 1) % self.save_every == 0:
            names.append(f"checkpoint-{epoch}.pth")
        self.save(names)
        return line

    def _check_equal_weights(self, epoch: int) -> None:
        """Raise InputError where the processes' weights are not the same to the last bit."""
        state = self.model.module.state_dict() if self.run.processes > 1 else {}
        digests = {f"{name} after epoch {epoch}": digest_of_weights({"": value}) for name, value in state.items()}
        self.run.check_same(
            digests,
            "nothing was saved, the last checkpoint is whole: look for a machine with faulty memory, or a change that "
            "lets processes take different steps",
        )

    def save(self, names: list[str] | None = None) -> None:
        """Write checkpoint.pth, and before it files of further names. Every process must call it.

        Between two micro-batches of a step it is the state before that step, of which nothing else has changed.
        """
        if self.save_every is None:
            return
        # Before the first step of a continued epoch its part is still the checkpoint's.
        own = self._continued or {
            **self._mark,
            "log": self.log.state_dict(),
            "seconds": self.seconds,
            "skipped_steps": self.skipped_steps,
        }
        gathered: list[Any] = [None] * self.run.processes
        dist.all_gather_object(gathered, own)
        self.run.run_on_rank0(lambda: self._write(names or [], gathered))
        self._saved = time.monotonic()

    def _write(self, names: list[str], processes: list[dict[str, Any]]) -> None:
        update = self.update.state_dict()
        state = {
            "model": self.model.module.state_dict(),
            "optimizer": update.pop("optimizer"),
            "scaler": update.pop("scaler"),
            "epoch": self.epoch - 1,  # the last one that is finished
            "step": self.step,  # those done of the one after it
            "args": self.flags,
            "stage": self.stage,
            "update": update,
            "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
            "processes": processes,
            "resumed_from": self.resumed_from,
            "fingerprint": self.fingerprint,
        }
        if self.data_set is not None:
            state["data_set"] = self.data_set
        folder = self.run.output_dir
        for name in names:
            before = folder / checkpoints.BEST_BEFORE if name == checkpoints.BEST else None
            checkpoints.save(state, folder / name, keep=before)
        # The latest comes last: it says that the others are there.
        checkpoints.save(state, folder / checkpoints.LATEST, keep=folder / checkpoints.BEFORE)
        checkpoints.remove_older(folder, self.keep_last)

    def _stop(self, number: signal.Signals) -> NoReturn:
        """End the run, by agreement of all processes, after saving it."""
        self.save()
        saved = self.save_every is not None
        onward = "the same command continues from here" if saved else "nothing is saved (--no_save_ckpt)"
        if saved and not self.flags["auto_resume"] and not self.flags["resume"]:
            onward = f"{onward}, without --no_auto_resume"
        place = f"after step {self.step} of epoch {self.epoch}"
        raise Interrupted(f"stopped by {number.name} {place}; {onward}", EXIT_CODES[number])
