"""A sampler that replays a ground: rollouts leave a trajectory and end as the stored ones did, without a model.

    from boundary b a rollout follows step k with probability p_k, leaves in it with 1 - p_k and is then right with U_k

p_k is known from the trajectory's log-probabilities, U_k is the stored success rate. In this process V_k is known
exactly, so that a search is right or wrong without doubt; it differs from the reasoner's own by the error of the stored
rates only. Tokens are charged as stored, on average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from gpo.estimators.branches import follow_probabilities
from gpo.types import Completion, Group, Score, Start, Trajectory
from search_grounds import Valued

OTHER = -1  # a token that the trajectory does not have at its place
RIGHT, WRONG = Score(1.0, "right"), Score(0.0, "wrong")


@dataclass
class Replay:
    """The `Sample` protocol. Two trajectories of one question must not be searched together: where a rollout that left
    the one went on along the other is not stored."""

    rows: Sequence[Valued]
    seed: int = 0
    tokens: Counter[str] = field(default_factory=Counter)  # sampled for each trajectory
    left: None = None  # no limit

    def __post_init__(self) -> None:
        self._rows = {row.trajectory.id: (row, follow_probabilities(row.trajectory)) for row in self.rows}
        self._rng = np.random.default_rng(self.seed)

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        """One group of n rollouts for each start, which must be a boundary of a trajectory of the ground."""
        return [Group(start, tuple(self._rollout(start) for _ in range(n))) for start in starts]

    def _rollout(self, start: Start) -> Trajectory:
        assert start.parent is not None, "the question itself is boundary 0 of some trajectory"
        row, follow = self._rows[start.parent]
        ours, at = row.trajectory.response_ids, row.trajectory.boundaries
        begin = len(start.prefix_ids)
        step = at.index(begin)
        while step < len(follow) and self._rng.random() < follow[step]:
            step += 1
        ids = ours[begin : at[step]]
        score = row.trajectory.score
        if step < len(follow):
            ids += (OTHER,) * max(1, int(row.tokens[step] + self._rng.random()))
            score = RIGHT if self._rng.random() < row.beside[step] else WRONG
        self.tokens[start.parent] += len(ids)
        return Trajectory("", start, Completion(ids, "", "stop"), score, at[: step + 1])


def batches(rows: Sequence[Valued]) -> list[list[Valued]]:
    """Parts of a ground in which every question occurs once."""
    parts: list[list[Valued]] = []
    seen: Counter[str] = Counter()
    for row in rows:
        place = seen[row.problem.id]
        seen[row.problem.id] += 1
        parts += [[]] * (place == len(parts))
        parts[place] = [*parts[place], row]
    return parts


def told_which_two(row: Valued, sign: int) -> float:
    """The effect s of a token: T tokens tell the two best steps of a row apart with probability Phi(sqrt(T s)).

    The merit of a step is its advantage times `sign`. The search is told which two steps compete and in which
    proportions to roll out, and only decides on the sign of D = merit_1 - merit_2 = sum_k c_k U_k + constant. Let
    law[b, k] be the chance that a token spent on rollouts from b gives a sample of U_k, and w_b the shares of the
    tokens: Var(D) T = sum_k c_k^2 U_k (1 - U_k) / sum_b w_b law[b, k].
    The normal distribution is an approximation. Infinite where D does not vary.
    """
    follow = np.array(follow_probabilities(row.trajectory))
    steps = len(follow)
    lengths = np.diff(row.trajectory.boundaries)
    law, cost = np.zeros((steps, steps)), np.zeros(steps)
    for b in range(steps):
        reach = 1.0
        for k in range(b, steps):
            law[b, k] = reach * (1 - follow[k])
            cost[b] += law[b, k] * row.tokens[k] + reach * follow[k] * lengths[k]
            reach *= follow[k]
    law /= np.maximum(cost, 1e-9)[:, None]
    gradient = np.zeros((steps + 1, steps))  # of V_k by U_j
    for k in reversed(range(steps)):
        gradient[k] = follow[k] * gradient[k + 1]
        gradient[k, k] += 1 - follow[k]
    change = np.diff(gradient, axis=0)
    merit = sign * np.diff(row.values)
    second, first = np.argsort(merit, kind="stable")[-2:]
    weight = (change[first] - change[second]) ** 2 * row.beside * (1 - row.beside)
    if not (weight > 1e-12).any():
        return np.inf
    shares = np.full(steps, 1 / steps)
    for _ in range(300):  # the multiplicative algorithm of optimal design
        rate = shares @ law
        shares *= np.sqrt(law @ np.where(weight > 0, weight / np.maximum(rate, 1e-15) ** 2, 0))
        shares /= shares.sum()
    rate = shares @ law
    variance = float(np.where(weight > 0, weight / np.maximum(rate, 1e-15), 0).sum())
    return float((merit[first] - merit[second]) ** 2 / variance)


def best_spending(effects: np.ndarray, mean_tokens: float) -> float:
    """The hit rate of `told_which_two` where tokens go to the trajectories in the best proportions."""

    def spent(price: float) -> np.ndarray:
        """Where Phi(sqrt(T s)) gains less than the price: the gain falls with T, so that bisection finds T."""
        low, high = np.full(len(effects), -12.0), np.full(len(effects), 25.0)
        for _ in range(60):
            middle = (low + high) / 2
            tokens = np.exp(middle)
            with np.errstate(over="ignore"):
                gain = norm.pdf(np.sqrt(tokens * effects)) * np.sqrt(effects / tokens) / 2
            low, high = np.where(gain > price, middle, low), np.where(gain > price, high, middle)
        spending: np.ndarray = np.exp(low)
        return spending

    finite = np.isfinite(effects) & (effects > 0)
    sure = np.isinf(effects)
    effects = np.where(finite, effects, 0.0)
    log_price = minimize_scalar(
        lambda x: (np.where(finite, spent(float(np.exp(x))), 0).mean() - mean_tokens) ** 2,
        bounds=(-25, 2),
        method="bounded",
    ).x
    hits = norm.cdf(np.sqrt(np.where(finite, spent(float(np.exp(log_price))), 0) * effects))
    return float(np.where(sure, 1.0, hits).mean())
