"""The ledger and the table of submitted jobs; tests/test_slurm.py has them on a real cluster."""

import json
import os
import pickle
import signal
import sys

import pytest
from omegaconf import OmegaConf
from submitit.core.utils import DelayedSubmission

from forge.__main__ import main
from forge.errors import UserError
from forge.launching import jobs
from forge.launching.in_job import Run, Shared, once
from forge.launching.slurm import _teacher_key
from forge.launching.submission import complete
from forge.records.environment import Commit


def job(number):
    return jobs.Job(f"7_{number}", number, [f"seed={number}"], "", "", 1, "slurm", "", "")


def test_a_cut_line_of_the_ledger_costs_itself_alone(tmp_path):
    jobs.enter(tmp_path, [job(0), job(1)])
    file = tmp_path / jobs.LEDGER
    file.write_bytes(file.read_bytes()[:-40])
    jobs.enter(tmp_path, [job(2)])
    assert jobs.read_ledger(tmp_path) == {0: job(0), 2: job(2)}


TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n'


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("RuntimeError: CUDA error: no\nHint: see docs", "RuntimeError: CUDA error: no"),
        ("AssertionError", "AssertionError"),
        ("forge.errors.UserError: column x: not there", "column x: not there"),
        ("torch.OutOfMemoryError: 3 GiB", "OutOfMemoryError: 3 GiB"),
    ],
)
def test_the_reason_is_the_last_exception_in_one_line(last, told):
    first = f"{TRACE}ValueError: x\n\nDuring handling of the above exception, another:\n\n"
    assert jobs._reason(f"{first}{TRACE}{last}\n") == told


def test_the_live_table_has_jobs_of_teachers(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with jobs._display() as show:
        for state in ("running", "finished"):
            show([("teacher 1", "7", "", state, "", "", ""), ("0", "8", "", state, "", "", "")])


def test_a_teacher_serves_runs_of_one_task_and_precision():
    config = {"task": {"rows": 1}, "teacher": {"path": "x"}, "precision": "fp32", "seed": 1}
    keys = [
        _teacher_key(OmegaConf.create(config | change))
        for change in ({}, {"seed": 2}, {"precision": "bf16"}, {"task": {"rows": 2}})
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_a_teachers_failure_that_cost_no_run_is_past():
    ledger = {n: job(n) for n in (-1, 0, 1)}
    fine = {-1: jobs.Outcome(error="x"), 0: jobs.Outcome(0.5), 1: jobs.Outcome(0.5)}
    assert jobs.failures(ledger, fine) == {}
    assert sorted(jobs.failures(ledger, fine | {1: jobs.Outcome(error="y")})) == [-1, 1]


class Malicious:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def submitted(folder, end):
    """A sweep's directory with one job of this machine that ended so."""
    files = folder / ".submitit" / "1"
    files.mkdir(parents=True)
    (files / "1_0_result.pkl").write_bytes(pickle.dumps(end))
    ended = jobs.Job("1", 0, ["seed=0"], str(folder / "0"), str(files), 1, "local", "", "")
    jobs.enter(folder, [ended])
    return ended


@pytest.mark.parametrize("value", [0.25, float("-inf")])
def test_the_result_of_a_job_is_its_headline(tmp_path, value):
    assert jobs.outcome(submitted(tmp_path, ("success", value))) == jobs.Outcome(value)


def test_a_pickle_in_a_run_directory_is_data_and_never_run(tmp_path, capsys, monkeypatch):
    made = tmp_path / "made"
    for i, end in enumerate((Malicious(made), ("success", Malicious(made)), ("success", [1]), 7)):
        ended = jobs.outcome(submitted(tmp_path / str(i), end))
        assert ended.value is None and "_result.pkl: " in ended.error
    monkeypatch.setattr(jobs, "states", lambda asked: {job.job: "COMPLETED" for job in asked})
    monkeypatch.setattr(jobs, "GRACE", {"COMPLETED": 0})
    run = tmp_path / "0" / "0"
    run.mkdir()
    (run / "run_metadata.json").write_text(json.dumps({"attempts": [{}]}))
    for verb in (["runs", "--watch"], ["runs"], ["report"], ["show"]):
        main([*verb, str(tmp_path / "0")])
    assert "which is not run" in capsys.readouterr().out and not made.exists()


def test_a_submission_that_was_not_entered_is_data_too(tmp_path):
    made, file = tmp_path / "made", tmp_path / ".submitit" / "1" / "1_submitted.pkl"
    file.parent.mkdir(parents=True)
    for content in (Malicious(made), jobs.Job("1", 0, [], "", "", 1, "local", "", "")):
        file.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"1_submitted\.pkl"):
            complete(tmp_path)
    assert not made.exists() and jobs.entered(tmp_path) == []
    run = Run(OmegaConf.create({"seed": 1}), Shared(None, max, {}, Commit()))
    run.entry = jobs.Job("", 3, ["seed=1"], "d", "", 1, "local", "", "")
    DelayedSubmission(run).dump(file)
    complete(tmp_path)
    assert jobs.read_ledger(tmp_path)[3].job == "1"


def test_a_second_signal_does_not_disturb_the_requeue_that_the_first_began():
    heard, numbers = [], (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def requeue(number, frame):
        heard.append(number)
        for again in numbers:
            os.kill(os.getpid(), again)

    try:
        signal.signal(signal.SIGUSR2, once(requeue))
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard == [signal.SIGUSR2]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
