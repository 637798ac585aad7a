"""What a suite says of its methods and regimes: paired differences over seeds and questions, costs, strata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import ndtri

from gpo.config.options import resolve
from gpo.errors import ConfigError
from gpo.statistics import HORIZONS, STRATA, Bins, Interval, binned, exact
from gpo.suites.cells import ArmOutcome, Outcome, flops
from gpo.suites.suite import Suite

Array = np.ndarray[Any, np.dtype[np.float64]]
BOOTSTRAPS = 4000
# Of a difference of two arms, where nothing was measured yet: spread of what seeds do to it, spread of its truth over
# questions, and the variance of a sample within its question.
SEED_SPREAD, QUESTION_SPREAD, WITHIN = 0.01, 0.1, 0.12


@dataclass(frozen=True)
class Contrast:
    """An arm against another one, in one row of the table."""

    regime: str
    method: str
    arm: str
    other: str
    difference: Interval  # of accuracy, arm minus other; n counts questions
    seeds: int
    strata: dict[str, Interval]  # the same among the questions of a stratum
    horizons: dict[str, Interval]  # and among those of so many steps; NaN where outcomes do not tell
    learning: Interval  # difference of the accuracy in training, mean over the rounds from the second; NaN without


@dataclass(frozen=True)
class Standing:
    """An arm in one row of the table; means over seeds."""

    regime: str
    method: str
    arm: str
    accuracy: float
    sampled_tokens: float
    trained_tokens: float | None
    flops: float | None
    seconds: float
    tuned: tuple[tuple[str, str], ...]
    curve: tuple[tuple[float, float], ...] = ()  # tokens sampled before each round, accuracy in it before it trains


def hierarchical(
    differences: Sequence[Array] | Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of (S, Q) differences, the same Q questions in each of S seeds, and its interval.

    A two-level bootstrap: seeds are resampled, and questions, for all seeds alike since they are the same. A bootstrap
    of S seeds has (S - 1) / S of their variance, so that what sets a seed apart is widened by sqrt(S / (S - 1)). With
    one seed the interval covers questions only. NaN cells are left out of means. Where all cells are equal, resampling
    shows nothing, and the interval is Clopper and Pearson's of the questions, as in `gpo.statistics`.
    """
    table = np.array(differences, dtype=np.float64)
    if not table.size or np.isnan(table).all():
        return Interval(nan, nan, nan, 0)
    table = table[~np.isnan(table).all(axis=1)][:, ~np.isnan(table).all(axis=0)]
    seeds, questions = table.shape
    mean = float(np.nanmean(table))
    if np.nanmax(table) == np.nanmin(table):
        share = exact(0, questions, confidence).upper
        return Interval(mean, mean - share * (1 + mean), mean + share * (1 - mean), questions, "exact")
    own = np.nanmean(table, axis=1, keepdims=True)
    widened = table + (own - mean) * (sqrt(seeds / (seeds - 1)) - 1 if seeds > 1 else 0.0)
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), BOOTSTRAPS)  # how often each is drawn
    columns = rng.multinomial(questions, np.full(questions, 1 / questions), BOOTSTRAPS)
    there = ~np.isnan(table)
    sums = ((rows @ np.where(there, widened, 0.0)) * columns).sum(axis=1)
    counts = ((rows @ there.astype(np.float64)) * columns).sum(axis=1)
    means = sums[counts > 0] / counts[counts > 0]
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(lower), float(upper), questions, "bootstrap")


def detectable(
    questions: int, samples: int, seeds: int, *, seed_spread: float = SEED_SPREAD, power: float = 0.8
) -> float:
    """The true difference of two arms that an interval of 95% excludes 0 for with probability `power`.

    Var = seed_spread^2 / S + QUESTION_SPREAD^2 / Q + 2 WITHIN / (S Q samples), for S seeds and Q questions.
    """
    variance = seed_spread**2 / seeds + QUESTION_SPREAD**2 / questions + 2 * WITHIN / (seeds * questions * samples)
    return float((ndtri(0.975) + ndtri(power)) * sqrt(variance))


