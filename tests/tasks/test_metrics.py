"""Metrics against values worked out by hand."""

import pytest

from forge.errors import UserError
from forge.tasks import metrics

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


def test_any_evaluate_module_can_be_given_by_path(tmp_path):
    script = tmp_path / "ones" / "ones.py"
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
        "        return {'ones': sum(predictions)}\n"
    )
    (module,) = metrics.load([str(script)])
    assert module.compute(predictions=[1, 0, 1], references=[0, 0, 0]) == {"ones": 2}
