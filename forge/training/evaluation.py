"""Metrics and predictions of the evaluation splits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forge import ranks
from forge.inputs.input import Collator
from forge.models.forward import Pass, in_batches
from forge.tasks.answer import Predictions, Scores
from forge.training.memory import memory
from forge.training.trainer import Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn


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
            evaluation = task.evaluate(trainer, splits[name])
        scores[name] = evaluation.scores
        if not ranks.rank():
            file = folder / "predictions" / f"{name}.parquet"
            write_predictions(file, splits[name], evaluation.predictions)
    split = task.evaluation[0]
    return Results(scores, Headline(task.headline, split, scores[split][task.headline]))


def logits_of(
    model: nn.Module, encoded: Dataset, collate: Collator, how: Pass
) -> NDArray[np.float32]:
    """A model's logits [rows, C] in the order of the encoded rows, whatever their labels."""

    def answer(batch: dict[str, Tensor]) -> list[Tensor]:
        inputs = {name: part for name, part in batch.items() if name not in ("id", "labels")}
        return list(model(**inputs).logits.float().cpu())

    lengths = list(encoded["length"])
    rows = in_batches(
        model, encoded, collate, answer, how, lengths=lengths, title="Asking the model"
    )
    return np.stack([row.numpy() for row in rows]).reshape(len(rows), -1)


def write_predictions(path: Path, split: Dataset, columns: Predictions) -> None:
    """Per example, in the order of ids: id, label, prediction, and what else the task says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(split["id"]), **columns}).sort_by("id"), path)
