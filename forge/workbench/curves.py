"""Curves of several runs: each run, and over the seeds of one setting a mean with its band."""

from __future__ import annotations

from forge.records.files import Json
from forge.results import charts
from forge.results.charts import Line, Plane
from forge.results.comparison import settings
from forge.results.runs import Run
from forge.workbench.asked import Asked
from forge.workbench.one_run import USELESS, logged, series
from forge.workbench.runs import LIVE

AXES = {
    "step": "optimizer steps",
    "tokens": "tokens",
    "seconds": "seconds of training",
    "epoch": "epochs",
}
MOST = 60  # runs


def view(asked: Asked) -> Json:
    """Parameters: run (several), key (several), x, mean (whether seeds are one line)."""
    ids = asked.chosen[:MOST]
    if not ids:
        return {"title": "Curves", "runs": {}}
    runs = {id: asked.library.run(id) for id in ids}
    entries = {id: logged(asked, run) for id, run in runs.items()}
    keys = _keys(entries)
    wanted = [key for key in asked.several("key") if key in keys] or _usual(keys, runs)
    x = asked.text("x", "step") if asked.text("x", "step") in AXES else "step"
    together = asked.text("mean", "yes") == "yes"
    groups = settings(runs) if together else {id: [id] for id in ids}
    panels = [_panel(key, x, groups, entries) for key in wanted]
    states = (asked.library.facts(asked.library.find(id))["status"] for id in ids)
    return {
        "title": "Curves",
        "chosen": ids,
        "runs": runs,
        "keys": keys,
        "wanted": wanted,
        "x": x,
        "axes": AXES,
        "together": together,
        "panels": panels,
        "live": LIVE if "running" in [*states] else 0,
    }


def _keys(entries: dict[str, list[Json]]) -> list[str]:
    """What was logged, as numbers."""
    found = dict.fromkeys(
        k
        for log in entries.values()
        for e in log
        for k, v in e.items()
        if isinstance(v, int | float)
    )
    return [key for key in found if key not in USELESS]


def _usual(keys: list[str], runs: dict[str, Run]) -> list[str]:
    metrics = {(run.results.get("headline") or {}).get("metric") for run in runs.values()}
    usual = [
        "loss",
        *(f"eval_{metric}" for metric in sorted(filter(None, metrics))),
        "reward",
        "kl",
    ]
    return [key for key in usual if key in keys][:3] or keys[:2]


def _panel(key: str, x: str, groups: dict[str, list[str]], entries: dict[str, list[Json]]) -> Json:
    """A key's chart, and its numbers."""
    lines: list[Line] = []
    for colour, (name, ids) in enumerate(groups.items()):
        members = [(id, *series(entries[id], key, x)) for id in ids]
        members = [member for member in members if member[1]]
        several = len(members) > 1
        for id, at, y in members:
            lines.append(
                Line(id if several else name, at, y, colour=colour, thin=several, dots=len(at) < 25)
            )
        if several:
            lines.append(charts.mean(name, [(at, y) for _, at, y in members], colour))
    rows = [
        (line.name, f"{a:.6g}", f"{b:.6g}")
        for line in lines
        for a, b in zip(line.x, line.y, strict=True)
        if b is not None
    ]
    return {"key": key, "chart": charts.svg(Plane(AXES[x], key, lines), 320), "rows": rows[:3000]}
