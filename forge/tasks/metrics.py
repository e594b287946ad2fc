"""Metrics: functions of scikit-learn and scipy as `evaluate` metrics; nothing is downloaded.

A task's yaml names them; any other `evaluate` metric can be given by its path. Predictions are
label ids, numbers, or what a language model wrote.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forge.errors import UserError, did_you_mean, one_line
from forge.tasks import overlap
from forge.tasks.entities import Entity, Tags, chunks, entities, marks_ends

if TYPE_CHECKING:
    import evaluate

Matrix: TypeAlias = Sequence[Sequence[int]]  # rows x labels, 1 or 0
Score: TypeAlias = Callable[..., float]  # of references and predictions of one length
Answers: TypeAlias = Sequence[object] | NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a metric is for."""

    dtype: str = "int64"  # of references and predictions: ids, float64, string; "" for any
    greater_is_better: bool = True
    of_texts: bool = False  # for what a language model writes
    several: bool = False  # for answers of any number of labels [rows, labels], each 1 or 0, too
    of_sets: bool = False  # for these alone
    of_tags: bool = False  # for tags, the names of those of each row's words
    of_spans: bool = False  # for texts of which there are several right ones
    columns: tuple[str, str] = ("label", "prediction")  # of the predictions' file


@dataclass(frozen=True, kw_only=True)
class Function(Facts):
    """A metric of ours: what computes it, and what it is for.

    One that is a ratio of counts, which add up over rows, has `counts`: of references and
    predictions, for every row what is right (or its share), given and wanted [rows, 3]; then
    `score` takes their sum.
    """

    score: Score
    counts: Callable[..., NDArray[np.number]] | None = None

    def of(self, references: Any, predictions: Any) -> float:
        """The metric."""
        if self.counts is None:
            return float(self.score(references, predictions))
        return float(self.score(*self.counts(references, predictions).sum(0)))


def _wrapped(name: str) -> evaluate.EvaluationModule:
    """A function of `FUNCTIONS` as an `evaluate` metric, which has it as `function`."""
    import evaluate
    from datasets import Features, List, Value

    class Metric(evaluate.Metric):  # type: ignore[misc]
        function = FUNCTIONS[name]

        def _info(self) -> evaluate.MetricInfo:
            value = Value(self.function.dtype)
            lists = self.function.of_sets or self.function.of_tags
            kinds = [List(value)] if lists else [value, List(value)]
            pairs = [(kind, kind) for kind in kinds[: 1 + self.function.several]]
            if self.function.of_spans:
                pairs = [(value, List(value))]
            return evaluate.MetricInfo(
                description=self.function.score.__doc__ or "",
                citation="",
                features=[Features({"predictions": a, "references": b}) for a, b in pairs],
            )

        def _compute(
            self, predictions: Sequence[object], references: Sequence[object]
        ) -> dict[str, float]:
            return {name: self.function.of(references, predictions)}

    return Metric(config_name=name, keep_in_memory=True)


def accuracy(true: Sequence[int], predicted: Sequence[int]) -> float:
    """Share of right answers."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(true, predicted))


def f1(true: Sequence[int], predicted: Sequence[int]) -> float:
    """F1 of the second label, for two labels (as GLUE scores MRPC and QQP)."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, pos_label=1, average="binary", zero_division=0))


def f1_macro(true: Sequence[int], predicted: Sequence[int]) -> float:
    """Mean over labels of each label's F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, average="macro", zero_division=0))


def f1_micro(true: Matrix, predicted: Matrix) -> float:
    """F1 of all decisions together, each of a row and a label."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, average="micro", zero_division=0))


