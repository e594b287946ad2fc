"""The guide's pages in a terminal; stations whose progress is read off runs."""

import json
import re

import pytest

from forge import guide
from forge.commands import learn
from forge.errors import UserError
from forge.records.files import METADATA, STATE
from tests.support.pages import write_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Writes runs into the outputs/ of an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))

    def write(name, choices, status="finished", **values):
        folder = write_run(tmp_path / "outputs" / name, alpha=values.pop("alpha", "0"))
        record = json.loads((folder / METADATA).read_text())
        record["choices"] |= choices
        for key, value in values.items():
            record["config"][key] |= value
        (folder / METADATA).write_text(json.dumps(record))
        (folder / STATE).write_text(json.dumps({"status": status, "step": 1, "max_steps": 1}))
        return folder

    return write


def done():
    return [station.name for station, run in learn.progress() if run]


def test_stations_are_ticked_off_by_what_runs_show(runs):
    assert done() == []
    assert "next  1  the machine" in learn.stations()
    runs("failed", {"experiment": "smoke"}, status="failed")
    assert done() == []
    first = runs("first", {"experiment": "smoke", "mode": "sft"})
    assert done() == ["the machine", "ten steps"]
    assert "python -m forge report outputs/first" in learn.stations()
    (first / "report.md").write_text("# report")
    runs("faster", {"experiment": "smoke", "mode": "sft"}, trainer={"learning_rate": 1e-3})
    assert done()[2:] == ["the files they left", "explain, and change one value"]
    runs("taught", {"mode": "kd"}, alpha="0.5")
    assert len(done()) == 4  # without a control it shows nothing
    runs("control", {"mode": "kd"}, alpha="0")
    assert done()[4:] == ["distillation against its control"]
    runs("own", {}, task={"dataset": {"_target_": "my_rows.rows"}})
    assert len(done()) == len(learn.STATIONS)
    assert "All done" in learn.stations() and "outputs/own" in learn.stations()


def test_a_page_is_printed_as_it_is_in_a_pipe_and_drawn_in_a_terminal(capsys, monkeypatch):
    learn.show("kd")
    assert capsys.readouterr().out.strip() == guide.page("kd").strip()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    learn.show("workbench")
    drawn = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, drawn.splitlines())) <= 100
    drawn = " ".join(drawn.split())
    assert "(learn recordings)" in drawn and "](" not in drawn and "(picture:" in drawn
    with pytest.raises(UserError, match="did you mean sweeps"):
        learn.show("sweep")


def test_every_page_of_a_station_is_there():
    assert {station.page for station in learn.STATIONS} <= guide.pages().keys()
