"""A posterior over all values of a trajectory that uses every rollout once and exactly.

Let p_k be the probability that the policy takes step k token by token (known from the log-probabilities of the
trajectory), and U_k the success probability after it left the trajectory within step k. Then

    V_k = p_k V_{k+1} + (1 - p_k) U_k,   V_K = R,   A_k = (1 - p_k) (V_{k+1} - U_k),   so |A_k| <= 1 - p_k

and a rollout from any boundary that leaves the trajectory in step k is one fair sample of U_k; one that reproduces the
rest says nothing new. Where p_k is not known it is taken as 0: U_k is V_k then, and a rollout counts where it starts.

The prior says that another way to take a step usually leads about as far, and sometimes anywhere:

    U_k | V_{k+1} ~ (1 - surprise) Beta(c V_{k+1} + e, c (1 - V_{k+1}) + e) + surprise Beta(1/2, 1/2)

Where a critic says that the values are v_k (`lean`), it counts as t rollouts that left in step k, of which t u were
right, with u the U_k that fits v_k and v_{k+1}. Given V_{k+1} the prior is conjugate, so that a particle filter from
the last step to the first, whose proposal is exact, draws whole paths of values from the posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import exp, isnan, nan
from typing import Any

import numpy as np
from scipy.special import betaln, gammaln

from gpo.estimators.tally import Tally
from gpo.types import Group, StartKey, Trajectory

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

FLOOR = 0.1  # e: keeps the prior proper where V_{k+1} is 0 or 1


def follow_probabilities(trajectory: Trajectory) -> list[float]:
    """(K,) the probability of each step's tokens given what is before; 0 where it is not known or underflows."""
    logprobs = trajectory.completion.logprobs
    kept = len(trajectory.start.prefix_ids)
    if logprobs is None:
        return [0.0] * len(trajectory.step_ends)
    nats = [
        sum(logprobs[begin - kept : end - kept]) if begin >= kept else nan
        for begin, end in pairwise(trajectory.boundaries)
    ]
    return [0.0 if isnan(x) else exp(min(x, 0.0)) for x in nats]


