"""Adaptive search on the toy engine: sharing, stopping, calibration, and hits for fewer tokens."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chain import Recorder, exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.contracts import Estimator
from gpo.errors import ConfigError
from gpo.estimators.adaptive import Adaptive, _choice
from gpo.estimators.bisect import Bisect
from gpo.estimators.branches import Branches
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.tally import Tally
from gpo.toy import ChainEngine, random_process
from gpo.types import Completion, Score, Trajectory

ENGINE = ChainEngine(tuple(random_process(seed, decisions=8) for seed in range(12)))
MISTAKES = ChainEngine(tuple(mistake_chain([0.02 * k] * 8) for k in range(1, 7)))
TRAJECTORIES = first_rollouts(ENGINE, 4, logprobs=True)


def regret(engine, trajectories, scores) -> float:
    losses = []
    for trajectory, score in zip(trajectories, scores, strict=True):
        advantages = np.diff(exact_values(engine, trajectory))
        losses.append(advantages.max() - (0 if score.critical_step is None else advantages[score.critical_step]))
    return float(np.mean(losses))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_advantages_sum_to_reward_minus_start_value(seed: int, logprobs: bool, share_start: bool) -> None:
    engine = ChainEngine((random_process(seed),))
    sample = make_sampler(engine, seed=seed)
    trajectories = first_rollouts(engine, 3, seed, logprobs=logprobs)
    scores = Adaptive(particles=32, share_start=share_start)(trajectories, sample)
    for trajectory, score in zip(trajectories, scores, strict=True):
        assert sum(score.advantages) == pytest.approx(trajectory.score.value - score.values[0])
        assert score.values[-1] == score.lower[-1] == score.upper[-1] == trajectory.score.value
        assert all(
            low <= value <= high for low, value, high in zip(score.lower, score.values, score.upper, strict=True)
        )
        assert score.reset_boundary == score.critical_step
        assert sum(len(group.trajectories) for group in score.rollouts) <= 8 * len(trajectory.step_ends)
    assert sum(score.tokens for score in scores) == sample.tokens
    kept = [t for score in scores for group in score.rollouts for t in group.trajectories]
    assert sum(len(t.completion.token_ids) for t in kept) == sample.tokens


def test_it_regrets_less_than_uniform_search_and_bisection_for_fewer_tokens() -> None:
    spent, lost = {}, {}
    for name, estimator in {
        "adaptive": Adaptive(rollouts=4, share_start=True),
        "uniform": MonteCarlo(rollouts=8),
        "bisect": Bisect(rollouts=16, share_start=True),
    }.items():
        sample = make_sampler(ENGINE, name)
        lost[name] = regret(ENGINE, TRAJECTORIES, estimator(TRAJECTORIES, sample))
        spent[name] = sample.tokens
    assert spent["adaptive"] < min(spent["uniform"] / 2, spent["bisect"])
    assert lost["adaptive"] < min(lost["uniform"], lost["bisect"])


def test_a_clear_mistake_is_found_at_once_and_a_surer_answer_costs_more() -> None:
    engine = ChainEngine((mistake_chain([0.02] * 7 + [0.5] + [0.02] * 4),))
    wrong = [t for t in first_rollouts(engine, 120, logprobs=True) if not t.score.right]
    truth = [int(np.argmin(np.diff(exact_values(engine, t)))) for t in wrong]
    tokens = []
    for certainty in (0.8, 0.99):
        sample = make_sampler(engine)
        scores = Adaptive(rule="drop", certainty=certainty, rollouts=8)(wrong, sample)
        tokens.append(sample.tokens / len(wrong))
        assert np.mean([s.critical_step == step for s, step in zip(scores, truth, strict=True)]) > 0.85
    assert tokens[0] < tokens[1] < 300  # uniform search with N = 8 takes 1400


@pytest.mark.parametrize("certainty", [0.8, 0.999])
@pytest.mark.parametrize("engine", [ENGINE, MISTAKES], ids=["random", "mistakes"])
def test_intervals_cover_at_their_level_with_and_without_early_stops(engine: ChainEngine, certainty: float) -> None:
    estimator = Adaptive(rollouts=4, certainty=certainty, confidence=0.9)
    inside, widths = [], []
    for seed in range(3):
        trajectories = first_rollouts(engine, 4, seed, logprobs=True)
        for trajectory, score in zip(
            trajectories, estimator(trajectories, make_sampler(engine, seed=seed)), strict=True
        ):
            truth = exact_values(engine, trajectory)
            lower, upper = np.array(score.lower), np.array(score.upper)
            inside.append((lower - 1e-9 <= truth) & (truth <= upper + 1e-9))
            widths.append(upper - lower)
            assert ((lower <= score.values) & (score.values <= upper)).all()
    assert np.concatenate(inside).mean() >= 0.9
    assert np.concatenate(widths).mean() < 0.6  # not by saying nothing


def test_the_chosen_advantage_is_hardly_too_high() -> None:
    """Winner's curse: the maximum of raw means is far above the truth, the posterior mean is not."""
    excess = {}
    for name, estimator in {"adaptive": Adaptive(), "uniform": MonteCarlo()}.items():
        errors = []
        for trajectory, score in zip(TRAJECTORIES, estimator(TRAJECTORIES, make_sampler(ENGINE)), strict=True):
            if (step := score.critical_step) is not None:
                errors.append(score.advantages[step] - np.diff(exact_values(ENGINE, trajectory))[step])
        excess[name] = np.mean(errors)
    assert excess["uniform"] > 0.15
    assert excess["adaptive"] < excess["uniform"] / 2


