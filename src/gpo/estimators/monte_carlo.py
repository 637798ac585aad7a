"""Monte Carlo values: N rollouts from every step boundary.

    V_k = mean reward of N rollouts from prefix y_{<k},  A_k = V_{k+1} - V_k,  critical step = argmax_k A_k

Source: GPO (arXiv 2509.16456), Algorithm 1. The cost is K x N rollouts a trajectory. With N = 4 the standard error of a
value is up to 0.25 and of an advantage up to 0.35, and the maximum of noisy advantages is too high (winner's curse):
re-estimate the value of the chosen step on fresh rollouts before reporting it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.tally import NO_EVIDENCE, Reset, Rule, Tally, check, choose, explore, grid, share_starts
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class MonteCarlo:
    """Uniform Monte Carlo at every boundary; the defaults are the paper's.

    Degenerate cases: a response without steps, one that is not explored, and values that are all equal have no critical
    step and no reset.
    """

    rollouts: int = 4  # N; the paper improves up to 12
    rule: Rule = "advantage"
    reset: Reset = "before"  # the critical step, so that it is practised
    explored: Literal["all", "failed"] = "all"  # failed: only trajectories that were graded and are not right
    max_steps: int | None = None  # more steps than this are joined to blocks, evenly; None is no limit
    min_step_tokens: int = 1  # shorter steps join the next one
    early_stop: bool = False  # boundaries one after the other, until the mean of one reaches 1
    share_start: bool = False  # V_0 from the other rollouts of the question where there are N of them
    share_path: bool = False  # a rollout that reproduces the next steps counts for them too
    confidence: float = 0.95  # of the interval of each value

    def __post_init__(self) -> None:
        check(self)
        if self.min_step_tokens < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise ConfigError(
                f"MonteCarlo got min_step_tokens={self.min_step_tokens}, max_steps={self.max_steps}; "
                "both must be at least 1 (max_steps None means no limit)."
            )

    @classmethod
    def paper(cls) -> MonteCarlo:
        """Algorithm 1 with the paper's settings."""
        return cls()

    @classmethod
    def authors(cls) -> MonteCarlo:
        """The rule of the authors' development code: the best prefix of a failed trajectory.

        It goes with `gpo.rollout.segmenters.Authors`; the limits of that segmenter are set here too.
        """
        return cls(rule="authors", explored="failed", max_steps=30, min_step_tokens=30, early_stop=True)

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory. Boundaries that were joined or not reached are NaN.

        With `share_start`, V_0 is the mean of all else that was sampled from the question: see `known_rollouts`.
        """
        tallies = [Tally(trajectory) for trajectory in trajectories]
        limits = (self.max_steps, self.min_step_tokens)
        plans = [(t, list(grid(t.trajectory, *limits)[:-1])) for t in tallies if self._explores(t.trajectory)]
        followers: list[tuple[Tally, Tally]] = []
        if self.share_start:
            followers = share_starts(plans, trajectories, evidence, self.rollouts, share_path=self.share_path)
        while plans and sample.left != 0:
            asks = [(tally, boundary) for tally, todo in plans for boundary in (todo[:1] if self.early_stop else todo)]
            explore(asks, self.rollouts, sample, share_path=self.share_path, followers=followers)
            followers = []
            plans = [(t, todo[1:]) for t, todo in plans if self.early_stop and todo[1:] and 1.0 not in t.values[:-1]]
        return [
            t.scores(choose(t.values, self.rule) if self._explores(t.trajectory) else None, self.reset, self.confidence)
            for t in tallies
        ]

    def _explores(self, trajectory: Trajectory) -> bool:
        return self.explored == "all" or (trajectory.score.value is not None and not trajectory.score.right)
