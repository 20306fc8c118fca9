"""A cost model: from measured throughput to hours, gradient traffic and memory of whole trainings.

    python benchmarks/cost.py --speed benchmarks/results/speed-cpu.json [--assume 4e14] [--json FILE]
    python benchmarks/cost.py --show FILE

Time of a step on one device = FLOPs of its windows / rate, where the rate is what `speed.py` measured for the stage at
the base model (and any other model that the file holds), or `--assume` FLOP/s for a device that was not measured.
Several devices share the windows; gradients travel meanwhile, 2 (n - 1) / n x 4 bytes a parameter and step through each
device's link, and cost time only as far as they take longer than the backward pass (two thirds of a step).
Memory = 16 bytes a parameter (weights, gradients, two moments, float32) + what the backward pass keeps of each window,
which is counted on one window with torch's hook for saved tensors. The last table compares predictions with
measurements. Fine-tuning on TUAB and TUEV, with the published numbers of windows: every epoch trains on all of train
and evaluates all of val and test; `--data` adds the minutes that reading these windows alone would take one process.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring
import torch
from timm.models import create_model
from torch import Tensor, nn

import modeling_finetune  # noqa: F401 (registers its models)
from eeg_data.labelled_files import PUBLISHED
from errors import ArgumentParser, InputError, run_script
from files import write_json
from modeling_pretrain import random_mask
from modeling_vqnsp import VQNSP

ELECTRODES, SECONDS = 32, 8  # of a window: 256 patches
GPUS = (1, 8, 64)
HOURS = (2500, 25000)  # of EEG
STATE_BYTES = 16  # a parameter: weight, gradient and two moments in float32
BACKWARD = 2 / 3  # of a step's time
LINKS = {"NVLink, 300 GB/s": 300e9, "one 400 Gb/s port, 50 GB/s": 50e9}  # what an all-reduce gets of them


@dataclass(frozen=True)
class Training:
    """A training as in the paper."""

    name: str
    model: str
    case: str  # of speed.py
    size: str
    epochs: int
    stride: int  # seconds from a window to the next
    batch: int  # windows of a step, all devices


TRAININGS = (
    Training("tokenizer", "vqnsp_encoder_base_decoder_3x200x12", "a", "base", 100, 1, 1024),
    Training("Base", "labram_base_patch200_1600_8k_vocab", "c", "base", 50, 4, 512),
    Training("Large", "labram_large_patch200_1600_8k_vocab", "c", "large", 50, 4, 512),
    Training("Huge", "labram_huge_patch200_1600_8k_vocab", "c", "huge", 50, 4, 512),
)


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning of the base model as in the paper."""

    name: str  # in published_splits.json
    electrodes: int
    seconds: int  # of a window
    outputs: int  # of the head
    model: str = "labram_base_patch200_200"
    epochs: int = 50
    batch: int = 512


FINE_TUNINGS = (FineTuning("TUAB v3.0.1", 23, 10, 1), FineTuning("TUEV v2.0.1", 23, 5, 6))
LOADER = "loader, 1 workers"  # of data.py: what the run scripts use unless told otherwise


@dataclass(frozen=True)
class Counted:
    """What one window and one step of a training need."""

    parameters: int  # that learn
    flops: int  # of a window, forward, backward and tokenisation
    kept_bytes: int  # of a window, for the backward pass
    evaluation_flops: int = 0  # of a window that is only evaluated


def inputs() -> tuple[Tensor, list[int], Tensor]:
    """One window, its channels, a mask."""
    eeg = 0.3 * torch.randn(1, ELECTRODES, SECONDS, 200)
    return eeg, list(range(ELECTRODES + 1)), random_mask(1, ELECTRODES * SECONDS)


def loss_of(training: Training, model: nn.Module) -> Tensor:
    """The training's loss of one window."""
    eeg, channels, mask = inputs()
    if training.case == "a":
        return model(eeg.flatten(2), channels)[0]
    codes = torch.zeros(1, ELECTRODES * SECONDS, dtype=torch.long)
    return model(eeg, channels, mask, codes).loss


def kept_by(model: nn.Module, loss: Callable[[], Tensor], precision: torch.dtype | None) -> int:
    """Bytes that the backward pass of a loss keeps. precision: of autocast, None for float32."""
    # Parameters, which are there once, their transposes, and the gradient of the head, which comes with the loss.
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}  # by address, which nothing else can take meanwhile

    def keep(tensor: Tensor) -> Tensor:
        if tuple(sorted(tensor.shape)) not in shapes:
            held[tensor.data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=precision, enabled=precision is not None),
    ):
        loss()
    return sum(storage.nbytes() for storage in {s.data_ptr(): s for s in held.values()}.values())