def with_logprobs(trajectories: Sequence[Trajectory], nats: float | None) -> list[Trajectory]:
    """The same of every token."""
    return [
        replace(t, completion=replace(t.completion, logprobs=nats and (nats,) * len(t.completion.token_ids)))
        for t in trajectories
    ]


@pytest.mark.parametrize("nats", [None, -1.0, -30.0, -10_000.0, -inf, nan])
def test_rollouts_are_spread_whatever_is_known_of_the_steps(nats: float | None) -> None:
    trajectories = with_logprobs(TRAJECTORIES, nats)
    kept = [make_sampler(ENGINE, "reset")([t.prefix(3)], 1)[0].trajectories[0] for t in trajectories[:12]]
    for searched in (trajectories, kept):
        scores = Adaptive(rollouts=4)(searched, make_sampler(ENGINE))
        at = [len(group.start.prefix_ids) // 2 for s in scores for group in s.rollouts for _ in group.trajectories]
        shares = np.bincount(at, minlength=9) / len(at)
        assert shares[0] < 0.2
        assert shares[1:8].min() > 0.01


@pytest.mark.parametrize("rule", ["advantage", "drop"])
def test_it_finds_as_much_without_log_probabilities_as_with_flat_ones(rule: str) -> None:
    hits = {}
    for nats in (None, -5.0, -10_000.0):
        scores = Adaptive(rule=rule)(with_logprobs(TRAJECTORIES, nats), make_sampler(ENGINE))
        merits = [np.diff(exact_values(ENGINE, t)) * (-1 if rule == "drop" else 1) for t in TRAJECTORIES]
        found = [0 if s.critical_step is None else m[s.critical_step] for s, m in zip(scores, merits, strict=True)]
        hits[nats] = np.mean([m.max() - f < 1e-9 for m, f in zip(merits, found, strict=True)])
    assert hits[None] == hits[-10_000.0] > hits[-5.0] - 0.05
    assert hits[None] > 0.3


def test_rounds_of_all_trajectories_are_one_call_and_repeat() -> None:
    recorder = Recorder(make_sampler(ENGINE))
    scores = Adaptive(rollouts=2, batch=3)(TRAJECTORIES, recorder)
    calls = recorder.calls
    assert calls[0][0] > len(TRAJECTORIES)
    assert len(calls) <= 2 * 9 / 3 + 1
    assert Adaptive(rollouts=2, batch=3)(TRAJECTORIES, make_sampler(ENGINE)) == scores


def test_rollouts_are_shared_with_every_trajectory_that_has_the_prefix() -> None:
    twin = replace(TRAJECTORIES[0], id="twin")
    scores = Adaptive(rollouts=2, certainty=0.999)([TRAJECTORIES[0], twin], make_sampler(ENGINE))
    assert scores[0].counts == scores[1].counts
    drawn = sum(len(group.trajectories) for score in scores for group in score.rollouts)
    assert max(scores[0].counts) > drawn / 4
    assert all(group.start.parent == score.trajectory_id for score in scores for group in score.rollouts)


def test_siblings_count_at_the_start_but_not_the_own_reward() -> None:
    [first, *_] = Adaptive(rollouts=1, batch=1, share_start=True)(TRAJECTORIES[:4], make_sampler(ENGINE))
    own = sum(len(g.trajectories) for g in first.rollouts if not g.start.prefix_ids)
    assert first.counts[0] >= 3 + own


def test_no_step_stands_out_on_a_sure_chain() -> None:
    sure = ChainEngine((mistake_chain([0.001] * 8),))
    trajectory = first_rollouts(sure, 1, logprobs=True)[0]
    sample = make_sampler(sure)
    [scores] = Adaptive()([trajectory], sample)
    # |A_k| <= 1 - p_k = 0.001 is known without a single rollout.
    assert (scores.critical_step, scores.reset_boundary, sample.tokens) == (None, None, 0)


@pytest.mark.parametrize("rule", ["magnitude", "drop", "authors"])
def test_other_rules(rule: str) -> None:
    engine = ChainEngine((mistake_chain([0.3, 0.3, 0.3]),))
    wrong = next(t for t in first_rollouts(engine, 50, logprobs=True) if t.completion.text.startswith("a\na\nb"))
    [scores] = Adaptive(rule=rule, rollouts=20, certainty=0.95)([wrong], make_sampler(engine))
    assert scores.critical_step == 2  # the values are 0.343, 0.49, 0.7, 0, 0


def test_degenerate_trajectories() -> None:
    whole = TRAJECTORIES[0]
    empty = replace(whole, completion=Completion((), "", "length"), step_ends=())
    one_step = replace(whole, step_ends=(len(whole.response_ids),))
    ungraded = replace(whole, score=Score(None, "failed"))
    scores = Adaptive()([empty, one_step, ungraded], make_sampler(ENGINE))
    assert (scores[0].critical_step, scores[0].values, scores[0].tokens) == (None, (1.0,), 0)
    assert scores[1].critical_step in (None, 0)
    assert 0 < scores[2].values[-1] < 1
    assert Adaptive()([], make_sampler(ENGINE)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("rollouts", 0), ("batch", 0), ("particles", 1), ("certainty", 1.0), ("surprise", 0.0), ("concentration", 0.0)],
)
def test_settings_that_cannot_be(field: str, value) -> None:
    with pytest.raises(ConfigError, match=f"{field}="):
        Adaptive(**{field: value})


