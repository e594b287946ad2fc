"""The task of a recorded run, built again as its training had it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from forge.config.check import build, check
from forge.models.heads import head_names
from forge.models.scaling import Scale
from forge.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

JUDGED = ("validation", "test")  # files that a task of files judges by
MISSING = "???"  # a value that is still to be given


def recorded_task(metadata: Mapping[str, Any], head: PretrainedConfig) -> Task:
    """The task of a run whose model has this config; reads no data. Raises `UserError`."""
    node = as_trained(metadata["config"]["task"], metadata, head)
    task: Task = build(check(node, "task"), "task")
    return task


def as_trained(
    node: Mapping[str, Any],
    metadata: Mapping[str, Any],
    head: PretrainedConfig,
    given: Container[str] = (),
) -> dict[str, Any]:
    """A task's node in which what is open is as the run's training had it: labels, kind, length,
    standardisation.

    `given` are keys that were set for this. Of files the training rows are not read.
    """
    filled = dict(node)
    if "max_length" in filled and "task.max_length" not in given:
        filled["max_length"] = metadata.get("max_length", filled["max_length"])
    if "problem_type" in filled and filled["problem_type"] is None:
        filled["problem_type"] = "regression" if head.num_labels == 1 else "classification"
    if "labels" in filled and filled["labels"] is None and len(head_names(head)) > 1:
        filled["labels"] = head_names(head)
    if "standardize" in filled and filled["standardize"] is None and head.num_labels == 1:
        scale = Scale.of(head)
        filled["standardize"] = [scale.mean, scale.std]
    if isinstance(filled.get("files"), dict):
        judged = any(f"task.files.{split}" in given for split in JUDGED)
        unread = ("train", *JUDGED) if judged else ("train",)
        filled["files"] = {
            split: None if split in unread and file == MISSING else file
            for split, file in filled["files"].items()
        }
    return filled
