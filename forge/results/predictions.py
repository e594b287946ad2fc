"""What a run answered to each example of a split, and how sure it was."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from forge.records.files import read_json
from forge.results.runs import Run
from forge.results.statistics import Answers, Values, matrix

BINS = 15  # of the expected calibration error
Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

Bin = TypedDict(
    "Bin", {"from": float, "to": float, "n": int, "confidence": float, "accuracy": float}
)


class Calibration(TypedDict):
    """The expected calibration error, and the bins that hold examples."""

    ece: float
    bins: int
    n: int
    table: list[Bin]


class OfLabel(TypedDict):
    """How one of several labels is given."""

    label: str
    n: int  # rows that have it
    precision: float
    recall: float
    f1: float


@dataclass
class Predictions(Answers):
    """Answers with their `logits` [rows, labels]; of parts of a text [2, words + 1] each."""

    label: Values
    prediction: Values
    logits: Floats | NDArray[np.object_]  # of tagged rows an array [words, labels] each
    probability: Floats | None = None  # of parts of a text: of each that is answered
    start: Ids | None = None  # and where it begins, in characters; -1 for no answer

    @property
    def numbers(self) -> bool:
        """Whether the answers are numbers (a regression) and not labels."""
        return self.logits.ndim > 1 and int(self.logits.shape[1]) == 1

    @property
    def several(self) -> bool:
        """Whether any number of labels is given: `label` and `prediction` are [rows, labels]."""
        return self.label.ndim > 1

    @property
    def confidence(self) -> Floats:
        """The probability of each answer that was given; of several labels or words, of all."""
        from scipy.special import expit, softmax

        if self.probability is not None:
            return self.probability
        if self.tagged:
            return np.array([softmax(row, -1).max(-1).prod() for row in self.logits])
        if self.several:
            given = expit(np.where(self.prediction > 0, self.logits, -self.logits))
            return np.asarray(given.prod(-1))
        shares = softmax(self.logits.astype(np.float64), -1)
        return np.asarray(shares[np.arange(len(shares)), self.prediction])


def read_predictions(path: Path) -> Predictions:
    """A split's predictions with their logits; raises `ValueError` for what has none."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = ("id", "label", "prediction", "logits")
    if missing := [name for name in columns if name not in table.column_names]:
        raise ValueError(f"it has no {', '.join(missing)}")
    if not table.num_rows:
        raise ValueError("it has no rows")
    id, label, prediction = (table[name].to_numpy() for name in columns[:3])
    rows = table["logits"].to_pylist()
    answers = Predictions(id, matrix(label), matrix(prediction), np.empty(len(rows), object))
    if answers.spanned:
        probability, start = (table[name].to_numpy() for name in ("probability", "start"))
        answers.probability, answers.start = probability, start
    if answers.tagged or answers.spanned:
        answers.logits[:] = [np.array(row, dtype=np.float64) for row in rows]
    else:
        answers.logits = np.array(rows, dtype=np.float64)
    return answers


@dataclass
class Completions:
    """What a language model wrote to each prompt, and the answer that was found in it."""

    id: Ids
    label: list[str]
    prediction: list[str]
    completion: list[str]
    prompt: list[str]
    nll: Floats  # of the right completion, a token

    @property
    def right(self) -> NDArray[np.bool_]:
        """Of each answer."""
        pairs = zip(self.label, self.prediction, strict=True)
        return np.array([label == answer != "" for label, answer in pairs])


def read_completions(path: Path) -> Completions | None:
    """A split's completions; None for answers that are not written."""
    import pyarrow.parquet as pq

    texts = ["label", "prediction", "completion", "prompt"]
    if not {*texts, "id", "nll", "tokens"} <= set(pq.read_schema(path).names):
        return None
    table = pq.read_table(path)
    label, prediction, completion, prompt = (table[name].to_pylist() for name in texts)
    each = table["nll"].to_numpy() / np.maximum(table["tokens"].to_numpy(), 1)
    return Completions(table["id"].to_numpy(), label, prediction, completion, prompt, each)


def calibration(confidence: Floats, right: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """The expected calibration error (Guo et al. 2017), and the bins of its reliability diagram.

    Confidence, the probability of the answer given, is cut into bins of equal width, the m-th
    being ((m - 1) / bins, m / bins]. The error is the mean over the examples of the distance
    between their bin's accuracy and its mean confidence.
    """
    edges = np.linspace(0, 1, bins + 1)
    where = np.searchsorted(edges[1:-1], confidence)
    n = np.bincount(where, minlength=bins)
    sure = np.bincount(where, confidence, bins) / np.maximum(n, 1)
    accuracy = np.bincount(where, right, bins) / np.maximum(n, 1)
    table: list[Bin] = [
        {"from": low, "to": high, "n": int(n[i]), "confidence": sure[i], "accuracy": accuracy[i]}
        for i, (low, high) in enumerate(pairwise(edges.tolist()))
        if n[i]
    ]
    error = float(n @ np.abs(accuracy - sure) / n.sum())
    return {"ece": error, "bins": bins, "n": int(n.sum()), "table": table}


def labels_of(run: Run) -> list[str]:
    """Names of the labels in the order of their ids; none where nothing names them."""
    try:
        named = read_json(run.path / "model" / "config.json").get("id2label") or {}
    except ValueError:
        named = {}
    if named:
        return [str(named[i]) for i in sorted(named, key=int)]
    return [str(name) for name in run.metadata["config"].get("task", {}).get("labels") or ()]


def name_of(labels: list[str], number: int) -> str:
    """A label's name, or its number where nothing names it."""
    return labels[number] if number < len(labels) else str(number)


def by_label(answers: Predictions, labels: list[str]) -> list[OfLabel]:
    """Of several labels how each is given."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(answers.label, answers.prediction, zero_division=0)
    return [
        {"label": name_of(labels, i), "n": int(n), "precision": p, "recall": r, "f1": f}
        for i, (p, r, f, n) in enumerate(zip(*scores, strict=True))
    ]


def by_type(answers: Predictions) -> list[OfLabel]:
    """Of each type of entity how it is given; of tags without entities, of each tag."""
    from forge.tasks.entities import counts_by_type
    from forge.tasks.metrics import f1_of_counts, precision, recall

    counted = counts_by_type(list(answers.label), list(answers.prediction))
    return [
        {
            "label": kind,
            "n": counts[2],
            "precision": precision(*counts),
            "recall": recall(*counts),
            "f1": f1_of_counts(*counts),
        }
        for kind, counts in counted.items()
    ]


def by_outcome(answers: Predictions) -> list[OfLabel]:
    """Of parts of a text: of rows with an answer, and of those without, how many are right."""
    with_one = np.array([len(right) > 0 for right in answers.label])
    given = answers.prediction != ""
    scores: list[OfLabel] = []
    for name, has, said in (("an answer", with_one, given), ("no answer", ~with_one, ~given)):
        counts = int((answers.right & has).sum()), int(said.sum()), int(has.sum())
        if counts[2]:
            precision, recall = (counts[0] / max(n, 1) for n in counts[1:])
            f1 = 2 * counts[0] / (counts[1] + counts[2])
            row: OfLabel = {
                "label": name, "n": counts[2], "precision": precision, "recall": recall, "f1": f1,
            }  # fmt: skip
            scores.append(row)
    return scores
