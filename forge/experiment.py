"""The flow of one run, from a composed config to its headline metric. Read this file first."""

from __future__ import annotations

import gc
import logging
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

import torch
from filelock import FileLock
from omegaconf import DictConfig

from forge import modes, ranks
from forge.config.check import build
from forge.config.schema import Config, Model, to_config
from forge.distillation import finding
from forge.distillation.finding import TeacherRun
from forge.records import checkpoints
from forge.records.environment import Commit
from forge.records.files import RESULTS, STATE, read_json, write_json
from forge.records.logs import logged_to
from forge.records.record import Composition, record
from forge.results import card
from forge.results.tables import table
from forge.tracking.tracker import tracker
from forge.training import signals
from forge.training.announcement import announce
from forge.training.arguments import check_all, training_arguments
from forge.training.evaluation import judge, write_predictions
from forge.training.loop import follow, train
from forge.training.memory import memory
from forge.training.preparation import prepare
from forge.training.trainer import Ready

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments

    from forge.tasks.task import Task

Rows: TypeAlias = "dict[str, Dataset]"  # of each split
log = logging.getLogger(__name__)


def run(
    cfg: DictConfig,
    run_dir: str | Path,
    composed: Composition | None = None,
    submitted: Commit | None = None,
) -> float:
    """Train and evaluate what `cfg` says in `run_dir`; returns the headline metric.

    A directory that holds an unfinished run of the same config goes on from its newest
    checkpoint; a finished one returns its result. Raises `UserError` for a user's mistake,
    `Failure` when it cannot go on, `Preempted` when it was asked to stop.
    """
    run_dir = Path(run_dir).absolute()
    with record(cfg, run_dir, composed, submitted) as rec, signals.watch() as stop:
        if rec.finished:
            log.info("%s: this run is finished; its result is returned", run_dir)
            return float(read_json(run_dir / RESULTS)["headline"]["value"])
        config = check_all(to_config(cfg))
        task: Task = build(config.task, "task")
        args = training_arguments(config, task, run_dir)
        mode: partial[Ready] = build(config.mode, "mode")
        callbacks = [build(c, f"callbacks.{n}") for n, c in config.callbacks.items()]
        finding.check(config, task)
        modes.check(mode, task, args)
        track = tracker(config)
        rows = ranks.in_turn(task.load)
        train_first = partial(_train_teacher, config, task, args, rows)
        teachers = finding.resolve(config, task, rows, rec.metadata, train_first)
        prepared = prepare(config, task, args, rows, teachers=teachers, recorded=rec.metadata)
        announce(prepared, rec)
        with memory(args, "per_device_eval_batch_size"):  # teachers and starts are measured
            ready = mode(prepared=prepared)
        rec.note(**ready.metadata)
        with track(rec, prepared) as tracked:
            follow(ready.trainer, [*tracked, signals.AtStepEnd(stop), *callbacks], rec)
            trained = train(ready.trainer, rec, stop)
            with checkpoints.room(
                run_dir, checkpoints.size_of(ready.trainer.model), run_dir / "model"
            ):
                results = judge(ready.trainer, prepared, run_dir)
                values = results.plain() | {"train": trained, **ready.results}
                with stop.put_off():
                    _write(ready, rows, run_dir, values)
                return float(results.headline.value)


def train_teachers(cfg: DictConfig) -> float:
    """Fine-tune the teachers that a composed run needs, as a job of its own; 0."""
    config = check_all(to_config(cfg))
    task: Task = build(config.task, "task")
    with TemporaryDirectory() as scratch:
        args = training_arguments(config, task, Path(scratch))
        rows = ranks.in_turn(task.load)
        train_first = partial(_train_teacher, config, task, args, rows)
        finding.resolve(config, task, rows, {}, train_first)
    return 0.0


def _train_teacher(
    config: Config, task: Task, args: TrainingArguments, rows: Rows, teacher: TeacherRun
) -> Model:
    """Fine-tune a teacher in a run directory of its own, which a second caller waits for."""
    if not config.model.init:
        prepare(config, task, args, rows)  # what is wrong with the student shows before
    run_dir = teacher.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir.with_suffix(".lock"))
    try:
        ranks.broadcast(lambda: lock.acquire() and None)
        if ranks.broadcast(lambda: read_json(run_dir / STATE)).get("status") != "finished":
            with logged_to(run_dir / "output.log"):
                run(teacher.cfg, run_dir, {"choices": teacher.choices, "overrides": []})
            log.info("teacher trained; back to the student")
    finally:
        lock.release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Model(path=str(run_dir))


def _write(ready: Ready, rows: Rows, run_dir: Path, results: dict[str, object]) -> None:
    """The model, results.json, the whole curve, the teachers' answers, the model's card."""
    trainer = ready.trainer
    trainer.save_model(str(run_dir / "model"))
    if ranks.rank():
        return
    write_json(run_dir / RESULTS, results)
    log.info("%s", table(results, trainer.task))
    if trainer.state.log_history:
        trainer.save_state()  # checkpoints may be older, or none
    for split, columns in ready.teachers.items():
        file = run_dir / "predictions" / f"teacher_{split}.parquet"
        write_predictions(file, rows[split], columns)
    card.write(run_dir, trainer.task)
