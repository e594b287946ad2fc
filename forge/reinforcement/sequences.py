"""Rewards of answers that are a tag for each word: completions are lists of tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from forge.tasks import metrics
from forge.tasks.entities import Tags


def entity_f1(
    completions: Sequence[Tags], *, label: Sequence[Tags], **columns: object
) -> list[float]:
    """F1 of a row's entities, types and ends strictly right; 1 where there are and were none."""
    return _of_rows(metrics.entity_counts, completions, label)


def word_accuracy(
    completions: Sequence[Tags], *, label: Sequence[Tags], **columns: object
) -> list[float]:
    """Share of a row's words whose tag is right."""
    return _of_rows(metrics.word_counts, completions, label)


def _of_rows(
    counts: Callable[..., NDArray[np.int64]], completions: Sequence[Tags], label: Sequence[Tags]
) -> list[float]:
    rows = counts(label, completions).tolist()
    return [
        2 * right / (given + wanted) if given + wanted else 1.0 for right, given, wanted in rows
    ]
