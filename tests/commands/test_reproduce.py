"""The command of a run composes what the run recorded; what is other here is named; bits count."""

import json
import shlex

import pytest
from hydra import compose
from safetensors.torch import load_file, save_file

from forge.commands import reproduce
from forge.commands.reproduce import command, differences, spelled
from forge.errors import UserError
from forge.experiment import run as run_it
from forge.records.environment import environment, git
from forge.records.record import plain
from forge.results.equality import unequal_outcomes
from forge.results.runs import Run, read_run
from tests.support.commands import forge
from tests.support.runs import SMALL, TOY


@pytest.fixture
def recorded(tmp_path):
    """A run that recorded the config of `words`, and `overrides` as its first command."""

    def make(*words, overrides=None, attempts=({},), **more):
        first = list(words if overrides is None else overrides)
        attempts = [{"command": ["launch.py", *first]} | git() | one for one in attempts]
        config = plain(compose("config", list(words)))
        metadata = {"overrides": first, "config": config, "attempts": attempts} | environment()
        return Run(tmp_path, metadata | more, {}, {})

    return make


def recompose(words):
    return plain(compose("config", [word for word in words if not word.startswith("--")]))


def test_the_words_of_a_run_are_those_that_it_was_given(recorded):
    words = ["task=toy", "model=tiny", "seed=3", "task.text=[premise,hypothesis]"]
    elsewhere = ["launcher=slurm", "+launcher.partition=gpu", "tracking=wandb", "cache_dir=/x"]
    found, notes = command(recorded(*words, overrides=[*words, *elsewhere]))
    assert found == words and not notes
    assert shlex.split(spelled(found)) == ["python", "launch.py", *words]


def test_a_job_of_a_saved_sweep_is_run_alone_and_in_as_many_processes(recorded):
    words = ["experiment=kd_study", "seed=2", "mode.alpha=0.5"]
    found, _ = command(recorded(*words, processes=2))
    assert found == [*words, "launcher=ddp", "launcher.processes=2", "hydra.mode=RUN"]


@pytest.mark.parametrize("overrides", [None, [], ["task=gone", "model=tiny"]])
def test_whatever_conf_says_today_the_recorded_config_is_composed(recorded, overrides):
    odd = r"task.dataset.path='it is \'quoted\', C:\path\\\', {x: 1} \${y} 1e5'"
    words = [*TOY, *SMALL, "mode=kd", "~callbacks.nan_guard", "trainer.learning_rate=1e-4"]
    words += ["+trainer.adam_beta1=0.8", "+model.from_pretrained={revision: 'null', a: [1, '1']}"]
    words += ["task.labels=[yes, 'no', '1', null, 1e5]", "callbacks.console=null", f"+{odd}"]
    run = recorded(*words, overrides=overrides)
    found, notes = command(run)
    assert recompose(found) == run.metadata["config"]
    assert bool(notes) == (overrides is not None)
    if overrides:
        assert "conf/ no longer composes it (" in notes[0] and "gone" in notes[0]


def test_keys_that_are_newer_than_the_run_are_said(recorded):
    run = recorded("task=toy")
    del run.metadata["config"]["model"]["new_head"]
    found, notes = command(run)
    assert found == ["task=toy"]
    assert notes == ["model.new_head: newer than the run; its default is taken"]


def test_a_run_that_was_extended_gets_its_last_length_and_a_word_on_it(recorded):
    words = ["task=toy", "trainer.max_steps=6"]
    run = recorded("task=toy", "trainer.max_steps=9", overrides=words, attempts=({}, {}))
    found, notes = command(run)
    assert found == ["task=toy", "trainer.max_steps=9"]
    assert "extended by resume=, which no single run repeats to the bit" in notes[1]


