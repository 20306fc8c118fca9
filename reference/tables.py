"""Tables of the reference run, from the cells' JSONs into documents, between their markers.

`python -m reference.tables` after new cells; `--check` only compares the documents with the JSONs.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import ArgumentParser, InputError, run_script
from files import check_writable, written_aside
from reference.cell import CELLS, PROJECT, SHIPPED, read_record
from reference.intervals import Intervals, Records
from results.tables import published_sets

BASES = {"cv": "cv-logistic-even", "few": "cv-logistic-even-center"}  # what rows of cross-validation are compared with
SHOWN = {"balanced_accuracy": "balanced accuracy", "pr_auc": "AUPRC", "roc_auc": "AUROC"}
NOTHING = "-"
Found = Mapping[str, Records]  # of each cell, by seed


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m reference.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=SHIPPED, help="folder of the JSONs")
    parser.add_argument("--readme", type=Path, default=SHIPPED.with_name("README.md"), help="file with the markers")
    few = PROJECT / "docs" / "few_subjects.md"
    parser.add_argument("--few", type=Path, default=few, help="file with the markers of few subjects")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where the text differs")
    return parser.parse_args()


def load(folder: Path) -> Found:
    """Read all records by cell and seed. Raises InputError without any."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.seed-*.json")):
        record = read_record(path)
        found.setdefault(record["cell"], []).append(record)
    if not found:
        raise InputError(f"--results {folder}: no results of cells there; name the --output of reference.cell")
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def mean(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean over seeds, with the standard deviation of several; a dash where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NOTHING
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def of_last(records: Records, run: int, key: str, digits: int = 3) -> str:
    """A value of the last line of a run's log, over seeds."""
    return mean([record["runs"][run]["log"][-1].get(key) for record in records], digits)


def minutes(records: Records) -> str:
    """Minutes of a cell, over seeds."""
    return mean([record["seconds"] / 60 for record in records], 1)


def table(found: Found, name: str, header: Sequence[str], row: Callable[[Records], list[str]]) -> list[list[str]]:
    """The header and a row for each cell of a table that was run."""
    cells = [found[cell] for cell in CELLS[name] if cell in found]
    rows = [[records[0]["title"], str(len(records)), *row(records), minutes(records)] for records in cells]
    return [[header[0], "runs", *header[1:], "minutes"], *rows]


def stages(found: Found) -> str:
    """Stages 1 and 2."""

    def row(records: Records) -> list[str]:
        log = records[0]["runs"][0]["log"]
        held_out = "test_loss" if "test_loss" in log[0] else "val_loss"  # as each stage calls it
        keys = ("train_loss", held_out, "val_unigram_loss", "val_mlm_acc")
        last = [of_last(records, 0, key) for key in keys]
        codes = [of_last(records, 0, key, 0) for key in ("train_used_code", "train_perplexity")]
        return [str(len(log)), mean([r["runs"][0]["log"][0]["train_loss"] for r in records]), *last, *codes]

    header = ["stage", "epochs", "loss, first epoch", "last", "held out", "code frequencies alone"]
    header += ["accuracy at masked places", "codes in use", "perplexity"]
    lines = table(found, "stages", header, row)
    return markdown(lines[0], lines[1:])


def cross_validation(found: Found, intervals: Intervals, name: str) -> str:
    """MentalArithmetic by cross-validation: pooled over folds, with intervals over subjects. name: in CELLS."""

    def row(records: Records) -> list[str]:
        ends = intervals.get(records)
        own = {name: statistics.mean(record["metrics"][name] for record in records) for name in SHOWN}
        texts = [f"{own[name]:.3f} [{ends[name][0]:.3f}, {ends[name][1]:.3f}]" for name in SHOWN]
        base = found.get(BASES[name])
        if base is None or records[0]["cell"] == BASES[name]:
            return [*texts, NOTHING]
        low, high = intervals.get(records, base)["roc_auc"]
        other = statistics.mean(record["metrics"]["roc_auc"] for record in base)
        return [*texts, f"{own['roc_auc'] - other:+.3f} [{low:+.3f}, {high:+.3f}]"]

    number = CELLS[name].index(BASES[name]) + 1
    lines = table(found, name, ["method", *SHOWN.values(), f"AUROC less row {number}'s"], row)
    return markdown(lines[0], lines[1:])


def fixed_split(found: Found, name: str) -> str:
    """MentalArithmetic on the published split; `fixed` also has the published rows. name: in CELLS."""

    def row(records: Records) -> list[str]:
        runs = [record["runs"][-1] for record in records]
        split = runs[0]["predictions"]["split"]
        texts = [mean([run["metrics"]["selected"][f"{split}_{name}"] for run in runs]) for name in SHOWN]
        trained = "train_loss" in runs[0]["log"][-1]  # rows without epochs have no last one
        last = mean([run["metrics"]["last"][f"{split}_roc_auc"] for run in runs]) if trained else NOTHING
        return [split, *texts, last]

    lines = table(found, name, ["method", "measured on", *SHOWN.values(), "AUROC, last epoch"], row)
    for method, pairs in published_sets()["MentalArithmetic"]["rows"].items() if name == "fixed" else ():
        values = [f"{value:.3f} ± {spread:.3f}" for value, spread in pairs]
        lines.append([f"*{method}*, published", "5", "test, 32-35", *values, NOTHING, NOTHING])
    return markdown(lines[0], lines[1:])


def ablation(found: Found) -> str:
    """Tiny models with one part changed."""

    def row(records: Records) -> list[str]:
        masks = 1 if "one-mask" in records[0]["cell"] else 2
        gains = [gain(record["runs"][1]["log"][-1], masks) for record in records]
        codes = [of_last(records, 0, key, 0) for key in ("train_used_code", "train_perplexity")]
        scores = [mean([record["metrics"][name] for record in records]) for name in ("balanced_accuracy", "roc_auc")]
        return [of_last(records, 0, "test_loss"), *codes, mean(gains), *scores]

    header = ["tiny models with", "tokenizer's held-out loss", "codes in use", "perplexity"]
    header += ["nats gained over code frequencies, held out", "balanced accuracy", "AUROC"]
    lines = table(found, "ablation", header, row)
    return markdown(lines[0], lines[1:])


def gain(line: dict[str, float | None], masks: int) -> float | None:
    """Held-out nats a place by which a masked model beats the codes' frequencies. masks: losses that are summed."""
    frequencies, loss = line.get("val_unigram_loss"), line.get("val_loss")  # of both masks, of the masks learnt from
    return None if frequencies is None or loss is None else frequencies / 2 - loss / masks


def insert(text: str, parts: dict[str, str], where: Path) -> str:
    """The text with these parts between their markers. Raises InputError for a marker that is not there once."""
    for name, part in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
            raise InputError(f"{where} needs one line `{begin.strip()}` and after it one `{end}`: {name} goes between")
        text = f"{text[: text.index(begin)]}{begin}{part}\n{text[text.index(end) :]}"
    return text


def main(args: argparse.Namespace) -> None:
    """Write the tables, or check them."""
    found = load(args.results)
    intervals = Intervals(args.results)
    parts = {
        args.readme: {
            "stages": stages(found),
            "cross-validation": cross_validation(found, intervals, "cv"),
            "fixed split": fixed_split(found, "fixed"),
            "ablation": ablation(found),
        },
        args.few: {
            "few subjects": cross_validation(found, intervals, "few"),
            "few subjects, fixed split": fixed_split(found, "few-fixed"),
        },
    }
    pages = {}
    for page, own in parts.items():
        try:
            before = page.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{page} cannot be read ({error.strerror})") from error
        pages[page] = insert(before, own, page)
        if args.check and pages[page] != before:
            raise InputError(f"{page} differs from {args.results}: run python -m reference.tables")
    if args.check:
        return
    check_writable(args.results, "--results")
    intervals.save()
    for page, text in pages.items():
        with written_aside(page) as part:
            part.write_text(text, encoding="utf-8")
    print(f"{args.readme}, {args.few}: {sum(map(len, found.values()))} cells and seeds.")


if __name__ == "__main__":
    run_script(main, get_args())
