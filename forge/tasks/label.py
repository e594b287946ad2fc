"""An answer that is one of several labels."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from forge.data.missing import is_missing
from forge.data.spelling import folded, spell
from forge.errors import UserError, did_you_mean
from forge.tasks import numerals
from forge.tasks.answer import Answer
from forge.tasks.decisions import Decisions
from forge.tasks.metrics import Facts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from forge.data.sources import Columns
    from forge.inputs.input import Batch

log = logging.getLogger(__name__)
MANY = 20  # distinct values that may be labels however few the rows
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)$", re.ASCII)
LINE = 60  # letters of a line that counts labels
MINUS_ONE = "-1"  # GLUE's mark of an unlabelled row, or a label's name


class OneOf(Answer):
    """An answer that is one of the columns of a row's logits."""

    alignment = "row"

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        return Decisions(logits, batch.get("labels"))

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def judged_by(self, metric: Facts) -> bool:
        return not metric.of_texts and metric.dtype in ("", "int64") and not metric.of_sets

    def predict(self, logits: NDArray[np.floating]) -> NDArray[np.integer]:
        answers: NDArray[np.integer] = np.argmax(logits, axis=-1)
        return answers


@dataclass
class Label(OneOf):
    """One of `given`, named in the order of their ids; the column holds names or ids.

    Values are names, in their own case or another, unless every one is a whole number below the
    number of labels and none is a name: then they are ids. The first split that is read decides;
    without `given` its values are the names, in sorted order. With `doubtful`, values that look
    like no labels (numbers, texts) are refused.
    """

    column: str
    given: Sequence[str | int] | None = None
    doubtful: bool = False
    by_name: bool | None = field(init=False, default=None)  # whether the data hold names or ids
    problem_type = "single_label_classification"

    def __post_init__(self) -> None:
        self.columns = [self.column]
        self.names = [
            name if isinstance(name, str) else str(spell(name)) for name in self.given or ()
        ]
        if len({spell(name) for name in self.names}) < len(self.names):
            raise UserError(f"task.labels={self.names}: a name occurs twice")
        if len(self.names) == 1:
            raise UserError(f"task.labels={self.names}: at least two labels are needed")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.names)

    @property
    def notes(self) -> list[str]:
        if self.by_name is None:
            return []
        if self.by_name:
            how = "matched by name" if self.given else f"the values of column {self.column}"
            return [f"the labels are {how}"]
        named = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
        return [f"the labels are numbers, taken for {named}"]

    def rows(self, columns: Columns, inputs: Columns, split: str) -> dict[str, list[int | None]]:
        return {"labels": self.encode(columns[self.column], split)}

    def encode(
        self, values: Sequence[object], split: str, places: Sequence[int] | None = None
    ) -> list[int | None]:
        """The ids of a split's values, None for one without a label; raises `UserError`.

        `places` are the values' rows; None: a value for each row.
        """
        where = f"split {split}, column {self.column}"
        places = places or range(len(values))
        spelled = [_spell_row(value, i, where) for i, value in zip(places, values, strict=True)]
        counts = Counter(s for s in spelled if s is not None)
        if not self.names:
            self.names = self._read_off(counts, where)
            log.info("labels, read off %s: %s", split, ", ".join(self.names))
        ids = self._ids(counts)
        marks = [s for s in counts if s not in ids and (s == MINUS_ONE or is_missing(s))]
        if marks:
            named = ", ".join(f"{mark} ({counts[mark]} rows)" for mark in marks)
            log.warning("%s: %s: taken for no label, as task.labels does not name it", where, named)
        if foreign := counts.keys() - ids.keys() - set(marks):
            pairs = zip(places, spelled, strict=True)
            row, value = next((i, s) for i, s in pairs if s in foreign)
            raise UserError(self._foreign(foreign, row, str(value), where))
        return [None if s is None else ids.get(s) for s in spelled]

    def _ids(self, values: Iterable[str]) -> dict[str, int]:
        """The id of each value that is a label; the first split decides whether names or ids."""
        names = {str(spell(name)): i for i, name in enumerate(self.names)}
        by_fold = {folded(name): i for name, i in names.items()}
        if len(by_fold) == len(names):
            names |= {value: by_fold[f] for value in values if (f := folded(value)) in by_fold}
        numbers = {str(i): i for i in range(len(self.names))}
        labels = {value for value in values if value != MINUS_ONE and not is_missing(value)}
        if self.by_name is None and (labels or names.keys() & set(values)):
            self.by_name = bool(names.keys() & set(values)) or not labels <= numbers.keys()
            for note in self.notes if self.given else ():
                log.info("%s", note)
        return numbers if self.by_name is False else names

    def _read_off(self, values: Counter[str], where: str) -> list[str]:
        counts = Counter({value: n for value, n in values.items() if not is_missing(value)})
        if MINUS_ONE in counts:
            raise UserError(
                f"{where}: -1 may be a label or mark rows without one; name the labels with "
                "task.labels=[…], with -1 among them if it is one"
            )
        if len(counts) < 2:
            raise UserError(
                f"{where}: {len(counts)} distinct labels; name them with task.labels=[…]"
            )
        _refuse_several(counts, where)
        if self.doubtful:
            _refuse_unlikely(counts, where)
        if len(counts) == counts.total() > MANY:
            raise UserError(
                f"{where}: each of its {len(counts)} rows has a label of its own; check "
                "task.label, or name the labels with task.labels=[…]"
            )
        if len({folded(name) for name in counts}) < len(counts):
            log.warning("%s: labels that differ in case alone are taken for different ones", where)
        return sorted(counts, key=lambda s: (0, float(s), s) if NUMBER.match(s) else (1, 0.0, s))

    def _foreign(self, foreign: set[str], row: int, value: str, where: str) -> str:
        values = ", ".join(sorted(foreign)[:5])
        return (
            f"{where}: {values} (first in row {row}) not among task.labels "
            f"[{', '.join(self.names)}]; set task.labels=[…] to the data's names"
            + did_you_mean(value, self.names, listed=False)
        )

    def summary(self, rows: Dataset) -> str:
        counts = Counter(i for i in rows["labels"] if i >= 0)  # not of rows without one
        return counted({self.names[i]: n for i, n in counts.items()})

    def described(self, prediction: int) -> str:
        return self.names[prediction]


