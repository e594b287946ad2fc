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
SHARES = ("accuracy", "exact_match")  # of right answers: quick to resample


@dataclass
class Answers:
    """Predictions of one run on one split, in the order of the examples' ids."""

    id: NDArray[Any]
    label: NDArray[Any]
    prediction: NDArray[Any]


@dataclass
class Difference:
    """How much higher a metric is than the reference's, with a 95 % interval.

    `p_value` is McNemar's, exact (the median over the pairs when there are several): do the two
    models of a pair differ? None where answers are numbers. The interval asks whether the two ways
    of training do.
    """

    value: float
    low: float
    high: float
    n: int  # examples
    p_value: float | None = None

    @property
    def smallest(self) -> float:
        """The smallest difference that so many examples could have shown: half the interval."""
        return (self.high - self.low) / 2

    @property
    def verdict(self) -> str:
        """In words; a difference is shown when its interval leaves 0 out."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no difference shown"


def read_answers(path: Path, metric: str) -> Answers:
    """What `metric` reads of a split's predictions, as a run wrote them.

    Raises `UserError` when there are none.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such predictions; the run did not finish or has other splits")
    names = ["id", *getattr(_module(metric), "columns", ("label", "prediction"))]
    table = pq.read_table(path, columns=names)
    return Answers(*(table[name].to_numpy() for name in names))


def difference(reference: list[Answers], other: list[Answers], metric: str) -> Difference:
    """The paired difference of a metric over pairs of runs, one pair for each seed.

    For one pair the interval is a percentile bootstrap over the examples (Efron and Tibshirani
    1993). For several, the variance of that bootstrap and the variance of the pairs' differences
    over their number are added, and Student's t taken with Satterthwaite's degrees of freedom:
    resampling two or three seeds would make the interval far too narrow. Raises `UserError` when
    the examples differ.
    """
    first = reference[0]
    for run in (*reference, *other):
        if not (np.array_equal(run.id, first.id) and np.array_equal(run.label, first.label)):
            raise UserError("the predictions are over different examples; they cannot be compared")
    pairs = list(zip(reference, other, strict=True))
    values = [_metric(b, metric) - _metric(a, metric) for a, b in pairs]
    resampled = _resample(reference, other, metric)
    found = Difference(float(np.mean(values)), *_interval(values, resampled), n=len(first.id))
    if not np.issubdtype(first.prediction.dtype, np.floating):
        found.p_value = float(np.median([mcnemar(a, b) for a, b in pairs]))
    return found


def _interval(values: list[float], resampled: NDArray[Any]) -> tuple[float, float]:
    from scipy.stats import t

    if len(values) == 1:
        low, high = np.percentile(resampled, [2.5, 97.5])
        return float(low), float(high)
    examples, pairs = resampled.var(ddof=1), np.var(values, ddof=1) / len(values)
    if not examples + pairs:
        return values[0], values[0]
    freedom = (examples + pairs) ** 2 / (pairs**2 / (len(values) - 1) or np.finfo(float).tiny)
    half = t.ppf(0.975, freedom) * (examples + pairs) ** 0.5
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _module(metric: str) -> Any:
    from forge import metrics

    return metrics.load([metric])[0]


def _metric(run: Answers, metric: str, rows: Any = slice(None)) -> float:
    module = _module(metric)
    found = module.compute(predictions=run.prediction[rows], references=run.label[rows])
    return float(found[metric])


def _resample(reference: list[Answers], other: list[Answers], metric: str) -> NDArray[Any]:
    """Mean differences over the pairs [resamples], the examples drawn with replacement."""
    rng, count = np.random.default_rng(0), len(reference[0].id)
    if metric in SHARES:
        right = [np.mean([r.prediction == r.label for r in side], 0) for side in (reference, other)]
        gains = right[1] - right[0]
        draws = range(RESAMPLES["accuracy"])
        return np.array([gains[rng.integers(0, count, count)].mean() for _ in draws])
    values = np.empty(RESAMPLES["other"])
    for i in range(len(values)):
        rows = rng.integers(0, count, count)
        means = [np.mean([_metric(r, metric, rows) for r in side]) for side in (reference, other)]
        values[i] = means[1] - means[0]
    return values


def mcnemar(a: Answers, b: Answers) -> float:
    """McNemar's exact test (1947): are the examples that only one model got right split evenly?"""
    from scipy.stats import binomtest

    right_a, right_b = a.prediction == a.label, b.prediction == b.label
    gained, lost = int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
