"""Recursive halving: the value in the middle tells which half holds the larger change.

    advantage: go where V_end - V_begin is larger; drop: smaller; magnitude: larger in size

Source: Pivotal Token Search (Phi-4 technical report, arXiv 2412.08905), which halves down to a token, and OmegaPRM
(arXiv 2406.06592), which halves steps; `level` says which.
The cost is about N (1 + log2 K) rollouts a trajectory. It assumes one change that outweighs the sum of the others in
its half; changes that cancel out within a half stay hidden, and one unlucky middle leads away for good. With a
`threshold` every half with a change of at least that size is searched, as in Phi-4.

A boundary whose value stays unknown (all its grades failed, or nothing was left to sample) is no end of a half: the
search looks a quarter to its left, then to its right, and halves the block no further if these fail too. Its first step
then stands for the block, as it does where the tokens end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Literal

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.tally import (
    NO_EVIDENCE,
    Block,
    Reset,
    Rule,
    Tally,
    change,
    check,
    explore,
    revalued,
    share_starts,
)
from gpo.types import Evidence, StepScores, Trajectory


@dataclass
class _Search:
    """The state of one trajectory's search."""

    tally: Tally
    opened: list[Block]  # blocks to halve
    found: list[Block] = field(default_factory=list)  # single steps, and blocks that cannot be halved
    looked: set[int] = field(default_factory=set)  # boundaries asked for

    def middle(self, block: Block) -> int | None:
        """The next boundary to look at inside a block; None if there is none."""
        begin, end = block
        places = ((begin + end) // 2, (3 * begin + end) // 4, (begin + 3 * end) // 4)
        return next((place for place in places if begin < place < end and place not in self.looked), None)


@dataclass(frozen=True)
class Bisect:
    """Halving on the value difference, all trajectories in step.

    Degenerate cases: a response without steps, an ungraded one and one without any change have no critical step.
    """

    rollouts: int = 4  # at each boundary that is looked at
    rule: Rule = "advantage"  # advantage, magnitude or drop
    reset: Reset = "before"
    level: Literal["step", "token"] = "step"  # token: halve down to one token; the step that holds it is critical
    threshold: float | None = None  # search every half that changes by this; None: the one with the larger change
    share_start: bool = False  # V_0 from the other rollouts of the question where there are N of them
    share_path: bool = False  # a rollout that reproduces the next steps counts for them too
    confidence: float = 0.95  # of the interval of each value

    def __post_init__(self) -> None:
        check(self)
        if self.rule == "authors":
            raise ConfigError("Bisect follows differences; expected rule advantage, magnitude or drop, got authors.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(f"Bisect got threshold={self.threshold}; expected a change in (0, 1], or None.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory. Boundaries that were not looked at are NaN.

        With `share_start`, V_0 is the mean of all else that was sampled from the question: see `known_rollouts`.
        """
        if self.level == "token":
            tokens = [replace(t, step_ends=tuple(range(1, len(t.response_ids) + 1))) for t in trajectories]
            found = replace(self, level="step")(tokens, sample, evidence)
            return [self._by_step(t, scores) for t, scores in zip(trajectories, found, strict=True)]
        searches = [_Search(Tally(t), [(0, len(t.step_ends))] if self._explores(t) else []) for t in trajectories]
        live = [search for search in searches if search.opened]
        plans = [(search.tally, [0]) for search in live]
        followers: list[tuple[Tally, Tally]] = []
        if self.share_start:
            followers = share_starts(plans, trajectories, evidence, self.rollouts, share_path=self.share_path)
        asks = [(tally, boundary) for tally, todo in plans for boundary in todo]
        while live and sample.left != 0:
            for search in live:
                middles = {middle for block in search.opened if (middle := search.middle(block)) is not None}
                search.looked |= middles
                asks += [(search.tally, middle) for middle in sorted(middles)]
            explore(asks, self.rollouts, sample, share_path=self.share_path, followers=followers)
            asks, followers = [], []
            for search in live:
                self._descend(search)
            live = [search for search in live if search.opened]
        return [s.tally.scores(self._best(s), self.reset, self.confidence) for s in searches]

    def _by_step(self, trajectory: Trajectory, scores: StepScores) -> StepScores:
        """What a search over tokens says of the steps."""
        block = None
        if scores.critical_step is not None:
            step = bisect_right(trajectory.step_ends, scores.critical_step)
            block = (step, step + 1)
        rows = (scores.values, scores.counts, scores.lower, scores.upper)
        values, counts, lower, upper = (tuple(row[i] for i in trajectory.boundaries) for row in rows)
        return revalued(scores, values, block, self.reset, counts=counts, lower=lower, upper=upper)

    def _explores(self, trajectory: Trajectory) -> bool:
        return bool(trajectory.step_ends) and trajectory.score.value is not None

    def _descend(self, search: _Search) -> None:
        """Open the halves that the rule prefers, of each block whose middle is known."""
        values, blocks = search.tally.values, search.opened
        search.opened = []
        for block in blocks:
            known = [k for k in range(block[0] + 1, block[1]) if k in search.looked and not isnan(values[k])]
            if known:
                for half in self._preferred(values, [(block[0], known[0]), (known[0], block[1])]):
                    (search.opened if half[1] - half[0] > 1 else search.found).append(half)
            elif search.middle(block) is not None:
                search.opened.append(block)
            else:
                search.found += self._preferred(values, [block])

    def _preferred(self, values: Sequence[float], halves: Sequence[Block]) -> list[Block]:
        known = [half for half in halves if not isnan(change(values, half, self.rule))]
        sizes = [change(values, half, "magnitude") for half in known]
        if self.threshold is not None:
            return [half for half, size in zip(known, sizes, strict=True) if size >= self.threshold]
        return [max(known, key=lambda half: change(values, half, self.rule))] if any(sizes) else []

    def _best(self, search: _Search) -> Block | None:
        """Where nothing was left to sample, the blocks that are still open compete too."""
        values = search.tally.values
        known = [b for b in [*search.found, *search.opened] if not isnan(change(values, b, self.rule))]
        return max(known, key=lambda block: change(values, block, self.rule), default=None)
