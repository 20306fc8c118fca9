"""Tables of runs as text for a terminal, as Markdown or as JSON."""

import json
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from results.read import RunResult
from results.tables import Grid, Group, Row, Table, grids

WIDTH = 80  # of text


def as_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """For a terminal of 80 columns."""
    parts = []
    for table in tables:
        parts.append(_wrapped(table.title))
        parts += ["\n".join(_lines(grid)) for grid in grids(table)]
    if notes:
        parts.append("\n".join(_wrapped(f"note: {note}") for note in notes))
    return "\n\n".join(parts) + "\n"


def _lines(grid: Grid) -> list[str]:
    cells = [grid.header, *grid.rows]
    if _width(cells) > WIDTH:
        cells = [[cell.replace(" \u00b1 ", "\u00b1") for cell in row] for row in cells]
    # What a long name needs more than there is room for goes to a line of its own.
    room = WIDTH - (_width(cells) - max(len(row[0]) for row in cells))
    widths = [max(len(row[i]) for row in cells) for i in range(len(grid.header))]
    widths[0] = min(widths[0], max(room, 8))
    lines = []
    for row in cells:
        if len(row[0]) > widths[0]:
            lines.append(row[0])
            row = ["", *row[1:]]
        rest = "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append(f"{row[0]:<{widths[0]}}{rest}".rstrip())
    return [*lines, *map(_wrapped, grid.below)]


def _width(cells: Sequence[Sequence[str]]) -> int:
    return sum(max(len(row[i]) for row in cells) for i in range(len(cells[0]))) + 2 * (len(cells[0]) - 1)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def as_markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables that Markdown knows."""
    parts = []
    for table in tables:
        parts.append(f"## {_escaped(table.title)}")
        for grid in grids(table):
            rule = ["---"] + ["---:"] * (len(grid.header) - 1)
            rows = [[_escaped(cell) for cell in row] for row in (grid.header, *grid.rows)]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])))
            parts += [_escaped(text) for text in grid.below]
    if notes:
        parts.append("\n".join(f"* {_escaped(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for sign in "\\|*_<[":
        text = text.replace(sign, f"\\{sign}")
    return text


def as_json(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """All digits; what is not defined is null."""
    parts = [
        {
            "title": table.title,
            "stage": table.stage,
            "data_set": table.name,
            "task": table.task,
            "set": table.split,
            "epoch_by": table.rule,
            "published": {"source": table.source, "rows": [_row_values(row) for row in table.published]},
            "groups": [_group_values(group, table) for group in table.groups],
        }
        for table in tables
    ]
    return json.dumps({"tables": parts, "notes": list(notes)}, indent=1, ensure_ascii=False) + "\n"


def _row_values(row: Row) -> dict[str, Any]:
    values = {name: {"mean": _finite(mean), "std": std and _finite(std)} for name, (mean, std) in row.values.items()}
    return {"label": row.label, "remark": row.remark, "metrics": values}


def _group_values(group: Group, table: Table) -> dict[str, Any]:
    means = {} if table.task is None else _row_values(group.row(table.split))["metrics"]
    return {
        "label": group.label,
        "differs": group.differs,
        "means": means,
        "runs": [_run_values(r) for r in group.runs],
    }


def _run_values(run: RunResult) -> dict[str, Any]:
    chosen = {"epoch": run.best.epoch, **run.best.stats} if run.best else run.lines[-1]
    numbers = {name: _finite(value) for name, value in chosen.items() if value is not None}
    return {"run": run.label, "seed": run.flags.get("seed"), "finished": run.finished, **numbers}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


FORMATS: dict[str, Callable[[Sequence[Table], Sequence[str]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
}


def write_out(text: str) -> None:
    """To standard output, with a question mark for what it cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
