"""Which questions a run has, and which of them a round asks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence

from gpo.config.run import RunConfig
from gpo.contracts import Task
from gpo.errors import DataError, naming
from gpo.rollout.turns import evenly
from gpo.storage.codec import to_json
from gpo.types import Problem, Split

log = logging.getLogger(__name__)


def choose_problems(task: Task, config: RunConfig, *names: Split) -> dict[Split, list[Problem]]:
    """The training and test problems, or some of them, that a run with these settings has; nothing is written.

    Raises:
        DataError: the task has none.
    """
    wanted: list[tuple[Split, Split, int, int | None]] = [
        ("train", "train", 0, config.problems),
        ("test", config.test_split, config.test_skip, config.test_problems),
    ]
    chosen: dict[Split, list[Problem]] = {}
    for name, split, skip, count in wanted:
        if names and name not in names:
            continue
        if count == 0:
            chosen[name] = []
            continue
        there = evenly(_problems(task, split), None)
        found = there[skip:][:count]
        if not found:
            left = f"more than the {skip} {name} problems that test_skip leaves out" if there else f"{name} problems"
            raise DataError(f"The task has no {left}. Choose another task or another path.")
        if count is not None and len(found) < count and count not in (RunConfig.problems, RunConfig.test_problems):
            log.warning(
                "The task has %d %s problems; all of them are taken, %d were asked for.", len(found), name, count
            )
        chosen[name] = found
    asked = {_whole(problem) for problem in chosen.get("train", ())}
    known = sum(_whole(problem) in asked for problem in chosen.get("test", ()))
    if known and len(asked) > 1:  # one question is asked again on purpose
        log.warning(
            "%d of %d test questions are training questions too: accuracy is no measure of what was learned. Let the "
            "task's `problems` give other ones for each split.",
            known,
            len(chosen["test"]),
        )
    return chosen


def _whole(problem: Problem) -> str:
    """The question with its images, earlier turns and whatever else the task tells of it."""
    return json.dumps([problem.question, to_json(dict(problem.metadata))], sort_keys=True)


def _problems(task: Task, split: Split) -> Sequence[Problem]:
    """Raises: DataError if a task gives something else than problems, or an id twice."""
    name = f"The task {type(task).__name__}"
    with naming(name):
        found = list(task.problems(split))
    if odd := [each for each in found if not isinstance(each, Problem)]:
        raise DataError(
            f"{name} gave a {type(odd[0]).__name__} among its {split} problems. Expected gpo.types.Problem."
        )
    for each in found:
        texts = {"id": each.id, "question": each.question, "answer": each.answer}
        if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
            raise DataError(f"{name} gave a problem whose {wrong[0]} is {texts[wrong[0]]!r}. Expected a text.")
        try:
            to_json(dict(each.metadata))
        except TypeError as error:
            raise DataError(f"{name} gave problem {each.id} metadata that are no JSON: {error}.") from error
    counts = Counter(each.id for each in found)
    if twice := [each for each, count in counts.items() if count > 1]:
        raise DataError(f"{name} has several {split} problems with the id {twice[0]!r}. Ids must differ.")
    return found


def questions_of(problems: Sequence[Problem], size: int | None, number: int) -> list[Problem]:
    """The problems of round `number`, from 1: the next `size` of them in turns. None: all."""
    size = min(size or len(problems), len(problems))
    first = (number - 1) * size
    return [problems[i % len(problems)] for i in range(first, first + size)]
