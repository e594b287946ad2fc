"""Supervised fine-tuning: the task's loss on its labels."""

from __future__ import annotations

import logging

from transformers.utils.generic import is_flash_attention_requested

from forge.errors import UserError
from forge.tasks import decoding, objective
from forge.tasks.objective import ClassWeights, Gamma
from forge.tasks.task import Task
from forge.training.preparation import Prepared
from forge.training.trainer import Ready, Trainer

log = logging.getLogger(__name__)


def trainer(
    *, prepared: Prepared, class_weights: ClassWeights = None, focal_gamma: Gamma = 0.0
) -> Ready:
    """A trainer of the task's loss; `prepared.objective` is what the two settings came to."""
    leave_out(prepared)
    return Ready(plain(prepared))


def plain(prepared: Prepared) -> Trainer:
    """A trainer of the task's loss, in batches without padding where the task says so."""
    if how := objective.describe(prepared.objective, prepared.task.answer):
        log.info("loss    cross-entropy, %s", how)
    arguments, without_padding = prepared.trainer_arguments(), prepared.task.input.padding_free
    if without_padding is None:
        without_padding = is_flash_attention_requested(prepared.model.config)
    if not without_padding:
        return Trainer(**arguments)
    made = Trainer(**arguments)  # moves the model to its device
    train = prepared.splits[prepared.task.train]
    made.data_collator = decoding.flattened(made.model, train, prepared.args.device)
    log.info("batches one sequence each, of rows that do not see each other; no padding")
    return made


def check_padded(task: Task) -> None:
    """Raise `UserError` when batches without padding are asked for where there are none."""
    if task.input.padding_free:
        raise UserError(
            "task.padding_free=true: it is for mode=sft, batches here are padded; leave it null"
        )


def leave_out(prepared: Prepared) -> None:
    """Say that rows without labels do not count."""
    if split := prepared.task.unlabelled_split:
        log.warning("%s: rows without labels are learnt from by mode=kd only; left out", split)
