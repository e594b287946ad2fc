"""`python -m forge runs`: what is listed, what is live, and an index that is only a cache."""

import csv
import io
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from forge.__main__ import main
from forge.errors import UserError
from forge.records.files import METADATA, RESULTS, STATE, write_json
from forge.results import index


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runs-2.sqlite"


@pytest.fixture
def write(tmp_path):
    """Write a run: its folder below `runs`, the status, the process, the value, the config."""

    def write(name, status="finished", host="elsewhere", pid=1, value=0.5, days=1, **config):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        choices = {"task": "mnli", "model": "tiny", "mode": config.pop("chosen", "sft")}
        metadata = {"choices": choices, "overrides": [], "attempts": [{"host": host, "pid": pid}]}
        write_json(folder / METADATA, metadata | {"config": {"seed": 1} | config})
        updated = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        state = {"status": status, "step": 3, "max_steps": 9, "updated": updated}
        write_json(folder / STATE, state)
        if status == "finished":
            headline = {"metric": "accuracy", "split": "test", "value": value}
            splits = {"test": {"accuracy": value}}
            write_json(folder / RESULTS, {"headline": headline, "splits": splits})
        return folder

    return write


def names(*words, folder):
    return [run["run"].rsplit("/", 1)[-1] for run in index.listing(folder, *words)[1]]


def test_runs_are_listed_with_what_one_asks_of_them(write, tmp_path, capsys):
    write("a", days=3)
    write("b", status="preempted", days=1)
    assert main(["runs", str(tmp_path / "runs")]) == 0
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == list(index.TABLE)
    b, a = (dict(zip(header, line, strict=True)) for line in lines)
    assert a == {
        "run": str(tmp_path / "runs" / "a"),
        "task": "mnli",
        "model": "tiny",
        "mode": "sft",
        "status": "finished",
        "step": "3/9",
        "headline": "accuracy 0.5000",
        "age": "3 d",
        "to go on": "",
    }
    assert b["to go on"] == f"python launch.py resume={tmp_path / 'runs' / 'b'}"


def test_the_forms_agree(write, tmp_path, capsys):
    write("a", value=float("nan"), chosen="kd", trainer={"learning_rate": 3e-4})
    words = ["runs", str(tmp_path / "runs"), "--sort", "trainer.learning_rate"]
    main([*words, "--json"])
    (found,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["mode"], found["headline"], found["trainer.learning_rate"]) == ("kd", None, 3e-4)
    main([*words, "--csv"])
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(line) == list(found) and line["trainer.learning_rate"] == "0.0003"


