"""Adaptive search: rollouts go where they best tell the two leading steps apart, until one is surely the best.

Rounds of all trajectories run together, and grow, so that an engine's batches stay full. In each round and for each
trajectory that is still open:

1. Draw paths of values from the posterior of `gpo.estimators.branches`, which uses every rollout of every trajectory of
   the question that fits, in all the steps that it passes through.
2. Stop if one step has the largest advantage in at least `certainty` of the paths. That no step has one above
   `smallest` is one of the answers.
3. Otherwise draw two contenders (top-two Thompson sampling, Russo 2016, arXiv 1602.08448) and roll out from the
   boundary that is expected to lower the variance of their difference D the most for each token:

       gain(b) = sum_k P(leave in k | b) Cov(D, U_k)^2 / (E U_k (1 - E U_k)) / tokens(b)

Assumptions: the search samples from the policy and at the temperature that the trajectories were sampled with. Without
log-probabilities on the trajectories the sharing along a path is lost, the rest holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.estimators.branches import Array, Branches, Indices
from gpo.estimators.tally import (
    NO_EVIDENCE,
    Block,
    Reset,
    Rule,
    Tally,
    check,
    known_rollouts,
    revalued,
    searched_rollouts,
    siblings,
)
from gpo.types import Evidence, StepScores, Trajectory

if TYPE_CHECKING:
    from gpo.estimators.critic import Critic

ROUNDS = 8  # a first round takes this part of what may be spent on a trajectory
LEAST = 4  # rollouts of a first round


@dataclass(frozen=True)
class Adaptive:
    """Top-two Thompson sampling on a posterior that shares rollouts along the path.

    The values are posterior means, so that every boundary has one; a count is the number of rollouts that passed the
    boundary, and may be 0. The intervals do not lean on the prior: they are Clopper-Pearson intervals of those
    rollouts, cut to what V_k can be given how likely the same end is, and widened to hold the mean. (Quantiles of the
    posterior covered 67 to 93% at a level of 90% on toy chains: the prior takes the U_k of a trajectory as more
    independent than they are.) They are not corrected for the choice of the critical step.

    Degenerate cases: a response without steps and one on which no step stands out have no critical step.
    """

    rollouts: float = 8  # for each step on average, at most
    batch: int = 16  # rollouts of a trajectory in the first round, at most; a later one takes as many as all before it
    rule: Rule = "advantage"
    reset: Reset = "before"
    certainty: float = 0.98  # posterior probability of the best step at which the search stops
    smallest: float = 0.01  # of what the rule maximises; a step stands out above it
    share_start: bool = False  # the other rollouts of the question are rollouts from boundary 0
    confidence: float = 0.95  # of the interval of each value
    surprise: float = 0.5  # prior probability that another way to take a step leads anywhere
    concentration: float = 10.0  # how close to V_{k+1} it leads otherwise, as a number of rollouts
    critic: Literal["none", "fitted", "trained"] = "none"  # whose values are a part of the prior; trained: PPO's own
    model: Any = None  # the critic's: directory, hub id, or a loaded causal language model; a run gives its own
    trust: float = 1.0  # in rollouts beside each step, of the critic's values
    particles: int = 128
    seed: int | None = None  # None: 0; a run gives its own

    def __post_init__(self) -> None:
        check(self)
        if not 0 < self.rollouts < inf:
            raise ConfigError(
                f"Adaptive got rollouts={self.rollouts}; expected a positive number for each step on average."
            )
        if self.batch < 1 or self.particles < 2:
            raise ConfigError(
                f"Adaptive got batch={self.batch}, particles={self.particles}; expected at least 1 and at least 2."
            )
        for name in ("certainty", "smallest", "surprise"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"Adaptive got {name}={getattr(self, name)}; expected a number between 0 and 1.")
        if self.concentration <= 0:
            raise ConfigError(f"Adaptive got concentration={self.concentration}; expected a positive number.")

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = NO_EVIDENCE
    ) -> list[StepScores]:
        """One result for each trajectory. What earlier searches have sampled counts wherever it fits.

        With `share_start`, all else that was sampled from the question is a sample of V_0: see `known_rollouts`. The
        random numbers of a trajectory's posterior depend on `seed` and its id.

        Raises:
            ConfigError: it has a critic and no model.
        """
        branches = Branches([Tally(trajectory) for trajectory in trajectories])
        if self.share_start:
            for row, others in enumerate(siblings(trajectories, known_rollouts(trajectories, evidence))):
                branches.add(row, 0, others)
        for group in searched_rollouts(evidence):
            branches.share(group)
        if self.critic != "none":
            for row, (values, _, _) in enumerate(self._judge.judge(trajectories, evidence)):
                branches.lean(row, values, self.trust)
        rngs = [np.random.default_rng([self.seed or 0, *t.id.encode()]) for t in trajectories]
        leave = branches.leave()
        budgets = np.ceil(branches.steps * self.rollouts).astype(int)
        live: Indices = np.flatnonzero(budgets > 0)
        spent: Counter[int] = Counter()

        def drawn(rows: Indices) -> tuple[Array, Array]:
            prior = {"surprise": self.surprise, "concentration": self.concentration}
            return branches.draw(rows, self.particles, [rngs[row] for row in rows], **prior)

        searched = live
        while len(live):
            values, branch = drawn(live)
            asks: list[tuple[int, int]] = []
            for place, row in enumerate(live.tolist()):
                steps = int(branches.steps[row])
                merit = self._merit(values[place, :, : steps + 1])
                share = _leader(merit)[1]
                if share < self.certainty and spent[row] < budgets[row]:
                    cost = len(trajectories[row].response_ids) - np.array(trajectories[row].boundaries[:-1])
                    law = leave[row, :steps, :steps] / np.maximum(cost, 1)[:, None]
                    left = int(budgets[row]) - spent[row]
                    first = min(self.batch, max(LEAST, ceil(budgets[row] / ROUNDS)))
                    slots = min(max(first, spent[row]), left)
                    spent[row] += slots
                    asks += [(row, b) for b in _allocate(merit, branch[place, :, :steps], law, slots, rngs[row])]
            if not asks or sample.left == 0:
                break
            live = np.array(sorted({row for row, _ in asks}), dtype=int)
            starts = [trajectories[row].prefix(boundary) for row, boundary in asks]
            for (row, boundary), group in zip(asks, sample(starts, 1), strict=True):
                branches.tallies[row].keep(boundary, group)
                branches.share(group)
        # Once more for all: those that were sure soon have got rollouts of others since.
        results = dict(zip(searched.tolist(), drawn(searched)[0], strict=True)) if len(searched) else {}
        return [
            self._scores(branches, row, results[row][:, : int(branches.steps[row]) + 1])
            if row in results
            else tally.scores(None, self.reset, self.confidence)
            for row, tally in enumerate(branches.tallies)
        ]

    @cached_property
    def _judge(self) -> Critic:
        from gpo.estimators.critic import Critic

        return Critic(self.model, trained=self.critic == "trained")

    def _merit(self, values: Array) -> Array:
        """(particles, K + 1) what the rule maximises; the last column stands for no step."""
        advantages = np.diff(values, axis=1)
        merit = {
            "advantage": advantages,
            "magnitude": np.abs(advantages),
            "drop": -advantages,
            "authors": values[:, :-1],
        }[self.rule]
        return np.column_stack([merit, np.full(len(values), self.smallest)])

    def _scores(self, branches: Branches, row: int, values: Array) -> StepScores:
        step = _choice(self._merit(values), self.certainty)
        block: Block | None = None if step is None else (step, step + 1)
        scores = branches.tallies[row].scores(block, self.reset, self.confidence)
        mean = values.mean(axis=0)
        least, most = branches.bounds(row)
        lower = tuple(np.fmin(np.fmax(scores.lower, least), mean).tolist())
        upper = tuple(np.fmax(np.fmin(scores.upper, most), mean).tolist())
        return revalued(scores, mean.tolist(), block, self.reset, lower=lower, upper=upper)


def _leader(merit: Array) -> tuple[int, float]:
    """The column that is the largest most often, and how often."""
    shares = np.bincount(merit.argmax(axis=1), minlength=merit.shape[1]) / len(merit)
    return int(shares.argmax()), float(shares.max())


def _choice(merit: Array, certainty: float) -> int | None:
    """The step that is the best most often; None where that is none, surely or by what the step is worth on average."""
    best, share = _leader(merit)
    if best < merit.shape[1] - 1:
        return best
    step = _leader(merit[:, :-1])[0]
    return step if share < certainty and merit[:, step].mean() > merit[0, -1] else None


def _allocate(merit: Array, branch: Array, law: Array, slots: int, rng: np.random.Generator) -> list[int]:
    """The boundaries of `slots` rollouts; `law[b, k]` is the chance of leaving in step k per token spent from b."""
    labels = merit.argmax(axis=1)
    mean = branch.mean(axis=0)
    centred = branch - mean
    chosen: list[int] = []
    for _ in range(slots):
        first = labels[rng.integers(len(labels))]
        rest = labels[labels != first]
        # With no rival among the draws the runner-up on average is the one to beat.
        second = rest[rng.integers(len(rest))] if len(rest) else np.argsort(merit.mean(axis=0))[-2]
        difference = merit[:, first] - merit[:, second]
        difference = difference - difference.mean()
        covariance = difference @ centred / len(merit)
        # A covariance of finitely many draws is never 0: take off what chance alone would give.
        noise = difference.var() * centred.var(axis=0) / len(merit)
        gain = np.maximum(covariance**2 - noise, 0) / (mean * (1 - mean) + 1e-3)
        chosen.append(int((law @ gain).argmax()))
    return chosen
