"""Ways to keep a codebook alive, at equal budget: what each leaves of the spectra and of the codes.

    python benchmarks/codebook.py --data data/train --val_data data/val --folder codebook_runs --json table.json
    python benchmarks/codebook.py --show table.json

Trains a tokenizer with each variant of `codebook_variants.py` for the same number of steps, on the same windows in the
same order, and measures it on held-out windows. A finished (variant, seed) is a file in --folder and is not run again;
the table is of all that is finished there, so several calls with other variants and seeds, one after the other or at
the same time, make one table. Runs on the CPU, in one process.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

import measuring
import torch
from codebook_variants import VARIANTS, Variant, prepare
from einops import rearrange
from timm.models import create_model
from torch import Tensor

from eeg_data.batches import EvaluationBatches, TrainingBatches
from eeg_data.hdf5 import find_files
from eeg_data.pretraining import MontageWindows, to_units
from eeg_data.pretraining_files import SAMPLING_RATE, by_montage, read_recordings
from errors import ArgumentParser, InputError, UsageError, run_script
from files import check_writable, write_json
from modeling_vqnsp import SIZES, VQNSP, spectrum_targets
from norm_ema_quantizer import usage
from optim_factory import cosine_schedule, parameter_groups

BASELINE = "published"  # whose seconds a step count as one
PRODUCT = "revival"  # whose loss the others' is compared with, seed by seed
WEIGHT_DECAY, BETAS, MIN_LR = 1e-4, (0.9, 0.99), 1e-5  # stage 1's
WARM_UP = 0.2  # of the steps
CURVE = 12  # points of the training's course that are kept


def get_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the benchmark."""
    parser = ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, nargs="+", metavar="PATH", help="HDF5 files or folders")
    parser.add_argument("--val_data", type=Path, nargs="+", metavar="PATH", help="likewise, held out")
    measuring.add_results(parser, source)
    parser.add_argument("--folder", type=Path, default=Path("codebook_runs"), help="of the finished trainings")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=VARIANTS,
        metavar="NAME",
        help=f"(default: all) {', '.join(VARIANTS)}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and order")
    parser.add_argument("--steps", type=int, default=300, help="of the optimizer, for each training")
    parser.add_argument("--codes", type=int, default=512, help="rows of the codebook")
    parser.add_argument("--batch_size", type=int, default=8, help="windows a step")
    parser.add_argument("--seconds", type=int, default=4, help="length of a window")
    parser.add_argument("--lr", type=float, default=4e-4, help="highest learning rate")
    parser.add_argument(
        "--model",
        default="vqnsp_encoder_tiny_decoder_1x200x4",
        choices=SIZES,
        metavar="NAME",
        help="tokenizer (default: %(default)s)",
    )
    return parser.parse_args(words)


def read_windows(paths: Sequence[Path], flag: str, seconds: int) -> list[MontageWindows]:
    """Windows that do not overlap, by montage. Raises InputError where there are none."""
    recordings = [recording for path in find_files(paths, flag) for recording in read_recordings(path)]
    length = seconds * SAMPLING_RATE
    found = [MontageWindows(group, window=length, stride=length) for group in by_montage(recordings)]
    if not any(map(len, found)):
        raise InputError(f"{flag} {paths[0]}: no recording has a whole window of {seconds} s: lower --seconds")
    return [windows for windows in found if len(windows)]


Batch = tuple[Tensor, Tensor]  # EEG (B, N, A*T) in units of 100 uV, channels (N + 1,)


def make_batch(montages: Sequence[MontageWindows], keys: Sequence[tuple[int, int, int]]) -> Batch:
    """A batch from its keys (epoch, montage, window)."""
    windows = montages[keys[0][1]]
    eeg = to_units((windows[window] for _, _, window in keys), len(keys))
    return rearrange(eeg, "B N A T -> B N (A T)"), windows.channels


