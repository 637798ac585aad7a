"""web_of_lies: a chain of people who vouch for each other, one line a person."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from gpo.reasoner.example import Example, Slips, between

NAMES = (
    "Millicent Jerry Christie Amberly Elanor Jamey Shaunda Fidel Ka Gwenn Willian Fletcher Kandi Lorine Tamika Sal "
    "Teressa Bernita Rashida Audrie Delfina Alexis Helene Crista Leda Shalonda Sima Conception Alejandro Inga Ryan "
    "Michaela Shenna Andree Sherrie Vina Phoebe Michael Delbert Raymond Vernell Jaymie Millie Osvaldo Jim Antwan "
    "Maybelle Yoland Dallas Kristian"
).split()
REAL_PEOPLE = 5


def verb(truthful: bool) -> str:
    return "tells the truth" if truthful else "lies"


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example:
    people = rng.sample(NAMES, size or (REAL_PEOPLE if level is None else between(rng, 2, 8, level)))
    truthful = rng.random() < 0.5
    written = truthful
    said = [f"{people[0]} {verb(truthful)}."]
    lines = [f"{people[0]} {verb(truthful)}."]
    for earlier, person in pairwise(people):
        claim = rng.random() < 0.5
        truthful = truthful == claim
        agrees = written == claim
        if not claim and not written and slips(rng, "lies.liar_called_liar"):
            agrees = False
        elif slips(rng, "lies.says"):
            agrees = not agrees
        said.append(f"{person} says {earlier} {verb(claim)}.")
        lines.append(f"{person} says {earlier} {verb(claim)}, so {person} {verb(agrees)}.")
        written = agrees
    question = f"Question: {' '.join(said)} Does {people[-1]} tell the truth?"
    lines.append(f"So the answer is {'Yes' if written else 'No'}")
    return Example(question, "\n".join(lines), "Yes" if truthful else "No")
