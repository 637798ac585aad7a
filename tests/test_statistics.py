"""Intervals against published numbers and their coverage; bootstraps against theory."""

from itertools import combinations
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpo.errors import ConfigError, DataError
from gpo.statistics import (
    STRATA,
    Interval,
    binned,
    bootstrap_mean,
    crossed_mean,
    exact,
    maj_at_k,
    paired_difference,
    pass_at_k,
    wilson,
)


def near(interval: Interval, estimate: float, lower: float, upper: float, abs: float = 5e-4) -> bool:
    return (interval.estimate, interval.lower, interval.upper) == pytest.approx((estimate, lower, upper), abs=abs)


def test_intervals_of_8_in_10() -> None:
    # Brown, Cai and DasGupta 2001 give the formulas; the numbers are those of R's binom package.
    assert near(wilson(8, 10), 0.8, 0.4902, 0.9433)
    assert near(exact(8, 10), 0.8, 0.4439, 0.9748)


def test_nothing_seen_and_one_sided_data() -> None:
    for interval in (wilson, exact):
        assert isnan(interval(0, 0).estimate)
        assert interval(0, 4).lower == 0
        assert interval(4, 4).upper == 1
    # 1 - 0.025^(1/4)
    assert exact(0, 4).upper == pytest.approx(0.6024, abs=1e-4)


def test_fractional_successes_widen_the_exact_interval() -> None:
    assert exact(2.5, 5).lower == exact(2, 5).lower
    assert exact(2.5, 5).upper == exact(3, 5).upper


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.floats(0.01, 0.99), st.sampled_from([0.8, 0.95]))
def test_the_exact_interval_covers_at_its_level_for_every_proportion(n: int, p: float, level: float) -> None:
    from scipy.stats import binom

    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if exact(k, n, level).lower <= p <= exact(k, n, level).upper)
    assert covered >= level - 1e-9


def test_wilson_covers_on_average() -> None:
    from scipy.stats import binom

    n, grid = 12, np.linspace(0.01, 0.99, 99)
    bounds = [wilson(k, n) for k in range(n + 1)]
    covered = [sum(binom.pmf(k, n, p) for k, b in enumerate(bounds) if b.lower <= p <= b.upper) for p in grid]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_bootstrap_mean_weighs_questions_equally_and_leaves_failures_out() -> None:
    result = bootstrap_mean([[1, 1, 1, 1], [0], [None, 1.0, nan], [None], []])
    assert (result.estimate, result.n) == (pytest.approx(2 / 3), 3)


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    questions = [list(rng.binomial(1, p, size=4).astype(float)) for p in rng.uniform(size=400)]
    means = np.array([np.mean(q) for q in questions])
    result = bootstrap_mean(questions, seed=1)
    half = 1.96 * means.std(ddof=1) / 20
    assert near(result, means.mean(), means.mean() - half, means.mean() + half, abs=0.004)
    assert bootstrap_mean(questions, seed=1) == result


@pytest.mark.parametrize("n", [12, 45])
def test_few_questions_widen_a_bootstrap_as_the_t_distribution_does(n: int) -> None:
    from scipy import stats

    means = np.linspace(0.2, 0.8, n)  # symmetric, where the t interval is right; plain BCa is 15% too narrow at n = 12
    half = stats.t.ppf(0.975, n - 1) * means.std(ddof=1) / np.sqrt(n)
    result = bootstrap_mean(means[:, None].tolist())
    assert (result.upper - result.lower) / (2 * half) == pytest.approx(1, abs=0.03)
    assert (result.upper - 0.5) / half == pytest.approx(1, abs=0.04)


def test_two_questions_leave_the_whole_range_between_them() -> None:
    assert near(bootstrap_mean([[0.0], [1.0]]), 0.5, 0.0, 1.0)


def test_clustered_samples_do_not_count_as_independent() -> None:
    questions = [[1.0] * 50] * 10 + [[0.0] * 50] * 10
    result = bootstrap_mean(questions)
    assert result.upper - result.lower > 0.35  # 500 independent samples would give 0.06
    assert result.n == 20


