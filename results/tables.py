"""Tables of runs: mean and standard deviation over seeds beside the published rows.

Standard deviations are those of a sample (one degree of freedom less than runs), as published ones are; a single run
has none. Runs that differ in more than their seed are never averaged with each other.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import UsageError
from results.read import RunResult
from training import metrics

PUBLISHED = Path(__file__).with_name("published_results.json")
NO_ROWS = "none"  # in place of a data set's name
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # that name groups
# Of stages 1 and 2, where the loss says which epoch is best.
PROGRESS = {
    "tokenizer": ("loss", "rec_loss", "rec_angle_loss", "used_code", "perplexity"),
    "pretraining": ("loss", "unigram_loss", "mlm_acc", "code_entropy"),
}
STAGES = {"tokenizer": "Tokenizer (stage 1)", "pretraining": "Pre-training (stage 2)"}


class Row(NamedTuple):
    """A line of a table of means."""

    label: str
    values: dict[str, tuple[float, float | None]]  # metric -> mean and standard deviation, None for a single run
    remark: str = ""


@dataclass
class Group:
    """Runs that differ in their seed only."""

    runs: list[RunResult]
    letter: str = ""  # where a table has several
    differs: dict[str, Any] = field(default_factory=dict)  # settings in which it differs from the table's others

    @property
    def finished(self) -> list[RunResult]:
        """Those that count."""
        return [run for run in self.runs if run.finished]

    @property
    def label(self) -> str:
        """What the text calls it."""
        n = len(self.finished)
        return f"here {self.letter}".strip() + f" ({n} run{'' if n == 1 else 's'})"

    def row(self, split: str) -> Row:
        """Mean and standard deviation of its finished runs."""
        assert self.runs[0].task is not None
        names = metrics.METRICS[self.runs[0].task]
        found = [
            {name: run.best.stats.get(f"{split}_{name}", math.nan) for name in names}
            for run in self.finished
            if run.best is not None
        ]
        return Row(self.label, means_and_stds(found, names), typed(self.differs))


@dataclass
class Table:
    """The runs of one data set, or of stage 1 or 2."""

    stage: str
    groups: list[Group]
    name: str | None = None  # of the data set, as are the following
    task: str | None = None
    split: str = "test"
    rule: str = ""  # that selects an epoch
    published: list[Row] = field(default_factory=list)
    source: str = ""

    @property
    def title(self) -> str:
        """What it is about."""
        return STAGES.get(self.stage) or f"{self.name or 'Unnamed data set'}, {self.task or 'not evaluated'}"

    @property
    def runs(self) -> list[RunResult]:
        """All runs, those that are not finished included."""
        return [run for group in self.groups for run in group.runs]


class Grid(NamedTuple):
    """Cells as text, and what is said below them."""

    header: list[str]
    rows: list[list[str]]
    below: list[str]


# From runs to tables


def make_tables(runs: Sequence[RunResult], notes: list[str], *, published: str | None = None) -> list[Table]:
    """A table for each data set and for stages 1 and 2; what is odd is added to the notes.

    published: whose rows to show instead of those of the runs' own data set; `none`: nobody's. Raises UsageError for
    rows with metrics that no run has.
    """
    keys = [(run.stage, run.name, run.task, run.split) for run in runs]
    tables = []
    for key in dict.fromkeys(keys):
        stage, name, task, split = key
        groups = make_groups([run for run, its in zip(runs, keys, strict=True) if its == key], notes)
        table = Table(stage, groups, name, task, split or "test")
        if task is not None:
            best = next((run.best for run in table.runs if run.best and run.best.epoch is not None), None)
            table.rule = best.rule if best else ""
            _add_published(table, published, notes)
        tables.append(table)
    if published not in (None, NO_ROWS) and not any(table.published for table in tables):
        raise UsageError(f"--published {published}: no run here has its metrics and a test set")
    return tables


def make_groups(runs: Sequence[RunResult], notes: list[str]) -> list[Group]:
    """Put runs with the same settings and samples together; say in what groups differ, and other oddities."""
    groups: list[Group] = []
    for run in runs:
        fitting = next((group for group in groups if all(_belong(run, other) for other in group.runs)), None)
        if fitting is None:
            groups.append(Group([run]))
        else:
            fitting.runs.append(run)
    names = sorted({name for group in groups for name in group.runs[0].settings})
    for number, group in enumerate(groups):
        own = group.runs[0].settings
        others = [other.runs[0].settings for other in groups]
        group.differs = {name: own.get(name) for name in names if any(o.get(name) != own.get(name) for o in others)}
        if len(groups) > 1:
            group.letter = LETTERS[number] if number < len(LETTERS) else str(number + 1)
            what = typed(group.differs) or "other samples, or settings that are not known"
            notes.append(f"group {group.letter} ({', '.join(run.label for run in group.runs)}): {what}")
        notes += _oddities(group)
    return groups


def _belong(run: RunResult, other: RunResult) -> bool:
    """Whether two runs differ in no more than their seed."""
    same = [a.samples == b.samples for split, a in run.predictions.items() if (b := other.predictions.get(split))]
    return all(same) and run.settings == other.settings and bool(run.flags) == bool(other.flags)


def _oddities(group: Group) -> list[str]:
    """What keeps a group's runs from being independent runs of one thing."""
    found = []
    seeds = [run.flags.get("seed") for run in group.runs]
    for seed in sorted({seed for seed in seeds if isinstance(seed, int) and seeds.count(seed) > 1}):
        same = [run.label for run in group.runs if run.flags.get("seed") == seed]
        found.append(f"{' and '.join(same)} have the same seed {seed} and settings: they are no independent runs")
    versions = {str(run.environment.get("code_version")) for run in group.runs if run.environment}
    if len(versions) > 1:
        found.append(f"runs of {len(versions)} code versions are averaged: {', '.join(sorted(versions))}")
    return found


