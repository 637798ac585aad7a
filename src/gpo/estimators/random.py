"""A random step, without a search: the control that tells the worth of a reset from the worth of the place.

An arm with it spends nothing on locating, so that it resets to more places than an arm that searches; the control that
differs in the place only is `gpo.estimators.matched`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpo.contracts import Sample
from gpo.estimators.tally import NO_EVIDENCE, Block, Tally
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class RandomStep:
    """Resets before a step drawn uniformly from all K, the first included; spends nothing.

    A response without steps has no reset.
    """

    seed: int | None = None  # None: 0; a run gives its own

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory."""
        return [Tally(t).scores(self._block(t), "before", 0.95) for t in trajectories]

    def _block(self, trajectory: Trajectory) -> Block | None:
        if not trajectory.step_ends:
            return None
        step = random_step(self.seed, trajectory)
        return step, step + 1


def random_step(seed: int | None, trajectory: Trajectory) -> int:
    """One of the K steps. It depends on the seed and the trajectory's id, and not on how work is split."""
    rng = np.random.default_rng([seed or 0, *trajectory.id.encode()])
    return int(rng.integers(len(trajectory.step_ends)))
