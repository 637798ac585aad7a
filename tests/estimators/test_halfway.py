"""Halving for a value of 1/2 on chains whose values are known."""

from dataclasses import replace
from math import ceil, log2

import numpy as np
import pytest
from toy_chain import Planted, Recorder, exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.errors import ConfigError
from gpo.estimators.halfway import Halfway
from gpo.estimators.matched import MatchedRandom
from gpo.toy import ChainEngine
from gpo.types import Completion, Evidence, Score, StepScores, Trajectory

HARD = ChainEngine((mistake_chain([0.25] * 12),))  # solved in 3% of the rollouts; the value rises step by step
EASY = ChainEngine((mistake_chain([0.04, 0.04, 0.04] + [0.001] * 9),))  # solved in 88%
SUCCESSES = [t for t in first_rollouts(HARD, 600) if t.score.right]
FAILURES = [t for t in first_rollouts(EASY, 200) if not t.score.right]


def found(engine: ChainEngine, trajectories: list[Trajectory], **settings: float) -> list[StepScores]:
    return Halfway(**settings)(trajectories, make_sampler(engine))  # type: ignore[arg-type]


def test_a_rare_success_is_gone_back_to_where_success_is_as_likely_as_failure() -> None:
    assert len(SUCCESSES) > 8
    scores = found(HARD, SUCCESSES, rollouts=16)
    at = [
        exact_values(HARD, t)[s.reset_boundary]
        for s, t in zip(scores, SUCCESSES, strict=True)
        if s.reset_boundary is not None
    ]
    assert len(at) == len(SUCCESSES)
    assert 0.3 < np.mean(at) < 0.7
    # halving the other way round would end near the question, whose value is 0.03, or near the answer
    assert np.mean([0.15 < value < 0.85 for value in at]) > 0.9


def test_a_rare_failure_is_gone_back_to_before_the_step_that_lost_it() -> None:
    """Nothing in between: the value falls from 0.9 to 0 at once, so that only the side before it has both outcomes."""
    scores = found(EASY, FAILURES, rollouts=16)
    lost = [int(np.argmin(np.diff(exact_values(EASY, t)))) for t in FAILURES]
    resets = [(s.reset_boundary, step) for s, step in zip(scores, lost, strict=True) if s.reset_boundary is not None]
    assert len(resets) > len(FAILURES) / 3
    assert all(boundary <= step for boundary, step in resets)
    for s, step in zip(scores, lost, strict=True):
        looked = [k for k, count in enumerate(s.counts[:-1]) if count]
        assert len(looked) >= 2
        assert min(abs(k - step) for k in looked) <= 1  # the search closed in on it
        assert s.critical_step == s.reset_boundary


def test_it_costs_a_halving_and_stops_early_where_the_middle_is_near_a_half() -> None:
    recorder = Recorder(make_sampler(HARD))
    scores = Halfway(rollouts=4)(SUCCESSES, recorder)
    steps = len(SUCCESSES[0].step_ends)
    assert recorder.calls[0] == (len(SUCCESSES), 4)
    assert len(recorder.calls) <= ceil(log2(steps))
    assert sum(starts for starts, _ in recorder.calls) < len(SUCCESSES) * ceil(log2(steps))
    assert sum(s.tokens for s in scores) == recorder.sample.tokens  # type: ignore[attr-defined]
    narrow = Recorder(make_sampler(HARD))
    Halfway(rollouts=4, near=0.0)(SUCCESSES, narrow)
    assert sum(starts for starts, _ in narrow.calls) > sum(starts for starts, _ in recorder.calls)


def test_a_search_begins_where_that_of_a_round_before_has_ended() -> None:
    known = found(HARD, SUCCESSES, rollouts=16)
    recorder, anew = Recorder(make_sampler(HARD)), Recorder(make_sampler(HARD))
    again = Halfway(rollouts=16)(SUCCESSES, recorder, Evidence(earlier=tuple(known)))
    Halfway(rollouts=16)(SUCCESSES, anew)
    for before, after in zip(known, again, strict=True):
        assert before.reset_boundary is not None
        assert after.counts[before.reset_boundary] >= 16  # looked at
    # Most were near 1/2 there, and still are.
    assert sum(starts for starts, _ in recorder.calls) < 0.8 * sum(starts for starts, _ in anew.calls)
    assert len(SUCCESSES) / 2 < sum(a.reset_boundary == b.reset_boundary for a, b in zip(known, again, strict=True))