def counted(counts: Mapping[str, int]) -> str:
    """The commonest labels with their rows, as far as a line goes, and how many more there are."""
    order = sorted(counts, key=lambda name: -counts[name])
    parts = [f"{name} {counts[name]:,}" for name in order]
    fit = sum(end <= LINE for end in accumulate(len(part) + 2 for part in parts))
    more = f"{len(parts) - fit} labels more" if fit else f"{len(parts)} labels"
    return ", ".join([*parts[:fit], *([more] if len(parts) > fit else [])])


def _spell_row(value: object, row: int, where: str) -> str | None:
    """A row's value in the one spelling; raises `UserError` for what is no single value."""
    listed = isinstance(value, str) and re.fullmatch(
        r"\s*(\[(.*['\"\d])?\]|\(['\"].*\)|\{.*\})\s*", value
    )
    if listed or (isinstance(value, Iterable) and not isinstance(value, str)):
        raise UserError(
            f"{where}: row {row} holds {str(value)[:60]}, and a label is one name or number; for "
            "any number of labels a row there is task=files_labels"
        )
    return spell(value)


def _refuse_unlikely(counts: Counter[str], where: str) -> None:
    """Raise `UserError` for values that are rather numbers or texts than labels."""
    distinct, rows = len(counts), counts.total()
    if odd := _among_numbers(counts):
        raise UserError(
            f"{where}: numbers, and {odd} ({counts[odd]} rows); empty such cells if they mark "
            "missing values, or set task.problem_type=classification if these are labels"
        )
    numbers = all(numerals.value(name) is not None for name in counts)
    if distinct > max(MANY, rows // 10 if numbers else rows // 2):
        kind = "regression if they are amounts, classification if they are labels"
        raise UserError(
            f"{where}: {distinct} distinct values in {rows} rows; set task.problem_type="
            + (kind if numbers else "classification if they are labels, else check task.label")
        )


def _refuse_several(counts: Counter[str], where: str) -> None:
    """Raise `UserError` for values that list other values, as "tox,ins" beside "tox" and "ins"."""
    for value in counts:
        parts = {part.strip() for part in re.split(r"[,;|]", value)}
        if len(parts) > 1 and parts <= counts.keys():
            comma = numerals.value(value) is not None
            raise UserError(
                f"{where}: {value} lists several of its labels, and a label is one name or number; "
                "keep one label a row, make a column for each and name one with task.label, or "
                "name all the labels with task.labels=[…]"
                + "; if it has a decimal comma, set task.problem_type=regression"
                * comma
            )


def _among_numbers(counts: Counter[str]) -> str | None:
    """The first value that is no number where most rows hold one and some have a fraction."""
    numbers = {name for name in counts if numerals.value(name) is not None}
    if not any(re.search(r"[.,]", value) for value in numbers):
        return None
    if 2 * sum(counts[value] for value in numbers) <= counts.total():
        return None
    return next((value for value in counts if value not in numbers), None)
