"""Supervised fine-tuning: the model's own loss on the task's labels."""

from __future__ import annotations

import logging
from typing import Any

from transformers.utils.generic import is_flash_attention_requested

from forge.errors import UserError
from forge.inputs import text
from forge.tasks import decoding
from forge.training.preparation import Prepared
from forge.training.trainer import Trainer

log = logging.getLogger(__name__)


def trainer(*, prepared: Prepared, **common: Any) -> Trainer:
    """A trainer with the model's own loss; `common` are `transformers.Trainer`'s arguments."""
    leave_out(prepared)
    return plain(prepared, common)


def plain(prepared: Prepared, common: dict[str, Any]) -> Trainer:
    """A trainer with the model's own loss, in batches without padding where the task says so."""
    flat = getattr(prepared.task, "padding_free", False)
    if flat is None:
        flat = is_flash_attention_requested(prepared.model.config)
    if not flat:
        return Trainer(**common)
    trainer = Trainer(**common | {"data_collator": text.Flattened()})
    check_flattened(trainer)
    log.info("batches one sequence each, of rows that do not see each other; no padding")
    return trainer


def check_flattened(trainer: Trainer) -> None:
    """Raise `UserError` unless the model says of a row what it says of that row alone."""
    model: Any = trainer.model
    train: Any = trainer.train_dataset
    rows = [{k: train[i][k][:16] for k in ("input_ids", "labels")} for i in (0, len(train) - 1)]
    flat = {k: v.to(trainer.args.device) for k, v in text.Flattened()(rows).items()}
    flat.pop("labels")
    if apart := decoding.moved(model, flat, flat["input_ids"][:, -len(rows[1]["input_ids"]) :]):
        raise UserError(
            f"task.padding_free: in a batch without padding {model.config.model_type} with "
            f"{model.config._attn_implementation} attention does not keep rows apart (logits move "
            f"by {apart:.1%}); set task.padding_free=false"
        )


def padded(prepared: Prepared) -> None:
    """Raise `UserError` when batches without padding are asked for where there are none."""
    if getattr(prepared.task, "padding_free", None):
        raise UserError(
            "task.padding_free=true: it is for mode=sft, batches here are padded; leave it null"
        )


def leave_out(prepared: Prepared) -> None:
    """Say that rows without labels do not count."""
    if split := prepared.task.unlabelled_split:
        log.warning("%s: rows without labels are learnt from by mode=kd only; left out", split)
