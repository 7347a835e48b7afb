"""Paired tests, intervals and effects: by hand, exact, and by simulation."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from umarvel_hf.evaluation.significance import (
    FEW,
    Comparison,
    bootstrap_interval,
    corrected,
    effect_size,
    holm,
    paired,
    paired_randomisation,
)


def exact_p_value(difference):
    """By counting all ways to flip the signs."""
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=len(difference))]
    return np.mean([one >= abs(np.sum(difference)) - 1e-9 for one in sums])


def test_the_paired_test_approaches_the_exact_one():
    first = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1.0])
    second = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0.0])
    expected = exact_p_value((first - second)[first != second])
    assert expected == pytest.approx(0.0390625)  # 8 against 1, two-sided: 2 · (1 + 9) / 2 ** 9
    assert paired_randomisation(first, second) == pytest.approx(expected, abs=0.006)
    assert paired_randomisation(first, second) == paired_randomisation(second, first)


def test_the_paired_test_takes_graded_values_and_knows_its_limits():
    generator = np.random.default_rng(0)
    first = generator.normal(size=10)
    second = first + generator.normal(0.3, 0.5, size=10)
    assert paired_randomisation(first, second) == pytest.approx(exact_p_value(second - first), abs=0.015)
    assert paired_randomisation(first, first) == 1.0
    assert paired_randomisation(np.ones(300), np.zeros(300), flips=999) == pytest.approx(0.001)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        paired_randomisation(np.zeros(3), np.zeros(2))


def equal_systems(generator, queries, graded):
    """Two systems with the same chance at every query, which differs from query to query."""
    chance = generator.beta(0.7, 0.7, size=queries)
    hits = (generator.random((2, queries)) < chance).astype(float)
    return hits / generator.integers(1, 11, size=(2, queries)) if graded else hits  # as mrr or as hit@k


@pytest.mark.parametrize("graded", [False, True])
def test_the_paired_test_holds_its_level(graded):
    generator = np.random.default_rng(7)
    pairs = [equal_systems(generator, 200, graded) for _ in range(500)]
    rejected = np.mean([paired_randomisation(*pair, flips=1000, seed=at) < 0.05 for at, pair in enumerate(pairs)])
    assert rejected == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("graded", [False, True])
def test_the_interval_covers_the_mean(graded):
    generator = np.random.default_rng(8)

    def sample():
        return generator.gamma(2, 0.15, size=300) if graded else (generator.random(300) < 0.3).astype(float)

    intervals = [bootstrap_interval(sample(), draws=1000, seed=at) for at in range(500)]
    assert np.mean([low <= 0.3 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.03)


def test_few_and_many_distinct_values_give_one_interval():
    values = np.random.default_rng(1).normal(0.2, 1, size=1000)
    few = np.round(values, 1)
    assert len(np.unique(few)) < FEW < len(np.unique(values))
    assert bootstrap_interval(few) == pytest.approx(bootstrap_interval(values), abs=0.01)
    expected = 0.2 + np.array([-1.96, 1.96]) / np.sqrt(1000) + (values.mean() - 0.2)
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.01)


def test_an_interval_is_the_same_again_and_takes_a_level():
    values = np.array([0.0] * 50 + [1.0] * 50)
    assert bootstrap_interval(values) == bootstrap_interval(values) == (0.4, 0.6)  # 0.5 ± 1.96 · 0.05
    assert bootstrap_interval(values, seed=1) == pytest.approx((0.4, 0.6), abs=0.011)
    low, high = bootstrap_interval(values, level=0.5)
    assert 0.4 < low < high < 0.6
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25)
    for wrong in (np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"pass one per query"):
            bootstrap_interval(wrong)


def test_many_queries_are_resampled_in_little_memory():
    values = np.random.default_rng(2).normal(size=50_000)
    tracemalloc.start()
    bootstrap_interval(values, draws=100)
    paired_randomisation(values, -values, flips=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all at once: 40 MB for the draws of a hundred, 4 GB for those of ten thousand


def test_the_effect_is_the_mean_over_the_standard_deviation():
    assert effect_size(np.array([0.0, 1.0, 2.0])) == pytest.approx(1 / 1)  # sample standard deviation: 1
    assert effect_size(np.array([1.0, -1.0, 0.0])) == 0
    assert effect_size(np.zeros(4)) == 0
    assert effect_size(np.full(4, 0.1)) is effect_size(np.array([1.0])) is None


def test_a_comparison_says_who_won():
    good, bad = np.repeat([1.0, 0.0], [30, 10]), np.repeat([0.0, 1.0, 0.0], [30, 2, 8])
    won, lost = paired("a", "hit@5", "x", good, "y", bad), paired("b", "hit@5", "y", bad, "x", good)
    assert (won.queries, won.wins, won.losses) == (40, 30, 2)
    assert (won.first, won.first_score, won.second, won.second_score) == ("x", 0.75, "y", 0.05)
    assert won.difference == pytest.approx(0.7)
    assert won.low < 0.7 < won.high and (lost.low, lost.high) == pytest.approx((-won.high, -won.low), abs=0.03)
    assert won.effect == pytest.approx(-lost.effect) and won.effect > 1
    assert won.verdict == "no difference shown"  # not corrected yet
    same = paired("c", "hit@5", "x", good, "y", good)
    assert (same.low, same.high, same.effect, same.p_value) == (0, 0, 0, 1)
    verdicts = [one.verdict for one in corrected([won, lost, same])]
    assert verdicts == ["better", "worse", "no difference shown"]


def test_comparisons_are_corrected_together():
    one = Comparison("a", "hit@5", 9, "x", 0.6, "y", 0.5, 0.0, 0.2, 0.1, 5, 4, p_value=0.03)
    assert [found.verdict for found in corrected([one])] == ["better"]
    assert [found.p_holm for found in corrected([one, replace(one, p_value=0.9)])] == [0.06, 0.9]
    assert corrected([]) == []


def test_less_of_the_wrong_modality_is_better():
    much, little = np.full(30, 0.9), np.full(30, 0.1)
    one = paired("a", "wrong_modality@10", "first", little, "second", much)
    assert (one.verdict, one.wins, one.losses, one.effect_text) == ("no difference shown", 30, 0, "-inf")
    assert corrected([one])[0].verdict == "better"
    assert corrected([paired("a", "hit@5", "first", much, "second", little)])[0].verdict == "better"
    assert paired("a", "hit@5", "first", much, "second", little).effect_text == "+inf"


def test_holm_corrects_as_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