def test_pairing_removes_the_difficulty_of_the_questions() -> None:
    rng = np.random.default_rng(0)
    easy = rng.uniform(size=100)
    a = [[p] for p in easy]
    b = [[p + 0.1 + 0.01 * noise] for p, noise in zip(easy, rng.normal(size=100), strict=True)]
    result = paired_difference(a, b)
    assert result.estimate == pytest.approx(0.1, abs=0.01)
    assert result.upper - result.lower < 0.01
    mirrored = paired_difference(b, a)
    assert mirrored.estimate == -result.estimate


def test_a_paired_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        difficulty = rng.uniform(size=60)
        a = rng.binomial(4, difficulty) / 4
        b = rng.binomial(4, np.minimum(difficulty + 0.1 * (1 - difficulty), 1)) / 4
        result = paired_difference(a[:, None].tolist(), b[:, None].tolist(), resamples=400, seed=trial)
        covered += result.lower <= 0.05 <= result.upper
    assert 0.90 <= covered / 200 <= 0.99


def test_arms_that_never_differ_still_leave_doubt() -> None:
    share = exact(0, 20).upper
    assert near(paired_difference([[1.0]] * 20, [[1.0]] * 20), 0.0, -share, share)
    assert near(bootstrap_mean([[0.0]] * 20), 0.0, 0.0, share)
    assert isnan(paired_difference([[None]], [[1.0]]).estimate)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=2), min_size=1, max_size=6))
def test_a_few_questions_give_a_finite_interval_around_the_estimate(questions) -> None:
    result = bootstrap_mean(questions, resamples=200)
    assert 0 <= result.lower <= result.estimate + 1e-9
    assert result.estimate - 1e-9 <= result.upper <= 1


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, data) -> None:
    k, right = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    subsets = list(combinations(range(n), k))
    share = sum(min(subset) < right for subset in subsets) / len(subsets)
    assert pass_at_k(right, n, k) == pytest.approx(share)


def test_maj_at_k() -> None:
    assert maj_at_k(["1", "1", "2"], [True, True, False], 3) == 1.0
    assert maj_at_k(["1/2", "0.5", "2", "2", "2"], [True, True, False, False, False], 5) == 0.0
    assert maj_at_k(["1/2", "0.5", "2"], [True, True, False], 3) == 1.0
    assert maj_at_k(["1", "2"], [True, False], 2) == 0.5
    assert maj_at_k([None, None, "1"], [False, False, True], 3) == 1.0
    assert maj_at_k([None, None], [False, False], 2) == 0.0
    assert maj_at_k(["1", "2", "2", "2"], [True, False, False, False], 1, draws=4000) == pytest.approx(0.25, abs=0.03)


def test_bad_input_says_what_is_wrong() -> None:
    with pytest.raises(DataError, match="3 successes in 2 trials"):
        wilson(3, 2)
    with pytest.raises(ConfigError, match=r"confidence 95\b"):
        exact(1, 2, 95)
    with pytest.raises(DataError, match="must align"):
        paired_difference([[1.0]], [])
    with pytest.raises(DataError, match="k=3 of n=2"):
        pass_at_k(1, 2, 3)


def test_nine_of_nine_is_exact_and_has_a_width() -> None:
    for right in (0.0, 1.0):
        interval = bootstrap_mean([[right] * 4] * 9)
        assert (interval.by, interval.estimate) == ("exact", right)
        assert near(interval, right, *((0.0, exact(0, 9).upper) if right == 0 else (exact(9, 9).lower, 1.0)))
    assert bootstrap_mean([[1.0], [0.0], [1.0]]).by == "bootstrap"
    assert paired_difference([[1.0]] * 9, [[1.0]] * 9).by == "exact"
    assert [f(9, 9).by for f in (wilson, exact)] == ["wilson", "exact"]


