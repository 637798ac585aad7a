"""A random step: the control that tells the worth of a reset from the worth of the place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpo.estimators.tally import NO_EVIDENCE, Tally
from gpo.types import Evidence, Sample, StepScores, Trajectory


@dataclass(frozen=True)
class RandomStep:
    """Resets before a step drawn uniformly from all K, the first included; spends nothing.

    The draw depends on `seed` and the trajectory's id only, so that it does not depend on how work is split. A response
    without steps has no reset.
    """

    seed: int = 0

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory."""
        return [Tally(t).scores(self._block(t), "before", 0.95) for t in trajectories]

    def _block(self, trajectory: Trajectory) -> tuple[int, int] | None:
        if not trajectory.step_ends:
            return None
        rng = np.random.default_rng([self.seed, *trajectory.id.encode()])
        step = int(rng.integers(len(trajectory.step_ends)))
        return step, step + 1
