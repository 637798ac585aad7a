"""The two estimators that spend nothing."""

from collections import Counter
from dataclasses import replace

from toy_chain import first_rollouts, make_sampler

from gpo.estimators.none import NoReset
from gpo.estimators.random import RandomStep
from gpo.toy import ChainEngine
from gpo.types import Completion, Estimator

ENGINE = ChainEngine()
TRAJECTORIES = first_rollouts(ENGINE, 2)
EMPTY = replace(TRAJECTORIES[0], completion=Completion((), "", "length"), step_ends=())


def test_no_reset_is_the_question_and_costs_nothing() -> None:
    sample = make_sampler(ENGINE)
    scores = NoReset()([*TRAJECTORIES, EMPTY], sample)
    assert [s.trajectory_id for s in scores[:-1]] == [t.id for t in TRAJECTORIES]
    assert all((s.critical_step, s.reset_boundary, s.tokens, s.rollouts) == (None, 0, 0, ()) for s in scores)
    assert [s.values[-1] for s in scores[:-1]] == [t.score.value for t in TRAJECTORIES]
    assert all(sum(s.counts) == 1 for s in scores)
    assert sample.tokens == 0


def test_a_random_step_is_uniform_and_does_not_depend_on_the_batch() -> None:
    many = [replace(TRAJECTORIES[0], id=f"rollout:0:{serial}") for serial in range(1400)]
    scores = RandomStep()(many, make_sampler(ENGINE))
    counts = Counter(s.critical_step for s in scores)
    assert set(counts) == set(range(7))
    assert all(150 < count < 250 for count in counts.values())
    assert all(s.reset_boundary == s.critical_step for s in scores)
    # NaN is no equal of itself: compare the choices
    again = RandomStep()(many[700:], make_sampler(ENGINE))
    assert [s.critical_step for s in again] == [s.critical_step for s in scores[700:]]
    other = RandomStep(seed=1)(many, make_sampler(ENGINE))
    assert [s.critical_step for s in other] != [s.critical_step for s in scores]


def test_a_response_without_steps_has_no_reset() -> None:
    [scores] = RandomStep()([EMPTY], make_sampler(ENGINE))
    assert (scores.critical_step, scores.reset_boundary) == (None, None)


def test_both_satisfy_the_protocol() -> None:
    assert isinstance(NoReset(), Estimator)
    assert isinstance(RandomStep(), Estimator)
