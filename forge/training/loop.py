"""The training of one run: callbacks, the checkpoint to go on from, and what it took."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from forge import ranks
from forge.errors import UserError
from forge.inputs.input import pad_multiple
from forge.models import lora
from forge.records import checkpoints
from forge.training.arguments import trains
from forge.training.callbacks import NanGuard, Padding, State
from forge.training.memory import memory, peak
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import TrainingArguments

    from forge.records.record import Record
    from forge.training.signals import Stop

log = logging.getLogger(__name__)


def follow(trainer: Trainer, callbacks: Sequence[TrainerCallback], rec: Record) -> None:
    """Add the run's callbacks; raises `UserError` for one that cannot do its work."""
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback) and not trainer.args.load_best_model_at_end:
            raise UserError(
                "callbacks=early_stopping: it needs trainer.load_best_model_at_end=true and "
                "trainer.eval_strategy=epoch or steps"
            )
    trainer.remove_callback(PrinterCallback)
    for callback in (State(rec, trainer), Padding(trainer), *callbacks):
        if isinstance(callback, NanGuard):
            callback.trainer = trainer
        trainer.add_callback(callback)


def train(trainer: Trainer, rec: Record, stop: Stop) -> dict[str, object]:
    """Train, from the newest good checkpoint when there is one; timings and throughput."""
    args = trainer.args
    if not trains(args):
        rec.reason = "there was nothing to train (0 steps or epochs)"
        return {}
    _require_batch(trainer)
    trainer.run_id = rec.metadata["id"]
    ignore_unused_weights(trainer)
    checkpoint = _newest(trainer, rec)
    if args.save_strategy != "no":
        checkpoints.require_space(rec.run_dir, checkpoints.size_of(trainer.model))
    stop.training = True
    trainer.off_schedule = lambda: stop.extra
    steps = 2 * args.gradient_accumulation_steps
    same = f" trainer.gradient_accumulation_steps={steps}, the same optimizer step"
    try:
        with memory(args, "per_device_train_batch_size", same):
            step = trainer.go(checkpoint)
    finally:
        stop.training = False
    stop.leave(args.device)  # a signal after the last step: the evaluation is for the next attempt
    rec.reason = _why_it_ended(trainer)
    log.info("stopped %s", rec.reason)
    seconds, (examples, tokens, cells) = trainer.seconds, trainer.totals()
    positions = (
        {
            "tokens_per_second": round(tokens / seconds, 1),
            "padding_share": round(1 - tokens / cells, 4),
        }
        if cells
        else {}
    )  # pictures have none
    return {
        "steps": step,
        "resumed_from": checkpoint.name if checkpoint else None,
        "seconds": round(seconds, 3),  # of all attempts, up to the checkpoints gone on from
        "examples_per_second": round(examples / seconds, 2),
        **positions,
        "peak_memory_gb": round(peak(args.device) / 1e9, 2),  # of rank 0
    }


def _why_it_ended(trainer: Trainer) -> str:
    """What ended a training that came to its end: its length, early stopping, another callback."""
    args, state = trainer.args, trainer.state
    epoch = f"epoch {state.epoch or 0:.2f}"
    if 0 < args.max_steps <= state.global_step:
        return f"trainer.max_steps={args.max_steps} were done, at {epoch}"
    if state.global_step >= state.max_steps:
        return (
            f"trainer.num_train_epochs={args.num_train_epochs:g} were done, {state.max_steps} steps"
        )
    where = f"at step {state.global_step} of {state.max_steps}, {epoch}"
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            patience = callback.early_stopping_patience
            if callback.early_stopping_patience_counter >= patience:
                metric = args.metric_for_best_model
                return f"early stopping: {metric} not better in {patience} evaluations, {where}"
    return f"a callback asked for it, {where}"


def _require_batch(trainer: Trainer) -> None:
    """Raise `UserError` where rows are fewer than a batch and an incomplete one is dropped."""
    args: TrainingArguments = trainer.args
    rows = len(trainer.train_dataset)  # type: ignore[arg-type]  # a datasets.Dataset
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise UserError(
            f"trainer.dataloader_drop_last: not one whole batch of {batch} in {rows} rows; "
            "lower trainer.per_device_train_batch_size"
        )


def ignore_unused_weights(trainer: Trainer) -> None:
    """Have several processes not wait for gradients that do not come; DDP calls it an error.

    What the logits are made of and the loss is not (the head, where it reads hidden states) is
    frozen, which changes nothing else; for what a batch may leave out DDP looks in every step.
    """
    handler, model = trainer.accelerator.ddp_handler, trainer.model
    if ranks.ranks() == 1 or handler is None or handler.find_unused_parameters:
        return
    rows: Dataset = trainer.eval_dataset  # without a teacher's columns
    collate = trainer.task.collator(trainer.processing_class, pad_multiple(trainer.args))
    batch = {name: part.to(model.device) for name, part in collate(list(rows.select([0]))).items()}
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def reached(parts: Sequence[Tensor]) -> set[str]:
        sums = [part.sum() for part in parts if part.requires_grad]
        gradients = torch.autograd.grad(
            sums, list(weights.values()), retain_graph=True, allow_unused=True
        )
        return {name for name, g in zip(weights, gradients, strict=True) if g is not None}

    training = model.training
    model.eval()  # no random number is drawn, no statistic updated
    with trainer.compute_loss_context_manager():
        logits, read = trainer.read_by_loss({k: v for k, v in batch.items() if k != "id"})
        of_logits, of_loss = reached([logits]), reached(read)
    model.train(training)
    if frozen := sorted(of_logits - of_loss):
        log.info("frozen  %d weights that no loss reaches (%s, …)", len(frozen), frozen[0])
        for name in frozen:
            weights[name].requires_grad_(False)
    handler.find_unused_parameters = not weights.keys() <= of_logits | of_loss


def _newest(trainer: Trainer, rec: Record) -> Path | None:
    """The newest good checkpoint of the run; where there should be one and is none, says so."""
    checkpoint = ranks.broadcast(lambda: checkpoints.newest(rec.run_dir, trainer.run_id))
    if checkpoint:
        lora.require_same_base(trainer.model, checkpoint)
        log.info("resume  %s", checkpoint.name)
    elif len(rec.metadata["attempts"]) > 1 or any(rec.run_dir.glob(f"{checkpoints.ASIDE}*")):
        there_was = f" ({name} is gone)" if (name := rec.state.get("latest_checkpoint")) else ""
        log.warning("resume  no good checkpoint%s: training starts from the beginning", there_was)
    return checkpoint
