"""Students made of some of another model's layers."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from forge.errors import UserError
from forge.models.heads import from_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

log = logging.getLogger(__name__)


def shallower(
    source: PreTrainedModel,
    layers: int | list[int] | None,
    auto_class: type[_BaseAutoModelClass],
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """A model that starts from the embeddings, the head and some (null: all) layers of `source`.

    `auto_class` is a transformers.AutoModelFor…, `config` the architecture, by default that of
    `source` with fewer layers; raises `UserError` when the weights do not fit it.
    """
    owner = source.config
    chosen = _choose_layers(layers, owner.num_hidden_layers)
    config = copy.deepcopy(config or owner)
    config.num_hidden_layers = len(chosen)
    if types := getattr(owner, "layer_types", None):
        config.layer_types = [types[i] for i in chosen]
    student = from_config(auto_class, config)
    weights, wanted = _with_layers(source, chosen), student.state_dict()
    for name in sorted(weights.keys() | wanted.keys()):
        mine, theirs = (list(w[name].shape) if name in w else "absent" for w in (wanted, weights))
        if mine != theirs:
            raise UserError(
                f"model.layers, model.init: {name} is {mine} in the student ({config.model_type}) "
                f"and {theirs} in the model that it starts from ({owner.model_type}); choose one "
                "of the same family and width, or model=from_teacher"
            )
    student.load_state_dict(weights)
    student.config.initialized_from = {"model": owner.name_or_path, "layers": chosen}
    log.info("weights: layers %s of %s", ", ".join(map(str, chosen)), owner.name_or_path)
    return student


def _choose_layers(layers: object, have: int) -> list[int]:
    """Indices of layers; a number is spread evenly, the first and the last among them."""
    if isinstance(layers, int) and 1 <= layers <= have:
        return [round(i * (have - 1) / max(layers - 1, 1)) for i in range(layers)]
    chosen: Any = list(range(have)) if layers is None else layers
    listed = isinstance(chosen, list) and chosen and len(set(chosen)) == len(chosen)
    if not listed or not all(isinstance(i, int) and 0 <= i < have for i in chosen):
        raise UserError(
            f"model.layers={layers}: a number from 1 to {have}, or a list of different layers "
            f"from 0 to {have - 1}"
        )
    return list(chosen)


def _with_layers(source: PreTrainedModel, chosen: list[int]) -> dict[str, torch.Tensor]:
    """The state of `source` with the chosen layers only, numbered anew."""
    have = source.config.num_hidden_layers
    stacks = [
        f"{name}."
        for name, module in source.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == have
    ]
    if len(stacks) != 1:
        raise UserError(
            f"model.layers: {len(stacks)} stacks of {have} layers in a {source.config.model_type}; "
            "it cannot be made shallower"
        )
    new = {f"{stacks[0]}{old}.": f"{stacks[0]}{i}." for i, old in enumerate(chosen)}
    state = {}
    for name, tensor in source.state_dict().items():
        if name.startswith(stacks[0]):
            stem = stacks[0] + name[len(stacks[0]) :].split(".")[0] + "."
            if stem not in new:
                continue
            name = new[stem] + name[len(stem) :]
        state[name] = tensor
    return state
