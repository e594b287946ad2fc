"""Paired tests: known differences; intervals and p as scipy and statsmodels have them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import DescrStatsW

from forge.errors import UserError
from forge.results.statistics import RESAMPLES, Answers, difference, holm, read_answers


def answers(right, labels=None):
    """Predictions of two classes that are right where told."""
    right = np.asarray(right, bool)
    labels = np.zeros(len(right), int) if labels is None else labels
    return Answers(np.arange(len(right)), labels, np.where(right, labels, 1 - labels))


def draws(rate, count, seed):
    return np.random.default_rng(seed).random(count) < rate


@pytest.fixture(scope="module")
def pair():
    """Right or wrong, of two models that agree on most of 1,000 examples."""
    a = draws(0.75, 1000, 0)
    return a, np.where(draws(0.2, 1000, 1), draws(0.85, 1000, 2), a)


def test_the_interval_is_scipys_and_statsmodels(pair):
    a, b = pair
    found = difference([answers(a)], [answers(b)], "accuracy")
    gains = b.astype(float) - a
    assert found.value == pytest.approx(gains.mean())
    bootstrap = stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: (y - x).mean(axis),
        paired=True,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(0),
    )
    theirs, normal = bootstrap.confidence_interval, DescrStatsW(gains).zconfint_mean()
    assert found.high - found.low > 0.03
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=1.5 / len(a))  # a step
    assert (found.low, found.high) == pytest.approx(normal, abs=2 / len(a))


def test_mcnemar_is_statsmodels(pair):
    a, b = pair
    found = difference([answers(a)], [answers(b)], "accuracy")
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)


def flipped(count, share=0.01, seed=4):
    """A model, and the same with that share of its right answers, spread at random, made wrong."""
    right = draws(0.8, count, seed)
    worse = right.copy()
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(right))
    worse[chosen[: round(share * count)]] = False
    return [answers(right)], [answers(worse)]


def test_one_percent_flipped_for_the_worse_is_shown_where_n_suffices():
    found = difference(*flipped(10_000), "accuracy")
    assert found.value == pytest.approx(-0.01) and found.verdict == "lower"
    assert found.p_value < 1e-20 and found.smallest < 0.01
    few = difference(*flipped(400), "accuracy")  # four answers
    assert few.value == pytest.approx(-0.01) and few.verdict == "no difference shown"
    assert few.high < 0 and few.doubted
    assert few.p_value == pytest.approx(0.125) and few.smallest > 0.01


def test_noise_and_the_same_predictions_show_nothing():
    noise = difference([answers(draws(0.8, 500, 5))], [answers(draws(0.8, 500, 6))], "accuracy")
    assert noise.verdict == "no difference shown"
    same = [answers(draws(0.8, 500, 5))]
    found = difference(same, same, "accuracy")
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.verdict == "no difference shown"
    assert found.smallest == 6 / 500  # fewer than six flipped have p above 0.05


def test_the_smallest_difference_is_shown_four_times_in_five():
    """Draws of a pair whose true difference is what an earlier draw said to be the smallest."""
    rng, count = np.random.default_rng(12), 2000

    def drawn(gain, apart=0.1):
        base, differ = rng.random(count) < 0.8, rng.random(count) < apart
        better = rng.random(count) < (1 + gain / apart) / 2
        return [answers(np.where(differ, ~better, base))], [answers(np.where(differ, better, base))]

    smallest = difference(*drawn(0), "accuracy").smallest
    shown = [difference(*drawn(smallest), "accuracy").verdict == "higher" for _ in range(150)]
    assert 0.7 < np.mean(shown) < 0.9


def test_the_order_of_the_file_does_not_matter(tmp_path):
    table = pa.table({"id": [2, 0, 1], "label": [1, 0, 0], "prediction": [0, 0, 1]})
    pq.write_table(table, tmp_path / "test.parquet")
    read = read_answers(tmp_path / "test.parquet", "accuracy")
    assert [list(column) for column in (read.id, read.label, read.prediction)] == [
        [0, 1, 2],
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_seeds_that_disagree_widen_the_interval():
    base = [answers(draws(0.7, 2000, seed)) for seed in (1, 2, 3)]
    steady = [answers(draws(0.72, 2000, seed)) for seed in (4, 5, 6)]
    shaky = [answers(draws(rate, 2000, 7)) for rate in (0.62, 0.72, 0.82)]
    widths = [
        (lambda d: d.high - d.low)(difference(base, side, "accuracy")) for side in (steady, shaky)
    ]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["f1", "matthews_correlation"])
def test_other_metrics_are_computed_anew_in_every_resample(monkeypatch, metric):
    monkeypatch.setitem(RESAMPLES, "other", 300)
    labels = draws(0.3, 400, 8).astype(int)
    a, b = answers(draws(0.7, 400, 9), labels), answers(draws(0.9, 400, 10), labels)
    found = difference([a], [b], metric)
    assert found.low < found.value < found.high and found.verdict == "higher"
    assert 0 < found.p_value < 0.05
    theirs = bootstrapped(getattr(sklearn.metrics, SKLEARN[metric]), labels, a, b)
    assert (found.low, found.high) == pytest.approx(
        tuple(theirs), abs=0.25 * (found.high - found.low)
    )


SKLEARN = {"f1": "f1_score", "matthews_correlation": "matthews_corrcoef"}


def bootstrapped(score, labels, a, b):
    """scipy's paired bootstrap of the difference of a score."""
    return stats.bootstrap(
        (labels, a.prediction, b.prediction),
        lambda true, one, other: score(true, other) - score(true, one),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=300,
        rng=np.random.default_rng(1),
    ).confidence_interval


