"""Halving on chains with one mistake, and what it cannot see."""

from dataclasses import replace
from math import isnan, log2

import numpy as np
import pytest
from toy_chain import Planted, Recorder, exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.contracts import Estimator
from gpo.errors import ConfigError
from gpo.estimators.bisect import Bisect
from gpo.estimators.random import RandomStep
from gpo.toy import ChainEngine
from gpo.types import Completion, Score

# Twelve decisions that seldom fail but one, and the answer line.
CHAIN = ChainEngine((mistake_chain([0.02] * 7 + [0.5] + [0.02] * 4),))
WRONG = [t for t in first_rollouts(CHAIN, 120) if not t.score.right]


def test_it_finds_the_mistake_for_few_rollouts() -> None:
    sample = make_sampler(CHAIN)
    scores = Bisect(rollouts=12, rule="drop")(WRONG, sample)
    truth = [int(np.argmin(np.diff(exact_values(CHAIN, t)))) for t in WRONG]
    hits = np.mean([s.critical_step == step for s, step in zip(scores, truth, strict=True)])
    random = np.mean([s.critical_step == step for s, step in zip(RandomStep()(WRONG, sample), truth, strict=True)])
    assert hits > 0.8 > 2 * random
    assert max(sum(s.counts[:-1]) for s in scores) <= 12 * (2 + log2(13))
    assert sum(s.tokens for s in scores) == sample.tokens
    assert all(s.advantages[s.critical_step] < 0 for s in scores if s.critical_step is not None)


def test_known_differences_sum_to_reward_minus_start_value() -> None:
    for score, trajectory in zip(Bisect()(WRONG, make_sampler(CHAIN)), WRONG, strict=True):
        known = [v for v in score.values if not isnan(v)]
        assert np.diff(known).sum() == pytest.approx(trajectory.score.value - score.values[0])


def test_rounds_of_all_trajectories_are_one_call_each() -> None:
    recorder = Recorder(make_sampler(CHAIN))
    Bisect(rule="drop")(WRONG, recorder)
    assert recorder.calls[0] == (2 * len(WRONG), 4)
    assert len(recorder.calls) <= 4


def test_a_threshold_searches_both_halves() -> None:
    # One lucky and one unlucky decision cancel out in the first half: 0.5 -> 1 -> 0.5.
    from gpo.toy import Process

    process = Process(
        probabilities=(((0.5, 0.5),), ((0.5, 0.5), (1.0, 0.0)), ((0.5, 0.5), (1.0, 0.0)), ((1.0, 0.0), (1.0, 0.0))),
        successors=(((0, 1),), ((0, 1), (1, 1)), ((0, 1), (1, 1)), ((0, 0), (1, 1))),
        right=(False, True),
    )
    engine = ChainEngine((process,))
    trajectory = next(t for t in first_rollouts(engine, 40) if t.completion.text.startswith("a\na\nb"))
    values = exact_values(engine, trajectory)
    assert values.tolist() == [0.875, 0.75, 0.5, 1.0, 1.0, 1.0]
    [scores] = Bisect(rollouts=60, threshold=0.1, rule="drop")([trajectory], make_sampler(engine))
    assert scores.critical_step == 1
    assert not isnan(scores.values[1])
    [scores] = Bisect(rollouts=60, threshold=0.1)([trajectory], make_sampler(engine))
    assert scores.critical_step == 2


def test_the_start_is_shared() -> None:
    trajectories = first_rollouts(CHAIN, 8)
    sample = make_sampler(CHAIN)
    scores = Bisect(share_start=True)(trajectories, sample)
    assert [s.counts[0] for s in scores] == [7] * 8
    assert len({s.values[0] for s in scores}) == 2
    few = Bisect(share_start=True, rollouts=8)(trajectories[:3], sample)
    assert [s.counts[0] for s in few] == [10] * 3


def test_halving_goes_down_to_a_token() -> None:
    engine = replace(CHAIN, padding=3)  # a decision and four tokens without effect a line
    wrong = [t for t in first_rollouts(engine, 60) if not t.score.right]
    sample = make_sampler(engine)
    recorder = Recorder(sample)
    scores = Bisect(rollouts=24, rule="drop", level="token")(wrong, recorder)
    truth = [int(np.argmin(np.diff(exact_values(engine, t)))) for t in wrong]
    assert np.mean([s.critical_step == step for s, step in zip(scores, truth, strict=True)]) > 0.8
    assert {len(start.prefix_ids) % 5 for asked in recorder.starts for start in asked} == set(range(5))
    for score, trajectory in zip(scores, wrong, strict=True):
        assert len(score.values) == len(trajectory.boundaries)
        assert score.values[-1] == 0.0
        assert score.reset_boundary == score.critical_step
    assert sum(s.tokens for s in scores) == sample.tokens


def test_degenerate_trajectories() -> None:
    whole = WRONG[0]
    empty = replace(whole, completion=Completion((), "", "length"), step_ends=())
    one_step = replace(whole, step_ends=(len(whole.response_ids),))
    ungraded = replace(whole, score=Score(None, "failed"))
    scores = Bisect(rollouts=16)([empty, one_step, ungraded], make_sampler(CHAIN))
    assert [s.critical_step for s in scores] == [None, 0, None]
    assert scores[2].tokens == 0
    sure = ChainEngine((mistake_chain([0.0] * 6),))
    [scores] = Bisect()(first_rollouts(sure, 1), make_sampler(sure))
    assert (scores.critical_step, sum(scores.counts)) == (None, 9)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="follows differences"):
        Bisect(rule="authors")
    with pytest.raises(ConfigError, match="level='word'"):
        Bisect(level="word")
    with pytest.raises(ConfigError, match="threshold=0"):
        Bisect(threshold=0)
    with pytest.raises(ConfigError, match="Bisect got rollouts=0"):
        Bisect(rollouts=0)


def test_bisect_satisfies_the_protocol() -> None:
    assert isinstance(Bisect(), Estimator)


def test_a_token_that_is_found_is_of_the_step_that_holds_it_and_the_reset_is_where_it_was_asked_for() -> None:
    """Planted: the fifth token of four steps of two spoils everything."""
    given = replace(WRONG[0], completion=Completion((1,) * 8, "", "stop"), step_ends=(2, 4, 6, 8))
    for reset, boundary in (("before", 2), ("after", 3)):
        search = Bisect(rollouts=2, rule="drop", level="token", reset=reset)  # type: ignore[arg-type]
        [scores] = search([given], Planted([1, 1, 1, 1, 1, 0, 0, 0]))
        assert (scores.critical_step, scores.reset_boundary) == (2, boundary)