class Branches:
    """Rollouts of several trajectories (B), by the step (K, padded with steps that are always taken) they left in."""

    def __init__(self, tallies: Sequence[Tally]) -> None:
        self.tallies = list(tallies)
        self.steps = np.array([len(t.trajectory.step_ends) for t in tallies])
        shape = (len(self.tallies), int(self.steps.max(initial=0)))
        self.follow: Array = np.ones(shape)
        self.sums: Array = np.zeros(shape)  # rewards of the rollouts that left in a step, and what a critic counts as
        self.counts: Array = np.zeros(shape)
        self.rewards: Array = np.full(len(self.tallies), nan)
        self.rows: dict[StartKey, list[int]] = {}  # of each question
        for row, tally in enumerate(self.tallies):
            self.follow[row, : self.steps[row]] = follow_probabilities(tally.trajectory)
            if tally.trajectory.score.value is not None:
                self.rewards[row] = tally.trajectory.score.value
            self.rows.setdefault(tally.trajectory.prefix(0).key, []).append(row)

    def add(self, row: int, boundary: int, rollouts: Sequence[Trajectory]) -> None:
        """Takes rollouts from a boundary of trajectory `row`, into its tally too."""
        tally, steps = self.tallies[row], int(self.steps[row])
        tally.count(boundary, rollouts, share_path=True)
        unknown = next((k for k in range(boundary, steps) if self.follow[row, k] == 0), steps)
        for rollout in rollouts:
            left = min(tally.reached(rollout), unknown)
            if rollout.score.value is not None and left < steps:
                self.sums[row, left] += rollout.score.value
                self.counts[row, left] += 1

    def share(self, group: Group) -> None:
        """Takes rollouts for every trajectory that has the prefix, if that is not all of it."""
        prefix = group.start.prefix_ids
        for row in self.rows.get(replace(group.start, prefix_ids=()).key, ()):
            trajectory = self.tallies[row].trajectory
            starts = trajectory.boundaries[:-1]
            if len(prefix) in starts and trajectory.response_ids[: len(prefix)] == prefix:
                self.add(row, starts.index(len(prefix)), group.trajectories)

    def lean(self, row: int, values: Array, trust: float) -> None:
        """Take a critic's values (K + 1,) of a row into the prior, as `trust` rollouts from beside each step.

        What it says of U_k is as uncertain as its values are, divided by 1 - p_k: it counts (1 - p_k) as much.
        """
        steps = int(self.steps[row])
        if not isnan(self.rewards[row]):
            values = np.append(values[:-1], self.rewards[row])  # known, and no critic learns it
        aside = 1 - self.follow[row, :steps]
        fits = (values[:-1] - (1 - aside) * values[1:]) / np.maximum(aside, 1e-9)
        weight = trust * aside
        self.sums[row, :steps] += weight * np.clip(fits, 0, 1)
        self.counts[row, :steps] += weight

    def bounds(self, row: int) -> tuple[Array, Array]:
        """(K + 1,) what the values of a row cannot be below and above, whatever is beside the trajectory."""
        steps = int(self.steps[row])
        repeat = np.append(np.cumprod(self.follow[row, :steps][::-1])[::-1], 1.0)  # probability of the same end
        reward = self.rewards[row]
        if isnan(reward):
            return np.zeros(steps + 1), np.ones(steps + 1)
        return repeat * reward, 1 - repeat * (1 - reward)

    def leave(self) -> Array:
        """(B, K, K) the probability that a rollout from boundary b leaves the trajectory in step k >= b."""
        size = self.follow.shape[1]
        law = np.zeros((*self.follow.shape, size))
        for boundary in range(size):
            # A product of the steps before k, never a quotient: where a probability is 0 it has no other.
            reach = np.cumprod(self.follow[:, boundary:-1], axis=1)
            law[:, boundary, boundary] = 1.0
            law[:, boundary, boundary + 1 :] = reach
            law[:, boundary, boundary:] *= 1 - self.follow[:, boundary:]
        return law

    def draw(
        self,
        rows: Indices,
        particles: int,
        rngs: Sequence[np.random.Generator],
        *,
        surprise: float,
        concentration: float,
    ) -> tuple[Array, Array]:
        """Values (rows, particles, K + 1) and branch values U (rows, particles, K) from the posterior of some rows.

        Each row has a generator of its own, so that its draws do not depend on the other rows.
        """
        size = self.follow.shape[1]
        shape = (len(rows), particles)
        values, branch = np.zeros((size + 1, *shape)), np.zeros((size, *shape))
        order = np.broadcast_to(np.arange(particles), (size, *shape)).copy()  # the particle of step + 1 each came from
        for place, reward in enumerate(self.rewards[rows]):
            values[size, place] = rngs[place].random(particles) if isnan(reward) else reward
        for step in range(size - 1, -1, -1):
            values[step] = values[step + 1]
            at = np.flatnonzero(self.steps[rows] > step)
            if not len(at):  # only rows that are settled have so many steps
                continue
            own = [rngs[place] for place in at.tolist()]
            good = self.sums[rows[at], step, None]
            bad = self.counts[rows[at], step, None] - good
            share = np.full((len(at), particles), 1 - surprise)
            seen = np.flatnonzero(self.counts[rows[at], step])
            if len(seen):
                # The weight of a particle does not depend on its draw of U: resample first, then draw.
                near, total = _log_weights(values[step + 1, at[seen]], good[seen], bad[seen], surprise, concentration)
                chosen = _systematic(total, np.array([own[i].random() for i in seen]))
                share[seen] = np.take_along_axis(np.exp(near - total), chosen, axis=1)
                order[step, at[seen]] = chosen
            after = np.take_along_axis(values[step + 1, at], order[step, at], axis=1)
            is_near = np.stack([rng.random(particles) for rng in own]) < share
            alpha = np.where(is_near, concentration * after + FLOOR, 0.5) + good
            beta = np.where(is_near, concentration * (1 - after) + FLOOR, 0.5) + bad
            branch[step, at] = [rng.beta(*each) for rng, *each in zip(own, alpha, beta, strict=True)]
            p = self.follow[rows[at], step, None]
            values[step, at] = p * after + (1 - p) * branch[step, at]
        # Follow each particle of step 0 to the reward: whole paths, drawn given all rollouts.
        path = np.broadcast_to(np.arange(particles), shape)
        for step in range(size):
            values[step] = np.take_along_axis(values[step], path, axis=1)
            branch[step] = np.take_along_axis(branch[step], path, axis=1)
            path = np.take_along_axis(order[step], path, axis=1)
        values[size] = np.take_along_axis(values[size], path, axis=1)
        return np.moveaxis(values, 0, 2), np.moveaxis(branch, 0, 2)


def _log_weights(after: Array, good: Array, bad: Array, surprise: float, concentration: float) -> tuple[Array, Array]:
    """Log-probability of the outcomes at one step given V_{k+1}: with the first part of the prior, and in all."""
    a, b = concentration * after + FLOOR, concentration * (1 - after) + FLOOR
    gain = gammaln(a + good) - gammaln(a) + gammaln(b + bad) - gammaln(b)
    both = concentration + 2 * FLOOR
    near = np.log1p(-surprise) + gain + gammaln(both) - gammaln(both + good + bad)
    far = np.log(surprise) + betaln(0.5 + good, 0.5 + bad) - betaln(0.5, 0.5)
    return near, np.logaddexp(near, far)


def _systematic(log_weights: Array, offsets: Array) -> Indices:
    """(rows, particles) the indices of a systematic resampling of each row, by its offset in [0, 1)."""
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    size = weights.shape[1]
    points = (offsets[:, None] + np.arange(size)) / size * cumulative[:, -1:]
    return np.stack([np.minimum(np.searchsorted(c, p), size - 1) for c, p in zip(cumulative, points, strict=True)])
