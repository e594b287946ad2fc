"""The task of a recorded run, built again as its training had it."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from forge.config.check import build, check, locate
from forge.errors import UserError
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


def require_own_code(node: Mapping[str, Any]) -> None:
    """Raise `UserError` for a task's node whose `_target_` or metrics are not Forge's own.

    For those who only read a run directory, which may be anybody's: code that it names is not run.
    """
    metrics = [name for name in node.get("metrics") or () if os.sep in name]
    for code in (*metrics, *_targets(node)):
        if code in metrics or not _is_own(code):
            raise UserError(f"{code}: code that is not Forge's own is not run to read a run back")


def _is_own(target: str) -> bool:
    """Whether an import path is of a class or function of Forge's tasks, inputs and data."""
    if not target.startswith(("forge.tasks.", "forge.inputs.", "forge.data.")):
        return False
    callee = locate(target, "task")
    return f"{callee.__module__}.{callee.__qualname__}" == target  # nothing that it imports


def _targets(node: object) -> Iterator[str]:
    """Every `_target_` of nested values."""
    if isinstance(node, Mapping):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from _targets(value)


def as_trained(
    node: Mapping[str, Any],
    metadata: Mapping[str, Any],
    head: PretrainedConfig,
    given: Container[str] = (),
) -> dict[str, Any]:
    """A task's node in which what is open is as the run's training had it: labels, kind, length,
    standardisation, decimal sign.

    `given` are keys that were set for this. Of files the training rows are not read.
    """
    read_off = metadata.get("read_off", {})
    filled = {key: read_off.get(key) if value is None else value for key, value in node.items()}
    if "max_length" in filled and "task.max_length" not in given:
        filled["max_length"] = metadata.get("max_length", filled["max_length"])
    if "problem_type" in filled and filled["problem_type"] is None:
        filled["problem_type"] = "regression" if head.num_labels == 1 else "classification"
    if "labels" in filled and filled["labels"] is None and len(head_names(head)) > 1:
        filled["labels"] = head_names(head)
    if "standardize" in filled and filled["standardize"] is None and head.num_labels == 1:
        scale = Scale.of(head)
        filled["standardize"] = [scale.mean, scale.std]
    if filled.get("threshold") == "tuned":
        filled["threshold"] = getattr(head, "threshold", 0.5)
    if isinstance(filled.get("files"), dict):
        judged = any(f"task.files.{split}" in given for split in JUDGED)
        unread = ("train", *JUDGED) if judged else ("train",)
        if judged and "task.evaluation" not in given:
            filled["evaluation"] = None  # what is given is judged
        filled["files"] = {
            split: None if split in unread and file == MISSING else file
            for split, file in filled["files"].items()
        }
    return filled