def test_adaptive_satisfies_the_protocol() -> None:
    assert isinstance(Adaptive(), Estimator)


@pytest.mark.parametrize(("decisions", "first"), [(2, 4), (8, 9), (40, 16)])
def test_a_first_round_takes_an_eighth_of_what_may_be_spent(decisions: int, first: int) -> None:
    """Of a short response not all, which the prior alone would place. It has a step more than decisions."""
    engine = ChainEngine((random_process(1, decisions=decisions),))
    recorder = Recorder(make_sampler(engine))
    Adaptive(rollouts=8, certainty=0.999)(first_rollouts(engine, 1, logprobs=True), recorder)
    assert recorder.calls[0] == (first, 1)


def test_in_doubt_the_leading_step_is_named_if_it_is_worth_anything() -> None:
    none = np.full(100, 0.01)
    paths = np.arange(100)

    def named(often: int, merit: float, otherwise: float = 0.0) -> int | None:
        step = np.where(paths < often, merit, otherwise)
        return _choice(np.column_stack([np.full(100, -0.1), step, none]), 0.98)

    assert named(60, 0.5) == 1
    assert named(40, 0.5) == 1  # no step is the likeliest answer, but not surely
    assert named(40, 0.5, -0.5) is None  # on average it is worth nothing
    assert named(1, 0.5, -0.001) is None  # surely none


def test_random_numbers_are_of_the_seed_and_of_the_trajectory() -> None:
    engine = ChainEngine((random_process(0),))
    (trajectory,) = first_rollouts(engine, 1, logprobs=True)

    def values(seed: int | None, of: Trajectory = trajectory) -> tuple[float, ...]:
        return Adaptive(rollouts=1, seed=seed)([of], make_sampler(engine))[0].values

    assert values(0) == values(None) != values(1)
    assert values(0) != values(0, replace(trajectory, id="twin"))


def test_an_interval_leaves_out_what_the_same_end_rules_out() -> None:
    trajectories = first_rollouts(MISTAKES, 1, logprobs=True)
    for trajectory, score in zip(
        trajectories, Adaptive(rollouts=0.5)(trajectories, make_sampler(MISTAKES)), strict=True
    ):
        least, most = Branches([Tally(trajectory)]).bounds(0)
        assert (np.minimum(least, score.values) <= score.lower).all()
        assert (score.upper <= np.maximum(most, score.values)).all()
