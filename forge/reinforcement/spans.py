"""Rewards of answers that are a part of a text: completions are texts, right ones lists of them."""

from __future__ import annotations

from collections.abc import Sequence

from forge.tasks import overlap


def f1(completions: Sequence[str], *, label: Sequence[list[str]], **columns: object) -> list[float]:
    """F1 of an answer's words against the nearest right one, as SQuAD judges; 1 for no answer where
    there is none."""
    return [overlap.f1(right, c) for c, right in zip(completions, label, strict=True)]


def exact(
    completions: Sequence[str], *, label: Sequence[list[str]], **columns: object
) -> list[float]:
    """1 for one of the right answers, as SQuAD compares them, or none where there is none; else
    0."""
    return [overlap.exact(right, c) for c, right in zip(completions, label, strict=True)]
