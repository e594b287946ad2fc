"""What the config asks of the task's loss: class weights, focal loss, label smoothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
import torch
from pydantic import Field

from forge.data.spelling import spell
from forge.errors import UserError, did_you_mean
from forge.tasks.answer import Answer
from forge.tasks.decisions import Objective

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
ClassWeights: TypeAlias = str | dict[str | int, float] | None
Gamma: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BALANCED = "balanced"
SKEWED, SHOWN = 10, 8  # times as many rows; weights in a line


def check(answer: Answer, smoothing: float, weights: ClassWeights, gamma: float) -> None:
    """Raise `UserError` for what the answer's loss has no place for; nothing is read."""
    asked = {
        "trainer.label_smoothing_factor": smoothing,
        "mode.class_weights": weights,
        "mode.focal_gamma": gamma,
    }
    for key, value in asked.items():
        if value and not answer.distribution:
            raise UserError(f"{key}={value}: a {answer.problem_type} has no classes; leave it out")
    if not 0 <= smoothing <= 1:
        raise UserError(f"trainer.label_smoothing_factor={smoothing}: between 0 and 1")
    if smoothing and answer.several:
        raise UserError(
            f"trainer.label_smoothing_factor={smoothing}: it takes from a row's one label what it "
            "gives to the others, and here each is decided by itself; set it to 0"
        )
    if isinstance(weights, str) and weights != BALANCED:
        raise UserError(f"mode.class_weights={weights}: balanced, or {{label: weight, …}}")
    for name, weight in weights.items() if isinstance(weights, dict) else ():
        if not 0 < weight < math.inf:
            raise UserError(f"mode.class_weights: {name}: {weight}; a weight is more than 0")
    if weights and (answer.labels is None or not answer.named):
        raise UserError(
            f"mode.class_weights={weights}: a {answer.problem_type} has no classes; leave it null"
        )


def objective(
    answer: Answer, labels: Sequence[Any], smoothing: float, weights: ClassWeights, gamma: float
) -> Objective:
    """The objective on a train split with these labels; raises `UserError` for wrong names."""
    if not weights:
        return Objective(smoothing, gamma)
    if isinstance(weights, str):
        chosen = balanced(answer.counts(labels))
    else:
        chosen = _named(answer, weights)
    return Objective(smoothing, gamma, torch.from_numpy(chosen).float())


def balanced(counts: np.ndarray) -> np.ndarray:
    """Weights [..., C] of classes that occur so often: n / (C * count), as scikit-learn's.

    n are all, C the classes that occur; one that does not weighs 1.
    """
    n, classes = counts.sum(-1, keepdims=True), (counts > 0).sum(-1, keepdims=True)
    return np.where(counts > 0, n / (classes * np.maximum(counts, 1)), 1.0)


def _named(answer: Answer, weights: Mapping[str | int, float]) -> np.ndarray:
    """Weights [C] by name, or [N, 2]: 1 where one of several labels is not given."""
    names = {str(spell(name)): name for name in answer.labels or ()}
    given = {str(spell(name)): float(weight) for name, weight in weights.items()}
    for name in given.keys() - names.keys():
        raise UserError(f"mode.class_weights: {name}: no such label{did_you_mean(name, names)}")
    if missing := [name for key, name in names.items() if key not in given]:
        raise UserError(
            f"mode.class_weights: none for {', '.join(missing[:5])}; give each label one (1: as "
            "without), or set mode.class_weights=balanced"
        )
    values = np.array([given[key] for key in names])
    return np.stack([np.ones_like(values), values], -1) if answer.several else values


def facts(objective: Objective, answer: Answer) -> dict[str, object]:
    """What differs from plain cross-entropy, for the record."""
    recorded: dict[str, object] = {}
    if objective.weights is not None:
        named = zip(answer.labels or (), objective.weights.tolist(), strict=True)
        recorded["class_weights"] = dict(named)
    if objective.gamma:
        recorded["focal_gamma"] = objective.gamma
    if objective.smoothing:
        recorded["label_smoothing"] = objective.smoothing
    return recorded


def describe(objective: Objective, answer: Answer) -> str:
    """The same in a line; empty for plain cross-entropy."""
    recorded, parts = facts(objective, answer), []
    if objective.weights is not None:
        weights = objective.weights.tolist()
        named = [f"{n} {_spelled(w)}" for n, w in zip(answer.labels or (), weights, strict=True)]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        kinds = "not given, given: " if answer.several else ""
        parts.append(f"class weights ({kinds}{', '.join(named[:SHOWN])}{more})")
    if "focal_gamma" in recorded:
        parts.append(f"focal gamma {objective.gamma:g}")
    if "label_smoothing" in recorded:
        parts.append(f"label smoothing {objective.smoothing:g}")
    return ", ".join(parts)


def _spelled(weight: float | list[float]) -> str:
    pair = weight if isinstance(weight, list) else [weight]
    return "/".join(f"{w:.4g}" for w in pair)


def advise(answer: Answer, rows: Dataset, headline: str, metrics: Sequence[str]) -> None:
    """Log one line where a train split is skewed and the headline hardly sees its rare labels."""
    if headline != "accuracy" or answer.labels is None or not answer.named:
        return
    counts = answer.counts(rows["labels"])
    present = np.flatnonzero(counts)
    rare, common = present[counts[present].argmin()], counts.argmax()
    if counts[common] <= SKEWED * counts[rare]:
        return
    also = "" if "f1_macro" in metrics else f"task.metrics=[{','.join([*metrics, 'f1_macro'])}] "
    log.warning(
        "train: %s rows of %s, %s of %s: accuracy hardly sees the rare label; %stask.headline="
        "f1_macro judges by the mean over labels",
        f"{counts[rare]:,}",
        answer.labels[rare],
        f"{counts[common]:,}",
        answer.labels[common],
        also,
    )
