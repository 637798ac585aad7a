"""Which arm to choose: by what was measured near a run, and where nothing was, by what docs/theory.md computes.

Nothing is promised that was not measured: where the interval of what was holds 0, it is a tie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from pathlib import Path

from scipy.special import ndtri

from gpo.advice.pilot import Pilot
from gpo.statistics import Interval
from gpo.suites.table import SEED_SPREAD

NEAR = 0.1  # of a measurement's base success, to tell of a run
RARE = 0.3  # success below which theory has resets ahead, whether steps share skills or not
Z = float(ndtri(0.975))


@dataclass(frozen=True)
class Evidence:
    """A measured difference of accuracy, at equal sampled tokens: an arm with a search minus plain sampling."""

    method: str
    pairs: bool  # trained on pairs, else on groups
    model: str
    base: float  # accuracy before training
    difference: float
    lower: float  # 95%; of one seed, over questions only
    upper: float
    seeds: int
    questions: int
    where: str  # it was measured and is told
    by_stratum: bool = False  # the tokens of the arm with the search went by stratum (`allocation`)

    @property
    def variance(self) -> float:
        """At least what seeds do to a difference, and of one or two seeds that as well: a few may agree by luck."""
        of_seed = SEED_SPREAD["pairs" if self.pairs else "groups"] ** 2 / self.seeds
        measured = ((self.upper - self.lower) / (2 * Z)) ** 2
        return measured + of_seed if self.seeds < 3 else max(measured, of_seed)


@dataclass(frozen=True)
class Expectation:
    """What is expected of a search against plain sampling."""

    search: bool  # choose the arm that searches
    tie: bool
    measured: Interval | None  # in shares; n counts comparisons. None: nothing was measured near
    rule: float  # worth of a token behind the found places over one at the questions; NaN: nothing was searched
    reason: str


def known_evidence() -> list[Evidence]:
    """What ships with GPO."""
    rows = Path(__file__).with_name("evidence.jsonl").read_text(encoding="utf-8").splitlines()
    return [Evidence(**json.loads(row)) for row in rows]


def pooled(rows: Sequence[Evidence]) -> Interval:
    """The mean by precision, as if all measured one difference."""
    weights = [1 / row.variance for row in rows]
    mean = sum(weight * row.difference for weight, row in zip(weights, rows, strict=True)) / sum(weights)
    error = Z / sqrt(sum(weights))
    return Interval(mean, mean - error, mean + error, len(rows))


def expect(
    pilot: Pilot, pairs: bool, evidence: Sequence[Evidence], by_stratum: bool = False, method: str | None = None
) -> Expectation:
    """What a run like the pilot's may expect of a search.

    1. Measurements of the same method and allocation whose base success is within `NEAR` decide, pooled; where the
       method has none, those of its kind. An interval that holds 0 is a tie, and plain sampling is taken, which is
       simpler.
    2. Else, if success is rare, the search is taken if the rule v (1 - v) / tokens speaks for it: theory has resets
       ahead there with separate and with shared skills alike.
    3. Else plain sampling: a search is paid for before it gives anything.

    Args:
        pairs: the method trains on pairs.
        by_stratum: the tokens of the arm that searches go by stratum.
        method: its name; None: that of none that was measured.
    """
    rule = pilot.reset_practice / pilot.fresh_practice if pilot.fresh_practice else float("nan")
    same = [row for row in evidence if (row.pairs, row.by_stratum) == (pairs, by_stratum)]
    near = [row for row in same if abs(row.base - pilot.success) <= NEAR]
    if near:
        near = [row for row in near if row.method == method] or near
        found = pooled(near)
        reason = f"{_count(near)} near this, {_bases(near)}"
        return Expectation(found.lower > 0, found.lower <= 0 <= found.upper, found, rule, reason)
    kind = "pairs" if pairs else "groups"
    there = f"; with {kind} there is {_bases(same)}" if same else f"; with {kind} nothing at all"
    reason = f"nothing was measured near a success of {pilot.success:.2f}{there}"
    search = pilot.success <= RARE and not isnan(rule) and rule > 1
    return Expectation(search, False, None, rule, reason)


def _count(rows: Sequence[Evidence]) -> str:
    return "one measurement" if len(rows) == 1 else f"{len(rows)} measurements"


def _bases(rows: Sequence[Evidence]) -> str:
    low, high = (f"{of(row.base for row in rows):.2f}" for of in (min, max))
    return f"base success {low}{f' to {high}' * (low != high)}"
