"""GSM8K: 7,473 + 1,319 word problems whose answers are integers.

A row:

    question  Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How ...
    answer    Natalia sold 48/2 = <<48/2=24>>24 clips in May.
              Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.
              #### 72

`dev` is the last part of the published training split, and `train` the rest of it.

Source: Cobbe et al. 2021, arXiv 2110.14168; github.com/openai/grade-school-math, MIT.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from gpo.errors import ConfigError, DataError
from gpo.tasks.data import Hub, Row, conversation, hold_out, load_rows, worked_examples
from gpo.tasks.grading import candidates, compare, extract, parse_number
from gpo.types import Message, Problem, Score, Split

# The first is what instruction models were trained on; the second asks for the form of the published solutions.
ALONE = "Please reason step by step, and put your final answer within \\boxed{}."
WITH_EXAMPLES = 'Think step by step, one step on each line. End with the line "#### NUMBER".'


@dataclass(frozen=True)
class GSM8K:
    """Ids are such as `gsm8k/train/17`, the number of the row in its published file."""

    path: str | None = None  # folder with train.jsonl and test.jsonl, or the file of the split that is asked for
    instruction: str | None = None  # None: to reason step by step and box the answer; as they do, where there are shots
    system: str = ""  # stands before all else, as the turn of the system
    shots: int = 0  # solutions of the first `dev` questions as earlier turns
    examples: str | None = None  # file of worked examples instead, columns question and response
    dev_size: int = 500
    most_steps: int | None = None  # leave out questions whose published solution has more lines, for small models

    def __post_init__(self) -> None:
        if self.most_steps is not None and self.most_steps < 2:
            raise ConfigError(
                f"most_steps is {self.most_steps}; the shortest solutions of GSM8K have 2 lines. Give 2 or more."
            )

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if there is no data or a row has no answer."""
        name = "test" if split == "test" else "train"
        return [
            Problem(f"gsm8k/{name}/{i}", row.text("question"), reference(row), {"solution": row.text("answer")})
            for i, row in hold_out("GSM8K", self._rows(name), split, self.dev_size)
            if self.most_steps is None or row.text("answer").count("\n") <= self.most_steps
        ]

    def prompt(self, problem: Problem) -> list[Message]:
        examples = self._examples(problem)
        usual = WITH_EXAMPLES if examples else ALONE
        return conversation(
            problem.question, usual if self.instruction is None else self.instruction, examples, system=self.system
        )

    def score(self, problem: Problem, text: str) -> Score:
        return compare(parse_number(problem.answer, True), extract(text, parse_number))

    def meaning(self, step: str) -> Hashable:
        """The last number of the step, which is what it has worked out; of a step without one, its words.

        An answer is another step than the calculation that it repeats.
        """
        numbers = re.findall(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?", step)
        if not numbers:
            return " ".join(step.lower().split())
        return any(candidates(step)), Fraction(numbers[-1].replace(",", ""))

    def _examples(self, problem: Problem) -> tuple[tuple[str, str], ...]:
        given = worked_examples(self.examples)
        return given or tuple(shot for shot in self._shots if shot[0] != problem.question)[: self.shots]

    @cached_property
    def _shots(self) -> list[tuple[str, str]]:
        first = self.problems("dev")[: self.shots + 1] if self.shots else []
        return [(p.question, re.sub(r"<<[^<>]*>>", "", p.metadata["solution"])) for p in first]

    def _rows(self, name: str) -> list[Row]:
        hub = Hub("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", name, "main")
        return load_rows([f"gsm8k/{name}.jsonl"], hub, self.path)


def reference(row: Row) -> str:
    """The number after `####`, without the commas between thousands.

    Raises:
        DataError: the solution has none.
    """
    _, mark, answer = row.text("answer").rpartition("####")
    number = answer.replace(",", "").strip()
    if not mark or parse_number(number, True) is None:
        raise DataError(f"{row.where}: expected '#### NUMBER' at the end of the answer, got {answer[-60:]!r}.")
    return number
