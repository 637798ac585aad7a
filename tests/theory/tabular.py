"""Exact computations on toy processes: what `docs/theory.md` says is computed with these.

A policy of a process is a list of (states, choices) arrays, one for each of its K decisions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from gpo.toy import Process

Array = NDArray[np.float64]
Policy = list[Array]


def policy_of(process: Process) -> Policy:
    return [np.array(rows) for rows in process.probabilities]


def values(process: Process, policy: Policy) -> list[Array]:
    """(K + 1) arrays (states,) of success probabilities, by backward induction."""
    after = np.array(process.right, dtype=float)
    levels = [after]
    for rows, targets in zip(reversed(policy), reversed(process.successors), strict=True):
        after = (rows * after[np.array(targets)]).sum(axis=1)
        levels.append(after)
    return levels[::-1]


def advantages(process: Process, policy: Policy) -> list[Array]:
    """A(s, y) = V(s') - V(s), (states, choices) for each decision."""
    known = values(process, policy)
    return [known[k + 1][np.array(targets)] - known[k][:, None] for k, targets in enumerate(process.successors)]


def best_policy(process: Process) -> Policy:
    """The policy that takes the choice with the largest value, the first of equals."""
    after = np.array(process.right, dtype=float)
    found: Policy = []
    for targets in reversed(process.successors):
        gains = after[np.array(targets)]
        found.append(np.eye(gains.shape[1])[gains.argmax(axis=1)])
        after = gains.max(axis=1)
    return found[::-1]


def visits(process: Process, policy: Policy, starts: Sequence[Array]) -> list[Array]:
    """How often each state decides, (states,) for each decision, if (K, states) `starts` is where rollouts begin."""
    found = []
    here = np.zeros_like(starts[0])
    for k, rows in enumerate(policy):
        here = here + starts[k]
        found.append(here)
        after = np.zeros(len(process.probabilities[k + 1]) if k + 1 < len(policy) else len(process.right))
        np.add.at(after, np.array(process.successors[k]), here[:, None] * rows)
        here = after
    return found


def from_the_question(process: Process) -> list[Array]:
    starts = [np.zeros(len(rows)) for rows in process.probabilities]
    starts[0][0] = 1.0
    return starts


def concentrability(ideal: Sequence[Array], own: Sequence[Array]) -> float:
    """max_s ideal(s) / own(s) over the states that `ideal` visits."""
    worst = 0.0
    for theirs, ours in zip(ideal, own, strict=True):
        for x, y in zip(theirs[theirs > 0], ours[theirs > 0], strict=True):
            worst = max(worst, x / y if y else np.inf)
    return worst


def conjunction(skill: float, steps: int, *, choices: Sequence[float] | None = None) -> Process:
    """Right if all steps are: state 0 has made no mistake, state 1 has. `choices`: a skill for each step."""
    skills = [skill] * steps if choices is None else list(choices)
    return Process(
        tuple(((1 - q, q), (1 - q, q)) for q in skills),
        tuple(((1, 0), (1, 1)) for _ in skills),
        (True, False),
    )


def parity(skill: float, steps: int) -> Process:
    """Right if the number of slips is even: state 0 has made an even number of them, state 1 an odd one."""
    return Process(
        tuple(((1 - skill, skill), (1 - skill, skill)) for _ in range(steps)),
        tuple(((1, 0), (0, 1)) for _ in range(steps)),
        (True, False),
    )


@dataclass(frozen=True)
class Path:
    """One way through a process of two choices, of which choice 1 is the skilled one."""

    probability: float
    scores: Array  # (K,) d log pi / d logit of each step's skill
    values: Array  # (K + 1,)

    @property
    def reward(self) -> float:
        return float(self.values[-1])

    @property
    def advantages(self) -> Array:
        return np.diff(self.values)


def paths(process: Process) -> Iterator[Path]:
    """All of them."""
    known = values(process, policy_of(process))
    for choices in product((0, 1), repeat=len(process.probabilities)):
        state, probability = 0, 1.0
        scores, seen = [], [known[0][0]]
        for k, choice in enumerate(choices):
            skill = process.probabilities[k][state][1]
            probability *= process.probabilities[k][state][choice]
            scores.append(choice - skill)
            state = process.successors[k][state][choice]
            seen.append(known[k + 1][state])
        yield Path(probability, np.array(scores), np.array(seen))


@dataclass(frozen=True)
class Gradient:
    """Mean and second moment of an estimator of the gradient, one number for each parameter."""

    mean: Array
    second: Array

    @property
    def variance(self) -> float:
        """Summed over the parameters."""
        return float((self.second - self.mean**2).sum())

    @property
    def signal(self) -> float:
        """|mean|^2 / variance of one trajectory: the less, the more trajectories a sure gradient takes."""
        return float((self.mean**2).sum() / self.variance)

    def signal_of(self, parameter: int) -> float:
        """The same of one parameter."""
        return float(self.mean[parameter] ** 2 / (self.second[parameter] - self.mean[parameter] ** 2))


def gradient(process: Process, credit: str, *, shared: bool) -> Gradient:
    """Of all steps' skills, each with a parameter of its own, or of the one that all share.

    The credit of a step is `whole` (R - V_0), `tail` (R - V_k) or `step` (A_k).
    """
    estimates, probabilities = [], []
    for path in paths(process):
        given = {
            "whole": path.reward - path.values[0] + np.zeros(len(path.scores)),
            "tail": path.reward - path.values[:-1],
            "step": path.advantages,
        }[credit]
        each = path.scores * given
        estimates.append([each.sum()] if shared else each)
        probabilities.append(path.probability)
    weights, rows = np.array(probabilities), np.array(estimates)
    assert abs(weights.sum() - 1) < 1e-9
    return Gradient(weights @ rows, weights @ rows**2)
