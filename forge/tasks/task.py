"""What is learnt, and how an answer is judged: one class per kind of problem, one yaml per task.

A task reads and checks its rows, names its labels, gives the model its head (`problem_type`,
`num_labels`) and turns logits into predictions and metrics.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from forge.data import sources
from forge.errors import UserError, did_you_mean
from forge.inputs import text as inputs_text

if TYPE_CHECKING:
    import transformers
    from datasets import Dataset
    from evaluate import EvaluationModule
    from transformers import EvalPrediction, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
UNLABELLED = "unlabelled"
AMBIGUOUS = ("-1", "None", "nan", "NaN")  # GLUE's mark of an unlabelled row, or a label's name


@dataclass(kw_only=True)
class Task(ABC):
    """What every kind of task says of itself, and what it does in the flow of a run.

    `evaluation` names the splits that are judged; the first one chooses the best checkpoint and
    gives the headline. `max_rows` keeps the first rows of every split.
    """

    dataset: Callable[[], sources.Source]
    metrics: list[str]
    headline: str
    train: str = "train"
    evaluation: list[str] = field(default_factory=lambda: ["validation"])
    max_length: int | None = None  # tokens; null: as long as the model can read
    max_rows: int | None = None
    unlabelled_split: ClassVar[str | None] = None

    head: ClassVar[str]  # of the model, as in transformers.AutoModelFor…
    in_training: ClassVar[Callable[..., Any] | None] = None  # for `Trainer.in_training`

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"task.max_rows={self.max_rows}: at least 1, or null for all rows")
        if self.headline not in self.metrics:
            raise UserError(
                f"task.headline={self.headline}: not one of task.metrics"
                + did_you_mean(self.headline, self.metrics)
            )
        if not self.evaluation:
            raise UserError("task.evaluation=[]: name at least one split to judge by")
        self.modules: list[EvaluationModule] = _load_metrics(self.metrics)
        for name, module in zip(self.metrics, self.modules, strict=True):
            if not self.judged_by(module):
                raise UserError(f"metric {name}: it does not judge a {self.problem_type}")

    @abstractmethod
    def judged_by(self, metric: EvaluationModule) -> bool:
        """Whether a metric is for answers of this kind."""

    @property
    @abstractmethod
    def problem_type(self) -> str:
        """As in `transformers.PretrainedConfig.problem_type`, or generation."""

    @property
    def greater_is_better(self) -> bool:
        """Whether a higher headline is a better one."""
        module = self.modules[self.metrics.index(self.headline)]
        return bool(getattr(module, "greater_is_better", True))

    @abstractmethod
    def load(self, training: bool = True) -> dict[str, Dataset]:
        """The rows of the train split (when `training`) and of those that judge, with an `id` each.

        Raises `UserError` for useless ones.
        """

    @abstractmethod
    def texts(self, rows: Dataset) -> Iterator[str]:
        """All texts of a split, for a tokenizer to be trained on."""

    def make_ready(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027  # optional
        """Set a tokenizer up; raises `UserError` for one that will not do."""

    @abstractmethod
    def tokenize(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, cache_dir: Path
    ) -> Dataset:
        """The rows of a split as tokens, with `length` and `truncated`."""

    @abstractmethod
    def collator(
        self, tokenizer: PreTrainedTokenizerBase, multiple: int | None
    ) -> inputs_text.Collator:
        """What makes padded batches of tokenised rows."""

    @abstractmethod
    def examine(
        self, trainer: transformers.Trainer, split: Dataset
    ) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Judge a tokenised split: its scores, and its predictions as columns of a table."""


