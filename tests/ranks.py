"""Run training scripts as several processes, let faults happen in them at chosen moments, and record their steps.

The processes are copies of one that has imported everything (the fork server of multiprocessing), because starting
takes longer than a tiny run. They meet at a store of this process, end together and start again as torchrun has it.
`ranks.py REQUEST.json` is such a process under torchrun itself. The tiny models are smaller still.

A fault has the ranks that it strikes, the optimizer step `after` which it is armed, and a place `at` which it strikes:
  step      the next call of the update: before it, or behind it if `behind`
  save      `number` writings of a checkpoint later, when half of its bytes are written
  replace   `number` renamings of a file later: before it, or behind it if `behind`
  evaluate  the next batch of an evaluation
What strikes is `signal`, to the process, with `job` to it and all that it started; or a `limit` on the bytes of a file,
as a full disk. The first attempt in a folder meets the first fault, the next one the second.
"""

import functools
import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

import modeling_finetune
import modeling_pretrain
import modeling_vqnsp
import run_class_finetuning  # noqa: F401  (imported before processes are made)
import run_labram_pretraining  # noqa: F401
import run_vqnsp_training  # noqa: F401
from eeg_data.batches import EvaluationBatches
from norm_ema_quantizer import CodebookRevival, NormEMAVectorQuantizer
from optim_factory import Update
from run_helpers import ROOT, call, clean_environment
from training.state import TrainingState

TESTS = Path(__file__).parent
SERVER = multiprocessing.get_context("forkserver")
TIMEOUT = 240  # seconds of an attempt
GRACE, MORE_GRACE = 1, 20  # seconds in which the others end by themselves after one failed, or was stopped by a signal
STOPPED = (130, 143)  # exit codes
ANY_ERROR = "error: "
LOST = "error: ended because another process of the run did"
MODELS = (modeling_vqnsp.VQNSP, modeling_pretrain.MaskedModel, modeling_finetune.NeuralTransformer)
BEGINNING = 8  # values that tell samples apart

Fault = Mapping[str, Any]


# From outside


@dataclass
class Ended:
    """A launch that is over: the exit codes of the ranks in each attempt, and the folder of what they wrote."""

    codes: list[list[int]]
    folder: Path

    def starts(self) -> list[tuple[int, int]]:
        """Return the epoch, and the step in it, at which each attempt in the folder went on."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("start-*")]
        return [(epoch, step) for _, epoch, step in sorted(found)]

    def stderr(self, attempt: int = -1) -> str:
        """Return what the ranks wrote to standard error, of one attempt or of all."""
        found = sorted(self.folder.glob(f"err-{'*' if attempt < 0 else attempt}-*"))
        return "".join(path.read_text() for path in found)

    def errors(self, attempt: int = 0) -> list[str]:
        """Return the lines with which ranks of an attempt say why they end, but those that name another rank."""
        return [line for line in self.stderr(attempt).splitlines() if ANY_ERROR in line and LOST not in line]

    def records(self) -> list[dict[str, Any]]:
        """Return each rank's record of the last attempt."""
        return [torch.load(path, weights_only=True) for path in sorted(self.folder.glob("record-*.pt"))]


@functools.cache
def start_server() -> None:
    """Start the process that is copied, once."""
    environment = clean_environment(PYTHONPATH=f"{ROOT}:{TESTS}", OPENBLAS_NUM_THREADS="1")
    SERVER.set_forkserver_preload(["ranks"])
    with patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()


