"""Calls cut into pieces by time, so that one hears of the work while it goes on, on slow models too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpo.contracts import Sample
from gpo.types import Group, Start, Trajectory


@dataclass
class Pace:
    """How many rollouts to ask for at once: `first`, then as many as take about `seconds`.

    Pieces at most double. They grow beyond `seconds` while twice as many raise the rollouts per second by half: a batch
    with room takes as long for many as for few.
    """

    seconds: float = 2.0
    first: int = 4  # the least as well
    size: int = field(init=False)
    _speed: float = field(default=0.0, init=False, repr=False)  # rollouts per second of the last whole piece

    def __post_init__(self) -> None:
        self.size = self.first

    def note(self, rollouts: int, seconds: float) -> None:
        """What a piece took. A smaller one than `size`, the rest of a call, says nothing of whole ones."""
        if rollouts < self.size:
            return
        speed = rollouts / max(seconds, 1e-6)
        fitting = int(speed * self.seconds)
        if fitting < 2 * self.size and speed < 1.5 * self._speed:
            self.size = max(self.first, fitting)
        else:
            self.size *= 2
        self._speed = speed


@dataclass
class Paced:
    """A `Sample` that asks another for a piece at a time and tells of each.

    Every rollout is a request of its own, so that what is sampled does not depend on the sizes of the pieces.
    """

    sample: Sample
    on_piece: Callable[[int, int], None]  # its rollouts and tokens
    pace: Pace = field(default_factory=Pace)
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> int | None:
        return self.sample.left

    def __call__(self, starts: Sequence[Start], n: int) -> list[Group]:
        """As `Sample`."""
        if n < 1:
            return self.sample(starts, n)
        found: list[list[Trajectory]] = [[] for _ in starts]
        waiting = [position for position in range(len(starts)) for _ in range(n)]
        while waiting:
            piece, waiting = waiting[: self.pace.size], waiting[self.pace.size :]
            began = self.clock()
            groups = self.sample([starts[position] for position in piece], 1)
            self.pace.note(len(piece), self.clock() - began)
            for position, group in zip(piece, groups, strict=True):
                found[position] += group.trajectories
            new = [trajectory for group in groups for trajectory in group.trajectories]
            self.on_piece(len(new), sum(len(trajectory.completion.token_ids) for trajectory in new))
        return [Group(start, tuple(trajectories)) for start, trajectories in zip(starts, found, strict=True)]
