"""Shared by all tests: no network, a cache of their own; the fixtures are in tests/support/."""

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # sweeps fork
os.environ["OMP_NUM_THREADS"] = "1"  # layers this small gain nothing from a second thread

import pytest
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = [
    f"tests.support.{name}" for name in ("runs", "slurm", "texts", "stopping", "drawing", "pages")
]


class OneCluster(LoadScopeScheduling):
    """Any test to any worker, but those of the SLURM cluster, which come first, to one."""

    def _split_scope(self, nodeid: str) -> str:
        return "slurm" if "test_slurm.py" in nodeid else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneCluster:
    """Instead of --dist loadgroup, which groups nothing (xdist 3.8 with pytest 9.2)."""
    return OneCluster(config, log)
