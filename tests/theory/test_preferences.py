"""Section "DPO at a prefix" of docs/theory.md: exact losses of a prefix with a few continuations, minimised."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
REFERENCE = np.array([0.5, 0.3, 0.15, 0.05])
VALUES = np.array([0.2, 0.5, 0.7, 0.9])  # V_{k+1} of each continuation


def preferred(rewards: Array) -> Array:
    """(n, n) Bradley and Terry's probability that row beats column."""
    return np.asarray(1 / (1 + np.exp(rewards[None, :] - rewards[:, None])))


def of_outcomes(values: Array) -> Array:
    """(n, n) how often row is the right one if exactly one of two rollouts is right."""
    wins = values[:, None] * (1 - values[None, :])
    return np.asarray(wins / (wins + wins.T))


def loss(logits: Array, wins: Array, beta: float, weights: Array | None = None) -> float:
    """The expectation of DPO's loss over pairs that the reference samples."""
    ratios = beta * (logits - np.log(np.exp(logits).sum()) - np.log(REFERENCE))
    margins = ratios[:, None] - ratios[None, :]
    drawn = REFERENCE[:, None] * REFERENCE[None, :] if weights is None else weights
    return float((drawn * wins * np.logaddexp(0, -margins)).sum())


def optimum(wins: Array, beta: float, weights: Array | None = None) -> Array:
    found = minimize(
        loss, np.log(REFERENCE), args=(wins, beta, weights), tol=1e-14, method="BFGS", options={"gtol": 1e-9}
    )
    policy = np.exp(found.x - found.x.max())
    return np.asarray(policy / policy.sum())


def weighted(exponent: Array) -> Array:
    policy = REFERENCE * np.exp(exponent)
    return np.asarray(policy / policy.sum())


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
def test_with_bradley_and_terry_of_advantages_the_optimum_weighs_by_exp_of_advantage_over_beta(beta: float) -> None:
    value = float(REFERENCE @ VALUES)
    advantages = VALUES - value
    assert optimum(preferred(advantages), beta) == pytest.approx(weighted(advantages / beta), abs=1e-4)
    # A number that all continuations of the prefix share cancels: values, advantages and Q weigh alike.
    assert weighted(VALUES / beta) == pytest.approx(weighted(advantages / beta))


def test_pairs_of_a_right_and_a_wrong_outcome_are_bradley_and_terry_with_the_log_odds() -> None:
    log_odds = np.log(VALUES / (1 - VALUES))
    assert of_outcomes(VALUES) == pytest.approx(preferred(log_odds))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_on_outcome_pairs_the_optimum_weighs_by_the_odds(beta: float) -> None:
    """However the pairs are drawn: here as often as one of two rollouts is right, which is how they are built."""
    wins = VALUES[:, None] * (1 - VALUES[None, :])
    mixed = REFERENCE[:, None] * REFERENCE[None, :] * (wins + wins.T)
    expected = weighted(np.log(VALUES / (1 - VALUES)) / beta)
    assert optimum(of_outcomes(VALUES), beta, mixed) == pytest.approx(expected, abs=1e-4)
    assert optimum(of_outcomes(VALUES), beta) == pytest.approx(expected, abs=1e-4)


def test_near_one_value_the_odds_are_advantages_over_the_variance_of_the_outcome() -> None:
    value, small = 0.3, 1e-4
    near = np.array([-3, 0, 1, 2]) * small + value
    log_odds = np.log(near / (1 - near)) - np.log(value / (1 - value))
    assert log_odds == pytest.approx((near - value) / (value * (1 - value)), abs=1e-6)


def test_whole_responses_have_no_optimum() -> None:
    """The reward of a response is certain: the loss falls for ever on the way to one that is always right."""
    right = np.array([0.0, 1.0, 0.0, 1.0])
    wins = right[:, None] * (1 - right[None, :])
    losses = [loss(np.log(REFERENCE) + scale * right, wins, 1.0) for scale in (0, 1, 2, 4, 8, 16, 32)]
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 1e-12
