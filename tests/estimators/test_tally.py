"""Counting rollouts and choosing the critical step, by hand."""

from dataclasses import replace
from itertools import pairwise
from math import isnan, nan

from hypothesis import given
from hypothesis import strategies as st

from gpo.estimators.tally import Tally, choose, grid
from gpo.statistics import exact
from gpo.types import Completion, Group, Score, Start, Trajectory

QUESTION = Start("q", (9,))


def response(tokens: list[int], ends: list[int], value: float | None = 1.0, start: Start = QUESTION) -> Trajectory:
    verdict = "failed" if value is None else "right" if value else "wrong"
    return Trajectory("t", start, Completion(tuple(tokens), "", "stop"), Score(value, verdict), tuple(ends))


def test_rules() -> None:
    values = [0.5, 0.75, 0.0, 0.5, 0.0]
    assert choose(values, "advantage") == (2, 3)
    assert choose(values, "magnitude") == (1, 2)
    assert choose(values, "drop") == (1, 2)
    assert choose(values, "authors") == (1, 2)


def test_the_first_of_equals() -> None:
    assert choose([0.0, 0.5, 0.5, 1.0], "advantage") == (0, 1)
    assert choose([0.5, 0.0, 0.5, 0.0], "drop") == (0, 1)
    assert choose([0.25, 0.5, 0.5, 0.0], "authors") == (1, 2)


def test_boundaries_without_a_value_are_passed_over() -> None:
    assert choose([0.5, nan, 0.25, nan, nan, 1.0], "advantage") == (2, 5)
    assert choose([nan, nan, 1.0], "advantage") is None
    assert choose([1.0], "advantage") is None


def test_no_step_stands_out() -> None:
    assert choose([0.5, 0.5, 0.5], "advantage") is None
    assert choose([0.0, 0.0, 0.0], "authors") is None
    assert choose([1.0, 1.0, 0.0], "authors") == (0, 1)


def test_the_grid_joins_short_and_many_steps() -> None:
    trajectory = response([1] * 10, [1, 2, 5, 6, 10])
    assert grid(trajectory) == (0, 1, 2, 3, 4, 5)
    assert grid(trajectory, min_step_tokens=2) == (0, 2, 3, 5)
    assert grid(trajectory, max_steps=2) == (0, 2, 5)
    assert grid(response([], [])) == (0,)


def test_a_failed_grade_is_no_zero() -> None:
    tally = Tally(response([1, 2], [1, 2]))
    rollouts = [response([1, 2], [1, 2], value) for value in (1.0, None, 0.0, None)]
    tally.keep(0, Group(QUESTION, tuple(rollouts[:1])))
    tally.keep(0, Group(QUESTION, tuple(rollouts[1:])))
    tally.count(0, rollouts)
    scores = tally.scores((0, 1), "before", 0.95)
    assert (scores.values[0], scores.counts[0], scores.tokens) == (0.5, 2, 8)
    assert isnan(scores.values[1])
    assert isnan(scores.lower[1])
    assert (scores.lower[0], scores.upper[0]) == (exact(1, 2).lower, exact(1, 2).upper)
    assert (scores.values[2], scores.lower[2], scores.upper[2], scores.counts[2]) == (1.0, 1.0, 1.0, 1)
    assert scores.rollouts == (Group(QUESTION, tuple(rollouts)),)


def test_an_ungraded_trajectory_has_no_final_value() -> None:
    tally = Tally(response([1, 2], [1, 2], None))
    assert (isnan(tally.values[2]), tally.counts[2]) == (True, 0)


def test_reset_before_and_after() -> None:
    tally = Tally(response([1, 2, 3], [1, 2, 3]))
    assert tally.scores((1, 2), "before", 0.9).reset_boundary == 1
    assert tally.scores((1, 2), "after", 0.9).reset_boundary == 2
    assert tally.scores((2, 3), "after", 0.9).reset_boundary == 2
    nothing = tally.scores(None, "after", 0.9)
    assert (nothing.critical_step, nothing.reset_boundary) == (None, None)


def test_a_rollout_counts_for_every_prefix_that_it_reproduces() -> None:
    ours = response([1, 2, 3, 4, 5, 6], [2, 4, 6])
    kept = replace(QUESTION, prefix_ids=(1, 2))
    rollouts = [
        response([3, 4, 7], [2, 4, 5], 1.0, kept),  # shares step 1
        response([3, 8], [2, 4], 0.0, kept),  # leaves within step 1
        response([3, 4, 5, 6], [2, 4, 6], 1.0, kept),  # reproduces all: still no sample of V_K
        response([3, 4, 5, 6, 7], [2, 4, 7], None, kept),
    ]
    tally = Tally(ours)
    tally.count(1, rollouts, share_path=True)
    assert tally.counts == [0, 3, 2, 1]
    assert tally.sums == [0.0, 2.0, 2.0, 1.0]
    tally.count(1, rollouts)
    assert tally.counts == [0, 6, 2, 1]


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, nan]), min_size=1, max_size=8))
def test_the_chosen_block_has_the_largest_advantage(values: list[float]) -> None:
    known = [k for k, value in enumerate(values) if not isnan(value)]
    block = choose(values, "advantage")
    differences = [values[b] - values[a] for a, b in pairwise(known)]
    if block is None:
        assert not any(differences)
    else:
        assert values[block[1]] - values[block[0]] == max(differences)
        assert known.index(block[1]) == known.index(block[0]) + 1