def training_batches(montages: Sequence[MontageWindows], batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches, epoch after epoch, always the same for a seed."""
    plan = TrainingBatches([len(windows) for windows in montages], batch_size, seed=seed)
    for epoch in range(-(-steps // plan.steps)):
        plan.set_epoch(epoch)
        for step, keys in enumerate(plan, start=epoch * plan.steps):
            if step < steps:
                yield make_batch(montages, keys)


def held_out_batches(montages: Sequence[MontageWindows], batch_size: int) -> Iterator[Batch]:
    """Every window once."""
    for keys in EvaluationBatches([len(windows) for windows in montages], batch_size):
        yield make_batch(montages, keys)


def build(args: argparse.Namespace, variant: Variant, seed: int) -> VQNSP:
    """A tokenizer with the variant's quantiser; the other weights depend on seed, codebook size and width only."""
    torch.manual_seed(seed)
    model = cast(VQNSP, create_model(args.model, n_code=args.codes, code_dim=variant.width))
    model.quantize = prepare(model.quantize, variant, seed)
    model.quantize.deferred = True
    return model.train()


def train(args: argparse.Namespace, variant: Variant, seed: int, montages: Sequence[MontageWindows]) -> dict[str, Any]:
    """Train; returns the model, its reconstruction loss and its CPU seconds at each step."""
    model = build(args, variant, seed)
    upkeep = variant.upkeep(model.quantize, args.steps, seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=WEIGHT_DECAY), lr=args.lr, betas=BETAS)
    rates = cosine_schedule(args.lr, MIN_LR, 1, args.steps, warmup_steps=max(1, int(args.steps * WARM_UP)))
    losses, seconds = [], []
    for step, (eeg, channels) in enumerate(training_batches(montages, args.batch_size, args.steps, seed)):
        if model.quantize.needs_initialization:
            with torch.no_grad():
                patches = rearrange(eeg, "B N (A T) -> B N A T", T=SAMPLING_RATE)
                vectors = model.to_code_space(patches, channels).flatten(0, 1)
            model.quantize.initialize(vectors, generator=torch.Generator().manual_seed(seed))
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        loss, parts = model(eeg, channels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        upkeep(step, *model.quantize.apply_update())
        seconds.append(time.process_time() - began)
        losses.append(float(parts["train/rec_loss"] + parts["train/rec_angle_loss"]))
    return {"model": model, "losses": losses, "seconds": seconds}


@torch.no_grad()
def evaluate(model: VQNSP, montages: Sequence[MontageWindows], batch_size: int) -> dict[str, float]:
    """Reconstruction loss and use of the codes over the held-out windows."""
    model.eval().quantize.reset_usage()
    amplitude = phase = windows = 0.0
    for eeg, channels in held_out_batches(montages, batch_size):
        _, parts = model(eeg, channels)
        amplitude += float(parts["val/rec_loss"]) * len(eeg)
        phase += float(parts["val/rec_angle_loss"]) * len(eeg)
        windows += len(eeg)
    losses = {"amplitude": amplitude / windows, "phase": phase / windows, "loss": (amplitude + phase) / windows}
    return {**losses, **usage(model.quantize.epoch_counts)}


def one_code(montages: Sequence[MontageWindows], batch_size: int) -> dict[str, float]:
    """Least loss of any tokenizer with one code: the held-out windows' mean spectrum by electrode and second."""
    squares, windows = {"amplitude": 0.0, "phase": 0.0}, 0
    for montage in montages:
        sums: dict[str, list[Tensor]] = {name: [] for name in squares}
        for eeg, _ in held_out_batches([montage], batch_size):
            targets = spectrum_targets(rearrange(eeg, "B N (A T) -> B N A T", T=SAMPLING_RATE))
            for name, target in zip(squares, targets, strict=True):
                squares[name] += float(target.square().mean((1, 2)).sum())
                sums[name].append(target.sum(0))
        for name, parts in sums.items():
            squares[name] -= float((torch.stack(parts).sum(0) / len(montage)).square().mean()) * len(montage)
        windows += len(montage)
    found = {name: value / windows for name, value in squares.items()}
    return {**found, "loss": sum(found.values())}


def run_cell(args: argparse.Namespace, name: str, seed: int, data: dict[str, list[MontageWindows]]) -> dict[str, Any]:
    """Train and measure one variant with one seed."""
    trained = train(args, VARIANTS[name], seed, data["train"])
    places = [round(i * (args.steps - 1) / (CURVE - 1)) for i in range(CURVE)]
    return {
        "variant": name,
        "seed": seed,
        **evaluate(trained["model"], data["val"], args.batch_size),
        "step_seconds": statistics.median(trained["seconds"]),
        "curve": {str(place): round(trained["losses"][place], 4) for place in places},
    }


def settings(args: argparse.Namespace, data: dict[str, list[MontageWindows]]) -> dict[str, Any]:
    """What all cells of a folder have in common."""
    windows = {f"{name}_windows": [len(montage) for montage in montages] for name, montages in data.items()}
    names = ("model", "steps", "codes", "batch_size", "seconds", "lr")
    return {**{name: getattr(args, name) for name in names}, **windows}


def finished(folder: Path, common: dict[str, Any]) -> list[dict[str, Any]]:
    """All cells that are in the folder, seed after seed. Raises InputError for a damaged one or other settings."""
    cells = []
    for path in (path for name in VARIANTS for path in folder.glob(f"{name}-*.json")):
        try:
            kept = json.loads(path.read_text())
            made_with, cell = kept["settings"], kept["cell"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is no finished training ({type(error).__name__}): delete it") from error
        if made_with != common:
            raise InputError(f"{path} was made with {made_with}, not {common}: take another --folder")
        cells.append(cell)
    return sorted(cells, key=lambda cell: cell["seed"])


def finish_cells(args: argparse.Namespace, data: dict[str, list[MontageWindows]]) -> list[dict[str, Any]]:
    """Run the cells asked for that are not finished, seed after seed; return all that are in the folder then."""
    common = settings(args, data)
    finished(args.folder, common)
    for seed in args.seeds:
        for name in args.variants:
            path = args.folder / f"{name}-{seed}.json"
            if not path.exists():
                kept = {"settings": common, "cell": run_cell(args, name, seed, data)}
                write_json(path, kept)
                print(json.dumps(kept["cell"]), flush=True)
    return finished(args.folder, common)


FORMS = {
    "loss": ".4f",
    "difference": "+.4f",
    "amplitude": ".4f",
    "phase": ".4f",
    "used_code": ".0f",
    "perplexity": ".0f",
    "top10_share": ".3f",
    "relative_seconds": ".2f",
}
TITLES = ("loss", f"less {PRODUCT}'s", "amplitude", "phase", "codes used", "perplexity", "top ten", "time")


def by_seed(cells: Sequence[dict[str, Any]], column: str, name: str) -> dict[int, float]:
    """A column of one variant, by seed."""
    return {cell["seed"]: cell[column] for cell in cells if cell["variant"] == name}


def summarize(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (one degree of freedom less) over seeds, a row a variant; None where unknown.

    Losses are also compared with the product's and times with the baseline's, each with that of the same seed: seeds
    differ more than variants do.
    """
    losses, seconds = by_seed(cells, "loss", PRODUCT), by_seed(cells, "step_seconds", BASELINE)
    rows = []
    for name in dict.fromkeys(cell["variant"] for cell in cells):
        mine = [cell for cell in cells if cell["variant"] == name]
        values = {column: [cell[column] for cell in mine if column in cell] for column in FORMS}
        values["difference"] = [cell["loss"] - losses[cell["seed"]] for cell in mine if cell["seed"] in losses]
        values["relative_seconds"] = [
            cell["step_seconds"] / seconds[cell["seed"]] for cell in mine if cell["seed"] in seconds
        ]
        row: dict[str, Any] = {"variant": name, "seeds": len(mine)}
        for column, found in values.items():
            row[column] = statistics.mean(found) if found else None
            row[f"{column}_sd"] = statistics.stdev(found) if len(found) > 1 else None
        rows.append(row)
    return rows


def show(row: dict[str, Any], column: str, form: str) -> str:
    """Mean +- standard deviation of a column."""
    mean, spread = row[column], row[f"{column}_sd"]
    if mean is None:
        return ""
    return format(mean, form) + ("" if spread is None else f" +- {spread:{form.lstrip('+')}}")


def table(rows: Sequence[dict[str, Any]], reference: dict[str, float]) -> str:
    """A Markdown table, best first, of the columns that are known."""
    forms = {column: form for column, form in FORMS.items() if any(row[column] is not None for row in rows)}
    titles = [title for column, title in zip(FORMS, TITLES, strict=True) if column in forms]
    lines = [f"| variant | seeds | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    known = {column: format(reference[column], FORMS[column]) for column in ("loss", "amplitude", "phase")}
    known |= {"used_code": "1", "perplexity": "1", "top10_share": "1.000"}
    lines.append(f"| best with one code |  | {' | '.join(known.get(column, '') for column in forms)} |")
    for row in sorted(rows, key=lambda row: row["loss"]):
        values = " | ".join(show(row, column, form) for column, form in forms.items())
        lines.append(f"| {row['variant']} | {row['seeds']} | {values} |")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    """Run what is not finished, print the table."""
    if args.show:
        print(measuring.of_results(args.show, "codebook.py", lambda found: table(found["rows"], found["one_code"])))
        return
    if not args.val_data:
        raise UsageError("--val_data is missing: name the held-out files, which the table is about")
    measuring.check_numbers(args, "steps", "codes", "batch_size", "seconds", "lr")
    check_writable(args.folder, "--folder")
    data = {
        "train": read_windows(args.data, "--data", args.seconds),
        "val": read_windows(args.val_data, "--val_data", args.seconds),
    }
    cells = finish_cells(args, data)
    rows = summarize(cells)
    reference = one_code(data["val"], args.batch_size)
    print(table(rows, reference))
    if args.json is not None:
        report = {"machine": measuring.hardware("cpu"), "settings": settings(args, data), "one_code": reference}
        write_json(args.json, {**report, "rows": rows, "cells": cells})


if __name__ == "__main__":
    run_script(main, get_args())
