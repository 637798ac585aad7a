"""Monte Carlo against the exact values of the toy engine."""

from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_chain import TASK, Recorder, exact_values, first_rollouts, make_sampler, mistake_chain

from gpo.contracts import Estimator
from gpo.errors import ConfigError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.random import RandomStep
from gpo.estimators.tally import choose
from gpo.toy import ChainEngine, random_process
from gpo.types import Completion, Problem, Score

ENGINE = ChainEngine()
TRAJECTORIES = first_rollouts(ENGINE, 5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans(), st.booleans())
def test_advantages_sum_to_reward_minus_start_value(seed: int, n: int, share_start: bool, share_path: bool) -> None:
    estimator = MonteCarlo(rollouts=n, share_start=share_start, share_path=share_path)
    engine = ChainEngine((random_process(seed),))
    sample = make_sampler(engine, seed=seed)
    trajectories = first_rollouts(engine, 2, seed)
    scores = estimator(trajectories, sample)
    for trajectory, score in zip(trajectories, scores, strict=True):
        assert sum(score.advantages) == pytest.approx(trajectory.score.value - score.values[0])
        assert len(score.values) == len(score.counts) == len(trajectory.boundaries)
        assert min(score.counts[1:-1]) >= n
    assert sum(score.tokens for score in scores) == sample.tokens
    kept = [t for score in scores for group in score.rollouts for t in group.trajectories]
    assert sum(len(t.completion.token_ids) for t in kept) == sample.tokens
    assert len({t.id for t in kept}) == len(kept)


@pytest.mark.parametrize("settings_", [{}, {"share_path": True}, {"share_path": True, "share_start": True}], ids=str)
def test_estimates_are_unbiased_and_intervals_cover(settings_) -> None:
    engine = ChainEngine(tuple(random_process(seed, decisions=4) for seed in range(6)))
    trajectories = first_rollouts(engine, 1)
    estimator = MonteCarlo(rollouts=4, **settings_)
    truth = np.concatenate([exact_values(engine, t) for t in trajectories])
    total, covered, repeats = np.zeros(len(truth)), np.zeros(len(truth)), 200
    for seed in range(repeats):
        # Fresh siblings too: with share_start they are a part of the estimate.
        siblings = first_rollouts(engine, 4, seed + 1) if estimator.share_start else []
        scores = estimator([*trajectories, *siblings], make_sampler(engine, seed=seed))[: len(trajectories)]
        values, lower, upper = (
            np.concatenate([getattr(s, name) for s in scores]) for name in ("values", "lower", "upper")
        )
        total += values
        covered += (lower <= truth + 1e-9) & (truth <= upper + 1e-9)
    # The standard error of a mean is at most 0.5 / sqrt(4 * 200) = 0.018, that of a coverage of 0.95 is 0.016.
    assert np.abs(total / repeats - truth).max() < 0.06
    assert covered.min() / repeats >= 0.95 - 0.04


def test_all_rollouts_are_one_call() -> None:
    sample = Recorder(make_sampler(ENGINE))
    MonteCarlo(rollouts=3)(TRAJECTORIES, sample)
    assert sample.calls == [(len(TRAJECTORIES) * 7, 3)]


def test_many_rollouts_find_the_true_step_and_random_finds_it_half_as_often() -> None:
    engine = ChainEngine((mistake_chain([0.05, 0.05, 0.4, 0.05, 0.05]),))
    wrong = [t for t in first_rollouts(engine, 60) if not t.score.right and t.completion.text[4] == "b"][:10]
    drop = MonteCarlo(rollouts=40, rule="drop")
    found = [s.critical_step for s in drop(wrong, make_sampler(engine))]
    assert found == [choose(list(exact_values(engine, t)), "drop")[0] for t in wrong]

    truth = [choose(list(exact_values(ENGINE, t)), "advantage") for t in TRAJECTORIES]
    hits = {
        name: sum(s.critical_step == block[0] for s, block in zip(scores, truth, strict=True) if block)
        for name, scores in {
            "monte_carlo": MonteCarlo(rollouts=16)(TRAJECTORIES, make_sampler(ENGINE)),
            "random": RandomStep()(TRAJECTORIES, make_sampler(ENGINE)),
        }.items()
    }
    assert hits["monte_carlo"] >= 2 * hits["random"]


def test_early_stop_leaves_later_steps_alone() -> None:
    engine = ChainEngine((mistake_chain([0.0, 0.5, 0.5]),))
    wrong = next(t for t in first_rollouts(engine, 30) if t.completion.text.startswith("a\na\nb"))
    sample = Recorder(make_sampler(engine))
    [scores] = MonteCarlo(rollouts=1, early_stop=True, rule="authors")([wrong], sample)
    first_success = scores.values.index(1.0)
    assert scores.values[:first_success] == (0.0,) * first_success
    assert all(isnan(v) for v in scores.values[first_success + 1 : -1])
    assert sample.calls == [(1, 1)] * (first_success + 1)
    assert (scores.critical_step, scores.reset_boundary) == (first_success, first_success)


