"""Hydra finds launchers in this package alone; what these do is in forge/launching/."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


class HereLauncher(BasicLauncher):
    """Runs the jobs of a sweep one after the other in this process, and sums up."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from forge.launching import sweep

        assert self.config is not None and self.hydra_context is not None
        return sweep.run_here(
            self.config,
            self.hydra_context.config_loader,
            job_overrides,
            initial_job_idx,
            super().launch,
        )


class SubmitLauncher(SlurmLauncher):  # type: ignore[misc]  # untyped
    """Submits the runs of a sweep to SLURM, or starts them side by side here."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from forge.launching import slurm

        return slurm.launch(
            self.params["settings"],
            self.hydra_context,
            self.task_function,
            self.config,
            [list(overrides) for overrides in job_overrides],
            initial_job_idx,
        )


for name, node in {
    "basic": {"_target_": f"{__name__}.HereLauncher"},  # Hydra's default, in place of its own
    "submit": {"_target_": f"{__name__}.SubmitLauncher", "settings": "${launcher}"},
}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="forge")
