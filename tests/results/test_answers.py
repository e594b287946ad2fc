"""Predictions as the pages need them, of every kind of answer."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forge.results import answers
from forge.results.answers import Pair
from forge.results.charts import Line, Plane, Rule, svg, ticks
from forge.results.runs import Run
from forge.results.statistics import wilson


def read(folder, **columns):
    (folder / "predictions").mkdir(parents=True)
    table = pa.table({"id": list(range(len(columns["label"])))} | columns)
    pq.write_table(table, folder / "predictions" / "test.parquet")
    config = {"task": {"labels": ["a", "b"]}}
    return answers.read(Run(folder, {"config": config}, {}, {}), "test")


def test_labels_have_confidence_and_loss(tmp_path):
    found = read(tmp_path, label=[0, 1], prediction=[0, 0], logits=[[1.0, 0.0], [2.0, 0.0]])
    sure = 1 / (1 + np.exp([-1.0, -2.0]))
    assert found.kind == "label" and found.right.tolist() == [True, False]
    assert found.confidence == pytest.approx(sure)
    assert found.loss == pytest.approx(-np.log([sure[0], 1 - sure[1]]))
    assert found.classes == ["a", "b"] and found.named(1) == "b"


def test_any_number_of_labels(tmp_path):
    logits = [[2.0, -1.0], [0.5, 0.5]]
    found = read(tmp_path, label=[[1, 0], [0, 0]], prediction=[[1, 0], [1, 1]], logits=logits)
    share = 1 / (1 + np.exp(-np.array(logits)))
    assert found.kind == "labels" and found.right.tolist() == [True, False]
    assert found.confidence == pytest.approx([share[0, 0] * (1 - share[0, 1]), share[1].prod()])
    assert [found.named(value) for value in found.label] == ["a", "none"]


def test_numbers_and_texts(tmp_path):
    found = read(tmp_path / "n", label=[1.0], prediction=[1.5], logits=[[1.5]])
    assert found.kind == "number" and found.loss == pytest.approx([0.5])
    found = read(tmp_path / "t", label=["7"], prediction=["8"], nll=[3.0], tokens=[2])
    assert found.kind == "text" and found.loss == pytest.approx([1.5]) and not found.right[0]


def test_pairs_are_sorted_by_what_is_asked(tmp_path):
    given = {"label": [0, 1, 0], "prediction": [0, 0, 1]}
    one = read(tmp_path / "a", **given, logits=[[1.0, 0], [5.0, 0], [0, 2.0]])
    run, at = Run(tmp_path, {}, {}, {}), np.arange(3)
    pair = Pair(run, "test", one, None, ("a", "label"), at, at)
    wrong = pair.outcomes()["wrong"]
    assert pair.ordered("loss", wrong).tolist() == [1, 2]
    assert pair.ordered("id", wrong).tolist() == [1, 2]
    assert pair.ordered("confidence", np.ones(3, bool)).tolist() == [1, 2, 0]


def test_the_interval_of_a_share_is_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(3, 40, method="wilson")
    assert wilson(3, 40) == f"7.5 % ({100 * low:.1f} .. {100 * high:.1f})"


def test_a_chart_escapes_its_names_and_needs_a_finite_point():
    drawn = svg(Plane("<x>", "y", [Line("<b>", [1, 2], [1, float("nan")])], [Rule("<i>", 3)]))
    assert "<b>" not in drawn and "<i>" not in drawn and "<x>" not in drawn
    assert svg(Plane("x", "y", [Line("a", [1], [None])])) == ""
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
