"""Drills for pretraining: options in the question, their letters asked for again and again. No family of questions.

In a whole solution one token in a hundred is a letter, too few to learn looking one up from (42 M tokens did not
do it). Drills and a larger weight of letters in the loss did it within 2.5 M tokens, all at once.
"""

from __future__ import annotations

from random import Random

from gpo.reasoner.example import Example, Slips, lettered, options
from gpo.reasoner.temporal import consecutive
from gpo.reasoner.tracking import THEMES

ASKED = 8


def make(rng: Random, level: float | None, slips: Slips) -> Example:
    """A list of options and then some of them with their letters; `level` and `slips` make no difference."""
    if rng.random() < 0.25:
        items = consecutive(rng, rng.randint(2, 5))
    else:
        items = rng.sample(rng.choice(THEMES).items, rng.randint(2, 7))
    question = options(items) + "\n" if rng.random() < 0.5 else ""
    asked = rng.choices(range(len(items)), k=ASKED)
    lines = [lettered(items), *(f"It is {items[i]} ({'ABCDEFG'[i]})." for i in asked)]
    return Example(question, "\n".join(lines), f"({'ABCDEFG'[asked[-1]]})")
