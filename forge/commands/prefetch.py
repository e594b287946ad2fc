"""`python -m forge prefetch`: what a run or a sweep needs, downloaded and tokenised beforehand.

Compute nodes without a network then find everything in the caches of the home directory.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forge.config import compose as config_compose
from forge.config import schema
from forge.config.check import build
from forge.config.schema import Config, is_taught

if TYPE_CHECKING:
    from forge.tasks.task import Task


def main(overrides: list[str]) -> int:
    """Fetch for every job that these words of a command line make; each thing once."""
    import datasets

    from forge.training.arguments import check_all, training_arguments
    from forge.training.preparation import prepare

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    fetched: list[object] = []
    for config in _composed(overrides):
        wanted = [] if config.model.init else [config.model]
        wanted += config.teacher.models() if is_taught(config) else []
        new = [model for model in wanted if [config.task, model] not in fetched]
        if not new:
            continue
        fetched += [[config.task, model] for model in new]
        config = check_all(config)
        task: Task = build(config.task, "task")
        rows = task.load()
        with tempfile.TemporaryDirectory() as scratch:
            args = training_arguments(config, task, Path(scratch))
            for model in new:
                data = prepare(replace(config, model=model), task, args, rows).data
                counts = ", ".join(f"{split} {facts.n:,}" for split, facts in data.items())
                name = model.path or f"{model.config.get('model_type')} of random weights"
                print(f"here    {name}, tokenised rows: {counts}", flush=True)
    return 0


def _composed(overrides: list[str]) -> Iterator[Config]:
    """The config of each job, a sweep's values multiplied out as Hydra does."""
    from hydra import compose

    with config_compose.composing():
        for job in config_compose.jobs(overrides):
            yield schema.to_config(compose("config", job))
