"""What a search and a segmenter say is held against what can be."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest

from gpo.errors import ConfigError, EngineError
from gpo.estimators.monte_carlo import MonteCarlo
from gpo.rollout.answers import check_ends, check_scores
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.toy import ChainEngine, ChainTask
from gpo.types import Group, StepScores

ENGINE, TASK = ChainEngine(), ChainTask()
PROBLEMS = {problem.id: problem for problem in TASK.problems("train")}
STARTS = [question_start(problem, TASK, ENGINE.tokenizer) for problem in PROBLEMS.values()]
SAMPLER = Sampler(ENGINE, TASK, PROBLEMS)
BATCH = [group.trajectories[0] for group in SAMPLER(STARTS[:3], 1)]
BEFORE = SAMPLER.tokens
SCORES = MonteCarlo(rollouts=2)(BATCH, SAMPLER)
SPENT = SAMPLER.tokens - BEFORE


def test_what_a_search_of_gpo_says_passes() -> None:
    check_scores("The estimator MonteCarlo", SCORES, BATCH, SPENT)


def first(**changes: Any) -> list[StepScores]:
    return [replace(SCORES[0], **changes), *SCORES[1:]]


FIRST = SCORES[0]
LAST = len(FIRST.advantages)


def test_what_was_stored_before_as_much_was_asked_can_be_read() -> None:
    """To be told to delete it would cost what was paid for."""
    old = replace(FIRST, reset_boundary=LAST, lower=(1.0,) * (LAST + 1))
    assert old.misfit(LAST) is None
    assert old.misfit(LAST, new=True) is not None


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (3, r"gave a int; expected a list of StepScores"),
        (iter(SCORES), r"gave a list_iterator; expected a list of StepScores"),
        ([3, *SCORES[1:]], r"gave a list of int; expected a list of StepScores"),
        (
            SCORES[::-1],
            r"as result 0 one of trajectory 'rollout:2:0', expected of 'rollout:0:0': .*in the order of the t",
        ),
        (SCORES[:2], r"gave 2 results with .* for 3 trajectories"),
        (first(tokens=FIRST.tokens + 1), r"3 results with \d+ tokens for 3 trajectories and \d+ sampled tokens"),
        (first(advantages=(5.0, *FIRST.advantages[1:])), r"the advantage 5 of step 0; expected .*, the difference"),
        (first(advantages=(nan, *FIRST.advantages[1:])), r"the advantage nan of step 0; expected"),
        (
            first(values=(nan, *FIRST.values[1:])),
            r"the advantage .* of step 0; expected nan, the difference of its values",
        ),
        (
            first(lower=(1.5, *FIRST.lower[1:])),
            r"an interval from 1\.5 to .* for the value .*; expected one that holds",
        ),
        (first(upper=(-0.5, *FIRST.upper[1:])), r"an interval from .* to -0\.5 for the value"),
        (first(reset_boundary=LAST), rf"reset_boundary {LAST} for {LAST} steps; expected an int from 0 to {LAST - 1}"),
        (first(critical_step=0.0), r"critical_step 0\.0 for 7 steps; expected an int from 0 to 6, or None"),
        (first(critical_step=np.int64(0)), r"critical_step np\.int64\(0\) for 7 steps; expected an int"),
        (first(values=np.zeros(8)), r"values as a ndarray; expected a tuple"),
        (first(counts=tuple(np.zeros(8, int))), r"counts with a int64; expected plain int"),
        (first(counts=(-1,) * 8), r"counts from -1 on; expected int from 0 on"),
        (
            first(rollouts=(*FIRST.rollouts, Group(STARTS[0], (BATCH[0],)))),
            r"rollouts of \d+ tokens and `StepScores\.tokens` of \d+\. Expected rollouts that it has sampled",
        ),
    ],
)
def test_a_result_that_cannot_be_is_told_by_the_name_of_the_search(scores: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message) as told:
        check_scores("The estimator Mine", scores, BATCH, SPENT)
    assert str(told.value).startswith("The estimator Mine gave")


def test_rounding_is_no_error() -> None:
    near = first(advantages=tuple(advantage + 1e-9 for advantage in FIRST.advantages))
    check_scores("The estimator Mine", near, BATCH, SPENT)


def test_without_steps_a_reset_is_to_the_question() -> None:
    empty = StepScores("t", (nan,), (0,), (nan,), (nan,), (), None, 0, 0)
    assert empty.misfit(0) is None


class Cutter:
    def __init__(self, cut: Callable[[int], Any]) -> None:
        self.cut = cut

    def __call__(self, token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None) -> Any:
        return self.cut(len(token_ids))


def sampled(segmenter: Any) -> list[Group]:
    return Sampler(ENGINE, TASK, PROBLEMS, segmenter=segmenter)(STARTS[:1], 1)


@pytest.mark.parametrize(
    "cut",
    [
        lambda n: (1,),
        lambda n: (),
        lambda n: (3, 1, n),
        lambda n: (1, 1, n),
        lambda n: (1, n + 4),
        lambda n: (0, n),
        lambda n: (n / 2, n),
        lambda n: tuple(np.array([1, n])),
        lambda n: None,
        lambda n: iter((1, n)),
    ],
)
def test_ends_that_cut_no_response_into_steps_are_an_error(cut: Callable[[int], Any]) -> None:
    with pytest.raises(
        EngineError, match=r"The segmenter Cutter cut a response of 14 tokens at .* increasing int above"
    ):
        sampled(Cutter(cut))


def test_what_a_segmenter_raises_names_it() -> None:
    with pytest.raises(EngineError, match=r"The segmenter Cutter failed: ZeroDivisionError"):
        sampled(Cutter(lambda n: n // 0))

    def refuses(token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None) -> Iterator[int]:
        raise ConfigError("Not so.")

    with pytest.raises(ConfigError, match=r"^Not so\.$"):
        sampled(refuses)


def test_a_list_of_ends_and_a_function_that_cuts_will_do() -> None:
    def cut(token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None) -> list[int]:
        return [1, len(token_ids)]

    assert sampled(cut)[0].trajectories[0].step_ends == (1, 14)
    assert check_ends("The segmenter", (), 0) == ()
    with pytest.raises(EngineError, match="cut a response of 0 tokens"):
        check_ends("The segmenter", (0,), 0)
