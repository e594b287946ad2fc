"""The config, checked, and its trainer group as `transformers.TrainingArguments`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forge import ranks
from forge.config.check import build, check
from forge.config.schema import Config, Node, Precision, teachers_task
from forge.errors import UserError, did_you_mean
from forge.models import lora

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from forge.tasks.task import Task


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
    models = {"model": config.model, "teacher": config.teacher}
    for where, model in models.items():
        lora.check(model, where)
    for where, model in models.items():
        if model.lora:
            check({"_target_": "peft.LoraConfig", **model.lora}, f"{where}.lora")
    task, mode, trainer = (check(getattr(config, w), w) for w in ("task", "mode", "trainer"))
    teacher, tracking, callbacks = config.teacher, config.tracking, {}
    if teacher.trainer:
        teacher = replace(teacher, trainer=check(teacher.trainer, "teacher.trainer"))
    check(teachers_task(config), "teacher.task")
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


def require_sharding(args: TrainingArguments) -> None:
    """Raise `UserError` for `trainer.fsdp` where accelerate trains unsharded, without a word."""
    if not args.fsdp or (args.device.type != "cpu" and ranks.ranks() > 1):
        return
    here = "these are on a CPU" if args.device.type == "cpu" else "this is one process"
    raise UserError(
        f"trainer.fsdp: weights are sharded over processes with a GPU each, and {here}; leave it "
        "out, or set launcher=ddp on a machine with several GPUs"
    )


def trains(args: TrainingArguments) -> bool:
    """Whether a run is more than an evaluation: steps decide, or epochs where `max_steps` is -1."""
    return args.max_steps > 0 or (args.max_steps < 0 and args.num_train_epochs > 0)


def _check_ranges(trainer: Node, task: Task) -> None:
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
    if (steps := trainer.get("max_steps", -1)) < -1:
        raise UserError(f"trainer.max_steps={steps}: 0 or more, or -1 for num_train_epochs")
    for known in fields(TrainingArguments):
        choices, value = known.metadata.get("choices"), trainer.get(known.name)
        if choices and isinstance(value, str) and value not in choices:
            raise UserError(
                f"trainer.{known.name}={value}: no such choice{did_you_mean(value, choices)}"
            )
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
