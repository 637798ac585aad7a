"""Which questions a run has, and which of them a round asks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from gpo.config.run import RunConfig
from gpo.contracts import Task
from gpo.errors import DataError, naming
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
        found = evenly(_problems(task, split), count)
        if not found:
            raise DataError(f"The task has no {name} problems. Choose another task or another path.")
        if count is not None and len(found) < count and count not in (RunConfig.problems, RunConfig.test_problems):
            log.warning(
                "The task has %d %s problems; all of them are taken, %d were asked for.", len(found), name, count
            )
        chosen[name] = found
    return chosen


def _problems(task: Task, split: Split) -> Sequence[Problem]:
    """Raises: DataError if a task gives something else than problems, or an id twice."""
    name = f"The task {type(task).__name__}"
    with naming(name):
        found = list(task.problems(split))
    if odd := [each for each in found if not isinstance(each, Problem)]:
        raise DataError(
            f"{name} gave a {type(odd[0]).__name__} among its {split} problems. Expected gpo.types.Problem."
        )
    counts = Counter(each.id for each in found)
    if twice := [each for each, count in counts.items() if count > 1]:
        raise DataError(f"{name} has several {split} problems with the id {twice[0]!r}. Ids must differ.")
    return found


def questions_of(problems: Sequence[Problem], size: int | None, number: int) -> list[Problem]:
    """The problems of round `number`, from 1: the next `size` of them in turns. None: all."""
    size = min(size or len(problems), len(problems))
    first = (number - 1) * size
    return [problems[i % len(problems)] for i in range(first, first + size)]
