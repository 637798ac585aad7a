"""What values can find of the mistakes that people marked: a reader without faults, by program and not by a model.

    python benchmarks/search_faultless.py

From each boundary of a BIG-Bench-Mistake trace the faultless reader takes what the trace has written for granted and
goes on without a mistake, so that every value is 0 or 1. Where the first fall of its value is not the marked step, a
mistake was marked that does not decide (it is corrected later, or does not touch what is asked), and no policy that
goes on faithfully can find it by values. A trace that the parser cannot follow counts as not found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from os import environ
from pathlib import Path
from typing import Any

from gpo.reasoner.dyck import PAIRS
from gpo.statistics import wilson

Row = dict[str, Any]


def dyck(row: Row) -> list[bool]:
    """The stack of the last line, and the symbols of the input that no line has had yet."""
    symbols = row["input"].split()
    stack: list[str] = []
    at = 0
    values = []

    def right() -> bool:
        left = list(stack)
        for symbol in symbols[at:]:
            if symbol in PAIRS:
                left.append(symbol)
            elif left:
                left.pop()
        return [PAIRS.get(symbol) for symbol in reversed(left)] == row["target"].split()

    for step in ["", *row["steps"][:-1]]:
        if line := re.match(r"^\S ; stack:(.*)$", step):
            stack, at = line[1].replace("empty", "").split(), at + 1
        elif "final stack" in step:
            quoted = re.search(r'"([^"]*)"', step)
            stack, at = quoted[1].split() if quoted else [], len(symbols)
        values.append(right())
    return values


def tracking(row: Row) -> list[bool]:
    """What the lines last said of each person, and the swaps that no line has had yet."""
    question = row["input"]
    people = re.split(r", and |, ", question.partition(" are ")[0])
    initials = {name[0]: name for name in people}
    options = [text.lower() for text in re.findall(r"\([A-G]\) (.*?)\.?(?:\n|$)", question)]
    swaps = re.findall(r"(?:First|Then|Finally), (\w+) and (\w+) ", question)
    asked = re.search(r"At the end of the \w+, (\w+) ", question)
    assert asked

    def option(item: str) -> str:
        return next((text for text in options if item.lower() in text or text in item.lower()), item)

    start = question.partition(":")[2].partition(".\n")[0]
    named = r"(\w+) (?:gets|is playing|has a|is dancing with) (.+?)(?=, |$)"
    state = {person: option(item) for person, item in re.findall(named, start)}
    wanted = options["ABCDEFG".index(row["target"][1])]
    done = 0
    values = []

    def right() -> bool:
        left = dict(state)
        for one, other in swaps[done:]:
            left[one], left[other] = left[other], left[one]
        return left[asked[1]] == wanted

    begun = dict(state)
    who = "|".join([*people, *initials])
    for step in ["", *row["steps"][:-1]]:
        swap = re.match(r"\w+ and \w+ (?:swap|trade|switch)[^:]*:", step)
        said = re.findall(rf"\b({who}): ([^,.:]+?)(?=,|\.|$| So )", step[swap.end() if swap else 0 :])
        for name, item in said:
            state[initials.get(name, name)] = option(item.strip())
        at_start = not swap and not done and len(said) == len(people) and state == begun
        done += bool(said) and not at_start
        values.append(right())
    return values


def arithmetic(row: Row) -> list[bool]:
    """The values that the lines gave to the names of the first line, in the equation of the first line."""
    first = re.match(r'This equation can be written as "?(.+?)"?, where (.+)\.$', row["steps"][0])
    if not first:
        return [True] * len(row["steps"])
    equation, definitions = first[1], dict(re.findall(r"([A-H]) = (.+?)(?=,? and [A-H] =|, [A-H] =|$)", first[2]))
    values = [True]
    for step in row["steps"][:-1]:
        if line := re.match(r"Let's calculate ([A-H]) = .*= \(?(-?\d+)\)?\.$", step):
            definitions[line[1]] = line[2]
        text = re.sub(r"[A-H]", lambda name: f"({definitions.get(name[0], '?')})", equation)
        values.append(_computed(text) == int(row["target"]))
    return values


def _computed(text: str) -> int | None:
    if not re.fullmatch(r"[-+*() \d]+", text):
        return None
    try:
        return int(eval(text))
    except (SyntaxError, TypeError):  # brackets that do not match, or stand side by side
        return None


READERS: dict[str, Callable[[Row], list[bool]]] = {
    "dyck_languages": dyck,
    "tracking_shuffled_objects": tracking,
    "multistep_arithmetic": arithmetic,
}


def report(name: str, rows: Sequence[Row], values: Callable[[Row], list[bool]]) -> None:
    found = marked = quiet = clean = silent = 0
    for row in rows:
        known = [*values(row), row["answer"] == row["target"]]
        falls = [k for k, (before, after) in enumerate(pairwise(known)) if before and not after]
        if row["mistake_index"] is None:
            clean, quiet = clean + 1, quiet + (not falls)
        else:
            marked, found = marked + 1, found + (falls[:1] == [row["mistake_index"]])
            silent += not falls
    cells = [
        f"{n}/{of} {share.estimate:.0%} [{share.lower:.0%}, {share.upper:.0%}]"
        for n, of in ((found, marked), (quiet, clean))
        for share in [wilson(n, of)]
    ]
    print(f"| {name} | {cells[0]} | {silent} | {cells[1]} |")


def main() -> None:
    folder = Path(environ.get("GPO_DATA", Path(__file__).parents[2] / "shared/data")) / "big_bench_mistake"
    print("| traces | exact | value never falls | unmarked, no mistake |\n|---|---|---|---|")
    for name, values in READERS.items():
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        report(name, [json.loads(line) for line in lines], values)


if __name__ == "__main__":
    main()
