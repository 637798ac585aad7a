"""A value head on the policy's hidden states: values without sampling.

    V_k = sigmoid(w . h_k + b),   h_k the last hidden state after k steps, standardised
    w, b = argmin - sum_i [r_i log V_i + (n_i - r_i) log(1 - V_i)] + l2 |w|^2 / 2

Examples are boundaries with r right ones of n rollouts. A trajectory's own reward is one rollout from each of its
boundaries, so that first rollouts teach the head for nothing; Monte Carlo values teach it more (`learn`). A trajectory
is judged by a head that has seen no trajectory of its question (cross-fitting over `folds` parts of the questions).

Assumptions: what decides is linear in the hidden state of one token. Source: the value head of PPO for language models
(Ziegler et al., arXiv 1909.08593), on frozen states. A small policy does not always know where it went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from gpo.errors import ConfigError
from gpo.estimators.branches import Array
from gpo.estimators.evidence import Evidence, Reset, Rule, check, choose, reset_boundary
from gpo.estimators.gradient import loaded
from gpo.types import Sample, StepScores, Trajectory


@dataclass
class Examples:
    """Boundaries (E) with what is known of them."""

    folds: list[int] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)  # (H,) each
    right: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)


@dataclass
class Critic:
    """Judges all trajectories of a call with heads trained on them and on all that `learn` was given before.

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
    _seen: Examples = field(default_factory=Examples, repr=False)

    def __post_init__(self) -> None:
        check("Critic", rollouts=1, rule=self.rule, reset=self.reset, confidence=self.confidence)
        if self.l2 <= 0 or self.folds < 2:
            raise ConfigError(f"Critic got l2={self.l2}, folds={self.folds}; expected above 0 and at least 2.")
        if self.model is None:
            raise ConfigError("Critic has no model. Give model= a directory, a hub id or a loaded model.")

    def learn(self, trajectories: Sequence[Trajectory], scores: Sequence[StepScores]) -> None:
        """Take Monte Carlo values of trajectories as examples, those of every search seen so far."""
        for trajectory, score, states in zip(trajectories, scores, self.states(trajectories), strict=True):
            known = list(zip(score.values, score.counts, states, strict=True))[:-1]
            for value, count, state in known:
                if count and not isnan(value):
                    self._add(self._seen, trajectory, state, value * count, count)

    def __call__(self, trajectories: Sequence[Trajectory], sample: Sample) -> list[StepScores]:
        """One result for each trajectory, without a rollout."""
        states = self.states(trajectories)
        return [
            self._scores(trajectory, values, lower, upper)
            for trajectory, (values, lower, upper) in zip(trajectories, self.judge(trajectories, states), strict=True)
        ]

    def judge(self, trajectories: Sequence[Trajectory], states: Sequence[Array]) -> list[tuple[Array, Array, Array]]:
        """For each trajectory the head's values (K + 1,) and their intervals, NaN where PPO has trained the head."""
        if self.trained and (found := trained_head(self.model)) is not None:
            weights, bias = found
            values = [np.clip(of @ weights + bias, 0, 1) for of in states]
            return [(value, np.full(len(value), nan), np.full(len(value), nan)) for value in values]
        examples = self._with_rewards(trajectories, states)
        heads = {}
        judged = []
        for trajectory, of in zip(trajectories, states, strict=True):
            fold = self._fold(trajectory)
            if fold not in heads:
                others = [i for i, other in enumerate(examples.folds) if other != fold]
                heads[fold] = Head.fit(
                    np.array([examples.states[i] for i in others]).reshape(len(others), of.shape[1]),
                    np.array([examples.right[i] for i in others]),
                    np.array([examples.counts[i] for i in others]),
                    self.l2,
                )
            judged.append(heads[fold].values(of, self.confidence))
        return judged

    def head(self, trajectories: Sequence[Trajectory]) -> Head:
        """One head for texts of other questions: from these rewards, and all that `learn` was given."""
        states = self.states(trajectories)
        examples = self._with_rewards(trajectories, states)
        right, counts = np.array(examples.right), np.array(examples.counts)
        return Head.fit(np.array(examples.states), right, counts, self.l2)

    def _with_rewards(self, trajectories: Sequence[Trajectory], states: Sequence[Array]) -> Examples:
        examples = replace(self._seen, **{name: list(each) for name, each in vars(self._seen).items()})
        for trajectory, of in zip(trajectories, states, strict=True):
            if trajectory.score.value is not None:
                for state in of[:-1]:
                    # Boundaries of one trajectory share their outcome: together they count as one rollout.
                    self._add(examples, trajectory, state, trajectory.score.value / (len(of) - 1), 1 / (len(of) - 1))
        return examples

    def states(self, trajectories: Sequence[Trajectory]) -> list[Array]:
        """The hidden state (K + 1, H) at each boundary of each trajectory."""
        import torch

        model = loaded(self.model)
        training = model.training
        model.eval()
        found = []
        try:
            with torch.no_grad():
                for trajectory in trajectories:
                    prompt = trajectory.start.prompt_ids
                    ids = torch.tensor([[*prompt, *trajectory.response_ids]], device=model.device)
                    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
                    at = [len(prompt) + boundary - 1 for boundary in trajectory.boundaries]
                    found.append(hidden[at].double().cpu().numpy())
        finally:
            model.train(training)
        return found

    def _add(self, examples: Examples, trajectory: Trajectory, state: Array, right: float, count: float) -> None:
        examples.folds.append(self._fold(trajectory))
        examples.states.append(state)
        examples.right.append(right)
        examples.counts.append(count)

    def _fold(self, trajectory: Trajectory) -> int:
        digest = blake2b(trajectory.start.problem_id.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % self.folds

    def _scores(self, trajectory: Trajectory, values: Array, lower: Array, upper: Array) -> StepScores:
        known = Evidence(trajectory).scores(None, self.reset, self.confidence)
        reward = trajectory.score.value
        if reward is not None:
            values[-1] = lower[-1] = upper[-1] = reward
        block = choose(values.tolist(), self.rule) if trajectory.step_ends else None
        return replace(
            known,
            values=tuple(values.tolist()),
            lower=tuple(lower.tolist()),
            upper=tuple(upper.tolist()),
            advantages=tuple(float(after - before) for before, after in pairwise(values)),
            critical_step=None if block is None else block[0],
            reset_boundary=reset_boundary(block, self.reset, len(values) - 1),
        )


def trained_head(model: Any) -> tuple[Array, float] | None:
    """Weights (H,) and bias of the critic in a directory that PPO has written; None if there is none."""
    path = Path(model) / "training.pt" if isinstance(model, str | Path) else None
    if path is None or not path.is_file():
        return None
    import torch

    head = torch.load(path, weights_only=True, map_location="cpu").get("head")
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

    def values(self, states: Array, confidence: float) -> tuple[Array, Array, Array]:
        """Values (K + 1,) of states (K + 1, H), and their intervals."""
        inputs = np.column_stack([(states - self.centre) / self.scale, np.ones(len(states))])
        logits = inputs @ self.weights
        reach = norm.ppf((1 + confidence) / 2) * np.sqrt(np.einsum("ki,ij,kj->k", inputs, self.covariance, inputs))
        return expit(logits), expit(logits - reach), expit(logits + reach)
