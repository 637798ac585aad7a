"""No search: every reset is to the question itself. The plain baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.tally import NO_EVIDENCE, Tally
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class NoReset:
    """Spends nothing and finds nothing; the reset boundary is 0.

    The questions take turns in their order. With `order` "mixed" those with right and wrong first rollouts come first,
    then those always wrong: rollouts go where groups have both outcomes, much as dynamic sampling keeps such groups
    alone (DAPO, Yu et al. 2025, arXiv 2503.14476).
    """

    order: Literal["even", "mixed"] = "even"

    def __post_init__(self) -> None:
        if self.order not in ("even", "mixed"):
            raise ConfigError(f"none: order is {self.order!r}; expected even or mixed.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory; only the observed reward is known."""
        return [replace(Tally(t).scores(None, "before", 0.95), reset_boundary=0) for t in trajectories]
