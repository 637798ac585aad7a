"""A search of one's own in a whole run: reset before the step in which the policy was least sure.

python examples/own_search.py [DIRECTORY]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import gpo
from gpo.contracts import Sample
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class LeastSure:
    """Spends nothing: it reads the log-probabilities that the rollouts came with."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = Evidence()
    ) -> list[StepScores]:
        return [self.look(trajectory) for trajectory in trajectories]

    def look(self, trajectory: Trajectory) -> StepScores:
        logprobs = trajectory.completion.logprobs or ()
        token = min(range(len(logprobs)), key=logprobs.__getitem__, default=None)
        step = None if token is None else sum(end <= token for end in trajectory.step_ends)
        unknown = (nan,) * len(trajectory.boundaries)
        return StepScores(
            trajectory.id,
            values=unknown,
            counts=(0,) * len(unknown),
            lower=unknown,
            upper=unknown,
            advantages=unknown[1:],
            critical_step=step,
            reset_boundary=step,
            tokens=0,
        )


if __name__ == "__main__":
    directory = sys.argv[1] if len(sys.argv) > 1 else "runs/own_search"
    config = gpo.RunConfig(
        task="chain", engine="chain", arms={"sure": LeastSure(), "random": "random_unsearched"}, rollouts=4
    )
    run = gpo.Run(directory, config)
    for arm in config.arms:
        groups = run.reset(arm)
        right = [trajectory.score.right for group in groups for trajectory in group.trajectories]
        print(
            f"{arm}: {len(groups)} resets, {sum(right) / len(right):.0%} of {len(right)} rollouts behind them are right"
        )
