"""Solutions that somebody else began, in the wordings of BIG-Bench-Mistake, gone on with in the reasoner's own.

To judge a trace of another model by rollouts, the reasoner must read what it would not have written: other ways to set
out an equation, lines that skip what they computed, states that name only who swapped, mistakes. `Example.given` is
such a beginning. With a mistake in it it carries no loss, so that the reasoner learns to go on from it faithfully and
never to write it: what goes wrong in a rollout is then the fault of the beginning, and a mistake surprises.

The wordings were read off every third trace of each file; no trace is copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from gpo.reasoner import dyck, tracking
from gpo.reasoner.arithmetic import apply
from gpo.reasoner.example import Example, listed
from gpo.reasoner.expressions import Expression, bracket, shown, steps

MISTAKEN = 0.35  # of the beginnings have a mistake
GIVEN_WEIGHT = 0.25  # in the loss, of a beginning whose wording is worth knowing
OTHER_ENDS = 0.15  # of solutions end in the words of others


def loosely(states: list[Expression], rng: Random) -> str:
    """A chain of equations as others write it: some operations at once, signs joined, results in brackets."""
    kept = [states[0], *(state for state in states[1:-1] if rng.random() < 0.6)]
    links = [shown(state) for state in kept]
    if rng.random() < 0.3:  # the first link again, with its first product in brackets of its own
        links.insert(1, re.sub(r"(-?\d+ \* -?\d+)", r"(\1)", links[0], count=1))
    if rng.random() < 0.4:
        links[1:] = [re.sub(r"- -(\d)", r"+ \1", link) for link in links[1:]]
    if rng.random() < 0.4:
        links[1:] = [re.sub(r"\+ -(\d)", r"- \1", link) for link in links[1:]]
    if rng.random() < 0.3:
        links[1:] = [re.sub(r"(?<=[-+*] )(-\d+)", r"(\1)", link) for link in links[1:]]
    result = f"({states[-1]})" if rng.random() < 0.2 else str(states[-1])
    return " = ".join([*links, result])


def mistaken(rng: Random) -> Callable[[int, str, int], int]:
    """An operation that now and then gets its sign, a digit or the operator wrong."""

    def compute(left: int, operator: str, right: int) -> int:
        result = apply(left, operator, right)
        if rng.random() < 0.7:
            return result
        wrong = [-result, result + rng.choice((-10, -2, -1, 1, 2, 10)), apply(left, rng.choice("+-"), right)]
        return rng.choice([*wrong, apply(left, operator, -right)])

    return compute


def arithmetic(rng: Random) -> Example:
    """multistep_arithmetic of two to four levels of brackets."""
    depth, numbers = rng.choice([(2, 4), (2, 4), (3, 2), (3, 3), (3, 3), (3, 4), (3, 4), (3, 4), (4, 2)])
    largest = 9
    if rng.random() < 0.4:  # what last equations are made of: sums and products of long numbers
        depth, numbers, largest = rng.choice((2, 3)), 2, 99
    tree = bracket(rng, depth, numbers, largest)
    by_other = rng.random() < 0.85
    # What is named A, B, ...: the brackets of numbers, or larger ones
    leaves = 2 ** (depth - 1)
    named = [tree]
    while len(named) < (2 if leaves == 2 else 4):
        splittable = [i for i, node in enumerate(named) if isinstance(node[0], list)]
        if not splittable or (by_other and len(named) > 1 and rng.random() < 0.3):
            break
        widest = max(splittable, key=lambda i: (len(shown(named[i])), -i))
        node = named[widest]
        named[widest : widest + 1] = [node[0], node[2]]
    letters = "ABCD"
    flat = by_other and rng.random() < 0.2  # the brackets between names are forgotten

    def over(node: Expression) -> Expression:
        """The tree over the names."""
        for letter, part in zip(letters, named, strict=False):
            if node is part:
                return letter
        return [over(node[0]), node[1], over(node[2])]

    def opened(node: Expression) -> list[Expression]:
        if not isinstance(node, list):
            return [node]
        return [part for inner in node for part in (opened(inner) if isinstance(inner, list) else [inner])]

    whole = over(tree)
    if flat:
        whole = opened(whole)
    outer = shown(whole)[1:-1]
    wrapped = f"({outer})" if len(named) == 2 and rng.random() < 0.5 else outer
    pairs = [f"{letter} = {shown(node)}" for letter, node in zip(letters, named, strict=False)]
    where = " and ".join(pairs) if by_other and rng.random() < 0.4 else listed(pairs)
    if len(pairs) == 2:
        where = " and ".join(pairs)
    lines = [f'This equation can be written as "{wrapped}", where {where}.']
    given_lines = rng.choice((rng.randint(1, len(named)), len(named) + 1)) if by_other else 0
    wrong_at = rng.randint(1, given_lines) if given_lines and rng.random() < MISTAKEN else 0
    values: dict[str, int] = {}
    for number, (letter, node) in enumerate(zip(letters, named, strict=False), 1):
        foreign = number < given_lines
        states = steps(node, mistaken(rng) if foreign and number == wrong_at else apply, by_parts=not foreign)
        values[letter] = states[-1]
        chain = loosely(states, rng) if foreign else " = ".join(map(shown, states))
        lines.append(f"Let's calculate {letter} = {chain}.")

    def filled(node: Expression) -> Expression:
        return [filled(part) for part in node] if isinstance(node, list) else values.get(node, node)

    states = steps(filled(whole), by_parts=True)
    links = [shown(state)[1:-1] if isinstance(state, list) else str(state) for state in states]
    lines.append(f"Then, the final equation is {' = '.join([outer, *links])}. So the answer is {states[-1]}")
    return parted(f"{shown(tree)} =", lines, given_lines, str(steps(tree)[-1]))


@dataclass(frozen=True, slots=True)
class Wording:
    """How somebody notes who holds what."""

    letters: bool = False  # A, B, ... instead of names
    only: str = "all"  # "all" people, those "seen" so far, or the "pair" that swapped
    swapped: bool = True  # "Alice and Bob swap:" before the state
    start: bool = True  # a first line with the state at the start
    moved_first: bool = False  # the pair stands first
    capital: bool = False

    def names(self, people: list[str], seen: list[str], pair: list[str]) -> list[str]:
        """Of whom a line tells, in order."""
        told = {"all": people, "seen": seen, "pair": pair}[self.only]
        return [*pair, *(name for name in told if name not in pair)] if self.moved_first else told

    def line(self, names: list[str], items: list[str], head: list[str], verb: str) -> str:
        """ "Alice and Bob swap: Alice: red, Bob: blue." """

        def called(name: str) -> str:
            return name[0] if self.letters else name

        shown = [item.capitalize() if self.capital else item for item in items]
        body = ", ".join(f"{called(name)}: {item}" for name, item in zip(names, shown, strict=True))
        front = f"{called(head[0])} and {called(head[1])} {verb}: " if head and self.swapped else ""
        return front + body + ("" if self.letters else ".")


OWN = Wording()


def wording(rng: Random) -> Wording:
    letters = rng.random() < 0.35
    only = rng.choice(["all", "all", "all", "seen", "pair"])
    return Wording(
        letters=letters,
        only=only,
        swapped=not letters or rng.random() < 0.4,
        start=only == "all" and rng.random() < 0.85,
        moved_first=rng.random() < 0.3,
        capital=letters and rng.random() < 0.3,
    )


def shuffled(rng: Random) -> Example:
    """tracking_shuffled_objects with three, five or seven people."""
    objects = rng.choice((3, 3, 5, 5, 5, 7))
    theme = rng.choice(tracking.THEMES)
    people, items = tracking.NAMES[:objects], rng.sample(theme.items, objects)
    pairs = [rng.sample(people, 2) for _ in range(objects)]
    asked = rng.choice(people)
    stop = "." if rng.random() < 0.5 else ""
    question = tracking.asks(theme, people, items, pairs, asked, stop)
    short = rng.random() < 0.4
    swap = theme.short if rng.random() < 0.5 else theme.swap
    given_lines = rng.randint(1, objects + 1) if rng.random() < 0.8 else 0
    form = wording(rng) if rng.random() < 0.7 else OWN
    wrong_at = rng.randint(1, given_lines) if given_lines and rng.random() < MISTAKEN else 0
    truth = dict(zip(people, items, strict=True))
    state = dict(truth)

    def named(item: str) -> str:
        return tracking.SHORT.get(item, item) if short else item

    def line(by: Wording, names: list[str], head: list[str]) -> str:
        return by.line(names, [named(state[name]) for name in names], head, swap)

    lines = []
    if not given_lines or form.start:
        front = "" if given_lines and form.letters else "At the start: "
        lines.append(front + line(form if given_lines else OWN, people, []))
    foreign = min(len(lines), given_lines)  # lines by the other one
    seen: list[str] = []
    for pair in pairs:
        one, other = pair
        truth[one], truth[other] = truth[other], truth[one]
        state[one], state[other] = state[other], state[one]
        if foreign == given_lines:
            lines.append(line(OWN, people, pair))
            continue
        foreign += 1
        if foreign == wrong_at:
            confuse(state, one, other, rng, all_shown=form.only == "all")
        seen += [name for name in pair if name not in seen]
        names = form.names(people, seen, pair)
        if foreign == wrong_at and len(names) > 3 and rng.random() < 0.2:
            forgotten = rng.choice(names)
            names = [name for name in names if name != forgotten]
        lines.append(line(form, names, pair))
    ending = tracking.ending(theme, [named(item) for item in items], asked, state[asked], named(state[asked]))
    if rng.random() < OTHER_ENDS:
        lines.append(f"{ending[1]} So the answer is ({'ABCDEFG'[items.index(state[asked])]})")
    else:
        lines += ending
    weight = 0.0 if wrong_at else GIVEN_WEIGHT
    return parted(question, lines, foreign, f"({'ABCDEFG'[items.index(truth[asked])]})", weight)


def confuse(state: dict[str, str], one: str, other: str, rng: Random, all_shown: bool) -> None:
    """A swap gone wrong: undone, half done, with what a bystander has, or with a bystander who is shown."""
    kind = rng.randrange(4 if all_shown else 3)
    if kind == 0:
        state[one], state[other] = state[other], state[one]
    elif kind == 1:
        state[other] = state[one]
    else:
        changed, bystander = rng.choice((one, other)), rng.choice([name for name in state if name not in (one, other)])
        before = state[changed]
        state[changed] = state[bystander]
        if kind == 3:
            state[bystander] = before


def brackets(rng: Random) -> Example:
    """dyck_languages with a stack that somebody else kept."""
    i = rng.randrange(len(dyck.LENGTHS) - 1)
    symbols = dyck.sequence(rng, rng.randint(dyck.LENGTHS[i], dyck.LENGTHS[i + 1]))
    stack: list[str] = []
    truth: list[str] = []
    given_lines = rng.randint(2, len(symbols) + 2) if rng.random() < 0.6 else 0
    wrong_at = rng.randint(3, given_lines) if given_lines > 2 and rng.random() < MISTAKEN else 0
    lines = ["We should process each input one by one and keep track of the stack configuration.", "stack: empty"]
    for number, symbol in enumerate(symbols, 3):
        for kept in (truth, stack):
            if symbol in dyck.PAIRS:
                kept.append(symbol)
            elif kept:
                kept.pop()
        if number == wrong_at:
            stack = misremembered(stack, rng)
        lines.append(f"{symbol} ; stack: {' '.join(stack) or 'empty'}")
    lines += other_closing(stack, rng) if rng.random() < OTHER_ENDS else dyck.closing(stack)
    answer = " ".join(dyck.PAIRS[symbol] for symbol in reversed(truth))
    weight = 0.0 if wrong_at else GIVEN_WEIGHT
    return parted(dyck.QUESTION + " ".join(symbols), lines, given_lines, answer, weight)


def other_closing(stack: list[str], rng: Random) -> list[str]:
    """The last lines with something left out or joined in another way."""
    if not stack:
        return ["Now, we have reached the end. The final stack is empty.", "So the answer is"]
    final, pops, needs = dyck.closing(stack)
    answer = needs[needs.index("So the answer is") :]
    kind = rng.randrange(4)
    if kind == 0:
        return [final, answer]
    if kind == 1:
        return [final, pops.replace(" one by one in that order.", f". {answer}")]
    if kind == 2:
        return [final, pops, needs.replace('"', "").replace(",", "").replace("So we", "So, we")]
    return [final, *(" and ".join(line.rsplit(", ", 1)) if line.count('"') > 2 else line for line in (pops, needs))]


def misremembered(stack: list[str], rng: Random) -> list[str]:
    """A stack with one symbol too many, too few, or another one."""
    kind = rng.randrange(4)
    if kind == 0 or not stack:
        return [*stack, rng.choice("([{<")]
    if kind == 1:
        return stack[:-1]
    at = rng.randrange(len(stack))
    return [*stack[:at], *([] if kind == 2 else [rng.choice("([{<")]), *stack[at + 1 :]]


def parted(question: str, lines: list[str], given: int, answer: str, weight: float = 0.0) -> Example:
    """An example whose first `given` lines somebody else wrote, with their weight in the loss."""
    before = "".join(line + "\n" for line in lines[:given])
    return Example(question, "\n".join(lines[given:]), answer, before, weight)


def make(rng: Random) -> Example:
    """One of the three, arithmetic the most often: it is the hardest."""
    return rng.choices((arithmetic, shuffled, brackets), (7, 2, 1))[0](rng)
