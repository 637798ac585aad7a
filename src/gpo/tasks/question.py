r"""One typed question, with its right answer where somebody knows it.

A question, and a response that is read:

    question  What is half of 5?
    answer    5/2
    response  Half of 5 is 5 / 2.
              So it is \boxed{2.5}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpo.errors import DataError
from gpo.tasks.data import conversation
from gpo.tasks.grading import parse_number, parse_text, undecorated
from gpo.tasks.math import INSTRUCTION
from gpo.tasks.math_grading import math_answer, score_math
from gpo.types import Message, Problem, Score, Split

_MATHEMATICS = re.compile(r"[\d\\^=+*/]")


@dataclass(frozen=True)
class Question:
    """A question is the same in all splits. `score` grades other questions too, by the answers that they have.

    Texts are equal but for case, blanks and the last full stop. Where the reference has a digit, an operator or a LaTeX
    command, what is mathematically equal is right too. Without a reference no response is right; the answers that are
    read then have one form for each value, so that they can be counted.
    """

    question: str | None = None
    answer: str = ""  # empty: not known
    instruction: str = INSTRUCTION

    def problems(self, split: Split) -> Sequence[Problem]:
        """Raises: DataError if there is no question."""
        if self.question is None or not self.question.strip():
            raise DataError(
                'The question task has no question. Ask one: gpo locate --question "...", '
                'or gpo.make("task", "question", question="...", answer="...").'
            )
        return [Problem("question", self.question, self.answer)]

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(problem.question, self.instruction)

    def score(self, problem: Problem, text: str) -> Score:
        answer = math_answer(text)
        if answer is None:
            return Score(0.0, "ungradable")
        if not problem.answer.strip():
            return Score(0.0, "wrong", _form(answer))
        if _form(answer) == _form(problem.answer):
            return Score(1.0, "right", answer)
        mathematical = _MATHEMATICS.search(problem.answer)
        return score_math(problem.answer, text) if mathematical else Score(0.0, "wrong", answer)


def _form(answer: str) -> str:
    """A number as an integer or a reduced fraction, other mathematics without blanks, words without case."""
    number = parse_number(answer, True)
    if number is not None:
        return number
    plain = undecorated(answer)
    return "".join(plain.split()) if _MATHEMATICS.search(plain) else parse_text(plain) or answer.strip()
