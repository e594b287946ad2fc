"""Metrics: `evaluate` modules defined here on scikit-learn and scipy, nothing is downloaded.

A task's yaml names them in snake_case (`f1_macro` is `F1Macro`); any other `evaluate` metric can
be given by its path. Predictions are label ids, or values for regression.
"""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value

from forge.errors import UserError, did_you_mean, one_line


class Metric(evaluate.Metric):  # type: ignore[misc]
    """One number from predictions and references, both of `dtype`."""

    dtype: ClassVar[str] = "int64"
    greater_is_better: ClassVar[bool] = True
    of_texts: ClassVar[bool] = False  # for what a language model writes
    columns: ClassVar[tuple[str, str]] = ("label", "prediction")  # of the predictions' file

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        value = Value(self.dtype)
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            features=Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {snake(type(self).__name__): float(self.score(references, predictions))}

    def score(self, true: Any, predicted: Any) -> float:
        """The number; `true` and `predicted` are arrays of one length."""
        raise NotImplementedError


class Accuracy(Metric):
    """Share of right answers."""

    def score(self, true: Any, predicted: Any) -> float:
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(true, predicted))


class F1(Metric):
    """F1 of the second label, for two labels (as GLUE scores MRPC and QQP)."""

    def score(self, true: Any, predicted: Any) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(true, predicted, pos_label=1, average="binary", zero_division=0))


class F1Macro(Metric):
    """Mean over labels of each label's F1."""

    def score(self, true: Any, predicted: Any) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(true, predicted, average="macro", zero_division=0))


class MatthewsCorrelation(Metric):
    """Matthews correlation coefficient, 0 for a constant answer (as GLUE scores CoLA)."""

    def score(self, true: Any, predicted: Any) -> float:
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(true, predicted))


class Pearson(Metric):
    """Pearson correlation; 0 when either side is constant, where it is undefined."""

    dtype = "float64"

    def score(self, true: Any, predicted: Any) -> float:
        from scipy.stats import pearsonr

        return 0.0 if constant(true) or constant(predicted) else float(pearsonr(true, predicted)[0])


class Spearman(Metric):
    """Spearman rank correlation; 0 when either side is constant, where it is undefined."""

    dtype = "float64"

    def score(self, true: Any, predicted: Any) -> float:
        from scipy.stats import spearmanr

        return (
            0.0 if constant(true) or constant(predicted) else float(spearmanr(true, predicted)[0])
        )


class Mse(Metric):
    """Mean squared error; lower is better."""

    dtype = "float64"
    greater_is_better = False

    def score(self, true: Any, predicted: Any) -> float:
        from sklearn.metrics import mean_squared_error

        return float(mean_squared_error(true, predicted))


class ExactMatch(Metric):
    """Share of right answers among generated ones: pass@1."""

    dtype = "string"
    of_texts = True

    def score(self, true: Any, predicted: Any) -> float:
        return float(sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true))


class Perplexity(Metric):
    """exp of the mean negative log-likelihood of a token, from each row's tokens and their sum."""

    dtype = "float64"
    greater_is_better = False
    of_texts = True
    columns = ("tokens", "nll")

    def score(self, true: Any, predicted: Any) -> float:
        return math.exp(min(sum(predicted) / sum(true), 700))


def constant(values: Any) -> bool:
    """Whether all values are the same."""
    return len(set(values)) < 2


def wilson(right: int, n: int) -> list[float]:
    """The 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, n).proportion_ci(method="wilson")
    return [round(float(found.low), 6), round(float(found.high), 6)]


def pass_at(k: int, samples: int, right: list[int]) -> float:
    """The chance that one of k samples is right, unbiased (Chen et al. 2021, equation 1).

    `right` is the number of right ones among `samples`, for each prompt.
    """
    missed = [math.comb(samples - r, k) / math.comb(samples, k) for r in right]
    return float(1 - np.mean(missed))


def snake(name: str) -> str:
    """`F1Macro` -> `f1_macro`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def load(names: list[str]) -> list[evaluate.EvaluationModule]:
    """The named metrics; a name with a path separator is loaded by `evaluate.load`.

    Raises `UserError` for an unknown name.
    """
    known = {snake(c.__name__): c for c in Metric.__subclasses__() if c.__module__ == __name__}
    modules = []
    for name in names:
        if name in known:
            modules.append(known[name]())
        elif os.sep in name:
            try:
                modules.append(evaluate.load(name))
            except (OSError, ImportError, ValueError) as error:
                raise UserError(f"metric {name}: {one_line(str(error))[:300]}") from error
        else:
            raise UserError(f"metric {name}: no such metric{did_you_mean(name, known)}")
    return modules
