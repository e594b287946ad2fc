"""What surrounds the runs of a sweep: keys given twice before it, the table after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from forge.errors import UserError


class Sweep(Callback):
    """Hydra calls this in the process that starts a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A key on the command line replaces what an experiment sweeps it over."""
        params = config.hydra.sweeper.get("params")
        if not params:
            return
        given = {word.lstrip("+").split("=", 1)[0] for word in config.hydra.overrides.task}
        with open_dict(params):
            for key in given & set(params):
                del params[key]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the sweep's report."""
        from forge import results

        folder = Path(config.hydra.sweep.dir)
        try:
            print(results.report(folder))
        except UserError as error:
            print(f"report  {error}")