def launch(
    script: str,
    flags: Sequence[Any],
    folder: Path,
    *,
    processes: int = 2,
    restarts: int = 0,
    check: bool = True,
    **request: Any,
) -> Ended:
    """Run a script and, after a fault, up to `restarts` times again.

    request: `faults`; `words`, more flags of each attempt, again from the front; `folders`, where each rank works, as
    on several machines; `record`, whether to record what steps see; `harm`, {rank, step, name} of a weight to change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request |= {"script": script, "flags": list(map(str, flags)), "folder": str(folder)}
    store = new_store()
    codes: list[list[int]] = []
    while not codes or (any(codes[-1]) and len(codes) <= restarts):
        places = {"TORCHELASTIC_RESTART_COUNT": len(codes)} | ({"LOCAL_RANK": 0} if "folders" in request else {})
        codes.append(together(be_rank, (request,), processes=processes, store=store, **places))
    ended = Ended(codes, folder)
    assert not check or not any(codes[-1]), f"{script} {codes}\n{ended.stderr()}"
    return ended


def new_store() -> Any:
    """Return a store at which processes meet, as torchrun has one for all attempts of a run."""
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def together(
    target: Callable[..., None], arguments: tuple[Any, ...], *, processes: int, store: Any = None, **places: Any
) -> list[int]:
    """Call a function in processes that meet at a store, as torchrun would have it; return their exit codes.

    places: variables of their environment.
    """
    start_server()
    store = store or new_store()
    places = {"WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port, **places}
    ranks = []
    for rank in range(processes):
        own = {"TORCHELASTIC_USE_AGENT_STORE": True, "RANK": rank, "LOCAL_RANK": rank, **places}
        environment = {name: str(value) for name, value in own.items()} if processes > 1 else {}
        ranks.append(SERVER.Process(target=begin, args=(environment, target, arguments)))
    return run_together(ranks)


def run_together(ranks: Sequence[Any]) -> list[int]:
    """Start processes and wait for all; when one fails, end the others. Returns the exit codes."""
    for rank in ranks:
        rank.start()
    end = time.monotonic() + TIMEOUT
    while any(rank.is_alive() for rank in ranks):
        connection.wait([rank.sentinel for rank in ranks if rank.is_alive()], max(end - time.monotonic(), 0))
        if any(rank.exitcode for rank in ranks) or time.monotonic() > end:
            stopped = any(rank.exitcode in STOPPED for rank in ranks)
            for rank in ranks:
                rank.join(MORE_GRACE if stopped else GRACE)
            for stop in ("terminate", "kill"):
                for rank in ranks:
                    getattr(rank, stop)()
                    rank.join(30)
    return [rank.exitcode for rank in ranks]


# In a process


def begin(environment: Mapping[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Call a function as a process of a job: with a session that signals reach, and one thread."""
    os.setsid()
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)


def be_rank(request: Mapping[str, Any]) -> None:
    """Run the script as one process of a launch."""
    rank, folder = int(os.environ.get("RANK", 0)), Path(request["folder"])
    attempt = len(list(folder.glob(f"err-*-{rank}")))
    with (folder / f"err-{attempt}-{rank}").open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    if "folders" in request:
        os.chdir(request["folders"][rank])
    faults, words = request.get("faults", ()), request.get("words") or [[]]
    record: dict[str, Any] = {"losses": [], "codes": [], "codebooks": [], "digests": [], "evaluated": [], "harmed": 0}

    def note_start(state: TrainingState, *_: Any) -> None:
        if state.run.is_main:
            (folder / f"start-{attempt}").write_text(json.dumps([attempt, state.epoch, state.step]))

    with ExitStack() as patches:
        patches.enter_context(smaller_sizes())
        patches.enter_context(watch(TrainingState, "resume", note_start))
        for owner, name, note in notes_into(record, request.get("harm")) if request.get("record") else ():
            patches.enter_context(watch(owner, name, note))
        if attempt < len(faults) and rank in faults[attempt]["ranks"]:
            for owner, name, instead in list(faulty(faults[attempt], folder / f"fault-{attempt}")):
                patches.enter_context(patch.object(owner, name, instead))
        code = call(request["script"], *request["flags"], *words[attempt % len(words)])
    torch.save(record, folder / f"record-{rank}.pt")
    sys.exit(code)


@contextmanager
def smaller_sizes() -> Iterator[None]:
    """Make the tiny models of all stages smaller still: two blocks of half the width."""
    small = {"width": 100, "heads": 5}
    with (
        patch.dict(modeling_vqnsp.SIZES["vqnsp_encoder_tiny_decoder_1x200x4"], small, encoder_depth=2),
        patch.dict(modeling_pretrain.SIZES["labram_tiny_patch200_1600_8k_vocab"], small, depth=2),
        patch.dict(modeling_finetune.SIZES["labram_tiny_patch200_200"], small, depth=2),
    ):
        yield


