"""Recursive halving: the value in the middle tells which half holds the larger change.

    advantage: go where V_end - V_begin is larger; drop: smaller; magnitude: larger in size

Source: Pivotal Token Search (Phi-4 technical report, arXiv 2412.08905), which halves down to a token, and OmegaPRM
(arXiv 2406.06592), which halves steps; `level` says which.
The cost is about N (1 + log2 K) rollouts a trajectory. It assumes one change that outweighs the sum of the others in
its half; changes that cancel out within a half stay hidden, and one unlucky middle leads away for good. With a
`threshold` every half with a change of at least that size is searched, as in Phi-4.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from gpo.errors import ConfigError
from gpo.estimators.evidence import Block, Evidence, Reset, Rule, change, check, explore, reset_boundary, share_starts
from gpo.types import Sample, StepScores, Trajectory


@dataclass
class _Search:
    """The state of one trajectory's search."""

    evidence: Evidence
    opened: list[Block]  # blocks of several steps to halve
    found: list[Block] = field(default_factory=list)  # single steps


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
    share_start: bool = False  # V_0 from the other trajectories of the question where there are N of them
    share_path: bool = False  # a rollout that reproduces the next steps counts for them too
    confidence: float = 0.95  # of the interval of each value

    def __post_init__(self) -> None:
        check("Bisect", rollouts=self.rollouts, rule=self.rule, reset=self.reset, confidence=self.confidence)
        if self.level not in ("step", "token"):
            raise ConfigError(f"Bisect got level={self.level!r}; expected step or token.")
        if self.rule == "authors":
            raise ConfigError("Bisect follows differences; expected rule advantage, magnitude or drop, got authors.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(f"Bisect got threshold={self.threshold}; expected a change in (0, 1], or None.")

    def __call__(self, trajectories: Sequence[Trajectory], sample: Sample) -> list[StepScores]:
        """One result for each trajectory. Boundaries that were not looked at are NaN.

        With `share_start`, pass trajectories that were not chosen by their reward.
        """
        if self.level == "token":
            tokens = [replace(t, step_ends=tuple(range(1, len(t.response_ids) + 1))) for t in trajectories]
            found = replace(self, level="step")(tokens, sample)
            return [self._by_step(t, scores) for t, scores in zip(trajectories, found, strict=True)]
        searches = [_Search(Evidence(t), [(0, len(t.step_ends))] if self._explores(t) else []) for t in trajectories]
        live = [search for search in searches if search.opened]
        plans = [(search.evidence, [0]) for search in live]
        shares: list[tuple[Evidence, Evidence]] = []
        if self.share_start:
            shares = share_starts(plans, trajectories, self.rollouts, share_path=self.share_path)
        asks = [(evidence, boundary) for evidence, todo in plans for boundary in todo]
        while live:
            asks += [(s.evidence, _middle(block)) for s in live for block in s.opened if block[1] - block[0] > 1]
            explore(asks, self.rollouts, sample, share_path=self.share_path)
            for leader, follower in shares:
                follower.count(0, leader.groups[0].trajectories, share_path=self.share_path)
            asks, shares = [], []
            for search in live:
                halves = [half for block in search.opened for half in self._descend(search.evidence.values, block)]
                search.found += [half for half in halves if half[1] - half[0] == 1]
                search.opened = [half for half in halves if half[1] - half[0] > 1]
            live = [search for search in live if search.opened]
        return [s.evidence.scores(self._best(s), self.reset, self.confidence) for s in searches]

    def _by_step(self, trajectory: Trajectory, scores: StepScores) -> StepScores:
        """What a search over tokens says of the steps."""
        at = trajectory.boundaries
        values = [scores.values[i] for i in at]
        block = None
        if scores.critical_step is not None:
            step = bisect_right(trajectory.step_ends, scores.critical_step)
            block = (step, step + 1)
        return replace(
            scores,
            values=tuple(values),
            counts=tuple(scores.counts[i] for i in at),
            lower=tuple(scores.lower[i] for i in at),
            upper=tuple(scores.upper[i] for i in at),
            advantages=tuple(after - before for before, after in pairwise(values)),
            critical_step=None if block is None else block[0],
            reset_boundary=reset_boundary(block, self.reset, len(values) - 1),
        )

    def _explores(self, trajectory: Trajectory) -> bool:
        return bool(trajectory.step_ends) and trajectory.score.value is not None

    def _descend(self, values: Sequence[float], block: Block) -> list[Block]:
        """The halves to go on with; a block of one step is its own half."""
        middle = _middle(block)
        halves = [(block[0], middle), (middle, block[1])] if middle > block[0] else [block]
        changed = [half for half in halves if values[half[0]] != values[half[1]]]
        if self.threshold is not None:
            return [half for half in changed if change(values, half, "magnitude") >= self.threshold]
        return [max(halves, key=lambda half: change(values, half, self.rule))] if changed else []

    def _best(self, search: _Search) -> Block | None:
        values = search.evidence.values
        return max(search.found, key=lambda block: change(values, block, self.rule), default=None)


def _middle(block: Block) -> int:
    return (block[0] + block[1]) // 2
