"""Metrics against values worked out by hand."""

import json
from pathlib import Path

import pytest

from forge.errors import UserError
from forge.results import sweep_report
from forge.results.comparison import comparison_text, side_by_side
from forge.results.sweeps import read_sweep
from forge.tasks import metrics
from tests.support.runs import results

TRUE, PREDICTED = [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "true", "predicted", "value"),
    [
        ("accuracy", TRUE, PREDICTED, 3 / 5),
        ("f1", TRUE, PREDICTED, 2 / 3),
        ("f1_macro", TRUE, PREDICTED, (2 / 3 + 1 / 2) / 2),
        ("matthews_correlation", TRUE, PREDICTED, (2 * 1 - 1 * 1) / 6),
        ("matthews_correlation", TRUE, [1] * 5, 0.0),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson", [1.0, 2.0, 3.0], [1.0, 1.0, 1.0], 0.0),
        ("spearman", [1.0, 2.0, 3.0], [1.0, 100.0, 3.0], 0.5),
        ("mse", [1.0, 2.0], [2.0, 4.0], 2.5),
    ],
)
def test_values(name, true, predicted, value):
    (module,) = metrics.load([name])
    assert module.compute(predictions=predicted, references=true) == {name: pytest.approx(value)}


def test_an_unknown_metric_is_named():
    with pytest.raises(UserError, match=r"metric f1_marco: .*did you mean f1_macro"):
        metrics.load(["f1_marco"])


def foreign(folder, returned):
    """An `evaluate` metric called ones, of somebody else; its path."""
    script = folder / "ones" / "ones.py"
    script.parent.mkdir()
    script.write_text(
        "import datasets\n"
        "import evaluate\n"
        "class Ones(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        value = datasets.Value('int64')\n"
        "        return evaluate.MetricInfo(description='', citation='', "
        "features=datasets.Features({'predictions': value, 'references': value}))\n"
        "    def _compute(self, predictions, references):\n"
        f"        return {returned}\n"
    )
    return str(script)


@pytest.mark.parametrize(
    "returned", ["{'ones': sum(predictions)}", "{'other': sum(predictions)}",
                 "{'ones': sum(predictions), 'n': 3}"],
)  # fmt: skip
def test_any_evaluate_module_can_be_given_by_path(tmp_path, returned):
    path = foreign(tmp_path, returned)
    (module,) = metrics.load([path])
    name = metrics.named(path)
    assert name == "ones"
    assert metrics.score(name, module, [0, 0, 0], [1, 0, 1]) == 2


@pytest.mark.parametrize("returned", ["{}", "{'a': 1, 'b': 2}", "{'ones': [1, 2]}"])
def test_a_metric_that_returns_no_single_number_is_refused(tmp_path, returned):
    (module,) = metrics.load([foreign(tmp_path, returned)])
    with pytest.raises(UserError, match="metric ones: it returns"):
        metrics.score("ones", module, [0, 0], [1, 0])


def test_a_run_is_judged_by_a_metric_given_by_path(toy_run, tmp_path):
    """Its number is in the results, in training and as the headline that chooses; its code is not
    run to read the run back."""
    path = foreign(tmp_path, "{'anything': sum(p == r for p, r in zip(predictions, references))}")
    judged = ("trainer.max_steps=3", f"task.metrics=[accuracy,{path}]", f"task.headline={path}")
    run, other = toy_run(*judged, at="0"), toy_run(*judged, "seed=1", at="1")
    found = results(run)
    scores = found["splits"]["validation"]
    assert found["headline"]["metric"] == "ones"
    assert found["headline"]["value"] == scores["ones"]
    assert scores["ones"] == round(scores["accuracy"] * scores["n"])
    ran = tmp_path / "ran"
    Path(path).write_text(f"open({str(ran)!r}, 'w')")
    sweep = read_sweep(tmp_path)
    assert [row.against for row in sweep.rows] == [None] * len(sweep.rows)
    assert "ones" in sweep_report.markdown(sweep)
    found["headline"]["metric"] = path  # a directory may be anybody's
    (run / "results.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="runs of different headlines"):
        side_by_side([run, other])
    (other / "results.json").write_text(json.dumps(found))
    compared = side_by_side([run, other])
    assert compared["pairs"] == [] and compared["metrics"]["validation ones"][0] == scores["ones"]
    assert "no test" in comparison_text(compared)
    assert not ran.exists()
