"""Which questions a run has, and which of them a round asks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gpo.config.run import RunConfig
from gpo.contracts import Task
from gpo.errors import DataError
from gpo.rollout.turns import evenly
from gpo.types import Problem, Split

log = logging.getLogger(__name__)


def choose_problems(task: Task, config: RunConfig, *names: Split) -> dict[Split, list[Problem]]:
    """The training and test problems, or some of them, that a run with these settings has; nothing is written.

    Raises:
        DataError: the task has none.
    """
    wanted: list[tuple[Split, Split, int | None]] = [
        ("train", "train", config.problems),
        ("test", config.test_split, config.test_problems),
    ]
    chosen: dict[Split, list[Problem]] = {}
    for name, split, count in wanted:
        if names and name not in names:
            continue
        if count == 0:
            chosen[name] = []
            continue
        found = evenly(task.problems(split), count)
        if not found:
            raise DataError(f"The task has no {name} problems. Choose another task or another path.")
        if count is not None and len(found) < count and count not in (RunConfig.problems, RunConfig.test_problems):
            log.warning(
                "The task has %d %s problems; all of them are taken, %d were asked for.", len(found), name, count
            )
        chosen[name] = found
    return chosen


def questions_of(problems: Sequence[Problem], size: int | None, number: int) -> list[Problem]:
    """The problems of round `number`, from 1: the next `size` of them in turns. None: all."""
    size = min(size or len(problems), len(problems))
    first = (number - 1) * size
    return [problems[i % len(problems)] for i in range(first, first + size)]
