"""Where in a trajectory critical steps fall, beside where all steps are: the share that chance would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from gpo.report.kinds import Kinds
from gpo.report.reading import Searched
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


def with_choice(searched: Sequence[Searched]) -> list[Searched]:
    """Trajectories with a critical step. One of a single step had no choice and is left out."""
    return [item for item in searched if item.critical is not None and len(item.steps) > 1]


def by_position(searched: Sequence[Searched]) -> list[Share]:
    """Critical steps by the part of the trajectory that the middle of the step is in, counted in steps."""
    return _shares(searched, PARTS, lambda item, k: min(4, int(5 * (k + 0.5) / len(item.steps))))


def by_length(searched: Sequence[Searched]) -> list[Share]:
    """Critical steps by their tokens, compared with the median step of their trajectory."""
    return _shares(searched, LENGTHS, _length_class)


def by_kind(searched: Sequence[Searched], kinds: Kinds) -> list[Share]:
    """Critical steps by kind, most above chance first, without those that are critical once."""
    texts = {text for item in with_choice(searched) for text in item.steps}
    kind_of = {text: kinds(text) for text in texts}
    names = sorted(set(kind_of.values()))
    index = {name: i for i, name in enumerate(names)}
    shares = _shares(searched, names, lambda item, k: index[kind_of[item.steps[k]]])
    often = [share for share in shares if share.critical.estimate * share.critical.n >= 1.5]
    return sorted(often, key=lambda share: share.chance - share.critical.estimate)


def _length_class(item: Searched, k: int) -> int:
    tokens = [end - begin for begin, end in pairwise(item.trajectory.boundaries)]
    return sum(tokens[k] > share * median(tokens) for share in LENGTH_ENDS)


def _shares(searched: Sequence[Searched], names: Sequence[str], place: Callable[[Searched, int], int]) -> list[Share]:
    chosen = with_choice(searched)
    hits, chance = [0] * len(names), [0.0] * len(names)
    for item in chosen:
        hits[place(item, item.critical or 0)] += 1
        for k in range(len(item.steps)):
            chance[place(item, k)] += 1 / len(item.steps)
    total = max(1, len(chosen))
    intervals = {hit: wilson(hit, len(chosen)) for hit in set(hits)}  # there may be as many kinds as steps
    return [
        Share(name, intervals[hit], expected / total) for name, hit, expected in zip(names, hits, chance, strict=True)
    ]
