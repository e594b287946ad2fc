"""README's commands compose, and what it names exists."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
COMMANDS = re.findall(r"^python launch\.py .*$", BLOCKS, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_launch_commands_compose(command):
    words = [w for w in shlex.split(command)[2:] if w != "-m"]
    swept = [re.sub(r"=([^\[{,]+),.*", r"=\1", w) for w in words]
    assert compose("config", swept, return_hydra_config=True).task


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets


def test_files_in_the_tree_exist():
    tree = README.split("## The tree")[1]
    for name in re.findall(r"^(\S+)  ", tree, re.M):
        assert (ROOT / name).exists(), name


def test_every_room_is_in_the_tree():
    for path in (ROOT / "forge").iterdir():
        if not path.name.startswith("_"):
            assert f"forge/{path.name}" in README, path.name


@pytest.mark.slow
def test_the_smoke_command_runs(launch):
    from tests.support.runs import results

    assert "python launch.py experiment=smoke" in COMMANDS
    run_dir = launch("experiment=smoke", "task.dataset.train=300", "task.dataset.validation=150")
    assert results(run_dir)["train"]["steps"] == 10
