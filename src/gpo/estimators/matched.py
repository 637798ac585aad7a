"""The matched control: the same trajectories and tokens as a search, and a random step in place of the one it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.random import random_step
from gpo.estimators.tally import NO_EVIDENCE
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class MatchedRandom:
    """Repeats the search of another arm and forgets which step it found: what differs is the place, nothing else.

    In a run the first round's search is that arm's own, taken over with `choose`; in later rounds, where each arm's
    model has trajectories of its own, `search` runs on them.
    """

    arm: str = "gpo"  # whose search it repeats
    seed: int | None = None  # None: 0; a run gives its own
    search: Any = None  # an estimator; a run hands over that of the arm

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory.

        Raises:
            ConfigError: there is no search.
        """
        if self.search is None:
            raise ConfigError(
                f"MatchedRandom repeats the search of arm {self.arm!r} and was given none. It belongs in a run "
                "that has this arm; elsewhere give search= an estimator."
            )
        found = self.search(trajectories, sample, evidence)
        return [self.choose(scores, trajectory) for scores, trajectory in zip(found, trajectories, strict=True)]

    def choose(self, scores: StepScores, trajectory: Trajectory) -> StepScores:
        """What the search said, with a step drawn uniformly from all K, and a reset before it, where it found one."""
        if scores.critical_step is None:
            return scores
        step = random_step(self.seed, trajectory)
        return replace(scores, critical_step=step, reset_boundary=step)
