"""Does one model answer better than another? Paired tests over per-example predictions.

The examples are the same for both sides, so differences are taken example by example; a side may
be several runs that differ in nothing but their seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge.errors import UserError

RESAMPLES = {"accuracy": 10_000, "other": 1_000}


@dataclass
class Answers:
    """Predictions of one run on one split, in the order of the examples' ids."""

    id: NDArray[Any]
    label: NDArray[Any]
    prediction: NDArray[Any]


@dataclass
class Difference:
    """How much higher a metric is than the reference's, with a 95 % interval.

    `p_value` is McNemar's, exact, from `gained` and `lost`: examples that are answered right more,
    or less, often than by the reference; None where answers are numbers.
    """

    value: float
    low: float
    high: float
    n: int
    gained: int = 0
    lost: int = 0
    p_value: float | None = None

    @property
    def verdict(self) -> str:
        """In words; a difference is shown when its interval leaves 0 out."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no difference shown"


def read_answers(path: Path) -> Answers:
    """The predictions of a split, as a run wrote them; raises `UserError` when there are none."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such predictions; the run did not finish or has other splits")
    table = pq.read_table(path, columns=["id", "label", "prediction"])
    return Answers(*(table[name].to_numpy() for name in ("id", "label", "prediction")))


def difference(reference: list[Answers], other: list[Answers], metric: str) -> Difference:
    """The paired difference of two sides' mean metric over their runs.

    The interval is a percentile bootstrap (Efron and Tibshirani 1993) over the examples and, when a
    side has several runs, over the runs too. Raises `UserError` when the examples differ.
    """
    sides = [reference, other]
    first = reference[0]
    for run in (*reference, *other):
        if not (np.array_equal(run.id, first.id) and np.array_equal(run.label, first.label)):
            raise UserError("the predictions are over different examples; they cannot be compared")
    if metric == "accuracy":
        right = [np.stack([run.prediction == run.label for run in side]) for side in sides]
        values = _resample_accuracy(right)
        found = Difference(
            float(right[1].mean() - right[0].mean()), *_interval(values), n=len(first.id)
        )
        return _mcnemar(found, right)
    before, after = (_mean_metric(side, metric, slice(None)) for side in sides)
    values = _resample_metric(sides, metric)
    return Difference(after - before, *_interval(values), n=len(first.id))


def _interval(values: NDArray[Any]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _resample_accuracy(right: list[NDArray[Any]]) -> NDArray[Any]:
    """Differences of accuracy [resamples], from who was right, two arrays [runs, examples]."""
    rng = np.random.default_rng(0)
    values = np.empty(RESAMPLES["accuracy"])
    for i in range(len(values)):
        runs = [rng.integers(0, len(side), len(side)) for side in right]
        mean = [side[drawn].mean(0) for side, drawn in zip(right, runs, strict=True)]
        gains = mean[1] - mean[0]
        values[i] = gains[rng.integers(0, len(gains), len(gains))].mean()
    return values


def _mean_metric(side: list[Answers], metric: str, rows: Any) -> float:
    from forge import metrics

    (module,) = metrics.load([metric])
    scores = [
        module.compute(predictions=run.prediction[rows], references=run.label[rows])[metric]
        for run in side
    ]
    return float(np.mean(scores))


def _resample_metric(sides: list[list[Answers]], metric: str) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    values = np.empty(RESAMPLES["other"])
    count = len(sides[0][0].id)
    for i in range(len(values)):
        rows = rng.integers(0, count, count)
        drawn = [[side[j] for j in rng.integers(0, len(side), len(side))] for side in sides]
        reference, other = (_mean_metric(side, metric, rows) for side in drawn)
        values[i] = other - reference
    return values


def _mcnemar(found: Difference, right: list[NDArray[Any]]) -> Difference:
    """McNemar's exact test; with several runs a sign test on how often each example was right."""
    from scipy.stats import binomtest

    gains = right[1].mean(0) - right[0].mean(0)
    found.gained, found.lost = int((gains > 1e-9).sum()), int((gains < -1e-9).sum())
    decided = found.gained + found.lost
    found.p_value = float(binomtest(found.gained, decided).pvalue) if decided else 1.0
    return found
