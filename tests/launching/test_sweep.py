"""Which jobs a sweep has, where they are, and what it tells at its end."""

import shutil
import signal
import sys

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from forge.config.compose import register
from forge.errors import Preempted, UserError
from forge.launching import sweep
from forge.launching.resume import resumed_arguments
from forge.records import plan
from forge.records.files import read_json, write_json
from tests.support.commands import launch
from tests.support.runs import SMALL, TOY


def test_a_full_disk_costs_a_sweep_its_files_and_not_its_table(tmp_path, capsys):
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0" / "training_state.json", {"status": "failed"})
    (tmp_path / "sweep.csv").symlink_to("/dev/full")
    assert sweep.sum_up(tmp_path) == 1
    told = capsys.readouterr().out
    assert "failed" in told and "the disk is full" in told


class Loader:
    """Composes a job's directory of its seed."""

    def load_sweep_config(self, config, words):
        seed = dict(word.split("=") for word in words)["seed"]
        return OmegaConf.create({"hydra": {"job": {}, "sweep": {"subdir": f"seed{seed}"}}})


def config_of(folder, subdir=sweep.NUMBERED, resume=None, sweeper="BasicSweeper"):
    place = {"dir": str(folder), "subdir": subdir}
    hydra = {"sweep": place, "sweeper": {"_target_": sweeper}}
    return OmegaConf.create({"resume": resume, "hydra": hydra})


def jobs_of(folder, *seeds, first=0, resume=None, **settings):
    config = config_of(folder, resume=resume, **settings)
    given = [["model=tiny", f"seed={seed}"] for seed in seeds]
    if resume:
        given = [["model=tiny", "trainer.max_steps=9", "resume=sweep"]]
    return sweep.planned(config, Loader(), given, first)


def test_a_sweep_that_is_stopped_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    def stopped(jobs, first):
        raise Preempted(signal.SIGTERM)

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Preempted):
        sweep.run_here(config_of(tmp_path / "all"), Loader(), [["seed=1"]], 0, stopped)
    assert capsys.readouterr().out.endswith("to go on: python launch.py resume=all\n")


def test_a_job_is_what_its_overrides_say(tmp_path):
    first = jobs_of(tmp_path, 3, 1, 2)
    assert {n: words[1] for n, words in first.items()} == {0: "seed=3", 1: "seed=1", 2: "seed=2"}
    shuffled = jobs_of(tmp_path, 1, 2, 3)  # the same command again
    assert {n: words[1] for n, words in shuffled.items()} == {1: "seed=1", 2: "seed=2", 0: "seed=3"}
    more = jobs_of(tmp_path, 2, 9)
    assert {n: words[1] for n, words in more.items()} == {2: "seed=2", 3: "seed=9"}
    assert sorted(plan.directories(tmp_path)) == [0, 1, 2, 3]
    resumed = jobs_of(tmp_path, resume="sweep")
    assert resumed[1] == ["model=tiny", "seed=1", "trainer.max_steps=9", "resume=sweep"]
    assert len(resumed) == 4


def test_jobs_of_a_search_are_never_taken_for_earlier_ones(tmp_path):
    search = {"sweeper": "Optuna"}
    assert list(jobs_of(tmp_path, 1, 1, **search)) == [0, 1]
    assert list(jobs_of(tmp_path, 1, first=2, **search)) == [2]
    assert list(jobs_of(tmp_path, 1, **search)) == [3]  # another search at the same place


def test_a_resumed_search_gives_other_settings_another_number(tmp_path):
    jobs_of(tmp_path, 1, 2, sweeper="Optuna")

    def again(*seeds, first=0):
        config = OmegaConf.create(
            {
                "resume": "sweep",
                "hydra": {
                    "sweep": {"dir": str(tmp_path), "subdir": sweep.NUMBERED},
                    "sweeper": {"_target_": "Optuna"},
                },
            }
        )
        return sweep.planned(
            config, Loader(), [["model=tiny", f"seed={seed}"] for seed in seeds], first
        )

    assert list(again(1)) == [0]
    assert list(again(7, first=1)) == [2]  # and not the result of seed=2
    assert list(again(8, first=2)) == [3]


