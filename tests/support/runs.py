"""Runs composed and run in this process, and what they left."""

import functools
import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers.trainer_callback import TrainerCallback

from forge.config.compose import CONF, register
from forge.records import checkpoints

TOY = ("task=toy", "task.dataset.train=600", "task.dataset.validation=150")
SMALL = (
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "precision=fp32",
)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tokenised data of the tests."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["FORGE_CACHE"] = str(path)
    yield path
    del os.environ["FORGE_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def hydra_config() -> Iterator[None]:
    """`compose` finds conf/."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """Spares several hundred small runs what took half of their time."""
    import forge.data.toy_nli
    import forge.modes.kd

    gc.freeze()  # the Trainer collects garbage: let it not look through the libraries
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forge.data.toy_nli, "nli", functools.cache(forge.data.toy_nli.nli))
        yield


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """The config of `python launch.py OVERRIDES`."""
    return lambda *overrides: compose("config", list(overrides))


def launch_in(folder: Path) -> Callable[..., Path]:
    """Runs overrides in this process, in a directory of `folder`, which it returns."""
    from forge.experiment import run

    def start(*overrides: str, at: str = "run") -> Path:
        run(compose("config", list(overrides)), folder / at)
        return folder / at

    return start


@pytest.fixture
def launch(tmp_path: Path, quick: None) -> Callable[..., Path]:
    """Run overrides in this process; returns the run directory."""
    return launch_in(tmp_path)


@pytest.fixture
def toy_run(launch: Callable[..., Path]) -> Callable[..., Path]:
    """A run of a model of a few thousand weights on a few hundred rows of the toy task."""
    return lambda *overrides, at="run": launch(*TOY, *SMALL, *overrides, at=at)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a .jsonl file; returns its path."""

    return lambda name, rows: write_rows(tmp_path / name, rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def results(run_dir: Path) -> dict[str, Any]:
    """What results.json says."""
    found: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return found


def snippet(text, run_dir):
    """Its Python code, over the run's own model."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code.replace("path/to/this/directory", str(run_dir / "model"))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def weights(run_dir):
    return checkpoints.weights(run_dir / "model")


def history(run_dir):
    newest = max(run_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return [
        row
        for row in json.loads((newest / "trainer_state.json").read_text())["log_history"]
        if "loss" in row
    ]


def losses(run_dir):
    newest = max(run_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


class Note(TrainerCallback):
    """In a job: writes how long the password is that it got."""

    def __init__(self, password):
        self.length = len(password)

    def on_train_begin(self, args, state, control, **kwargs):
        Path(args.output_dir, "length").write_text(str(self.length))
