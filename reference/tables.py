"""Tables and curves of the reference run, from the cells' JSONs into `reference/README.md`, between its markers.

`python -m reference.tables` after new cells; `--check` only says whether the README is what the JSONs give.
"""

import argparse
import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errors import ArgumentParser, InputError, run_script
from files import check_writable, written_aside
from reference import figures, records
from reference.cells import cells, plan
from reference.intervals import FILE, Intervals
from reference.settings import SIZES
from results.tables import published_sets

logger = logging.getLogger("reference")

FOLDER = Path(__file__).resolve().parent
BASE = "cv-logistic-even"  # what the rows of cross-validation are held against
SHOWN = {"balanced_accuracy": "balanced accuracy", "pr_auc": "AUPRC", "roc_auc": "AUROC"}
NOT_RUN = "not run yet"
NOTHING = "-"
SHIPPED = FOLDER / "results"
Found = dict[str, list[dict[str, Any]]]  # records of each cell, by seed


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=SHIPPED, help="folder of the JSONs")
    parser.add_argument("--readme", type=Path, default=FOLDER / "README.md", help="file with the markers")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where the text is another")
    return parser.parse_args()


def load(folder: Path) -> tuple[Found, str]:
    """All records by cell and seed, and their size. Raises InputError for no folder, and where sizes are mixed."""
    if not folder.is_dir() and folder != SHIPPED:  # which is not there before the first cell
        raise InputError(f"--results {folder} is no folder: name the --output of the cells")
    found: Found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != FILE:
            record = records.read(path)
            found.setdefault(record["cell"], []).append(record)
    sizes = sorted({record["size"] for held in found.values() for record in held})
    if len(sizes) > 1:
        raise InputError(f"{folder} holds cells of the sizes {' and '.join(sizes)}: keep each in a folder of its own")
    for held in found.values():
        held.sort(key=lambda record: record["seed"])
    return found, sizes[0] if sizes else next(iter(SIZES))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean of several seeds, with their standard deviation where there are several; a dash for what is not defined."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NOTHING
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def of_last(held: Sequence[dict[str, Any]], run: int, key: str, digits: int = 3) -> str:
    """A value of the last line of a run's log, over seeds."""
    return mean([record["runs"][run]["log"][-1].get(key) for record in held], digits)


def rows_of(found: Found, size: str, table: str, row: Callable[[list[dict[str, Any]]], list[str]], width: int) -> list:
    """Rows of all cells of a table, in the order of the plan's cells; those that are not run say so."""
    rows = []
    for cell in cells(size).values():
        if cell.table == table:
            held = found.get(cell.name, [])
            rows.append([cell.title, *([str(len(held)), *row(held)] if held else ["0", NOT_RUN, *[""] * (width - 1)])])
    return rows


def stages(found: Found, size: str) -> str:
    """Stages 1 and 2."""

    def row(held: list[dict[str, Any]]) -> list[str]:
        log = held[0]["runs"][0]["log"]
        first = mean([record["runs"][0]["log"][0]["train_loss"] for record in held])
        held_out = "test_loss" if held[0]["cell"].startswith("tokenizer") else "val_loss"  # as each stage calls it
        keys = ("train_loss", held_out, "val_unigram_loss", "val_mlm_acc")
        codes = of_last(held, 0, "train_used_code", 0)
        last = [of_last(held, 0, key) for key in keys]
        minutes = mean([record["seconds"] / 60 for record in held], 0)
        return [str(len(log)), first, *last, codes, of_last(held, 0, "train_perplexity", 0), minutes]

    header = ["stage", "runs", "epochs", "loss, first epoch", "last", "held out", "code frequencies alone"]
    header += ["accuracy at masked places", "codes in use", "perplexity", "minutes"]
    return markdown(header, rows_of(found, size, "stages", row, len(header) - 2))


def cross_validation(found: Found, size: str, intervals: Intervals) -> str:
    """MentalArithmetic by cross-validation: pooled over folds, with intervals over subjects."""

    def row(held: list[dict[str, Any]]) -> list[str]:
        ends = intervals.of_mean(held)
        own = {name: statistics.mean(record["metrics"][name] for record in held) for name in SHOWN}
        texts = [f"{own[name]:.3f} [{ends[name][0]:.3f}, {ends[name][1]:.3f}]" for name in SHOWN]
        base = found.get(BASE)
        if base is None or held[0]["cell"] == BASE:
            return [*texts, NOTHING]
        differ = intervals.of_difference(held, base)["roc_auc"]
        other = statistics.mean(record["metrics"]["roc_auc"] for record in base)
        return [*texts, f"{own['roc_auc'] - other:+.3f} [{differ[0]:+.3f}, {differ[1]:+.3f}]"]

    header = ["method", "runs", *SHOWN.values(), "AUROC less weighted logistic regression's"]
    return markdown(header, rows_of(found, size, "cv", row, len(header) - 2))


