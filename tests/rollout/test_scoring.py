"""A grader that breaks makes a failed rollout with a reason; graders that may, work at once."""

import logging
from dataclasses import dataclass
from math import inf, nan
from threading import Barrier

import pytest

from gpo.rollout import scoring
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.tasks import math_grading
from gpo.tasks.math import MATH
from gpo.toy import ChainEngine, ChainTask
from gpo.types import Problem, Score

ENGINE = ChainEngine()
PROBLEMS = {problem.id: problem for problem in ChainTask().problems("train")}
STARTS = [question_start(problem, ChainTask(), ENGINE.tokenizer) for problem in PROBLEMS.values()]


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_told", set())


@dataclass(frozen=True)
class Gives(ChainTask):
    """A task whose scorer gives, or raises, the same thing every time."""

    given: object = None

    def score(self, problem: Problem, text: str) -> Score:
        if isinstance(self.given, BaseException):
            raise self.given
        return self.given  # type: ignore[return-value]


class GivesInThreads(Gives):
    parallel = 2


def test_the_reason_of_a_failure_is_kept_and_its_kind_counted() -> None:
    sample = Sampler(ENGINE, Gives(given=ZeroDivisionError("division by zero")), PROBLEMS)
    groups = sample(STARTS[:2], 3)
    scores = {t.score for group in groups for t in group.trajectories}
    assert scores == {Score(None, "failed", None, "ZeroDivisionError: division by zero")}
    assert (sample.failed, sample.failures) == (6, {"ZeroDivisionError": 6})


def test_what_a_task_says_itself_of_a_failure_is_kept() -> None:
    said = Sampler(ENGINE, Gives(given=Score(None, "failed", "7", "TimeoutError: 5 s\nand more")), PROBLEMS)
    silent = Sampler(ENGINE, Gives(given=Score(None, "failed")), PROBLEMS)
    assert said(STARTS[:1], 1)[0].trajectories[0].score == Score(None, "failed", "7", "TimeoutError: 5 s and more")
    assert silent(STARTS[:1], 1)[0].trajectories[0].score.reason == "no reason given"
    assert (said.failures, silent.failures) == ({"TimeoutError": 1}, {"no reason given": 1})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Score(nan, "right"), "ValueError: the value of a Score must be a number from 0 to 1, got nan"),
        (Score(inf, "right"), "ValueError: the value of a Score must be a number from 0 to 1, got inf"),
        (Score(17.5, "right"), "ValueError: the value of a Score must be a number from 0 to 1, got 17.5"),
        (Score(-0.1, "wrong"), "ValueError: the value of a Score must be a number from 0 to 1, got -0.1"),
        (Score(None, "right"), "ValueError: the value of a Score must be a number from 0 to 1, got None"),
        (Score("1", "right"), "ValueError: the value of a Score must be a number from 0 to 1, got '1'"),
        (Score(0, "right"), "ValueError: a Score that is right cannot have the value 0: 1 is right, 0 wrong"),
        (Score(1.0, "wrong"), "ValueError: a Score that is wrong cannot have the value 1.0: 1 is right, 0 wrong"),
        (Score(0.0, "failed"), "ValueError: the value of a failed Score must be None, got 0.0"),
        (Score(1.0, "correct"), "ValueError: a verdict is one of right, wrong, ungradable, failed, got 'correct'"),
        (Score(1.0, "right", 7), "TypeError: the answer of a Score must be text or None, got int"),
        (True, "TypeError: a task's score must be a Score, got bool"),
        (None, "TypeError: a task's score must be a Score, got NoneType"),
    ],
)
def test_what_is_no_score_is_a_failure(given, reason: str) -> None:
    sample = Sampler(ENGINE, Gives(given=given), PROBLEMS)
    [group] = sample(STARTS[:1], 2)
    assert [t.score for t in group.trajectories] == [Score(None, "failed", None, reason)] * 2
    assert sample.failed == 2


def test_a_score_that_is_a_whole_number_is_one() -> None:
    [group] = Sampler(ENGINE, Gives(given=Score(1, "right", "Y")), PROBLEMS)(STARTS[:1], 1)
    assert repr(group.trajectories[0].score.value) == "1.0"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("task", [Gives, GivesInThreads])
def test_what_ends_the_program_passes_through(ending: BaseException, task: type[Gives]) -> None:
    with pytest.raises(type(ending)):
        Sampler(ENGINE, task(given=ending), PROBLEMS)(STARTS[:1], 4)


def test_a_kind_of_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        Sampler(ENGINE, Gives(given=ZeroDivisionError("division by zero")), PROBLEMS)(STARTS[:2], 3)
    Sampler(ENGINE, Gives(given=Score(17.5, "right")), PROBLEMS)(STARTS[:2], 3)
    assert [(r.name, r.levelno, r.exc_info) for r in caplog.records] == [("gpo.rollout", logging.WARNING, None)] * 2
    assert "grader of Gives failed on problem 0: ZeroDivisionError: division by zero." in caplog.messages[0]


def test_as_many_answers_are_graded_at_once_as_a_task_says_and_order_stays() -> None:
    meeting = Barrier(3, timeout=30)

    class Meeting(ChainTask):
        parallel = 3

        def score(self, problem: Problem, text: str) -> Score:
            meeting.wait()  # until three are here, or the barrier breaks
            return super().score(problem, text)

    together, alone = Sampler(ENGINE, Meeting(), PROBLEMS), Sampler(ENGINE, ChainTask(), PROBLEMS)
    assert together(STARTS[:3], 4) == alone(STARTS[:3], 4)
    assert together.failed == 0


def test_both_workers_of_math_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Barrier(2, timeout=30)
    compare = math_grading._Worker.compare

    def meet(self, reference: str, answer: str):
        meeting.wait()
        return compare(self, reference, answer)

    monkeypatch.setattr(math_grading._Worker, "compare", meet)

    class Asked(MATH):
        def score(self, problem: Problem, text: str) -> Score:
            return super().score(Problem("", "", "x + y"), rf"\boxed{{{next(answers)}}}")

    answers = iter(("y + x", "2y + x - y"))
    sample = Sampler(ENGINE, Asked(workers=2, seconds=60.0), PROBLEMS)
    [group] = sample(STARTS[:1], 2)
    assert [t.score.verdict for t in group.trajectories] == ["right", "right"]
