"""Run training scripts one after the other in one process or in one of several, and record what each step saw.

`process_driver.py 2 A.json 3 B.json`: two forked processes run the first plan, then three the second. They differ
from torchrun's by the agent only, and libraries are imported once for all; the tiny models are smaller still. What the
processes write to standard error goes to A.err, their exit codes to A.ended. A plan `nodes.json` is run as on several
machines: the processes work in different folders, node0 and node1 in the plan's.

A plan is a list of {script, flags, record, port}; the process group meets at the port. With `harm` {rank, step, name}
a weight is changed on one process after a step. The first run that fails is the last.

The record of a run goes to `<record>.<rank>.pt`: exit code, losses and codes of every micro-batch, the codebook after
each change, a digest of all weights after each step, the beginning of each sample that was evaluated, and how many
weights came to harm.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import modeling_finetune
import modeling_pretrain
import modeling_vqnsp
import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from norm_ema_quantizer import CodebookRevival, NormEMAVectorQuantizer
from optim_factory import Update
from run_helpers import STAGES, call

SCRIPTS = (run_vqnsp_training, run_labram_pretraining, run_class_finetuning)  # imported before processes fork
MODELS = (modeling_vqnsp.VQNSP, modeling_pretrain.MaskedModel, modeling_finetune.NeuralTransformer)
BEGINNING = 8  # values that tell samples apart


def smaller_sizes() -> None:
    """Make the tiny models of all stages smaller still: two blocks of half the width."""
    modeling_vqnsp.SIZES["vqnsp_encoder_tiny_decoder_1x200x4"].update(encoder_depth=2, width=100, heads=5)
    modeling_pretrain.SIZES["labram_tiny_patch200_1600_8k_vocab"].update(depth=2, width=100, heads=5)
    modeling_finetune.SIZES["labram_tiny_patch200_200"].update(depth=2, width=100, heads=5)


def watched(original: Any, note: Any) -> Any:
    """Return the method `original` that calls `note(self, arguments, result)` after each call."""

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        note(self, arguments, result)
        return result

    return method


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Return a number that is equal only for weights that are equal to the last bit."""
    found = hashlib.sha256()
    for name, value in weights.items():
        found.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def do_harm(harm: dict[str, Any], update: Update) -> int:
    """Change a weight, where this is the process and the step for it; return how many were changed."""
    if (harm["rank"], harm["step"]) != (int(os.environ["RANK"]), update.step):
        return 0
    update.model.module.state_dict()[harm["name"]].view(-1)[0] += 0.01
    return 1


def notes_into(record: dict[str, Any], harm: dict[str, Any] | None) -> Iterator[tuple[Any, str, Callable[..., None]]]:
    """Yield what to watch: class, method, and what notes each of its calls in the record."""
    latest: list[torch.Tensor] = []

    def note_step(update: Update, arguments: Any, stepped: bool) -> None:
        if update.skipped:  # also for a warm-up, of which nothing remains
            return
        record["losses"].append(arguments[0].detach().clone())
        record["codes"] += [codes.clone() for codes in latest[-1:]]  # of the forward pass that this loss belongs to
        if stepped:
            record["digests"].append(digest(update.model.module.state_dict()))
            if harm:
                record["harmed"] += do_harm(harm, update)

    def note_rows(quantizer: NormEMAVectorQuantizer, _: Any, __: Any) -> None:
        record["codebooks"].append(quantizer.embedding.weight.detach().clone())

    def note_samples(model: torch.nn.Module, arguments: Any, _: Any) -> None:
        if not model.training:
            record["evaluated"].append(arguments[0].flatten(1)[:, :BEGINNING].clone())

    yield Update, "__call__", note_step
    yield NormEMAVectorQuantizer, "forward", lambda _, __, result: latest.append(result[1])
    yield NormEMAVectorQuantizer, "nearest", lambda _, __, codes: latest.append(codes)
    yield NormEMAVectorQuantizer, "initialize", note_rows
    yield NormEMAVectorQuantizer, "apply_update", note_rows
    yield CodebookRevival, "__call__", lambda revival, _, __: note_rows(revival.quantizer, None, None)
    for model in MODELS:
        yield model, "forward", note_samples


def run(script: str, flags: list[str], harm: dict[str, Any] | None) -> dict[str, Any]:
    """Run a script; return its exit code and the record of its steps."""
    record: dict[str, Any] = {"losses": [], "codes": [], "codebooks": [], "digests": [], "evaluated": [], "harmed": 0}
    with ExitStack() as patches:
        for owner, name, note in notes_into(record, harm):
            patches.enter_context(patch.object(owner, name, watched(getattr(owner, name), note)))
        record["code"] = call(script, *flags)
    return record


def run_plan(plan: Path) -> None:
    """Run a whole plan in this process."""
    torch.set_num_threads(1)
    for step in json.loads(plan.read_text()):
        os.environ["MASTER_PORT"] = str(step["port"])  # a new group cannot meet at the port of the one before
        record = run(step["script"], step["flags"], step.get("harm"))
        torch.save(record, f"{step['record']}.{os.environ.get('RANK', '0')}.pt")
        if record["code"]:
            sys.exit(record["code"])


def run_as(rank: int, processes: int, plan: Path) -> None:
    """Run a plan as one of several processes, in the environment that torchrun would give it."""
    with plan.with_suffix(".err").open("a") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
    if processes > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="localhost")
        os.environ.update(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    if plan.stem == "nodes":
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        os.chdir(plan.parent / f"node{rank}")
    run_plan(plan)


def fork(processes: int, plan: Path) -> None:
    """Run a plan in so many processes and note how each ended."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=run_as, args=(rank, processes, plan)) for rank in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    plan.with_suffix(".ended").write_text(json.dumps([child.exitcode for child in children]))


def main() -> None:
    """Run the plans of the command line."""
    assert {script.__name__ for script in SCRIPTS} == set(STAGES)
    smaller_sizes()
    for processes, plan in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        fork(int(processes), Path(plan))


if __name__ == "__main__":
    main()
