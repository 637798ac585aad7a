from dataclasses import replace
from typing import Any

import pytest

from gpo import Diagnosis, diagnose
from gpo.config.components import Spec
from gpo.diagnosis import default_estimator, outcome
from gpo.errors import ConfigError, DataError
from gpo.estimators.adaptive import Adaptive
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.none import NoReset
from gpo.estimators.random import RandomStep
from gpo.rollout.segmenters import FixedTokens
from gpo.statistics import Interval, exact
from gpo.toy import ChainEngine, ChainTask, Process
from gpo.types import Completion, Score, Start, StepScores, Trajectory

# One decision matters: after "a" the answer is right, after "b" it is wrong; the second decision changes nothing.
PROCESS = Process(
    probabilities=(((0.5, 0.5),), ((0.5, 0.5), (0.5, 0.5))),
    successors=(((0, 1),), ((0, 0), (1, 1))),
    right=(True, False),
)


def test_the_step_that_decides_is_found() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    for seed in range(4):
        diagnosis = diagnose(problem, task, engine, MonteCarlo(rollouts=32, rule="magnitude"), seed=seed)
        assert diagnosis.scores.critical_step == 0
        assert "".join(diagnosis.steps) == diagnosis.trajectory.completion.text
        lines = str(diagnosis).splitlines()
        assert len(lines) == 5
        assert [line[6:8] for line in lines[:4]] == ["->", "  ", "  ", "  "]
        assert lines[3].endswith(f"({diagnosis.trajectory.score.verdict})")


def test_the_values_around_the_critical_step_are_sampled_anew() -> None:
    """The value before the first decision is 1/2, that after it the reward; a search with N=2 sees any of 0, 1/2, 1."""
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    found = [diagnose(problem, task, engine, MonteCarlo(rollouts=2, rule="magnitude"), seed=s) for s in range(200)]
    chosen = [d for d in found if d.scores.critical_step == 0 and d.fresh]
    assert len(chosen) > 50
    before = sum(d.fresh[0].estimate for d in chosen if d.fresh) / len(chosen)
    searched = sum(abs(d.scores.advantages[0]) for d in chosen) / len(chosen)
    assert abs(before - 0.5) < 0.03
    assert searched > 0.6  # the search's own: too large
    for d in chosen:
        assert d.fresh is not None
        assert d.fresh[0].n == d.fresh[1].n == 16
        assert d.fresh[1].estimate == d.trajectory.score.value
        assert str(d).splitlines()[-1] == d.remark


def test_no_fresh_rollouts_where_none_are_asked_for_or_no_step_stands_out() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    assert diagnose(problem, task, engine, MonteCarlo(rollouts=8), seed=1, fresh=0).fresh is None
    assert diagnose(problem, task, engine, NoReset(), seed=1).remark == ""


def test_after_the_last_step_the_reward_is_known() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    found = next(
        d
        for d in (diagnose(problem, task, engine, RandomStep(seed=s)) for s in range(50))
        if d.scores.critical_step == 2
    )
    assert found.fresh is not None
    assert (found.fresh[1].estimate, found.fresh[1].n) == (found.trajectory.score.value, 1)


def test_the_same_seed_gives_the_same_diagnosis() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    assert diagnose(problem, task, engine, seed=3) == diagnose(problem, task, engine, seed=3)


NAN = float("nan")


def told(
    fresh: tuple[Interval, Interval] | None, advantage: float, *, steps: int = 3, texts: str = "a step\n"
) -> Diagnosis:
    """A diagnosis whose search chose the second step."""
    ends = tuple(range(1, steps + 1))
    trajectory = Trajectory("t", Start("q", (1,)), Completion(ends, "", "stop"), Score(0.0, "wrong", "3"), ends)
    values = (0.5,) * steps + (0.0,)
    advantages = tuple(advantage if k == 1 else 0.0 for k in range(steps))
    scores = StepScores("t", values, (4,) * (steps + 1), values, values, advantages, 1, 1, 9)
    return Diagnosis(trajectory, scores, (texts,) * steps, fresh)


@pytest.mark.parametrize(
    ("before", "after", "advantage", "confirmed"),
    [
        (3, 3, -0.4, False),  # 0.19 to 0.19
        (12, 3, -0.4, True),
        (12, 3, 0.4, False),  # the search saw it the other way
        (3, 12, 0.4, True),
        (8, 4, -0.4, False),
        (10, 5, -0.4, False),  # one-sided p = 0.078
        (11, 5, -0.4, True),  # one-sided p = 0.038
        (11, 5, NAN, False),  # two-sided p = 0.076
        (13, 4, NAN, True),
        (4, 13, NAN, True),
    ],
)
def test_a_critical_step_is_confirmed_by_fishers_test_of_fresh_rollouts(
    before: int, after: int, advantage: float, confirmed: bool
) -> None:
    found = told((exact(before, 16), exact(after, 16)), advantage)
    assert found.confirmed is confirmed
    marks = [line[6:8] for line in str(found).split("\n")[:3]]
    assert marks == ["  ", "->" if confirmed else " ?", "  "]
    assert found.remark.startswith("By 16 fresh" if confirmed else "Not confirmed: by 16 fresh rollouts the step that")


