"""Taking turns: one item of each row, then a second of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from gpo.types import Problem

Item = TypeVar("Item")


def in_turns(rows: Iterable[Sequence[Item]]) -> list[Item]:
    """The first item of each row, then the second of each, and so on."""
    nothing = object()
    return [item for turn in zip_longest(*rows, fillvalue=nothing) for item in turn if item is not nothing]  # type: ignore[misc]


def evenly(problems: Sequence[Problem], count: int | None) -> list[Problem]:
    """The first `count` problems, taken in turns from the sub-tasks. None: all."""
    by_subtask: dict[str, list[Problem]] = {}
    for problem in problems:
        by_subtask.setdefault(problem.subtask, []).append(problem)
    return in_turns(by_subtask.values())[:count]
