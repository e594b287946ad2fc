"""A finished run's model, to be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge import hub
from forge.config.schema import Model
from forge.errors import UserError
from forge.models import heads, loading
from forge.results.runs import Run, read_run
from forge.tasks.recorded import recorded_task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from forge.inputs.input import Processor
    from forge.tasks.task import Task


ELSEWHERE = ("revision", "subfolder", "variant", "token")  # of where the first weights came from


def finished(path: Path) -> Run:
    """A run that left a model; raises `UserError` for any other directory."""
    run = read_run(path)
    if not run.metadata or not run.results or not (path / "model" / "config.json").is_file():
        raise UserError(f"{path}: no finished run in this directory")
    return run


def source(run: Run) -> Model:
    """Its final model, as a model to load."""
    given = run.metadata["config"]["model"].get("from_pretrained") or {}
    kept = {key: value for key, value in given.items() if key not in ELSEWHERE}
    return Model(path=str(run.path), from_pretrained=kept)


def architecture(run: Run) -> PretrainedConfig:
    """Of its final model."""
    from transformers import AutoConfig

    folder = str(run.path / "model")
    trust = source(run).from_pretrained.get("trust_remote_code", False)
    with hub.access("model", folder, "RUN"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    return config


@dataclass(frozen=True)
class Finished:
    """A finished run's model in fp32, ready to be asked, with what it was trained for."""

    run: Run
    task: Task
    model: PreTrainedModel
    processor: Processor
    limit: int  # tokens (pixels) of a row that it was trained with

    @property
    def labels(self) -> list[str]:
        """In the order of its logits: those of its head; places, of as many as rows were read."""
        if not self.task.answer.named:
            return list(self.task.answer.labels or ())
        return heads.head_names(self.model.config)


def load(run: Run) -> Finished:
    """Its model; raises `UserError` where it cannot be read."""
    config, model, folder = architecture(run), source(run), str(run.path / "model")
    task = recorded_task(run.metadata, config)
    options = {"dtype": "float32", **model.from_pretrained, "config": config}
    with hub.access("model", folder, "RUN"):
        loaded = loading.read(folder, **options)
    processor = task.input.load_processor(model)
    task.input.make_ready(processor, config)
    return Finished(run, task, loaded, processor, task.input.limit(processor, config))
