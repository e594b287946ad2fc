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
from forge.tasks import numerals
from forge.tasks.answer import Answer, Prediction
from forge.tasks.decisions import PLAIN, Decisions, Objective, squared_error
from forge.tasks.metrics import Facts
from forge.tasks.numerals import DecimalSign

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

    Numbers written as texts are read as `numerals` says; without `decimal` the first split that is
    read decides for all whether they have a decimal point or a decimal comma.

    The loss is the squared error of standardised values: by `standardize`, a mean and a standard
    deviation, else by those of the training rows where these are far from 0 and 1.
    """

    column: str
    unlabelled: float | None = None
    standardize: Sequence[float] | None = None
    decimal: DecimalSign | None = None  # of numbers written as texts
    fitted: Scale = field(init=False, default=Scale())
    example: str = field(init=False, default="")  # one that could be taken for another number
    alignment = "row"
    distribution = False
    problem_type = "regression"
    trivial = "always giving the mean"
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
        notes = []
        if self.scale != Scale():
            notes.append(
                f"the numbers are standardised by their mean {self.scale.mean:g} and standard "
                f"deviation {self.scale.std:g} in training; answers and metrics are in their own "
                "units"
            )
        if self.example and self.decimal:
            number = _number(self.example, self.decimal)
            notes.append(f"{self.column}: {self.example} is read as {number:.15g}")
        return notes

    @property
    def read_off(self) -> dict[str, object]:
        return {"decimal": self.decimal} if self.decimal else {}

    def unknown(self, inputs: Columns, count: int) -> list[float]:
        return [-1.0] * count

    def fit(self, rows: Dataset) -> None:
        values = np.asarray(rows["labels"], dtype=float)
        mean, std = float(values.mean()), float(values.std())
        if self.standardize is None and (abs(mean) > FAR or not 1 / FAR <= std <= FAR):
            self.fitted = Scale(mean, std or 1.0)
        for note in self.notes:
            log.info("%s", note)

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        where, values = f"split {split}, column {self.column}", columns[self.column]
        self._settle_decimal([v for v in values if isinstance(v, str)], where)
        numbers = [None if is_missing(v) else _number(v, self.decimal) for v in values]
        wrong = [i for i, n in enumerate(numbers) if n is not None and not math.isfinite(n)]
        if wrong:
            first = values[wrong[0]]
            known = isinstance(first, str) and numerals.value(first) is not None
            sign = f" with a decimal {self.decimal}" if known else ""
            raise UserError(
                f"{where}: {len(wrong)} values are not finite numbers{sign} (first: "
                f"{str(first)[:60]} in row {wrong[0]}); mend or remove them"
            )
        return {"labels": [None if n == self.unlabelled else n for n in numbers]}

    def _settle_decimal(self, texts: list[str], where: str) -> None:
        """Decide how texts are read; raises `UserError` where that differs from row to row."""
        units = {numerals.unit(text) for text in texts if numerals.value(text) is not None}
        if ("%" in units and len(units) > 1) or len(units - {""}) > 1:
            named = " and ".join(unit or "none" for unit in sorted(units))
            raise UserError(f"{where}: numbers of several units ({named}); give them one")
        if self.decimal is None and texts:
            self.decimal = numerals.decimal_of(texts)
            if self.decimal is None:
                numbers = [text for text in texts if numerals.value(text) is not None]
                odd = (
                    next(text for text in numbers if numerals.value(text, [kind]) is None)
                    for kind in numerals.WITH
                )
                raise UserError(
                    f"{where}: {' and '.join(odd)}: some of its numbers have a decimal comma and "
                    "some a decimal point; write them alike"
                )
            self.example = next((t for t in texts if "," in t and numerals.value(t)), "")

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        return Decisions(logits, batch.get("labels"))

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def loss(self, decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
        return squared_error(decisions) / self.scale.std**2

    def summary(self, rows: Dataset) -> str:
        values = np.asarray(rows["labels"], dtype=float)
        return f"{values.min():g} to {values.max():g}, mean {values.mean():g}"

    def described(self, prediction: float) -> str:
        return f"{prediction:g}"

    def judged_by(self, metric: Facts) -> bool:
        return not metric.of_texts and metric.dtype in ("", "float64")

    def prediction(self, logits: np.ndarray, texts: Sequence[str]) -> Prediction:
        return {"value": float(logits[0, 0])}

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.reshape(len(logits), -1)[:, 0]

    def average(self, logits: Tensor, shares: Tensor) -> Tensor:
        return (shares.view(-1, 1, 1) * logits).sum(0)

    def baseline(self, labels: np.ndarray) -> np.ndarray:
        """Always the mean."""
        return np.full((len(labels), 1), labels.mean())


def _number(value: object, decimal: DecimalSign | None) -> float:
    if isinstance(value, str):
        number = numerals.value(value, [decimal] if decimal else numerals.WITH)
        return math.nan if number is None else float(number)
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        return math.nan


def fractional(values: Sequence[object]) -> bool:
    """Whether the values are numbers, one of them not whole; not "1,2" beside "1" and "2"."""
    given = [value for value in values if not is_missing(value)]
    texts = [value.strip() for value in given if isinstance(value, str)]
    known = set(texts)
    if any("," in text and set(text.split(",")) <= known for text in texts):
        return False
    decimal = numerals.decimal_of(texts)
    numbers = [_number(value, decimal) for value in given]
    return all(map(math.isfinite, numbers)) and not all(n.is_integer() for n in numbers)
