"""Metrics and predictions of the evaluation splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge import ranks

if TYPE_CHECKING:
    from datasets import Dataset

    from forge.tasks.task import Task
    from forge.training.trainer import Trainer


def judge(trainer: Trainer, task: Task, splits: dict[str, Dataset], folder: Path) -> dict[str, Any]:
    """Metrics of every evaluation split and the headline; writes predictions/ in `folder`."""
    from forge.training.trainer import memory

    results: dict[str, Any] = {"splits": {}}
    for name in task.evaluation:
        with memory(trainer.args, "per_device_eval_batch_size"):
            results["splits"][name], columns = task.examine(trainer, splits[name])
        if not ranks.rank():
            write_predictions(folder / "predictions" / f"{name}.parquet", splits[name], columns)
    split = task.evaluation[0]
    value = results["splits"][split][task.headline]
    results["headline"] = {"metric": task.headline, "split": split, "value": value}
    return results


def write_predictions(path: Path, split: Dataset, columns: dict[str, list[Any]]) -> None:
    """Per example, in the order of ids: id, label, prediction, and what else the task says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(split["id"]), **columns}).sort_by("id"), path)
