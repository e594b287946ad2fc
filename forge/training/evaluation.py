"""Metrics and predictions of the evaluation splits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge import ranks
from forge.tasks.answer import Predictions, Scores
from forge.training.memory import memory
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset


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

    def plain(self) -> dict[str, object]:
        """As in results.json."""
        return asdict(self)


def judge(trainer: Trainer, splits: dict[str, Dataset], folder: Path) -> Results:
    """Metrics of every evaluation split and the headline; writes predictions/ in `folder`."""
    task, scores = trainer.task, {}
    for name in task.evaluation:
        with memory(trainer.args, "per_device_eval_batch_size"):
            evaluation = task.evaluate(trainer, splits[name], tune=name == task.evaluation[0])
        scores[name] = evaluation.scores
        if not ranks.rank():
            file = folder / "predictions" / f"{name}.parquet"
            write_predictions(file, splits[name], evaluation.predictions)
    split = task.evaluation[0]
    return Results(scores, Headline(task.headline, split, scores[split][task.headline]))


def write_predictions(path: Path, split: Dataset, columns: Predictions) -> None:
    """Per example, in the order of ids: id, label, prediction, and what else the task says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(split["id"]), **columns}).sort_by("id"), path)
