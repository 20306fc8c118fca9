"""Tables of runs: mean and standard deviation over seeds below the published rows, as text, Markdown or CSV.

Standard deviations are those of a sample (n - 1), as published ones are; a single run has none. Runs that differ in
more than their seed are never averaged.
"""

import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from results.read import RunResult
from training.centring import words_of

WIDTH = 80  # of text
PROGRESS = {
    "tokenizer": ("loss", "rec_loss", "rec_angle_loss", "used_code", "perplexity"),
    "pretraining": ("loss", "unigram_loss", "mlm_acc", "code_entropy"),
}
PUBLISHED = Path(__file__).with_name("published_results.json")
STAGES = {"tokenizer": "Tokenizer (stage 1)", "pretraining": "Pre-training (stage 2)"}


@dataclass
class Group:
    """Runs that differ only in their seed."""

    runs: list[RunResult]
    remark: str = ""  # of one of several groups: its runs, and the flags in which it differs

    @property
    def finished(self) -> list[RunResult]:
        """The runs that count."""
        return [run for run in self.runs if run.finished]

    @property
    def label(self) -> str:
        """Name of the row of means."""
        return f"here ({len(self.finished)} run{'s' * (len(self.finished) != 1)})"

    def means(self, split: str) -> pd.DataFrame:
        """Mean and standard deviation of each metric over finished runs: one row each. NaN: not defined."""
        names = self.runs[0].metrics
        return spread([{name: run.value(f"{split}_{name}") for name in names} for run in self.finished])


@dataclass
class Table:
    """The runs of one data set, or of stage 1 or 2."""

    stage: str
    groups: list[Group]
    name: str | None  # of the data set, as are the following
    task: str | None
    split: str
    rule: str  # how the epoch that counts was selected
    published: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)  # label -> metric -> mean, std
    source: str = ""

    @property
    def title(self) -> str:
        """Title of the table."""
        return STAGES.get(self.stage) or f"{self.name or 'Unnamed data set'}, {self.task or 'not evaluated'}"

    @property
    def runs(self) -> list[RunResult]:
        """All runs, unfinished ones too."""
        return [run for group in self.groups for run in group.runs]


class Grid(NamedTuple):
    """A table as text, and the lines below it."""

    cells: pd.DataFrame  # text; the index holds the labels of the rows
    below: list[str]


# From runs to tables


def published_sets() -> dict[str, dict[str, Any]]:
    """Read the published results: {data set: {source, metrics, rows, ...}}."""
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {name: values for name, values in content.items() if isinstance(values, dict)}


def make_tables(runs: Sequence[RunResult], notes: list[str]) -> list[Table]:
    """Make a table for each data set, and rule for the epoch, and for stages 1 and 2. What is odd goes to the notes."""
    tables: dict[tuple, list[RunResult]] = {}
    for run in runs:
        tables.setdefault((run.stage, run.name, run.task, run.split, run.rule), []).append(run)
    made = []
    for (stage, name, task, split, rule), members in tables.items():
        table = Table(stage, make_groups(members, notes), name, task, split, rule)
        published = {one.lower(): rows for one, rows in published_sets().items()}.get((name or "").lower(), {})
        if published and split == "test" and set(published["metrics"]) <= set(members[0].metrics):
            for label, pairs in published["rows"].items():
                table.published[label] = dict(zip(published["metrics"], map(tuple, pairs), strict=True))
            protocol = f"; {published['protocol']}" if "protocol" in published else ""
            table.source = f"{name}: {published['source']}, mean and standard deviation over five seeds{protocol}"
        elif published:
            needed = ", ".join(published["metrics"])
            notes.append(f"{table.title}: the published rows, {needed} of a test set, are not shown")
        made.append(table)
    return made


