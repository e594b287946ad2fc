"""Supervised fine-tuning: the model's own loss on the task's labels."""

from __future__ import annotations

import logging
from typing import Any

from forge.experiment import Prepared
from forge.trainer import Trainer

log = logging.getLogger(__name__)


def trainer(*, prepared: Prepared, **common: Any) -> Trainer:
    """A trainer with the model's own loss; `common` are `transformers.Trainer`'s arguments."""
    leave_out(prepared)
    return Trainer(**common)


def leave_out(prepared: Prepared) -> None:
    """Say that rows without labels do not count."""
    if split := prepared.task.unlabelled_split:
        log.warning("%s: rows without labels are learnt from by mode=kd only; left out", split)
