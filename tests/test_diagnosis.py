import pytest

from gpo import diagnose
from gpo.errors import DataError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.estimators.none import NoReset
from gpo.estimators.random import RandomStep
from gpo.toy import ChainEngine, ChainTask, Process

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


def test_a_prompt_without_room_for_a_response_is_refused() -> None:
    task, engine = ChainTask(size=1), ChainEngine((PROCESS,), context_length=2)
    [problem] = task.problems("dev")
    with pytest.raises(DataError, match="The prompt of problem '0' leaves no room for a response"):
        diagnose(problem, task, engine)
