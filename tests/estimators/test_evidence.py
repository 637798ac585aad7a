"""What a round has sampled before a search, and what it has left: V_0 without bias, chunks, limits."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
from toy_chain import exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.config.registry import ESTIMATORS, lookup
from gpo.contracts import Sample
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.bisect import Bisect
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.toy import ChainEngine, random_process
from gpo.types import Evidence, Group, Score, Start, StepScores, Trajectory

ENGINE = ChainEngine(tuple(random_process(seed) for seed in range(24)))
SEARCHES = [
    MonteCarlo(),
    MonteCarlo(share_start=True, rollouts=16),
    MonteCarlo(early_stop=True, rule="authors"),
    Bisect(),
    Bisect(level="token"),
    Bisect(share_start=True, rollouts=16, threshold=0.1),
    Adaptive(),
    Adaptive(share_start=True),
]


def told(trajectories: Sequence[Trajectory], scores: Sequence[StepScores] = ()) -> Evidence:
    by_start: dict[Start, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_start.setdefault(trajectory.start, []).append(trajectory)
    return Evidence(tuple(Group(start, tuple(group)) for start, group in by_start.items()), tuple(scores))


def wrong_first(evidence: Evidence, each: int) -> list[Trajectory]:
    return [t for group in evidence.groups for t in sorted(group.trajectories, key=lambda t: t.score.right)[:each]]


@pytest.mark.parametrize("estimator", [MonteCarlo, Bisect, Adaptive])
def test_a_choice_by_reward_does_not_bias_the_shared_start(estimator: Any) -> None:
    search = estimator(share_start=True, rollouts=1)
    errors: dict[str, list[float]] = {"told": [], "not told": []}
    for seed in range(4):
        evidence = told(first_rollouts(ENGINE, 8, seed, logprobs=True))
        chosen = wrong_first(evidence, 4)
        for name, known in (("told", evidence), ("not told", Evidence())):
            scores = search(chosen, make_sampler(ENGINE, seed=seed), known)
            errors[name] += [s.values[0] - exact_values(ENGINE, t)[0] for s, t in zip(scores, chosen, strict=True)]
    assert abs(np.mean(errors["told"])) < 0.04
    assert np.mean(errors["not told"]) < -0.07


def test_the_start_is_shared_with_what_earlier_searches_sampled_from_it() -> None:
    trajectories = first_rollouts(ENGINE, 3)[:3]
    whole = MonteCarlo(share_start=True)(trajectories, make_sampler(ENGINE), told(trajectories))
    sample, found = make_sampler(ENGINE), []
    for trajectory in trajectories:
        found += MonteCarlo(share_start=True)([trajectory], sample, told(trajectories, found))
    assert found == whole
    assert [score.counts[0] for score in found] == [6, 6, 6]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_searches_of_different_questions_do_not_depend_on_the_chunks(search: Any) -> None:
    trajectories = first_rollouts(ENGINE, 1, logprobs=True)[:9]
    whole = search(trajectories, make_sampler(ENGINE), told(trajectories))
    sample, found = make_sampler(ENGINE), []
    for begin in (0, 2, 4):
        chunk = trajectories[begin : begin + max(2, begin) + begin // 4]
        found += search(chunk, sample, told(trajectories, found))
    assert [score.trajectory_id for score in found] == [t.id for t in trajectories]
    assert repr(found) == repr(whole)  # NaN is no equal of itself


def test_adaptive_goes_on_from_what_earlier_searches_of_the_question_sampled() -> None:
    trajectories = first_rollouts(ENGINE, 4, logprobs=True)[:4]
    sample = make_sampler(ENGINE)
    first = Adaptive()(trajectories[:3], sample)
    before = sample.tokens
    [knowing] = Adaptive()(trajectories[3:], sample, told(trajectories, first))
    spent = sample.tokens - before
    fresh = make_sampler(ENGINE)
    [alone] = Adaptive()(trajectories[3:], fresh)
    assert knowing.counts[0] > alone.counts[0]
    assert spent < fresh.tokens
    assert knowing.tokens == spent


class Limited:
    """A `Sample` that stops in the middle of a call once its tokens are spent, and must not be asked after that."""

    def __init__(self, sample: Any, limit: int) -> None:
        self.sample, self.limit = sample, limit

    @property
    def left(self) -> int:
        return max(0, self.limit - self.sample.tokens)

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        assert self.left, "nothing is left, and yet it was asked"
        return [self._group(start, n) for start in starts]

    def _group(self, start: Start, n: int) -> Group:
        rollouts = [rollout for _ in range(n) if self.left for rollout in self.sample([start], 1)[0].trajectories]
        return Group(start, tuple(rollouts))


@pytest.mark.parametrize("limit", [0, 1, 150, 700])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_search_ends_where_nothing_is_left(search: Any, limit: int) -> None:
    assert isinstance(Limited(make_sampler(ENGINE), 1), Sample)
    trajectories = first_rollouts(ENGINE, 1, logprobs=True)[:8]
    sample = make_sampler(ENGINE)
    scores = search(trajectories, Limited(sample, limit), told(trajectories))
    assert len(scores) == len(trajectories)
    assert sum(score.tokens for score in scores) == sample.tokens
    assert limit <= sample.tokens < limit + 16  # it ends with the rollout that goes over
    for trajectory, score in zip(trajectories, scores, strict=True):
        assert score.values[-1] == trajectory.score.value
        assert all(group.trajectories for group in score.rollouts)
        assert score.critical_step is None or 0 <= score.critical_step < len(trajectory.step_ends)


class Broken:
    """A `Sample` whose rollouts from some boundaries cannot be graded."""

    left = None

    def __init__(self, sample: Any, lengths: Sequence[int]) -> None:
        self.sample, self.lengths = sample, lengths

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        return [
            Group(s, tuple(map(ungraded, g.trajectories))) if len(s.prefix_ids) in self.lengths else g
            for s, g in zip(starts, self.sample(starts, n), strict=True)
        ]


def ungraded(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, score=Score(None, "failed"))


CHAIN = ChainEngine((mistake_chain([0.02] * 7 + [0.5] + [0.02] * 4),))
WRONG = [t for t in first_rollouts(CHAIN, 60) if not t.score.right and t.completion.text[14] == "b"]


@pytest.mark.parametrize("failed", [[6], [6, 3], [0]])
def test_bisect_goes_around_boundaries_whose_grades_all_failed(failed: list[int]) -> None:
    """The mistake is step 7 of 13; the first middle is boundary 6."""
    at = [WRONG[0].boundaries[boundary] for boundary in failed]
    scores = Bisect(rollouts=24, rule="drop")(WRONG, Broken(make_sampler(CHAIN), at))
    assert np.mean([score.critical_step == 7 for score in scores]) > 0.8
    assert all(isnan(score.values[boundary]) for score in scores for boundary in failed)


def test_bisect_takes_a_block_as_it_is_where_all_of_it_is_unknown() -> None:
    ends = WRONG[0].boundaries
    sample = make_sampler(CHAIN)
    scores = Bisect(rollouts=12, rule="drop")(WRONG, Broken(sample, ends[1:]))
    assert {score.critical_step for score in scores} == {0}
    assert max(sum(len(g.trajectories) for g in score.rollouts) for score in scores) == 12 * 4
    scores = Bisect(rollouts=12, rule="drop")(WRONG, Broken(sample, ends))
    assert {score.critical_step for score in scores} == {None}
    assert all(value == 0.0 or isnan(value) for score in scores for value in score.values)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_search_takes_evidence(name: str) -> None:
    parameters = inspect.signature(lookup("estimator", name).__call__).parameters
    assert list(parameters) == ["self", "trajectories", "sample", "evidence"]
    assert parameters["evidence"].default == Evidence()
