"""What is asked of a row: the question that every kind of answer answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypedDict

import numpy as np

from forge.data.sources import Columns
from forge.errors import UserError
from forge.models.scaling import Scale
from forge.tasks.decisions import PLAIN, Decisions, Objective, cross_entropy
from forge.tasks.metrics import Facts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig

    from forge.config.schema import Model
    from forge.inputs.input import Batch

Scores: TypeAlias = dict[str, Any]  # by metric: a number, an interval, a count
Predictions: TypeAlias = Columns  # the columns of a predictions' file
Labels: TypeAlias = Any  # of rows: an array [rows] or [rows, labels], or a list for each row


class Prediction(TypedDict, total=False):
    """A label with the probability of each, the value of a regression, or a text."""

    label: str
    labels: list[str]  # of a task of any number of labels, or of one for each of the words
    words: list[str]  # that the model read
    shown: str  # the words with what they are labelled
    probabilities: dict[str, float]
    value: float
    answer: str  # of a language model, as the task finds it in what is written; a part of a text
    start: int  # of a part of a text, in characters; -1 for no answer
    probability: float  # of its start and its end together
    completion: str  # what is written, where that is more than the answer


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a split, and what it answered to each row."""

    scores: Scores
    predictions: Predictions


class Answer(ABC):
    """What is asked of a row."""

    columns: list[str]  # of the data, beside the input's
    alignment: ClassVar[Literal["row", "word", "span", "token"]]  # what a decision belongs to
    whole: ClassVar[bool] = False  # judged by whole rows, of which a batch has not all
    outputs: ClassVar[tuple[str, ...]] = ("logits",)  # of a model, what is read
    distribution: ClassVar[bool] = True  # logits are one over answers; else each is a value
    problem_type: ClassVar[str]  # as in transformers.PretrainedConfig, or generation
    every_row: ClassVar[bool] = False  # rows without an answer are a mistake, not skipped
    several: ClassVar[bool] = False  # of the labels, any number may be given
    named: ClassVar[bool] = True  # a model's labels are matched by name; else they are places
    over: ClassVar[tuple[str, str]] = ("labels", "examples")  # a loss is summed and averaged
    rewards: ClassVar[tuple[str, ...]] = ()  # for rows of several decisions, those that fit
    trivial: ClassVar[str] = "always giving the commonest answer"  # what a teacher must beat
    places: ClassVar[str] = ""  # for a model's card: what outputs without names are

    @property
    def scale(self) -> Scale:
        """Of the values that a fresh head is to give."""
        return Scale()

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...] | None:
        """Names of the model's outputs in their order; None: the vocabulary."""

    @abstractmethod
    def rows(self, columns: Columns, inputs: Columns, split: str) -> Columns:
        """Columns of right answers, the first with None for a row without one.

        `columns` are the data's, `inputs` what the input kept. Raises `UserError`.
        """

    def unknown(self, inputs: Columns, count: int) -> list[Any]:
        """The labels of so many rows without an answer, of which `inputs` holds what is kept: -1
        for each decision. A teacher is asked about them; nothing else reads them."""
        return [-1] * count

    def fit(self, rows: Dataset) -> None:  # noqa: B027  # most need nothing
        """Take from the training rows what a fresh head needs."""

    def of_rows(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """A model's logits by rows: [B, C], or [B, K, C] where K things are decided."""
        return outputs["logits"]

    def each(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        """Of every row of a batch its logits [k, C], without padding."""
        return list(logits.reshape(len(logits), 1, -1))

    def sizes(self, rows: Dataset) -> list[int]:
        """How many of the logits [K, C] of all rows each row has."""
        return [1] * len(rows)

    def by_row(self, logits: np.ndarray, rows: Dataset) -> list[np.ndarray]:
        """The logits [K, C] of all rows, row by row: [C], or [k, C] of k words."""
        return list(logits)

    def right(self, rows: Dataset) -> Labels:
        """The right answers of all rows, as `judge` takes them."""
        return np.asarray(rows["labels"])

    def encoded(self, split: Dataset, processor: Any) -> Dataset:
        """An encoded split with the answers that only its encoding shows."""
        return split

    @abstractmethod
    def decisions(self, logits: Tensor, batch: Batch) -> Decisions:
        """What logits by rows decide; the only place that knows shapes."""

    @abstractmethod
    def items(self, batch: Batch) -> Tensor:
        """How many decisions of a batch the loss is averaged over."""

    def loss(self, decisions: Decisions, objective: Objective = PLAIN) -> Tensor:
        """The task's loss, summed over the decisions."""
        return cross_entropy(decisions, objective)

    def counts(self, labels: Sequence[Any]) -> np.ndarray:
        """How often each class [C] is the label of a decision, of a split's labels."""
        assert self.labels is not None
        flat = np.concatenate([np.ravel(row) for row in labels])
        return np.bincount(flat[flat >= 0], minlength=len(self.labels))

    @abstractmethod
    def judged_by(self, metric: Facts) -> bool:
        """Whether a metric is for answers of this kind."""

    @abstractmethod
    def predict(self, logits: np.ndarray) -> np.ndarray:
        """Answers from logits [K, C]."""

    def tune(
        self, score: Callable[[], float], config: PretrainedConfig, logits: np.ndarray
    ) -> bool:
        """Set what answers hang on beside `logits` [K, C] so that `score` is highest, and keep it
        in a model's config; False where there is no such thing."""
        return False

    def compared(self, metric: Facts, labels: Labels, logits: np.ndarray) -> tuple[Any, Any]:
        """What a metric compares: right answers and given ones."""
        return labels, self.predict(logits)

    def check_metrics(self, names: Sequence[str]) -> None:
        """Raise `UserError` for a metric that the labels do not fit, now that they are known."""
        if "f1" in names and self.labels is not None and len(self.labels) != 2:
            raise UserError(
                f"metric f1: it is for two labels, the task has {len(self.labels)}; use f1_macro"
            )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of each label, from logits [rows, C]."""
        from scipy.special import softmax

        return np.asarray(softmax(np.asarray(logits, dtype=np.float64), -1))

    def average(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Logits [rows, C] of the mean probability of several models [models, rows, C].

        Averaging probabilities, not logits, keeps a sure model from outvoting the others by the
        size of its logits. `shares` [models] sum to 1.
        """
        return (logits.log_softmax(-1) + shares.view(-1, 1, 1).log()).logsumexp(0)

    def completion(self, chosen: Sequence[int], texts: Sequence[str] = ()) -> str | list[str]:
        """What rewards are given of a row's decisions: the label's name, or what the decisions
        stand for in what is shown of the row (`texts`)."""
        assert self.labels is not None
        return self.labels[chosen[0]]

    def references(self, rows: Columns) -> list[str | list[str]]:
        """What rewards compare completions with: what the right decisions would be given as."""
        return [self.completion(np.atleast_1d(label).tolist()) for label in rows["labels"]]

    def shown(self, texts: Sequence[str], answer: str | list[str]) -> str:
        """A row's answer (`completion`) for a reader, who is shown `texts` of the row."""
        return answer if isinstance(answer, str) else ", ".join(answer) or "none"

    def baseline(self, labels: Labels) -> np.ndarray:
        """Logits [rows, C] of always giving the commonest answer: what a teacher must beat."""
        assert self.labels is not None
        one_hot: np.ndarray = np.zeros((len(labels), len(self.labels)))
        one_hot[:, Counter(labels.tolist()).most_common(1)[0][0]] = 1
        return one_hot

    def predictions(self, rows: Dataset, logits: np.ndarray) -> Predictions:
        """The columns of a predictions' file."""
        return {
            "label": list(rows["labels"]),
            "prediction": self.predict(logits).tolist(),
            "logits": [row.tolist() for row in logits.reshape(len(logits), -1)],
        }

    def prediction(self, logits: np.ndarray, texts: Sequence[str]) -> Prediction | None:
        """An answer from a row's logits [k, C], where it is more than labels; None: it is not.

        `texts` is what is shown of the row."""
        return None

    def summary(self, rows: Dataset) -> str:
        """What the right answers of a split are, in a few words; "" where there is no saying."""
        return ""

    def described(self, prediction: Any) -> str:
        """One of `predictions`, for a reader."""
        return str(prediction)

    @property
    def read_with(self) -> tuple[str, str]:
        """For a model's card: what a pipeline is called with beside the input, and the expression
        that makes an answer of `logits`; pieces of Python."""
        return "", "model.config.id2label[logits.argmax(-1).item()]"

    def usage_of(self, inputs: str) -> str:
        """For a model's card: lines of Python that print its answer to `inputs`."""
        return f"logits = model(**{inputs}).logits\nprint({self.read_with[1]})"

    @property
    def read_off(self) -> dict[str, object]:
        """What was read off the data for settings of the task that were null, by key."""
        return {}

    @property
    def notes(self) -> list[str]:
        """What a reader should know of how the data's answers were read."""
        return []

    def check(self, model: Model, config: PretrainedConfig, where: str) -> None:  # noqa: B027
        """Raise `UserError` for a model that cannot answer so."""
