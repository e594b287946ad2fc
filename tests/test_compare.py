"""Paired tests: known differences, and the intervals of scipy on the same numbers."""

import numpy as np
import pytest
from scipy import stats

from forge.compare import RESAMPLES, Answers, difference
from forge.errors import UserError


def answers(right, labels=None):
    """Predictions of two classes that are right where told."""
    right = np.asarray(right, bool)
    labels = np.zeros(len(right), int) if labels is None else labels
    return Answers(np.arange(len(right)), labels, np.where(right, labels, 1 - labels))


def draws(rate, count, seed):
    return np.random.default_rng(seed).random(count) < rate


def test_the_interval_is_scipys_for_one_run_a_side():
    a, b = draws(0.7, 800, 0), draws(0.75, 800, 1)
    found = difference([answers(a)], [answers(b)], "accuracy")
    assert found.value == pytest.approx(b.mean() - a.mean())
    theirs = stats.bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: (y - x).mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.004)


def test_mcnemar_is_the_exact_binomial_of_the_discordant_pairs():
    a, b = draws(0.7, 300, 2), draws(0.8, 300, 3)
    found = difference([answers(a)], [answers(b)], "accuracy")
    gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
    assert found.p_value == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)


def test_one_percent_flipped_for_the_worse_is_shown_and_noise_is_not():
    right = draws(0.8, 10_000, 4)
    worse = right.copy()
    worse[np.flatnonzero(right)[:100]] = False
    found = difference([answers(right)], [answers(worse)], "accuracy")
    assert found.value == pytest.approx(-0.01) and found.verdict == "lower"
    assert found.p_value < 1e-20
    noise = difference([answers(draws(0.8, 500, 5))], [answers(draws(0.8, 500, 6))], "accuracy")
    assert noise.verdict == "no difference shown"


def test_seeds_that_disagree_widen_the_interval():
    base = [answers(draws(0.7, 2000, seed)) for seed in (1, 2, 3)]
    steady = [answers(draws(0.72, 2000, seed)) for seed in (4, 5, 6)]
    shaky = [answers(draws(rate, 2000, 7)) for rate in (0.62, 0.72, 0.82)]
    widths = [
        (lambda d: d.high - d.low)(difference(base, side, "accuracy")) for side in (steady, shaky)
    ]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.slow
def test_other_metrics_are_computed_anew_in_every_resample(monkeypatch):
    monkeypatch.setitem(RESAMPLES, "other", 200)
    labels = draws(0.3, 400, 8).astype(int)
    a, b = answers(draws(0.7, 400, 9), labels), answers(draws(0.9, 400, 10), labels)
    found = difference([a], [b], "matthews_correlation")
    assert found.low < found.value < found.high and found.verdict == "higher"
    assert 0 < found.p_value < 0.05


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
