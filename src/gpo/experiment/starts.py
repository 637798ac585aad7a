"""Starts by number, and what is known of each: kept up to date as groups come, so that a chunk costs what it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gpo.types import Group, Start, StartKey


@dataclass(frozen=True)
class Known:
    """Of the rollouts from a start."""

    right: float = 0.0  # sum of the scores
    graded: int = 0
    sampled: int = 0  # of those that are trained on, with what could not be graded

    def with_group(self, group: Group, *, trained: bool = True) -> Known:
        values = [t.score.value for t in group.trajectories if t.score.value is not None]
        sampled = len(group.trajectories) if trained else 0
        return Known(self.right + sum(values), self.graded + len(values), self.sampled + sampled)


class Starts:
    """Numbers of starts, and what all groups so far say of them.

    The key of a start has all of its tokens, which may be thousands: it is hashed once for each group, and decisions
    are by numbers.

    Args:
        starts: those that something is decided of.
    """

    def __init__(self, starts: Iterable[Start]) -> None:
        self._numbers: dict[StartKey, int] = {}
        self._behind: dict[str, list[tuple[int, int]]] = {}  # number and prefix of the starts that a trajectory has
        self._left: dict[int, int] = {}  # tokens that the parent of a start had behind it
        self._seen: Counter[int] = Counter()  # rollouts
        self._tokens: Counter[int] = Counter()
        self._every = self._every_token = 0  # rollouts from all starts, and their tokens
        self._trained: dict[int, Known] = {}
        self._untrained: dict[int, list[Group]] = {}
        for start in starts:
            number = self.number(start)
            if start.parent is not None:
                self._behind.setdefault(start.parent, []).append((number, len(start.prefix_ids)))

    def number(self, start: Start) -> int:
        """From 0; the same for starts with equal keys."""
        return self._numbers.setdefault(start.key, len(self._numbers))

    def add(self, group: Group, *, trained: bool = True) -> int:
        """Take account of a group; the number of its start.

        Args:
            trained: whether it is trained on. What is not tells how often a start is solved, and teaches nothing.
        """
        number = self.number(group.start)
        lengths = [len(trajectory.completion.token_ids) for trajectory in group.trajectories]
        self._seen[number] += len(lengths)
        self._tokens[number] += sum(lengths)
        self._every += len(lengths)
        self._every_token += sum(lengths)
        for trajectory, length in zip(group.trajectories, lengths, strict=True):
            for child, prefix in self._behind.get(trajectory.id, ()):
                self._left[child] = len(trajectory.start.prefix_ids) + length - prefix
        if trained:
            self._trained[number] = self._trained.get(number, Known()).with_group(group)
        else:
            self._untrained.setdefault(number, []).append(group)
        return number

    def length(self, number: int) -> float:
        """Tokens that a rollout from a start takes.

        The mean of those seen from it, else what its parent had left behind it, else the mean of all.
        """
        if seen := self._seen[number]:
            return self._tokens[number] / seen
        if number in self._left:
            return float(max(1, self._left[number]))
        return self._every_token / self._every if self._every else 1.0

    def known(self, number: int) -> Known:
        """What is known of a start."""
        known = self._trained.get(number, Known())
        for group in self._untrained.get(number, ()):
            known = known.with_group(group, trained=False)
        return known
