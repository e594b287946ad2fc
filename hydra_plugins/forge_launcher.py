"""Hydra finds launchers in this package alone; what this one does is in forge/slurm.py."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


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
            [list(words) for words in job_overrides],
            initial_job_idx,
        )


ConfigStore.instance().store(
    group="hydra/launcher",
    name="submit",
    node={"_target_": f"{__name__}.SubmitLauncher", "settings": "${launcher}"},
    provider="forge",
)