def fixed_split(found: Found, size: str) -> str:
    """MentalArithmetic on the published split, beside published rows."""

    def row(held: list[dict[str, Any]]) -> list[str]:
        runs = [record["runs"][-1] for record in held]
        split = runs[0]["predictions"]["split"]
        texts = [mean([run["metrics"]["selected"][f"{split}_{name}"] for run in runs]) for name in SHOWN]
        trained = "train_loss" in runs[0]["log"][-1]  # rows without epochs have no last one
        last = mean([run["metrics"]["last"][f"{split}_roc_auc"] for run in runs]) if trained else NOTHING
        return [f"{split} subjects", *texts, last]

    header = ["method", "runs", "measured on", *SHOWN.values(), "AUROC, last epoch"]
    rows = rows_of(found, size, "fixed", row, len(header) - 2)
    for name, pairs in published_sets()["MentalArithmetic"]["rows"].items():
        values = [f"{value:.3f} ± {spread:.3f}" for value, spread in pairs]
        rows.append([f"*{name}*, published", "5", "test subjects 32-35", *values, NOTHING])
    return markdown(header, rows)


def ablation(found: Found, size: str) -> str:
    """Tiny models with one part changed."""

    def row(held: list[dict[str, Any]]) -> list[str]:
        masks = 1 if "one-mask" in held[0]["cell"] else 2
        gains = [gain(record["runs"][1]["log"][-1], masks) for record in held]
        texts = [of_last(held, 0, "test_loss"), of_last(held, 0, "train_used_code", 0)]
        texts += [of_last(held, 0, "train_perplexity", 0), mean(gains)]
        texts += [mean([record["metrics"][name] for record in held]) for name in ("balanced_accuracy", "roc_auc")]
        return [*texts, mean([record["seconds"] / 60 for record in held], 0)]

    header = ["tiny models with", "runs", "tokenizer's held-out loss", "codes in use", "perplexity"]
    header += ["nats gained over code frequencies, held out", "balanced accuracy", "AUROC", "minutes"]
    return markdown(header, rows_of(found, size, "ablation", row, len(header) - 2))


def gain(line: dict[str, float | None], masks: int) -> float | None:
    """Held-out nats a place by which a masked model beats the codes' frequencies. masks: losses that are summed."""
    frequencies, loss = line.get("val_unigram_loss"), line.get("val_loss")  # of both masks, of the masks learnt from
    return None if frequencies is None or loss is None else frequencies / 2 - loss / masks


def runs(found: Found, size: str) -> str:
    """Which cells stand behind the tables, where and how long they ran, and which are not run yet."""
    rows: list[list[str]] = []
    missing: dict[str, list[str]] = {}
    for name, seed in plan(size):
        record = next((record for record in found.get(name, []) if record["seed"] == seed), None)
        if record is None:
            missing.setdefault(name, []).append(str(seed))
            continue
        machine = record["machine"]
        versions = ", ".join(f"{key} {machine['libraries'][key]}" for key in ("torch", "numpy", "mne"))
        place = f"{machine['processor']}, {machine['threads']} threads"
        link = f"[{name}](results/{records.path_of(Path(), name, seed).name})"
        rows.append([link, str(seed), f"{record['seconds'] / 60:.1f}", place, versions, machine["code_version"]])
    texts = [markdown(["cell", "seed", "minutes", "processor", "versions", "code"], rows)] if rows else []
    if missing:
        texts.append(f"Not run yet, {sum(map(len, missing.values()))} of {len(plan(size))} cells with a seed:")
        by_seeds: dict[str, list[str]] = {}
        for name, seeds in missing.items():
            by_seeds.setdefault(f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}", []).append(name)
        texts.append("\n".join(f"* {seeds}: {', '.join(names)}" for seeds, names in by_seeds.items()))
    return "\n\n".join(texts)


def sections(found: Found, size: str, intervals: Intervals) -> dict[str, str]:
    """What stands between the README's markers, by their names."""
    return {
        "stages": stages(found, size),
        "cross-validation": cross_validation(found, size, intervals),
        "fixed split": fixed_split(found, size),
        "ablation": ablation(found, size),
        "runs": runs(found, size),
        **{name: figures.link(name, found) for name in figures.FIGURES},
    }


def insert(text: str, parts: dict[str, str], where: Path) -> str:
    """The text with these parts between their markers. Raises InputError for a marker that is not there once."""
    for name, part in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        places = text.count(begin), text.count(end)
        if places != (1, 1) or text.index(begin) > text.index(end):
            raise InputError(f"{where} needs one line `{begin.strip()}` and after it one `{end}`: {name} goes between")
        text = f"{text[: text.index(begin)]}{begin}{part}\n{text[text.index(end) :]}"
    return text


def main(args: argparse.Namespace) -> None:
    """Write tables and figures, or check the tables."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found, size = load(args.results)
    intervals = Intervals(args.results)
    try:
        before = args.readme.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--readme {args.readme} cannot be read ({error.strerror})") from error
    after = insert(before, sections(found, size, intervals), args.readme)
    if args.check:
        if after != before:
            raise InputError(f"{args.readme} is not what {args.results} gives: run python -m reference.tables")
        return
    check_writable(args.results, "--results")
    if found:
        intervals.save()
    figures.draw(found, args.readme.parent / figures.FOLDER)
    with written_aside(args.readme) as part:
        part.write_text(after, encoding="utf-8")
    logger.info("%s: %d of %d cells and seeds.", args.readme, sum(map(len, found.values())), len(plan(size)))


if __name__ == "__main__":
    run_script(main, get_args())
