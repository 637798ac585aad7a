"""Halving for a boundary whose value is near 1/2: where success and failure are both to be had.

The value of a right trajectory ends at 1 and that of a wrong one at 0. Where the outcome was rare it crosses 1/2 in
between: a rare success rises to it from below, a rare failure falls to it from above. The middle tells on which side:

    right trajectory: V_middle > 1/2 -> look before it, else behind it; wrong trajectory: the other way round

until a middle is within `near` of 1/2, or one step is left. A trajectory that a round before has searched begins where
that search ended: a little training has not moved the place far. The reset is to the boundary looked at whose value is
nearest 1/2, if both outcomes were seen there. The cost is at most N log2 K rollouts, N more where it begins at a known
place, all from prefixes near one that is worth training on (of groups, `reuse` trains on them).

Assumption: the value crosses 1/2 once. Where it does so more often, one of the crossings is found.
Source: prefixes of own rare successes and failures, arXiv 2601.18795 and 2601.20829; the halving is as in `bisect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isnan

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.tally import NO_EVIDENCE, Tally, check, explore
from gpo.types import Evidence, StepScores, Trajectory


@dataclass
class _Search:
    tally: Tally
    begin: int
    end: int
    known: int | None = None  # the boundary that a round before has found
    looked: list[int] = field(default_factory=list)

    @property
    def middle(self) -> int:
        """The boundary to look at next."""
        if self.known is not None and not self.looked and self.begin < self.known < self.end:
            return self.known
        return (self.begin + self.end) // 2


@dataclass(frozen=True)
class Halfway:
    """Halving on the value, all trajectories in step.

    Degenerate cases: a response of less than two steps, an ungraded one, and one on which no boundary that was looked
    at has both outcomes, have no critical step.
    """

    rollouts: int = 4  # at each boundary that is looked at
    near: float = 0.25  # how far from 1/2 a value may be for the search to stop there
    confidence: float = 0.95  # of the interval of each value

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.near < 0.5:
            raise ConfigError(f"Halfway got near={self.near}; expected a distance from 0 to below 0.5.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory. The critical step is the one behind the boundary that was found."""
        # Not their resets, which a matched control has drawn at random.
        before = {
            scores.trajectory_id: _nearest(scores.values, range(1, len(scores.values) - 1))
            for scores in evidence.earlier
        }
        searches = [
            _Search(Tally(t), 0, len(t.step_ends) if t.score.value is not None else 0, before.get(t.id))
            for t in trajectories
        ]
        live = [search for search in searches if search.end > 1]
        while live and sample.left != 0:
            for search in live:
                search.looked.append(search.middle)
            explore([(search.tally, search.looked[-1]) for search in live], self.rollouts, sample)
            live = [search for search in live if self._goes_on(search)]
        found = [_nearest(search.tally.values, search.looked) for search in searches]
        return [
            search.tally.scores(None if at is None else (at, at + 1), "before", self.confidence)
            for search, at in zip(searches, found, strict=True)
        ]

    def _goes_on(self, search: _Search) -> bool:
        """Keep the half in which the value crosses 1/2; False once there is nothing more to look at."""
        here = search.looked[-1]
        value = search.tally.values[here]
        if isnan(value) or abs(value - 0.5) <= self.near:
            return False
        if (value > 0.5) == search.tally.trajectory.score.right:
            search.end = here
        else:
            search.begin = here
        return search.end - search.begin > 1


def _nearest(values: Sequence[float], boundaries: Iterable[int]) -> int | None:
    """Of the boundaries where both outcomes were seen the one whose value is nearest 1/2, the first of equals."""
    mixed = [boundary for boundary in boundaries if 0 < values[boundary] < 1]
    return min(mixed, key=lambda boundary: abs(values[boundary] - 0.5), default=None)
