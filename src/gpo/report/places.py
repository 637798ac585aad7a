"""Where in a trajectory critical steps fall, beside where all steps are: the share that chance would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from gpo.report.looks import Look
from gpo.statistics import Interval, wilson

PARTS = ("first fifth", "second fifth", "third fifth", "fourth fifth", "last fifth")
LENGTHS = ("up to half", "half to once", "once to twice", "over twice")  # of the median step of its trajectory
LENGTH_ENDS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Share:
    """How often the critical step is in one class."""

    name: str
    critical: Interval
    chance: float  # of a step that is drawn evenly from each of the same trajectories


def by_position(looks: Sequence[Look]) -> list[Share]:
    """Critical steps by the part of the trajectory that the middle of the step is in, counted in steps."""
    return _shares(looks, PARTS, lambda look, k: min(4, int(5 * (k + 0.5) / len(look.steps))))


def by_length(looks: Sequence[Look]) -> list[Share]:
    """Critical steps by their tokens, compared with the median step of their trajectory."""
    return _shares(looks, LENGTHS, _length_class)


def by_kind(looks: Sequence[Look], least: int = 2) -> list[Share]:
    """Critical steps by kind, most above chance first, without those critical less than `least` times."""
    names = sorted({kind for look in looks for kind in look.kinds})
    index = {name: i for i, name in enumerate(names)}
    shares = _shares(looks, names, lambda look, k: index[look.kinds[k]])
    often = [share for share in shares if share.critical.estimate * share.critical.n >= least - 0.5]
    return sorted(often, key=lambda share: share.chance - share.critical.estimate)


def _length_class(look: Look, k: int) -> int:
    tokens = [end - begin for begin, end in pairwise(look.trajectory.boundaries)]
    return sum(tokens[k] > share * median(tokens) for share in LENGTH_ENDS)


def _shares(looks: Sequence[Look], names: Sequence[str], place: Callable[[Look, int], int]) -> list[Share]:
    located = [look for look in looks if look.scores.critical_step is not None]
    hits, chance = [0] * len(names), [0.0] * len(names)
    for look in located:
        hits[place(look, look.scores.critical_step or 0)] += 1
        for k in range(len(look.steps)):
            chance[place(look, k)] += 1 / len(look.steps)
    total = max(1, len(located))
    return [
        Share(name, wilson(hit, len(located)), expected / total)
        for name, hit, expected in zip(names, hits, chance, strict=True)
    ]
