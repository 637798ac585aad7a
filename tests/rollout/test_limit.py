"""A limit of tokens is kept to the token, most of it is used, and what is sampled is the same as without one."""

from collections.abc import Sequence

import pytest

from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.toy import ChainEngine, ChainTask
from gpo.types import Completion, Request

LENGTH = 6 * 42 + 2  # tokens of a whole response with 40 filler tokens a line
ENGINE, TASK = ChainEngine(padding=40), ChainTask()
PROBLEMS = {problem.id: problem for problem in TASK.problems("train")}
STARTS = [question_start(problem, TASK, ENGINE.tokenizer) for problem in PROBLEMS.values()]


class Counting(ChainEngine):
    """Remembers what each call asks for."""

    def generate(self, requests: Sequence[Request], **settings) -> list[list[Completion]]:
        calls = self.__dict__.setdefault("calls", [])
        calls.append([request.n for request in requests])
        return super().generate(requests, **settings)


def ids(groups) -> list[list[tuple[int, ...]]]:
    return [[t.completion.token_ids for t in group.trajectories] for group in groups]


@pytest.mark.parametrize("limit", [0, 1, LENGTH - 1, 1_000, 3_333, 7_000, 10_000])
@pytest.mark.parametrize("max_tokens", [LENGTH, 400])
def test_a_limit_is_kept_and_most_of_it_is_used(limit: int, max_tokens: int) -> None:
    free = Sampler(ENGINE, TASK, PROBLEMS, max_tokens=max_tokens)
    bound = Sampler(ENGINE, TASK, PROBLEMS, max_tokens=max_tokens, limit=limit)
    given = 0
    for n in (4, 3):
        everything, some = ids(free(STARTS, n)), ids(bound(STARTS, n))
        assert some == everything or bound.withheld
        given += sum(map(len, some))
    assert bound.tokens <= limit < bound.tokens + max_tokens
    assert bound.withheld == 7 * len(STARTS) - given
    assert bound.left == 0


def test_long_answers_do_not_break_the_limit() -> None:
    bound = Sampler(ENGINE, TASK, PROBLEMS, max_tokens=LENGTH, limit=10 * LENGTH)
    groups = bound(STARTS[:4], 4)
    assert [len(group.trajectories) for group in groups] == [4, 4, 2, 0]
    assert (bound.tokens, bound.left, bound.withheld) == (10 * LENGTH, 0, 6)
    assert ids(bound(STARTS[:1], 4)) == [[]]


def test_a_start_of_which_a_part_fits_gets_the_rest_when_the_part_was_short() -> None:
    engine = Counting(padding=0)  # 14 tokens of the 100 that one may have
    bound = Sampler(engine, TASK, PROBLEMS, max_tokens=100, limit=400)
    (group,) = bound(STARTS[:1], 10)
    assert engine.calls == [[4], [3], [3]]
    assert (bound.tokens, bound.left, bound.withheld) == (140, 260, 0)
    [found] = ids([group])
    assert found[:3] != found[4:7] != found[7:]  # the parts have random numbers of their own


def test_once_a_rollout_was_withheld_nothing_is_left() -> None:
    bound = Sampler(ENGINE, TASK, PROBLEMS, max_tokens=LENGTH, limit=2 * LENGTH - 1)
    assert [len(group.trajectories) for group in bound(STARTS[:2], 1)] == [1, 0]
    assert (bound.tokens, bound.left, bound.withheld) == (LENGTH, 0, 1)


def test_short_answers_leave_room_for_more_in_later_waves() -> None:
    engine = Counting(padding=0)  # 14 tokens of the 100 that one may have
    bound = Sampler(engine, TASK, PROBLEMS, max_tokens=100, limit=1_000)
    groups = bound(STARTS, 4)
    assert [len(group.trajectories) for group in groups] == [4] * 8
    assert engine.calls == [[4, 4], [4, 4], [4], [4], [4], [4]]
    assert bound.tokens == 8 * 4 * 14


def test_a_start_with_less_room_is_sampled_where_a_longer_one_does_not_fit() -> None:
    parent = Sampler(ENGINE, TASK, PROBLEMS)(STARTS[:1], 1)[0].trajectories[0]
    bound = Sampler(ENGINE, TASK, PROBLEMS, max_tokens=LENGTH, limit=50)
    assert [len(group.trajectories) for group in bound([STARTS[0], parent.prefix(5)], 4)] == [0, 1]


def test_without_a_limit_the_engine_is_asked_once() -> None:
    engine = Counting()
    Sampler(engine, TASK, PROBLEMS)(STARTS, 4)
    assert engine.calls == [[4] * 8]


def test_later_draws_do_not_depend_on_what_was_withheld() -> None:
    free = Sampler(ENGINE, TASK, PROBLEMS)
    bound = Sampler(ENGINE, TASK, PROBLEMS, max_tokens=LENGTH, limit=6 * LENGTH)
    for sample in (free, bound):
        sample(STARTS[:1], 4)
    again = bound([STARTS[0], STARTS[0]], 4)
    assert ids(again)[0] == ids(free(STARTS[:1], 4))[0][:2]
