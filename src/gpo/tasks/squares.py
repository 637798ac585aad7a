r"""Counting squares of one colour in a picture, row by row: drawn here, for models of vision and language.

A row, and a response that is read:

    question  How many red squares are in the picture?
    cells     rgb/wrr/bbw
    response  Row 1 has 1.
              Row 2 has 2.
              Row 3 has 0.
              So the answer is 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING

from gpo.errors import ConfigError
from gpo.tasks.data import conversation, split_by
from gpo.tasks.grading import score_bbh
from gpo.types import Message, Problem, Score, Split

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {"r": "red", "g": "green", "b": "blue", "w": "white"}


@dataclass(frozen=True)
class Squares:
    """Pictures of `rows` times `rows` squares. A hash of picture and question decides which split has them."""

    rows: int = 3
    pixels: int = 8  # of the side of a square
    train_problems: int = 500
    dev_problems: int = 100
    test_problems: int = 200
    instruction: str = 'Count row by row, one row on each line. End with the line "So the answer is NUMBER."'
    system: str = ""  # stands before all else, as the turn of the system
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 2 or self.pixels < 1:
            raise ConfigError(f"squares: expected rows of at least 2 and pixels of at least 1, got {self}.")

    def problems(self, split: Split) -> list[Problem]:
        """Fewer than were asked for where there are not so many."""
        count = {"train": self.train_problems, "dev": self.dev_problems, "test": self.test_problems}[split]
        random, problems, seen = Random(f"{self.seed}/{split}/{self.rows}"), list[Problem](), set[str]()
        for _ in range(40 * count):
            cells = "/".join("".join(random.choices("rgbw", k=self.rows)) for _ in range(self.rows))
            asked = random.choice("rgb")
            what = f"{asked}:{cells}"
            if what in seen or split_by(blake2b(what.encode(), digest_size=1).digest()[0]) != split:
                continue
            seen.add(what)
            question = f"How many {COLOURS[asked]} squares are in the picture?"
            problems.append(
                Problem(f"{split}/squares/{len(problems)}", question, str(cells.count(asked)), {"cells": cells})
            )
            if len(problems) == count:
                break
        return problems

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(
            problem.question,
            self.instruction,
            images=[draw(problem.metadata["cells"], self.pixels)],
            system=self.system,
        )

    def score(self, problem: Problem, text: str) -> Score:
        return score_bbh(problem, text)


def draw(cells: str, pixels: int) -> Image:
    """The picture of rows such as "rgb/wrr/bbw", each square with a side of so many pixels."""
    from PIL import Image

    rows = cells.split("/")
    picture = Image.new("RGB", (pixels * len(rows[0]), pixels * len(rows)))
    for y, row in enumerate(rows):
        for x, colour in enumerate(row):
            box = (x * pixels, y * pixels, (x + 1) * pixels, (y + 1) * pixels)
            picture.paste(COLOURS[colour], box)
    return picture
