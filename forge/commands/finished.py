"""A finished run's model, to be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge import hub
from forge.config.schema import Model
from forge.errors import UserError
from forge.models import heads, loading
from forge.results.runs import Run, read_run

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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
    trust = source(run).from_pretrained.get("trust_remote_code")
    with hub.access("model", folder, "RUN"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    return config


def classifier(run: Run) -> PretrainedConfig:
    """The architecture of its final model; raises `UserError` when that is no classifier."""
    config = architecture(run)
    if not heads.has_head(config):
        raise UserError(f"{run.path}: its model ({config.model_type}) is no classifier")
    return config


def load(run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Its classifier in fp32, ready to be asked, and its tokenizer."""
    config, model, folder = classifier(run), source(run), str(run.path / "model")
    options = {"dtype": "float32", **model.from_pretrained, "config": config}
    with hub.access("model", folder, "RUN"):
        return loading.read(folder, **options), loading.load_tokenizer(model, ())


def max_length(run: Run, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """The tokens per example that it was trained with."""
    return loading.max_length(run.metadata.get("max_length"), tokenizer, config)
