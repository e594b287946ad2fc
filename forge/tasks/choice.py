"""An answer that is one of a row's own options."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch.nn import functional

from forge.data import sources
from forge.data.missing import is_missing
from forge.data.spelling import spell
from forge.errors import UserError
from forge.inputs.choices import Choices, listed
from forge.inputs.input import OPTIONS
from forge.tasks.decisions import MASKED, PLAIN, Decisions, Objective, masked_cross_entropy
from forge.tasks.label import MINUS_ONE, OneOf
from forge.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from forge.config.schema import Model
    from forge.data.sources import Columns
    from forge.inputs.input import Batch

Reading: TypeAlias = Literal["index", "number", "letter", "key", "text"]
READINGS: dict[Reading, str] = {
    "index": "places, counted from 0",
    "number": "places, counted from 1",
    "letter": "letters, A for the first option",
    "key": "the options' own keys",
    "text": "the texts of options",
}


@dataclass
class Choice(OneOf):
    """The place of the right option, counted from 0; each option is scored by itself.

    The column holds places, letters, keys (where options are a mapping of the lists `text` and
    `label`) or the option's text: `reading`, or what fits every row of the first split that is
    read. `shuffle` is the seed of another order of the options, for data whose right one has a
    favourite place.
    """

    column: str
    choices: Choices
    reading: Reading | None = None
    shuffle: int | None = None
    named = False
    problem_type = "multiple_choice"
    trivial = "always giving the commonest place"
    places = "One number for each option, whatever its place; the highest is the answer's."

    def __post_init__(self) -> None:
        self.columns = [self.column]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.choices.widest)))

    @property
    def read_with(self) -> tuple[str, str]:
        return "", "options[logits.argmax(-1).item()]"

    @property
    def notes(self) -> list[str]:
        return [f"the labels are taken for {READINGS[self.reading]}"] if self.reading else []

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        options = inputs["options"]
        labels = self._places(columns, options, f"split {split}, column {self.column}")
        if self.shuffle is None:
            return {"labels": labels}
        orders = [
            random.Random(f"{self.shuffle} {split} {row}").sample(range(len(own)), len(own))
            for row, own in enumerate(options)
        ]
        pairs = list(zip(orders, options, labels, strict=True))
        return {
            "labels": [None if label is None else order.index(label) for order, _, label in pairs],
            "options": [[own[i] for i in order] for order, own, _ in pairs],
        }

    def _places(self, columns: Columns, options: list[list[str]], where: str) -> list[int | None]:
        """The right option's place in each row; raises `UserError` for what is none of them."""
        labels = [
            None if is_missing(value) or spell(value) == MINUS_ONE else spell(value)
            for value in columns[self.column]
        ]
        rows = list(zip(labels, zip(options, self._keys(columns), strict=True), strict=True))
        tried, wrong = {}, {}
        for reading in [self.reading] if self.reading else READINGS:
            places = [None if label is None else _place(reading, label, *of) for label, of in rows]
            tried[reading] = places
            wrong[reading] = [i for i, place in enumerate(places) if place is None and labels[i]]
        best = min(tried, key=lambda reading: len(wrong[reading]))
        self.reading = best
        for i in wrong[best][:1]:
            raise UserError(
                f"{where}: row {i} has {len(options[i])} options, and its label {labels[i]} is "
                f"none of them (labels are taken for {READINGS[best]}); mend the row, or set "
                f"task.label_is to one of {', '.join(READINGS)}"
            )
        return tried[best]

    def _keys(self, columns: Columns) -> list[list[str | None]]:
        """Of each row's options, in a column that may have some."""
        first, *others = (columns[name] for name in self.choices.options)
        return [[] if others else [spell(key) for key in listed(cell, "")[1]] for cell in first]

    def check(self, model: Model, config: PretrainedConfig, where: str) -> None:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES as CHOOSERS,
        )

        if config.model_type not in CHOOSERS and not model.from_pretrained.get("trust_remote_code"):
            raise UserError(
                f"{where} {model.path or config.model_type}: no {config.model_type} chooses "
                "between options; choose e.g. model=tiny, model=minilm or model=deberta"
            )

    def of_rows(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        real, logits = batch[OPTIONS], outputs["logits"]
        wide = functional.pad(logits, (0, real.shape[1] - logits.shape[1]))
        return wide.masked_fill(~real, MASKED)

    def loss(self, decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
        return masked_cross_entropy(decisions, objective)


def _place(
    reading: Reading, label: str, options: Sequence[str], keys: Sequence[str | None]
) -> int | None:
    """The place that a label stands for; None where the row has no such option."""
    place = -1
    if reading in ("index", "number") and re.fullmatch(r"\d+", label, re.ASCII):
        place = int(label) - (reading == "number")
    elif reading == "letter" and re.fullmatch(r"[A-Za-z]", label):
        place = ord(label.upper()) - ord("A")
    elif reading == "key" and label in keys:
        place = keys.index(label)
    elif reading == "text":
        place = next((i for i, option in enumerate(options) if spell(option) == label), -1)
    return place if 0 <= place < len(options) else None


def choice(
    *,
    dataset: Callable[[], sources.Source] | None = None,
    files: dict[str, str | None] | None = None,
    context: str | None = "context",
    question: str | None = None,
    options: list[str] | str = "options",
    label: str = "label",
    label_is: Reading | None = None,
    shuffle: int | None = None,
    metrics: list[str],
    headline: str,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """A context and options in, the right one out; `files` stand for a dataset, one per split."""
    source, judging, unlabelled = sources.chosen(
        dataset, files, evaluation, train, unlabelled_split
    )
    choices = Choices(
        max_length,
        context=context,
        question=question,
        options=[options] if isinstance(options, str) else list(options),
    )
    return Task(
        input=choices,
        answer=Choice(label, choices, label_is, shuffle),
        auto="MultipleChoice",
        pipeline="multiple-choice",
        dataset=source,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=judging,
        max_rows=max_rows,
        unlabelled_split=unlabelled,
    )
