"""Sections "The winner's curse" and "What a search costs" of docs/theory.md."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from tabular import conjunction, gradient

from gpo.toy import Process

TRUE = (0.5, 0.6, 0.2, 0.3)  # V_0 to V_3, behind which the reward is known


def outcomes(known: tuple[float, ...], rollouts: int) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Probability and advantages of all outcomes of N rollouts from every boundary."""
    laws = [binom.pmf(np.arange(rollouts + 1), rollouts, value) for value in known]
    for counts in product(range(rollouts + 1), repeat=len(known)):
        probability = float(np.prod([law[count] for law, count in zip(laws, counts, strict=True)]))
        yield probability, np.diff(np.array(counts) / rollouts)


def curse(known: tuple[float, ...], rollouts: int) -> tuple[float, float]:
    """Expected estimate at the step that seems the largest, and its true advantage. Ties: the first."""
    truth = np.diff(known)
    said, true = 0.0, 0.0
    for probability, found in outcomes(known, rollouts):
        best = int(found.argmax())
        said, true = said + probability * found[best], true + probability * truth[best]
    return said, true


@pytest.mark.parametrize("rollouts", [2, 4, 8])
def test_what_the_chosen_step_seems_worth_is_too_much(rollouts: int) -> None:
    said, true = curse(TRUE, rollouts)
    assert said > np.diff(TRUE).max() >= true


def test_the_curse_of_four_boundaries() -> None:
    found = {rollouts: curse(TRUE, rollouts) for rollouts in (2, 4, 8)}
    assert [round(said - true, 2) for said, true in found.values()] == [0.38, 0.25, 0.16]
    assert found[2][1] < found[4][1] < found[8][1]


def test_without_a_critical_step_the_search_finds_one_all_the_same() -> None:
    said, true = curse((0.5, 0.5, 0.5, 0.5), 4)
    assert true == 0
    assert round(said, 2) == 0.34


def test_a_uniform_search_takes_half_its_rollouts_times_steps_and_one_more() -> None:
    """In whole responses, N (K + 1) / 2, if steps are equally long."""
    steps, rollouts, length = 9, 4, 90
    tokens = sum(rollouts * (length - length // steps * boundary) for boundary in range(steps))
    assert tokens / length == pytest.approx(rollouts * (steps + 1) / 2)


@pytest.mark.parametrize("repeat", [0.0, 0.5, 0.9])
def test_a_rollout_tells_of_as_many_boundaries_as_it_reproduces(repeat: float) -> None:
    """From boundary 0 of K steps, each taken again with probability r: (1 - r^K) / (1 - r) boundaries."""
    steps = 12
    passed = sum(repeat**boundary for boundary in range(steps))
    drawn = np.random.default_rng(0).random((20_000, steps)) < repeat
    reached = np.cumprod(drawn[:, : steps - 1], axis=1).sum(axis=1) + 1
    assert passed == pytest.approx((1 - repeat**steps) / (1 - repeat))
    assert reached.mean() == pytest.approx(passed, rel=0.02)


STEPS = 10


def against_the_question(success: float, step: int, *, shared: bool) -> float:
    """Signal per token of a rollout from step `step` of a success over one from the question, ten steps.

    Of the skill of that step, or of the one that all steps share; whole credit.
    """
    skill = success ** (1 / STEPS)

    def signal(process: Process, of: int) -> float:
        found = gradient(process, "whole", shared=shared)
        return (found.signal if shared else found.signal_of(of)) / len(process.probabilities)

    return signal(conjunction(skill, STEPS - step), 0) / signal(conjunction(skill, STEPS), step)


def rule(success: float, step: int) -> float:
    """The same by v (1 - v) / tokens."""
    value = success ** (1 - step / STEPS)
    return (value * (1 - value) / (STEPS - step)) / (success * (1 - success) / STEPS)


@pytest.mark.parametrize(
    ("success", "apart", "shared", "said"),
    [
        (0.01, 22.67, 26.47, 18.18),
        (0.1, 5.40, 15.80, 4.81),
        (0.3, 2.45, 5.73, 2.36),
        (0.6, 2.04, 0.55, 1.45),
        (0.9, 2.00, 0.89, 1.08),
    ],
)
def test_table_of_practice_per_token_from_the_middle_of_a_success(
    success: float, apart: float, shared: float, said: float
) -> None:
    assert against_the_question(success, 5, shared=False) == pytest.approx(apart, abs=0.006)
    assert against_the_question(success, 5, shared=True) == pytest.approx(shared, abs=0.006)
    assert rule(success, 5) == pytest.approx(said, abs=0.006)


@pytest.mark.parametrize("step", [2, 5, 8])
@pytest.mark.parametrize("success", [0.01, 0.1, 0.3, 0.6, 0.9])
def test_with_a_skill_for_each_step_the_rule_never_says_too_much_by_a_fifth(success: float, step: int) -> None:
    assert 1 < rule(success, step) < 1.2 * against_the_question(success, step, shared=False)


@pytest.mark.parametrize("step", [2, 5, 8])
def test_with_a_shared_skill_resets_teach_less_than_the_rule_says_where_most_answers_are_right(step: int) -> None:
    """Counter-example: the rule says more than 1, and a token from the question is worth more."""
    for success in (0.6, 0.9):
        assert against_the_question(success, step, shared=True) < 1 < rule(success, step)


@pytest.mark.parametrize("weak", [0.1, 0.4])
def test_where_the_last_step_decides_a_token_there_is_worth_as_many_as_a_response_has_steps(weak: float) -> None:
    def signal(skills: list[float]) -> float:
        found = gradient(conjunction(0, 0, choices=skills), "whole", shared=False)
        return found.signal_of(len(skills) - 1) / len(skills)

    assert signal([weak]) / signal([1.0] * (STEPS - 1) + [weak]) == pytest.approx(STEPS)
    # Without the first nine being sure it is more: what is lost before is noise for the last.
    assert signal([weak]) / signal([0.95] * (STEPS - 1) + [weak]) > 1.3 * STEPS


def test_a_start_whose_outcomes_are_mixed_is_worth_most_at_one_half() -> None:
    """A group of n rollouts has right and wrong ones with probability 1 - v^n - (1 - v)^n."""
    values = np.linspace(0.01, 0.99, 99)
    for n in (2, 4, 8):
        mixed = 1 - values**n - (1 - values) ** n
        assert values[mixed.argmax()] == pytest.approx(0.5)
        spread = np.array([(binom.pmf(np.arange(n + 1), n, v) * np.arange(n + 1) * (n - np.arange(n + 1)) / n).sum()
                           for v in values])  # fmt: skip
        assert spread == pytest.approx((n - 1) * values * (1 - values))  # sum of (R - mean R)^2 of a group
