"""Rows, processor and model of a run: what a mode trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forge import ranks
from forge.config.schema import Config
from forge.data import cache as data_cache
from forge.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from forge.tasks.task import Task


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

    from forge.distillation import teacher
    from forge.models import layers, loading
    from forge.tasks.task import TextTask

    rows = ranks.in_turn(task.load)
    source = config.model
    if config.model.init:
        assert isinstance(task, TextTask)  # see `run`
        source = teacher.source(config, task, rows, recorded)
    texts = task.texts(rows[task.train])
    tokenizer = ranks.in_turn(lambda: loading.load_tokenizer(source, texts))
    architecture = loading.load_config(source, task, tokenizer)
    task.make_ready(tokenizer)
    max_length = loading.max_length(task.max_length, tokenizer, architecture)
    set_seed(args.seed)  # the head's (or all) random weights follow from the seed alone
    model = ranks.in_turn(lambda: loading.load(source, task, architecture))
    if config.model.init and isinstance(task, TextTask):
        model = layers.shallower(model, *loading.student(config.model, task, tokenizer))
    splits, facts = ranks.in_turn(
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
    cache, splits, facts = data_cache.cache_directory(cache_dir), {}, {}
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
        splits[name] = data_cache.longest_first(read) if evaluated else read
    return splits, facts
