import pytest

from gpo import DataError, RunConfig, make
from gpo.experiment.budget import (
    allowance,
    next_chunk,
    next_searches,
    reset_starts,
    round_robin,
    search_limit,
    search_weight,
    to_search,
)
from gpo.experiment.questions import choose_problems
from gpo.experiment.starts import Starts
from gpo.rollout.turns import evenly, in_turns
from gpo.types import Completion, Group, Problem, Score, Start, StepScores, Trajectory, Verdict, tokens_of

VALUES: dict[Verdict, float | None] = {"right": 1.0, "wrong": 0.0, "ungradable": 0.0, "failed": None}


def trajectory(name: str, verdict: Verdict = "right", tokens: int = 4, start: Start | None = None) -> Trajectory:
    start = start or Start("p", (1,))
    response = len(start.prefix_ids) + tokens
    return Trajectory(
        name, start, Completion((9,) * tokens, "", "stop"), Score(VALUES[verdict], verdict), (2, response)
    )


def group(problem: str, *verdicts: Verdict) -> Group:
    start = Start(problem, (ord(problem),))
    return Group(start, tuple(trajectory(f"{problem}{i}", v, start=start) for i, v in enumerate(verdicts)))


def scores(name: str, boundary: int | None) -> StepScores:
    return StepScores(name, (), (), (), (), (), None, boundary, 0)


def test_test_problems_that_settings_were_chosen_on_are_left_out() -> None:
    task = make("task", "chain")
    first = choose_problems(task, RunConfig(task=task, test_problems=6), "test")["test"]
    others = choose_problems(task, RunConfig(task=task, test_problems=None, test_skip=6), "test")["test"]
    every = choose_problems(task, RunConfig(task=task, test_problems=None), "test")["test"]
    assert [*first, *others] == every
    assert len(choose_problems(task, RunConfig(task=task, problems=4, test_skip=6), "train")["train"]) == 4
    with pytest.raises(DataError, match="no more than the 100000 test problems that test_skip leaves out"):
        choose_problems(task, RunConfig(task=task, test_skip=100_000), "test")


def test_problems_are_taken_in_turns_from_the_subtasks() -> None:
    problems = [Problem(f"{task}{i}", "", "", {"subtask": task}) for task in "abc" for i in range(3)]
    assert [p.id for p in evenly(problems, 5)] == ["a0", "b0", "c0", "a1", "b1"]
    assert len(evenly(problems, None)) == 9
    assert [p.id for p in evenly([Problem("x", "", ""), Problem("y", "", "")], 1)] == ["x"]
    assert in_turns([[1, 2, 3], [4], []]) == [1, 4, 2, 3]


def test_open_questions_are_searched_first_and_their_wrong_trajectories_before_the_right_ones() -> None:
    groups = [
        group("a", "right", "right"),
        group("b", "wrong", "ungradable"),
        group("c", "right", "failed", "wrong", "wrong"),
        group("d", "wrong", "right"),
    ]
    assert [t.id for t in to_search(groups, 2)] == ["c2", "d0", "c3", "d1", "b0", "b1", "a0", "a1"]
    assert [t.id for t in to_search(groups, 1)] == ["c2", "d0", "b0", "a0"]


def test_reset_starts_are_distinct_prefixes_in_the_order_of_the_search() -> None:
    trajectories = [trajectory("x"), trajectory("y"), trajectory("z")]
    starts = reset_starts([scores("y", 1), scores("x", 1), scores("z", None), scores("x", 0)], trajectories)
    assert starts == [Start("p", (1,), (9, 9), "y"), Start("p", (1,), (), "x")]


def test_a_rollout_is_expected_to_be_as_long_as_those_seen_or_as_its_parents_rest() -> None:
    parent = trajectory("x", tokens=10)
    seen, unseen, unknown = parent.prefix(0), parent.prefix(1), Start("q", (5,))
    groups = [Group(seen, (parent, trajectory("y", tokens=4))), Group(Start("r", (7,)), ())]
    starts = Starts([seen, unseen, unknown])
    assert starts.length(starts.number(seen)) == 1.0  # nothing is known
    for each in groups:
        starts.add(each)
    assert [starts.length(starts.number(start)) for start in (seen, unseen, unknown)] == [7.0, 8.0, 7.0]
    assert tokens_of(groups) == 14