def contrasts(suite: Suite, outcomes: Sequence[Outcome]) -> list[Contrast]:
    """Every arm of a row against those before it, the last one first, over the seeds that both have finished."""
    found = []
    for regime, method, rows in _rows(suite, outcomes):
        arms = _arms(rows)
        for last in range(len(arms) - 1, 0, -1):
            found += [_contrast(regime, method, arms[last], other, rows) for other in arms[:last]]
    return [each for each in found if each.seeds]


def _contrast(regime: str, method: str, arm: str, other: str, rows: Sequence[Outcome]) -> Contrast:
    tables, bases, steps, curves = [], [], [], []
    for seed in sorted({row.cell.seed for row in rows}):
        of_seed = [row for row in rows if row.cell.seed == seed]
        ours, theirs = (next((row for row in of_seed if name in row.arms), None) for name in (arm, other))
        if ours is not None and theirs is not None and ours.questions == theirs.questions:
            tables.append(_numbers(ours.arms[arm].right) - _numbers(theirs.arms[other].right))
            bases.append(_numbers(ours.base))
            steps.append(_numbers(ours.steps or (None,) * len(ours.base)))
            curves.append(_learned(ours.arms[arm]) - _learned(theirs.arms[other]))
    same = [table for table in tables if len(table) == len(tables[0])]

    def among(values: Array, bins: Bins) -> dict[str, Interval]:
        places = binned(values.tolist(), bins)
        return {name: hierarchical([table[inside] for table in same]) for name, inside in places.items()}

    solved, taken = (_over_seeds(each[: len(same)]) for each in (bases, steps))
    strata, horizons = (among(solved, STRATA), among(taken, HORIZONS)) if same else ({}, {})
    alike = [curve for curve in curves if len(curve) == len(curves[0])]
    return Contrast(regime, method, arm, other, hierarchical(same), len(same), strata, horizons, hierarchical(alike))


def standings(suite: Suite, outcomes: Sequence[Outcome]) -> list[Standing]:
    """Every arm of every row, `base` first, which costs nothing."""
    found = []
    for regime, method, rows in _rows(suite, outcomes):
        base = fmean(_mean_right(row.base) for row in rows)
        found.append(Standing(regime, method, "base", base, 0.0, 0.0, 0.0, 0.0, ()))
        for name in _arms(rows):
            each = [(row, row.arms[name]) for row in rows if name in row.arms]
            found.append(
                Standing(
                    regime,
                    method,
                    name,
                    fmean(_mean_right(arm.right) for _, arm in each),
                    fmean(arm.sampled_tokens for _, arm in each),
                    _mean([arm.trained_tokens for _, arm in each]),
                    _mean([flops(row, arm) for row, arm in each]),
                    fmean(_training_seconds(arm) for _, arm in each),
                    each[0][0].cell.tuned,
                    _curve([arm for _, arm in each]),
                )
            )
    return found


def reached_by_all(found: Sequence[Standing]) -> float:
    """The accuracy in training that every arm of a row has in some round; NaN without rounds."""
    return min((max(accuracy for _, accuracy in each.curve) for each in found if each.curve), default=nan)


def tokens_to_reach(curve: Sequence[tuple[float, float]], accuracy: float) -> float:
    """Sampled tokens after which a learning curve is first at an accuracy, on a straight line between its rounds.

    NaN if it never is.
    """
    for i, (tokens, here) in enumerate(curve):
        if here >= accuracy:
            if i == 0:
                return tokens
            before, lower = curve[i - 1]
            return before + (tokens - before) * (accuracy - lower) / (here - lower)
    return nan


