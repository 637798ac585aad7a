r"""One typed question, with its right answer where somebody knows it.

A question, and a response that is read:

    question  What is half of 5?
    answer    5/2
    response  Half of 5 is 5 / 2.
              So it is \boxed{2.5}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpo.errors import DataError
from gpo.tasks.data import conversation
from gpo.tasks.math import INSTRUCTION
from gpo.tasks.math_grading import MATHEMATICS, form_of, math_answer, score_math
from gpo.types import Message, Problem, Score, Split


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
    system: str = ""  # stands before all else, as the turn of the system

    def problems(self, split: Split) -> Sequence[Problem]:
        """Raises: DataError if there is no question."""
        if self.question is None or not self.question.strip():
            raise DataError(
                'The question task has no question. Ask one: gpo locate --question "...", '
                'or gpo.make("task", "question", question="...", answer="...").'
            )
        return [Problem("question", self.question, self.answer)]

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(problem.question, self.instruction, system=self.system)

    def score(self, problem: Problem, text: str) -> Score:
        answer = math_answer(text, problem.answer)
        if answer is None:
            return Score(0.0, "ungradable")
        if not problem.answer.strip():
            return score_math("", text)
        if form_of(answer) == form_of(problem.answer):
            return Score(1.0, "right", answer)
        mathematical = MATHEMATICS.search(problem.answer)
        return score_math(problem.answer, text) if mathematical else Score(0.0, "wrong", answer)
