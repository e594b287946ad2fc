"""How answers are compared with right ones, as SQuAD does."""

import pytest

from forge.tasks import metrics, overlap


@pytest.mark.parametrize(
    ("right", "answer", "exact", "f1"),
    [
        (["the Eiffel Tower"], "Eiffel tower.", 1, 1),
        (["a big old house"], "old house", 0, 0.8),  # without the article 2 of 3 words, and of 2
        (["Paris", "the city of Paris"], "city of Paris", 1, 1),  # the best of them (K31)
        (["in 1990", "1990"], "the year 1990", 0, 2 / 3),
        (["one one"], "one", 0, 2 / 3),
        ([], "", 1, 1),
        ([], "Paris", 0, 0),
        (["Paris"], "", 0, 0),
        (["the"], "", 1, 1),  # nothing is left of either
    ],
)
def test_answers_are_compared_as_squad_does(right, answer, exact, f1):
    assert overlap.exact(right, answer) == exact
    assert overlap.f1(right, answer) == pytest.approx(f1)


def test_metrics_are_means_over_rows():
    (em, f1) = metrics.load(["span_em", "span_f1"])
    right, given = [["Paris", "the city of Paris"], [], ["old house"]], ["Paris", "", "house"]
    assert metrics.score("span_em", em, right, given) == pytest.approx(2 / 3)
    assert metrics.score("span_f1", f1, right, given) == pytest.approx((2 + 2 / 3) / 3)