def test_a_matched_control_searches_what_its_arm_searches() -> None:
    """It has drawn its resets at random, and its search begins where that of the arm would all the same."""
    known = found(HARD, SUCCESSES, rollouts=16)
    control = MatchedRandom("halfway", search=Halfway(rollouts=16))
    drawn = [control.choose(scores, t) for scores, t in zip(known, SUCCESSES, strict=True)]
    assert [s.reset_boundary for s in drawn] != [s.reset_boundary for s in known]
    ours = Halfway(rollouts=16)(SUCCESSES, make_sampler(HARD), Evidence(earlier=tuple(known)))
    theirs = control(SUCCESSES, make_sampler(HARD), Evidence(earlier=tuple(drawn)))
    assert [s.tokens for s in theirs] == [s.tokens for s in ours]
    assert [s.counts for s in theirs] == [s.counts for s in ours]


def test_from_where_a_search_has_ended_it_goes_on_to_the_side_where_the_value_now_is() -> None:
    """The same trajectories by a policy that has become better: the place is nearer to the question."""
    known = found(HARD, SUCCESSES, rollouts=16)
    better = ChainEngine((mistake_chain([0.06] * 12),))
    again = Halfway(rollouts=16, near=0.1)(SUCCESSES, make_sampler(better), Evidence(earlier=tuple(known)))
    moved = [
        (before.reset_boundary, after.reset_boundary)
        for before, after in zip(known, again, strict=True)
        if before.reset_boundary and after.reset_boundary is not None
    ]
    assert len(moved) > len(SUCCESSES) / 2
    assert sum(after <= before for before, after in moved) > 0.9 * len(moved)
    assert np.mean([before - after for before, after in moved]) > 1


def test_where_no_boundary_has_both_outcomes_there_is_no_reset() -> None:
    sure = ChainEngine((mistake_chain([0.0] * 6),))
    [score] = found(sure, first_rollouts(sure, 1))
    assert (score.critical_step, score.reset_boundary) == (None, None)


@pytest.mark.parametrize("settings", [{"near": 0.5}, {"near": -0.1}, {"rollouts": 0}])
def test_settings_that_make_no_search_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Halfway got"):
        Halfway(**settings)  # type: ignore[arg-type]


def test_an_ungraded_response_and_one_of_a_single_step_are_not_searched() -> None:
    whole = SUCCESSES[0]
    given = [replace(whole, score=Score(None, "failed")), replace(whole, step_ends=(len(whole.response_ids),))]
    assert [(s.reset_boundary, s.tokens) for s in found(HARD, given)] == [(None, 0)] * 2


def test_the_half_is_kept_in_which_the_value_crosses_one_half() -> None:
    def searched(
        right: bool, *shares: float, earlier: tuple[StepScores, ...] = (), near: float = 0.25
    ) -> tuple[list[int], int | None]:
        score = Score(float(right), "right" if right else "wrong")
        given = replace(
            SUCCESSES[0], completion=Completion((1,) * 8, "", "stop"), score=score, step_ends=tuple(range(1, 9))
        )
        sample = Planted(shares)
        [scores] = Halfway(near=near)([given], sample, Evidence(earlier=earlier))
        assert scores.critical_step == scores.reset_boundary
        if not earlier:
            before.append(scores)
        return sample.asked, scores.reset_boundary

    before: list[StepScores] = []
    assert searched(True, 0, 0, 0, 0.75, 1, 1, 1, 1) == ([4, 2, 3], 3)
    assert searched(True, 0, 0, 0, 0, 0.25, 1, 1, 1) == ([4], 4)  # near enough
    assert searched(False, 1, 1, 1, 1, 1, 0.5, 0, 0) == ([4, 6, 5], 5)
    assert searched(False, 1, 1, 1, 0, 0, 0, 0, 0) == ([4, 2, 3], None)
    assert searched(True, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, near=0.1) == ([4, 6, 5], 5)  # the nearest of three
    # A round before has seen both outcomes at the fifth boundary, and at the question, which is no place to go back to.
    [known] = [replace(scores, values=(0.5, *scores.values[1:])) for scores in before[2:3]]
    assert searched(True, 0, 0, 0, 0, 0, 0, 0.75, 1, earlier=(known,)) == ([5, 6], 6)
