"""Knowledge distillation (Hinton et al. 2015): learn from labels and from a teacher's answers.

    loss = (1 - alpha) * task loss + alpha * sum_k weight_k * L_k(student, teacher)

Losses that read logits only take the teacher's stored ones; those that read hidden states or
attention run the teacher beside the student, which must share its tokenizer.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from pydantic import Field

from forge.distillation.losses import Loss
from forge.distillation.rows import of_rows, training_splits
from forge.errors import UserError
from forge.modes.sft import padded, plain
from forge.training.preparation import Prepared
from forge.training.trainer import Trainer

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
    **common: Any,
) -> Trainer:
    """A trainer of the blended loss; at alpha=0 the plain one, without a teacher."""
    train = training_splits(prepared, alpha, loss)
    given = {"beta": beta, "temperature": temperature}
    for name, value in () if on_policy else given.items():
        if value is not None:
            raise UserError(f"mode.{name}={value}: it is for mode.on_policy=true; leave it null")
    if alpha == 0:
        log.info("loss    1 * task loss (mode.alpha=0: as mode=sft, no teacher)")
        return plain(prepared, common)
    padded(prepared)
    if prepared.task.head == "CausalLM":
        from forge.distillation import tokens  # which builds on this module

        if on_policy:
            return tokens.on_policy(prepared, alpha, loss, gate, top_k, given, common)
        return tokens.trainer(prepared, alpha, loss, gate, top_k, common)
    if on_policy:
        raise UserError("mode.on_policy=true: a label is no text that is written; set it to false")
    if top_k:
        raise UserError(f"mode.top_k={top_k}: it is for language models; set mode.top_k=null")
    return of_rows(prepared, alpha, loss, gate, cache, train, common)
