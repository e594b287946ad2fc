"""Does one model answer better than another? Paired tests over per-example predictions.

The examples are the same for both sides, so differences are taken example by example; a side may
be several runs that differ in nothing but their seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forge.errors import UserError

RESAMPLES = {"accuracy": 10_000, "other": 1_000}
POWERS = (0.975, 0.8)  # 5 % on two sides, and a true difference missed once in five
OTHER = "the predictions are over different examples; they cannot be compared"
FEWEST = 6  # examples answered differently, all to one side, for McNemar's p to be under 0.05
SHARES = (
    "accuracy",
    "exact_match",
    "subset_accuracy",
    "span_em",
)  # of right answers: quick to resample
F1 = ("f1", "f1_macro", "f1_micro")  # of counts, which add up over examples


Values: TypeAlias = NDArray[np.int64] | NDArray[np.float64] | NDArray[np.object_]
Rows: TypeAlias = "slice | NDArray[np.int64]"


@dataclass
class Answers:
    """Predictions of one run on one split, in the order of the examples' ids."""

    id: NDArray[np.int64]
    label: Values
    prediction: Values

    @property
    def right(self) -> NDArray[np.bool_]:
        if self.spanned:
            from forge.tasks.overlap import exact

            pairs = zip(self.label, self.prediction, strict=True)
            return np.array([exact(list(right), answer) > 0 for right, answer in pairs], bool)
        return same(self.prediction, self.label)

    @property
    def tagged(self) -> bool:
        """Whether a row's answer is a list of names, one for each of its words."""
        return nested(self.label) and nested(self.prediction) and not numeric(self.label)

    @property
    def spanned(self) -> bool:
        """Whether a row's answer is a text, of which its label lists the right ones."""
        return nested(self.label) and not nested(self.prediction)


class Scorer(Protocol):
    """From answers, and optionally some rows of them, to a metric."""

    def __call__(self, run: Answers, rows: Rows = slice(None)) -> float: ...


@dataclass
class Difference:
    """How much higher a metric is than the reference's, with a 95 % interval.

    `smallest` is the smallest true difference that so many examples (and seeds) show four times in
    five: the minimal detectable difference, 80 % power at 5 % (Card et al. 2020, "With little power
    comes great responsibility"). `p_value` is McNemar's on right and wrong answers, exact (the
    median over the pairs when there are several): do the two models of a pair differ in accuracy?
    None where answers are numbers. The interval asks whether the two ways of training do.
    """

    value: float
    low: float
    high: float
    smallest: float
    n: int  # examples
    p: float = math.nan  # of no difference, by the test whose interval this is
    corrected: float | None = None  # the same, for the number of tests (`holm`); None of one
    p_value: float | None = None
    doubted: bool = False  # the interval leaves 0 out, and McNemar's test of this accuracy does not

    @property
    def verdict(self) -> str:
        """Higher, lower or neither; a difference is shown when its interval leaves 0 out, and as
        one of several tests when its corrected p is below 0.05.

        For the accuracy of one pair McNemar's test has to agree: of a handful of examples that the
        two answer differently a bootstrap makes too much.
        """
        if self.doubted or (self.corrected or 0) >= 0.05:
            return "no difference shown"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference shown"


def is_own(metric: str) -> bool:
    """Whether a metric is Forge's: another's is code, which is not run to read runs back."""
    if metric in SHARES:
        return True
    from forge.tasks.metrics import FUNCTIONS

    return metric in FUNCTIONS


def read_answers(path: Path, metric: str) -> Answers:
    """What `metric` reads of a split's predictions, as a run wrote them.

    Raises `UserError` when there are none.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such predictions; the run did not finish or has other splits")
    names = ["id", *_columns(metric)]
    table = pq.read_table(path, columns=names).sort_by("id")
    id, label, prediction = (table[name].to_numpy() for name in names)
    return Answers(id, matrix(label), matrix(prediction))


def same(a: Values, b: Values) -> NDArray[np.bool_]:
    """Which rows of two columns are equal; of lists those that are equal throughout."""
    if nested(a):
        return np.array([np.array_equal(x, y) for x, y in zip(a, b, strict=True)], bool)
    equal = np.asarray(a == b)
    return np.asarray(equal.all(-1)) if equal.ndim > 1 else equal


def nested(column: NDArray[Any]) -> bool:
    """Whether a column's values are lists."""
    return bool(column.dtype == object and len(column) and isinstance(column[0], np.ndarray))


def numeric(column: NDArray[Any]) -> bool:
    """Whether a column of lists holds numbers."""
    return any(np.issubdtype(row.dtype, np.number) for row in column[:1])


def matrix(column: NDArray[Any]) -> NDArray[Any]:
    """A column, as [rows, labels] where its values are lists of numbers, of one length."""
    return np.stack(list(column)) if nested(column) and numeric(column) else column


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
        if not (np.array_equal(run.id, first.id) and same(run.label, first.label).all()):
            raise UserError(OTHER)
    pairs = list(zip(reference, other, strict=True))
    score = _scorer(metric)
    values = [score(b) - score(a) for a, b in pairs]
    resampled = _resample(reference, other, metric)
    low, high, smallest, p = _interval(values, resampled)
    between = Difference(float(np.mean(values)), low, high, smallest, len(first.id), p)
    if not np.issubdtype(first.prediction.dtype, np.floating):
        between.p_value = float(np.median([mcnemar(a, b) for a, b in pairs]))
        if metric in SHARES and len(pairs) == 1:
            between.doubted = between.p_value >= 0.05 and not between.low <= 0 <= between.high
            between.smallest = max(between.smallest, FEWEST / between.n)
    between.smallest = between.smallest or math.nan  # equal answers say nothing of others
    return between