def f1_samples(true: Matrix, predicted: Matrix) -> float:
    """Mean over rows of the F1 of a row's labels; 1 where there are none and none is given."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, average="samples", zero_division=1))


def subset_accuracy(true: Matrix, predicted: Matrix) -> float:
    """Share of rows whose labels are all right, and no others given."""
    return float((np.asarray(true) == np.asarray(predicted)).all(-1).mean())


def empty(true: Matrix, predicted: Matrix) -> float:
    """Share of rows that are given no label; lower is better."""
    return float((np.asarray(predicted).sum(-1) == 0).mean())


def entity_counts(true: Sequence[Tags], predicted: Sequence[Tags]) -> NDArray[np.int64]:
    """Of each row the entities that are right (type and both ends), given and wanted [rows, 3];
    strict: of well-formed tags (IOB2, or IOBES where the references are)."""
    ends = marks_ends(true)
    return _counts([entities(tags, ends) for tags in true], [entities(t, ends) for t in predicted])


def chunk_counts(true: Sequence[Tags], predicted: Sequence[Tags]) -> NDArray[np.int64]:
    """The same with entities as seqeval's default and conlleval read them, any I- beginning one."""
    return _counts([chunks(tags) for tags in true], [chunks(tags) for tags in predicted])


def word_counts(true: Sequence[Tags], predicted: Sequence[Tags]) -> NDArray[np.int64]:
    """Of each row the words whose tag is right, and twice its words."""
    pairs = zip(true, predicted, strict=True)
    rows = [(sum(x == y for x, y in zip(a, b, strict=True)), len(a), len(a)) for a, b in pairs]
    return np.array(rows, np.int64)


def _counts(true: Sequence[set[Entity]], predicted: Sequence[set[Entity]]) -> NDArray[np.int64]:
    pairs = zip(true, predicted, strict=True)
    return np.array([(len(a & b), len(b), len(a)) for a, b in pairs], np.int64)


def exact_counts(true: Sequence[Sequence[str]], predicted: Sequence[str]) -> NDArray[np.float64]:
    """Of each row whether its answer is one of the right ones (`overlap.exact`), and 1 twice."""
    pairs = zip(true, predicted, strict=True)
    return np.array([(overlap.exact(right, answer), 1, 1) for right, answer in pairs])


def overlap_counts(true: Sequence[Sequence[str]], predicted: Sequence[str]) -> NDArray[np.float64]:
    """Of each row the F1 of its answer's words (`overlap.f1`), and 1 twice."""
    pairs = zip(true, predicted, strict=True)
    return np.array([(overlap.f1(right, answer), 1, 1) for right, answer in pairs])


def f1_of_counts(right: float, given: float, wanted: float) -> float:
    """F1 of all entities together (micro), types and ends strictly right; 0 where there are none.

    Strict as seqeval's mode="strict"."""
    return 2 * right / (given + wanted) if given + wanted else 0.0


def precision(right: float, given: float, wanted: float) -> float:
    """Share of the entities given that are right; 0 where none is given."""
    return right / given if given else 0.0


def recall(right: float, given: float, wanted: float) -> float:
    """Share of the entities wanted that are given; 0 where none is wanted."""
    return right / wanted if wanted else 0.0


def matthews_correlation(true: Sequence[int], predicted: Sequence[int]) -> float:
    """Matthews correlation coefficient, 0 for a constant answer (as GLUE scores CoLA)."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(true, predicted))


def pearson(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson correlation; 0 when either side is constant, where it is undefined."""
    from scipy.stats import pearsonr

    return 0.0 if constant(true) or constant(predicted) else float(pearsonr(true, predicted)[0])


def spearman(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Spearman rank correlation; 0 when either side is constant, where it is undefined."""
    from scipy.stats import spearmanr

    return 0.0 if constant(true) or constant(predicted) else float(spearmanr(true, predicted)[0])


def mse(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean squared error; lower is better."""
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(true, predicted))


