"""An answer that is a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from forge.data.missing import is_missing
from forge.errors import UserError
from forge.models.scaling import Scale
from forge.tasks.answer import Answer
from forge.tasks.decisions import PLAIN, Decisions, Objective, squared_error
from forge.tasks.metrics import Facts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from forge.data.sources import Columns
    from forge.inputs.input import Batch

log = logging.getLogger(__name__)
FAR = 10.0  # published recipes train on values within this, such as STS-B's 0 to 5, as they are


@dataclass
class Number(Answer):
    """A number; `unlabelled` is the value that marks a row without one.

    The loss is the squared error of standardised values: by `standardize`, a mean and a standard
    deviation, else by those of the training rows where these are far from 0 and 1.
    """

    column: str
    unlabelled: float | None = None
    standardize: Sequence[float] | None = None
    fitted: Scale = field(init=False, default=Scale())
    alignment = "row"
    distribution = False
    problem_type = "regression"
    missing = -1.0
    labels = ("score",)  # the one output

    def __post_init__(self) -> None:
        self.columns = [self.column]
        if self.standardize is not None:
            if len(self.standardize) != 2 or not self.standardize[1] > 0:
                raise UserError(
                    f"task.standardize={list(self.standardize)}: a mean and a standard deviation "
                    "above 0; [0,1] leaves the values as they are"
                )
            self.fitted = Scale(*map(float, self.standardize))

    @property
    def scale(self) -> Scale:
        return self.fitted

    @property
    def read_with(self) -> tuple[str, str]:
        return ', function_to_apply="none"', "logits.item()"

    @property
    def notes(self) -> list[str]:
        if self.scale == Scale():
            return []
        return [
            f"the numbers are standardised by their mean {self.scale.mean:g} and standard "
            f"deviation {self.scale.std:g} in training; answers and metrics are in their own units"
        ]

    def fit(self, rows: Dataset) -> None:
        values = np.asarray(rows["labels"], dtype=float)
        mean, std = float(values.mean()), float(values.std())
        if self.standardize is None and (abs(mean) > FAR or not 1 / FAR <= std <= FAR):
            self.fitted = Scale(mean, std or 1.0)
        for note in self.notes:
            log.info("%s", note)

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        values = columns[self.column]
        numbers = [None if is_missing(value) else _number(value) for value in values]
        wrong = [i for i, n in enumerate(numbers) if n is not None and not math.isfinite(n)]
        if wrong:
            raise UserError(
                f"split {split}, column {self.column}: {len(wrong)} values are not finite numbers "
                f"(first: {str(values[wrong[0]])[:60]} in row {wrong[0]}); mend or remove them"
            )
        return {"labels": [None if n == self.unlabelled else n for n in numbers]}

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        return Decisions(logits, batch.get("labels"))

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def loss(self, decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
        return squared_error(decisions) / self.scale.std**2

    def judged_by(self, metric: Facts) -> bool:
        return not metric.of_texts and metric.dtype in ("", "float64")

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.reshape(len(logits), -1)[:, 0]

    def average(self, logits: Tensor, shares: Tensor) -> Tensor:
        return (shares.view(-1, 1, 1) * logits).sum(0)

    def baseline(self, labels: np.ndarray) -> np.ndarray:
        """Always the mean."""
        return np.full((len(labels), 1), labels.mean())


def _number(value: object) -> float:
    try:
        value = value.replace("\u2212", "-") if isinstance(value, str) else value  # a true minus
        return float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        return math.nan


def fractional(values: Sequence[object]) -> bool:
    """Whether the values are numbers, one of them not whole."""
    numbers = [_number(value) for value in values if not is_missing(value)]
    return all(map(math.isfinite, numbers)) and not all(n.is_integer() for n in numbers)
