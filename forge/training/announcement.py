"""What a run is about to train, for its record and in a few lines."""

from __future__ import annotations

import logging

from torch.nn.modules.batchnorm import _BatchNorm

from forge import ranks
from forge.models import lora
from forge.records.environment import environment
from forge.records.record import Record
from forge.training.preparation import Prepared

log = logging.getLogger(__name__)
GROUPS = ("task", "model", "mode", "trainer", "experiment")


def announce(prepared: Prepared, rec: Record) -> None:
    """Record what is trained, on what and where, and log it."""
    model, args, env = prepared.model, prepared.args, environment()
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    weights = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rec.note(
        **env,
        **prepared.facts,
        precision=precision,
        parameters={"total": weights, "trainable": trainable},
        model_revision=getattr(model.config, "_commit_hash", None),
    )
    choices = dict(rec.metadata.get("choices", {}))
    if prepared.config.model.path:
        choices["model"] = prepared.config.model.path
    log.info("run     %s", ", ".join(f"{k}={choices[k]}" for k in GROUPS if choices.get(k)))
    described = f"{model.config.model_type}, {weights / 1e6:.1f}M weights"
    if lora.is_adapted(model):
        described += f", {trainable / weights:.2%} of them trained: {lora.describe(model)}"
    log.info("model   %s", described)
    several = f", {ranks.ranks()} processes" if ranks.ranks() > 1 else ""
    log.info("device  %s (%s)%s, precision %s", args.device.type, env["device"], several, precision)
    most = f"{prepared.limit:,} {prepared.task.input.unit}"
    for name, split in prepared.data.items():
        cut = f", {split.truncated:,} cut at {most}" if split.truncated else ""
        log.info("data    %s: %s rows%s", name, f"{split.n:,}", cut)
    if prepared.task.input.augmentation:
        settings = prepared.task.input.augmentation.items()
        log.info("views   %s", ", ".join(f"{name} {value}" for name, value in settings if value))
    accumulated = args.gradient_accumulation_steps
    if accumulated > 1 and any(isinstance(m, _BatchNorm) for m in model.modules()):
        rows = args.per_device_train_batch_size
        log.info(
            "norms   BatchNorm's statistics are of %d rows: accumulation does not enlarge them",
            rows,
        )
    log.info("outputs %s", rec.run_dir)
