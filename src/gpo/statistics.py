"""Intervals, paired comparisons of two arms, pass@k and maj@k.

Questions are the unit of chance: samples of one question are not independent, so bootstraps resample whole questions.
A sample that could not be graded (None or NaN) is left out, and a question without any sample too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isnan, nan, sqrt
from typing import Any, Literal

import numpy as np
from scipy import special, stats

from gpo.errors import ConfigError, DataError

Samples = Sequence[Sequence[float | None]]  # (Q, ragged) the scores of each question's samples
Array = np.ndarray[Any, np.dtype[np.float64]]
Bins = Sequence[tuple[str, float]]  # names and largest values, in order
# How often a question is solved before training, and how many steps its solution takes.
STRATA: Bins = (("never", 0.0), ("rarely", 0.25), ("sometimes", 0.75), ("nearly always", 1 - 1e-9), ("always", 1.0))
HORIZONS: Bins = (("up to 8 steps", 8), ("9 to 16", 16), ("17 to 32", 32), ("more than 32", inf))
LEVEL = 0.95  # of intervals
By = Literal["", "wilson", "exact", "bootstrap", "crossed"]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where the truth is believed to be. NaN throughout if n is 0."""

    estimate: float
    lower: float
    upper: float
    n: int  # independent units behind it: trials, or questions
    by: By = ""  # the method; "exact" is Clopper-Pearson's, also of a bootstrap whose questions are all alike

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.lower:.3f}, {self.upper:.3f}] (n={self.n})"


NOTHING = Interval(nan, nan, nan, 0)


def wilson(successes: int, n: int) -> Interval:
    """Wilson score interval of a proportion; covers at its level on average over proportions."""
    _check(successes, n, LEVEL)
    if n == 0:
        return NOTHING
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high), n, "wilson")


def exact(successes: float, n: int, confidence: float = LEVEL) -> Interval:
    """Clopper-Pearson interval of a proportion; covers at least at its level for every proportion.

    `successes` may be fractional (the sum of n scores in [0, 1]): a score in [0, 1] varies at most as much as a
    right-or-wrong one with the same mean.
    """
    _check(successes, n, confidence)
    if n == 0:
        return NOTHING
    tail = (1 - confidence) / 2
    # Whole successes on either side keep the bounds on the safe side of a fractional sum.
    low, high = floor(successes + 1e-9), ceil(successes - 1e-9)
    lower = special.betaincinv(low, n - low + 1, tail) if low > 0 else 0.0
    upper = special.betaincinv(high + 1, n - high, 1 - tail) if high < n else 1.0
    return Interval(successes / n, float(lower), float(upper), n, "exact")


def bootstrap_mean(samples: Samples, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean over questions of each question's mean score, with an expanded BCa bootstrap interval over questions.

    A bootstrap takes its spread from the sample, with divisor n, and knows no t distribution, so that plain BCa is too
    sure of few questions. Its tails are therefore taken at Phi(sqrt(n / (n - 1)) t) for the quantile t of n - 1 degrees
    of freedom. Source: Efron 1987 (BCa); Hesterberg 2015 (arXiv 1411.5279), who expands the percentile
    interval in this way; BCa is expanded here. It cannot leave the range of the data: of fewer than five questions it
    is too sure (of two it covers about half).

    Degenerate case: if all questions have the same mean, as in 9 of 9, resampling shows nothing and its interval would
    have no width; it is exact (Clopper-Pearson) then: a share of other questions as large as the upper bound of 0 in n.
    """
    means = _question_means(samples)
    return _bootstrap(means[~np.isnan(means)], (0.0, 1.0), resamples, seed)


def paired_difference(a: Samples, b: Samples, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of b minus mean of a over the same questions, with a paired bootstrap interval over questions.

    `a[q]` and `b[q]` belong to the same question; the numbers of samples may differ. A question that one of them has no
    graded sample of is left out. The interval and its degenerate case are those of `bootstrap_mean`.

    Raises:
        DataError: a and b have different numbers of questions.
    """
    if len(a) != len(b):
        raise DataError(f"Paired arms must align: got {len(a)} and {len(b)} questions, expected the same in order.")
    difference = _question_means(b) - _question_means(a)
    return _bootstrap(difference[~np.isnan(difference)], (-1.0, 1.0), resamples, seed)


def crossed_mean(values: Array | Sequence[Array] | Sequence[Sequence[float]]) -> Interval:
    """The mean of (S, Q) values in [-1, 1], the same Q questions in each of S seeds, and its interval.

    Two-way random effects: with the mean squares of seeds M_S, of questions M_Q and of what is left M_E, the mean has
    the variance (M_S + max(M_Q, M_E) - M_E) / (S Q), and t has Satterthwaite's (1946) degrees of freedom. What seeds do
    is known from S of them, so that few seeds that differ make it wide; where they differ no more than the rest would
    have them (M_S <= M_E), they have no part in it. At 95% it covers 92 to 98% with three seeds and more, whatever
    seeds do, and 87 to 98% with two (a bootstrap over both: 74 to 94% where they differ much), on average: those that
    are narrow since few seeds agree by luck cover less. (Half widths below .016 where seeds differ by .02 and 360
    questions are asked four times: .5 to .7 with two or three seeds, .7 to .9 with five.) With one seed it is the
    bootstrap over questions of `bootstrap_mean`, and what a seed does is not in it. n counts questions.

    NaN (no graded sample) is left out of the mean, and is the sum of its row's and its column's effect in the variance:
    where much is missing, as in a stratum, the interval is up to a third wider than it need be.
    Where all values are equal the interval is that of the degenerate case of `bootstrap_mean`.
    """
    table = np.array(values, dtype=np.float64)
    if not table.size or np.isnan(table).all():
        return NOTHING
    table = table[~np.isnan(table).all(axis=1)][:, ~np.isnan(table).all(axis=0)]
    seeds, questions = table.shape
    mean = float(np.nanmean(table))
    if seeds == 1 or questions == 1 or np.nanmax(table) == np.nanmin(table):
        return _bootstrap(np.nanmean(table, axis=0), (-1.0, 1.0))
    of_seed, of_question = np.nanmean(table, axis=1, keepdims=True), np.nanmean(table, axis=0, keepdims=True)
    left = np.where(np.isnan(table), 0.0, table - of_seed - of_question + mean)
    degrees = seeds - 1, questions - 1, (seeds - 1) * (questions - 1)
    rest = float((left**2).sum()) / degrees[2]
    by_seed = questions * float(((of_seed - mean) ** 2).sum()) / degrees[0]
    by_question = seeds * float(((of_question - mean) ** 2).sum()) / degrees[1]
    half = float(half_width(by_seed, by_question, rest, degrees=degrees, cells=table.size))
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half), questions, "crossed")


