"""Scores of rollouts: a grader that breaks, or gives what is no score, makes a failed rollout with its reason."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isfinite
from numbers import Real
from typing import Self, get_args

from gpo.contracts import LimitedTask, ParallelTask, Task
from gpo.types import Problem, Score, Verdict

LOGGER = logging.getLogger("gpo.rollout")
_LONGEST_REASON = 200  # characters
LIMIT = 60.0  # seconds for an answer, where the task says nothing


class Scorer:
    """Grades in this thread when asked for the score, or in `task.parallel` threads as soon as there is a response."""

    def __init__(self, task: Task) -> None:
        self.task = task
        threads = task.parallel if isinstance(task, ParallelTask) else 1
        self._pool = ThreadPoolExecutor(threads, "grading") if threads > 1 else None

    def score(self, problem: Problem, text: str) -> Callable[[], Score]:
        """What waits for the score of a response."""
        if self._pool is None:
            return partial(checked_score, self.task, problem, text)
        return self._pool.submit(checked_score, self.task, problem, text).result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)


def checked_score(task: Task, problem: Problem, text: str) -> Score:
    """The task's score, `failed` with its reason if there is none. What is no Exception (Ctrl-C) passes through."""
    try:
        score = _checked(within(limit_of(task), lambda: task.score(problem, text)))
    except Exception as error:  # a broken grader is an outcome of this rollout
        score = Score(None, "failed", reason=f"{type(error).__name__}: {error}")
    if score.verdict != "failed":
        return score
    reason = " ".join((score.reason or "no reason given").split())[:_LONGEST_REASON]
    failed = Score(None, "failed", score.answer, reason)
    _warn(type(task).__name__, failure_kind(failed), problem.id, reason)
    return failed


def failure_kind(score: Score) -> str:
    """What failures are counted by: the reason up to its first colon."""
    return (score.reason or "").partition(":")[0]


def _checked(given: object) -> Score:
    """Raises: TypeError or ValueError if it is no score."""
    if not isinstance(given, Score):
        raise TypeError(f"a task's score must be a Score, got {type(given).__name__}")
    if given.verdict not in get_args(Verdict):
        raise ValueError(f"a verdict is one of {', '.join(get_args(Verdict))}, got {given.verdict!r}")
    if not isinstance(given.answer, str | None):
        raise TypeError(f"the answer of a Score must be text or None, got {type(given.answer).__name__}")
    if given.verdict == "failed":
        if given.value is not None:
            raise ValueError(f"the value of a failed Score must be None, got {given.value!r}")
        return given
    if not isinstance(given.value, Real) or not isfinite(given.value) or not 0 <= given.value <= 1:
        raise ValueError(f"the value of a Score must be a number from 0 to 1, got {given.value!r}")
    if given.value == {"right": 0, "wrong": 1, "ungradable": 1}.get(given.verdict):
        raise ValueError(f"a Score that is {given.verdict} cannot have the value {given.value!r}: 1 is right, 0 wrong")
    return Score(float(given.value), given.verdict, given.answer, given.reason)


def limit_of(task: Task) -> float | None:
    """Seconds that the grading of one answer may take; None where a task ends what hangs itself."""
    if isinstance(task, ParallelTask) and not isinstance(task, LimitedTask):
        return None
    return task.score_seconds if isinstance(task, LimitedTask) else LIMIT


class _Late(BaseException):
    """No Exception, so that a grader that passes over those does not pass over this one."""


def within(seconds: float | None, call: Callable[[], object]) -> object:
    """What a call gives; it is broken off after so many seconds, and every second again until it gives in.

    By a signal, which Python looks at between two steps of the interpreter and of a regular expression: one operation
    in C that takes for ever (10**10**9) is not broken off. In threads other than the main one, and where somebody else
    uses the alarm, there is no limit.

    Raises:
        TimeoutError: it took longer.
    """
    free = threading.current_thread() is threading.main_thread() and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    if seconds is None or not free:
        return call()
    before = signal.signal(signal.SIGALRM, _raise_late)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Late:
        raise TimeoutError(f"no verdict within {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGALRM, before)


def _raise_late(*_: object) -> None:
    raise _Late


_told: set[tuple[str, str]] = set()


def _warn(task: str, kind: str, problem: str, reason: str) -> None:
    """Once in a process for each task and kind of failure."""
    if (task, kind) in _told:
        return
    _told.add((task, kind))
    LOGGER.warning(
        "The grader of %s failed on problem %s: %s. Such rollouts count as failed, never as wrong; "
        "further failures of this kind are counted only.",
        task,
        problem,
        reason.rstrip("."),
    )
