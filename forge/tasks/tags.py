"""An answer that is a tag for each word: entities, parts of speech."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.data import sources
from forge.data.spelling import spell
from forge.errors import UserError
from forge.inputs.input import FIRST, IGNORED
from forge.inputs.words import Words
from forge.tasks.answer import Answer, Labels, Prediction, Predictions
from forge.tasks.decisions import Decisions
from forge.tasks.entities import marked, marks_ends, split
from forge.tasks.label import Label
from forge.tasks.metrics import FUNCTIONS, Facts
from forge.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from forge.data.sources import Columns
    from forge.inputs.input import Batch

log = logging.getLogger(__name__)


@dataclass
class Tags(Answer):
    """One of `given` for each word, decided at its first piece; the loss is a mean over words.

    A row's column holds as many tags as it has words, by name or id. An `I-` that begins an entity
    (IOB1, or a slip) is read as `B-`, unless the tags mark the ends of entities.
    """

    column: str
    given: Sequence[str | int] | None = None
    single: Label = field(init=False)  # what spells a tag, and knows the names
    changed: int = field(init=False, default=0)  # tags of I- that are read as B-
    alignment = "word"
    whole = True
    problem_type = "token_classification"
    over = ("tags", "words")
    rewards = ("entity_f1", "word_accuracy", "exact")
    trivial = "always giving the commonest tag"

    def __post_init__(self) -> None:
        self.columns = [self.column]
        self.single = Label(self.column, self.given)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.single.labels

    @property
    def read_with(self) -> tuple[str, str]:
        names = "[model.config.id2label[i] for i in logits[0].argmax(-1).tolist()]  # of pieces"
        return ', aggregation_strategy="first"', names

    @property
    def notes(self) -> list[str]:
        changed = f"{self.changed:,} tags I-… that begin an entity are read as B-…"
        return [*self.single.notes, *([changed] if self.changed else [])]

    def unknown(self, inputs: Columns, count: int) -> list[list[int]]:
        return [[-1] * len(words) for words in inputs["words"]]

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        where = f"split {split}, column {self.column}"
        rows = [_tags(value, f"{where}: row {i}") for i, value in enumerate(columns[self.column])]
        for i, (tags, words) in enumerate(zip(rows, inputs["words"], strict=True)):
            if tags is not None and len(tags) != len(words):
                raise UserError(f"{where}: row {i} has {len(tags)} tags and {len(words)} words")
        self._begin_entities([tags for tags in rows if tags])
        flat = [(i, tag) for i, tags in enumerate(rows) for tag in tags or ()]
        ids = self.single.encode([tag for _, tag in flat], split, [i for i, _ in flat])
        if None in ids:
            raise UserError(f"{where}: row {flat[ids.index(None)][0]} has a word without a tag")
        left = iter(ids)
        return {"labels": [[next(left) for _ in tags] if tags else None for tags in rows]}

    def _begin_entities(self, rows: list[list[Any]]) -> None:
        """Read an I- that begins an entity as B-, in place."""
        if not all(isinstance(tag, str) for tags in rows for tag in tags) or marks_ends(rows):
            return
        for tags in rows:
            before = "O"
            for i, tag in enumerate(tags):
                prefix, kind = split(tag)
                if prefix == "I" and split(before)[1] != kind:
                    tags[i], self.changed = f"B{tag[1:]}", self.changed + 1
                before = tag
        if self.changed:
            log.info("%s", self.notes[-1])

    def of_rows(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """At each word's first piece: [N, L, C] of windows -> [B, W, C]."""
        return outputs["logits"].flatten(0, 1)[batch[FIRST].clamp(min=0)]

    def each(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        counts = (batch[FIRST] >= 0).sum(1).tolist()
        return [row[:count] for row, count in zip(logits, counts, strict=True)]

    def sizes(self, rows: Dataset) -> list[int]:
        return [len(tags) for tags in rows["labels"]]

    def by_row(self, logits: np.ndarray, rows: Dataset) -> list[np.ndarray]:
        return np.split(logits, np.cumsum(self.sizes(rows))[:-1])

    def right(self, rows: Dataset) -> list[list[int]]:
        return list(rows["labels"])

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        labels = batch.get("labels")
        return Decisions(logits, labels, None if labels is None else labels != IGNORED)

    def items(self, batch: Batch) -> Tensor:
        return batch["labels"].ne(IGNORED).sum()

    def judged_by(self, metric: Facts) -> bool:
        return metric.of_tags or not metric.dtype

    def check_metrics(self, names: Sequence[str]) -> None:
        if any(split(tag)[0] != "O" for tag in self.labels):
            return
        if of_entities := [name for name in names if name in FUNCTIONS and name != "word_accuracy"]:
            raise UserError(
                f"metric {of_entities[0]}: it is of entities, and no tag begins with B- or I-; set "
                "task.metrics=[word_accuracy] task.headline=word_accuracy"
            )

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return np.asarray(np.argmax(logits, axis=-1))

    def compared(self, metric: Facts, labels: Labels, logits: np.ndarray) -> tuple[Any, Any]:
        """Names, row by row."""
        answered = self.predict(logits).tolist()
        ends = np.cumsum([len(row) for row in labels]).tolist()
        rows = [answered[end - len(row) : end] for row, end in zip(labels, ends, strict=True)]
        return [self.completion(row) for row in labels], [self.completion(row) for row in rows]

    def baseline(self, labels: Labels) -> np.ndarray:
        return super().baseline(np.concatenate(labels))

    def completion(self, chosen: Sequence[int], texts: Sequence[str] = ()) -> list[str]:
        """The names of a row's tags."""
        return [self.labels[i] for i in chosen]

    def shown(self, texts: Sequence[str], answer: str | list[str]) -> str:
        words = texts[0].split()
        return marked(words, answer) if len(words) == len(answer) else " ".join(answer)

    def prediction(self, logits: np.ndarray, texts: Sequence[str]) -> Prediction:
        labels = self.completion(self.predict(logits).tolist())
        return {"labels": labels, "words": texts[0].split(), "shown": self.shown(texts, labels)}

    def predictions(self, rows: Dataset, logits: np.ndarray) -> Predictions:
        """Tags by name, which is what the metrics read."""
        each = self.by_row(logits, rows)
        return {
            "label": [self.completion(row) for row in rows["labels"]],
            "prediction": [self.completion(self.predict(row).tolist()) for row in each],
            "logits": [row.tolist() for row in each],
        }


def _tags(value: object, where: str) -> list[Any] | None:
    """A row's tags, None where there are none; raises `UserError` for what is no list."""
    value = sources.listed(value)
    value = value.split() if isinstance(value, str) else value
    if value is None or value != value:
        return None
    if not isinstance(value, list | tuple):
        raise UserError(f"{where} holds {str(value)[:60]}, not a list of tags")
    return [tag if isinstance(tag, int) else spell(tag) for tag in value] or None


def text_tags(
    *,
    dataset: Callable[[], sources.Source] | None = None,
    files: dict[str, str | None] | None = None,
    tokens: str = "tokens",
    tags: str = "tags",
    labels: list[str | int] | None = None,
    metrics: list[str],
    headline: str,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """Words in, a tag for each out; `files` stand for a dataset, one per split."""
    source, judging, unlabelled = sources.chosen(
        dataset, files, evaluation, train, unlabelled_split
    )
    return Task(
        input=Words(max_length=max_length, column=tokens),
        answer=Tags(tags, labels),
        auto="TokenClassification",
        pipeline="token-classification",
        peft_type="TOKEN_CLS",
        dataset=source,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=judging,
        max_rows=max_rows,
        unlabelled_split=unlabelled,
    )
