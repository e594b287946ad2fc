"""The commit of a checkout, whoever owns it."""

import os
import shutil
import subprocess

import pytest

from forge.records.environment import git, version


@pytest.fixture
def checkout(tmp_path):
    def run(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    run("init")
    (tmp_path / "a").write_text("a")
    run("add", "a")
    run("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    return tmp_path


def test_a_commit_and_its_changes(checkout):
    assert len(git(checkout)["commit"]) == 40 and git(checkout)["dirty"] is False
    (checkout / "a").write_text("b")
    assert git(checkout)["dirty"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
def test_a_checkout_of_somebody_else_is_read(checkout, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for path in (checkout, checkout / ".git"):
        os.chown(path, 12345, 12345)
    asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    assert subprocess.run(asked, capture_output=True).returncode  # of itself git refuses
    assert len(git(checkout)["commit"]) == 40


def test_what_cannot_be_read_is_not_nothing(checkout, tmp_path_factory):
    assert git(tmp_path_factory.mktemp("none")) == {}
    shutil.rmtree(checkout / ".git" / "objects")
    assert "unreadable" in git(checkout) and "commit" not in git(checkout)
    assert "cannot be read" in version(git(checkout))
