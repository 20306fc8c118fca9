"""The state of one training: position, metrics, checkpoints, resumption.

However a run ended, it continues after the last step that a checkpoint holds, equal to the last bit.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from errors import InputError
from files import code_version, plain, set_aside, sha256, write_json
from layers import load_strictly
from optim_factory import MAX_NONFINITE, Outcome, Update
from training import FREE_FLAGS, checkpoints, hub
from training.checkpoints import digest_of_weights
from training.log import MetricLog, RunLog, append, environment, list_windows
from utils import Run, gather

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 30  # between two lines of an epoch

# What decides the windows of a step.
ORDER = {"processes", "micro-batches", "train data", "--batch_size", "--seed", "--dataset_order", "--overfit_batch"}
ORDER |= {"--task_weights"}
OLDER_NAMES = dict.fromkeys(("--update_freq", "--gradient_accumulation_steps"), "micro-batches")  # of settings


def describe_settings(args: argparse.Namespace, update: Update, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what decides the numbers of a run, for its checkpoints. inputs: summaries of data and weights."""
    return {
        **plain({f"--{name}": value for name, value in vars(args).items() if name not in FREE_FLAGS}),
        **inputs,
        "processes": update.run.processes,
        "micro-batches": update.accumulation,
        "device": update.run.device.type,
        "precision": str(update.run.amp_dtype or update.run.dtype).removeprefix("torch."),
        "code version": code_version(),
        "torch version": str(torch.__version__),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Name the settings that differ, each with its value and the one before."""
    # A flag that was not there, or is switched off, is no difference.
    changed = [name for name in sorted(old.keys() | new) if (old.get(name) or None) != (new.get(name) or None)]
    return {name: f"{name} is {new.get(name)} (before: {old.get(name)})" for name in changed}


class TrainingState:
    """Position, metrics, log files, checkpoints and resumption of one training; `steps()` is its loop."""

    def __init__(
        self,
        model: DistributedDataParallel,
        update: Update,
        run: Run,
        args: argparse.Namespace,
        *,
        stage: str,
        inputs: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        data_set: Mapping[str, Any] | None = None,
    ) -> None:
        """stage: a key of checkpoints.STAGES; extras: objects with state_dict and load_state_dict, by name.

        inputs: summaries of data and of weights that do not learn; a resumed run compares them. data_set: description
        of a classifier's data for its users; nothing here depends on it.
        """
        self.model, self.update, self.run, self.args, self.stage = model, update, run, args, stage
        self.inputs, self.extras, self.data_set = dict(inputs or {}), dict(extras or {}), data_set
        self.settings = describe_settings(args, update, self.inputs)
        self.log = MetricLog()
        self.epoch, self.step = 0, 0  # that come next
        self.resumed_from: str | None = None  # digest of the file that --resume named when the run began
        self.skipped_steps, self.seconds, self.samples = 0, 0.0, 0  # of the epoch
        self._unsettled: tuple[Any, int, Outcome, list[Any]] | None = None  # loader, number, outcome, log of a step
        self._saved = self._shown = time.monotonic()
        self._continued: dict[str, Any] | None = None  # this process's part of a checkpoint inside an epoch
        self._warm_up_due = run.processes > 2  # with one or two processes the order of a sum does not matter
        self.run_log = RunLog(run.output_dir, args.log_dir)
        self.n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        what = f"{args.model}: {self.n_parameters / 1e6:.2f} million learnable parameters"
        logger.info("%s, %d process(es) on %s", what, run.processes, run.device)

    # Resumption

    def resume(self) -> int:
        """Load `--resume` or, unless `--no_auto_resume`, the output folder's newest whole checkpoint.

        Returns the epoch to continue with; `steps()` begins at the right step of it.
        """
        self.run.check_same(self.inputs, "start all machines with the same data")
        checkpoint = self.run.run_on_rank0(self._find)
        if checkpoint is None:
            self.epoch = int(self.args.start_epoch)
        else:
            self._continue(*checkpoint)
        self.run.run_on_rank0(lambda: self._prepare_files(checkpoint))
        self.update.step = self.epoch * self.update.steps_per_epoch + self.step
        if self.run.is_main and self.epoch < self.args.epochs:  # a finished run keeps the flags it was trained with
            write_json(self.run.output_dir / "environment.json", environment(self.args, self.run))
        self.run.interruption.on_stop = self._stop
        return self.epoch

    def _find(self) -> tuple[Path, dict[str, Any]] | None:
        """Find the checkpoint to continue. A command with --resume that is started again continues its own last one."""
        args, folder = self.args, self.run.output_dir
        for part in folder.glob(".*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        if not args.resume:
            restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
            return checkpoints.read_newest(folder) if args.auto_resume or restarted else None
        path = hub.local_file(args.resume)
        given = path, checkpoints.read(path)
        self.resumed_from = sha256(path)
        with suppress(InputError):  # if all in the folder are damaged, the file of --resume is the way out
            newest = checkpoints.read_newest(folder)
            if newest is not None and newest[1].get("resumed_from") == self.resumed_from:
                return newest
        return given

    def _continue(self, path: Path, state: dict[str, Any]) -> None:
        weights = checkpoints.model_state(state, path)
        checkpoints.check_stage(weights, [self.stage], path)
        if not {"update", "processes"} <= state.keys():
            raise InputError(
                f"{path} holds weights but not the state of a run, so it can be evaluated but not resumed: use "
                "--no_auto_resume or another --output_dir"
            )
        self.resumed_from = self.resumed_from or state.get("resumed_from")
        self.epoch, self.step = int(state["epoch"]) + 1, int(state["step"])
        if "settings" in state:
            self._compare(state["settings"], path)
        else:
            logger.warning("%s, of an older version, does not say its settings: they are not compared.", path)
        load_strictly(self.model.module, weights, where=str(path))
        self.update.load_state_dict(state["update"] | {"optimizer": state["optimizer"], "scaler": state["scaler"]})
        if selected := state["extras"].pop("selected", None):  # of older versions; part of `best` since then
            state["extras"]["best"] |= {key: selected[key] for key in ("logits", "last")}
        for name, extra in self.extras.items():
            if name not in state["extras"]:
                raise InputError(f"{path} holds no {name}: resume without --{name}, or begin anew (--no_auto_resume)")
            extra.load_state_dict(state["extras"][name])
        if self.step:
            self._continued = state["processes"][self.run.rank]
        place = f"step {self.step} of epoch {self.epoch} of {self.args.epochs}"
        if self.epoch >= self.args.epochs:
            place = "all epochs are done, nothing is trained (another run: another --output_dir)"
        logger.info("Continuing from %s: %s.", path, place)

    def _compare(self, saved: dict[str, Any], path: Path) -> None:
        """Warn of differences from the run that made a checkpoint. Inside an epoch, refuse a change of its windows."""
        saved = {OLDER_NAMES.get(name, name): value for name, value in saved.items()}
        changed = differences(saved, self.settings)
        if changed:
            logger.warning("%s is continued with other settings: %s.", path, "; ".join(changed.values()))
        moved = [changed[name] for name in sorted(ORDER & changed.keys())]
        if not self.step or not moved:
            return
        if not self.args.resume_anyway:
            raise InputError(
                f"{path} is from inside epoch {self.epoch}, whose steps would now hold other windows: "
                f"{'; '.join(moved)}: start it as before, begin the epoch again with --resume_anyway, or resume a "
                "checkpoint of a whole epoch with --resume FILE"
            )
        logger.warning("Steps hold other windows than in %s: epoch %d begins again.", path, self.epoch)
        self.step = 0

    def _prepare_files(self, checkpoint: tuple[Path, dict[str, Any]] | None) -> None:
        """Bring log and checkpoints of the folder to the state of the checkpoint; without one, set them aside."""
        folder = self.run.output_dir
        if checkpoint is None:
            for path in (self.run_log.log, self.run_log.bad_steps, folder / checkpoints.BEST):
                set_aside(path)
            return
        path, state = checkpoint
        latest = folder / checkpoints.LATEST
        if self.args.save_ckpt and path.resolve() != latest.resolve():
            if path.resolve() != (folder / "checkpoint.previous.pth").resolve():
                set_aside(latest)
            checkpoints.copy(path, latest)
        self.run_log.cut(self.epoch, self.step)
        checkpoints.restore_best(folder, state, path)

    # The loop

    def inside(self, epoch: int) -> bool:
        """Return True if the run continues inside this epoch."""
        return epoch == self.epoch and self.step > 0

    def steps(self, loader: Any, epoch: int) -> Iterator[Any]:
        """Yield the epoch's batches on the device; after a step show numbers, save, or stop if it is time.

        loader: with `TrainingBatches`. Every process must go through all of it.
        """
        sampler = loader.batch_sampler
        self.epoch, self.step = epoch, self.step if epoch == self.epoch else 0
        sampler.set_epoch(epoch, self.step)
        self._begin_epoch()
        begun = time.monotonic() - self.seconds
        bar = {"leave": False, "disable": None if self.run.is_main else True}  # None: only shown on a terminal
        for batch in tqdm(loader, f"epoch {epoch}", initial=self.step * self.update.accumulation, **bar):
            batch = self.run.move(batch)
            if self._warm_up_due:
                self._warm_up_due = False
                with self.update.warm_up_ddp():
                    yield batch
                self.log.take()  # and dropped
            self.log.group = loader.dataset.groups[sampler.montage(self.step)]
            yield batch
            self.samples += len(batch.eeg) * self.run.processes
            self.seconds = time.monotonic() - begun
            if self.update.micro_batch == 0:
                self._end_step(loader)
        self._settle()
        self.seconds = time.monotonic() - begun

    def _begin_epoch(self) -> None:
        self.log = MetricLog()
        if self._continued is None:
            self.samples, self.seconds, self.skipped_steps = 0, 0.0, 0
            # Dropout and drop path differ between processes and are the same again when an epoch is repeated.
            seed = np.random.SeedSequence((self.run.seed, self.epoch, self.run.rank)).generate_state(1)[0]
            torch.manual_seed(int(seed))
        else:
            own, self._continued = self._continued, None
            self.log.load_state_dict(own["log"], self.run.device)
            self.samples, self.seconds, self.skipped_steps = own["samples"], own["seconds"], own["skipped_steps"]
            torch.set_rng_state(own["generator"])
            if own["device_generator"] is not None and self.run.device.type == "cuda":
                torch.cuda.set_rng_state(own["device_generator"], self.run.device)

    def _end_step(self, loader: Any) -> None:
        """Settle the step before this one, which a GPU has done by now; save, stop or show numbers if that is due."""
        self._settle()
        assert self.update.outcome is not None
        self._unsettled = loader, self.step, self.update.outcome, self.log.take()
        self.step += 1
        due = self.run.is_main and 0 < 60 * self.args.save_every_minutes <= time.monotonic() - self._saved
        if due:
            self._saved = time.monotonic()  # asked once: the answer comes with the next call
        if self.run.interruption.sync_signals(due):
            self.save()
        if self.step in (1, loader.batch_sampler.steps):
            self._settle()  # for the lines that name these steps
        if self.run.is_main:
            self._show(loader.batch_sampler.steps)

    def _settle(self) -> None:
        """Take up the latest step's numbers, or drop them if it was skipped. Every process must call it."""
        if self._unsettled is None:
            return
        (loader, step, outcome, numbers), self._unsettled = self._unsettled, None
        if self.update.settle(outcome):
            self.log.commit(numbers)
            return
        self.skipped_steps += 1
        if not self.update.overflowed:
            self._report_bad_step(loader, step, outcome)

    def _show(self, steps: int) -> None:
        """Log loss, speed and time left now and then, and for the first and last of an epoch's steps."""
        now = time.monotonic()
        if now - self._shown < PROGRESS_SECONDS and self.step not in (1, steps):
            return
        self._shown = now  # not at every step: reading the loss makes a GPU wait
        loss, rate = self.log.mean("loss"), self.samples / max(self.seconds, 1e-9)
        left = tqdm.format_interval(self.seconds / self.step * (steps * (self.args.epochs - self.epoch) - self.step))
        place = f"epoch {self.epoch}, step {self.step}/{steps}"
        logger.info(f"{place}: loss {loss:.4f}, lr {self.update.lr:.2g}, {rate:.1f} samples/s, left {left}")

    def _report_bad_step(self, loader: Any, step: int, outcome: Outcome) -> None:
        """Name the windows of a step whose loss or gradient is not finite; stop if asked to or after too many."""
        keys = loader.batch_sampler.step_keys(self.epoch, step)
        own = [
            {**loader.dataset.describe(key), "loss_finite": bool(finite)}
            for finite, batch in zip(outcome.finite, keys, strict=True)
            for key in batch
        ]
        windows = [window for part in gather(own) for window in part]
        # First those that must be the cause, then those of micro-batches with a bad loss, then the largest values.
        windows.sort(key=lambda window: (window["finite"], window["loss_finite"], -window["largest_uv"]))
        line = {"epoch": self.epoch, "step": step, "taken": False, "windows": windows}
        self.run.run_on_rank0(lambda: append(self.run_log.bad_steps, line))
        text = (
            f"loss or gradient is not finite at step {step} of epoch {self.epoch}, "
            f"{self.update.nonfinite_in_a_row} in a row; the step changed nothing. Windows: "
            f"{list_windows(windows)} (all {len(windows)} in {self.run_log.bad_steps})"
        )
        if self.args.nonfinite == "stop" or self.update.nonfinite_in_a_row >= MAX_NONFINITE:
            raise InputError(f"{text}: look for NaN or huge values there, lower --lr or set --clip_grad")
        logger.warning("%s.", text)

    def finish_epoch(self, epoch: int, stats: dict[str, Any] | None = None, *, best: bool = False) -> dict[str, Any]:
        """Write the epoch's line to log.txt and TensorBoard, and the checkpoints. Every process must call it.

        stats: more entries of the line. best: also write checkpoint-best.pth. Returns the line. Raises InputError if
        the weights differ between processes.
        """
        self._check_equal_weights(epoch)
        line = {
            **{f"train_{name}": value for name, value in self.log.means().items()},
            **(stats or {}),
            "train_skipped_steps": self.skipped_steps,
            "epoch": epoch,
            "n_parameters": self.n_parameters,
            "epoch_seconds": round(self.seconds, 3),
            "samples_per_second": round(self.samples / self.seconds if self.seconds else 0.0, 3),
        }
        # The log first: if the run is killed in between, the epoch is trained and logged again.
        self.run.run_on_rank0(lambda: self.run_log.add_epoch(epoch, line))
        self.epoch, self.step = epoch + 1, 0
        self.log = MetricLog()
        self.save(whole_epoch=True, best=best)
        return line

    def _check_equal_weights(self, epoch: int) -> None:
        """Raise InputError unless all processes hold the same weights, to the last bit."""
        state = self.model.module.state_dict() if self.run.processes > 1 else {}
        digests = {f"{name} after epoch {epoch}": digest_of_weights({name: value}) for name, value in state.items()}
        way_out = "look for a machine with faulty memory, or a change that lets processes take different steps"
        self.run.check_same(digests, f"nothing was saved, the last checkpoint is whole: {way_out}")

    def save(self, *, whole_epoch: bool = False, best: bool = False) -> None:
        """Write checkpoint.pth, and for a whole epoch its other names if they are due. Every process must call it."""
        self._settle()
        if not self.args.save_ckpt:
            return
        cuda = self.run.device.type == "cuda"
        own = self._continued or {  # before a continued epoch's first step still the checkpoint's
            "log": self.log.state_dict(),
            "seconds": self.seconds,
            "samples": self.samples,
            "skipped_steps": self.skipped_steps,
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state(self.run.device) if cuda else None,
        }
        processes = gather(own)
        numbered = whole_epoch and self.epoch % self.args.save_ckpt_freq == 0
        self.run.run_on_rank0(lambda: self._write(processes, numbered=numbered, best=best))
        self._saved = time.monotonic()

    def _write(self, processes: list[dict[str, Any]], *, numbered: bool, best: bool) -> None:
        """Write the files of a checkpoint. processes: each one's part."""
        update = self.update.state_dict()
        state = {
            "model": self.model.module.state_dict(),
            "optimizer": update.pop("optimizer"),
            "scaler": update.pop("scaler"),
            "epoch": self.epoch - 1,  # the last one that is finished
            "step": self.step,  # those done of the one after it
            "args": plain(vars(self.args)),
            "stage": self.stage,
            "update": update,
            "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
            "processes": processes,
            "resumed_from": self.resumed_from,
            "settings": self.settings,
            **({"data_set": self.data_set} if self.data_set else {}),
        }
        folder = self.run.output_dir
        if numbered:  # before the latest one, which says that an epoch needs no repetition
            checkpoints.save(state, folder / f"checkpoint-{self.epoch - 1}.pth")
        checkpoints.save(state, folder / checkpoints.LATEST)
        if best:  # only now may it replace the file of an older epoch; resuming does what a kill prevents here
            checkpoints.copy(folder / checkpoints.LATEST, folder / checkpoints.BEST)
        if self.args.keep_last:
            for path in checkpoints.numbered_files(folder)[self.args.keep_last :]:
                path.unlink(missing_ok=True)

    def _stop(self) -> str:
        """Save at the end of a run that a signal stops; return where it stops. All processes call it at one moment."""
        self.save()
        onward = "the same command continues from here" if self.args.save_ckpt else "--no_save_ckpt: nothing is saved"
        return f" after step {self.step} of epoch {self.epoch}; {onward}"
