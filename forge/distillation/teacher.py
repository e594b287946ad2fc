"""Teachers: frozen models with a processor of their own, checked against the task and combined."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forge.config.schema import Model, Teacher
from forge.data import fingerprints
from forge.errors import UserError
from forge.inputs.input import Processor
from forge.models import heads, loading
from forge.tasks.answer import Answer, Predictions
from forge.tasks.task import Task
from forge.training.gate import require_better
from forge.training.preparation import Prepared

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
Logits: TypeAlias = NDArray[np.float32]  # [K, labels], K the rows or their words
NAMES = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type",
    "transformers_version",
)  # fmt: skip
MOST_PERMUTED = 6  # labels; 720 orders to try


@dataclass
class FrozenTeacher:
    """A teacher's model and processor; its logits [rows, labels] are put into `order`."""

    model: PreTrainedModel
    processor: Processor
    order: list[int] | slice  # for each label (or token) the column that the model gives it
    unnamed: bool  # its labels are LABEL_0 …; their order is yet to be matched

    @property
    def name(self) -> str:
        return str(self.model.config.name_or_path)

    def to(self, device: torch.device | str) -> None:
        """Move the model."""
        nn.Module.to(self.model, device)

    @property
    def vocabulary(self) -> slice:
        """Of a language model the columns of logits that are tokens; others are padding."""
        assert isinstance(self.order, slice)
        return self.order

    @cached_property
    def digest(self) -> str:
        """A hash of the weights."""
        state = self.model.state_dict().items()
        return fingerprints.fingerprint(
            [(name, fingerprints.digest(tensor.cpu().numpy().tobytes())) for name, tensor in state]
        )

    @property
    def settings(self) -> dict[str, object]:
        """What of the config decides on the answers: all but names and versions."""
        config = self.model.config.to_dict()
        return {key: value for key, value in config.items() if key not in NAMES}

    def encode(self, rows: Dataset, prepared: Prepared) -> Dataset:
        """The rows as the teacher reads them: its own processor, its own limit."""
        task = prepared.task
        limit = task.input.limit(self.processor, self.model.config)
        return task.encode(rows, self.processor, limit, prepared.config.cache_dir)


@dataclass(frozen=True)
class Measured:
    """What teachers score: for the record, and their answers to the evaluation splits."""

    record: dict[str, object]
    predictions: dict[str, Predictions]


def load(model: Model, prepared: Prepared) -> FrozenTeacher:
    """The model at `teacher.path`, frozen; raises `UserError` when its labels are others."""
    task = prepared.task
    processor = task.input.load_processor(model, prepared.rows[task.train], "teacher")
    config = loading.load_config(model, task.input.fitting(processor), "teacher")
    task.check(model, processor, config, "teacher")
    if task.head.labels is not None:
        task.input.make_ready(processor, config)
    names = list((config.id2label or {}).values())  # before the task's take their place
    loaded = loading.load(model, task.head, config, "teacher")
    loaded.eval().requires_grad_(False)
    labels = task.head.labels
    if labels is None:
        vocabulary = slice(max(processor.get_vocab().values()) + 1)
        return FrozenTeacher(loaded, processor, vocabulary, False)
    unnamed = task.head.named and len(labels) > 1 and heads.unnamed(names)
    return FrozenTeacher(loaded, processor, list(range(len(labels))), unnamed)


def shares(config: Teacher) -> list[float]:
    """The weight of each teacher, summing to 1."""
    count = len(config.models())
    given = config.weights or [1.0] * count
    if len(given) != count or min(given) < 0 or not sum(given) > 0:
        raise UserError(
            f"teacher.weights={config.weights}: one of 0 or more for each of {count} teachers"
        )
    return [weight / sum(given) for weight in given]


def combine(logits: list[Tensor], weights: list[float], answer: Answer) -> Tensor:
    """One teacher's logits [rows, labels] as they are; of several `Answer.average`."""
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack([each.float() for each in logits])
    return answer.average(stacked, torch.tensor(weights, device=stacked.device))


def measure(
    teachers: list[FrozenTeacher],
    prepared: Prepared,
    gate: bool,
    answers: Callable[[FrozenTeacher, str], Logits],
) -> Measured:
    """Scores of the teachers on the evaluation splits, beside the trivial one.

    `answers` gives a teacher's own logits [rows, labels] of a split. An unnamed head (LABEL_0 …)
    is first put into the order that fits the labels best. With `gate` raises `UserError` for a
    teacher that is no better than the trivial answer on the first split.
    """
    task, first = prepared.task, prepared.task.evaluation[0]
    labels = {split: task.answer.right(prepared.rows[split]) for split in task.evaluation}
    baseline = task.baseline(prepared.rows[first], prepared.splits[first])
    logits: dict[str, list[Logits]] = {split: [] for split in task.evaluation}
    for teacher in teachers:
        own = {split: answers(teacher, split) for split in task.evaluation}
        if teacher.unnamed:
            teacher.order = _best_order(own[first], np.hstack(labels[first]), task)
        for split in task.evaluation:
            logits[split].append(own[split][:, teacher.order])
        value = task.judge(logits[first][-1], labels[first])[task.headline]
        require_better(task, teacher.name, value, baseline, first, gate)
    weights = shares(prepared.config.teacher)
    scores: dict[str, dict[str, float]] = {}
    predictions: dict[str, Predictions] = {}
    for split in task.evaluation:
        combined = combine([*map(torch.from_numpy, logits[split])], weights, task.answer).numpy()
        rows = prepared.rows[split]
        predictions[split] = {"id": list(rows["id"]), **task.answer.predictions(rows, combined)}
        scores[split] = task.judge(combined, labels[split])
    if len(teachers) > 1:
        log.info(
            "teachers together, their probabilities averaged (weights %s): %s %.4f",
            ", ".join(f"{weight:.3g}" for weight in weights),
            task.headline,
            scores[first][task.headline],
        )
    digests = [teacher.digest for teacher in teachers]
    if digests != prepared.recorded.get("teacher", {}).get("digests", digests):
        log.warning("teacher: its weights are not those that this run began with")
    paths = [teacher.name for teacher in teachers]
    record = {"paths": paths, "digests": digests, "splits": scores, "baseline": baseline}
    return Measured(record, predictions)


def _best_order(logits: Logits, labels: NDArray[np.int64], task: Task) -> list[int]:
    """The order of an unnamed head's columns with the best accuracy; shown with its margin."""
    names = task.head.labels or ()
    if len(names) > MOST_PERMUTED or task.answer.several:
        raise UserError(
            f"teacher: its {len(names)} labels are unnamed (LABEL_0 …), too many to match by "
            "trial; write their names into id2label of its config.json"
        )
    answers = logits.argmax(-1)
    scores = {
        order: float(np.mean(np.asarray(order)[labels] == answers))
        for order in permutations(range(len(names)))
    }
    best, second = sorted(scores, key=lambda o: -scores[o])[:2]
    if scores[best] - scores[second] < 2 / len(labels) ** 0.5:
        raise UserError(
            f"teacher: its labels are unnamed (LABEL_0 …) and no order stands out (best "
            f"{scores[best]:.3f}, second {scores[second]:.3f}); write their names into id2label of "
            "its config.json"
        )
    log.warning(
        "teacher: unnamed labels matched by trial: %s (accuracy %.3f, next best order %.3f)",
        ", ".join(f"LABEL_{c}={n}" for c, n in zip(best, names, strict=True)),
        scores[best],
        scores[second],
    )
    return list(best)
