"""Rows, processor and model of a run: what a mode trains on, and what an evaluation judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from forge import ranks
from forge.config.schema import Config, Model
from forge.data import cache
from forge.errors import UserError
from forge.inputs.input import Collator, Processor, Views, pad_multiple
from forge.models import loading
from forge.tasks import objective
from forge.tasks.decisions import PLAIN, Objective
from forge.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, TrainingArguments


@dataclass(frozen=True)
class SplitFacts:
    """What is recorded of a split."""

    n: int  # rows
    truncated: int  # of these, rows of which the model is not given all
    mean_length: float  # tokens
    fingerprint: str  # of the rows


class TrainerKeywords(TypedDict):
    """What the house trainer is made of; all but the first two are transformers' own."""

    task: Task
    objective: Objective
    model: PreTrainedModel
    args: TrainingArguments
    train_dataset: Dataset | None
    eval_dataset: Dataset
    processing_class: Processor
    data_collator: Collator
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    views: NotRequired[Views]


@dataclass(frozen=True)
class Prepared:
    """What a mode trains on. Nobody writes into it: what a mode finds out, it returns."""

    config: Config
    task: Task
    args: TrainingArguments
    objective: Objective  # how the task's loss counts
    rows: dict[str, Dataset]  # per split: id, inputs, labels
    splits: dict[str, Dataset]  # the same, encoded; evaluation splits longest first
    processor: Processor
    model: PreTrainedModel
    limit: int  # tokens (pixels) of a row that the model is given
    data: dict[str, SplitFacts]
    teachers: Sequence[Model]  # trained ones, by path
    recorded: Mapping[str, Any]  # run_metadata.json of earlier attempts

    @property
    def facts(self) -> dict[str, object]:
        """What the run's record holds of it."""
        facts: dict[str, object] = {
            "data": {n: vars(s) for n, s in self.data.items()},
            "max_length": self.limit,
            "greater_is_better": self.task.greater_is_better,
            "processor": type(self.processor).__name__,
        }
        if self.task.answer.read_off:
            facts["read_off"] = self.task.answer.read_off
        if self.task.answer.notes:
            facts["notes"] = self.task.answer.notes
        if loss := objective.facts(self.objective, self.task.answer):
            facts["loss"] = loss
        start = getattr(self.model.config, "initialized_from", None)
        return facts | ({"initialized_from": start} if start else {})

    def trainer_arguments(self) -> TrainerKeywords:
        """Those of the house trainer; a mode replaces some."""
        task = self.task
        return {
            "task": task,
            "objective": self.objective,
            "model": self.model,
            "args": self.args,
            "train_dataset": self.splits.get(task.train),
            "eval_dataset": self.splits[task.evaluation[0]],
            "processing_class": self.processor,
            "data_collator": task.collator(self.processor, pad_multiple(self.args)),
            "compute_metrics": task.compute_metrics,
        }


def prepare(
    config: Config,
    task: Task,
    args: TrainingArguments,
    rows: dict[str, Dataset],
    *,
    teachers: Sequence[Model] = (),
    recorded: Mapping[str, Any] | None = None,
    training: bool = True,
) -> Prepared:
    """Processor and model, and the rows of `task.load` as it reads them; cheapest first.

    Without `training` every split is evaluated only. Raises `UserError` for what does not fit.
    """
    from transformers import set_seed

    goal = _objective(config, task, args, rows) if training else PLAIN
    source = teachers[0] if config.model.init else config.model
    some = rows.get(task.train, rows[task.evaluation[0]])
    processor = _load_processor(task, source, some)
    architecture = loading.load_config(source, task.input.fitting(processor))
    task.check(source, processor, architecture, "model")
    task.input.make_ready(processor, architecture)
    limit = task.input.limit(processor, architecture)
    set_seed(args.seed)  # the head's (or all) random weights follow from the seed alone
    model = loading.load(source, task.head, architecture)
    if config.model.init:
        fitting = task.input.fitting(processor)
        model = loading.student(model, config.model, task.head, fitting)
        task.input.make_ready(processor, model.config)
    recorded = recorded or {}
    splits, data = encode(rows, processor, limit, task, config.cache_dir)
    _refuse_changed(data, recorded)
    if training:
        evaluated = [name for name in task.evaluation if name != task.train]
    else:
        evaluated = list(splits)
    splits |= {name: cache.longest_first(splits[name]) for name in evaluated}
    return Prepared(
        config, task, args, goal, rows, splits, processor, model, limit, data, teachers, recorded
    )


def _objective(
    config: Config, task: Task, args: TrainingArguments, rows: dict[str, Dataset]
) -> Objective:
    """What the config makes of the task's loss, on the rows of the train split."""
    weights, gamma = (config.mode.get(key) for key in ("class_weights", "focal_gamma"))
    labels = rows[task.train]["labels"] if weights else ()
    smoothing = args.label_smoothing_factor
    return objective.objective(task.answer, labels, smoothing, weights, gamma or 0.0)


@ranks.taking_turns
def _load_processor(task: Task, model: Model, rows: Dataset) -> Processor:
    return task.input.load_processor(model, rows)


@ranks.taking_turns
def encode(
    rows: dict[str, Dataset], processor: Processor, limit: int, task: Task, cache_dir: str | None
) -> tuple[dict[str, Dataset], dict[str, SplitFacts]]:
    """Every split as the model reads it, and facts of each."""
    splits, facts = {}, {}
    for name, split in rows.items():
        try:
            encoded = task.encode(split, processor, limit, cache_dir)
        except UserError as error:
            raise UserError(f"split {name}: {error}") from error
        mean = round(sum(encoded["length"]) / len(split), 1)
        facts[name] = SplitFacts(len(split), sum(encoded["truncated"]), mean, split._fingerprint)
        splits[name] = encoded
    return splits, facts


def _refuse_changed(data: dict[str, SplitFacts], recorded: Mapping[str, Any]) -> None:
    """Raise `UserError` where rows are not those that the run's earlier attempts read."""
    for name, before in recorded.get("data", {}).items():
        if name in data and before["fingerprint"] != data[name].fingerprint:
            raise UserError(
                f"split {name}: its rows have changed since this run began; "
                "leave hydra.run.dir out for a new directory"
            )
