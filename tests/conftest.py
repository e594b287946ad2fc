"""Shared by all tests: no network, a cache of their own, and runs composed in this process."""

import functools
import gc
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # sweeps fork
os.environ["OMP_NUM_THREADS"] = "1"  # layers this small gain nothing from a second thread

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from xdist.scheduler import LoadScopeScheduling

from forge.config import CONF, register

TOY = ("task=toy", "task.dataset.train=600", "task.dataset.validation=150")
SMALL = (
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "precision=fp32",
)


class OneCluster(LoadScopeScheduling):
    """Any test to any worker, but those of the SLURM cluster, which come first, to one."""

    def _split_scope(self, nodeid: str) -> str:
        return "slurm" if "test_slurm.py" in nodeid else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneCluster:
    """Instead of --dist loadgroup, which groups nothing (xdist 3.8 with pytest 9.2)."""
    return OneCluster(config, log)


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
    import forge.modes.kd
    import forge.toy

    gc.freeze()  # the Trainer collects garbage: let it not look through the libraries
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forge.toy, "nli", functools.cache(forge.toy.nli))
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


CLUSTER = Path(__file__).with_name("slurm_cluster.sh")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """A real SLURM of two nodes, which SLURM_CONF leads to; its folder (see slurm_cluster.sh)."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM of our own needs root")
    daemons = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd")
    if not all(map(shutil.which, daemons)):
        if not (os.environ.get("CI") and shutil.which("apt-get")):
            pytest.skip(f"SLURM is not installed; {CLUSTER.name} install does it on Debian")
        subprocess.run([CLUSTER, "install"], check=True, stdout=subprocess.DEVNULL)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CLUSTER", str(folder))
        patch.setenv("SLURM_CLUSTER_PORT", str(10000 + os.getpid() % 1000 * 5))
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        try:
            subprocess.run([CLUSTER, "start"], check=True)
            yield folder
        finally:
            subprocess.run([CLUSTER, "stop"], check=True)


def results(run_dir: Path) -> dict[str, Any]:
    """What results.json says."""
    found: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return found
