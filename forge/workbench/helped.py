"""Did it help? A swept key against the headline, with intervals, control, teacher and tests."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from forge.errors import UserError
from forge.records import plan
from forge.records.files import Json
from forge.results import charts, sweep_report, sweeps
from forge.results.charts import Line, Plane, Rule
from forge.results.runs import Run, number
from forge.results.sweeps import Row, Sweep
from forge.workbench.asked import Asked, url


def view(asked: Asked) -> Json:
    """Parameters: sweep (a directory of runs), or run (several); axis (a swept key)."""
    folder, ids = asked.text("sweep"), asked.chosen
    if not folder and len(ids) < 2:
        return {"title": "Did it help?", "chosen": ids, "sweep": None, "sweeps": _sweeps(asked)}
    place = Path(folder or "these runs")
    unfinished = 0
    if folder:
        place, ids = asked.library.folder(folder)
        planned = len(plan.directories(place))
    stamps = tuple(asked.library.find(id).stamp for id in ids)
    question = ("helped", tuple(ids), stamps)
    sweep = asked.library.later(question, lambda: _sweep(asked, ids, place))
    if sweep is None:
        return {"title": "Did it help?", "chosen": ids, "sweep": None, "waiting": True, "live": 1}
    known = {str(run.path): id for id in ids for run in [asked.library.run(id)]}
    if folder:
        unfinished = max(planned, len(ids)) - sum(len(row.runs) for row in sweep.rows)
    sweep.unfinished = unfinished
    axes = list(sweep.rows[0].values)
    axis = asked.text("axis")
    axis = axis if axis in axes else sweeps.ALPHA if sweeps.ALPHA in axes else axes[0]
    header, cells = sweep_report.table(sweep)
    told = sweep_report.sentences(sweep)
    return {
        "title": f"Did it help? {folder}" if folder else "Did it help?",
        "chosen": ids,
        "sweep": sweep,
        "folder": folder,
        "verdict": sweep_report.verdict(sweep),
        "tone": tone(sweep),
        "axes": axes,
        "axis": axis,
        "chart": charts.svg(plane(sweep, axis, known, asked), 330),
        "header": [*header, "smallest shown"],
        "cells": [
            [*line, smallest]
            for line, smallest in zip(cells, [*_smallest(sweep), *[""] * len(cells)], strict=False)
        ],
        "links": [_links(row, known) for row in sweep.rows] + [[]] * len(cells),
        "sentences": told,
        "runs": ids,
    }


def _sweeps(asked: Asked) -> list[Json]:
    """Directories with several runs, the youngest first."""
    folders: dict[str, list[Json]] = {}
    for run in asked.library.listing():
        folders.setdefault(run["run"].rpartition("/")[0], []).append(run)
    several = [(name, runs) for name, runs in folders.items() if len(runs) > 1 and name]
    found = []
    for name, runs in several[:100]:
        kind = ", ".join(str(runs[0][key]) for key in ("task", "model", "mode"))
        found.append({"id": name, "runs": len(runs), "what": kind})
    return found


def _sweep(asked: Asked, ids: list[str], folder: Path) -> Sweep:
    runs: list[Run] = [asked.library.run(id) for id in ids]
    done = [run for run in runs if run.state.get("status") == "finished" and run.results]
    if len(done) < 2:
        raise UserError(f"{len(done)} of {len(runs)} runs have finished; two are needed to compare")
    return sweeps.sweep_of(done, folder)


def _smallest(sweep: Sweep) -> list[str]:
    """The smallest difference that each row could have shown, four times in five."""
    found = []
    for row in sweep.rows:
        known = row.against is not None and math.isfinite(row.against.smallest)
        found.append(
            sweep_report.show(row.against.smallest, sweep.metric) if known and row.against else ""
        )
    return found


def tone(sweep: Sweep) -> str:
    """better, worse, or nothing: as the verdict says."""
    said = sweep_report.verdict(sweep)
    return "better" if said.startswith("Yes") else "worse" if said.startswith("No, it") else ""


def plane(sweep: Sweep, axis: str, known: dict[str, str], asked: Asked) -> Plane:
    """Mean over the seeds for each value, with the interval of its difference to the control: a
    bar that crosses the control's line shows none."""
    scale = 100 if sweep_report.percent(sweep.metric) else 1
    values = list(dict.fromkeys(row.values.get(axis, "") for row in sweep.rows))
    sizes = [number(value) for value in values]
    numeric = all(size is not None for size in sizes) and len(values) > 1
    at = {
        v: float(s) if numeric and s is not None else float(i)
        for i, (v, s) in enumerate(zip(values, sizes, strict=True))
    }
    lines: dict[str, list[Row]] = {}
    for row in sweep.rows:
        rest = ", ".join(f"{k}={v}" for k, v in row.values.items() if k != axis)
        lines.setdefault(rest, []).append(row)
    drawn = []
    for i, (rest, rows) in enumerate(lines.items()):
        x = [at[row.values.get(axis, "")] for row in rows]
        mean = [scale * statistics.fmean(row.scores(sweep.split, sweep.metric)) for row in rows]
        bars = [_bar(sweep, row, scale) for row in rows]
        labels = [
            f"{row.name}: mean {m:.4g} of {len(row.runs)} runs"
            for row, m in zip(rows, mean, strict=True)
        ]
        name = rest or "mean over seeds"
        low, high = [bar[0] for bar in bars], [bar[1] for bar in bars]
        drawn.append(Line(name, x, mean, low, high, i, joined=False, dots=True, labels=labels))
        if numeric:
            drawn.append(Line("", x, mean, colour=i, listed=False))
        for row in rows:
            runs = zip(row.runs, row.scores(sweep.split, sweep.metric), strict=True)
            for run, score in runs:
                own = known.get(str(run.path), "")
                link = url("run", run=own) if own and not asked.text("exported") else ""
                place, label = at[row.values.get(axis, "")], f"seed {run.seed}: {scale * score:.4g}"
                drawn.append(Line("", [place], [scale * score], colour=i, thin=True, joined=False,
                                  dots=True, labels=[label], links=[link]))  # fmt: skip
    rules = [Rule("teacher", scale * score) for score in sorted(sweep_report.taught_scores(sweep))]
    controls = {id(row.reference): row.reference for row in sweep.rows if row.reference}
    if len(controls) == 1:
        (control,) = controls.values()
        level = scale * statistics.fmean(control.scores(sweep.split, sweep.metric))
        rules.append(Rule(f"control, {control.name}", level, dashed=False))
    places = [p for p in at.values() if p > 0]
    log = numeric and len(places) == len(at) and max(places) / min(places) >= 20
    unit = ", %" if scale == 100 else ""
    return Plane(
        axis,
        f"{sweep.metric} on {sweep.split}{unit}",
        drawn,
        rules,
        () if numeric else values,
        log_x=log,
    )


def _bar(sweep: Sweep, row: Row, scale: float) -> tuple[float | None, float | None]:
    """The ends of the interval of a row's difference, from its control's mean."""
    if row.against is None or row.reference is None:
        return None, None
    level = statistics.fmean(row.reference.scores(sweep.split, sweep.metric, row.seeds))
    return scale * (level + row.against.low), scale * (level + row.against.high)


def _links(row: Row, known: dict[str, str]) -> list[tuple[str, str]]:
    """Pages on a row: its runs, their curves, and the rows on which a pair differs."""
    ids = [known[str(run.path)] for run in row.runs if str(run.path) in known]
    links = [
        (f"seed {run.seed}", url("run", run=id)) for run, id in zip(row.runs, ids, strict=False)
    ]
    if row.reference and row.seeds:
        seed = row.seeds[0]
        pair = [next(run for run in side.runs if run.seed == seed) for side in (row.reference, row)]
        links.append(
            (
                "which rows?",
                url("rows", run=[known[str(run.path)] for run in pair], outcome="differ"),
            )
        )
    return links
