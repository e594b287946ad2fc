"""Wrong labels in the train split of an embedded task: what a teacher may help against."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from forge.errors import UserError

Label = TypeVar("Label")


def with_noise(
    labels: list[Label],
    share: float,
    wrong: Callable[[Label, random.Random], Label],
    seed: int,
) -> list[Label]:
    """The labels, each replaced by a wrong one with the probability `share`.

    Which are replaced follows from the seed and the number of labels alone. Raises `UserError` for
    a share outside of [0, 1).
    """
    if not 0 <= share < 1:
        raise UserError(f"task.dataset.label_noise={share}: at least 0, less than 1")
    source = random.Random(f"label noise {seed}")
    return [wrong(label, source) if source.random() < share else label for label in labels]


def another(of: Sequence[Label]) -> Callable[[Label, random.Random], Label]:
    """Any of the labels but the right one."""
    return lambda right, source: source.choice([label for label in of if label != right])
