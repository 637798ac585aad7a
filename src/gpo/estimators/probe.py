"""How far the response is already settled: the probability of its own answer, forced behind each prefix. No rollouts.

    q_k = p(answer | the first k steps, the phrase that comes before an answer),   q_K = 1
    V_k = b + (R - b) q_k,      A_k = (R - b) (q_{k+1} - q_k)

A right response has won where its answer becomes sure, a wrong one has lost there; before, the value is the base rate
b, the mean reward of what was sampled from the question. The reference answer is not used: on prose the probability
of a wrong response's own answer tells more of where it went wrong than that of the right answer.

One forward pass for each trajectory, whose tokens are computed once for all boundaries. Assumption: the model says at
once what it is going to answer. Where an answer takes work that is not written yet, q stays near 0 until it is, and the
step that works it out is chosen. The values are no calibrated probabilities; what is of use is where they change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from typing import Any

import numpy as np

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.branches import Array
from gpo.estimators.forced import Ids, forced_logprobs
from gpo.estimators.gradient import loaded
from gpo.estimators.tally import NO_EVIDENCE, Reset, Rule, Tally, check, choose, known_rollouts, revalued, siblings
from gpo.types import Evidence, Start, StepScores, Trajectory

Conclusion = Callable[[Start, str], tuple[Ids, Ids]]
"""The tokens that come before an answer behind a prefix, and those of the answer."""

BASE_RATE = 0.5  # of a question of which nothing else was sampled


@dataclass
class Probe:
    """Reads one model; `sample` is not called. Counts are 0, intervals are not known.

    Degenerate cases: a response without steps, without an answer or without a grade has no critical step, and neither
    has one of a question whose rollouts all ended as it did.
    """

    model: Any = None  # directory, hub id, or a loaded causal language model, which is left as it is
    conclusion: Any = None  # how an answer is said, a `Conclusion`; a run gives that of its task
    rule: Rule = "advantage"
    reset: Reset = "before"

    def __post_init__(self) -> None:
        check(self)
        if self.model is None:
            raise ConfigError("Probe has no model. Give model= a directory, a hub id or a loaded model.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory.

        Raises:
            ConfigError: it is not told how an answer is said.
        """
        judged = self.judge(trajectories, evidence)
        return [self._scores(trajectory, values) for trajectory, values in zip(trajectories, judged, strict=True)]

    def judge(self, trajectories: Sequence[Trajectory], evidence: Evidence = NO_EVIDENCE) -> list[Array]:
        """(K + 1,) the values of each trajectory; NaN where nothing can be said."""
        others = siblings(trajectories, known_rollouts(trajectories, evidence))
        found = []
        for trajectory, known in zip(trajectories, others, strict=True):
            rewards = [t.score.value for t in known if t.score.value is not None]
            base = sum(rewards, BASE_RATE) / (len(rewards) + 1)
            reward = nan if trajectory.score.value is None else trajectory.score.value
            found.append(base + (reward - base) * self.settled(trajectory))
        return found

    def settled(self, trajectory: Trajectory) -> Array:
        """(K + 1,) how probable the answer of a trajectory is at each boundary; NaN for one without answer.

        Raises:
            ConfigError: it is not told how an answer is said.
        """
        if self.conclusion is None:
            raise ConfigError("Probe is not told how an answer is said. Give conclusion=, or use it in a run.")
        answer, size = said(trajectory), len(trajectory.boundaries)
        if not answer or size == 1:
            return np.full(size, nan)
        prompt = trajectory.start.prompt_ids
        starts = [trajectory.prefix(k) for k in range(size - 1)]
        rows = [(len(start.token_ids), *self.conclusion(start, answer)) for start in starts]
        nats = forced_logprobs(self._loaded, prompt + trajectory.response_ids, rows)
        return np.append(np.exp(np.minimum(nats, 0.0)), 1.0)

    @cached_property
    def _loaded(self) -> Any:
        return loaded(self.model)

    def _scores(self, trajectory: Trajectory, values: Array) -> StepScores:
        known = Tally(trajectory).scores(None, self.reset, 0.95)
        if isnan(values[0]):
            return known
        return revalued(known, values.tolist(), choose(values.tolist(), self.rule), self.reset)


def said(trajectory: Trajectory) -> str | None:
    """The answer of a trajectory as it is written there, where graders may have changed its case."""
    answer, text = trajectory.score.answer, trajectory.completion.text
    if not answer or (at := text.lower().rfind(answer.lower())) < 0:
        return answer
    return text[at : at + len(answer)]