@dataclass(kw_only=True)
class TextTask(Task):
    """One or two texts in, one answer out.

    `unlabelled_split` holds texts that mode=kd learns from at mode.alpha=1.
    """

    text: list[str] | str
    label: str
    unlabelled_split: str | None = None  # type: ignore[misc]  # here it is a setting
    head = "SequenceClassification"
    dtype: ClassVar[str]  # of predictions and references

    def __post_init__(self) -> None:
        self.text = [self.text] if isinstance(self.text, str) else list(self.text)
        if len(self.text) not in (1, 2):
            raise UserError(f"task.text={self.text}: one or two text columns are needed")
        super().__post_init__()
        self.text_columns = [f"text_{i}" for i in range(len(self.text))]

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """Width of the model's head."""

    @abstractmethod
    def encode(self, values: list[Any], split: str) -> list[Any]:
        """The label column as ids or numbers; None where a row has no label."""

    @abstractmethod
    def predict(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Answers from logits of shape [rows, num_labels]."""

    def load(self, training: bool = True) -> dict[str, Dataset]:
        """The train (when `training`) and evaluation splits: id, text_0 (and text_1), labels.

        `id` is the row's number in its source; in the unlabelled split it is -1 minus that, and
        `labels` is -1. Raises `UserError` for what cannot be learnt from.
        """
        source = self.dataset()
        names = [self.train, *self.evaluation] if training else self.evaluation
        splits = {split: self._split(source, split) for split in names}
        if self.unlabelled_split and training:
            texts = self._columns(source, self.unlabelled_split)
            kept = range(len(texts[self.text[0]]))[: self.max_rows]
            columns = self._rows(
                texts, list(kept), [np.dtype(self.dtype).type(-1).item()] * len(kept)
            )
            columns["id"] = [-1 - i for i in kept]
            splits[self.unlabelled_split] = sources.dataset(columns)
        return splits

    def _columns(self, source: sources.Source, split: str, *more: str) -> dict[str, list[Any]]:
        columns = sources.read(source, split, [*self.text, *more])
        for column in self.text:
            columns[column] = texts(columns[column], split, column)
        return columns

    def _rows(
        self, columns: dict[str, list[Any]], kept: list[int], labels: list[Any]
    ) -> dict[str, list[Any]]:
        named = zip(self.text_columns, self.text, strict=True)
        texts = {name: [columns[column][i] for i in kept] for name, column in named}
        return {"id": kept, **texts, "labels": labels}

    def _split(self, source: sources.Source, split: str) -> Dataset:
        columns = self._columns(source, split, self.label)
        labels = self.encode(columns[self.label], split)
        kept = [i for i, value in enumerate(labels) if value is not None]
        if len(kept) < len(labels):
            log.warning("%s: %d rows without a label skipped", split, len(labels) - len(kept))
        if not kept:
            raise UserError(f"split {split}: none of its {len(labels)} rows has a label")
        kept = kept[: self.max_rows]
        return sources.dataset(self._rows(columns, kept, [labels[i] for i in kept]))

    def judge(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Every metric of the task, from logits of shape [rows, num_labels]."""
        scores: dict[str, float] = {}
        for module in self.modules:
            scores |= module.compute(predictions=self.predict(logits), references=labels)
        return {name: float(value) for name, value in scores.items()}

    def compute_metrics(self, answers: EvalPrediction) -> dict[str, float]:
        """As `transformers.Trainer` asks for the metrics."""
        labels: Any = answers.label_ids
        return self.judge(first(answers.predictions), labels)

    def judged_by(self, metric: EvaluationModule) -> bool:
        of_texts = getattr(metric, "of_texts", False)
        return not of_texts and getattr(metric, "dtype", self.dtype) == self.dtype

    def texts(self, rows: Dataset) -> Iterator[str]:
        return (text for column in self.text_columns for text in rows[column])

    def tokenize(
        self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, cache_dir: Path
    ) -> Dataset:
        return inputs_text.tokenize(
            rows, tokenizer, text=self.text_columns, max_length=max_length, cache_dir=cache_dir
        )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase, multiple: int | None
    ) -> inputs_text.Collator:
        return inputs_text.Collator(tokenizer, multiple, "id")

    def examine(
        self, trainer: transformers.Trainer, split: Dataset
    ) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """The columns are label, prediction and logits."""
        output = trainer.predict(split)
        logits = first(output.predictions)
        found = {k.removeprefix("test_"): v for k, v in (output.metrics or {}).items()}
        scores = {k: found[k] for k in (*self.metrics, "loss") if k in found}
        return scores | {
            "n": len(logits),
            "seconds": round(found["runtime"], 3),
            "examples_per_second": round(found["samples_per_second"], 2),
        }, self.answers(split, logits)

    def answers(self, split: Dataset, logits: NDArray[Any]) -> dict[str, list[Any]]:
        """The columns of a predictions' file."""
        return {
            "label": list(split["labels"]),
            "prediction": self.predict(logits).tolist(),
            "logits": [row.tolist() for row in logits.reshape(len(logits), -1)],
        }


