"""What every family of generated problems shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Example:
    """A generated question with a newline-separated solution that ends in "So the answer is ANSWER".

    `given` is the beginning of the solution, if somebody else wrote it: whole lines, to be learned at `given_weight`.
    """

    question: str
    solution: str
    answer: str
    given: str = ""
    given_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Slips:
    """How often a solution makes each kind of mistake, per opportunity in [0, 1], and then goes on consistently.

    A reasoner that is trained on flawless solutions only becomes nearly perfect on short problems, which leaves
    nothing to learn. Slips give it the habits that reinforcement learning can remove: each is tied to a situation
    (turning around, popping a deep stack), so that some steps are harder than others.
    """

    rates: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, rng: Random, kind: str) -> bool:
        rate = self.rates.get(kind, 0.0)
        return rate > 0 and rng.random() < rate


NO_SLIPS = Slips()


class Make(Protocol):
    """A family's generator. `size` is in the family's own unit (`families.SIZES`) and comes before `level`."""

    def __call__(self, rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example: ...


def between(rng: Random, low: int, high: int, level: float | None) -> int:
    """An integer in [low, high], its upper end lowered in proportion to `level` in (0, 1]; None is level 1."""
    top = high if level is None else low + round((high - low) * level)
    return rng.randint(low, top)


def listed(items: Sequence[str]) -> str:
    """ "a", "a, and b", "a, b, and c": the wording of BBH, which keeps the comma before "and"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + ", and " + items[-1]


def options(items: Sequence[str], stop: str = "") -> str:
    """The option lines of a BBH question, without a newline at the end."""
    return "Options:\n" + "\n".join(f"({'ABCDEFG'[i]}) {item}{stop}" for i, item in enumerate(items))


def lettered(items: Sequence[str]) -> str:
    """A solution line that writes the options anew, each before its letter: "Options: red (A), blue (B)."

    A letter that stands before its text is easy to read on from and hard to look up. Turned around, the letter follows
    what is known, which is the look-up that small models learn first; named at once it stayed a guess.
    """
    return "Options: " + ", ".join(f"{item} ({'ABCDEFG'[i]})" for i, item in enumerate(items)) + "."


def named_option(items: Sequence[str], found: str) -> str:
    """The last line of a solution: the option that was found, and its letter."""
    letter = "ABCDEFG"[items.index(found)]
    return f"It is {found} ({letter}). So the answer is ({letter})"
