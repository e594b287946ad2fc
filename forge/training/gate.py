"""The gate: who teaches, or starts, must be better than the trivial answer."""

from __future__ import annotations

import logging

from forge.errors import UserError
from forge.tasks.task import Task

log = logging.getLogger(__name__)


def require_better(
    task: Task, name: str, value: float, baseline: float, split: str, gate: bool
) -> None:
    """Log a teacher's headline on a split beside the trivial one; with `gate` raise `UserError`
    for a teacher that is no better."""
    score = f"teacher {name}: {task.headline} {value:.4f} on {split}"
    log.info("%s (%s: %.4f)", score, task.answer.trivial, baseline)
    if gate and not task.is_better(value, baseline):
        raise UserError(
            f"{score} is no better than {task.answer.trivial} ({baseline:.4f}); name a trained one "
            "with teacher.path=, or go on with mode.gate=off"
        )
