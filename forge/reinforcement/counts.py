"""Metrics of counts of right and given labels, which need not be whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


def _accuracy(counts: Floats) -> Floats:
    share: Floats = _hits(counts).sum(-1) / counts.sum((-1, -2))
    return share


def _hits(counts: Floats) -> Floats:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def _f1_of_each(counts: Floats) -> tuple[Floats, Floats]:
    """F1 of each label, 0 where it is neither right nor said, and where it is either."""
    either = counts.sum(-1) + counts.sum(-2)
    return 2 * _hits(counts) / np.where(either > 1e-9, either, 1), either > 1e-9


def _f1(counts: Floats) -> Floats:
    return _f1_of_each(counts)[0][..., 1]


def _f1_macro(counts: Floats) -> Floats:
    each, seen = _f1_of_each(counts)
    mean: Floats = (each * seen).sum(-1) / seen.sum(-1)
    return mean


def _matthews(counts: Floats) -> Floats:
    """Gorodkin's R_K (2004), of two labels Matthews correlation; 0 where it is undefined."""
    right, predicted, n = counts.sum(-1), counts.sum(-2), counts.sum((-1, -2))
    covariance = _hits(counts).sum(-1) * n - (right * predicted).sum(-1)
    variances = (n**2 - (right**2).sum(-1)) * (n**2 - (predicted**2).sum(-1))
    correlation: Floats = np.where(
        variances > 1e-9, covariance / np.sqrt(np.where(variances > 1e-9, variances, 1)), 0.0
    )
    return correlation


# As in forge.tasks.metrics, for many at once: of counts [..., right, predicted], whole or not
SCORES: dict[str, Callable[[Floats], Floats]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _matthews,
}
