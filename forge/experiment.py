"""The flow of one run, from a composed config to its headline metric. Read this file first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from forge import ranks
from forge.config import schema
from forge.config.check import build, check
from forge.config.schema import Config
from forge.errors import UserError
from forge.inputs import text
from forge.models import lora
from forge.records import checkpoints
from forge.records.environment import Commit, environment
from forge.records.files import RESULTS, read_json, write_json
from forge.records.record import Record, record
from forge.results import card

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from forge.tasks.task import Task
    from forge.training.signals import Stop
    from forge.training.trainer import Trainer
from forge.results.tables import table
from forge.training.arguments import training_arguments
from forge.training.evaluation import judge, write_predictions
from forge.training.preparation import Prepared, prepare

log = logging.getLogger(__name__)


def run(
    cfg: DictConfig,
    run_dir: str | Path,
    composed: dict[str, Any] | None = None,
    submitted: Commit | None = None,
) -> float:
    """Train and evaluate what `cfg` says in `run_dir`; returns the headline metric.

    A directory that holds an unfinished run of the same config goes on from its newest
    checkpoint; a finished one returns its result. Raises `UserError` for a user's mistake,
    `Failure` when it cannot go on, `signals.Preempted` when it was asked to stop.
    """
    from forge.training import signals
    from forge.training.trainer import memory

    run_dir = Path(run_dir).absolute()
    with record(cfg, run_dir, composed, submitted) as rec, signals.watch() as stop:
        if rec.finished:
            headline = read_json(run_dir / RESULTS)["headline"]
            log.info("%s: this run is finished; its result is returned", run_dir)
            return float(headline["value"])
        config = check_all(schema.to_config(cfg))
        task: Task = build(config.task, "task")
        _check_taught(config, task)
        args = training_arguments(config, task, run_dir)
        make_trainer = build(config.mode, "mode")
        track = _tracking(config)
        callbacks = [build(c, f"callbacks.{n}") for n, c in config.callbacks.items()]
        prepared = prepare(config, task, args, rec.metadata)
        _announce(prepared, args, run_dir, rec)
        with memory(args, "per_device_eval_batch_size"):  # teachers and starts are asked
            trainer = make_trainer(
                prepared=prepared,
                model=prepared.model,
                args=args,
                train_dataset=prepared.splits[task.train],
                eval_dataset=prepared.splits[task.evaluation[0]],
                processing_class=prepared.tokenizer,
                data_collator=task.collator(prepared.tokenizer, text.pad_multiple(args)),
                compute_metrics=getattr(task, "compute_metrics", None),
            )
        trainer.in_training = task.in_training
        rec.note(**prepared.facts)
        with track(rec, prepared) as tracker:
            _follow(trainer, [*tracker, signals.AtStepEnd(stop), *callbacks], rec)
            train = _train(trainer, args, rec, stop)
            with checkpoints.room(run_dir, checkpoints.size_of(prepared.model), run_dir / "model"):
                found = judge(trainer, task, prepared.splits, run_dir)
                with stop.put_off():
                    _write(trainer, prepared, run_dir, found | {"train": train, **trainer.found})
                return float(found["headline"]["value"])


GROUPS = ("task", "model", "mode", "trainer", "experiment")


SET_BY_FORGE = {
    "output_dir": "hydra.run.dir=DIR",
    "bf16": "precision=bf16",
    "fp16": "precision=fp16",
    "metric_for_best_model": "task.headline=METRIC",
    "greater_is_better": "task.headline=METRIC",
    "report_to": "tracking=wandb",
    "disable_tqdm": "callbacks.console=null",
    "remove_unused_columns": "task.text=[…]",
    "resume_from_checkpoint": "resume=DIR",
    "save_only_model": "trainer.save_strategy=no",
    "prediction_loss_only": "task.metrics=[…]",
    "batch_eval_metrics": "task.metrics=[…]",
    "eval_do_concat_batches": "task.metrics=[…]",
    "push_to_hub": "model/ of the run directory",
}


def check_all(config: Config) -> Config:
    """A copy whose nodes are ready for `build`: each fits the signature that it calls.

    Reads and loads nothing. Raises `UserError` for what does not fit.
    """
    for key in SET_BY_FORGE.keys() & config.trainer.keys():
        raise UserError(f"trainer.{key}: set by Forge; use {SET_BY_FORGE[key]}")
    task, mode, trainer = (check(getattr(config, w), w) for w in ("task", "mode", "trainer"))
    lora.check(config.model, "model")
    lora.check(config.teacher, "teacher")
    teacher, tracking, callbacks = config.teacher, config.tracking, {}
    if teacher.trainer:
        teacher = replace(teacher, trainer=check(teacher.trainer, "teacher.trainer"))
    for name, node in config.callbacks.items():
        if node is not None:
            if not isinstance(node, dict):
                raise UserError(f"callbacks.{name}={node}: a node with a _target_, or null")
            callbacks[name] = check(node, f"callbacks.{name}")
    if tracking is not None:
        tracking = check(tracking, "tracking")
    return replace(
        config,
        task=task,
        mode=mode,
        trainer=trainer,
        teacher=teacher,
        callbacks=callbacks,
        tracking=tracking,
    )


def _check_taught(config: Config, task: Task) -> None:
    if task.head == "CausalLM" and config.model.init:
        raise UserError(
            "model.init: students from a teacher's layers are classifiers so far; name a language "
            "model with model.path= or e.g. model=tiny_lm"
        )


def _announce(prepared: Prepared, args: TrainingArguments, run_dir: Path, rec: Record) -> None:
    model, facts, env = prepared.model, prepared.facts, environment()
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    weights = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rec.note(
        **env,
        **facts,
        precision=precision,
        parameters={"total": weights, "trainable": trainable},
        model_revision=getattr(model.config, "_commit_hash", None),
    )
    choices = dict(rec.metadata.get("choices", {}))
    if prepared.config.model.path:
        choices["model"] = prepared.config.model.path
    log.info("run     %s", ", ".join(f"{k}={choices[k]}" for k in GROUPS if choices.get(k)))
    told = f"{model.config.model_type}, {weights / 1e6:.1f}M weights"
    if lora.is_adapted(model):
        told += f", {trainable / weights:.2%} of them trained: {lora.words(model)}"
    log.info("model   %s", told)
    several = f", {ranks.ranks()} processes" if ranks.ranks() > 1 else ""
    log.info("device  %s (%s)%s, precision %s", args.device.type, env["device"], several, precision)
    for name, split in facts["data"].items():
        cut = (
            f", {split['truncated']:,} cut at {facts['max_length']} tokens"
            if split["truncated"]
            else ""
        )
        log.info("data    %s: %s rows%s", name, f"{split['n']:,}", cut)
    log.info("outputs %s", run_dir)


def _follow(trainer: Trainer, callbacks: list[Any], rec: Record) -> None:
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback

    from forge.training.callbacks import NanGuard, Padding, State

    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback) and not trainer.args.load_best_model_at_end:
            raise UserError(
                "callbacks=early_stopping: it needs trainer.load_best_model_at_end=true and "
                "trainer.eval_strategy=epoch or steps"
            )
    trainer.remove_callback(PrinterCallback)
    for callback in (State(rec), Padding(trainer), *callbacks):
        if isinstance(callback, NanGuard):
            callback.trainer = trainer
        trainer.add_callback(callback)


def _tracking(config: Config) -> Callable[[Record, Prepared], AbstractContextManager[list[Any]]]:
    """Called with what is tracked: a context that yields the callbacks, none for null."""
    start = None if config.tracking is None else build(config.tracking, "tracking")
    if start is None or ranks.rank():
        return lambda rec, prepared: nullcontext([])

    @contextmanager
    def track(rec: Record, prepared: Prepared) -> Iterator[list[Any]]:
        with start(rec=rec, prepared=prepared) as callback:
            yield [callback]

    return track


def _train(trainer: Trainer, args: TrainingArguments, rec: Record, stop: Stop) -> dict[str, Any]:
    """Train, from the newest good checkpoint when there is one; timings and throughput."""
    from forge.training.trainer import memory

    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        return {}
    rows = len(trainer.train_dataset)  # type: ignore[arg-type]  # a datasets.Dataset
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise UserError(
            f"trainer.dataloader_drop_last: not one whole batch of {batch} in {rows} rows; "
            "lower trainer.per_device_train_batch_size"
        )
    trainer.run_id = rec.metadata["id"]
    checkpoint = ranks.broadcast(lambda: checkpoints.newest(rec.run_dir, trainer.run_id))
    if checkpoint:
        lora.require_same_base(trainer.model, checkpoint)
        log.info("resume  %s", checkpoint.name)
    elif len(rec.metadata["attempts"]) > 1 or any(rec.run_dir.glob(f"{checkpoints.ASIDE}*")):
        there_was = f" ({name} is gone)" if (name := rec.state.get("latest_checkpoint")) else ""
        log.warning("resume  no good checkpoint%s: training starts from the beginning", there_was)
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
    seconds, (examples, tokens, cells) = trainer.seconds, trainer.totals()
    return {
        "steps": step,
        "resumed_from": checkpoint.name if checkpoint else None,
        "seconds": round(
            seconds, 3
        ),  # of all attempts, up to the checkpoints that were gone on from
        "examples_per_second": round(examples / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "padding_share": round(1 - tokens / cells if cells else 0.0, 4),
        "peak_memory_gb": round(trainer.peak_memory / 1e9, 2),  # of rank 0
    }


def _write(trainer: Trainer, prepared: Prepared, run_dir: Path, results: dict[str, Any]) -> None:
    """The model, results.json, and what is read a month later: the whole curve, the teachers'
    answers, the model's card."""
    trainer.save_model(str(run_dir / "model"))
    if ranks.rank():
        return
    write_json(run_dir / RESULTS, results)
    log.info("%s", table(results, prepared.task))
    if trainer.state.log_history:
        trainer.save_state()  # checkpoints may be older, or none
    for split, columns in prepared.taught.items():
        file = run_dir / "predictions" / f"teacher_{split}.parquet"
        write_predictions(file, prepared.rows[split], columns)
    card.write(run_dir)