def test_the_reward_after_the_last_step_counts_as_many_equal_rollouts() -> None:
    reward = Interval(0.0, 0.0, 0.0, 1)
    assert told((exact(5, 16), reward), -0.4, steps=2).confirmed
    assert told((exact(4, 16), reward), -0.4, steps=2).confirmed is False
    assert told((exact(5, 16), reward), -0.4, steps=3).confirmed is False  # one rollout


def test_fractional_rewards_are_rounded_towards_no_difference() -> None:
    assert told((exact(11.9, 16), exact(5.0, 16)), -0.4).confirmed
    assert told((exact(10.9, 16), exact(5.0, 16)), -0.4).confirmed is False
    assert told((exact(11.0, 16), exact(5.1, 16)), -0.4).confirmed is False


def test_without_fresh_rollouts_nothing_is_claimed() -> None:
    assert told(None, -0.4).confirmed is None
    assert told((exact(0, 0), exact(3, 16)), -0.4).confirmed is None  # none could be graded
    assert "->" not in str(told(None, -0.4))


def test_what_a_model_wrote_stays_in_its_line_and_steers_nothing() -> None:
    lines = str(told(None, -0.4, texts="a\x1b[2Jb\nc\u2028d\x85e\n")).split("\n")
    assert lines[0] == " 0.50    a⟨U+001B⟩[2Jb c⟨U+2028⟩d⟨U+0085⟩e"
    assert len(lines) == 4


def test_a_response_that_ran_out_of_tokens_is_cut_off_and_not_wrong() -> None:
    cut = Trajectory("t", Start("q", (1,)), Completion((5,), "", "length"), Score(0.0, "ungradable"), (1,))
    assert outcome(cut) == "cut off"
    assert outcome(replace(cut, score=Score(0.0, "wrong", "3"))) == "wrong"
    assert outcome(replace(cut, score=Score(1.0, "right"))) == "right"
    assert outcome(replace(cut, completion=Completion((5,), "", "stop"))) == "ungradable"
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    assert str(diagnose(problem, task, engine, NoReset(), max_tokens=2)).endswith("(cut off)")


def test_the_default_asks_which_step_won_a_right_trajectory_and_which_lost_another() -> None:
    assert default_estimator(Score(1.0, "right", "Y")) == Adaptive(rule="advantage")
    assert default_estimator(Score(0.0, "wrong", "N")) == Adaptive(rule="drop")
    assert default_estimator(Score(None, "failed")) == Adaptive(rule="drop")
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    for seed in range(4):
        found = diagnose(problem, task, engine, seed=seed)
        assert found == diagnose(problem, task, engine, default_estimator(found.trajectory.score), seed=seed)
        assert (found.scores.critical_step, found.confirmed) == (0, True)


def test_a_search_and_a_segmenter_may_be_given_by_their_names() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    found = diagnose(problem, task, engine, "monte_carlo", segmenter="fixed_tokens")
    assert found == diagnose(problem, task, engine, MonteCarlo(), segmenter=FixedTokens())
    assert found != diagnose(problem, task, engine, Spec("estimator", "monte_carlo", {"rollouts": 2}))
    with pytest.raises(ConfigError, match="Unknown estimator 'monte'"):
        diagnose(problem, task, engine, "monte")
    with pytest.raises(ConfigError, match=r"The estimator is the class MonteCarlo, .*Give MonteCarlo\(\)\."):
        diagnose(problem, task, engine, MonteCarlo)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fresh": -1}, "fresh is -1, expected a whole number of rollouts of at least 0"),
        ({"fresh": 1.5}, r"fresh is 1\.5, expected"),
        ({"fresh": "x"}, "fresh is 'x', expected"),
        ({"max_tokens": "5"}, "max_tokens is '5', expected a whole number of tokens of at least 1"),
        ({"engine": "hf"}, r"The engine is the name 'hf', expected an instance: gpo\.make\('engine', 'hf'\)"),
        ({"task": "chain"}, r"The task is the name 'chain', expected an instance"),
        ({"estimator": 3}, "'int' is not an estimator"),
        ({"problem": "What is 2 + 2?"}, r"The problem is 'What is 2 \+ 2\?', expected a gpo\.Problem"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sampled(changes: dict[str, Any], message: str) -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    told: list[str] = []
    given = {"problem": problem, "task": task, "engine": engine, "on_sample": lambda part, *_: told.append(part)}
    with pytest.raises(ConfigError, match=message):
        diagnose(**given | changes)
    assert told == []


def test_each_piece_that_is_sampled_is_told() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,))
    [problem] = task.problems("dev")
    heard: list[tuple[str, int, int]] = []
    found = diagnose(problem, task, engine, on_sample=lambda *piece: heard.append(piece))
    assert list(dict.fromkeys(part for part, _, _ in heard)) == ["solution", "search", "check"]
    assert [piece for piece in heard if piece[1:] == (0, 0)] == [("solution", 0, 0), ("search", 0, 0), ("check", 0, 0)]
    assert sum(tokens for part, _, tokens in heard if part == "search") == found.scores.tokens
    assert sum(rollouts for part, rollouts, _ in heard if part == "check") == 32 - 16 * (len(found.steps) == 1)


def test_a_prompt_without_room_for_a_response_is_refused() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,), context_length=2)
    [problem] = task.problems("dev")
    with pytest.raises(DataError, match="The prompt of problem '0' leaves no room for a response"):
        diagnose(problem, task, engine)
