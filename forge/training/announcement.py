"""What a run is about to train, for its record and in a few lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from forge import ranks
from forge.models import lora
from forge.records.environment import environment
from forge.records.record import Record
from forge.training.preparation import Prepared

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.tasks.task import Task

log = logging.getLogger(__name__)
GROUPS = ("task", "model", "mode", "trainer", "experiment")


def seen_in_training(task: Task, rows: dict[str, Dataset]) -> dict[str, int]:
    """How many rows of each evaluation split have an input that a training row has too."""
    splits = [name for name in task.evaluation if name != task.train]
    if task.train not in rows or not splits:
        return {}
    trained = set(_inputs(task, rows[task.train]))
    counts = {name: sum(key in trained for key in _inputs(task, rows[name])) for name in splits}
    return {name: n for name, n in counts.items() if n}


def _inputs(task: Task, split: Dataset) -> Iterator[bytes]:
    """A short hash of each row's input."""
    for batch in split.select_columns(task.input.content).iter(1000):
        for values in zip(*batch.values(), strict=True):
            yield blake2b(repr(values).encode(errors="replace"), digest_size=12).digest()


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
    _log_data(prepared)
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


def _log_data(prepared: Prepared) -> None:
    """The rows of each split, what their answers are, and how many are in train too."""
    most = f"{prepared.limit:,} {prepared.task.input.unit}"
    for name, split in prepared.data.items():
        cut = f", {split.truncated:,} cut at {most}" if split.truncated else ""
        answers = prepared.task.answer.summary(prepared.rows[name])
        answers = f" ({answers})" if answers else ""
        log.info("data    %s: %s rows%s%s", name, f"{split.n:,}", cut, answers)
    asked, limit = prepared.task.input.max_length, prepared.limit
    if asked and limit < asked:
        unit = prepared.task.input.unit
        log.info("length  %d %s, all that the model reads (%d were asked)", limit, unit, asked)
    for name, n in seen_in_training(prepared.task, prepared.rows).items():
        log.warning(
            "data    %s: %s of its rows are in %s too, so that they may be known by heart",
            name,
            f"{n:,}",
            prepared.task.train,
        )
