"""A user's own questions: a JSONL, JSON, CSV or parquet file with a column of questions and one of answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gpo.errors import ConfigError, DataError
from gpo.tasks.data import Row, conversation, hold_out, read_rows, worked_examples
from gpo.tasks.grading import (
    candidates,
    compare,
    extract,
    last_number,
    parse_number,
    parse_text,
    parse_words,
    parser_for,
    score_bbh,
    solution_answer,
)
from gpo.tasks.math_grading import compare_math, score_math
from gpo.tasks.mmlu import option_letter, with_options
from gpo.tasks.quantities import quantity
from gpo.types import Message, Problem, Score, Split

IMAGES = "images"  # column
Form = Literal["auto", "math", "number", "text"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """Rows of `path` to train on, the last `dev_size` of them for development, and rows of `test_path` to measure with.

    Ids are such as `file/train/17`, or those of the column `id`. A column `images`, as TRL names it, has the
    images that a question shows: a path, or a list of paths, relative to the folder of the file.
    """

    path: str | None = None  # training file
    test_path: str | None = None  # test file
    dev_size: int = 0
    question: str = "question"  # column; a text, or the turns of a conversation that ends with the question
    answer: str = "answer"  # column; an answer or a worked solution; with `options`, a 0-based number or a letter
    id: str | None = None  # column of unique names
    options: str | None = None  # column with a list of options
    form: Form = "auto"  # by the reference: option, yes/no, number, words; math: LaTeX; number: the last; text: a line
    system: str = ""  # stands before all else, as the turn of the system
    instruction: str = 'Think step by step, one step on each line. End with the line "So the answer is ANSWER."'
    examples: str | None = None  # file of worked examples, columns question and response

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ConfigError(f"file: form must be one of {', '.join(get_args(Form))}, got {self.form!r}.")

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if the split has no file, or naming the file and line of a row that cannot be used."""
        name, path = ("test_path", self.test_path) if split == "test" else ("path", self.path)
        if path is None:
            without = ", or --test_problems 0 to evaluate nothing" if split == "test" else ""
            kinds = f"a .jsonl, .csv or .parquet file{without}"
            raise DataError(f"The file task has no {split!r} questions: set --task.{name} to {kinds}.")
        file = Path(path).expanduser()
        rows = read_rows(file)
        held = split == "dev" or self.dev_size
        numbered = hold_out("file", rows, split, self.dev_size) if held else list(enumerate(rows))
        rows = [row for _, row in numbered]
        kind = "test" if split == "test" else "train"
        problems = [self._problem(row, f"file/{kind}/{i}", file.parent) for i, row in numbered]
        seen: dict[str, Row] = {}
        for problem, row in zip(problems, rows, strict=True):
            if problem.id in seen:
                raise DataError(f"{row.where}: the id {problem.id!r} is also that of {seen[problem.id].where}.")
            seen[problem.id] = row
        self._warn_of_sentences(problems, rows)
        return problems

    def prompt(self, problem: Problem) -> list[Message]:
        about = problem.metadata
        return conversation(
            problem.question,
            self.instruction,
            worked_examples(self.examples),
            about.get("images", ()),
            system=self.system,
            earlier=about.get("turns", ()),
        )

    def score(self, problem: Problem, text: str) -> Score:
        if self.form == "math":
            return score_math(problem.answer, text)
        if self.form == "number":
            return compare(parse_number(problem.answer, True), last_number(text))
        if self.form == "text":
            return compare(parse_text(problem.answer), extract(text, parse_text, reference=problem.answer))
        return score_bbh(problem, text)

    @property
    def parallel(self) -> int:
        """Two processes compare LaTeX; all else is graded where it is asked."""
        return 2 if self.form == "math" else 1

    @property
    def score_seconds(self) -> float | None:
        """What is graded here may hang; processes that do are killed."""
        return None if self.form == "math" else 60.0

    def same(self, a: str, b: str) -> bool:
        return compare_math(a, b).verdict == "right" if self.form == "math" else a == b

    def _problem(self, row: Row, name: str, folder: Path) -> Problem:
        given = row.get(self.question)
        earlier, question = turns_of(row, self.question) if isinstance(given, list) else ([], row.text(self.question))
        if self.options is not None:
            listed = row.texts(self.options)
            question, answer = with_options(question, listed), option_letter(row, self.answer, len(listed))
        else:
            answer = row.text(self.answer) if self.form == "text" else self._reference(row)
        about: dict[str, Any] = {**_shown(row, folder), **({"turns": earlier} if earlier else {})}
        return Problem(row.text(self.id) if self.id else name, question, answer, about)

    def _reference(self, row: Row) -> str:
        """The answer that a column says, without the solution that leads to it.

        Raises:
            DataError: it is none of this form.
        """
        text = row.text(self.answer)
        answer = (self.form == "number" and next(candidates(text), None)) or solution_answer(text)
        if self.form != "math" and (number := _number(answer)) is not None:
            return number
        if self.form == "number":
            raise DataError(
                f"{row.where}: column {self.answer!r} must hold a number, or a solution whose answer stands behind "
                f"####, in \\boxed{{}} or behind 'The answer is', got {answer[-80:]!r}."
            )
        return " ".join(answer.split("\n"))

    def _warn_of_sentences(self, problems: Sequence[Problem], rows: Sequence[Row]) -> None:
        """Tell of references that hardly any response can match."""
        if self.form == "text" or self.options is not None:
            return
        found = [i for i, each in enumerate(problems) if self._is_sentence(each)]
        if found:
            log.warning(
                "%d of %d answers in column %r are sentences, such as %r (%s): a response is right only where it says "
                "the same. Give the answer alone, or a solution with its answer behind #### or in \\boxed{}.",
                len(found),
                len(problems),
                self.answer,
                problems[found[0]].answer[:80],
                rows[found[0]].where,
            )

    def _is_sentence(self, problem: Problem) -> bool:
        if self.form == "auto" and parser_for(problem.answer, problem.question)[0] is not parse_words:
            return False
        words = len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", problem.answer))
        return words > 3 and re.search(r"\d|[.!?](?:\s|$)", problem.answer) is not None


def _number(answer: str) -> str | None:
    """A number without its unit or the things that it counts; None if it is no number, or part of a name."""
    found = quantity(answer)
    if found is None or found.pi or not found.unit or re.search("[A-Z][a-z]", answer):
        return answer if parse_number(answer, True) is not None else None
    return str(found.value)


def turns_of(row: Row, column: str) -> tuple[list[Message], str]:
    """The earlier turns and the question of a conversation: a list of objects with `role` and `content`.

    Raises:
        DataError: it has another form, or does not end with a turn of the user.
    """
    turns = row.get(column)
    fits = turns and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not fits or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise DataError(
            f"{row.where}: column {column!r} must be a text, or turns such as {{'role': 'user', 'content': TEXT}} of "
            f"which the last is the user's, got {str(turns)[:80]!r}."
        )
    earlier: list[Message] = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:-1]]
    return earlier, turns[-1]["content"]


def _shown(row: Row, folder: Path) -> dict[str, list[str]]:
    """The images of a row, for the metadata of its problem."""
    given = row.fields.get(IMAGES)
    if not given or (isinstance(given, str) and not given.strip()):
        return {}
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise DataError(
            f"{row.where}: column {IMAGES!r} must be a path or a list of paths, got {str(given)[:80]!r}. Save the "
            "images as files beside the data."
        )
    paths = [(folder / Path(name).expanduser()).resolve() for name in listed]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{row.where}: there is no image at {missing[0]}. Paths are relative to {folder.resolve()}.")
    return {"images": [str(path) for path in paths]}
