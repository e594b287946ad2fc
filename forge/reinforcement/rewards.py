"""Rewards: what an answer is worth. One function each, and what calls them strictly.

A reward is called as `reward(completions, **columns)` with lists of one length and returns a list
of as many numbers, None where it does not apply. A classifier's completion is the name of a label;
its columns are `label` (the right one's name), `id` and the task's text columns. A language model's
is the text, its columns are `prompt`, `label` (the reference answer) and `id`. One that has to know
the labels beforehand has a method `bind(labels)`, called before the first step; texts have None.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forge.data.sources import Columns
from forge.data.spelling import folded, plain
from forge.errors import UserError, did_you_mean, one_line
from forge.reinforcement.counts import SCORES
from forge.tasks import numerals

Floats: TypeAlias = NDArray[np.float64]
Completions: TypeAlias = Sequence[str | list[str]]  # texts or labels, or sets of labels
Reward: TypeAlias = Callable[..., Sequence[float | None]]


def exact(
    completions: list[str],
    *,
    label: list[str] | None = None,
    answer: list[str] | None = None,
    **columns: object,
) -> list[float]:
    """1 for the right answer, as texts are compared (`plain`), or for one of several right texts,
    else 0."""
    right = _right(label, answer)
    return [float(_is(c, r)) for c, r in zip(completions, right, strict=True)]


def _is(answer: object, right: object) -> bool:
    if isinstance(right, list) and isinstance(answer, str):
        return _plain(answer) in map(_plain, right or [""])
    return _plain(answer) == _plain(right)


def _plain(answer: object) -> object:
    """A text in its one spelling; of several labels their set."""
    return frozenset(answer) if isinstance(answer, list) else plain(str(answer))


def numeric(
    completions: list[str],
    *,
    label: list[str] | None = None,
    answer: list[str] | None = None,
    tolerance: float = 1e-6,
    math_verify: bool = False,
    **columns: object,
) -> list[float | None]:
    """1 where the last number said is the last one of the right answer, else 0; None without one.

    `tolerance` is relative, and absolute below 1. With `math_verify` (pip install math-verify)
    expressions are compared instead, LaTeX among them.
    """
    right = [str(r) for r in _right(label, answer)]
    if math_verify:
        return _verified(completions, right)
    return [_close(c, r, tolerance) for c, r in zip(completions, right, strict=True)]


def format(completions: list[str], *, pattern: str, **columns: object) -> list[float]:
    """1 where the whole completion matches the regular expression (a dot is any character)."""
    whole = re.compile(pattern, re.DOTALL)
    return [float(whole.fullmatch(c) is not None) for c in completions]


def length(
    completions: list[str], *, limit: Annotated[int, Field(ge=1)], **columns: object
) -> list[float]:
    """0 up to `limit` characters, then falling in a line to -1 at twice as many."""
    return [-min(max(len(c) / limit - 1, 0.0), 1.0) for c in completions]


class Costs:
    """Minus the cost of saying one label where another is right: `matrix[right][said]`.

    The right label itself costs 0 unless it is given.
    """

    def __init__(self, matrix: dict[object, dict[object, float]]) -> None:
        self.given = matrix
        self.matrix: dict[str, dict[str, float]] = {}

    def bind(self, labels: list[str] | None) -> None:
        where, labels = "mode.reward.costs.matrix", _labels("costs", labels)
        self.matrix = {
            named(right, labels, where): {named(s, labels, where): float(c) for s, c in row.items()}
            for right, row in self.given.items()
        }
        for right in labels:
            row = self.matrix.setdefault(right, {})
            row.setdefault(right, 0.0)
            for answer in labels:
                if not math.isfinite(row.get(answer, math.nan)):
                    raise UserError(
                        f"{where}: no cost for saying {answer} where {right} is right; set "
                        f"{where}.{right}.{answer}"
                    )

    def __call__(
        self, completions: list[str], *, label: list[str], **columns: object
    ) -> list[float]:
        return [
            0 - self.matrix[right][answer] for right, answer in zip(label, completions, strict=True)
        ]


class Metric:
    """A metric of the whole batch, shared out to its answers by leaving each one out.

    M is the metric of the batch's counts, each of its n examples counted by the mean over its own
    answers. An answer's reward is M + n * (M' - M), where M' counts that example by this answer
    alone. Within a group rewards differ by what the answer does to the metric, the others' answers
    left as they are; their mean is about M. For accuracy that is the advantage of `exact`. A batch
    is one process's: the larger, the nearer to the metric of all examples.
    """

    def __init__(self, name: str = "matthews_correlation") -> None:
        if name not in SCORES:
            raise UserError(f"mode.reward.metric.name={name}: unknown{did_you_mean(name, SCORES)}")
        self.name, self.score = name, SCORES[name]
        self.labels: dict[str, int] = {}

    def bind(self, labels: list[str] | None) -> None:
        labels = _labels("metric", labels)
        if self.name == "f1" and len(labels) != 2:
            raise UserError(
                f"mode.reward.metric.name=f1: it is for two labels, the task has {len(labels)}; "
                "use f1_macro"
            )
        self.labels = {label: i for i, label in enumerate(labels)}

    def __call__(
        self, completions: list[str], *, label: list[str], id: list[int], **columns: object
    ) -> list[float]:
        kinds, answers = len(self.labels), len(completions)
        counted = np.zeros((answers, kinds, kinds))  # right, predicted
        right, answer = ([self.labels[name] for name in names] for names in (label, completions))
        counted[np.arange(answers), right, answer] = 1
        _, example, times = np.unique(np.asarray(id), return_inverse=True, return_counts=True)
        means = np.zeros((len(times), kinds, kinds))
        np.add.at(means, example, counted / times[example, None, None])
        batch = means.sum(0)
        metric = self.score(batch)
        alone = self.score(batch - means[example] + counted)
        return [float(value) for value in metric + len(times) * (alone - metric)]


class Classifier:
    """The probability that a classifier gives a text to have `label`.

    `path` is a Hub name, a directory or a run's directory. `read` names the columns it reads, one
    or two, where `completion` is the answer itself; without `label` the answer names the label, so
    that a classifier is rewarded by what another one thinks of its choice.
    """

    def __init__(
        self, path: str, read: str | list[str] = "completion", label: str | None = None
    ) -> None:
        self.path, self.label = path, label
        self.read = [read] if isinstance(read, str) else read
        if len(self.read) not in (1, 2):
            raise UserError(f"mode.reward.classifier.read={read}: one or two columns")

    def bind(self, labels: list[str] | None) -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer

        from forge import hub
        from forge.models import heads, loading, tokenizers

        where = "mode.reward.classifier"
        path = loading.resolve(self.path, f"{where}.path")
        with hub.access("model", path, f"{where}.path=DIR"):
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            tokenizers.check_vocabulary(self.tokenizer, config, f"{where}.path={self.path}")
            tokenizers.fit(self.tokenizer, config)
            self.model = loading.read(path, config=config)
        self.model.requires_grad_(False)
        torch.nn.Module.to(self.model, torch.accelerator.current_accelerator() or "cpu")
        self.limit = loading.reading_limit(self.tokenizer, self.model.config)
        self.known = {name: i for i, name in enumerate(heads.head_names(self.model.config))}
        for name in _labels("classifier", labels) if self.label is None else [self.label]:
            if name not in self.known:
                raise UserError(
                    f"{where}: {path} has no label {name}{did_you_mean(name, self.known)}"
                )

    def __call__(self, completions: list[str], **columns: Sequence[object]) -> list[float]:
        import torch

        from forge.models import tokenizers

        texts: dict[str, Sequence[object]] = {**columns, "completion": completions}
        for column in self.read:
            if column not in texts:
                raise ValueError(f"no column {column} to read{did_you_mean(column, texts)}")
        cut = 50 * self.limit  # characters; of a long pair tokenizers takes gigabytes otherwise
        read = [[str(text)[:cut] for text in texts[column]] for column in self.read]
        rows = list(zip(*read, strict=True))
        distinct = list(dict.fromkeys(rows))  # a group shares its text
        texts_read = map(list, zip(*distinct, strict=True))
        encoded = self.tokenizer(*texts_read, truncation=True, max_length=self.limit)
        tokenizers.fill_empty(encoded, self.tokenizer)
        batch = self.tokenizer.pad(encoded, return_tensors="pt", verbose=False)
        with torch.no_grad():
            logits = self.model(**batch.to(self.model.device)).logits.float()
        likely = dict(zip(distinct, logits.softmax(-1).tolist(), strict=True))
        named = [self.known[self.label or completion] for completion in completions]
        return [likely[row][column] for row, column in zip(rows, named, strict=True)]


def named(given: object, labels: Sequence[str], where: str) -> str:
    """The task's label that is meant, whatever the case; raises `UserError` for none."""
    if given in labels:
        return str(given)
    meant = [label for label in labels if folded(label) == folded(given)]
    if len(meant) != 1:
        raise UserError(f"{where}: the task has no label {given}{did_you_mean(str(given), labels)}")
    return meant[0]