def learning(model: nn.Module) -> int:
    """Number of parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count(training: Training, precision: torch.dtype | None) -> Counted:
    """Count on one window, on the CPU. precision: of autocast, None for float32."""
    options: dict[str, Any] = {"quantize_kmeans_init": False} if training.case == "a" else {}
    model = create_model(training.model, **options).train()
    kept = kept_by(model, lambda: loss_of(training, model), precision)
    flops = measuring.flops_of(lambda: loss_of(training, model).backward())
    if training.case == "c":
        eeg, channels, _ = inputs()
        tokenizer = cast(VQNSP, create_model(TRAININGS[0].model, quantize_kmeans_init=False)).eval()
        flops += measuring.flops_of(lambda: tokenizer.get_codebook_indices(eeg, channels))
    return Counted(learning(model), flops, kept)


def count_fine_tuning(task: FineTuning, precision: torch.dtype | None) -> Counted:
    """Count a window that trains and one that is evaluated, on the CPU. precision: of autocast, None for float32."""
    model = create_model(task.model, num_classes=task.outputs).train()
    eeg = 0.3 * torch.randn(1, task.electrodes, task.seconds, 200)
    channels = list(range(task.electrodes + 1))

    def loss() -> Tensor:
        return model(eeg, channels).square().mean()

    kept = kept_by(model, loss, precision)
    flops = measuring.flops_of(lambda: loss().backward())
    with torch.no_grad():
        evaluation = measuring.flops_of(lambda: model.eval()(eeg, channels))
    return Counted(learning(model), flops, kept, evaluation)


def windows(training: Training, hours: float) -> int:
    """Windows of the whole training."""
    return int(hours * 3600 / training.stride) * training.epochs


def step_seconds(
    training: Training | FineTuning, counted: Counted, rate: float, gpus: int, link: float
) -> tuple[float, float]:
    """Seconds of a step's arithmetic, and those that its gradients take longer than the backward pass."""
    compute = training.batch / gpus * counted.flops / rate
    travel = 2 * (gpus - 1) / gpus * 4 * counted.parameters / link
    return compute, max(0.0, travel - BACKWARD * compute)


def hours_of(training: Training, counted: Counted, eeg_hours: float, rate: float, gpus: int, link: float) -> float:
    """Hours of the whole training."""
    steps = windows(training, eeg_hours) / training.batch
    return steps * sum(step_seconds(training, counted, rate, gpus, link)) / 3600


def fine_tuning_hours(task: FineTuning, counted: Counted, rate: float, gpus: int, link: float) -> float:
    """Hours of a whole fine-tuning with one seed, evaluations included, if windows are there when they are needed."""
    train, *evaluated = published_windows(task)
    learning_seconds = math.ceil(train / task.batch) * sum(step_seconds(task, counted, rate, gpus, link))
    return task.epochs * (learning_seconds + sum(evaluated) * counted.evaluation_flops / rate / gpus) / 3600


def published_windows(task: FineTuning) -> list[int]:
    """Windows of train, val and test."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["sizes"][task.name]


def file_bytes(task: FineTuning) -> int:
    """Bytes of all signals in a float32 file."""
    return sum(published_windows(task)) * task.electrodes * task.seconds * 200 * 4


def reading_rate(path: Path) -> float:
    """Bytes a second that one loading process delivers, of a results file of `data.py`. Raises InputError without."""

    def rate(found: Any) -> float:
        rows = [row for geometry in found["geometries"] for row in geometry["rows"]]
        return next(1e6 * row["mb_per_second"] for row in rows if row["case"] == LOADER)

    return measuring.of_results(path, "data.py", rate)


def memory_bytes(counted: Counted, batch: int) -> int:
    """Bytes that a device needs with so many windows at a time."""
    return STATE_BYTES * counted.parameters + batch * counted.kept_bytes


def rates(speed: dict[str, Any]) -> dict[str, float]:
    """FLOP/s that the product reached in each training, by name, where a results file of speed.py holds it."""
    found = {}
    for training in TRAININGS:
        for row in speed["rows"]:
            place = (row["case"], row["model"], row["electrodes"], row["window"], row["variant"])
            if place == (training.case, training.size, ELECTRODES, SECONDS, "ours"):
                found[training.name] = row["samples_per_second"] * row["gflops_per_sample"] * 1e9
    return found


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(counted: dict[str, Counted], rate: dict[str, float]) -> list[str]:
    """The cost model's tables. rate: FLOP/s of each training."""
    link = LINKS["one 400 Gb/s port, 50 GB/s"]
    header = ["training", "M parameters", "GFLOP a window", *(f"{h} h, {n}" for h in HOURS for n in GPUS)]
    time = []
    for t in TRAININGS:
        costs = (hours_of(t, counted[t.name], h, rate[t.name], n, link) for h in HOURS for n in GPUS)
        size = [f"{counted[t.name].parameters / 1e6:.1f}", f"{counted[t.name].flops / 1e9:.1f}"]
        time.append([t.name, *size, *(f"{cost:,.1f}" for cost in costs)])
    traffic = []
    for t in TRAININGS:
        c = counted[t.name]
        compute = step_seconds(t, c, rate[t.name], 64, link)[0]
        travels = (f"{1e3 * 2 * 63 / 64 * 4 * c.parameters / speed:.2f}" for speed in LINKS.values())
        traffic.append([t.name, f"{4 * c.parameters / 1e6:.0f}", f"{1e3 * BACKWARD * compute:.1f}", *travels])
    batches = (1, 8, 64, 128)
    memory = [[t.name, *(f"{memory_bytes(counted[t.name], b) / 1e9:.1f}" for b in batches)] for t in TRAININGS]
    names = [f"ms, {name}" for name in LINKS]
    return [
        markdown(header, time),
        markdown(["training", "MB of gradients", "ms of backward, 64 devices", *names], traffic),
        markdown(["training", *(f"GB, {b} windows" for b in batches)], memory),
    ]


