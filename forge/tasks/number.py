"""An answer that is a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from forge.errors import UserError
from forge.tasks.answer import Answer
from forge.tasks.decisions import Decisions, squared_error
from forge.tasks.label import AMBIGUOUS, spell
from forge.tasks.metrics import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from forge.inputs.input import Batch, Columns


@dataclass
class Number(Answer):
    """A number; `unlabelled` is the value that marks a row without one."""

    column: str
    unlabelled: float | None = None
    alignment = "row"
    distribution = False
    problem_type = "regression"
    missing = -1.0
    labels = ("score",)  # the one output

    def __post_init__(self) -> None:
        self.columns = [self.column]

    def rows(self, columns: Columns, inputs: Columns, split: str) -> dict[str, list[Any]]:
        values = columns[self.column]
        found = [_number(value) for value in values]
        wrong = [i for i, n in enumerate(found) if not math.isfinite(n)]
        if wrong:
            raise UserError(
                f"split {split}, column {self.column}: {len(wrong)} values are not finite numbers "
                f"(first: {values[wrong[0]]!r} in row {wrong[0]}); mend or remove those rows"
            )
        return {"labels": [None if n == self.unlabelled else n for n in found]}

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        return Decisions(logits, batch.get("labels"))

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def loss(self, decisions: Decisions, smoothing: float = 0.0) -> Tensor:
        return squared_error(decisions)

    def judged_by(self, metric: Facts) -> bool:
        return not metric.of_texts and metric.dtype in ("", "float64")

    def predict(self, logits: NDArray[Any]) -> NDArray[Any]:
        return logits.reshape(len(logits), -1)[:, 0]

    def baseline(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Always the mean."""
        return np.full((len(labels), 1), labels.mean())


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def numbers(values: list[Any]) -> list[float]:
    """The values as numbers, or nothing when any of them is a word."""
    numbers = [_number(v) for v in values if spell(v) not in (None, *AMBIGUOUS)]
    return numbers if all(map(math.isfinite, numbers)) else []
