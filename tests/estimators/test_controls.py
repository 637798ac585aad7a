"""The controls: two that spend nothing, and one that spends what a search spends."""

from collections import Counter
from dataclasses import replace

import pytest
from toy_chain import first_rollouts, make_sampler

from gpo.contracts import Estimator
from gpo.errors import ConfigError
from gpo.estimators.matched import MatchedRandom
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.none import NoReset
from gpo.estimators.random import RandomStep
from gpo.toy import ChainEngine
from gpo.types import Completion, Evidence, Group

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


def test_plain_sampling_has_two_orders() -> None:
    with pytest.raises(ConfigError, match="order is 'best'; expected even or mixed"):
        NoReset("best")  # type: ignore[arg-type]


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


SEARCH = MonteCarlo(rollouts=2)


def test_the_matched_control_differs_from_its_search_in_the_place_only() -> None:
    found = SEARCH(TRAJECTORIES, make_sampler(ENGINE))
    control = MatchedRandom(search=SEARCH)
    scores = control(TRAJECTORIES, make_sampler(ENGINE))
    assert None in {s.critical_step for s in found}
    for ours, theirs in zip(scores, found, strict=True):
        assert repr(replace(ours, critical_step=None, reset_boundary=None)) == repr(
            replace(theirs, critical_step=None, reset_boundary=None)
        )
        assert (ours.critical_step is None) == (theirs.critical_step is None)
        assert ours.reset_boundary == ours.critical_step
    assert [s.critical_step for s in scores] != [s.critical_step for s in found]
    taken_over = [control.choose(s, t) for s, t in zip(found, TRAJECTORIES, strict=True)]
    assert repr(taken_over) == repr(scores)


def test_the_matched_step_is_uniform_and_depends_on_seed_and_trajectory_only() -> None:
    many = [replace(TRAJECTORIES[0], id=f"rollout:0:{serial}") for serial in range(1400)]
    [known] = SEARCH(TRAJECTORIES[:1], make_sampler(ENGINE))
    known = replace(known, critical_step=2, reset_boundary=3)

    def steps(seed: int) -> list[int | None]:
        return [MatchedRandom(seed=seed).choose(known, t).critical_step for t in many]

    counts = Counter(steps(0))
    assert set(counts) == set(range(7))
    assert all(150 < count < 250 for count in counts.values())
    assert steps(0) == [s.critical_step for s in RandomStep()(many, make_sampler(ENGINE))]
    assert steps(0) != steps(1)
    nothing = replace(known, critical_step=None, reset_boundary=None)
    assert MatchedRandom().choose(nothing, many[0]) is nothing


def test_the_matched_control_gives_its_search_the_evidence() -> None:
    [given] = first_rollouts(ENGINE, 1)[:1]
    evidence = Evidence((Group(given.start, tuple(t for t in TRAJECTORIES if t.start == given.start)),))
    control = MatchedRandom(search=MonteCarlo(rollouts=1, share_start=True))
    [scores] = control([replace(given, id="other")], make_sampler(ENGINE), evidence)
    assert scores.counts[0] == 2


def test_the_matched_control_needs_a_search() -> None:
    with pytest.raises(ConfigError, match="belongs in a run"):
        MatchedRandom()(TRAJECTORIES, make_sampler(ENGINE))


@pytest.mark.parametrize("control", [NoReset(), RandomStep(), MatchedRandom()])
def test_controls_satisfy_the_protocol(control: Estimator) -> None:
    assert isinstance(control, Estimator)