def watch(owner: Any, name: str, note: Callable[..., None]) -> Any:
    """Return a patch of a method after each of whose calls `note(self, arguments, result)` is called."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        note(self, arguments, result)
        return result

    return patch.object(owner, name, method)


def notes_into(record: dict[str, Any], harm: Any) -> Iterator[tuple[Any, str, Callable[..., None]]]:
    """Yield what to watch: class, method, and what notes each of its calls in the record.

    Noted are losses and codes of every micro-batch, the codebook after each change, a digest of all weights after each
    step, the beginning of each sample that was evaluated, and how many weights came to harm.
    """
    latest: list[torch.Tensor] = []  # codes

    def note_step(update: Update, arguments: Any, stepped: bool) -> None:
        if update.warming_up or (stepped and not update.taken):  # nothing remains of either
            return
        record["losses"].append(arguments[0].detach().clone())
        record["codes"] += [codes.clone() for codes in latest[-1:]]  # of the forward pass that this loss belongs to
        if stepped:
            weights = update.model.module.state_dict()
            content = b"".join(value.detach().numpy().tobytes() for value in weights.values())
            record["digests"].append(hashlib.sha256(content).hexdigest())
            if harm and (harm["rank"], harm["step"]) == (update.run.rank, update.step):
                weights[harm["name"]].view(-1)[0] += 0.01
                record["harmed"] += 1

    def note_rows(quantizer: NormEMAVectorQuantizer, *_: Any) -> None:
        record["codebooks"].append(quantizer.embedding.weight.detach().clone())

    def note_samples(model: torch.nn.Module, arguments: Any, _: Any) -> None:
        if not model.training:
            record["evaluated"].append(arguments[0].flatten(1)[:, :BEGINNING].clone())

    yield Update, "__call__", note_step
    yield NormEMAVectorQuantizer, "forward", lambda _, __, result: latest.append(result[1])
    yield NormEMAVectorQuantizer, "nearest", lambda _, __, codes: latest.append(codes)
    yield NormEMAVectorQuantizer, "initialize", note_rows
    yield NormEMAVectorQuantizer, "apply_update", note_rows
    yield CodebookRevival, "__call__", lambda revival, *_: note_rows(revival.quantizer)
    for model in MODELS:
        yield model, "forward", note_samples


def faulty(fault: Fault, note: Path) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Yield the places that a fault watches: owner, name, and what is called in place of the original."""
    take_step, write, rename, iterate = Update.__call__, torch.save, os.replace, EvaluationBatches.__iter__
    armed, left = False, int(fault.get("number", 1))  # passages of the place until it strikes

    def pass_by(place: str, *, behind: bool = False) -> None:
        nonlocal left
        if armed and fault["at"] == place and behind == bool(fault.get("behind")):
            left -= 1
            if left == 0:
                strike()

    def strike() -> None:
        note.touch()
        if "limit" in fault:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault["limit"], resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        number = getattr(signal, fault["signal"])
        if fault.get("job"):
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)

    def update(update: Update, loss: torch.Tensor) -> bool:
        nonlocal armed
        armed |= update.step >= fault["after"]
        pass_by("step")
        stepped = take_step(update, loss)
        pass_by("step", behind=True)
        return stepped

    def save(state: Any, target: Any, **options: Any) -> None:
        if armed and isinstance(target, Path):  # a tensor that is sent to another process is saved, too
            whole = io.BytesIO()
            write(state, whole)
            target.write_bytes(whole.getvalue()[: whole.tell() // 2])
            pass_by("save")
        write(state, target, **options)

    def replace(source: Any, target: Any) -> None:
        pass_by("replace")
        rename(source, target)
        pass_by("replace", behind=True)

    def batches(batches: EvaluationBatches) -> Iterator[Any]:
        for batch in iterate(batches):
            pass_by("evaluate")
            yield batch

    yield Update, "__call__", update
    yield torch, "save", save
    yield os, "replace", replace
    yield EvaluationBatches, "__iter__", batches


if __name__ == "__main__":
    be_rank(json.loads(Path(sys.argv[1]).read_text()))
