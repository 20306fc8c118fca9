"""The page of results, report.html, through `mne.Report`: one file that loads nothing from the network."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mne

from eeg_data.hdf5 import printable
from files import written_aside
from results import figures as result_figures
from results import subjects as subject_results
from results.read import Predictions, RunResult
from results.subjects import LEVEL, Units
from results.tables import Grid, Group, Table, grids, loss_kind, mean_and_std, means_and_stds, number
from training import metrics

# What MNE's page has not: room on a telephone, tables that scroll inside themselves, figures of one size.
CSS = """
body { overflow-wrap: anywhere; }
#top-bar .container-fluid, #top-bar a { flex-wrap: nowrap; min-width: 0; white-space: normal; }
figure.figure { margin-bottom: 0; }
.figure-img { width: 100%; max-width: 560px; }
.figure-caption { max-width: 640px; margin: 0.3rem auto 0; }
.scroll { overflow: auto; max-height: 30rem; margin-bottom: 0.7rem; }
.scroll table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.scroll th, .scroll td { padding: 0.15rem 0.7rem 0.15rem 0; white-space: nowrap; text-align: right; }
.scroll th { background: white; font-weight: inherit; }
.scroll th[scope="col"] { border-bottom: 1px solid #999; font-weight: bold; }
.scroll th:first-child, .scroll td:first-child, .words td, .words th { text-align: left; }
.words td:nth-child(2) { white-space: normal; min-width: 10rem; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: white; }
.scroll tr.here th, .scroll tr.here td { font-weight: bold; border-top: 1px solid #999; }
.remark { font-size: 0.85rem; color: #555; margin: 0 0 0.3rem; }
@media (max-width: 800px) {
  #toc, #filter-by-tags-dropdown-menu { display: none; }
  #content { width: 100%; margin-left: 0; }
  #container { padding-left: 0.3rem; padding-right: 0.3rem; }
  #container > .row { margin: 0; }
  #content { padding: 0; }
  .accordion-body { padding: 0.6rem; }
  #top-bar img { width: 50px; }
  #top-bar .fs-3 { font-size: 1rem !important; }
}
"""
# Of runs that are judged by their loss: name in log.txt, caption, tag.
CURVES = {
    "tokenizer": (
        ("loss", "The sum of the three losses below.", "curves"),
        ("rec_loss", "Error of the amplitudes.", "curves"),
        ("rec_angle_loss", "Error of the phases.", "curves"),
        ("quant_loss", "Distance of tokens from their codes.", "curves"),
        ("used_code", "How many codes were used in an epoch.", "codebook"),
        ("perplexity", "e to the entropy of the codes: as if so many were used equally often.", "codebook"),
        ("top10_share", "Share of the ten codes used most.", "codebook"),
    ),
    "pretraining": (
        ("loss", "Where it learns, it falls below what code frequencies alone give.", "curves"),
        ("mlm_acc", "Share of masked codes that were predicted.", "curves"),
        ("mlm_acc_sym", "The same under the inverted mask.", "curves"),
        ("code_entropy", "Entropy of the tokenizer's codes, in nats: high where many are used.", "codebook"),
    ),
    "classifier": (("loss", "Never evaluated: the training loss is all there is.", "curves"),),
}
LONGEST = 2000  # rows of a table on the page


class Page:
    """Figures and tables as they are added. Titles and captions are text, which MNE escapes."""

    def __init__(self, title: str) -> None:
        """Nothing on it yet."""
        self._report = mne.Report(title=title, image_format="png", verbose="error")
        self._report.add_custom_css(CSS)
        self._report.include += '<meta name="viewport" content="width=device-width, initial-scale=1">'  # telephones
        self.prefix = ""  # of the titles: which table or group it is about

    def figure(self, figure: Any, title: str, caption: str, tag: str) -> None:
        """Add a figure."""
        self._report.add_figure(figure, f"{self.prefix}{title}", caption=caption, tags=(tag,))

    def text(self, parts: Sequence[str], title: str, tag: str) -> None:
        """Add HTML."""
        self._report.add_html("\n".join(parts), f"{self.prefix}{title}", tags=(tag,))

    def save(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        with written_aside(path) as part:
            self._report.save(part, open_browser=False, overwrite=True, verbose="error")


def write(path: Path, tables: Sequence[Table], notes: Sequence[str], *, draws: int = 1000) -> None:
    """Make the page of these tables. draws: of the bootstrap."""
    runs = sum(len(table.runs) for table in tables)
    about = tables[0].title if len(tables) == 1 else "Results"
    page = Page(f"{about}: {runs} run{'' if runs == 1 else 's'}")
    for table in tables:
        page.prefix = f"{table.title}: " if len(tables) > 1 else ""
        results = [part for grid in grids(table) for part in grid_html(grid)]
        page.text(results or [remark("No run was evaluated.")], "Results", "results")
        for group in table.groups:
            page.prefix = f"{table.title}: " if len(tables) > 1 else ""
            page.prefix += f"group {group.letter}: " if group.letter else ""
            if table.task is None:
                add_progress(page, table, group)
            else:
                add_group(page, table, group, draws)
            page.text([settings_html(group)], "Settings", "settings")
    page.prefix = ""
    if notes:
        page.text([f"<p>{shown(note)}</p>" for note in notes], "Notes", "results")
    page.save(path)


def add_progress(page: Page, table: Table, group: Group) -> None:
    """Curves of runs of stages 1 and 2, and of those of stage 3 that were never evaluated."""
    kind = loss_kind(group.runs[0])
    styles = {"train": ("training", "-"), **({kind: ("validation", "--")} if kind != "train" else {})}
    held = {name for run in group.runs for line in run.lines for name in line}
    for name, caption, tag in CURVES[table.stage]:
        shown = {f"{kind}_{name}": style for kind, style in styles.items() if f"{kind}_{name}" in held}
        if name == "loss" and "train_unigram_loss" in held:
            shown["train_unigram_loss"] = ("code frequencies alone", ":")
        if shown:
            page.figure(result_figures.curves(group.runs, shown, name), f"{name} by epoch", caption, tag)


def add_group(page: Page, table: Table, group: Group, draws: int) -> None:
    """Curves, and figures and tables of the predictions, of runs that differ in their seed only."""
    assert table.task is not None
    add_curves(page, table, group)
    runs = [run for run in group.finished or group.runs if table.split in run.predictions]
    if not runs:
        return
    found = [run.predictions[table.split] for run in runs]
    add_predictions(page, table, runs, found)
    recordings, subjects = subject_results.recordings_of(found[0]), subject_results.subjects_of(found[0])
    different = [recordings, subjects] if subjects.kind == "subject" else [recordings]
    page.text(levels_html(table, found, different), "By recording and subject", "subjects")
    for units in different:
        rows = subject_results.unit_rows(table.task, found, units)
        caption = f"Each point is a {units.kind}{'' if len(found) == 1 else f', mean over {len(found)} runs'}."
        page.figure(result_figures.unit_figure(table.task, rows, units), f"Every {units.kind}", caption, "subjects")
        page.text(units_html(table.task, rows, units, class_names(found)), f"Table of {units.kind}s", "subjects")
    page.text(intervals_html(table, runs, found, different[-1], draws), "Intervals", "subjects")


def add_curves(page: Page, table: Table, group: Group) -> None:
    """Loss and metrics by epoch."""
    assert table.task is not None
    runs = group.runs
    held = {name for run in runs for line in run.lines for name in line}
    kinds = {"train": ("training", "-"), "val": ("validation", "--"), "test": ("test", ":")}
    marked = "val" if any("val_loss" in line for run in runs for line in run.lines) else "test"
    for name in ("loss", *metrics.METRICS[table.task]):
        shown = {f"{kind}_{name}": style for kind, style in kinds.items() if f"{kind}_{name}" in held}
        if not shown:
            continue
        chosen = f" Circles: the epoch that counts, by {table.rule}." if table.rule else ""
        figure = result_figures.curves(runs, shown, name, mark=f"{marked}_{name}")
        page.figure(figure, f"{name} by epoch", f"{name} of each run by epoch.{chosen}", "curves")


def class_names(found: Sequence[Predictions]) -> list[str]:
    """Names of the classes, or of a regression's outputs: numbers where the files do not say."""
    outputs = found[0].logits.shape[1]
    needed = max(outputs, 2) if found[0].labels.ndim == 1 else outputs
    named = list(found[0].classes)
    return named if len(named) == needed else [str(i) for i in range(needed)]


def add_predictions(page: Page, table: Table, runs: Sequence[RunResult], found: Sequence[Predictions]) -> None:
    """Confusion matrix and curves, or scatter plots of a regression."""
    assert table.task is not None
    names = class_names(found)
    over = f"{table.split} set" + (f", mean over {len(found)} runs" if len(found) > 1 else "")
    if table.task == "regression":
        for output, name in enumerate(names):
            figure = result_figures.scatter(runs, found, output, name)
            many = len(found[0].labels) > result_figures.POINTS
            shown = f"{result_figures.POINTS} windows, drawn at random" if many else "Every window"
            page.figure(figure, f"Predicted {name}", f"{shown} of the {table.split} set; dashed: exact.", "predictions")
        return
    caption = f"Share of a class's windows (each row adds up to 1), {over}."
    page.figure(result_figures.confusion(table.task, found, names), "Confusion matrix", caption, "predictions")
    against = "" if table.task == "binary" else ", each class against the others"
    for kind, title in (("roc", "ROC curve"), ("pr", "Precision-recall curve")):
        figure = result_figures.class_curves(table.task, found, names, kind=kind)
        page.figure(figure, title, f"One line a run{against}; {over}.", "predictions")


# Tables


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], *, marked: str = "", words: bool = False) -> str:
    """A table that scrolls inside itself. marked: rows that begin so are bold; words: for text, not for numbers."""

    def cells(row: Sequence[str]) -> str:
        return "".join(f"<td>{shown(cell)}</td>" for cell in row)

    head = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in header)
    body = []
    for row in rows[:LONGEST]:
        here = ' class="here"' if marked and row[0].startswith(marked) else ""
        body.append(f'<tr{here}><th scope="row">{shown(row[0])}</th>{cells(row[1:])}</tr>')
    if len(rows) > LONGEST:
        body.append(f"<tr><td>and {len(rows) - LONGEST} more</td></tr>")
    kind = "scroll words" if words else "scroll"
    table = f"<table><tr>{head}</tr>{''.join(body)}</table>"
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="table">{table}</div>'