def _labels(name: str, labels: list[str] | None) -> list[str]:
    if labels is None:
        raise UserError(f"mode/reward={name}: it is of labels, and this task's answers are texts")
    return labels


def _right(label: list[str] | None, answer: list[str] | None) -> list[str]:
    """The column of right answers: a classifier's or a language model's."""
    right = answer if label is None else label
    if right is None:
        raise ValueError("there is no column label or answer to compare with")
    return right


def _close(completion: str, right: str, tolerance: float) -> float | None:
    wanted, answer = numerals.last(right), numerals.last(completion)
    if wanted is None:
        return None
    return float(answer is not None and abs(answer - wanted) <= tolerance * max(1.0, abs(wanted)))


def _verified(completions: list[str], right: list[str]) -> list[float | None]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise UserError("mode.reward.numeric.math_verify=true: pip install math-verify") from error
    wanted = [parse(r) for r in right]
    return [
        float(verify(w, parse(c))) if w else None for c, w in zip(completions, wanted, strict=True)
    ]


class Rewards:
    """The chosen rewards and their weights; calls them strictly.

    Raises `UserError`, naming reward and example, for an exception, a wrong number of values, and
    a value that is neither a finite number nor None.
    """

    def __init__(self, functions: dict[str, Reward], weights: Mapping[str, float]) -> None:
        if not functions:
            raise UserError("mode.reward: no reward is chosen; choose e.g. mode/reward=exact")
        for name in weights:
            if name not in functions:
                raise UserError(
                    f"mode.reward_weights.{name}: no such reward is chosen"
                    + did_you_mean(name, functions)
                )
        self.functions = functions
        self.weights = np.array([weights.get(name, 1.0) for name in functions])
        if not (np.isfinite(self.weights).all() and self.weights.any()):
            raise UserError(f"mode.reward_weights={weights}: finite numbers, one of them not 0")

    def bind(
        self, labels: list[str] | None, columns: Sequence[str], several: Sequence[str] = ()
    ) -> None:
        """Give the rewards the labels; raise `UserError` for one that needs a column not given, or
        that knows one label a row where there are several, which the rewards `several` know."""
        for name, function in self.functions.items():
            for key, parameter in _keywords(function).items():
                if parameter.default is parameter.empty and key not in columns:
                    raise UserError(
                        f"mode/reward={name}: it needs {key}, which is neither set "
                        f"(mode.reward.{name}.{key}=…) nor a column{did_you_mean(key, columns)}"
                    )
            if bind := getattr(function, "bind", None):
                if several and not getattr(function, "several", False):
                    raise UserError(
                        f"mode/reward={name}: it is for one label a row; with several choose "
                        f"{', '.join(several)}"
                    )
                bind(labels)

    def __call__(self, completions: Completions, columns: Columns) -> Floats:
        """The values [completions, rewards]; NaN where a reward does not apply."""
        each = [
            self._of(name, function, completions, columns)
            for name, function in self.functions.items()
        ]
        return np.array(each, dtype=np.float64).T

    def total(self, values: Floats) -> Floats:
        """The weighted sum of those that apply [completions]; NaN where none does."""
        total: Floats = np.nansum(values * self.weights, -1)
        return np.where(np.isnan(values).all(-1), np.nan, total)

    def _of(
        self, name: str, function: Reward, completions: Completions, columns: Columns
    ) -> list[float]:
        ids = columns["id"]
        try:
            values = _call(function, completions, columns)
        except UserError:
            raise
        except Exception as error:
            guilty = _raiser(function, completions, columns)
            raise UserError(
                f"mode/reward={name}, {_named(ids, guilty)}: "
                f"{type(error).__name__}: {one_line(str(error))[:200]}"
            ) from error
        if not hasattr(values, "__len__") or isinstance(values, str | dict):
            raise UserError(
                f"mode/reward={name}: it returned a {type(values).__name__}; a list of numbers, "
                "one for each completion"
            )
        if len(values) != len(completions):
            raise UserError(
                f"mode/reward={name}, {_named(ids)}: it returned {len(values)} values for "
                f"{len(completions)} completions; one for each, None where it does not apply"
            )
        for i, value in enumerate(values):
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise UserError(
                    f"mode/reward={name}, {_named(ids, i)}: it returned {value!r} for "
                    f"{completions[i][:60]!r}; a finite number, or None where it does not apply"
                )
        return [math.nan if value is None else float(value) for value in values]


def _keywords(function: Reward) -> dict[str, inspect.Parameter]:
    """What a reward takes beside the completions."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return {k: p for k, p in list(parameters.items())[1:] if p.kind in kinds}


def _call(function: Reward, completions: Completions, columns: Columns) -> Sequence[float | None]:
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        columns = {k: v for k, v in columns.items() if k in _keywords(function)}
    return function(completions, **columns)


def _raiser(function: Reward, completions: Completions, columns: Columns) -> int | None:
    """The index of the first completion that raises by itself; None when none does."""
    for i, completion in enumerate(completions):
        try:
            _call(function, [completion], {k: [v[i]] for k, v in columns.items()})
        except Exception:
            return i
    return None


def _named(ids: list[int], index: int | None = None) -> str:
    return f"examples {min(ids)} to {max(ids)}" if index is None else f"example {ids[index]}"