def test_authors_explore_failed_trajectories_only() -> None:
    estimator = replace(MonteCarlo.authors(), min_step_tokens=1)
    scores = estimator(TRAJECTORIES, make_sampler(ENGINE))
    for trajectory, score in zip(TRAJECTORIES, scores, strict=True):
        if trajectory.score.right:
            assert (score.tokens, score.critical_step, score.rollouts) == (0, None, ())
        else:
            known = [v for v in score.values[:-1] if not isnan(v)]
            assert score.critical_step == (known.index(max(known)) if max(known) > 0 else None)


def test_presets_set_every_field_they_differ_in() -> None:
    assert MonteCarlo.paper() == MonteCarlo()
    authors = MonteCarlo.authors()
    assert (authors.rule, authors.explored, authors.early_stop) == ("authors", "failed", True)
    assert (authors.max_steps, authors.min_step_tokens, authors.reset) == (30, 30, "before")


def test_steps_joined_to_blocks_are_searched_as_one() -> None:
    sample = Recorder(make_sampler(ENGINE))
    [scores] = MonteCarlo(max_steps=3, rollouts=8)(TRAJECTORIES[:1], sample)
    assert sample.calls == [(3, 8)]
    assert [not isnan(v) for v in scores.values] == [True, False, True, False, True, False, False, True]
    assert scores.critical_step in (None, 0, 2, 4)


def test_reset_after_keeps_the_critical_step() -> None:
    before = MonteCarlo()(TRAJECTORIES, make_sampler(ENGINE))
    after = MonteCarlo(reset="after")(TRAJECTORIES, make_sampler(ENGINE))
    steps = [(b.critical_step, b.reset_boundary, a.reset_boundary) for b, a in zip(before, after, strict=True)]
    assert {step for step, *_ in steps} > {0, None}
    assert all((step, step if step is None else min(step + 1, 6)) == (b, a) for step, b, a in steps)


def test_the_start_is_shared_and_leaves_the_own_reward_out() -> None:
    rewards = [t.score.value for t in TRAJECTORIES[:5]]
    sample = Recorder(make_sampler(ENGINE))
    scores = MonteCarlo(share_start=True)(TRAJECTORIES[:5], sample)
    assert sample.calls == [(5 * 6, 4)]
    assert [s.values[0] for s in scores] == [(sum(rewards) - r) / 4 for r in rewards]

    sample = Recorder(make_sampler(ENGINE))
    scores = MonteCarlo(share_start=True)(TRAJECTORIES[:3], sample)
    assert sample.calls == [(3 * 6 + 1, 4)]  # two siblings are too few: sampled once, for all three
    assert [s.counts[0] for s in scores] == [6, 6, 6]
    assert [len(s.rollouts) for s in scores] == [7, 6, 6]


class HalfBroken:
    """The toy task with a grader that breaks on right answers."""

    def problems(self, split):
        return TASK.problems(split)

    def prompt(self, problem: Problem):
        return TASK.prompt(problem)

    def score(self, problem: Problem, text: str) -> Score:
        score = TASK.score(problem, text)
        if score.right:
            raise RuntimeError("the grader broke")
        return score


def test_rollouts_whose_grader_failed_are_counted_apart() -> None:
    sample = make_sampler(ENGINE)
    sample.task = HalfBroken()
    scores = MonteCarlo(rollouts=6)(TRAJECTORIES, sample)
    assert sample.failed > 0
    graded = sum(sum(s.counts[:-1]) for s in scores)
    assert graded == len(TRAJECTORIES) * 7 * 6 - sample.failed
    assert all(v in (0.0, 1.0) or isnan(v) for s in scores for v in s.values)


def test_degenerate_trajectories() -> None:
    whole = TRAJECTORIES[0]
    empty = replace(whole, completion=Completion((), "", "length"), step_ends=())
    one_step = replace(whole, step_ends=(len(whole.response_ids),))
    ungraded = replace(whole, score=Score(None, "failed"))
    scores = MonteCarlo(rollouts=16)([empty, one_step, ungraded], make_sampler(ENGINE))
    assert (scores[0].critical_step, scores[0].reset_boundary, scores[0].tokens) == (None, None, 0)
    assert (scores[1].critical_step, scores[1].reset_boundary) == (0, 0)
    assert isnan(scores[2].values[-1])
    assert scores[2].counts[-1] == 0
    assert MonteCarlo()([], make_sampler(ENGINE)) == []


def test_values_that_are_all_equal_have_no_critical_step() -> None:
    engine = ChainEngine((mistake_chain([0.0, 0.0]),))
    [scores] = MonteCarlo()(first_rollouts(engine, 1), make_sampler(engine))
    assert scores.values == (1.0, 1.0, 1.0, 1.0)
    assert (scores.critical_step, scores.reset_boundary) == (None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rollouts", 0),
        ("rule", "best"),
        ("reset", "at"),
        ("explored", "right"),
        ("confidence", 95),
        ("max_steps", 0),
        ("min_step_tokens", 0),
    ],
)
def test_settings_that_cannot_be(field: str, value) -> None:
    with pytest.raises(ConfigError, match=f"{field}="):
        MonteCarlo(**{field: value})


def test_monte_carlo_satisfies_the_protocol() -> None:
    assert isinstance(MonteCarlo(), Estimator)
