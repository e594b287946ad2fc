"""An answer that is one of several labels."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from forge.errors import UserError, did_you_mean
from forge.tasks.answer import Answer
from forge.tasks.decisions import Decisions
from forge.tasks.metrics import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from forge.inputs.input import Batch, Columns

log = logging.getLogger(__name__)
AMBIGUOUS = ("-1", "None", "nan", "NaN")  # GLUE's mark of an unlabelled row, or a label's name


@dataclass
class Label(Answer):
    """One of `given`, named in the order of their ids; the column holds names or ids.

    Without `given` they are read off the first split that is read, in sorted order.
    """

    column: str
    given: list[str | int] | None = None
    alignment = "row"
    problem_type = "single_label_classification"

    def __post_init__(self) -> None:
        self.columns = [self.column]
        self.by_name: bool | None = None  # whether the data holds names or ids; train decides
        self.names = [str(name) for name in self.given or ()]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"task.labels={self.names}: a name occurs twice")
        if len(self.names) == 1:
            raise UserError(f"task.labels={self.names}: at least two labels are needed")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.names)

    @property
    def notes(self) -> list[str]:
        if self.by_name is not False:
            return []
        named = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
        return [f"the labels are numbers, taken for {named}"]

    def rows(self, columns: Columns, inputs: Columns, split: str) -> dict[str, list[Any]]:
        return {"labels": self.encode(columns[self.column], split)}

    def encode(self, values: list[Any], split: str) -> list[int | None]:
        spelled = [spell(value) for value in values]
        if not self.names:
            self.names = _infer(spelled, f"split {split}, column {self.column}")
            log.info("labels, read off %s: %s", split, ", ".join(self.names))
        names = {name: i for i, name in enumerate(self.names)}
        numbers = {str(i): i for i in range(len(self.names))}
        if len(self.names) == 2:
            numbers |= {"false": 0, "true": 1}
        distinct = {s for s in spelled if s is not None and (s not in AMBIGUOUS or s in names)}
        if self.by_name is None and distinct:
            self.by_name = distinct <= names.keys() or not distinct <= numbers.keys()
        ids = names if self.by_name else numbers
        if foreign := distinct - ids.keys():
            raise UserError(self._foreign(spelled, foreign, split))
        return [ids.get(s or "") for s in spelled]

    def _foreign(self, spelled: list[str | None], foreign: set[str], split: str) -> str:
        first = next(i for i, s in enumerate(spelled) if s in foreign)
        return (
            f"split {split}, column {self.column}: {', '.join(sorted(foreign)[:5])} (first in row "
            f"{first}) not among task.labels [{', '.join(self.names)}]; set task.labels=[…] to "
            "the data's names" + did_you_mean(str(spelled[first]), self.names, listed=False)
        )

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        return Decisions(logits, batch.get("labels"))

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def judged_by(self, metric: Facts) -> bool:
        return not metric.of_texts and metric.dtype in ("", "int64")

    def predict(self, logits: NDArray[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = np.argmax(logits, axis=-1)
        return answers


def spell(value: Any) -> str | None:
    """A label as text, None for a missing one; 1.0 is 1, as gaps turn whole numbers into floats."""
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _infer(spelled: list[str | None], where: str) -> list[str]:
    counts = Counter(s for s in spelled if s is not None)
    if marks := [s for s in AMBIGUOUS if s in counts]:
        raise UserError(
            f"{where}: {marks[0]} may be a label or mark rows without one; name the labels with "
            f"task.labels=[…], with {marks[0]} among them if it is one"
        )
    if len(counts) < 2:
        raise UserError(f"{where}: {len(counts)} distinct labels; name them with task.labels=[…]")
    if len(counts) > max(20, len(spelled) // 10):
        raise UserError(
            f"{where}: {len(counts)} distinct labels in {len(spelled)} rows; "
            "for numbers set task.problem_type=regression, else check task.label"
        )
    return sorted(counts, key=lambda s: (0, int(s), s) if s.isdecimal() else (1, 0, s))
