"""Metrics and predictions of the evaluation splits."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge import ranks
from forge.tasks.answer import Predictions, Scores
from forge.tasks.metrics import constant
from forge.training import shown
from forge.training.memory import memory
from forge.training.preparation import Prepared
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Headline:
    """The number that a run is judged by."""

    metric: str
    split: str
    value: float


@dataclass(frozen=True)
class Results:
    """What a run's model scores."""

    splits: dict[str, Scores]
    headline: Headline
    baseline: dict[str, float]  # of each split, the headline of always giving the commonest answer

    def plain(self) -> dict[str, object]:
        """As in results.json."""
        return asdict(self)


def judge(trainer: Trainer, prepared: Prepared, folder: Path) -> Results:
    """Metrics of every evaluation split and the headline; writes predictions/ and rows/ in
    `folder`."""
    task, scores, baseline, splits = trainer.task, {}, {}, prepared.splits
    for name in task.evaluation:
        with memory(trainer.args, "per_device_eval_batch_size"):
            evaluation = task.evaluate(trainer, splits[name], tune=name == task.evaluation[0])
        scores[name] = evaluation.scores
        baseline[name] = task.baseline(splits[name], splits[name])
        _log_trivial(name, task, evaluation.predictions, baseline[name])
        if not ranks.rank():
            file = f"{name}.parquet"
            split = prepared.splits[name]
            write_predictions(folder / "predictions" / file, split, evaluation.predictions)
            cache_dir = prepared.config.cache_dir
            shown.write(folder / shown.FOLDER / file, task.input, prepared.rows[name], cache_dir)
    split = task.evaluation[0]
    headline = Headline(task.headline, split, scores[split][task.headline])
    return Results(scores, headline, baseline)


def _log_trivial(split: str, task: Task, predictions: Predictions, baseline: float) -> None:
    """Log what always giving the commonest answer scores; warn of a model that does the like."""
    log.info("%s: %s of %s: %.4f", split, task.headline, task.answer.trivial, baseline)
    answers, right = predictions["prediction"], predictions["label"]
    if task.answer.alignment == "word":
        answers, right = ([tag for row in rows for tag in row] for rows in (answers, right))
    if constant(answers) and not constant(right):
        log.warning(
            "%s: the model gives one answer, %s, to all %s rows; train longer, or at a higher rate",
            split,
            task.answer.described(answers[0]) or "none",
            f"{len(answers):,}",
        )


def write_predictions(path: Path, split: Dataset, columns: Predictions) -> None:
    """Per example, in the order of ids: id, label, prediction, and what else the task says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(split["id"]), **columns}).sort_by("id"), path)
