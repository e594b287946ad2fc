"""`python -m forge doctor`: what each check says of a good machine and of a bad one."""

import json
import shutil
from collections import namedtuple
from importlib import metadata

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

from forge import __main__ as cli
from forge import hub
from forge.commands import doctor
from forge.commands.doctor import Finding
from forge.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """An empty working directory and home; nothing of the real machine's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def checks(monkeypatch):
    """Put the given checks in place of the real ones."""
    return lambda **given: monkeypatch.setattr(doctor, "CHECKS", list(given.items()))


def test_lines_and_exit_code(checks, capsys):
    checks(good=lambda: Finding("ok", "fine"), odd=lambda: Finding("warn", "gone", "get it"))
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok    good          fine",
        "warn  odd           gone  -> get it",
    ]


def test_a_check_that_raises_fails_and_the_others_still_run(checks, capsys):
    checks(bad=lambda: [].index("two\nlines"), good=lambda: Finding("ok", "fine"))
    assert cli.main(["doctor"]) == 1
    bad, good = capsys.readouterr().out.splitlines()
    assert bad.startswith("FAIL  bad           ValueError: ") and good.startswith("ok")


def test_json(checks, capsys):
    checks(good=lambda: Finding("ok", "fine"), bad=lambda: Finding("FAIL", "no", "do"))
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"name": "good", "status": "ok", "found": "fine", "way_out": ""},
        {"name": "bad", "status": "FAIL", "found": "no", "way_out": "do"},
    ]


@pytest.mark.parametrize("name", ["Python", "torch", "device", "bf16", "transformers", "evaluate"])
def test_what_every_machine_with_forge_has(name):
    assert dict(doctor.CHECKS)[name]().status == "ok"


def test_an_old_python(monkeypatch):
    monkeypatch.setattr("sys.version_info", (3, 10, 4))
    assert doctor.python().status == "FAIL"


def test_a_missing_package():
    finding = doctor.package("no_such_package")
    assert (finding.status, finding.found) == ("FAIL", "No module named 'no_such_package'")


@pytest.mark.parametrize("extra", ["rl", "lora"])
def test_extras_are_optional(monkeypatch, extra):
    checks = dict(doctor.CHECKS)
    look = checks[{"rl": "trl", "lora": "peft"}[extra]]

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert look().status == "warn" and f"forge[{extra}]" in look().way_out
    monkeypatch.setattr(metadata, "version", lambda name: "1.2")
    assert look() == Finding("ok", "1.2")


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, "FAIL"), (5, "warn"), (50, "ok")])
def test_disk(monkeypatch, gigabytes, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gigabytes * 1e9))
    assert doctor.disk().status == status


def test_writable_leaves_nothing_behind(tmp_path):
    assert doctor.writable().status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_not_writable(tmp_path):
    (tmp_path / "outputs").write_text("a file where a directory should be")
    finding = doctor.writable()
    assert (finding.status, finding.way_out) == ("FAIL", "name another place: hydra.run.dir=DIR")


def test_hub(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert doctor.hub().status == "ok"
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert doctor.hub().status == "warn" and "model.path=DIR" in doctor.hub().way_out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.hub().found == "not reached: HF_HUB_OFFLINE=1 is set"


def test_wandb_login(monkeypatch, tmp_path):
    import wandb

    stored = wandb.Settings()
    monkeypatch.setattr(wandb, "setup", lambda: namedtuple("Setup", "settings")(stored))
    assert doctor.wandb().status == "warn" and "wandb login" in doctor.wandb().way_out
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret-key")
    assert doctor.wandb().status == "ok" and "secret" not in doctor.wandb().found
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert doctor.wandb().status == "warn"
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    assert doctor.wandb() == Finding("ok", "key in WANDB_API_KEY (not tried)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "no login needed" in doctor.wandb().found


def test_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.slurm() == Finding("ok", "not here")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho slurm 24.05.1\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert doctor.slurm() == Finding("ok", "slurm 24.05.1")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho one >&2; echo no slurm.conf >&2; exit 1\n")
    assert doctor.slurm().status == "warn"
    assert "its tools are here, and no cluster (no slurm.conf)" in doctor.slurm().found


@pytest.mark.slow
def test_the_training_run(monkeypatch, tmp_path, capfd):
    monkeypatch.delitem(Singleton._instances, GlobalHydra)  # conftest's; put back afterwards
    finding = doctor.training()
    assert finding.status == "ok" and finding.found.startswith("2 steps")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_without_a_verb_help_is_printed(capsys):
    assert cli.main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_a_users_mistake_is_one_line(monkeypatch, capsys):
    def mistaken(as_json):
        raise UserError("x: no such thing")

    monkeypatch.setattr(doctor, "main", mistaken)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: x: no such thing\n"
