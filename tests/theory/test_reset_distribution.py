"""Sections "Values" and "Practice where it counts" of docs/theory.md."""

import numpy as np
import pytest
from tabular import (
    Array,
    advantages,
    best_policy,
    concentrability,
    conjunction,
    from_the_question,
    paths,
    policy_of,
    values,
    visits,
)

from gpo.toy import Process, random_process

SEEDS = range(6)


def uniform_own(process: Process) -> list[Array]:
    """Starts at a boundary of an own rollout, each of the K boundaries alike."""
    own = visits(process, policy_of(process), from_the_question(process))
    return [each / len(own) for each in own]


def mixed(share: float, one: list[Array], other: list[Array]) -> list[Array]:
    return [share * x + (1 - share) * y for x, y in zip(one, other, strict=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_of_a_trajectory_sum_to_reward_minus_value(seed: int) -> None:
    for path in paths(random_process(seed, choices=2)):
        assert path.advantages.sum() == pytest.approx(path.reward - path.values[0], abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_squared_advantages_sum_to_the_variance_of_the_outcome(seed: int) -> None:
    rows = list(paths(random_process(seed, choices=2)))
    value = rows[0].values[0]
    spread = sum(path.probability * (path.advantages**2).sum() for path in rows)
    assert spread == pytest.approx(value * (1 - value), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_performance_difference(seed: int) -> None:
    process = random_process(seed)
    other = policy_of(random_process(100 + seed))
    ours = policy_of(process)
    gained = sum(
        (visited[:, None] * theirs * gains).sum()
        for visited, theirs, gains in zip(
            visits(process, other, from_the_question(process)), other, advantages(process, ours), strict=True
        )
    )
    difference = values(process, other)[0][0] - values(process, ours)[0][0]
    assert gained == pytest.approx(difference, abs=1e-12)


def left_to_gain(process: Process, starts: list[Array]) -> float:
    """G: what a chooser of single steps could still gain where a policy that begins at `starts` decides."""
    ours = policy_of(process)
    return float(
        sum(
            (visited * gains.max(axis=1)).sum()
            for visited, gains in zip(visits(process, ours, starts), advantages(process, ours), strict=True)
        )
    )


def regret(process: Process) -> float:
    best = values(process, best_policy(process))[0][0]
    return float(best - values(process, policy_of(process))[0][0])


def mismatch(process: Process, starts: list[Array]) -> float:
    ideal = visits(process, best_policy(process), from_the_question(process))
    return concentrability(ideal, visits(process, policy_of(process), starts))


@pytest.mark.parametrize("seed", SEEDS)
def test_regret_is_bounded_by_mismatch_times_what_is_left_to_gain(seed: int) -> None:
    process = random_process(seed)
    for share in (1.0, 0.5, 0.1):
        starts = mixed(share, from_the_question(process), uniform_own(process))
        assert regret(process) <= mismatch(process, starts) * left_to_gain(process, starts) + 1e-12


def test_bound_is_tight_where_the_last_step_decides() -> None:
    process = conjunction(0.5, 4, choices=[1.0, 1.0, 1.0, 0.3])
    starts = from_the_question(process)
    assert mismatch(process, starts) * left_to_gain(process, starts) == pytest.approx(regret(process))


def right_path(process: Process, share: float) -> list[Array]:
    """Starts on the way of a right answer, each boundary alike, and `share` of them at the question."""
    inside = [np.array([1.0, 0.0]) / len(process.probabilities) for _ in process.probabilities]
    return mixed(share, from_the_question(process), inside)


@pytest.mark.parametrize("steps", [4, 8, 16])
def test_starts_inside_a_success_take_the_exponent_out_of_the_mismatch(steps: int) -> None:
    process = conjunction(0.5, steps)
    assert mismatch(process, from_the_question(process)) == pytest.approx(2 ** (steps - 1))
    assert mismatch(process, right_path(process, 0.0)) == pytest.approx(steps)  # of its question
    assert mismatch(process, right_path(process, 0.5)) <= 2 * steps


@pytest.mark.parametrize("seed", SEEDS)
def test_random_boundaries_of_own_rollouts_never_lower_the_mismatch(seed: int) -> None:
    process = random_process(seed)
    plain = visits(process, policy_of(process), from_the_question(process))
    random = visits(process, policy_of(process), uniform_own(process))
    steps = len(plain)
    for k, (ours, theirs) in enumerate(zip(plain, random, strict=True)):
        assert theirs == pytest.approx((k + 1) / steps * ours)
    assert mismatch(process, uniform_own(process)) >= mismatch(process, from_the_question(process))


def test_random_boundaries_give_late_steps_up_to_twice_the_practice_of_a_token() -> None:
    process = conjunction(0.8, 10)
    plain = visits(process, policy_of(process), from_the_question(process))
    random = visits(process, policy_of(process), uniform_own(process))
    cost = {"plain": 10.0, "random": sum(10 - k for k in range(10)) / 10}  # steps of a rollout
    ratios = [
        (theirs[0] / cost["random"]) / (ours[0] / cost["plain"]) for ours, theirs in zip(plain, random, strict=True)
    ]
    assert ratios == pytest.approx([2 * (k + 1) / 11 for k in range(10)])


@pytest.mark.parametrize("fresh", [0.25, 0.5])
def test_resets_alone_make_the_bound_infinite_and_fresh_starts_repair_it(fresh: float) -> None:
    """Counter-example: the first step decides, and every reset is behind it."""
    process = conjunction(0.5, 4, choices=[0.3, 1.0, 1.0, 1.0])
    own = visits(process, policy_of(process), from_the_question(process))
    behind = [np.zeros(2), *(each / 3 for each in own[1:])]
    assert mismatch(process, from_the_question(process)) == pytest.approx(1 / 0.3)
    assert left_to_gain(process, behind) == 0  # nothing can be learned there
    assert np.isinf(mismatch(process, behind))
    with_fresh = mixed(fresh, from_the_question(process), behind)
    assert mismatch(process, with_fresh) <= mismatch(process, from_the_question(process)) / fresh
    assert left_to_gain(process, with_fresh) == pytest.approx(fresh * left_to_gain(process, from_the_question(process)))
