"""Modes: each is a module whose `trainer(*, prepared, …)` makes a complete trainer (`Ready`).

One whose settings can be wrong has `check(task, args, …)` too, called with the same settings
before anything slow: before rows are read and teachers trained.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from forge.tasks import objective
from forge.training.arguments import require_sharding

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from forge.tasks.task import Task
    from forge.training.trainer import Ready


def check(mode: partial[Ready], task: Task, args: TrainingArguments) -> None:
    """Raise `UserError` for settings that do not fit each other, the task or this machine."""
    require_sharding(args)
    weights, gamma = (mode.keywords.get(key) for key in ("class_weights", "focal_gamma"))
    objective.check(task.answer, args.label_smoothing_factor, weights, gamma or 0.0)
    module = sys.modules[mode.func.__module__]
    if hasattr(module, "check"):
        module.check(task, args, **mode.keywords)