def test_the_precision_that_auto_chose_and_a_folder_of_configs_are_kept(recorded, tmp_path):
    found, _ = command(recorded("task=toy", precision="fp16"))
    assert found == ["task=toy", "precision=fp16"]
    source = {"provider": "command-line", "path": str(tmp_path)}
    (tmp_path / ".hydra").mkdir()
    runtime = {"config_sources": [source], "cwd": "/elsewhere"}
    (tmp_path / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": runtime}}))
    found, notes = command(recorded("task=toy"))
    assert "/elsewhere" in notes[0]
    assert found == [f"--config-dir={tmp_path}", "task=toy"]


def test_secrets_are_asked_for(recorded):
    words = ["task=toy", "+model.from_pretrained.token=***"]
    found, notes = command(recorded(*words))
    assert "model.from_pretrained.token: a secret, which no run records; give it" in notes
    assert found == ["task=toy"]


@pytest.mark.parametrize(
    ("here", "then"),
    [({}, {}), ({"unreadable": "dubious"}, {"commit": "b" * 40}), ({"commit": "a" * 40}, {})],
)
def test_a_commit_that_is_not_known_is_never_as_recorded(recorded, monkeypatch, here, then):
    monkeypatch.setattr(reproduce, "git", lambda: here)
    run = recorded("task=toy")
    run.metadata["attempts"] = [{"command": []} | then]
    (line,) = [line for line in differences(run) if line.startswith("commit")]
    assert "unknown" in line and "it may be other code" in line
    assert ("dubious" in line) == ("unreadable" in here)


def test_each_thing_that_is_other_here_is_a_line(recorded, monkeypatch):
    monkeypatch.setattr(reproduce, "git", lambda: {"commit": "a" * 40, "dirty": True})
    attempts = ({"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": True})
    run = recorded("task=toy", attempts=attempts, device="another")
    run.metadata["versions"] |= {"torch": "1.0"}
    del run.metadata["versions"]["datasets"]
    lines = differences(run)
    here = environment()
    assert lines == [
        "commit: its attempts ran aaaaaaaaaa, bbbbbbbbbb",
        "commit: aaaaaaaaaa here, bbbbbbbbbb recorded",
        "code: the run had changes that no commit holds",
        "code: the files here have changes that no commit holds",
        f"torch: {here['versions']['torch']} here, 1.0 recorded",
        f"datasets: {here['versions']['datasets']} here, None recorded",
        f"device: {here['device']} here, another recorded",
    ]


@pytest.fixture
def two_runs(tmp_path, quick):
    """Of one command, to the bit the same."""
    words = [*TOY, *SMALL, "trainer.max_steps=3"]
    for name in ("one", "two"):
        composed = {"choices": {"task": "toy"}, "overrides": words}
        run_it(compose("config", words), tmp_path / name, composed)
    return tmp_path / "one", tmp_path / "two"


def test_weights_and_metrics_are_compared_to_the_bit(two_runs):
    one, two = two_runs
    for folder in (one, two):  # as a correlation of constants is
        results = json.loads((folder / "results.json").read_text())
        results["splits"]["validation"]["pearson"] = float("nan")
        (folder / "results.json").write_text(json.dumps(results))
    assert list(unequal_outcomes(one, two)) == []
    file = two / "model" / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"][1] += 0.5
    save_file(weights, file)
    results = json.loads((two / "results.json").read_text())
    accuracy = results["splits"]["validation"]["accuracy"]
    results["splits"]["validation"] |= {"accuracy": accuracy + 0.25, "seconds": 1e9}
    (two / "results.json").write_text(json.dumps(results))
    assert list(unequal_outcomes(one, two)) == [
        f"metrics: validation: accuracy: {accuracy} and {accuracy + 0.25}",
        "weights: classifier.bias, 1 of 3 numbers, by at most 0.5",
    ]


def test_an_unfinished_run_or_a_used_directory_is_refused(two_runs, tmp_path):
    one, two = two_runs
    with pytest.raises(UserError, match="it is there already; name a new directory"):
        reproduce.main(one, True, two, False)
    with pytest.raises(UserError, match="it is there already; name a new directory"):
        reproduce.main(one, True, two / "results.json", False)
    (one / "results.json").unlink()
    with pytest.raises(UserError, match="is not finished; there is nothing to compare with"):
        reproduce.main(one, True, None, False)
    with pytest.raises(UserError, match="no run in this directory"):
        reproduce.main(tmp_path, False, None, False)


@pytest.mark.slow
def test_the_command_says_whether_a_new_run_is_identical(two_runs, tmp_path):
    one, two = two_runs
    done = forge("reproduce", str(one), "--run", "--json", "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["identical"] and read_run(tmp_path / "new").metadata["id"]
    assert told["command"].startswith("python launch.py task=toy task.dataset.train=600 ")
    file = two / "model" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    done = forge("reproduce", str(two), "--run", "--out", str(tmp_path / "newer"))
    assert done.returncode == 1
    assert "not identical" in done.stdout and "by at most 1" in done.stdout
