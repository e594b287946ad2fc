"""Heads: what a task asks of one, its labels matched by name and put into the task's order."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from forge.config.schema import Model, Node
from forge.data.spelling import folded
from forge.errors import UserError
from forge.models import lora
from forge.models.scaling import Scale

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """What a task asks of a model: its class, and the labels that its outputs stand for.

    `labels` are in the order of their ids; None stands for a head that is the vocabulary.
    """

    auto: str  # transformers.AutoModelFor{auto}
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None  # as in transformers.PretrainedConfig
    peft_type: str | None = None  # peft.TaskType
    scale: Scale = field(default_factory=Scale)  # of a regression's values
    named: bool = True  # labels have names that a model's are matched by; else they are places

    @property
    def auto_class(self) -> type[_BaseAutoModelClass]:
        """The transformers class that loads a model with such a head."""
        import transformers

        auto: type[_BaseAutoModelClass] = getattr(transformers, f"AutoModelFor{self.auto}")
        return auto

    def is_trained(self, config: PretrainedConfig) -> bool:
        """Whether a checkpoint with this config was saved with such a head."""
        known = class_names(self.auto_class) | {remote_class(config, f"AutoModelFor{self.auto}")}
        return any(
            name in known or name.endswith(f"For{self.auto}") for name in config.architectures or ()
        )


def remote_class(config: PretrainedConfig, auto: str) -> str | None:
    """The class that code beside the weights names for a transformers.Auto… class."""
    named = (getattr(config, "auto_map", None) or {}).get(auto)
    return named.rpartition(".")[2] if isinstance(named, str) else None


def class_names(auto_class: type[_BaseAutoModelClass]) -> set[str]:
    """Names of the model classes behind a transformers.AutoModelFor… class."""
    mapping = auto_class._model_mapping
    assert mapping is not None
    classes = mapping._model_mapping.values()
    return {name for names in classes for name in ([names] if isinstance(names, str) else names)}


def head_names(config: PretrainedConfig) -> list[str]:
    """The labels of a model's head, in the order of their ids."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def unnamed(labels: Iterable[str]) -> bool:
    """Whether a head's labels are transformers' placeholders."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in labels)


def name_labels(config: PretrainedConfig, head: Head) -> None:
    """Write the labels and the problem type of `head` into a model's config, if they are named."""
    assert head.labels is not None
    if not head.named:
        return
    config.num_labels = len(head.labels)
    config.problem_type = head.problem_type  # type: ignore[assignment]  # one of its literals
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {name: i for i, name in enumerate(head.labels)}


def head_order(model: Model, head: Head, config: PretrainedConfig, where: str) -> list[int]:
    """For each named label of the task its row in the trained head, matched by name, case-folded.

    Raises `UserError` for a head of other labels.
    """
    theirs, ours = head_names(config), list(head.labels or ())
    way_out = f"; start a fresh head with {where}.new_head=true, or set task.labels"
    if len(theirs) != len(ours):
        raise UserError(
            f"{where}.path={model.path}: its head has {len(theirs)} labels [{', '.join(theirs)}], "
            f"the task {len(ours)} [{', '.join(ours)}]{way_out}"
        )
    if unnamed(theirs):
        if len(theirs) > 1:
            log.warning(
                "head of %s: its labels are unnamed (%s), taken to be in the task's order: %s",
                model.path,
                ", ".join(theirs),
                ", ".join(ours),
            )
        return list(range(len(ours)))
    if len(ours) == 1:
        return [0]
    order = match(theirs, ours)
    if order is None:
        raise UserError(
            f"{where}.path={model.path}: its head knows [{', '.join(theirs)}], "
            f"the task [{', '.join(ours)}]{way_out}"
        )
    return order


def match(theirs: list[str], ours: list[str]) -> list[int] | None:
    """For each of our labels its place among theirs, by name, case-folded; None for others."""
    if len(theirs) != len(ours):
        return None
    if set(theirs) == set(ours):
        return [theirs.index(name) for name in ours]
    rows = {folded(name): i for i, name in enumerate(theirs)}
    if len(rows) < len(ours) or rows.keys() != {folded(name) for name in ours}:
        return None
    return [rows[folded(name)] for name in ours]


def encoder_name(model: PreTrainedModel) -> str:
    """The name of the module under the head, which Whisper's classifier calls `encoder`."""
    usual = model.base_model_prefix
    return "encoder" if not hasattr(model, usual) and hasattr(model, "encoder") else usual


def head_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Modules outside the encoder."""
    prefix = f"{encoder_name(model)}."
    return [(n, m) for n, m in model.named_modules() if n and not f"{n}.".startswith(prefix)]


def head_parts(model: PreTrainedModel) -> list[str]:
    """Names of the model's own modules beside the encoder that have weights."""
    own = [(n, m) for n, m in model.named_children() if n != encoder_name(model)]
    return [name for name, module in own if any(True for _ in module.parameters())]


def permute_head(model: PreTrainedModel, order: list[int]) -> None:
    """Reorder the output rows of the last linear layer, in place."""
    linear = [m for _, m in head_modules(model) if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        linear.weight.copy_(linear.weight[order].clone())
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[order].clone())


def from_config(
    auto: type[_BaseAutoModelClass], config: PretrainedConfig, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of random values; of code that is not transformers' where the config's is not."""
    remote = not type(config).__module__.startswith("transformers.")
    built: PreTrainedModel = auto.from_config(config, dtype=dtype, trust_remote_code=remote)
    return built


def with_new_head(
    auto: type[_BaseAutoModelClass], path: str, config: PretrainedConfig, options: Node
) -> tuple[PreTrainedModel, list[str]]:
    """The encoder at `path` under a head of random values, and the names of what is random."""
    built = from_config(auto, config, options["dtype"])
    trained, missing = lora.from_pretrained(auto, path, **options)
    name = encoder_name(built)
    built.get_submodule(name).load_state_dict(trained.get_submodule(name).state_dict())
    return built, [*missing, *(name for name, _ in head_modules(built))]