def shown(text: str) -> str:
    """Any text in HTML: no markup, and in letters that a file can hold."""
    return html.escape(printable(text))


def remark(text: str) -> str:
    """Small print."""
    return f'<p class="remark">{shown(text)}</p>'


def grid_html(grid: Grid) -> list[str]:
    """A table as in the text, and what is said below it."""
    return [table_html(grid.header, grid.rows, marked="here"), *map(remark, grid.below)]


def levels_html(table: Table, found: Sequence[Predictions], levels: Sequence[Units]) -> list[str]:
    """Metrics over windows, recordings and subjects."""
    assert table.task is not None
    names = metrics.METRICS[table.task]
    windows = [metrics.compute(table.task, one.logits, one.labels) for one in found]
    rows = [["windows", str(len(found[0].labels)), *_means(windows, names)]]
    below = []
    for units in levels:
        each = [subject_results.unit_metrics(table.task, one, units) for one in found]
        defined = [one for one in each if one is not None]
        if defined:
            rows.append([f"{units.kind}s", str(len(units.names)), *_means(defined, names)])
        elif table.task != "regression":
            below.append(f"{units.kind.capitalize()}s hold windows of several classes, so none has a class of its own.")
    if len(rows) > 1:
        below.append("A recording's or subject's score is the mean probability of its windows.")
    if levels[-1].kind != "subject":
        below.append("Subjects are not known: recordings stand for them.")
    return [table_html(["over", "number", *names], rows), *map(remark, below)]


