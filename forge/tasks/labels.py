"""An answer that is any number of labels, none among them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field

from forge.data import sources
from forge.data.missing import is_missing
from forge.data.spelling import spell
from forge.errors import UserError
from forge.tasks.answer import Answer
from forge.tasks.decisions import Decisions
from forge.tasks.label import Label, counted
from forge.tasks.metrics import Facts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig

    from forge.data.sources import Columns
    from forge.inputs.input import Batch

log = logging.getLogger(__name__)
Threshold: TypeAlias = Annotated[float, Field(gt=0, lt=1)] | Literal["tuned"]
YES, NO = ("1", "true", "yes"), ("0", "false", "no")  # of a column for each label
GRID = [percent / 100 for percent in range(1, 100)]  # thresholds that are tried


@dataclass
class Labels(Answer):
    """Any of `given`, each decided by itself: given where its probability reaches `threshold`.

    One that is to be `tuned` is 0.5 in training, and afterwards what gives the best headline on the
    first evaluation split; it is kept in the model's config.

    One column holds lists of names (or such lists as texts, as csv files have them), or texts with
    `separator` between names; several hold 1 or 0 for the label that each is called after. An empty
    list or text is a row without any of the labels, a missing value a row that is not known. The
    loss is the binary cross-entropy, a mean over rows and labels: cross-entropy of the two logits
    [0, z].
    """

    columns: list[str]
    given: Sequence[str | int] | None = None
    separator: str | None = None
    threshold: Threshold = 0.5
    tuned: float | None = field(init=False, default=None)  # what a threshold that is tuned came to
    single: Label = field(init=False)  # what spells a label, and knows the names
    alignment = "row"
    problem_type = "multi_label_classification"
    several = True
    over = ("yes and no", "examples and labels")
    rewards = ("label_f1", "jaccard", "label_costs", "exact")
    trivial = "always giving the commonest set of labels"

    def __post_init__(self) -> None:
        if len(self.columns) > 1:
            if self.separator or list(self.given or self.columns) != self.columns:
                raise UserError(
                    f"task.label=[{','.join(self.columns)}]: the columns are the labels; leave "
                    "task.labels and task.separator null"
                )
            self.given = self.columns
        self.single = Label(self.columns[0], self.given)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.single.labels

    @property
    def least(self) -> float:
        """The probability from which on a label is given."""
        if isinstance(self.threshold, float | int):
            return self.threshold
        return 0.5 if self.tuned is None else self.tuned

    def tune(
        self, score: Callable[[], float], config: PretrainedConfig, logits: np.ndarray
    ) -> bool:
        if self.threshold != "tuned":
            return False
        scores: dict[float, float] = {}
        for share in sorted(GRID, key=lambda share: abs(share - 0.5)):
            self.tuned = share
            scores[share] = score()
        self.tuned = max(scores, key=lambda share: scores[share])  # the first, nearest 0.5, of many
        config.threshold = self.tuned
        log.info("threshold %g of a label's probability, tuned (0.5 before)", self.tuned)
        return True

    @property
    def read_with(self) -> tuple[str, str]:
        given = f"for i in (logits[0].sigmoid() >= {self.least:g}).nonzero().flatten()"
        names = f"[model.config.id2label[i.item()] {given}]"
        return ', function_to_apply="sigmoid", top_k=None', names

    @property
    def notes(self) -> list[str]:
        return self.single.notes

    def unknown(self, inputs: Columns, count: int) -> list[list[int]]:
        return [[-1] * len(self.labels)] * count

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        return {"labels": self._sets(columns, split)}

    def _sets(self, columns: Columns, split: str) -> list[list[int] | None]:
        """For each row 1 or 0 for each label; None for a row that is not known."""
        if len(self.columns) > 1:
            marks = [self._marks(columns[name], name, split) for name in self.columns]
            return [None if None in row else list(row) for row in zip(*marks, strict=True)]
        where = f"split {split}, column {self.columns[0]}"
        values = enumerate(columns[self.columns[0]])
        sets = [self._names(value, f"{where}: row {i}") for i, value in values]
        each = [(i, name) for i, names in enumerate(sets) for name in names or ()]
        names, rows = [name for _, name in each], [i for i, _ in each]
        ids = iter(self.single.encode(names, split, rows))
        empty = sets.count([])
        log.info("%s: %s rows with none of the labels", where, f"{empty:,}")
        hot: list[list[int] | None] = []
        for chosen in sets:
            row = None if chosen is None else [next(ids) for _ in chosen]
            hot.append(row if row is None else [int(i in row) for i in range(len(self.labels))])
        return hot

    def _names(self, value: object, where: str) -> list[str] | None:
        """A row's labels as they are spelled; raises `UserError` for what is no list of them."""
        if isinstance(value, str) and self.separator:
            value = value.split(self.separator)
        elif isinstance(value, str):
            value = sources.listed(value) if value.strip() else []
        if value is None or value != value:
            return None
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise UserError(
                f"{where} holds {str(value)[:60]}, not a list of labels; set task.separator to "
                "what stands between them, or take a task of one label a row"
            )
        return [name for each in value if (name := spell(each)) is not None]

    def _marks(self, values: Sequence[object], column: str, split: str) -> list[int | None]:
        spelled = [None if is_missing(value) else str(spell(value)).lower() for value in values]
        if odd := [s for s in spelled if s not in (None, *YES, *NO)]:
            raise UserError(
                f"split {split}, column {column}: {odd[0]} is neither 1 nor 0, yes nor no"
            )
        return [None if s is None else int(s in YES) for s in spelled]

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        """Two logits for each row and label: [B, N] -> [B, N, 2]."""
        labels = batch.get("labels")
        return Decisions(
            torch.stack([torch.zeros_like(logits), logits], -1),
            None if labels is None else labels.long(),
        )

    def items(self, batch: Batch) -> Tensor:
        return torch.tensor(batch["labels"].numel(), device=batch["labels"].device)

    def counts(self, labels: Sequence[Sequence[int]]) -> np.ndarray:
        """Of each label [N, 2], the rows without and with it."""
        given = np.sum(labels, 0)
        return np.stack([len(labels) - given, given], -1)

    def judged_by(self, metric: Facts) -> bool:
        return not metric.of_texts and (metric.several or not metric.dtype)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return np.asarray(expit(np.asarray(logits, dtype=np.float64)))

    def average(self, logits: Tensor, shares: Tensor) -> Tensor:
        shares = shares.view(-1, 1, 1)
        probability = (shares * logits.sigmoid()).sum(0)
        return probability.logit(eps=1e-7)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """1 or 0 for each label [rows, N]; the threshold is one of probabilities."""
        return (self.probabilities(logits) >= self.least).astype(np.int64)

    def baseline(self, labels: np.ndarray) -> np.ndarray:
        commonest = Counter(map(tuple, labels.tolist())).most_common(1)[0][0]
        return np.tile(np.where(np.array(commonest) > 0, 30.0, -30.0), (len(labels), 1))

    def summary(self, rows: Dataset) -> str:
        given = np.asarray(rows["labels"])
        counts = dict(zip(self.labels, given.sum(0).tolist(), strict=True))
        return counted(counts | {"none": int((~given.any(1)).sum())})

    def described(self, prediction: Sequence[int]) -> str:
        return ", ".join(self.completion(prediction)) or "none of the labels"

    def completion(self, chosen: Sequence[int], texts: Sequence[str] = ()) -> list[str]:
        """The names of the labels that are given."""
        return [name for name, given in zip(self.labels, chosen, strict=True) if given]
