"""Rewards of answers that are any number of labels: completions are lists of names."""

from __future__ import annotations

from collections.abc import Collection

from forge.reinforcement.rewards import named


def f1(completions: list[list[str]], *, label: list[list[str]], **columns: object) -> list[float]:
    """F1 of the labels that are given; 1 where none is right and none is given."""
    pairs = zip(map(set, completions), map(set, label), strict=True)
    return [_share(2 * len(c & r), len(c) + len(r)) for c, r in pairs]


def jaccard(
    completions: list[list[str]], *, label: list[list[str]], **columns: object
) -> list[float]:
    """Labels given and right over labels given or right (Jaccard 1901); 1 where there are none."""
    pairs = zip(map(set, completions), map(set, label), strict=True)
    return [_share(len(c & r), len(c | r)) for c, r in pairs]


class Costs:
    """Minus `false_positive` for each label that is given and not right, and minus
    `false_negative` for each that is right and not given; `by_label` weighs labels."""

    several = True

    def __init__(
        self,
        false_positive: float = 1.0,
        false_negative: float = 1.0,
        by_label: dict[str, float] | None = None,
    ) -> None:
        self.false_positive, self.false_negative = false_positive, false_negative
        self.by_label = by_label or {}

    def bind(self, labels: list[str] | None) -> None:
        where = "mode.reward.label_costs.by_label"
        self.by_label = {named(k, labels or [], where): v for k, v in self.by_label.items()}

    def __call__(
        self, completions: list[list[str]], *, label: list[list[str]], **columns: object
    ) -> list[float]:
        pairs = zip(map(set, completions), map(set, label), strict=True)
        return [
            0 - self.false_positive * self._sum(c - r) - self.false_negative * self._sum(r - c)
            for c, r in pairs
        ]

    def _sum(self, names: Collection[str]) -> float:
        return sum(self.by_label.get(name, 1.0) for name in names)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
