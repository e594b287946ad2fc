"""The head of a regression: it learns standardised values, and answers in the targets' units.

The scale is in the model's config (`target_mean`, `target_std`), so that whoever loads the model
through Forge gets the same answers. The last layer computes in fp32 under autocast too: half
precision has three digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Scale:
    """What standardised values are multiplied by, and what is added."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, config: PretrainedConfig) -> Scale:
        """That of a model's head."""
        return cls(getattr(config, "target_mean", 0.0), getattr(config, "target_std", 1.0))

    def write(self, config: PretrainedConfig) -> None:
        """Make it that of a model with this config."""
        if self != Scale.of(config):
            config.target_mean, config.target_std = self.mean, self.std


class ScaledLinear(nn.Linear):
    """A linear layer whose outputs are `mean + std * y`, in fp32."""

    scale: Scale

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            with torch.autocast(input.device.type, enabled=False):
                return self._scaled(input)
        return self._scaled(input)

    def _scaled(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        output = functional.linear(input.float(), self.weight.float(), bias)
        return output if self.scale == Scale() else output * self.scale.std + self.scale.mean


def apply(model: PreTrainedModel) -> PreTrainedModel:
    """Make the last layer of a regression answer in the targets' units; the same model."""
    if getattr(model.config, "problem_type", None) != "regression":
        return model
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if linear and type(linear[-1]) is nn.Linear:
        linear[-1].__class__ = ScaledLinear
        linear[-1].scale = Scale.of(model.config)  # type: ignore[assignment]
    return model
