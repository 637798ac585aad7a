"""Calls cut into pieces by time."""

import pytest

from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.rollout.pace import Pace, Paced
from gpo.rollout.sampler import Sampler, question_start
from gpo.toy import ChainEngine, ChainTask
from gpo.types import Group, Start


def sizes(seconds_of: dict[str, float], pieces: int) -> list[int]:
    """The sizes of pieces on a machine where a piece takes `fixed` seconds and `each` more for every rollout."""
    pace, found = Pace(), []
    for _ in range(pieces):
        found.append(pace.size)
        pace.note(pace.size, seconds_of["fixed"] + seconds_of["each"] * pace.size)
    return found


def test_a_fast_model_soon_has_pieces_of_two_seconds() -> None:
    assert sizes({"fixed": 0.0, "each": 0.01}, 8) == [4, 8, 16, 32, 64, 128, 200, 200]


def test_a_slow_model_is_asked_for_few_once_more_are_no_faster() -> None:
    assert sizes({"fixed": 0.0, "each": 2.0}, 5) == [4, 8, 4, 4, 4]


def test_a_batch_with_room_is_filled_although_a_piece_takes_long() -> None:
    assert sizes({"fixed": 10.0, "each": 0.01}, 6) == [4, 8, 16, 32, 64, 128]


def test_the_rest_of_a_call_says_nothing_of_whole_pieces() -> None:
    pace = Pace()
    pace.note(1, 60.0)
    assert pace.size == 4


class Clock:
    """Each rollout takes `each` seconds."""

    def __init__(self, sample: Sample, each: float) -> None:
        self.sample, self.each, self.now, self.calls = sample, each, 0.0, [0]

    @property
    def left(self) -> int | None:
        return 7

    def __call__(self, starts: list[Start], n: int) -> list[Group]:
        self.now += self.each * len(starts) * n
        self.calls.append(len(starts) * n)
        return self.sample(starts, n)


def test_what_is_sampled_does_not_depend_on_the_pieces_and_each_is_told() -> None:
    task, engine = ChainTask(), ChainEngine()
    problems = {problem.id: problem for problem in task.problems("train")}
    starts = [question_start(problem, task, engine.tokenizer) for problem in problems.values()]
    told: list[list[tuple[int, int]]] = []
    results = []
    for each in (0.001, 5.0):
        clock = Clock(Sampler(engine, task, problems), each)
        told.append([])
        sample = Paced(clock, lambda rollouts, tokens: told[-1].append((rollouts, tokens)), clock=lambda c=clock: c.now)
        assert isinstance(sample, Sample)
        assert sample.left == 7
        results.append(sample(starts, 3) + sample(starts[:2], 16))
    assert results[0] == results[1]
    assert [len(group.trajectories) for group in results[0]] == [3] * 8 + [16] * 2
    assert [group.start for group in results[0]] == [*starts, *starts[:2]]
    for pieces in told:
        tokens = sum(len(t.completion.token_ids) for group in results[0] for t in group.trajectories)
        assert (sum(r for r, _ in pieces), sum(t for _, t in pieces)) == (56, tokens)
    assert len(told[0]) < len(told[1])


def test_no_rollouts_are_refused_as_by_the_sampler() -> None:
    task, engine = ChainTask(), ChainEngine()
    problems = {problem.id: problem for problem in task.problems("train")}
    with pytest.raises(ConfigError, match="Cannot sample 0 trajectories"):
        Paced(Sampler(engine, task, problems), lambda rollouts, tokens: None)([], 0)
