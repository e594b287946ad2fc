"""Config diff of any number of runs: where they differ, and what they scored."""

from __future__ import annotations

from forge.records.files import Json
from forge.results.comparison import differing
from forge.results.tables import cell
from forge.workbench.asked import Asked
from forge.workbench.runs import shown


def view(asked: Asked) -> Json:
    """Parameters: run (several)."""
    runs = asked.runs()
    if len(runs) < 2:
        return {"title": "Config diff", "chosen": list(runs), "header": []}
    differ = differing([run.metadata["config"] for run in runs.values()])
    scores = {
        f"{split}.{name}"
        for run in runs.values()
        for split, found in run.results.get("splits", {}).items()
        for name in found
    }
    metrics = []
    for key in sorted(scores):
        split, _, name = key.rpartition(".")
        values = [run.results.get("splits", {}).get(split, {}).get(name) for run in runs.values()]
        metrics.append([key, *map(cell, values)])
    return {
        "title": "Config diff",
        "chosen": list(runs),
        "header": ["key", *runs],
        "rows": [
            [key, *("-" if v is None else shown(v) for v in values)]
            for key, values in differ.items()
        ],
        "metrics": [row for row in metrics if not row[0].endswith(("seconds", "per_second"))],
    }