def test_resets_take_turns_and_spend_what_is_left_to_within_half_a_rollout() -> None:
    a, b, c = range(3)
    due, length = round_robin([a, b, c], 4), [10.0, 20.0, 5.0].__getitem__
    assert next_chunk(due(0), length, left=1000, most=2) == ([a, b], 4)
    assert next_chunk(due(2), length, left=1000, most=4) == ([c, a, b, c], 4)
    assert next_chunk(due(0), length, left=151, most=9) == ([a, b], 4)
    assert next_chunk(due(0), length, left=149, most=9) == ([a], 4)
    assert next_chunk(due(0), length, left=41, most=9) == ([a], 4)
    assert next_chunk(due(3), length, left=29, most=9) == ([a], 3)
    assert next_chunk(due(3), length, left=4, most=9) == ([], 4)
    assert next_chunk(due(3), length, left=-7, most=9) == ([], 4)
    assert next_chunk(round_robin([], 4)(0), length, left=100, most=9) == ([], 0)


def test_what_a_search_has_sampled_from_a_start_is_used_before_anything_new() -> None:
    a, b, c = range(3)
    had = {a: 4, b: 1}

    def chunk(done: int, left: int = 1000) -> tuple[list[int], int]:
        return next_chunk(round_robin([a, b, c], 4, had=had)(done), lambda start: 10.0, left=left, most=9)

    assert chunk(0) == ([c], 4)
    assert chunk(1) == ([b], 3)
    assert chunk(2, left=190) == ([a, b, c], 4)  # every start has four by now, and all take turns again
    assert chunk(1, left=21) == ([b], 2)
    assert next_chunk(round_robin([a], 4, had=had)(0), lambda start: 10.0, left=1000, most=1) == ([a], 4)


def test_two_problems_with_the_same_tokens_are_two_places() -> None:
    """Placeholders may stand for something else in each."""
    one, other, again = Start("p", (1,)), Start("q", (1,)), Start("p", (1,), parent="x")
    starts = Starts([one, other])
    assert [starts.number(start) for start in (one, other, again)] == [0, 1, 0]
    assert starts.add(Group(one, (trajectory("x", start=one),))) == 0
    assert (starts.known(0).sampled, starts.known(1).sampled) == (1, 0)


def test_a_search_weighs_what_is_left_behind_each_boundary() -> None:
    assert search_weight(trajectory("a", tokens=6)) == 6 + 4


def test_a_search_leaves_tokens_for_resets() -> None:
    assert search_limit(250, 100, 0.4) == 100
    assert search_limit(200, 100, 0.4) == 67  # two thirds of what is left
    assert search_limit(200, 150, 0.4) == 33  # as responses grow
    assert search_limit(200, 210, 0.4) == 0


def test_a_search_takes_what_its_share_pays_for() -> None:
    rows = [trajectory(f"a{i}", tokens=6) for i in range(9)]

    def taken(left: int, weight: int = 20, spent: int = 40) -> int:
        return len(next_searches(rows, weight=weight, spent=spent, left=left, first=2, most=5))

    assert taken(0, weight=0, spent=0) == 2
    # 20 tokens each: half of 120 pays for three, 25 for one, 19 for none.
    assert [taken(120), taken(25), taken(19)] == [3, 1, 0]
    assert taken(10_000) == 5
    long = trajectory("long", tokens=40)
    found = next_searches([long, *rows], weight=20, spent=40, left=120, first=2, most=5)
    assert [t.id for t in found] == ["a0", "a1", "a2"]  # what does not fit does not end the search
    assert taken(0, spent=0) == 5  # a search that samples nothing is paid for whatever is left


def test_a_start_has_so_many_turns_at_most() -> None:
    a, b = range(2)
    assert list(round_robin([a, b], 4, turns=1)(0)) == [(a, 4), (b, 4)]
    assert list(round_robin([a, b], 4, turns=2)(0)) == [(a, 4), (b, 4)] * 2
    assert not list(round_robin([a, b], 4, turns=1)(2))
    assert list(round_robin([a, b], 4, turns=1, had={a: 5})(0)) == [(b, 4)]
    assert not list(round_robin([a, b], 4, turns=1, had={a: 5})(1))


def test_every_round_may_take_the_same_whole_number_of_tokens() -> None:
    assert [allowance(101, 2.5, number, 0) for number in (1, 2)] == [252, 504]
    assert allowance(101, 2.5, 2, 250) == 254  # what the first has left


def test_a_boundary_of_a_search_counts_from_the_question_and_not_from_where_it_was_sampled() -> None:
    behind = Trajectory("r", Start("p", (0,), (1, 1)), Completion((1,) * 4, "", "stop"), Score(1.0, "right"), (2, 6))
    assert search_weight(behind) == 6 + 4
