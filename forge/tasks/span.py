"""An answer that is a part of a text: where it starts and where it ends, or that there is none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import Field

from forge.data import sources
from forge.errors import UserError
from forge.inputs.input import IGNORED, NULLS, SPANS
from forge.inputs.passages import Passages, words
from forge.tasks.answer import Answer, Prediction, Predictions
from forge.tasks.decisions import MASKED, PLAIN, Decisions, Objective, masked_cross_entropy
from forge.tasks.metrics import Facts
from forge.tasks.parts import answers, likeliest, placed
from forge.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PretrainedConfig

    from forge.config.schema import Model
    from forge.data.sources import Columns
    from forge.inputs.input import Batch

log = logging.getLogger(__name__)
Threshold: TypeAlias = float | Literal["tuned"]
Count: TypeAlias = Annotated[int, Field(ge=1)]
TRIED = 101  # thresholds


class Right(NamedTuple):
    """What a row is judged by."""

    context: str
    answers: list[str]  # none: there is no answer
    label: list[int]


@dataclass
class Span(Answer):
    """The first and the last word of an answer, each decided among a row's words (`words`).

    Columns of a decision are no answer (0), then the words. Each word is decided in one window, so
    that a row's windows are one distribution (shared normalisation, Clark and Gardner 2018); of the
    windows' scores of no answer the least counts, as in BERT. The loss is the mean of both
    decisions' cross-entropy, over rows; it is to the first right answer that is in the context, and
    of its whole words.

    Answered is the likeliest span of at most `longest` words, or nothing where no answer's score
    is more than `threshold` above the span's (logits, start and end together). One that is `tuned`
    is 0 in training, and afterwards what gives the best headline on the first evaluation split; it
    is kept in the model's config. Rows without an answer are learnt where train has some.
    """

    column: str
    passages: Passages
    start: str | None = None
    threshold: Threshold = 0.0
    longest: int = 30
    tuned: float = field(init=False, default=0.0)
    last: tuple[Any, Any] | None = field(init=False, default=None)  # logits, and their best spans
    alignment = "span"
    problem_type = "question_answering"
    named = False
    whole = True
    outputs = ("start_logits", "end_logits")
    over = ("starts and ends", "examples")
    rewards = ("span_f1", "span_em", "exact")
    trivial = "always giving the commonest place"
    places = (
        "Two numbers for each token: of an answer that starts there, and of one that ends there."
    )

    def __post_init__(self) -> None:
        self.columns = [self.column, *([self.start] if self.start else [])]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.passages.widest + 1)))

    @property
    def read_off(self) -> dict[str, object]:
        return {"unanswerable": self.passages.unanswerable}

    def unknown(self, inputs: Columns, count: int) -> list[list[int]]:
        return [[-1, -1]] * count

    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        where = f"split {split}, column {self.column}"
        starts = columns[self.start] if self.start else [None] * len(columns[self.column])
        cells = enumerate(zip(columns[self.column], starts, strict=True))
        given = [answers(cell, start, f"{where}: row {i}") for i, (cell, start) in cells]
        none = given.count([])
        if self.passages.unanswerable is None:
            self.passages.unanswerable = none > 0
        if none and not self.passages.unanswerable:
            log.warning("%s: %d rows without an answer, of which train has none", where, none)
        pairs = zip(inputs["context"], given, strict=True)
        labelled = [placed(context, own) for context, own in pairs]
        inside = sum(not whole for _, whole in labelled)
        if inside:
            log.info("%s: %d answers begin or end inside a word: whole words count", where, inside)
        lost = sum(
            label is None and bool(own) for (label, _), own in zip(labelled, given, strict=True)
        )
        if lost:
            log.warning("%s: %d answers are not in their context: not learnt", where, lost)
        nowhere = [0, 0] if self.passages.unanswerable else [IGNORED] * 2
        labels = [
            label or ([IGNORED] * 2 if own else nowhere)
            for (label, _), own in zip(labelled, given, strict=True)
        ]
        return {"labels": labels, "answers": [[text for text, _ in own] for own in given]}

    def of_rows(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Logits [B, 2, C] of a model's start and end logits [N, L]."""
        logits = torch.stack([outputs[name].flatten() for name in self.outputs])
        spans, nulls = batch[SPANS], batch[NULLS]
        chosen = torch.stack([logits[i][spans[:, i].clamp(min=0)] for i in range(2)], 1)
        chosen = chosen.masked_fill(spans < 0, MASKED)
        if not self.passages.unanswerable:
            return chosen
        none = logits[:, nulls.clamp(min=0)]  # [2, B, W]
        least = none.sum(0).masked_fill(nulls < 0, torch.inf).argmin(-1)
        null = none.gather(-1, least.expand(2, -1).unsqueeze(-1)).squeeze(-1).T
        return torch.cat([null.unsqueeze(-1).to(chosen.dtype), chosen[..., 1:]], -1)

    def each(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        return list(logits)

    def sizes(self, rows: Dataset) -> list[int]:
        return [2] * len(rows)

    def by_row(self, logits: np.ndarray, rows: Dataset) -> list[np.ndarray]:
        return list(logits.reshape(-1, 2, logits.shape[-1]))

    def right(self, rows: Dataset) -> list[Right]:
        return list(map(Right, rows["context"], rows["answers"], rows["labels"]))

    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        labels = batch.get("labels")
        return Decisions(logits, labels, None if labels is None else labels != IGNORED)

    def items(self, batch: Batch) -> Tensor:
        return batch["labels"].ne(IGNORED).sum()

    def loss(self, decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
        return masked_cross_entropy(decisions, objective)

    def judged_by(self, metric: Facts) -> bool:
        return metric.of_spans or not metric.dtype

    def best(self, logits: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of logits [2 * rows, C] each row's likeliest span [rows, 2], and by how much the score
        of no answer is above its own [rows]."""
        if self.last is None or self.last[0] is not logits:
            found = [
                likeliest(row, self.longest) for row in logits.reshape(-1, 2, logits.shape[-1])
            ]
            pairs, margins = zip(*found, strict=True)
            self.last = logits, (np.array(pairs), np.array(margins))
        best: tuple[NDArray[np.int64], NDArray[np.float64]] = self.last[1]
        return best

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """The first and the last word of each row [rows, 2], counted from 1; 0 for no answer."""
        pairs, margins = self.best(logits)
        least = self.tuned if self.threshold == "tuned" else self.threshold
        return np.where((margins > least)[:, None], 0, pairs)

    def tune(
        self, score: Callable[[], float], config: PretrainedConfig, logits: np.ndarray
    ) -> bool:
        if self.threshold != "tuned" or not self.passages.unanswerable:
            return False
        margins = self.best(logits)[1]
        tried = {0.0, *np.quantile(margins, np.linspace(0, 1, TRIED)).tolist(), margins.min() - 1}
        scores: dict[float, float] = {}
        for self.tuned in sorted(tried, key=abs):
            scores[self.tuned] = score()
        self.tuned = max(scores, key=lambda each: scores[each])  # the first, nearest 0, of many
        config.threshold = self.tuned
        log.info("threshold %g of no answer's score above a span's, tuned", self.tuned)
        return True

    def compared(
        self, metric: Facts, labels: list[Right], logits: np.ndarray
    ) -> tuple[list[list[str]], list[str]]:
        pairs = zip(labels, self.predict(logits).tolist(), strict=True)
        return [row.answers for row in labels], [
            self.completion(pair, [row.context]) for row, pair in pairs
        ]

    def completion(self, chosen: Sequence[int], texts: Sequence[str] = ()) -> str:
        """The text from one word to another; "" for none.

        Starts and ends are drawn each by itself: where only one is a word, or the end is before the
        start, it is the one word (the start) that is meant.
        """
        start, end = self.characters(chosen, texts[0])
        return texts[0][start:end]

    def characters(self, chosen: Sequence[int], context: str) -> tuple[int, int]:
        """Where a span of words begins and ends in its context; the same for none."""
        own, first = words(context), chosen[0] or chosen[1]
        last = min(max(first, chosen[1]), len(own))
        return (int(own[first - 1, 0]), int(own[last - 1, 1])) if 0 < first <= last else (0, 0)

    def references(self, rows: Columns) -> list[str | list[str]]:
        return list(rows["answers"])

    def shown(self, texts: Sequence[str], answer: str | list[str]) -> str:
        return str(answer) or "no answer"

    def baseline(self, labels: list[Right]) -> np.ndarray:
        known = Counter(tuple(row.label) for row in labels if IGNORED not in row.label)
        pair = list(known.most_common(1)[0][0] if known else (1, 1))
        logits = np.full((len(labels), 2, len(self.labels)), -30.0)
        logits[:, range(2), pair] = 30
        return logits.reshape(-1, logits.shape[-1])

    def prediction(self, logits: np.ndarray, texts: Sequence[str]) -> Prediction:
        chosen, odds = self.predict(logits)[0].tolist(), self.probabilities(logits)
        start, end = self.characters(chosen, texts[0])
        return {
            "answer": texts[0][start:end],
            "start": start if start < end else -1,
            "probability": float(odds[0, chosen[0]] * odds[1, chosen[1]]),
        }

    def predictions(self, rows: Dataset, logits: np.ndarray) -> Predictions:
        """Right answers (a list) and the one given, with its place and probability."""
        right, each = self.right(rows), self.by_row(logits, rows)
        given = [self.prediction(row, [of.context]) for row, of in zip(each, right, strict=True)]
        own = [1 + len(words(row.context)) for row in right]
        return {
            "label": [row.answers for row in right],
            "prediction": [row["answer"] for row in given],
            "start": [row["start"] for row in given],
            "probability": [row["probability"] for row in given],
            "logits": [row[:, :n].tolist() for row, n in zip(each, own, strict=True)],
        }

    def summary(self, rows: Dataset) -> str:
        if "answers" not in rows.column_names:  # they are not known
            return ""
        none = list(rows["answers"]).count([])
        return f"{len(rows) - none:,} with an answer, {none:,} without"

    def described(self, prediction: Any) -> str:
        return str(prediction) or "no answer"

    def usage_of(self, inputs: str) -> str:
        found = f"""encoded = {inputs}  # one window; forge predict reads all
outputs = model(**encoded)
read = torch.tensor([part == 1 for part in encoded.sequence_ids()])  # of the context
pairs = outputs.start_logits[0][:, None] + outputs.end_logits[0]
pairs = pairs.masked_fill(~(read & read[:, None]).triu().tril({self.longest - 1}), -torch.inf)
start, end = divmod(pairs.argmax().item(), len(pairs))
answer = tokenizer.decode(encoded["input_ids"][0, start : end + 1])
"""
        least = self.tuned if self.threshold == "tuned" else self.threshold
        none = f"""whole = (encoded["input_ids"][0] == (tokenizer.cls_token_id or -1)).nonzero()
none = (outputs.start_logits + outputs.end_logits)[0, whole[0, 0] if len(whole) else -1]
answer = "" if none - pairs.max() > {least:g} else answer  # no answer
"""
        return found + (none if self.passages.unanswerable else "") + "print(answer)"

    def check(self, model: Model, config: PretrainedConfig, where: str) -> None:
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES as READERS,
        )

        if config.model_type not in READERS and not model.from_pretrained.get("trust_remote_code"):
            raise UserError(
                f"{where} {model.path or config.model_type}: no {config.model_type} finds answers "
                "in a text; choose e.g. model=tiny, model=minilm or model=deberta"
            )


def span(
    *,
    dataset: Callable[[], sources.Source] | None = None,
    files: dict[str, str | None] | None = None,
    context: str = "context",
    question: str = "question",
    answer: str = "answers",
    start: str | None = None,
    unanswerable: bool | None = None,
    threshold: Threshold = 0.0,
    longest: Count = 30,
    stride: Annotated[int, Field(ge=0)] | None = None,
    metrics: list[str],
    headline: str,
    train: str = "train",
    evaluation: list[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    unlabelled_split: str | None = None,
) -> Task:
    """A question and a context in, the answer's place there out; `files` stand for a dataset."""
    source, judging, unlabelled = sources.chosen(
        dataset, files, evaluation, train, unlabelled_split
    )
    passages = Passages(
        max_length, context=context, question=question, stride=stride, unanswerable=unanswerable
    )
    return Task(
        input=passages,
        answer=Span(answer, passages, start, threshold, longest),
        auto="QuestionAnswering",
        pipeline="question-answering",
        dataset=source,
        metrics=metrics,
        headline=headline,
        train=train,
        evaluation=judging,
        max_rows=max_rows,
        unlabelled_split=unlabelled,
    )