@pytest.mark.slow
def test_numbers_have_an_interval_and_no_mcnemar(monkeypatch):
    monkeypatch.setitem(RESAMPLES, "other", 300)
    rng = np.random.default_rng(13)
    labels = rng.normal(size=300)
    a, b = (Answers(np.arange(300), labels, labels + s * rng.normal(size=300)) for s in (1, 0.5))
    found = difference([a], [b], "pearson")
    assert found.verdict == "higher" and found.p_value is None and found.smallest > 0
    theirs = bootstrapped(lambda true, told: stats.pearsonr(true, told)[0], labels, a, b)
    assert (found.low, found.high) == pytest.approx(
        tuple(theirs), abs=0.25 * (found.high - found.low)
    )
    assert difference([a], [b], "mse").verdict == "lower"


@pytest.mark.slow
def test_noise_of_the_seeds_is_seldom_taken_for_a_difference(monkeypatch):
    monkeypatch.setitem(RESAMPLES, "accuracy", 200)
    rng, wrong = np.random.default_rng(11), 0
    for trial in range(100):  # three seeds a side, apart for no reason but the seed
        rates = 0.75 + rng.normal(0, 0.02, 6)
        runs = [answers(draws(rate, 500, 10 * trial + i)) for i, rate in enumerate(rates)]
        found = difference(runs[:3], runs[3:], "accuracy")
        wrong += found.verdict != "no difference shown"
    assert wrong <= 10


def test_other_examples_are_refused():
    with pytest.raises(UserError, match="different examples"):
        difference([answers(draws(0.5, 10, 0))], [answers(draws(0.5, 11, 0))], "accuracy")


def test_equal_numbers_do_not_say_what_could_be_shown():
    same = [Answers(np.arange(50), np.linspace(0, 1, 50), np.linspace(1, 0, 50))]
    found = difference(same, same, "pearson")
    assert (found.value, found.verdict) == (0, "no difference shown") and np.isnan(found.smallest)


def test_p_values_are_corrected_as_by_statsmodels():
    from statsmodels.stats.multitest import multipletests

    for count in (1, 2, 7):
        found = np.random.default_rng(count).random(count) ** 3
        assert holm(found.tolist()) == pytest.approx(multipletests(found, method="holm")[1])


def test_p_agrees_with_the_interval(pair):
    """Below 0.05 where the interval leaves 0 out; of one pair both are of one bootstrap."""
    a, b = (answers(right) for right in pair)
    found = difference([a], [b], "accuracy")
    assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


@pytest.mark.parametrize("metric", ["f1", "f1_macro", "f1_micro"])
def test_f1_of_counts_is_scikit_learns_on_every_resample(metric, monkeypatch):
    """The quick way is the plain one: the same draws give the same interval."""
    rng = np.random.default_rng(3)
    shape = (60, 4) if metric == "f1_micro" else (60,)
    label, *given = rng.integers(0, 2 if metric != "f1_macro" else 4, (3, *shape))
    a, b = (Answers(np.arange(60), label, each) for each in given)
    monkeypatch.setitem(RESAMPLES, "other", 40)
    quick = difference([a], [b], metric)
    monkeypatch.setattr("forge.results.statistics.F1", ())
    plain = difference([a], [b], metric)
    assert (quick.low, quick.high) == pytest.approx((plain.low, plain.high), abs=1e-12)