def chosen(suite: Suite, outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str], tuple[tuple[str, str], ...]]:
    """For each regime, method and arm the settings with the best accuracy on development questions; ties: the first.

    Only rows whose every combination has finished count.
    """
    cells = list(suite.tuning_cells())
    done = {row.cell: row for row in outcomes}
    best: dict[tuple[str, str, str], tuple[float, tuple[tuple[str, str], ...]]] = {}
    for regime, method in dict.fromkeys((cell.regime, cell.method) for cell in cells):
        ours = [cell for cell in cells if (cell.regime, cell.method) == (regime, method)]
        if not all(cell in done for cell in ours):
            continue
        for tuned in dict.fromkeys(cell.tuned for cell in ours):
            rows = [done[cell] for cell in ours if cell.tuned == tuned]
            for arm in rows[0].arms:
                accuracy = fmean(_mean_right(row.arms[arm].right) for row in rows)
                key = (regime, method, arm)
                if key not in best or accuracy > best[key][0]:
                    best[key] = (accuracy, tuned)
    return {key: tuned for key, (_, tuned) in best.items()}


def budgets(suite: Suite, outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str], str]:
    """For each regime, method and arm the budget with which it takes as much as the dearest arm of its row.

    What the arms take is that of the matching phase, where all have one budget; it is taken to grow with the budget.

    Raises:
        ConfigError: an arm's FLOPs are not known.
    """
    taken: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for row in outcomes:
        if row.cell.phase == "matching":
            for name, arm in row.arms.items():
                cost = _training_seconds(arm) if suite.matched == "seconds" else flops(row, arm)
                if not cost:
                    raise ConfigError(
                        f"The suite {suite.name} is to match {suite.matched}, and what {name} takes in "
                        f"{row.cell.name} is not known. Match tokens instead."
                    )
                taken.setdefault((row.cell.regime, row.cell.method), {})[name] = resolve(row.options).budget, cost
    return {
        (*row, name): f"{budget * max(most for _, most in arms.values()) / cost:.2f}"
        for row, arms in taken.items()
        for name, (budget, cost) in arms.items()
    }


def _rows(suite: Suite, outcomes: Sequence[Outcome]) -> list[tuple[str, str, list[Outcome]]]:
    rows = []
    for regime in suite.regimes:
        for method in suite.methods:
            found = [
                row
                for row in outcomes
                if row.cell.phase == "test" and (row.cell.regime, row.cell.method) == (regime, method)
            ]
            if found:
                rows.append((regime, method, found))
    return rows


def _arms(rows: Sequence[Outcome]) -> list[str]:
    """In the order of the run, which a cell that trained some of them does not show."""
    known = {name for row in rows for name in row.arms}
    return [name for name in resolve(rows[0].options).arms if name in known]


def _learned(arm: ArmOutcome) -> Array:
    """Shares of the training questions of all rounds but the first, in which all arms are one model."""
    return np.concatenate([np.empty(0), *(_numbers(each.right) for each in arm.rounds[1:])])


def _curve(arms: Sequence[ArmOutcome]) -> tuple[tuple[float, float], ...]:
    """Means over seeds; as many rounds as every seed has."""
    rounds = zip(*(arm.rounds for arm in arms), strict=False)
    return tuple((fmean(r.tokens for r in each), fmean(_mean_right(r.right) for r in each)) for each in rounds)


def _numbers(right: Sequence[float | None]) -> Array:
    return np.array([nan if x is None else x for x in right], dtype=np.float64)


def _over_seeds(bases: Sequence[Array]) -> Array:
    """(Q,) the mean over seeds; NaN where no seed knows."""
    table = np.array(bases)
    there = ~np.isnan(table)
    counts = there.sum(axis=0)
    return np.where(counts > 0, np.where(there, table, 0.0).sum(axis=0) / np.maximum(counts, 1), nan)


def _mean_right(right: Sequence[float | None]) -> float:
    known = [x for x in right if x is not None]
    return fmean(known) if known else nan


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not isnan(value)]
    return fmean(known) if known and len(known) == len(values) else None


def _training_seconds(arm: ArmOutcome) -> float:
    """Of what the arm's model took; its evaluation is the measurement."""
    return sum(seconds for stage, seconds in arm.seconds.items() if stage not in ("evaluate", "report"))