def exact_match(true: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of right answers among generated ones: pass@1."""
    return float(sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true))


def perplexity(tokens: Sequence[int], nll: Sequence[float]) -> float:
    """exp of the mean negative log-likelihood of a token, from each row's tokens and their sum."""
    return math.exp(min(sum(nll) / sum(tokens), 700))


OF_TAGS: dict[str, Any] = {"dtype": "string", "of_tags": True}
OF_SPANS: dict[str, Any] = {"dtype": "string", "of_spans": True}
FUNCTIONS = {
    "accuracy": Function(score=accuracy),
    "f1": Function(score=f1),
    "f1_macro": Function(score=f1_macro, several=True),
    "f1_micro": Function(score=f1_micro, several=True, of_sets=True),
    "f1_samples": Function(score=f1_samples, several=True, of_sets=True),
    "subset_accuracy": Function(score=subset_accuracy, several=True, of_sets=True),
    "empty": Function(score=empty, several=True, of_sets=True, greater_is_better=False),
    "matthews_correlation": Function(score=matthews_correlation),
    "pearson": Function(score=pearson, dtype="float64"),
    "spearman": Function(score=spearman, dtype="float64"),
    "mse": Function(score=mse, dtype="float64", greater_is_better=False),
    "entity_f1": Function(score=f1_of_counts, counts=entity_counts, **OF_TAGS),
    "entity_precision": Function(score=precision, counts=entity_counts, **OF_TAGS),
    "entity_recall": Function(score=recall, counts=entity_counts, **OF_TAGS),
    "seqeval_f1": Function(score=f1_of_counts, counts=chunk_counts, **OF_TAGS),
    "word_accuracy": Function(score=recall, counts=word_counts, **OF_TAGS),
    "span_f1": Function(score=recall, counts=overlap_counts, **OF_SPANS),
    "span_em": Function(score=recall, counts=exact_counts, **OF_SPANS),
    "exact_match": Function(score=exact_match, dtype="string", of_texts=True),
    "perplexity": Function(
        score=perplexity,
        dtype="float64",
        greater_is_better=False,
        of_texts=True,
        columns=("tokens", "nll"),
    ),
}


def constant(values: Sequence[object]) -> bool:
    """Whether all values are the same."""
    return all(value == values[0] for value in values)


def wilson(right: int, n: int) -> list[float]:
    """The 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(method="wilson")
    return [round(float(interval.low), 6), round(float(interval.high), 6)]


def pass_at(k: int, samples: int, right: list[int]) -> float:
    """The chance that one of k samples is right, unbiased (Chen et al. 2021, equation 1).

    `right` is the number of right ones among `samples`, for each prompt.
    """
    missed = [math.comb(samples - r, k) / math.comb(samples, k) for r in right]
    return float(1 - np.mean(missed))


def load(names: list[str]) -> list[evaluate.EvaluationModule]:
    """The named metrics; a name with a path separator is loaded by `evaluate.load`.

    Raises `UserError` for an unknown name.
    """
    modules = []
    for name in names:
        if name in FUNCTIONS:
            modules.append(_wrapped(name))
        elif os.sep in name:
            import evaluate

            try:
                modules.append(evaluate.load(name))
            except (OSError, ImportError, ValueError) as error:
                raise UserError(f"metric {name}: {one_line(str(error))[:300]}") from error
        else:
            raise UserError(f"metric {name}: no such metric{did_you_mean(name, FUNCTIONS)}")
    return modules


def named(name: str) -> str:
    """What a metric's number is called: the name itself; of a path its last part."""
    return Path(name).stem if os.sep in name else name


def score(name: str, module: evaluate.EvaluationModule, true: Answers, answered: Answers) -> float:
    """The number of a metric called `name`: the one that it calls so, or its only one.

    Raises `UserError` for a metric that answers with anything else, or not at all.
    """
    try:
        scores: dict[str, Any] = module.compute(predictions=answered, references=true) or {}
    except (TypeError, ValueError, ImportError) as error:
        if _function(module):
            raise
        raise UserError(f"metric {name}: {one_line(str(error))[:300]}") from error
    try:
        return float(next(iter(scores.values())) if len(scores) == 1 else scores[name])
    except (TypeError, ValueError, KeyError) as error:
        keys = ", ".join(map(str, scores)) or "nothing"
        raise UserError(
            f"metric {name}: it returns {keys}; a metric of a run is one number, alone or under "
            f"the key {name}"
        ) from error


def facts(module: evaluate.EvaluationModule) -> Facts:
    """What a metric is for; of somebody else's nothing is known but that more is better."""
    if ours := _function(module):
        return ours
    greater = bool(getattr(module, "greater_is_better", True))
    dtype = getattr(module, "dtype", "")
    return Facts(dtype=dtype, greater_is_better=greater)


def _function(module: evaluate.EvaluationModule) -> Function | None:
    """The function of ours that a metric wraps."""
    function = getattr(module, "function", None)
    return function if isinstance(function, Function) else None
