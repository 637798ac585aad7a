"""Scores of rollouts: a grader that breaks, or gives what is no score, makes a failed rollout with its reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isfinite
from numbers import Real
from typing import Self, get_args

from gpo.contracts import ParallelTask, Task
from gpo.types import Problem, Score, Verdict

LOGGER = logging.getLogger("gpo.rollout")
_LONGEST_REASON = 200  # characters


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
        given: object = task.score(problem, text)
        score = _checked(given)
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
    return Score(float(given.value), given.verdict, given.answer, given.reason)


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