def means_and_stds(found: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, tuple[float, float | None]]:
    """Mean and, of several, standard deviation of a sample."""
    table = {name: [one[name] for one in found] for name in names}
    return {
        name: (
            float(np.mean(values)) if values else math.nan,
            float(np.std(values, ddof=1)) if len(values) > 1 else None,
        )
        for name, values in table.items()
    }


def typed(values: dict[str, Any]) -> str:
    """Settings as they would be typed."""
    return " ".join(f"--{name} {'(default)' if value is None else value}" for name, value in values.items())


def published_sets() -> dict[str, dict[str, Any]]:
    """Published results by data set."""
    held = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {name: values for name, values in held.items() if isinstance(values, dict)}


def _add_published(table: Table, chosen: str | None, notes: list[str]) -> None:
    known = published_sets()
    name = chosen or next((one for one in known if one.lower() == (table.name or "").lower()), NO_ROWS)
    if name == NO_ROWS or table.task is None:
        return
    held = known[name]
    if not set(held["metrics"]) <= set(metrics.METRICS[table.task]):
        notes.append(f"{table.title}: the published rows of {name} are of another task and not shown")
    elif table.split != "test":
        notes.append(f"{table.title}: validation results, without a test set; published rows are not shown beside them")
    else:
        table.published = [
            Row(label.split(" (")[0], dict(zip(held["metrics"], map(tuple, pairs), strict=True)), _remark(label))
            for label, pairs in held["rows"].items()
        ]
        told = f"; {held['protocol']}" if "protocol" in held else ""
        table.source = f"{name}: {held['source']}, mean and standard deviation over five seeds{told}"


def _remark(label: str) -> str:
    return label.partition(" (")[2].removesuffix(")")


# From tables to cells


def means_grid(table: Table) -> Grid:
    """Published rows, then one for each group of runs."""
    assert table.task is not None
    rows = [*table.published, *(group.row(table.split) for group in table.groups if group.finished)]
    names = list(table.published[0].values) if table.published else list(metrics.METRICS[table.task])
    remarks: list[str] = []
    cells = []
    for row in rows:
        mark = ""
        if row.remark:
            remarks.append(row.remark)
            mark = f" [{len(remarks)}]"
        cells.append([row.label + mark, *(mean_and_std(*row.values[name]) for name in names)])
    below = [f"[{number}] {remark}" for number, remark in enumerate(remarks, start=1)]
    if table.source:
        below.append(f"Published: {table.source}.")
    below.append(
        f"Here: {'test' if table.split == 'test' else 'VALIDATION'} set, epoch by {table.rule or 'nothing'}; \u00b1 is "
        "the standard deviation of a sample (n - 1)."
    )
    return Grid(["", *names], cells, below)


def runs_grid(table: Table) -> Grid:
    """One row for each run of stage 3."""
    assert table.task is not None
    names = metrics.METRICS[table.task]
    rows = []
    for run in table.runs:
        best = run.best
        if best is None or best.epoch is None:
            continue
        numbers = [best.stats.get(f"{table.split}_{name}", math.nan) for name in names]
        rows.append(
            [
                run.label + ("" if run.finished else " *"),
                str(best.epoch),
                number(best.stats.get(f"val_{best.name}", math.nan)),
                *map(number, numbers),
            ]
        )
    below = [f"val is the selected epoch's {table.rule}."] if table.rule.startswith("validation") else []
    below += ["* not finished, in no mean"] if any(not run.finished for run in table.runs) else []
    return Grid(["run", "epoch", "val", *names], rows, below)


def progress_grid(table: Table) -> Grid:
    """Last and best epoch of each run of stage 1 or 2, by the loss on validation data where there are any."""
    names = PROGRESS[table.stage]
    rows, kinds = [], set()
    for run in table.runs:
        kind = loss_kind(run)
        kinds.add(kind)
        lowest = min(run.lines, key=lambda line: (math.isnan(v := line.get(f"{kind}_loss", math.nan)), v))
        for what, line in (("last", run.lines[-1]), ("best", lowest)):
            values = [number(line.get(f"{kind}_{name}", math.nan)) for name in names]
            rows.append([f"{run.label} {what}", f"{line['epoch']:g}", *values])
    sets = " and ".join("training" if kind == "train" else "validation" for kind in sorted(kinds))
    return Grid(["run", "epoch", *names], rows, [f"Numbers are of {sets} data; best is the lowest loss."])


def loss_kind(run: RunResult) -> str:
    """Prefix of the numbers that judge a run of stage 1 or 2: of validation data where there are any."""
    found = {name for line in run.lines for name in line}
    return next((kind for kind in ("test", "val") if f"{kind}_loss" in found), "train")


def number(value: float) -> str:
    """Four digits after the point, fewer for numbers from 10 on, none for counts; a dash for what is not defined."""
    if math.isnan(value):
        return "-"
    if abs(value) > 1 and value == round(value):
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def mean_and_std(mean: float, std: float | None) -> str:
    """As papers print it; without the second where there is one run only."""
    return "-" if math.isnan(mean) else f"{mean:.4f}" + ("" if std is None else f" \u00b1 {std:.4f}")


def grids(table: Table) -> list[Grid]:
    """All that is shown of a table."""
    if table.stage in PROGRESS:
        return [progress_grid(table)]
    return [means_grid(table), runs_grid(table)] if table.task is not None else []
