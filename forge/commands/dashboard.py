"""`python -m forge dashboard PROJECT`: a saved W&B workspace over what `wandb` tracking sends."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from forge.errors import Failure, UserError, one_line
from forge.records.files import Json
from forge.results.sweeps import ALPHA
from forge.tracking.wandb import CURVE, HEADLINE, SPEED, TEACHER

NAME = "Forge"
TERMS, SHARES = "train/loss_", "train/gradient_share_"  # of forge.modes.kd


def main(project: str, entity: str | None, dry_run: bool) -> int:
    """Save the workspace, or print its specification, which needs neither network nor login.

    Raises `UserError` without wandb-workspaces, `Failure` when W&B does not take it.
    """
    workspace = build(project, entity or "")
    if dry_run:
        print(json.dumps(specification(workspace), indent=2))
        return 0
    import wandb

    try:
        workspace.entity = entity or wandb.Api().default_entity or ""
        print(workspace.save().url)
    except Exception as error:  # of a network, a login, a right that is missing
        raise Failure(f"W&B has not taken the dashboard: {one_line(str(error))}") from error
    return 0


def build(project: str, entity: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`."""
    try:
        ws: Any = import_module("wandb_workspaces.workspaces")
        wr: Any = import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise UserError(
            "dashboard: wandb-workspaces is not installed; pip install 'forge[dashboard]'"
        ) from error
    sections = [
        ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels(wr).items()
    ]
    settings = ws.WorkspaceSettings(x_axis="Step", max_runs=100)
    return ws.Workspace(
        name=NAME, entity=entity, project=project, sections=sections, settings=settings
    )


def _panels(wr: Any) -> dict[str, list[Any]]:
    over_seeds = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    by_alpha = {"groupby": wr.Config(ALPHA), "orientation": "v", **over_seeds}
    by_mode = {"groupby": "JobType", **over_seeds}
    headline, teacher = wr.SummaryMetric(HEADLINE), wr.SummaryMetric(TEACHER)
    return {
        "Headline by alpha, mean and std over seeds": [
            wr.BarPlot(title="headline", metrics=[HEADLINE], **by_alpha),
            wr.ScatterPlot(title="each run", x=wr.Config(ALPHA), y=headline),
        ],
        "Curves by mode": [
            wr.LinePlot(title=key, y=[key], **by_mode) for key in (CURVE, "eval/loss", "train/loss")
        ],
        "Teacher and student": [
            wr.BarPlot(title="headline", metrics=[HEADLINE, TEACHER], **by_alpha),
            wr.ScatterPlot(title="each run", x=teacher, y=headline),
            wr.LinePlot(title="loss terms", metric_regex=f"{TERMS}.*"),
            wr.LinePlot(title="shares of the gradient norm", metric_regex=f"{SHARES}.*"),
        ],
        "Throughput": [wr.BarPlot(title=key, metrics=[key], **by_mode) for key in SPEED],
    }


def specification(workspace: Any) -> Json:
    """What is sent to W&B."""
    document: Json = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    return document
