"""Knowledge distillation (Hinton et al. 2015): learn from labels and from a teacher's answers.

    loss = (1 - alpha) * task loss + alpha * sum_k weight_k * L_k(student, teacher)

Losses that read logits only take the teacher's stored ones; those that read hidden states or
attention run the teacher beside the student, which must get the same positions. Language models
learn token by token.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from forge.distillation import on_policy as on_policy_distillation
from forge.distillation import rows, tokens
from forge.distillation.losses import Loss
from forge.distillation.objective import require_loss
from forge.errors import UserError
from forge.modes.sft import check_padded, plain
from forge.tasks.objective import ClassWeights, Gamma
from forge.tasks.task import Task
from forge.training.preparation import Prepared
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from transformers import TrainingArguments

log = logging.getLogger(__name__)


def trainer(
    *,
    prepared: Prepared,
    alpha: Annotated[float, Field(ge=0, le=1)],
    loss: dict[str, Loss],
    gate: bool = True,
    cache: bool = True,
    top_k: Annotated[int, Field(ge=1)] | None = None,
    on_policy: bool = False,
    beta: Annotated[float, Field(ge=0, le=1)] | None = None,
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    class_weights: ClassWeights = None,
    focal_gamma: Gamma = 0.0,
    views: Annotated[int, Field(ge=1)] | None = None,
) -> Ready:
    """A trainer of the blended loss; at alpha=0 the plain one, without a teacher.

    `prepared.objective` is what `class_weights` and `focal_gamma` came to: of the task's loss.
    """
    splits = rows.training_splits(prepared.task, alpha)
    if alpha == 0:
        log.info("loss    1 * task loss (mode.alpha=0: as mode=sft, no teacher)")
        return Ready(plain(prepared))
    if on_policy:
        return on_policy_distillation.ready(prepared, gate, beta, temperature)
    if prepared.task.answer.alignment == "token":
        return tokens.ready(prepared, alpha, loss, gate, top_k)
    return rows.ready(prepared, alpha, loss, gate, cache, splits, views)


def check(
    task: Task,
    args: TrainingArguments,
    *,
    alpha: float,
    loss: dict[str, Loss],
    top_k: int | None = None,
    on_policy: bool = False,
    beta: float | None = None,
    temperature: float | None = None,
    class_weights: ClassWeights = None,
    focal_gamma: Gamma = 0.0,
    cache: bool = True,
    views: int | None = None,
    **others: object,
) -> None:
    """Raise `UserError` for settings that do not fit each other or the task."""
    drawing = {"beta": beta, "temperature": temperature}
    for name, value in () if on_policy else drawing.items():
        if value is not None:
            raise UserError(f"mode.{name}={value}: it is for mode.on_policy=true; leave it null")
    if alpha == 0:
        return
    check_padded(task)
    require_loss(loss)
    if views:
        rows.check_views(task, loss, cache, views)
    if task.answer.alignment == "token":
        if on_policy:
            if class_weights or focal_gamma:
                raise UserError(
                    "mode.class_weights, mode.focal_gamma: mode.on_policy=true has no "
                    "cross-entropy that they could weigh; leave them out"
                )
            on_policy_distillation.check(args, alpha, loss, top_k)
        else:
            tokens.check(loss, top_k)
        return
    if on_policy:
        raise UserError("mode.on_policy=true: a label is no text that is written; set it to false")
    if top_k:
        raise UserError(f"mode.top_k={top_k}: it is for language models; set mode.top_k=null")
    rows.check(task, alpha, loss)
