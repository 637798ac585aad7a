"""What annotators look at: located trajectories of a run, and checks that they read what they mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from gpo.errors import DataError
from gpo.report.texts import StepTexts
from gpo.storage.directory import RunDirectory

CHECK = "This line was put here to see whether it is read. Please mark it."
CHECK_EVERY = 10


@dataclass(frozen=True, slots=True)
class Item:
    """One solution to mark a step of."""

    id: str  # of its trajectory
    question: str
    steps: tuple[str, ...]  # (K,) texts
    right: bool
    answer: str  # the reference
    check: int | None = None  # the step that an attention check asks to mark


def load_items(files: RunDirectory, count: int, arm: str | None = None) -> list[Item]:
    """Trajectories that an arm has located a critical step in, with at least two steps, the first `count` of them.

    Args:
        arm: None takes the first arm that located any, `gpo` before the others.

    Raises:
        ConfigError: there is no such arm.
        DataError: there are none, or a file of the run does not fit another.
    """
    if arm:
        files.check_arm(arm)
    arms = [arm] if arm else sorted(files.arms(), key=lambda name: name != "gpo")
    problems = {problem.id: problem for problem in files.problems("train") or []}
    texts = StepTexts(files)
    for name in arms:
        located = [trajectory for trajectory, score in files.searched(name) if score.critical_step is not None]
        if chosen := [trajectory for trajectory in located if len(trajectory.step_ends) > 1][:count]:
            if lost := {trajectory.start.problem_id for trajectory in chosen} - problems.keys():
                raise DataError(f"{files.path}: problem {min(lost)!r} of rollouts.jsonl is not in problems.jsonl.")
            return [
                Item(
                    trajectory.id,
                    problems[trajectory.start.problem_id].question,
                    texts(trajectory),
                    trajectory.score.right,
                    problems[trajectory.start.problem_id].answer,
                )
                for trajectory in chosen
            ]
    raise DataError(f"{files.path} has no trajectory with a critical step. Search some first: gpo locate {files.path}")


def with_checks(items: Sequence[Item], seed: int) -> list[Item]:
    """The items, and for every ten of them (at least one) a copy with a line that asks to be marked."""
    rng = Random(f"checks/{seed}")
    checks = []
    for model in rng.sample(list(items), max(1, len(items) // CHECK_EVERY)):
        place = rng.randrange(1, len(model.steps))
        steps = (*model.steps[:place], CHECK + "\n", *model.steps[place:])
        checks.append(Item(f"check:{place}:{model.id}", model.question, steps, model.right, model.answer, check=place))
    return [*items, *checks]


def order_for(items: Sequence[Item], annotator: int, seed: int) -> list[Item]:
    """The items in an order of the annotator's own."""
    order = list(items)
    Random(f"order/{seed}/{annotator}").shuffle(order)
    return order
