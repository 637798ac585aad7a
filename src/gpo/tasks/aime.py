"""AIME 2024 and 2025: 30 problems each, whose answers are integers from 0 to 999; a test split only.

A row:

    problem  Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b.$
    answer   70

Source: AIME I and II of the year, as published in evaluation suites.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpo.errors import ConfigError, DataError
from gpo.tasks.data import Hub, conversation, load_rows, refuse_training, worked_examples
from gpo.tasks.grading import compare, extract, parse_number
from gpo.tasks.math import INSTRUCTION
from gpo.types import Message, Problem, Score, Split

HUBS = {
    2024: Hub("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train"),
    2025: Hub("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test"),
}


@dataclass(frozen=True)
class AIME:
    """Both papers of one year. Ids are such as `aime25/17`."""

    year: int = 2025
    path: str | None = None  # folder with aime24.jsonl and aime25.jsonl, or one such file
    instruction: str = INSTRUCTION
    system: str = ""  # stands before all else, as the turn of the system
    examples: str | None = None  # file of worked examples, columns question and response
    allow_test_training: bool = False

    def __post_init__(self) -> None:
        if self.year not in HUBS:
            raise ConfigError(f"AIME: year must be {' or '.join(map(str, HUBS))}, got {self.year!r}.")

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if `split` is not `test`, there is no data, or an answer is no integer from 0 to 999."""
        name = f"aime{self.year % 100}"
        refuse_training(name.upper(), split, self.allow_test_training)
        problems = []
        for i, row in enumerate(load_rows([f"aime/{name}.jsonl"], HUBS[self.year], self.path)):
            answer = parse_number(row.text("answer"), True)
            if answer is None or not answer.isdecimal() or int(answer) > 999:
                raise DataError(f"{row.where}: an answer is an integer from 0 to 999, got {row.text('answer')!r}.")
            problems.append(Problem(f"{name}/{i}", row.text("problem"), answer))
        return problems

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(problem.question, self.instruction, worked_examples(self.examples), system=self.system)

    def score(self, problem: Problem, text: str) -> Score:
        """Grade by value, so that 025 and 25.0 are 25; no other number is near enough."""
        return compare(parse_number(problem.answer, True), extract(text, parse_number))


@dataclass(frozen=True)
class AIME24(AIME):
    """AIME 2024."""

    year: int = 2024


@dataclass(frozen=True)
class AIME25(AIME):
    """AIME 2025."""

    year: int = 2025
