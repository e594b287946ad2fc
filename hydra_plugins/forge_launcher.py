"""Hydra finds launchers in this package alone; what this one does is in forge/slurm.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SubmitLauncher(Launcher):
    """Submits the runs of a sweep to SLURM, or starts them side by side here."""

    def __init__(self, settings: DictConfig) -> None:
        self.settings: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from forge import slurm

        return slurm.launch(
            self.settings, self.hydra_context, self.task_function, self.config,
            [list(words) for words in job_overrides], initial_job_idx,
        )  # fmt: skip


ConfigStore.instance().store(
    group="hydra/launcher",
    name="submit",
    node={"_target_": f"{__name__}.SubmitLauncher", "settings": "${launcher}"},
    provider="forge",
)
