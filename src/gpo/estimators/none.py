"""No search: every reset is to the question itself. The plain baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpo.contracts import Sample
from gpo.estimators.tally import NO_EVIDENCE, Tally
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class NoReset:
    """Spends nothing and finds nothing; the reset boundary is 0."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory; only the observed reward is known."""
        return [replace(Tally(t).scores(None, "before", 0.95), reset_boundary=0) for t in trajectories]
