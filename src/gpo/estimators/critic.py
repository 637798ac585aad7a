"""A value head on the policy's hidden states: values without sampling.

    V_k = sigmoid(w . h_k + b),   h_k the last hidden state after k steps, standardised
    w, b = argmin - sum_i [r_i log V_i + (n_i - r_i) log(1 - V_i)] + l2 |w|^2 / 2

Examples are boundaries with r right ones of n rollouts, of all that the round has sampled. A trajectory's own reward is
one rollout from each of its boundaries, so that first rollouts teach the head for nothing; values that other searches
have estimated teach it more. A trajectory is judged by a head that has seen none of its question (cross-fitting
over `folds` parts of the questions).

Assumptions: what decides is linear in the hidden state of one token. Source: the value head of PPO for language models
(Ziegler et al., arXiv 1909.08593), on frozen states. A small policy does not always know where it went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.branches import Array
from gpo.estimators.states import Floats, States
from gpo.estimators.tally import NO_EVIDENCE, Reset, Rule, Tally, check, choose, known_rollouts, revalued
from gpo.types import Evidence, StepScores, Trajectory


class Example(NamedTuple):
    """A boundary with what is known of it."""

    fold: int
    state: Floats  # (H,)
    right: float
    total: float


@dataclass
class Critic:
    """Judges trajectories with heads fitted to all that the round has sampled; outside a run, to the trajectories.

    Counts are 0 where a value is the head's. Its intervals are Laplace's for the logit, given that the head's form is
    right; they say nothing of what it cannot represent. Degenerate cases: without examples, or with examples of one
    outcome only, every value is that of the prior and no step stands out by much.
    """

    model: Any = None  # directory, hub id, or a loaded causal language model, which is left as it is
    rule: Rule = "advantage"
    reset: Reset = "before"
    l2: float = 10.0
    folds: int = 5
    trained: bool = False  # values of the critic that PPO keeps beside its model; where there is none, fitted as above
    confidence: float = 0.95  # of the interval of each value
    _states: States = field(default_factory=States, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check(self)
        if self.l2 <= 0 or self.folds < 2:
            raise ConfigError(f"Critic got l2={self.l2}, folds={self.folds}; expected above 0 and at least 2.")
        if self.model is None:
            raise ConfigError("Critic has no model. Give model= a directory, a hub id or a loaded model.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory, without a rollout."""
        judged = self.judge(trajectories, evidence)
        return [self._scores(trajectory, *each) for trajectory, each in zip(trajectories, judged, strict=True)]

    def judge(
        self, trajectories: Sequence[Trajectory], evidence: Evidence = NO_EVIDENCE
    ) -> list[tuple[Array, Array, Array]]:
        """For each trajectory the head's values (K + 1,) and their intervals, NaN where PPO has trained the head."""
        if self.trained and (found := trained_head(self.model)) is not None:
            weights, bias = found
            values = [np.clip(of @ weights + bias, 0, 1) for of in self.states(trajectories)]
            return [(value, np.full(len(value), nan), np.full(len(value), nan)) for value in values]
        examples = self._examples(known_rollouts(trajectories, evidence), evidence.scores)
        heads: dict[int, Head] = {}
        judged = []
        for trajectory, states in zip(trajectories, self.states(trajectories), strict=True):
            fold = self._fold(trajectory)
            if fold not in heads:
                heads[fold] = self._fit([each for each in examples if each.fold != fold], states.shape[1])
            judged.append(heads[fold].values(states, self.confidence))
        return judged

    def head(self, trajectories: Sequence[Trajectory]) -> Head:
        """One head for texts of other questions, from these rewards."""
        return self._fit(self._examples(trajectories, ()), self.states(trajectories[:1])[0].shape[1])

    def states(self, trajectories: Sequence[Trajectory]) -> list[Floats]:
        """The hidden state (K + 1, H) at each boundary of each trajectory."""
        return self._states(self.model, trajectories)

    def _examples(self, trajectories: Sequence[Trajectory], scores: Sequence[StepScores]) -> list[Example]:
        estimated = {score.trajectory_id: score for score in scores}
        examples: list[Example] = []
        for trajectory, states in zip(trajectories, self.states(trajectories), strict=True):
            fold, steps, reward = self._fold(trajectory), len(states) - 1, trajectory.score.value
            if reward is not None:
                # Boundaries of one trajectory share their outcome: together they count as one rollout.
                examples += [Example(fold, state, reward / steps, 1 / steps) for state in states[:-1]]
            if (score := estimated.get(trajectory.id)) is not None:
                known = zip(states[:-1], score.values, score.counts, strict=False)
                examples += [Example(fold, state, value * count, count) for state, value, count in known if count]
        return examples

    def _fit(self, examples: Sequence[Example], width: int) -> Head:
        states = np.array([each.state for each in examples], dtype=float).reshape(len(examples), width)
        right, counts = np.array([each.right for each in examples]), np.array([each.total for each in examples])
        return Head.fit(states, right, counts, self.l2)

    def _fold(self, trajectory: Trajectory) -> int:
        digest = blake2b(trajectory.start.problem_id.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % self.folds

    def _scores(self, trajectory: Trajectory, values: Array, lower: Array, upper: Array) -> StepScores:
        known = Tally(trajectory).scores(None, self.reset, self.confidence)
        reward = trajectory.score.value
        if reward is not None:
            values[-1] = lower[-1] = upper[-1] = reward
        found = values.tolist()
        block = choose(found, self.rule) if trajectory.step_ends else None
        return revalued(known, found, block, self.reset, lower=tuple(lower.tolist()), upper=tuple(upper.tolist()))


def trained_head(model: Any) -> tuple[Array, float] | None:
    """Weights (H,) and bias of the critic in a directory that PPO has written; None if there is none."""
    path = Path(model) / "training.pt" if isinstance(model, str | Path) else None
    return None if path is None or not path.is_file() else _head_in(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _head_in(path: Path, version: int) -> tuple[Array, float] | None:
    """Of the file as it is at that time; what else is in it, several times the model, is not read."""
    import torch

    head = torch.load(path, weights_only=True, map_location="cpu", mmap=True).get("head")
    return None if head is None else (head["weight"][0].double().numpy(), head["bias"].item())


@dataclass(frozen=True)
class Head:
    """Logistic regression on standardised states."""

    centre: Array  # (H,)
    scale: Array  # (H,)
    weights: Array  # (H + 1,) the last is the bias
    covariance: Array  # (H + 1, H + 1) Laplace's

    @classmethod
    def fit(cls, states: Array, right: Array, counts: Array, l2: float) -> Head:
        """States (E, H), right rollouts (E,) of counts (E,). The bias has a weak prior of its own."""
        size = states.shape[1]
        centre = states.mean(axis=0) if len(states) else np.zeros(size)
        scale = states.std(axis=0) + 1e-6 if len(states) else np.ones(size)
        inputs = np.column_stack([(states - centre) / scale, np.ones(len(states))])
        penalty = np.append(np.full(size, l2), 0.1)

        def loss(weights: Array) -> tuple[float, Array]:
            logits = inputs @ weights
            value = counts @ np.logaddexp(0, logits) - right @ logits + penalty @ weights**2 / 2
            return float(value), inputs.T @ (counts * expit(logits) - right) + penalty * weights

        found = minimize(loss, np.zeros(size + 1), jac=True, method="L-BFGS-B")
        values = expit(inputs @ found.x)
        curvature = (inputs.T * (counts * values * (1 - values))) @ inputs + np.diag(penalty)
        return cls(centre, scale, found.x, np.linalg.inv(curvature))

    def values(self, states: Array | Floats, confidence: float) -> tuple[Array, Array, Array]:
        """Values (K + 1,) of states (K + 1, H), and their intervals."""
        inputs = np.column_stack([(states - self.centre) / self.scale, np.ones(len(states))])
        logits = inputs @ self.weights
        reach = norm.ppf((1 + confidence) / 2) * np.sqrt(np.einsum("ki,ij,kj->k", inputs, self.covariance, inputs))
        return expit(logits), expit(logits - reach), expit(logits + reach)
