"""The flow of one run, from a composed config to its headline metric. Read this file first."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from forge import card, checkpoints, cluster, data, lora
from forge import config as configs
from forge.config import Config, Precision, build, check
from forge.errors import UserError, did_you_mean
from forge.record import RESULTS, Record, environment, read_json, record, write_json
from forge.results import cell

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from forge.signals import Stop
    from forge.tasks import Task
    from forge.trainer import Trainer

log = logging.getLogger(__name__)


def run(cfg: DictConfig, run_dir: str | Path, composed: dict[str, Any] | None = None) -> float:
    """Train and evaluate what `cfg` says in `run_dir`; returns the headline metric.

    A directory that holds an unfinished run of the same config goes on from its newest
    checkpoint; a finished one returns its result. Raises `UserError` for a user's mistake,
    `Failure` when it cannot go on, `signals.Preempted` when it was asked to stop.
    """
    from forge import signals
    from forge.trainer import memory

    run_dir = Path(run_dir).absolute()
    with record(cfg, run_dir, composed) as rec, signals.watch() as stop:
        if rec.finished:
            headline = read_json(run_dir / RESULTS)["headline"]
            log.info("%s: this run is finished; its result is returned", run_dir)
            return float(headline["value"])
        config = configs.to_config(cfg)
        check_all(config)
        task: Task = build(config.task, "task")
        _check_taught(config, task)
        args = training_arguments(config, task, run_dir)
        make_trainer = build(config.mode, "mode")
        track = _tracking(config)
        callbacks = [build(c, f"callbacks.{n}") for n, c in config.callbacks.items() if c]
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
                data_collator=task.collator(prepared.tokenizer, data.pad_multiple(args)),
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


def check_all(config: Config) -> None:
    """Hold every node against the signature that it calls, before anything is read or loaded."""
    for key in SET_BY_FORGE.keys() & config.trainer.keys():
        raise UserError(f"trainer.{key}: set by Forge; use {SET_BY_FORGE[key]}")
    for where in ("task", "mode", "trainer"):
        check(getattr(config, where), where)
    lora.check(config.model, "model")
    lora.check(config.teacher, "teacher")
    if config.teacher.trainer:
        check(config.teacher.trainer, "teacher.trainer")
    for name, node in config.callbacks.items():
        if node is not None:
            if not isinstance(node, dict):
                raise UserError(f"callbacks.{name}={node}: a node with a _target_, or null")
            check(node, f"callbacks.{name}")
    if config.tracking is not None:
        check(config.tracking, "tracking")


def _check_taught(config: Config, task: Task) -> None:
    if task.head == "CausalLM" and config.model.init:
        raise UserError(
            "model.init: students from a teacher's layers are classifiers so far; name a language "
            "model with model.path= or e.g. model=tiny_lm"
        )


def training_arguments(config: Config, task: Task, run_dir: Path) -> TrainingArguments:
    """The trainer group as `TrainingArguments`, with what follows from the rest of the config."""
    import torch

    on_cpu = bool(config.trainer.get("use_cpu")) or not torch.accelerator.is_available()
    precision = resolve_precision(config.precision, on_cpu)
    follows = {
        "use_cpu": on_cpu,
        "output_dir": str(run_dir),
        "bf16": precision is Precision.bf16,
        "fp16": precision is Precision.fp16,
        "metric_for_best_model": task.headline,
        "greater_is_better": task.greater_is_better,
        "report_to": "none",
        "remove_unused_columns": False,  # the collator picks; ids and lengths must stay
        "disable_tqdm": True,  # the Console callback shows progress
    }
    _check_ranges(config.trainer, task)
    args: TrainingArguments = build({**config.trainer, **follows}, "trainer")
    return args


def _check_ranges(trainer: dict[str, Any], task: Task) -> None:
    """What `TrainingArguments` takes without a word and training trips over."""
    from transformers import TrainingArguments

    least = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0,
        "num_train_epochs": 0,
    }
    for key, low in least.items():
        value = trainer.get(key)
        if value is not None and not low <= float(value) < float("inf"):
            raise UserError(f"trainer.{key}={value}: at least {low}")
    for known in fields(TrainingArguments):
        choices, value = known.metadata.get("choices"), trainer.get(known.name)
        if choices and isinstance(value, str) and value not in choices:
            raise UserError(
                f"trainer.{known.name}={value}: no such choice{did_you_mean(value, choices)}"
            )
    if task.problem_type == "regression" and trainer.get("label_smoothing_factor"):
        raise UserError("trainer.label_smoothing_factor: a regression has no labels to smooth")
    saved, judged = trainer.get("save_strategy"), trainer.get("eval_strategy")
    if saved == "best":
        raise UserError(
            "trainer.save_strategy=best: a run that is stopped goes on from its last checkpoint, "
            "which this keeps none of; trainer.save_strategy=epoch or steps keeps both, the best "
            "and the last"
        )
    if trainer.get("load_best_model_at_end") and saved != judged:
        raise UserError(
            f"trainer.save_strategy={saved}, trainer.eval_strategy={judged}: to keep the best "
            "model both must be the same; or set trainer.load_best_model_at_end=false"
        )


def resolve_precision(asked: Precision, on_cpu: bool) -> Precision:
    """`auto` is bf16 where the hardware multiplies it: GPUs, and CPUs with AMX or AVX512-BF16."""
    import torch

    if asked is not Precision.auto:
        return asked
    if on_cpu:
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Precision.bf16 if native else Precision.fp32


@dataclass
class Prepared:
    """What a mode trains on; `facts` are for the record, `recorded` those of earlier attempts."""

    config: Config
    task: Any  # a Task; each mode knows which kinds it takes
    args: TrainingArguments
    rows: dict[str, Dataset]  # per split: id, texts, labels
    splits: dict[str, Dataset]  # the same, tokenised; evaluation splits longest first
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    facts: dict[str, Any]
    recorded: dict[str, Any]
    taught: dict[str, dict[str, list[Any]]] = field(
        default_factory=dict
    )  # per evaluation split the teachers' answers, as columns


def prepare(
    config: Config, task: Task, args: TrainingArguments, recorded: dict[str, Any]
) -> Prepared:
    """Rows, tokenizer and model, cheapest first, so that a mistake shows in seconds."""
    from transformers import set_seed

    from forge import models, teacher
    from forge.tasks import TextTask

    rows = cluster.in_turn(task.load)
    source = config.model
    if config.model.init:
        assert isinstance(task, TextTask)  # see `run`
        source = teacher.source(config, task, rows, recorded)
    texts = task.texts(rows[task.train])
    tokenizer = cluster.in_turn(lambda: models.load_tokenizer(source, texts))
    architecture = models.load_config(source, task, tokenizer)
    task.make_ready(tokenizer)
    max_length = models.max_length(task.max_length, tokenizer, architecture)
    set_seed(args.seed)  # the head's (or all) random weights follow from the seed alone
    model = cluster.in_turn(lambda: models.load(source, task, architecture))
    if config.model.init and isinstance(task, TextTask):
        model = models.shallower(model, *models.student(config.model, task, tokenizer))
    splits, facts = cluster.in_turn(
        lambda: tokenize(rows, tokenizer, max_length, task, config.cache_dir)
    )
    for name, before in recorded.get("data", {}).items():
        if before["fingerprint"] != facts.get(name, before)["fingerprint"]:
            raise UserError(
                f"split {name}: its rows have changed since this run began; "
                "leave hydra.run.dir out for a new directory"
            )
    noted = {"data": facts, "max_length": max_length}
    if start := getattr(model.config, "initialized_from", None):
        noted["initialized_from"] = start
    return Prepared(config, task, args, rows, splits, tokenizer, model, noted, dict(recorded))


def tokenize(
    rows: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    task: Task,
    cache_dir: str | None,
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Every split tokenised, those that are only evaluated longest first, and facts of each."""
    cache, splits, facts = data.cache_directory(cache_dir), {}, {}
    for name, split in rows.items():
        try:
            read = task.tokenize(split, tokenizer, max_length, cache)
        except UserError as error:
            raise UserError(f"split {name}: {error}") from error
        facts[name] = {
            "n": len(split),
            "truncated": sum(read["truncated"]),
            "mean_length": round(sum(read["length"]) / len(split), 1),  # tokens
            "fingerprint": split._fingerprint,
        }
        evaluated = name in task.evaluation and name != task.train
        splits[name] = data.longest_first(read) if evaluated else read
    return splits, facts


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
    several = f", {cluster.ranks()} processes" if cluster.ranks() > 1 else ""
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

    from forge.callbacks import NanGuard, Padding, State

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
    if start is None or cluster.rank():
        return lambda rec, prepared: nullcontext([])

    @contextmanager
    def track(rec: Record, prepared: Prepared) -> Iterator[list[Any]]:
        with start(rec=rec, prepared=prepared) as callback:
            yield [callback]

    return track