def holm(p_values: list[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): the chance of any false alarm stays 5 %."""
    corrected, worst, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def correct(tests: list[Difference]) -> None:
    """Give several tests their p values `corrected` for their number; one has none."""
    if len(tests) > 1:
        for test, corrected in zip(tests, holm([test.p for test in tests]), strict=True):
            test.corrected = corrected


def _interval(
    values: list[float], resampled: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Both ends, the smallest difference that would be shown four times in five, and p of none."""
    from scipy.stats import t

    if len(values) == 1:
        low, high = np.percentile(resampled, [2.5, 97.5])
        tail = min((resampled <= 0).mean(), (resampled >= 0).mean())
        p = min(1.0, 2 * max(float(tail), 1 / len(resampled)))
        smallest = sum(t.ppf(POWERS, np.inf)) * resampled.std(ddof=1)
        return float(low), float(high), float(smallest), p
    examples, pairs = resampled.var(ddof=1), np.var(values, ddof=1) / len(values)
    if not examples + pairs:
        return values[0], values[0], 0.0, 0.0 if values[0] else 1.0
    freedom = (examples + pairs) ** 2 / (pairs**2 / (len(values) - 1) or np.finfo(float).tiny)
    mean, error = float(np.mean(values)), (examples + pairs) ** 0.5
    half, power = error * t.ppf(POWERS, freedom)
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    return mean - float(half), mean + float(half), float(half + power), p


def _columns(metric: str) -> tuple[str, str]:
    """The reference's and the prediction's column in a predictions' file."""
    if metric in SHARES:
        return "label", "prediction"
    from forge.tasks.metrics import FUNCTIONS

    return FUNCTIONS[metric].columns


def _scorer(metric: str) -> Scorer:
    """What computes a metric, without evaluate around it, which takes ten times as long."""
    if metric in SHARES:  # without the seconds that importing the metrics takes
        return lambda run, rows=slice(None): float(np.mean(run.right[rows]))
    from forge.tasks.metrics import FUNCTIONS

    function = FUNCTIONS[metric]
    return lambda run, rows=slice(None): function.of(run.label[rows], run.prediction[rows])


def _resample(reference: list[Answers], other: list[Answers], metric: str) -> NDArray[np.float64]:
    """Mean differences over the pairs [resamples], the examples drawn with replacement."""
    rng, count = np.random.default_rng(0), len(reference[0].id)
    if metric in SHARES:
        right = [np.mean([r.right for r in side], 0) for side in (reference, other)]
        gains, often = np.unique(right[1] - right[0], return_counts=True)
        drawn = rng.multinomial(count, often / count, RESAMPLES["accuracy"])  # how often each gain
        return np.asarray(drawn @ gains / count)
    if (counted := _counted(reference, other, metric)) is not None:
        return counted
    score, values = _scorer(metric), np.empty(RESAMPLES["other"])
    if metric in F1:
        counts = [[_counts(run) for run in side] for side in (reference, other)]
        several = reference[0].label.ndim > 1
        for i in range(len(values)):
            often = np.bincount(rng.integers(0, count, count), minlength=count).astype(float)
            means = [np.mean([_f1(often @ c, metric, several) for c in side]) for side in counts]
            values[i] = means[1] - means[0]
        return values
    for i in range(len(values)):
        rows = rng.integers(0, count, count)
        means = [np.mean([score(r, rows) for r in side]) for side in (reference, other)]
        values[i] = means[1] - means[0]
    return values


def _counted(
    reference: list[Answers], other: list[Answers], metric: str
) -> NDArray[np.float64] | None:
    """The same for a metric of counts that add up over the rows; None for any other."""
    from forge.tasks.metrics import FUNCTIONS

    function, n = FUNCTIONS[metric], len(reference[0].id)
    if (count := function.counts) is None:
        return None
    counts = [[count(r.label, r.prediction) for r in side] for side in (reference, other)]
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES["other"])  # how often each row
    means = [
        np.mean([[function.score(*sums) for sums in drawn @ each] for each in side], 0)
        for side in counts
    ]
    return np.asarray(means[1] - means[0])


def _counts(run: Answers) -> NDArray[np.float64]:
    """Of each example which labels it hits, is given and has [examples, 3 * labels]."""
    label, given = np.asarray(run.label, int), np.asarray(run.prediction, int)
    if label.ndim == 1:
        one_hot = np.eye(int(max(label.max(), given.max(), 1)) + 1)
        label, given = one_hot[label], one_hot[given]
    return np.concatenate([label * given, given, label], -1).astype(float)


def _f1(totals: NDArray[np.float64], metric: str, several: bool) -> float:
    """F1 as the metric of that name has it, from sums of `_counts`."""
    hits, given, labels = totals.reshape(3, -1)
    if metric == "f1_micro":
        hits, given, labels = (np.atleast_1d(each.sum()) for each in (hits, given, labels))
    either = given + labels
    each = 2 * hits / np.maximum(either, 1)
    if metric == "f1":
        return float(each[1])
    return float(each.mean() if several else each[either > 0].mean())


def wilson(right: int, n: int) -> str:
    """A share in per cent with its 95 % interval (Wilson 1927)."""
    if not n:
        return ""
    z, share = 1.959964, right / n
    middle, half = (
        share + z * z / (2 * n),
        z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5,
    )
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return f"{100 * share:.1f} % ({100 * max(0, low):.1f} .. {100 * min(1, high):.1f})"


def mcnemar(a: Answers, b: Answers) -> float:
    """McNemar's exact test (1947): are the examples that only one model got right split evenly?"""
    from scipy.stats import binomtest

    gained, lost = int((b.right & ~a.right).sum()), int((a.right & ~b.right).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