def _means(values: Sequence[dict[str, float]], names: Sequence[str]) -> list[str]:
    row = means_and_stds(values, names)
    return [mean_and_std(*row[name]) for name in names]


def units_html(task: str, rows: Sequence[dict[str, Any]], units: Units, classes: Sequence[str]) -> list[str]:
    """A row for each recording or subject."""
    if task == "regression":
        cells = [[r["name"], str(r["windows"]), number(r["rmse"]), number(r["pearson"])] for r in rows]
        return [table_html([units.kind, "windows", "rmse", "pearson"], cells)]
    header = [units.kind, "windows", "class", "windows right"]
    header += [f"mean probability of {classes[1]}"] if task == "binary" else []
    cells = []
    for row in rows:
        label = classes[row["labels"][0]] if len(row["labels"]) == 1 else f"{len(row['labels'])} classes"
        more = [number(row["probability"])] if task == "binary" else []
        cells.append([row["name"], str(row["windows"]), label, number(row["right"]), *more])
    return [table_html(header, cells)]


def intervals_html(
    table: Table, runs: Sequence[RunResult], found: Sequence[Predictions], units: Units, draws: int
) -> list[str]:
    """Bootstrap intervals of each run and of their mean."""
    assert table.task is not None
    if len(units.names) < 2:
        return [remark(f"There is one {units.kind} only: no interval.")]
    drawn = subject_results.bootstrap(table.task, found, units, draws=draws)
    names = metrics.METRICS[table.task]
    rows = [
        [label, *(f"{ends[name][0]:.4f} to {ends[name][1]:.4f}" if name in ends else "-" for name in names)]
        for label, ends in zip(["mean of runs", *(r.label for r in runs)], [drawn.mean, *drawn.runs], strict=True)
    ]
    below = [
        f"{LEVEL} % percentile intervals over {drawn.draws} draws of {len(units.names)} {units.kind}s with "
        f"replacement, {table.split} set."
    ]
    if drawn.skipped:
        below.append(
            f"{drawn.skipped} further draws, without one of the classes for example, define no metric: left out."
        )
    if units.kind != "subject":
        below.append("Subjects are not known: whole recordings were drawn instead.")
    return [table_html(["", *names], rows if len(runs) > 1 else rows[1:]), *map(remark, below)]


def settings_html(group: Group) -> str:
    """Flags as they were given, and what they ran on."""
    flags: dict[str, list[Any]] = {}
    for run in group.runs:
        for name, value in run.flags.items():
            flags.setdefault(name, []).append(value)
    rows = []
    for name, values in sorted(flags.items()):
        texts = ["(default)" if value is None else str(value) for value in values]
        rows.append([f"--{name}", texts[0] if len(set(texts)) == 1 else ", ".join(texts)])
    environment = group.runs[0].environment
    for name in ("code_version", "python", "libraries", "hardware"):
        value = environment.get(name)
        text = ", ".join(f"{key} {v}" for key, v in value.items()) if isinstance(value, dict) else str(value)
        if value is not None:
            rows.append([name.replace("_", " "), text])
    return table_html(["", "value"], rows, words=True) if rows else remark("environment.json does not say.")
