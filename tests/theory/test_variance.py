"""Section "What a trajectory teaches" of docs/theory.md."""

import numpy as np
import pytest
from tabular import conjunction, gradient, parity, paths

from gpo.toy import random_process


def ratio(process: object, *, shared: bool) -> float:
    """Trajectories that whole credit takes for each one that step credit takes."""
    step, whole = (gradient(process, credit, shared=shared) for credit in ("step", "whole"))  # type: ignore[arg-type]
    return step.signal / whole.signal


def of_success(success: float, steps: int, *, shared: bool) -> float:
    return ratio(conjunction(success ** (1 / steps), steps), shared=shared)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shared", [False, True])
def test_all_credits_have_the_same_mean(seed: int, shared: bool) -> None:
    process = random_process(seed, choices=2)
    whole, tail, step = (gradient(process, credit, shared=shared).mean for credit in ("whole", "tail", "step"))
    assert tail == pytest.approx(whole, abs=1e-12)
    assert step == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_step_credit_takes_the_luck_behind_the_step_off_a_tails_variance(seed: int) -> None:
    process = random_process(seed, choices=2)
    luck = sum(
        path.probability * (path.scores**2 * path.values[1:] * (1 - path.values[1:])).sum() for path in paths(process)
    )
    tail, step = (gradient(process, credit, shared=False).variance for credit in ("tail", "step"))
    assert tail - step == pytest.approx(luck, abs=1e-12)


def test_nothing_is_taken_off_where_the_first_step_decides() -> None:
    """Counter-example: the steps behind it are sure, so that the three credits are one."""
    process = conjunction(0.5, 4, choices=[0.3, 1.0, 1.0, 1.0])
    whole, tail, step = (gradient(process, credit, shared=False).variance for credit in ("whole", "tail", "step"))
    assert step == pytest.approx(tail) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("success", "distinct", "shared"),
    [(0.01, 4.72, 22.20), (0.1, 1.10, 12.73), (0.3, 0.70, 2.59), (0.6, 0.80, 0.42), (0.8, 0.91, 0.70)],
)
def test_table_of_conjunctions_of_ten_steps(success: float, distinct: float, shared: float) -> None:
    assert of_success(success, 10, shared=False) == pytest.approx(distinct, abs=0.005)
    assert of_success(success, 10, shared=True) == pytest.approx(shared, abs=0.005)


@pytest.mark.parametrize("steps", [3, 6, 10])
def test_where_most_answers_are_right_step_credit_is_behind_and_more_so_with_a_shared_skill(steps: int) -> None:
    """Counter-example: the exact advantage of a slip is the whole value that it loses, late slips most of all."""
    for success in (0.6, 0.8):
        assert of_success(success, steps, shared=True) < of_success(success, steps, shared=False) < 1


@pytest.mark.parametrize(("skill", "distinct", "shared"), [(0.6, 8.57, 9.23), (0.8, 3.08, 4.71), (0.97, 0.84, 0.59)])
def test_table_of_parities_of_ten_steps(skill: float, distinct: float, shared: float) -> None:
    process = parity(skill, 10)
    assert ratio(process, shared=False) == pytest.approx(distinct, abs=0.005)
    assert ratio(process, shared=True) == pytest.approx(shared, abs=0.005)


def test_a_shared_skill_divides_the_noise_of_whole_trajectories_by_the_steps() -> None:
    """1 / signal is (1 - 3 p) / p + q / (1 - q) with a skill for each step, and the second part over K if shared."""
    steps, skill = 10, 0.9
    success = skill**steps
    apart, shared = (gradient(conjunction(skill, steps), "whole", shared=each) for each in (False, True))
    noise = skill / (1 - skill)
    assert 1 / apart.signal == pytest.approx((1 - 3 * success) / success + noise)
    assert 1 / shared.signal == pytest.approx((1 - 3 * success) / success + noise / steps)


@pytest.mark.parametrize("rollouts", [1, 4])
def test_estimated_advantages_have_the_errors_of_both_values(rollouts: int) -> None:
    """Of a step whose two boundaries have N rollouts each, by going through all their outcomes."""
    before, after = 0.4, 0.7
    counts = np.arange(rollouts + 1)

    def law(value: float) -> np.ndarray:
        from scipy.stats import binom

        return np.asarray(binom.pmf(counts, rollouts, value))

    joint = law(before)[:, None] * law(after)[None, :]
    estimates = (counts[None, :] - counts[:, None]) / rollouts
    mean = (joint * estimates).sum()
    assert mean == pytest.approx(after - before)
    error = (joint * (estimates - mean) ** 2).sum()
    assert error == pytest.approx((before * (1 - before) + after * (1 - after)) / rollouts)
