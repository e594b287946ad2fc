"""Runs: live, filtered, sorted, grouped."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from forge.errors import UserError
from forge.records.files import Json
from forge.results import index
from forge.workbench.asked import Asked

HEADER = ("run", "task", "model", "mode", "seed", "status", "step", "headline", "age")
PAGE = 200  # rows
LIVE = 5  # seconds
NUMERIC = ("seed", "step", "headline", "age")


def view(asked: Asked) -> Json:
    """Parameters: where, sort, group, column (several), page."""
    where, sort = asked.text("where"), asked.text("sort", "age")
    group, more = asked.text("group"), [key for key in asked.several("column") if key]
    problem = ""
    try:
        runs = asked.library.listing(where, sort, [*more, *_keys(group)])
    except UserError as error:
        problem, runs = str(error), []
    pages = max(1, -(-len(runs) // PAGE))
    page = min(max(1, asked.number("page", 1)), pages)
    if group:
        runs.sort(key=lambda run: index.natural(_group(run, group)))
    rows = runs[(page - 1) * PAGE : page * PAGE]
    header = [*HEADER, *(key for key in more if key not in HEADER)]
    return {
        "title": "Runs",
        "where": where,
        "sort": sort,
        "group": group,
        "more": more,
        "keys": asked.library.keys(),
        "header": header,
        "numeric": [*NUMERIC, *(key for key in more if _numeric(rows, key))],
        "count": len(runs),
        "problem": problem,
        "page": page,
        "pages": pages,
        "parts": _parts(rows, group, header),
        "live": LIVE if any(run["status"] == "running" for run in rows) else 4 * LIVE,
    }


def _keys(group: str) -> list[str]:
    return [group] if group and group != "directory" else []


def _group(run: Json, key: str) -> str:
    return os.path.dirname(run["run"]) if key == "directory" else shown(run.get(key))


def _numeric(rows: Sequence[Json], key: str) -> bool:
    values = [run[key] for run in rows if run.get(key) is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _parts(rows: list[Json], group: str, header: list[str]) -> list[Json]:
    if not group:
        return [{"name": None, "rows": [_row(run, header) for run in rows]}]
    parts = []
    for name, runs in groupby(rows, lambda run: _group(run, group)):
        some = list(runs)
        folders = {os.path.dirname(run["run"]) for run in some}
        values = [run["headline"] for run in some if run["headline"] is not None]
        metrics = {run["metric"] for run in some if run["headline"] is not None}
        mean = ""
        if len(metrics) == 1:
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            mean = f"{metrics.pop()} {statistics.fmean(values):.4f}{spread}"
        several = len(some) > 1 and len(folders) == 1 and group == "directory"
        parts.append(
            {
                "name": name,
                "count": len(some),
                "mean": mean,
                "sweep": folders.pop() if several else "",
                "ids": [run["run"] for run in some],
                "rows": [_row(run, header) for run in some],
            }
        )
    return parts


def _row(run: Json, header: list[str]) -> Json:
    """A run's line: its cells, and what its marks are."""
    score = run["headline"]
    texts = {
        "step": f"{run['step'] or 0}/{run['max_steps'] or '?'}",
        "headline": "" if score is None else f"{run['metric']} {score:.4f}",
        "age": "" if run["age"] is None else index.ago(run["age"]),
        "status": run["status"] + run["silence"],
    }
    cells = [
        {
            "key": key,
            "text": texts.get(key) if key in texts else shown(run.get(key)),
            "kind": "num" if key in NUMERIC or isinstance(run.get(key), int | float) else
            "name" if key == "run" else "",
        }
        for key in header
    ]  # fmt: skip
    state = "silent" if run["silence"] else run["status"]
    return {"id": run["run"], "cells": cells, "state": state, "resume": run["resume"]}


def shown(value: Any) -> str:
    """A value of a config or of a result, for a cell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return (
        ""
        if value is None
        else ", ".join(map(shown, value))
        if isinstance(value, list)
        else str(value)
    )