def test_each_metric_and_each_key_that_differs_is_a_column(write, tmp_path, capsys):
    write("a", value=0.75, chosen="kd", trainer={"learning_rate": 3e-4, "max_steps": 5})
    write("b", value=0.5, chosen="kd", trainer={"learning_rate": 1e-4, "max_steps": 5})
    main(["runs", str(tmp_path / "runs"), "--sort", "run", "--csv"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["test.accuracy"] for line in lines] == ["0.75", "0.5"]
    assert [line["trainer.learning_rate"] for line in lines] == ["0.0003", "0.0001"]
    assert "trainer.max_steps" not in lines[0]


def test_conditions_are_over_choices_status_metrics_and_the_config(write, tmp_path):
    folder = tmp_path / "runs"
    settings = {"trainer": {"learning_rate": 3e-4, "bf16": True}, "text": ["a", "b"]}
    write("a", chosen="kd", value=0.9, alpha=0.5, **settings)
    write("b", chosen="kd", value=0.7, alpha=1, seed=2)
    write("c", status="failed")
    for where, fit in (
        ("mode=kd", "ab"),
        ("mode=kd seed=2", "b"),
        ("mode!=kd", "c"),
        ("status=failed", "c"),
        ("alpha=0.50", "a"),
        ("alpha!=0.5", "bc"),
        ("trainer.learning_rate=0.0003", "a"),
        ("trainer.bf16=true text=[a,b]", "a"),
        ("headline>0.8", "a"),
        ("test.accuracy<=0.7", "b"),
        ("task=sst2", ""),
    ):
        assert sorted(names(where, folder=folder)) == list(fit), where


def test_runs_are_sorted_by_any_key_those_without_it_last(write, tmp_path):
    folder = tmp_path / "runs"
    for name, value, alpha in (("a", 0.5, 10), ("b", 0.9, 9), ("c", 0.7, 0.5)):
        write(name, value=value, alpha=alpha)
    write("d", status="failed", days=2)
    assert names("", "-headline", folder=folder) == list("bcad")
    assert names("", "alpha", folder=folder) == list("cbad")
    assert names("", "age", folder=folder) == list("abcd")
    assert names("", "-age", folder=folder)[0] == "d"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--where", "mode.alfa=1"], "mode.alfa: no run .* did you mean mode.alpha"),
        (["--sort", "-hedline"], "hedline: no run .* did you mean headline"),
        (["--where", "kd"], "--where kd: not of the form key=value"),
        (["--where", "task='x"], "no closing quotation"),
    ],
)
def test_a_mistake_is_one_line(write, tmp_path, capsys, words, told):
    write("a", mode={"alpha": 1})
    assert main(["runs", str(tmp_path / "runs"), *words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and re.search(told, line)


def test_no_run_and_no_directory_are_said(tmp_path):
    for folder, told in ((tmp_path, "no run in it"), (tmp_path / "x", "no such directory")):
        with pytest.raises(UserError, match=told):
            index.listing(folder)


def test_folders_of_a_run_are_not_searched_but_runs_below_one_are(write, tmp_path):
    write("a")
    for inner in ("checkpoint-5", "model", "predictions", "wandb", ".hydra"):
        write(f"a/{inner}/hidden")
    write("a/more/b")
    write("model/c")  # a folder of runs may have any name
    assert sorted(names(folder=tmp_path / "runs")) == ["a", "b", "c"]


def test_a_running_runs_process_is_looked_for_each_time(write, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = tmp_path / "runs"
    write("a", status="running", host=socket.gethostname(), pid=child.pid)
    write("b", status="running", host="elsewhere", pid=child.pid)

    def statuses():
        return sorted((run["run"][-1], run["status"]) for run in index.listing(folder)[1])

    assert statuses() == [("a", "running"), ("b", "running")]
    child.communicate(b"\n")
    assert statuses() == [("a", "interrupted"), ("b", "running")]


def test_only_what_changed_is_read_again(write, tmp_path, monkeypatch, own_cache):
    folder = tmp_path / "runs"
    write("a"), write("b", status="running"), write("c")
    index.listing(folder)
    read, reads = index.results_runs.read_run, []
    monkeypatch.setattr(
        index.results_runs, "read_run", lambda path: reads.append(path.name) or read(path)
    )
    index.listing(folder, "seed=1")
    assert reads == []
    write("b", value=0.75)
    shutil.rmtree(folder / "c")
    assert names("headline=0.75", folder=folder) == ["b"] and reads == ["b"]
    assert sorted(names(folder=folder)) == ["a", "b"]
    own_cache.unlink()
    assert sorted(names(folder=folder)) == ["a", "b"] and sorted(reads) == ["a", "b", "b"]


@pytest.mark.parametrize("damage", ["garbage", "cut", "directory"])
def test_a_damaged_index_costs_nothing_but_time(write, tmp_path, own_cache, damage):
    write("a"), write("b", alpha=1)
    index.listing(tmp_path / "runs")
    whole = own_cache.read_bytes()
    if damage == "directory":  # nobody can mend that, and nobody need
        own_cache.unlink()
        own_cache.mkdir()
    else:
        own_cache.write_bytes(b"x" * 5000 if damage == "garbage" else whole[: len(whole) // 2])
    for _ in range(2):
        assert sorted(names(folder=tmp_path / "runs")) == ["a", "b"]
    assert damage == "directory" or own_cache.read_bytes().startswith(b"SQLite")


def test_a_run_whose_files_are_cut_short_is_listed_as_such(write, tmp_path):
    write("a")
    (write("b") / METADATA).write_text('{"config": {')
    for name, file in (("c", STATE), ("d", RESULTS), ("e", METADATA)):
        (write(name) / file).write_text("null" if name == "c" else "[1]")
    found = {run["run"][-1]: run["status"] for run in index.listing(tmp_path / "runs")[1]}
    assert found == {"a": "finished"} | dict.fromkeys("bcde", "unreadable")


@pytest.mark.slow
def test_two_listings_at_once_agree(write, tmp_path):
    for n in range(20):
        write(str(n))
    words = [sys.executable, "-m", "forge", "runs", str(tmp_path / "runs"), "--csv"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    lines = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [len(printed) for printed in lines] == [21, 21]


def test_a_terminal_gets_a_table_cut_to_what_one_reads(write, tmp_path, monkeypatch):
    for n in range(5):
        write(str(n))
    monkeypatch.setattr(index, "SHOWN", 3)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["runs", str(tmp_path / "runs")]) == 0
        print("END", flush=True)
        told = b""
        while b"END" not in told:
            told += os.read(master, 1 << 16)
    os.close(master)
    told = told.decode()
    assert "───" in told and "2 more: --where narrows" in told and "to go on" not in told


def test_whoever_reads_may_have_had_enough(write, tmp_path):
    write("a")
    line = f"{sys.executable} -m forge runs {tmp_path / 'runs'} | true"
    assert subprocess.run(line, shell=True, capture_output=True).stderr == b""
