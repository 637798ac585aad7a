"""Questions asked one after the other, chunk by chunk, with their answers in a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from gpo.errors import BrokenGrader
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.storage.chunks import Chunks
from gpo.storage.directory import answers_of
from gpo.types import Group, Problem

log = logging.getLogger(__name__)


def unasked(
    file: Chunks[Group], problems: Sequence[Problem], n: int, chunk: int
) -> Iterator[tuple[int, Sequence[Problem]]]:
    """How many questions the file has answers to, and the next ones: as many as take about `chunk` rollouts, n each.

    Raises:
        DataError: the file does not fit the questions.
    """
    answers_of(file, problems, n)
    while (done := len(file.read())) < len(problems):
        yield done, problems[done : done + max(1, chunk // n)]


def ask(file: Chunks[Group], problems: Sequence[Problem], n: int, sampler: Sampler) -> None:
    """n rollouts from each of these questions into the file, in one chunk.

    Raises:
        BrokenGrader: not one of the first answers could be graded.
    """
    new = sampler([question_start(problem, sampler.task, sampler.engine.tokenizer) for problem in problems], n)
    scores = [trajectory.score for group in new for trajectory in group.trajectories]
    if scores and not file.read() and all(score.verdict == "failed" for score in scores):
        raise BrokenGrader(
            f"None of the first {len(scores)} answers could be graded: {scores[0].reason or 'no reason is known'}. "
            "Nothing was kept. Mend the task's `score`, then run the same command again."
        )
    if sampler.skipped:
        message = "%d of %d questions are too long to leave room for an answer (context %d, max_tokens %d): skipped."
        log.warning(message, sampler.skipped, len(problems), sampler.engine.context_length, sampler.max_tokens)
    file.append(new)
