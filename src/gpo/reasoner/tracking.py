"""tracking_shuffled_objects: who holds what after swaps, the whole state after each, as in BIG-Bench-Mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from gpo.reasoner.example import Example, Make, Slips, between, lettered, listed, named_option, options

NAMES = "Alice Bob Claire Dave Eve Fred Gertrude".split()
COLORS = "orange yellow brown white black red purple green blue pink".split()
SHORT = {
    "The Great Gatsby": "Gatsby",
    "The Odyssey": "Odyssey",
    "The Pearl": "Pearl",
    "The Fellowship of the Ring": "Fellowship",
    "Hound of the Baskervilles": "Hound",
}


# The real files call these three balls among the presents too.
BALLS = ("black", "orange", "pink")


@dataclass(frozen=True)
class Theme:
    people: str  # after "are "
    setting: str  # between the people and the first assignment
    holds: str  # in the first assignments
    story: str
    swap: str  # after "X and Y "
    short: str  # a shorter swap, as solutions often say
    ends: str  # after "At the end of the "
    noun: str  # after a color in questions and options
    items: tuple[str, ...]

    def called(self, item: str) -> str:
        """An item as questions and options name it."""
        return f"{item} ball" if self.noun and item in BALLS else item + self.noun


THEMES = (
    Theme(
        "friends and avid readers who occasionally trade books.",
        "At the start of the semester, they each buy one new book:",
        "gets",
        "As the semester proceeds, they start trading around the new books.",
        "swap books",
        "swap",
        "semester, {} has",
        "",
        (*SHORT, "Ulysses", "Frankenstein", "Lolita", "Catch-22", "Moby Dick"),
    ),
    Theme(
        "on the same team in a soccer match.",
        "At the start of the match, they are each assigned to a position:",
        "is playing",
        "As the game progresses, pairs of players occasionally swap positions.",
        "trade positions",
        "trade positions",
        "match, {} is playing",
        "",
        tuple(
            "striker,right winger,left winger,benchwarmer,goalkeeper,center midfielder,cheerleader,fullback,"
            "right midfielder,left midfielder".split(",")
        ),
    ),
    Theme(
        "holding a white elephant gift exchange.",
        "At the start of the event, they are each holding a present of a different color:",
        "has a",
        "As the event progresses, pairs of people swap gifts.",
        "swap their gifts",
        "swap",
        "event, {} has the",
        " present",
        tuple(COLORS),
    ),
    Theme(
        "dancers at a square dance.",
        "At the start of a song, they each have a partner:",
        "is dancing with",
        "Throughout the song, the dancers often trade partners.",
        "switch partners",
        "switch partners",
        "dance, {} is dancing with",
        "",
        tuple("Patrick Sam Jamie Lola Melissa Rodrigo Izzi Ophelia Helga Karl".split()),
    ),
    Theme(
        "playing a game.",
        "At the start of the game, they are each holding a ball:",
        "has a",
        "As the game progresses, pairs of players trade balls.",
        "swap balls",
        "swap",
        "game, {} has the",
        " ball",
        tuple(COLORS),
    ),
)


def swapped(state: dict[str, str], one: str, other: str, repeated: bool, rng: Random, slips: Slips) -> dict[str, str]:
    """The state after a swap. A slip leaves the second person with what they had, or touches a bystander."""
    new = {**state, one: state[other], other: state[one]}
    if slips(rng, "tracking.repeated" if repeated else "tracking.swap"):
        new[other] = state[other]
    elif len(state) >= 5 and slips(rng, "tracking.bystander"):
        bystander = rng.choice([name for name in state if name not in (one, other)])
        new[other], new[bystander] = state[bystander], state[one]
    return new


def asks(
    theme: Theme, people: Sequence[str], items: Sequence[str], pairs: Sequence[Sequence[str]], asked: str, stop: str
) -> str:
    """The question; `stop` ends each option."""
    holds = listed([f"{person} {theme.holds} {theme.called(item)}" for person, item in zip(people, items, strict=True)])
    order = ["First, "] + ["Then, "] * (len(pairs) - 2) + ["Finally, "] * (len(pairs) > 1)
    swaps = " ".join(f"{word}{a} and {b} {theme.swap}." for word, (a, b) in zip(order, pairs, strict=True))
    return (
        f"{listed(people)} are {theme.people} {theme.setting} {holds}.\n"
        f"{theme.story} {swaps} At the end of the {theme.ends.format(asked)}\n"
        + options([theme.called(item) for item in items], stop)
    )


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None, *, objects: int) -> Example:
    theme = rng.choice(THEMES)
    people = NAMES[:objects]
    items = rng.sample(theme.items, objects)
    count = size or (objects if level is None else between(rng, 1, objects, level))
    pairs = [tuple(rng.sample(people, 2)) for _ in range(count)]
    asked = rng.choice(people)
    stop = "." if level is not None and rng.random() < 0.15 else ""
    question = asks(theme, people, items, pairs, asked, stop)
    shortened = rng.random() < 0.4
    swap = theme.short if rng.random() < 0.4 else theme.swap
    brief = rng.random() < 0.1

    def named(item: str) -> str:
        return SHORT.get(item, item) if shortened else item

    truth = dict(zip(people, items, strict=True))
    state = dict(truth)

    def shown(names: list[str]) -> str:
        return ", ".join(f"{name}: {named(state[name])}" for name in names) + "."

    lines = [f"At the start: {shown(people)}"]
    previous: tuple[str, ...] = ()
    for one, other in pairs:
        truth[one], truth[other] = truth[other], truth[one]
        state = swapped(state, one, other, bool(set(previous) & {one, other}), rng, slips)
        previous = (one, other)
        lines.append(f"{one} and {other} {swap}: {shown([one, other] if brief else people)}")
    lines += ending(theme, [named(item) for item in items], asked, state[asked], named(state[asked]))
    return Example(question, "\n".join(lines), f"({'ABCDEFG'[items.index(truth[asked])]})")


def ending(theme: Theme, shown: Sequence[str], asked: str, held: str, called: str) -> list[str]:
    """The last lines: the options anew, what the person asked about holds, and its letter."""
    end = f"At the end of the {theme.ends.format(asked)} {theme.called(held)}."
    return [lettered(shown), end, named_option(shown, called)]


def family(objects: int) -> Make:
    return partial(make, objects=objects)