def test_a_sweep_without_jobs_or_with_two_at_one_place_is_refused(tmp_path):
    with pytest.raises(UserError, match="the sweep has no jobs"):
        jobs_of(tmp_path)
    named = jobs_of(tmp_path / "named", 1, 2, subdir="seed${seed}")
    assert len(named) == 2
    assert plan.directories(tmp_path / "named")[1] == tmp_path / "named" / "seed2"
    with pytest.raises(UserError, match=r"jobs 0 and 1 would both be in .*seed7"):
        jobs_of(tmp_path / "twice", 7, 7, subdir="seed${seed}")


@pytest.mark.parametrize("begun", [False, True])
def test_nothing_stays_of_a_sweep_whose_jobs_are_all_refused(tmp_path, capsys, begun):
    folder = tmp_path / "new" / "sweep"
    config = OmegaConf.create(
        {
            "resume": None,
            "hydra": {
                "sweep": {"dir": str(folder), "subdir": sweep.NUMBERED},
                "sweeper": {"_target_": "BasicSweeper"},
            },
        }
    )

    def refuse(overrides, first):
        (folder / "multirun.yaml").write_text("hydra: {}")
        if begun:
            (folder / "1").mkdir()
        return [JobReturn(status=JobStatus.FAILED, _return_value=UserError("no such model"))] * 2

    returned = sweep.run_here(config, Loader(), [["seed=1"], ["seed=2"]], 0, refuse)
    assert len(returned) == 2
    assert (tmp_path / "new").exists() == begun
    assert ("go on with" in capsys.readouterr().err) == begun


def test_a_planned_secret_has_to_be_given_again(tmp_path):
    plan.write(tmp_path, {0: plan.Job(0, ["seed=1", "+x.token=***"], "0")})
    with pytest.raises(UserError, match=r"x\.token: a secret"):
        jobs_of(tmp_path, resume="sweep")


def test_a_resumed_sweep_is_over_its_plan_and_keeps_its_options(tmp_path):
    words = {"task": ["seed=shuffle(1,2)", "model.path='/d/${seed}'"], "hydra": []}
    node = {"overrides": words, "sweeper": {"params": {"mode.alpha": "0,1"}}, "verbose": False}
    node["runtime"] = {"config_sources": [{"provider": "command-line", "path": "/extra"}]}
    OmegaConf.save(OmegaConf.create({"hydra": node}), tmp_path / "multirun.yaml")
    plan.write(tmp_path, {0: plan.Job(0, ["seed=2"], "0")})
    assert resumed_arguments([f"resume={tmp_path}"]) == [
        "-m", "--config-dir=/extra", "model.path='/d/${seed}'", "hydra.sweeper.params=null",
        "resume=sweep", f"hydra.sweep.dir={tmp_path}",
    ]  # fmt: skip
    assert "--config-dir=/extra" not in resumed_arguments(
        [f"resume={tmp_path}", "--config-dir=/other"]
    )


def test_a_new_directory_is_nobody_elses(tmp_path, monkeypatch):
    register()
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    (tmp_path / "now").mkdir()
    cfg = OmegaConf.create(
        {"new": f"${{place:null,{tmp_path}/now}}", "old": f"${{place:{tmp_path}/now,{tmp_path}/x}}"}
    )
    assert (cfg.new, cfg.old) == (f"{tmp_path}/now-2", f"{tmp_path}/now")
    assert (tmp_path / "now-2").is_dir() and cfg.new == cfg.new
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_jobs_that_it_had(tmp_path):
    sweeps = ("-m", *TOY, *SMALL, "trainer.max_steps=2", "seed=shuffle(1,2,3)",
              "task.dataset.seed=1${seed}", "hydra.sweep.subdir='of ${seed}'")  # fmt: skip
    done = launch(tmp_path, *sweeps, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "sweep" / "of 2")
    again = launch(tmp_path, "resume=sweep")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("this run is finished") == 2
    for seed in (1, 2, 3):
        metadata = read_json(tmp_path / "sweep" / f"of {seed}" / "run_metadata.json")
        config = metadata["config"]
        assert (config["seed"], int(config["task"]["dataset"]["seed"])) == (seed, 10 + seed)
    assert (tmp_path / "sweep" / "sweep.csv").read_text().count(",finished,") == 3
