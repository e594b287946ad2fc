"""Supervised fine-tuning: the model's own loss on the task's labels."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers.utils.generic import is_flash_attention_requested

from forge import data
from forge.errors import UserError
from forge.experiment import Prepared
from forge.trainer import Trainer

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
    trainer = Trainer(**common | {"data_collator": data.Flattened()})
    check_flattened(trainer)
    log.info("batches one sequence each, of rows that do not see each other; no padding")
    return trainer


def check_flattened(trainer: Trainer) -> None:
    """Raise `UserError` unless the model says of a row what it says of that row alone."""
    model: Any = trainer.model
    train: Any = trainer.train_dataset
    rows = [{k: train[i][k][:16] for k in ("input_ids", "labels")} for i in (0, len(train) - 1)]
    flat = {k: v.to(trainer.args.device) for k, v in data.Flattened()(rows).items()}
    flat.pop("labels")
    size = len(rows[1]["input_ids"])
    alone = flat["input_ids"][:, -size:]
    flash = is_flash_attention_requested(model.config)  # it takes half precision only
    half = torch.autocast(alone.device.type, torch.bfloat16, enabled=flash)
    model.eval()
    with torch.no_grad(), half:
        wanted = model(input_ids=alone).logits
        try:
            found = model(**flat).logits[:, -size:]
        except TypeError:  # it takes no positions
            found = 2 * wanted
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    if not apart < (1e-4 if wanted.dtype == torch.float32 else 0.05):
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
