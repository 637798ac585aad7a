"""The step whose tokens were the least certain: no rollouts, the cheap baseline that others propose.

    score_k = mean surprisal (-log p, in nats) of the tokens of step k,  critical step = argmax_k score_k

The surprisal of a sampled token is an unbiased one-sample estimate of the entropy of the distribution it came from. It
finds where the policy hesitates, which need not matter: two wordings of one thought are a choice too. It knows no rule
and no reward: the step is the same whether a gain or a loss is looked for. Where steps begin alike and decide later
("So", "= 12"), their first tokens alone (`first_tokens`) find a loss less often than all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpo.contracts import Sample
from gpo.errors import ConfigError, DataError
from gpo.estimators.tally import NO_EVIDENCE, Block, Reset, Tally, check, largest
from gpo.types import Evidence, StepScores, Trajectory


@dataclass(frozen=True)
class Entropy:
    """Reads the log-probabilities of the trajectory; only the observed reward is known of the values.

    Steps of a kept prefix have none and are passed over. Degenerate case: no step with a surprisal above 0, no reset.
    """

    first_tokens: int | None = None  # of each step; None: all
    reset: Reset = "before"

    def __post_init__(self) -> None:
        check(self)
        if self.first_tokens is not None and self.first_tokens < 1:
            raise ConfigError(f"Entropy got first_tokens={self.first_tokens}; expected at least 1, or None for all.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory.

        Raises:
            DataError: a trajectory was sampled without log-probabilities.
        """
        return [Tally(t).scores(self._block(t), self.reset, 0.95) for t in trajectories]

    def _block(self, trajectory: Trajectory) -> Block | None:
        if trajectory.completion.logprobs is None:
            raise DataError(f"Trajectory {trajectory.id!r} has no log-probabilities; sample it with logprobs=True.")
        kept = len(trajectory.start.prefix_ids)
        surprisal = [0.0] * len(trajectory.step_ends)
        for step, (begin, end) in enumerate(zip(trajectory.boundaries, trajectory.step_ends, strict=False)):
            if begin >= kept:
                last = end if self.first_tokens is None else min(end, begin + self.first_tokens)
                logprobs = trajectory.completion.logprobs[begin - kept : last - kept]
                surprisal[step] = -sum(logprobs) / len(logprobs)
        return largest(surprisal)
