"""Tables: in a terminal, as Markdown, and their cells."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from forge.errors import one_line
from forge.records.files import TIMINGS, Json
from forge.results.runs import Run

if TYPE_CHECKING:
    from forge.tasks.task import Task


Score: TypeAlias = float | int | str | list[float] | None  # a list is an interval


def table(results: Json, task: Task) -> str:
    """The metrics of each split, and what training took."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    scored = results["splits"][task.evaluation[0]]
    columns = [name for name in scored if name != "seconds"]
    table.add_column("split")
    for column in columns:
        shown = "95 % interval" if column.endswith("_interval") else column.replace("_", " ")
        table.add_column(shown, justify="right")
    for name, scores in results["splits"].items():
        table.add_row(name, *(cell(scores.get(column)) for column in columns))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    if train := results.get("train"):
        tokens = ""
        if "tokens_per_second" in train:
            tokens = f"{train['tokens_per_second']:,.0f} tokens/s, "
            tokens += f"padding {train['padding_share']:.1%}, "
        text.write(
            f"trained {train['steps']:,} steps in {train['seconds']:,.0f} s: "
            f"{train['examples_per_second']:,.0f} examples/s, {tokens}"
            f"memory {train['peak_memory_gb']:.1f} GB"
        )
    return text.getvalue().rstrip()


def metrics_cells(run: Run) -> tuple[list[str], list[list[str]]]:
    """Header, and a line for each split with its metrics and n; its teacher's where recorded."""
    begun = run.results.get("start", {}).get("splits", {})  # of reinforcement
    splits, taught = run.results["splits"], run.metadata.get("teacher", {}).get("splits", {})
    columns = [name for name in next(iter(splits.values())) if name not in TIMINGS]
    cells = []
    for split, scores in splits.items():
        if split in begun:
            cells.append([f"{split}, start", *(cell(begun[split].get(name)) for name in columns)])
        cells.append([split, *(cell(scores.get(name)) for name in columns)])
        if split in taught:
            theirs = {"n": scores["n"]} | taught[split]
            cells.append([f"{split}, teacher", *(cell(theirs.get(name)) for name in columns)])
    return ["split", *columns], cells


def cell(value: Score) -> str:
    """A score for a reader; a list is an interval."""
    if isinstance(value, list):
        return " .. ".join(f"{end:.3f}" for end in value)
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for a file."""
    escaped = [[one_line(cell).replace("|", "\\|") for cell in line] for line in [header, *cells]]
    lines = [escaped[0], ["---"] * len(header), *escaped[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def drawn(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table under an empty line; in a pipe without rules, and as wide as it has to be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=terminal)
    for i, name in enumerate(header):
        number = i and cells and cells[0][i][:1].isdigit()
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in cells:
        table.add_row(*line)
    out = io.StringIO()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    Console(file=out, width=width, markup=False, emoji=False, highlight=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(["", *filter(None, lines)])


def print_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Drawn in a terminal, else a line for each row, tabs between."""
    if sys.stdout.isatty():
        print(drawn(header, cells))
    else:
        print(tabbed(header, cells))


def tabbed(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A line for each row, tabs between; a line break in a cell is a blank."""
    return "\n".join("\t".join(map(one_line, line)) for line in [header, *cells])
