"""Supervised fine-tuning: the model's own loss on the task's labels."""

from __future__ import annotations

from typing import Any

from forge.experiment import Prepared
from forge.trainer import Trainer


def trainer(*, prepared: Prepared, **common: Any) -> Trainer:
    """A trainer with the model's own loss; `common` are `transformers.Trainer`'s arguments."""
    return Trainer(**common)