def half_width(by_seed: Any, by_question: Any, rest: Any, *, degrees: tuple[int, int, int], cells: int) -> Any:
    """Half the width of the interval of `crossed_mean`.

    Args:
        by_seed, by_question, rest: mean squares, numbers or arrays.
        degrees: of freedom, of each in turn.
        cells: how many values there are.
    """
    by_question, differ = np.maximum(by_question, rest), by_seed > rest
    total = by_question + np.where(differ, by_seed - rest, 0.0)
    of_seeds = np.where(differ, by_seed**2 / degrees[0] + rest**2 / degrees[2], 0.0)
    freedom = total**2 / (by_question**2 / degrees[1] + of_seeds)
    return special.stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(total / cells)


def binned(values: Sequence[float | None], bins: Bins) -> dict[str, list[int]]:
    """The places of the values in each bin; one that is not known (None, NaN) is in none."""
    found: dict[str, list[int]] = {name: [] for name, _ in bins}
    for place, value in enumerate(values):
        if value is not None and not isnan(value):
            found[bins[bisect_left([most for _, most in bins], value)][0]].append(place)
    return found


def pass_at_k(right: int, n: int, k: int) -> float:
    """Unbiased probability that one of k samples is right, from n samples of which `right` are.

    1 - C(n - right, k) / C(n, k). Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    _check_k(n, k)
    if n - right < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - right + 1, n + 1)))


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int, draws: int = 1000, seed: int = 0) -> float:
    """Probability that the most frequent answer of k samples is right, estimated from n >= k samples of one question.

    All right answers are one answer, however they are written; wrong ones are told apart as texts, so that those which
    say the same must be written the same. A sample without an answer has no vote. Answers that tie share the vote.
    k = n is exact; below, `draws` subsets of k samples are drawn.
    """
    _check_k(len(answers), k)
    labels = [0 if good else answer for answer, good in zip(answers, right, strict=True)]
    numbers = {label: column for column, label in enumerate(dict.fromkeys([0, *labels]))}
    votes = np.zeros((len(labels), len(numbers)))  # column 0: the right answer
    for row, label in enumerate(labels):
        votes[row, numbers[label]] = label is not None
    rng = np.random.default_rng(seed)
    subsets = [np.arange(k)] if k == len(labels) else [rng.choice(len(labels), k, replace=False) for _ in range(draws)]
    totals = np.stack([votes[subset].sum(axis=0) for subset in subsets])
    most = totals.max(axis=1, keepdims=True)
    winners = (totals == most) & (most > 0)
    return float(np.mean(winners[:, 0] / np.maximum(winners.sum(axis=1), 1)))


def _question_means(samples: Samples) -> Array:
    """(Q,) the mean graded score of each question, NaN if it has none."""
    graded = [[score for score in scores if score is not None and not isnan(score)] for scores in samples]
    return np.array([sum(scores) / len(scores) if scores else nan for scores in graded], dtype=np.float64)


def _bootstrap(values: Array, limits: tuple[float, float], resamples: int = 10_000, seed: int = 0) -> Interval:
    n = len(values)
    if n == 0:
        return NOTHING
    mean = float(values.mean())
    if np.ptp(values) == 0:
        share = exact(0, n).upper
        return Interval(mean, mean + share * (limits[0] - mean), mean + share * (limits[1] - mean), n, "exact")
    tail = special.ndtr(sqrt(n / (n - 1)) * stats.t.ppf((1 - LEVEL) / 2, n - 1))
    statistic: Callable[..., Any] = np.mean
    result = stats.bootstrap(
        (values,),
        statistic,
        confidence_level=1 - 2 * max(tail, 1 / resamples),  # no tail is finer than one resample
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),  # bounds memory to some tens of MB
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high), n, "bootstrap")


def _check(successes: float, n: int, confidence: float) -> None:
    if not 0 <= successes <= n:
        raise DataError(f"Got {successes} successes in {n} trials; expected between 0 and n.")
    if not 0 < confidence < 1:
        raise ConfigError(f"Got confidence {confidence}; expected a level between 0 and 1, such as 0.95.")


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise DataError(f"Got k={k} of n={n} samples; expected 1 <= k <= n. Draw more samples or lower k.")
