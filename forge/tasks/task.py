"""A task: an input, an answer, the rows that hold both, and how answers are judged."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from forge.data import cache, sources
from forge.errors import UserError, did_you_mean
from forge.inputs.input import Batch, Collator, Input, Processor, for_model
from forge.inputs.prompt import Prompt
from forge.models.forward import Pass, in_batches
from forge.models.heads import Head
from forge.tasks import metrics
from forge.tasks.answer import Answer, Evaluation, Labels, Scores
from forge.tasks.decisions import PLAIN, Decisions, Objective, mean
from forge.tasks.decoding import Reader
from forge.tasks.objective import advise
from forge.tasks.text import Written

if TYPE_CHECKING:
    import transformers
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import EvalPrediction, PretrainedConfig

    from forge.config.schema import Model

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Task:
    """What is read and what is asked.

    `evaluation` names the splits that are judged; the first one chooses the best checkpoint and
    gives the headline. `max_rows` keeps the first rows of every split. `unlabelled_split` holds
    rows without answers, which mode=kd learns from at mode.alpha=1.
    """

    input: Input
    answer: Answer
    auto: str  # of the model: transformers.AutoModelFor…
    pipeline: str  # of transformers, for the model's card
    peft_type: str | None = None  # peft.TaskType
    dataset: Callable[[], sources.Source]
    metrics: list[str]
    headline: str
    train: str = "train"
    evaluation: list[str] = field(default_factory=lambda: ["validation"])
    max_rows: int | None = None
    unlabelled_split: str | None = None

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"task.max_rows={self.max_rows}: at least 1, or null for all rows")
        if self.headline not in (*self.metrics, *map(metrics.named, self.metrics)):
            raise UserError(
                f"task.headline={self.headline}: not one of task.metrics"
                + did_you_mean(self.headline, self.metrics)
            )
        if not self.evaluation:
            raise UserError("task.evaluation=[]: name at least one split to judge by")
        self.modules = metrics.load(self.metrics)
        self.metrics = [metrics.named(name) for name in self.metrics]
        self.headline = metrics.named(self.headline)
        if twice := [name for name, count in Counter(self.metrics).items() if count > 1]:
            raise UserError(f"task.metrics: two of them are called {twice[0]}; leave one out")
        for name, module in zip(self.metrics, self.modules, strict=True):
            if not self.answer.judged_by(metrics.facts(module)):
                raise UserError(f"metric {name}: it does not judge a {self.answer.problem_type}")

    def questions(
        self, columns: sources.Columns, where: str, processor: Processor, limit: int
    ) -> sources.Columns:
        """Prompts to be answered, encoded, of a task whose answers are texts."""
        assert isinstance(self.input, Prompt)
        return self.input.questions(columns, where, processor, limit)

    @property
    def greater_is_better(self) -> bool:
        """Whether a higher headline is a better one."""
        return metrics.facts(self.modules[self.metrics.index(self.headline)]).greater_is_better

    @property
    def head(self) -> Head:
        """What the task asks of a model; its labels are known once rows are loaded."""
        answer = self.answer
        of_labels = (answer.labels, answer.problem_type, self.peft_type, answer.scale, answer.named)
        return Head(self.auto, *of_labels)

    @property
    def written(self) -> Written:
        """The answer of a task whose answers are texts (`alignment` token)."""
        assert isinstance(self.answer, Written)
        return self.answer

    def load(self, training: bool = True) -> dict[str, Dataset]:
        """The rows of the train split (when `training`) and of those that judge.

        Columns: `id` (the row's number in its source), what the input keeps, the answers. Rows of
        the unlabelled split have -1 minus their number and `Answer.unknown`. Raises `UserError` for
        what cannot be learnt from.
        """
        source = self.dataset()
        names = [self.train, *self.evaluation] if training else self.evaluation
        splits = {split: self._split(source, split) for split in names}
        if self.unlabelled_split and training:
            splits[self.unlabelled_split] = self._unlabelled(source, self.unlabelled_split)
        if training:
            self.answer.fit(splits[self.train])
            advise(self.answer, splits[self.train], self.headline, self.metrics)
        self.answer.check_metrics(self.metrics)
        return splits

    def _split(self, source: sources.Source, split: str) -> Dataset:
        columns = sources.read(
            source, split, [*self.input.columns, *self.answer.columns], self.input.optional
        )
        if self.answer.every_row:
            columns = {name: values[: self.max_rows] for name, values in columns.items()}
        inputs = self.input.rows(columns, split)
        answers = self.answer.rows(columns, inputs, split)
        marks = next(iter(answers.values()))
        kept = [i for i, value in enumerate(marks) if value is not None]
        if len(kept) < len(marks):
            log.warning("%s: %d rows without a label skipped", split, len(marks) - len(kept))
        if not kept:
            raise UserError(f"split {split}: none of its {len(marks)} rows has a label")
        kept = kept[: self.max_rows]
        chosen = {n: [values[i] for i in kept] for n, values in {**inputs, **answers}.items()}
        return sources.dataset({"id": kept, **chosen})

    def _unlabelled(self, source: sources.Source, split: str) -> Dataset:
        columns = sources.read(source, split, self.input.columns)
        inputs = {n: v[: self.max_rows] for n, v in self.input.rows(columns, split).items()}
        ids = range(len(inputs[self.input.kept[0]]))
        labels = self.answer.unknown(inputs, len(ids))
        return sources.dataset({"id": [-1 - i for i in ids], **inputs, "labels": labels})

    def check(
        self, model: Model, processor: Processor, config: PretrainedConfig, where: str
    ) -> None:
        """Raise `UserError` for a model that does not read the input, or cannot answer."""
        self.input.check(model, processor, config, where)
        self.answer.check(model, config, where)

    def encode(
        self, rows: Dataset, processor: Processor, limit: int, cache_dir: str | None
    ) -> Dataset:
        """The rows of a split as a model reads them (`Input.encode`)."""
        encoded = self.input.encode(rows, processor, limit, cache.cache_directory(cache_dir))
        return self.answer.encoded(encoded, processor)

    def collator(self, processor: Processor, multiple: int | None, *extra: str) -> Collator:
        """What makes batches of encoded rows."""
        return self.input.collator(processor, multiple, *extra)

    def logits(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """A model's logits by rows (`Answer.of_rows`)."""
        return self.answer.of_rows(outputs, batch)

    def logits_of(
        self,
        model: nn.Module,
        encoded: Dataset,
        collate: Collator,
        how: Pass,
        over_ranks: bool = False,
    ) -> NDArray[np.float32]:
        """A model's logits [K, C] in the order of the encoded rows, whatever their labels; K is
        the number of rows, or of their words."""
        return np.concatenate(self.logits_by_row(model, encoded, collate, how, over_ranks))

    def logits_by_row(
        self,
        model: nn.Module,
        encoded: Dataset,
        collate: Collator,
        how: Pass,
        over_ranks: bool = False,
    ) -> list[NDArray[np.float32]]:
        """The same row by row: [k, C] of each, k 1 or the number of its words."""

        def answer(batch: dict[str, Tensor]) -> list[Tensor]:
            logits = self.logits(model(**for_model(batch)), batch).float()
            return [row.cpu() for row in self.answer.each(logits, batch)]

        title, lengths = "Asking the model", list(encoded["length"])
        rows = in_batches(
            model,
            encoded,
            collate,
            answer,
            how,
            lengths=lengths,
            title=title,
            over_ranks=over_ranks,
        )
        return [row.numpy() for row in rows]

    def loss(
        self, decisions: Decisions, items: Tensor | int, objective: Objective = PLAIN
    ) -> Tensor:
        """The task's loss: a sum over decisions, divided by the items of the whole step."""
        return mean(self.answer.loss(decisions, objective), items)

    def judge(self, logits: np.ndarray, labels: Labels) -> dict[str, float]:
        """Every metric of the task, from logits [K, C] and right answers (`Answer.right`)."""
        return {name: self._score(name, logits, labels) for name in self.metrics}

    def _score(self, name: str, logits: np.ndarray, labels: Labels) -> float:
        module = self.modules[self.metrics.index(name)]
        compared = self.answer.compared(metrics.facts(module), labels, logits)
        return metrics.score(name, module, *compared)

    def is_better(self, value: float, than: float) -> bool:
        """Whether one headline is better than another."""
        return value > than if self.greater_is_better else value < than

    def baseline(self, rows: Dataset, encoded: Dataset) -> float:
        """The headline of always giving the commonest answer (`Answer.trivial`)."""
        if isinstance(self.answer, Written):
            return self.answer.baseline_score(encoded, self.headline)
        labels = self.answer.right(rows)
        return self.judge(self.answer.baseline(labels), labels)[self.headline]

    def compute_metrics(self, output: EvalPrediction) -> dict[str, float]:
        """As `transformers.Trainer` asks for the metrics."""
        labels: Any = output.label_ids
        return self.judge(first(output.predictions), labels)

    def quick_evaluation(self, trainer: transformers.Trainer, split: Dataset) -> Scores | None:
        """Scores of an evaluation in training; None where `compute_metrics` gives them."""
        if isinstance(self.answer, Written):
            return self.answer.quick_evaluation(Reader.of(trainer), split)
        if self.answer.whole:
            scores, _ = self._of_rows(trainer, split)
            return scores
        return None

    def evaluate(
        self, trainer: transformers.Trainer, split: Dataset, tune: bool = False
    ) -> Evaluation:
        """Judge the trainer's model on an encoded split, which with `tune` the answer is tuned on
        beforehand (`Answer.tune`)."""
        if isinstance(self.answer, Written):
            return self.answer.evaluation(Reader.of(trainer), split)
        started = time.monotonic()
        if self.answer.whole:
            scores, logits = self._of_rows(trainer, split)
            seconds = time.monotonic() - started
            if tune and (tuned := self._tuned(trainer, logits, self.answer.right(split))):
                scores |= tuned
            timings = _timings(len(split), seconds, len(split) / seconds)
            return Evaluation(scores | timings, self.answer.predictions(split, logits))
        output = trainer.predict(split)
        logits = first(output.predictions)
        scores = {k.removeprefix("test_"): v for k, v in (output.metrics or {}).items()}
        timings = _timings(len(logits), scores["runtime"], scores["samples_per_second"])
        if tune and (tuned := self._tuned(trainer, logits, output.label_ids)):
            scores |= tuned
        asked = {k: scores[k] for k in (*self.metrics, "loss") if k in scores}
        return Evaluation(asked | timings, self.answer.predictions(split, logits))

    def _tuned(self, trainer: transformers.Trainer, logits: np.ndarray, labels: Any) -> Scores:
        """Every metric once the answer is tuned on the split; none where nothing is tuned."""
        model: Any = trainer.model

        def headline() -> float:
            value = self._score(self.headline, logits, labels)
            return value if self.greater_is_better else -value

        tuned = self.answer.tune(headline, model.config, logits)
        return self.judge(logits, labels) if tuned else {}

    def _of_rows(self, trainer: transformers.Trainer, split: Dataset) -> tuple[Scores, np.ndarray]:
        """Metrics and loss over all decisions of a split, and its logits [K, C]."""
        model: Any = trainer.model
        collate: Any = trainer.data_collator
        logits = self.logits_of(model, split, collate, Pass.of(trainer.args), over_ranks=True)
        labels = self.answer.right(split)
        batch = {"labels": torch.as_tensor(np.concatenate(list(split["labels"])))}
        decisions = self.answer.decisions(torch.from_numpy(logits), batch)
        smoothed = Objective(trainer.args.label_smoothing_factor)
        loss = self.loss(decisions, self.answer.items(batch), smoothed)
        return self.judge(logits, labels) | {"loss": float(loss)}, logits


def _timings(rows: int, seconds: float, rate: float) -> Scores:
    return {"n": rows, "seconds": round(seconds, 3), "examples_per_second": round(rate, 2)}


def first(predictions: Any) -> Any:
    """Logits of shape [rows, C]; some models return more beside them."""
    return predictions[0] if isinstance(predictions, tuple) else predictions
