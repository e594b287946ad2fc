"""The dashboard's specification; that it names what is sent, test_tracking.py checks."""

import json
import sys

import pytest

from forge.__main__ import main
from forge.commands import dashboard
from forge.errors import Failure, UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces' imports


def test_the_specification_needs_no_network_and_no_login(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["dashboard", "my-project", "--entity", "us", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["project"], found["entity"], found["displayName"]) == (
        "my-project",
        "us",
        "Forge",
    )
    sections = found["spec"]["section"]["panelBankConfig"]["sections"]
    panels = {section["name"]: [p["config"] for p in section["panels"]] for section in sections}
    assert [name.split()[0] for name in panels] == ["Headline", "Curves", "Teacher", "Throughput"]
    bars, runs = panels["Headline by alpha, mean and std over seeds"]
    assert (bars["metrics"], bars["groupBy"]) == (["headline"], "mode.value.alpha")
    assert (bars["groupAgg"], bars["groupArea"]) == ("mean", "stddev")
    assert (runs["xAxis"], runs["yAxis"]) == ("config:mode.value.alpha", "summary:headline")
    for curve in panels["Curves by mode"]:
        assert (curve["xAxis"], curve["groupBy"]) == ("_step", "jobType")
    assert panels["Teacher and student"][0]["metrics"] == ["headline", "teacher/headline"]
    assert all("per_second" in panel["metrics"][0] for panel in panels["Throughput"])


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'forge\[dashboard\]'"):
        dashboard.build("my-project", "us")


def test_what_wandb_refuses_is_one_line(monkeypatch):
    from wandb_workspaces.workspaces import Workspace

    def save(self):
        raise ValueError("permission denied\nfor this project")

    monkeypatch.setattr(Workspace, "save", save)
    with pytest.raises(Failure, match="permission denied for this project"):
        dashboard.main("my-project", "us", dry_run=False)