def make_groups(runs: Sequence[RunResult], notes: list[str]) -> list[Group]:
    """Put runs with the same settings and samples together."""
    groups: list[Group] = []
    for run in runs:
        group = next((group for group in groups if all(_same_experiment(run, other) for other in group.runs)), None)
        if group is None:
            groups.append(Group([run]))
        else:
            group.runs.append(run)
    settings = [group.runs[0].settings for group in groups]
    names = sorted(set().union(*settings))
    differing = [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
    for group, own in zip(groups, settings, strict=True):
        if len(groups) > 1:
            flags = " ".join(f"--{n} {'(default)' if own.get(n) is None else own[n]}" for n in differing)
            differs = flags or "other samples" if group.runs[0].flags else "unknown settings"
            group.remark = f"{', '.join(run.label for run in group.runs)}: {differs}"
        if words := words_of(group.runs[0].flags):
            group.remark += f"{'; ' if group.remark else ''}{words}"
        seeds = [run.flags.get("seed") for run in group.runs]
        for seed in sorted({seed for seed in seeds if seed is not None and seeds.count(seed) > 1}):
            same = " and ".join(run.label for run in group.runs if run.flags.get("seed") == seed)
            notes.append(f"{same} have the same seed {seed} and settings: they are not independent runs")
        if len(versions := {str(run.environment.get("code_version")) for run in group.runs}) > 1:
            notes.append(f"runs of {len(versions)} code versions are averaged: {', '.join(sorted(versions))}")
    return groups


def _same_experiment(run: RunResult, other: RunResult) -> bool:
    """True if two runs have the same settings and predict the same samples, as far as these are known."""
    pairs = [(held, other.predictions[split]) for split, held in run.predictions.items() if split in other.predictions]
    parts = ("labels", "recordings", "subjects")
    same = all(np.array_equal(getattr(one, part), getattr(two, part)) for one, two in pairs for part in parts)
    return same and run.settings == other.settings


# From tables to text


def grids(table: Table) -> list[Grid]:
    """Return all that is shown of a table."""
    if table.stage in PROGRESS:
        return [progress_grid(table)]
    return [means_grid(table), runs_grid(table)] if table.task is not None else []


def grid(corner: str, columns: Sequence[str], rows: Sequence[Sequence[str]], below: list[str]) -> Grid:
    """Make a grid. Each row begins with its label."""
    cells = [values for _, *values in rows]
    return Grid(pd.DataFrame(cells, [row[0] for row in rows], pd.Index(columns, name=corner)), below)


def means_grid(table: Table) -> Grid:
    """Show the published rows, then one row for each group of runs."""
    names = list(next(iter(table.published.values()))) if table.published else table.runs[0].metrics
    named = [(*label.removesuffix(")").partition(" (")[::2], pairs) for label, pairs in table.published.items()]
    named += [(group.label, group.remark, group.means(table.split)) for group in table.groups if group.finished]
    rows, below = [], list[str]()
    for label, remark, pairs in named:
        if remark:
            below.append(f"[{len(below) + 1}] {remark}")
            label = f"{label} [{len(below)}]"
        rows.append([label, *(mean_and_std(*pairs[name]) for name in names)])
    below += [f"Published: {table.source}."] if table.source else []
    where = "test" if table.split == "test" else "VALIDATION"
    below.append(f"Here: {where} set, epoch by {table.rule}; \u00b1 is the standard deviation of a sample (n - 1).")
    return grid("", names, rows, below)


def runs_grid(table: Table) -> Grid:
    """Show one row for each run of stage 3."""
    names, rows = table.runs[0].metrics, []
    for run in table.runs:
        values = [run.value(f"val_{run.select_by}"), *(run.value(f"{table.split}_{name}") for name in names)]
        rows.append([run.label, str(run.epoch), *map(number, values)])
    below = [f"val is the selected epoch's {table.rule}."] if table.rule.startswith("validation") else []
    return grid("run", ["epoch", "val", *names], rows, below)


def progress_grid(table: Table) -> Grid:
    """Show the last epoch and that with the lowest loss for each run of stage 1 or 2."""
    names, rows = PROGRESS[table.stage], []
    for run in table.runs:
        kind = next(kind for kind in ("test", "val", "train") if f"{kind}_loss" in run.log)  # of stage 1, stage 2
        for what, epoch in (("last", run.log.index[-1]), ("best", run.log[f"{kind}_loss"].fillna(math.inf).idxmin())):
            values = [run.log.loc[epoch].get(f"{kind}_{name}", math.nan) for name in names]
            rows.append([f"{run.label} {what}", str(epoch), *map(number, values)])
    below = ["Numbers are of the validation set, or of training where there is none; best is the lowest loss."]
    return grid("run", ["epoch", *names], rows, below)


def spread(values: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Return mean and standard deviation (n - 1) over runs, one row each. NaN: not defined."""
    return pd.DataFrame(values).agg(["mean", "std"], skipna=False)


def number(value: float) -> str:
    """Format a number: four digits after the point, two from 10 on, none for counts; a dash for NaN."""
    if math.isnan(value):
        return "-"
    if abs(value) > 1 and value == round(value):
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def mean_and_std(mean: float, std: float) -> str:
    """Format a mean and its standard deviation, if there is one, as papers do."""
    return "-" if math.isnan(mean) else f"{mean:.4f}" + ("" if math.isnan(std) else f" \u00b1 {std:.4f}")


def as_text(tables: Sequence[Table]) -> str:
    """Lay tables out for a terminal."""
    parts = []
    for table in tables:
        parts.append(table.title)
        parts += ["\n".join([cells.to_string(), *map(_wrapped, below)]) for cells, below in grids(table)]
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def as_markdown(tables: Sequence[Table]) -> str:
    """Write Markdown tables."""
    parts = []
    for table in tables:
        parts.append(f"## {_escaped(table.title)}")
        for cells, below in grids(table):
            rows = [(cells.columns.name, *cells.columns), *cells.itertuples(name=None)]
            lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
            lines.insert(1, "| --- |" + " ---: |" * len(cells.columns))
            parts += ["\n".join(lines), *map(_escaped, below)]
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_<\[])", r"\\\1", text)


def as_csv(tables: Sequence[Table]) -> str:
    """Write one line for each run, with all digits: the epoch that counts; the last one in stages 1 and 2."""
    rows = []
    for table in tables:
        for index, group in enumerate(table.groups, start=1):
            for run in group.runs:
                epoch = int(run.log.index[-1] if run.epoch is None else run.epoch)
                place = {"table": table.title, "group": index, "run": run.label, "seed": run.flags.get("seed")}
                rows.append(place | {"finished": run.finished, **run.log.loc[epoch], "epoch": epoch})
    return pd.DataFrame(rows).to_csv(index=False).rstrip("\n")