def test_values_are_in_the_bin_that_ends_at_or_above_them() -> None:
    bins = (("none", 0.0), ("some", 0.5), ("all", 1.0))
    assert binned([0.0, 0.5, 0.51, None, float("nan"), 1.0], bins) == {"none": [0], "some": [1], "all": [2, 5]}
    assert binned([1 / 3, 0.9999, 1.0], STRATA)["nearly always"] == [1]


@pytest.mark.parametrize("spread", [0.0, 0.03])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_over_seeds_and_questions_covers_at_its_level(seeds: int, spread: float) -> None:
    """Planted effects of questions and of seeds; a bootstrap of both covers .74 to .94 where seeds differ more."""
    rng = np.random.default_rng(seeds)
    hits, trials = 0, 600
    for _ in range(trials):
        own = rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.1, (1, 120))
        found = crossed_mean(0.02 + own + rng.normal(0, 0.25, (seeds, 120)))
        hits += found.lower <= 0.02 <= found.upper
    assert (0.85 if seeds == 2 else 0.91) <= hits / trials <= 0.99


def test_the_interval_over_seeds_and_questions_is_the_textbook_s() -> None:
    """Two-way layout by hand: mean squares .1225 (seeds), .0625 (questions) and .0025 (what is left), 2 x 2."""
    found = crossed_mean([[0.1, 0.3], [0.4, 0.7]])
    by_seed, by_question, rest = 0.1225, 0.0625, 0.0025
    total = by_seed + by_question - rest  # seeds differ more than the rest
    freedom = total**2 / (by_seed**2 + by_question**2 + rest**2)
    half = stats.t.ppf(0.975, freedom) * (total / 4) ** 0.5
    assert near(found, 0.375, max(-1.0, 0.375 - half), min(1.0, 0.375 + half))


def test_one_seed_has_the_interval_over_questions_and_equal_values_one_with_a_width() -> None:
    values = [0.0, 1.0, 0.5, 0.0, 1.0, 1.0]
    told, over_questions = crossed_mean([values]), paired_difference([[0.0]] * 6, [[value] for value in values])
    assert told == over_questions
    equal = crossed_mean([[0.0] * 9, [0.0] * 9])
    assert equal.lower < -0.2
    assert equal.upper > 0.2
    assert crossed_mean([]).n == 0
    some = crossed_mean([[0.5, nan, 0.25], [0.0, nan, nan]])
    assert (some.n, some.estimate) == (2, 0.25)


def test_a_sum_that_rounding_leaves_beside_a_whole_number_is_that_number() -> None:
    tenths = sum([0.1] * 10)
    assert tenths < 1
    assert (exact(tenths, 10).lower, exact(tenths, 10).upper) == (exact(1, 10).lower, exact(1, 10).upper)


def test_a_bootstrap_leans_to_where_the_data_have_their_tail() -> None:
    """BCa by scipy with expanded tails; the percentile interval would be [.028, .389]."""
    shares = (0.01, 0.02, 0.02, 0.03, 0.03, 0.05, 0.06, 0.1, 0.2, 0.9)
    assert near(bootstrap_mean([[share] for share in shares]), 0.142, 0.040, 0.490, abs=0.02)


def test_what_is_missing_adds_nothing_to_the_interval_over_seeds_and_questions() -> None:
    """By hand: seeds have the means .0375 and 0, questions .025 each; what is left is .0125 each way in one seed."""
    found = crossed_mean([[0.05, nan, 0.025], [0.0, nan, nan]])
    by_seed, rest = 2 * (0.0125**2 + 0.025**2), 2 * 0.0125**2
    freedom = by_seed**2 / (
        rest**2 + by_seed**2 + rest**2
    )  # questions differ less than the rest, which stands for them
    half = stats.t.ppf(0.975, freedom) * (by_seed / 4) ** 0.5
    assert near(found, 0.025, 0.025 - half, 0.025 + half)


def test_several_seeds_of_one_question_have_the_interval_of_a_bootstrap() -> None:
    assert crossed_mean([[0.25], [0.75]]) == crossed_mean([[0.5]])


def test_a_majority_is_of_different_samples() -> None:
    assert maj_at_k(["1", "2", "2", "2"], [True, False, False, False], 3) == 0.0