def _train(trainer: Trainer, args: TrainingArguments, rec: Record, stop: Stop) -> dict[str, Any]:
    """Train, from the newest good checkpoint when there is one; timings and throughput."""
    from forge.trainer import memory

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
    checkpoint = cluster.together(lambda: checkpoints.newest(rec.run_dir, trainer.run_id))
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


def judge(trainer: Trainer, task: Task, splits: dict[str, Dataset], folder: Path) -> dict[str, Any]:
    """Metrics of every evaluation split and the headline; writes predictions/ in `folder`."""
    from forge.trainer import memory

    results: dict[str, Any] = {"splits": {}}
    for name in task.evaluation:
        with memory(trainer.args, "per_device_eval_batch_size"):
            results["splits"][name], columns = task.examine(trainer, splits[name])
        if not cluster.rank():
            _write_predictions(folder / "predictions" / f"{name}.parquet", splits[name], columns)
    split = task.evaluation[0]
    value = results["splits"][split][task.headline]
    results["headline"] = {"metric": task.headline, "split": split, "value": value}
    return results


def _write(trainer: Trainer, prepared: Prepared, run_dir: Path, results: dict[str, Any]) -> None:
    """The model, results.json, and what is read a month later: the whole curve, the teachers'
    answers, the model's card."""
    trainer.save_model(str(run_dir / "model"))
    if cluster.rank():
        return
    write_json(run_dir / RESULTS, results)
    log.info("%s", table(results, prepared.task))
    if trainer.state.log_history:
        trainer.save_state()  # checkpoints may be older, or none
    for split, columns in prepared.taught.items():
        file = run_dir / "predictions" / f"teacher_{split}.parquet"
        _write_predictions(file, prepared.rows[split], columns)
    card.write(run_dir)


def _write_predictions(path: Path, split: Dataset, columns: dict[str, list[Any]]) -> None:
    """Per example, in the order of ids: id, label, prediction, and what else the task says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(split["id"]), **columns}).sort_by("id"), path)


def table(results: dict[str, Any], task: Task) -> str:
    """The metrics of each split, and what training took."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    scored = results["splits"][task.evaluation[0]]
    columns = [name for name in scored if name != "seconds"]
    table.add_column("split")
    for column in columns:
        shown = "95 % interval" if column.endswith("_interval") else column.replace("_", " ")
        table.add_column(shown, justify="right")
    for name, scores in results["splits"].items():
        table.add_row(name, *(cell(scores.get(column)) for column in columns))
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    if train := results.get("train"):
        text.write(
            f"trained {train['steps']:,} steps in {train['seconds']:,.0f} s: "
            f"{train['examples_per_second']:,.0f} examples/s, "
            f"{train['tokens_per_second']:,.0f} tokens/s, padding {train['padding_share']:.1%}, "
            f"memory {train['peak_memory_gb']:.1f} GB"
        )
    return text.getvalue().rstrip()