def fine_tuning_rows(rate: float, precision: torch.dtype | None, reading: float | None) -> dict[str, dict[str, Any]]:
    """What each fine-tuning takes, by name. rate: FLOP/s; reading: bytes a second, None for unknown."""
    link, found = LINKS["one 400 Gb/s port, 50 GB/s"], {}
    for task in FINE_TUNINGS:
        counted = count_fine_tuning(task, precision)
        found[task.name] = {
            "windows": published_windows(task),
            "gflop_trained": counted.flops / 1e9,
            "gflop_evaluated": counted.evaluation_flops / 1e9,
            "file_gb": file_bytes(task) / 1e9,
            "gb_of_64_windows": memory_bytes(counted, 64) / 1e9,
            "minutes": {str(n): 60 * fine_tuning_hours(task, counted, rate, n, link) for n in (1, 8)},
            "reading_minutes": reading and task.epochs * file_bytes(task) / reading / 60,
        }
    return found


def fine_tuning_table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table."""
    header = ["fine-tuning, one seed", "GFLOP a window: train, evaluate", "GB of file", "GB, 64 windows"]
    lines = []
    for name, row in rows.items():
        flops = f"{row['gflop_trained']:.1f}, {row['gflop_evaluated']:.1f}"
        sizes = [f"{row['file_gb']:.1f}", f"{row['gb_of_64_windows']:.1f}"]
        reading = row["reading_minutes"]
        times = [f"{minutes:,.1f}" for minutes in row["minutes"].values()]
        lines.append([name, flops, *sizes, *times, f"{reading:.0f}" if reading else "-"])
    return markdown([*header, "min, 1", "min, 8", "min of reading, 1 process"], lines)


def markdowns(found: dict[str, Any]) -> list[str]:
    """All tables of a --json file."""
    counted = {name: Counted(**values) for name, values in found["counted"].items()}
    return [*tables(counted, found["rates"]), fine_tuning_table(found["fine_tuning"])]


def check(counted: dict[str, Counted], rate: dict[str, float]) -> str:
    """Predictions from the base model's rate, beside what was measured."""
    rows = []
    for t in TRAININGS[1:]:
        if t.name in rate:
            predicted = rate["Base"] / counted[t.name].flops
            rows.append([t.name, f"{predicted:.3f}", f"{rate[t.name] / counted[t.name].flops:.3f}"])
    return markdown(["training", "windows a second, from Base's rate", "measured"], rows)


def get_args() -> argparse.Namespace:
    """Flags of the cost model."""
    parser = ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--speed", type=Path, metavar="FILE", help="results of speed.py")
    measuring.add_results(parser, source)
    parser.add_argument("--assume", type=float, metavar="RATE", help="FLOP/s of a device that was not measured")
    parser.add_argument("--data", type=Path, metavar="FILE", help="results of data.py, for the minutes of reading")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of what is kept in memory")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Print the tables."""
    if args.show:
        print("\n\n".join(measuring.of_results(args.show, "cost.py", markdowns)))
        return
    measuring.check_numbers(args, "assume")
    measured = measuring.of_results(args.speed, "speed.py", rates)
    if not {"tokenizer", "Base"} <= measured.keys():
        raise InputError(f"{args.speed}: no rows of the product for cases a and c at {ELECTRODES}x{SECONDS}, base")
    reading = reading_rate(args.data) if args.data else None
    precision = {"fp32": None, "bf16": torch.bfloat16}[args.precision]
    counted = {training.name: count(training, precision) for training in TRAININGS}
    rate = {t.name: args.assume or measured.get(t.name, measured["Base"]) for t in TRAININGS}
    tasks = fine_tuning_rows(args.assume or measured["Base"], precision, reading)
    counts = {name: vars(c) for name, c in counted.items()}
    found = {"machine": measuring.hardware("cpu"), "rates": rate, "counted": counts, "fine_tuning": tasks}
    print("\n\n".join([*markdowns(found), check(counted, measured)]))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_script(main, get_args())
