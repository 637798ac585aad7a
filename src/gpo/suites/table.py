"""What a suite says of its methods and regimes: paired differences over seeds and questions, costs, strata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import isnan, nan, sqrt
from statistics import fmean, median
from typing import Any

import numpy as np

from gpo.config.options import resolve
from gpo.statistics import HORIZONS, STRATA, Bins, Interval, binned, crossed_mean, half_width
from gpo.storage.directory import BASE
from gpo.suites.outcome import ArmOutcome, Outcome, flops, mean_right, method_of
from gpo.suites.settings import present
from gpo.suites.suite import Options, Suite

Array = np.ndarray[Any, np.dtype[np.float64]]
# Of a difference of two arms, where nothing was measured yet: spread of what seeds do to it, by what a method trains
# on, spread of its truth over questions, and the variance of a sample within its question.
SEED_SPREAD = {"pairs": 0.02, "groups": 0.03}
QUESTION_SPREAD, WITHIN = 0.1, 0.12
DRAWS = 4000
POINTS = 20  # of a learning curve at most


@dataclass(frozen=True)
class Contrast:
    """An arm against another one, in one row of the table."""

    regime: str
    method: str
    arm: str
    other: str
    origin: str  # the method of the other one; that of the arm, but where a row is compared with the one it is from
    difference: Interval  # of accuracy, arm minus other; n counts questions
    seeds: int
    strata: dict[str, Interval]  # the same among the questions of a stratum
    horizons: dict[str, Interval]  # and among those of so many steps; NaN where outcomes do not tell
    learning: Interval  # difference of the accuracy in training, mean over the rounds from the second; NaN without

    @property
    def name(self) -> str:
        """Of the two arms, such as `gpo - plain` or `gpo - gpo of dpo`."""
        return f"{self.arm} - {self.other}{f' of {self.origin}' * (self.origin != self.method)}"


@dataclass(frozen=True)
class Standing:
    """An arm in one row of the table; means over seeds, of seconds the median: one stall would rule their mean."""

    regime: str
    method: str
    arm: str
    accuracy: float
    sampled_tokens: float
    trained_tokens: float | None
    flops: float | None
    seconds: float
    tuned: tuple[tuple[str, str], ...]
    curve: tuple[tuple[float, float], ...] = ()  # tokens sampled before a round, accuracy in it before it trains


def detectable(questions: int, samples: int, seeds: int, *, groups: bool = False, power: float = 0.8) -> float:
    """The true difference of two arms that an interval of 95% excludes 0 for with probability `power`.

    The interval is `crossed_mean`'s. Its mean squares are drawn (normal effects), with the expected values
    E = 2 WITHIN / samples of what is left, E + S QUESTION_SPREAD^2 of Q questions and E + Q SEED_SPREAD^2 of S seeds.

    Args:
        groups: the method trains on groups (online), whose seeds differ more.
    """
    rng = np.random.default_rng(0)
    rest, spread = 2 * WITHIN / samples, SEED_SPREAD["groups" if groups else "pairs"] ** 2
    expected = rest + questions * spread, rest + seeds * QUESTION_SPREAD**2, rest
    of_seeds, of_questions = max(1, seeds - 1), max(1, questions - 1)
    degrees = of_seeds, of_questions, of_seeds * of_questions
    drawn = [each * rng.chisquare(n, DRAWS) / n for each, n in zip(expected, degrees, strict=True)]
    if seeds == 1:  # the interval knows of questions only, and the difference has what the seed does
        drawn = [np.zeros(DRAWS), drawn[1], np.zeros(DRAWS)]
    half = half_width(*drawn, degrees=degrees, cells=seeds * questions)
    error = sqrt((expected[0] + expected[1] - rest) / (seeds * questions)) * rng.standard_normal(DRAWS)
    return min(1.0, float(np.quantile(half - error, power)))


def trains_on_groups(options: Options) -> bool:
    """Whether a run with these options is an online one."""
    return bool(method_of(options).trains_on == "groups")


def contrasts(suite: Suite, outcomes: Sequence[Outcome]) -> list[Contrast]:
    """Every arm of a row against those before it, the last one first, and against the model before training.

    Where the row is from another one, against the same arm there too, and against those that only the other one has.
    Over the seeds that both have finished, of those that ask the same questions.
    """
    found = []
    rows_of = {(regime, method): rows for regime, method, rows in _rows(suite, outcomes)}
    for (regime, method), rows in rows_of.items():
        arms = _arms(rows)
        origin = suite.origins.get(method, method)
        theirs = rows_of.get((regime, origin), []) if origin != method else []
        for last, arm in reversed(list(enumerate(arms))):
            found += [_contrast(rows, arm, other, rows) for other in [*arms[:last], BASE]]
            elsewhere = [other for other in (_arms(theirs) if theirs else []) if other == arm or other not in arms]
            found += [_contrast(rows, arm, other, theirs) for other in elsewhere]
    return [each for each in found if each.seeds]


def _contrast(rows: Sequence[Outcome], arm: str, other: str, others: Sequence[Outcome]) -> Contrast:
    pairs: list[tuple[Outcome, ArmOutcome, ArmOutcome | None]] = []
    for seed in sorted({row.cell.seed for row in rows}):
        ours = _having(arm, rows, seed)
        theirs = ours if other == BASE else _having(other, others, seed)
        if ours is not None and theirs is not None and ours.questions == theirs.questions:
            pairs.append((ours, ours.arms[arm], theirs.arms.get(other)))
    pairs = [each for each in pairs if each[0].questions == pairs[0][0].questions]
    table, solved, taken, curves = [], [], [], []
    for row, mine, yours in pairs:
        table.append(_numbers(mine.right) - _numbers(row.base if yours is None else yours.right))
        solved.append(_numbers(row.base))
        taken.append(_numbers(row.steps or (None,) * len(row.base)))
        problems = resolve(row.options).problems
        alike = rows is others or _questions_of(row.options) == _questions_of(others[0].options)
        if yours is not None and yours.rounds and alike and _asked(mine) == _asked(yours):
            curves.append(_learned(mine, problems) - _learned(yours, problems))
    return Contrast(
        rows[0].cell.regime,
        rows[0].cell.method,
        arm,
        other,
        others[0].cell.method,
        crossed_mean(table),
        len(pairs),
        _among(table, _of_other_seeds(solved), STRATA),
        _among(table, [_over_seeds(taken)] * len(table), HORIZONS),
        crossed_mean([curve for curve in curves if len(curve) == min(map(len, curves))]),
    )


def _having(arm: str, rows: Sequence[Outcome], seed: int) -> Outcome | None:
    return next((row for row in rows if row.cell.seed == seed and arm in row.arms), None)


def _among(table: Sequence[Array], values: Sequence[Array], bins: Bins) -> dict[str, Interval]:
    """The differences in each bin of the values, (S, Q) both."""
    places = [binned(each.tolist(), bins) for each in values]
    found = {}
    for name, _ in bins:
        inside = np.full((len(table), len(table[0]) if table else 0), nan)
        for row, differences, of_seed in zip(inside, table, places, strict=True):
            row[of_seed[name]] = differences[of_seed[name]]
        found[name] = crossed_mean(inside)
    return found


def _of_other_seeds(bases: Sequence[Array]) -> list[Array]:
    """How often each question is solved before training, for each seed by the answers of the others.

    The models of a run answer with the random numbers of its base: one that hardly moved repeats its luck, and would
    look worse where base was lucky. With one seed there is nothing else.
    """
    if len(bases) < 2:
        return list(bases)
    return [_over_seeds([base for j, base in enumerate(bases) if j != i]) for i in range(len(bases))]


def standings(suite: Suite, outcomes: Sequence[Outcome]) -> list[Standing]:
    """Every arm of every row, `base` first, which costs nothing."""
    found = []
    for regime, method, rows in _rows(suite, outcomes):
        base = fmean(mean_right(row.base) for row in rows)
        found.append(Standing(regime, method, BASE, base, 0.0, 0.0, 0.0, 0.0, ()))
        for name in _arms(rows):
            each = [(row, row.arms[name]) for row in rows if name in row.arms]
            found.append(
                Standing(
                    regime,
                    method,
                    name,
                    fmean(mean_right(arm.right) for _, arm in each),
                    fmean(arm.sampled_tokens for _, arm in each),
                    _mean([arm.trained_tokens for _, arm in each]),
                    _mean([flops(row, arm) for row, arm in each]),
                    median(arm.training_seconds for _, arm in each),
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


def _rows(suite: Suite, outcomes: Sequence[Outcome]) -> list[tuple[str, str, list[Outcome]]]:
    rows: dict[tuple[str, str], list[Outcome]] = {row: [] for row in product(suite.regimes, suite.methods)}
    for outcome in present(suite, outcomes):
        if (row := (outcome.cell.regime, outcome.cell.method)) in rows:
            rows[row].append(outcome)
    return [(*row, found) for row, found in rows.items() if found]


def _arms(rows: Sequence[Outcome]) -> list[str]:
    """In the order of the run, which a cell that trained some of them does not show."""
    known = {name for row in rows for name in row.arms}
    return [name for name in resolve(rows[0].options).arms if name in known]


def _questions_of(options: Options) -> tuple[object, ...]:
    """What says which questions a round has."""
    config = resolve(options)
    return config.task, config.problems, config.round_problems


def _asked(arm: ArmOutcome) -> list[int]:
    """How many questions each round has."""
    return [len(each.right) for each in arm.rounds]


def _learned(arm: ArmOutcome, problems: int) -> Array:
    """Shares of the training questions in all rounds but the first, in which all arms are one model.

    A question that comes round again (`questions.questions_of`) is one, with the mean of its rounds.
    """
    size = len(arm.rounds[0].right)
    count = max(size, problems)
    found: dict[int, list[float]] = {}
    for number, each in enumerate(arm.rounds[1:], 1):
        for place, right in enumerate(_numbers(each.right).tolist(), number * size):
            found.setdefault(place % count, []).append(right)
    return np.array([_over_seeds([np.array([x]) for x in found[place]])[0] for place in sorted(found)])


def _curve(arms: Sequence[ArmOutcome]) -> tuple[tuple[float, float], ...]:
    """Means over seeds; as many rounds as every seed has. Many rounds are small: of those the means of some in turn."""
    rounds = list(zip(*(arm.rounds for arm in arms), strict=False))
    size = -(-len(rounds) // POINTS)
    parts = [list(chain.from_iterable(rounds[i : i + size])) for i in range(0, len(rounds), size or 1)]
    return tuple((fmean(r.tokens for r in part), fmean(mean_right(r.right) for r in part)) for part in parts)


def _numbers(right: Sequence[float | None]) -> Array:
    return np.array([nan if x is None else x for x in right], dtype=np.float64)


def _over_seeds(bases: Sequence[Array]) -> Array:
    """(Q,) the mean over seeds; NaN where no seed knows."""
    table = np.array(bases)
    there = ~np.isnan(table)
    counts = there.sum(axis=0)
    return np.where(counts > 0, np.where(there, table, 0.0).sum(axis=0) / np.maximum(counts, 1), nan)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not isnan(value)]
    return fmean(known) if known and len(known) == len(values) else None
