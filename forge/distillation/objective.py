"""The objective of distillation, as it is logged."""

from __future__ import annotations

import logging

from forge.distillation.losses import Loss
from forge.errors import UserError

log = logging.getLogger(__name__)


def require_loss(loss: dict[str, Loss]) -> None:
    """Raise `UserError` when there is none."""
    if not loss:
        raise UserError("mode.loss: no loss to the teacher; choose e.g. mode/loss=kl")


def announce(
    alpha: float, loss: dict[str, Loss], settings: str, summed: str, averaged: str
) -> None:
    """Log the objective: its terms, their weights and settings, those of the task's loss given."""
    log.info(
        "loss    %g * task loss%s + %g * (%s)",
        1 - alpha,
        f" ({settings})" if settings else "",
        alpha,
        " + ".join(f"{term.weight:g} * {described(name, term)}" for name, term in loss.items()),
    )
    log.info(
        "        each summed over the %s, averaged over the %s; mode.alpha is the "
        "teacher's share: 0 labels only, 1 teacher only",
        summed,
        averaged,
    )


def described(name: str, term: Loss) -> str:
    """A loss with its settings."""
    shown = ("temperature", "divergence", "distance", "layers", "layer", "teacher_layer")
    settings = {k: v for k, v in vars(term).items() if k in shown}
    listed = [f"{k} {v}" for k, v in settings.items()]
    if "temperature" in settings:
        listed.append("times T^2")
    return f"{name}({', '.join(listed)})" if listed else name