@dataclass(kw_only=True)
class Classification(TextTask):
    """One of `labels`, given by name in the order of their ids; data may hold names or ids.

    Without `labels` they are read off the train split, in sorted order.
    """

    labels: list[str | int] | None = None
    dtype = "int64"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.by_name: bool | None = None  # whether the data holds names or ids; train decides
        self.names = [str(name) for name in self.labels or ()]
        if len(set(self.names)) < len(self.names):
            raise UserError(f"task.labels={self.names}: a name occurs twice")
        if len(self.names) == 1:
            raise UserError(f"task.labels={self.names}: at least two labels are needed")

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def problem_type(self) -> str:
        return "single_label_classification"

    def encode(self, values: list[Any], split: str) -> list[int | None]:
        spelled = [_spell(value) for value in values]
        if not self.names:
            self.names = _infer(spelled, f"split {split}, column {self.label}")
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
            f"split {split}, column {self.label}: {', '.join(sorted(foreign)[:5])} (first in row "
            f"{first}) not among task.labels [{', '.join(self.names)}]; set task.labels=[…] to "
            "the data's names" + did_you_mean(str(spelled[first]), self.names, listed=False)
        )

    def load(self, training: bool = True) -> dict[str, Dataset]:
        splits = super().load(training)
        if "f1" in self.metrics and self.num_labels != 2:
            raise UserError(
                f"metric f1: it is for two labels, the task has {self.num_labels}; use f1_macro"
            )
        return splits

    def predict(self, logits: NDArray[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = np.argmax(logits, axis=-1)
        return answers


@dataclass(kw_only=True)
class Regression(TextTask):
    """A number; `unlabelled` is the value that marks a row without one."""

    unlabelled: float | None = None
    dtype = "float64"

    @property
    def num_labels(self) -> int:
        return 1

    @property
    def problem_type(self) -> str:
        return "regression"

    def encode(self, values: list[Any], split: str) -> list[float | None]:
        numbers = [_number(value) for value in values]
        wrong = [i for i, n in enumerate(numbers) if not math.isfinite(n)]
        if wrong:
            raise UserError(
                f"split {split}, column {self.label}: {len(wrong)} values are not finite numbers "
                f"(first: {values[wrong[0]]!r} in row {wrong[0]}); mend or remove those rows"
            )
        return [None if n == self.unlabelled else n for n in numbers]

    def predict(self, logits: NDArray[Any]) -> NDArray[Any]:
        return logits.reshape(len(logits), -1)[:, 0]


def from_files(
    *,
    files: dict[str, str | None],
    text: list[str] | str,
    label: str = "label",
    labels: list[str | int] | None = None,
    problem_type: str | None = None,
    metrics: list[str] | None = None,
    headline: str | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
) -> TextTask:
    """A task over the user's own files, one per split.

    `problem_type` is classification or regression; when it is not given, a train column with a
    number that is not whole means regression. Metrics default to those usual for the problem.
    """
    source: sources.Source = {
        split: [Path(file).expanduser()] for split, file in files.items() if file is not None
    }
    if problem_type is None:
        values = sources.read(source, "train", [label])[label]
        fractions = labels is None and any(not float(v).is_integer() for v in _numbers(values))
        problem_type = "regression" if fractions else "classification"
        log.info("problem type, read off %s: %s", label, problem_type)
    kinds = {
        "classification": ["accuracy", "f1_macro"],
        "regression": ["pearson", "spearman", "mse"],
    }
    if problem_type not in kinds:
        raise UserError(
            f"task.problem_type={problem_type}: no such kind{did_you_mean(problem_type, kinds)}"
        )
    metrics = metrics or list(
        dict.fromkeys([*([headline] if headline else ()), *kinds[problem_type]])
    )
    common: dict[str, Any] = {
        "dataset": lambda: source,
        "text": text,
        "label": label,
        "metrics": metrics,
        "headline": headline or metrics[0],
        "evaluation": [split for split in source if split not in ("train", UNLABELLED)],
        "unlabelled_split": UNLABELLED if UNLABELLED in source else None,
        "max_length": max_length,
        "max_rows": max_rows,
    }
    if problem_type == "regression":
        return Regression(**common)
    return Classification(**common, labels=labels)


def first(predictions: Any) -> Any:
    """Logits of shape [rows, num_labels]; some models return more beside them."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _load_metrics(names: list[str]) -> list[EvaluationModule]:
    from forge.tasks import metrics as tasks_metrics

    return tasks_metrics.load(names)


def texts(values: list[Any], split: str, column: str) -> list[str]:
    """A column as texts; raises `UserError` where a row has none."""
    missing = [i for i, value in enumerate(values) if value is None or value != value]
    odd = [i for i, value in enumerate(values) if not isinstance(value, str | int | float | None)]
    if odd:
        kind = type(values[odd[0]]).__name__
        raise UserError(f"split {split}, column {column}: row {odd[0]} holds a {kind}, not a text")
    if missing:
        raise UserError(
            f"split {split}, column {column}: {len(missing)} rows have no text (first: row "
            f"{missing[0]}); fill or remove them"
        )
    return [str(value) for value in values]


def _spell(value: Any) -> str | None:
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


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _numbers(values: list[Any]) -> list[float]:
    """The values as numbers, or nothing when any of them is a word."""
    numbers = [_number(v) for v in values if _spell(v) not in (None, *AMBIGUOUS)]
    return numbers if all(map(math.isfinite, numbers)) else []
