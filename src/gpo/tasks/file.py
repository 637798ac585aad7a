"""A user's own questions: a JSONL, JSON, CSV or parquet file with a column of questions and one of answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gpo.errors import ConfigError, DataError
from gpo.tasks.data import Row, conversation, hold_out, read_rows, worked_examples
from gpo.tasks.grading import compare, extract, parse_text, score_bbh
from gpo.tasks.math_grading import compare_math, score_math
from gpo.tasks.mmlu import option_letter, with_options
from gpo.types import Message, Problem, Score, Split

IMAGES = "images"  # column
Form = Literal["auto", "math", "text"]


@dataclass(frozen=True)
class File:
    """Rows of `path` to train on, the last `dev_size` of them for development, and rows of `test_path` to measure with.

    Ids are such as `file/train/17`, or those of the column `id`. A column `images`, as TRL names it, has the
    images that a question shows: a path, or a list of paths, relative to the folder of the file.
    """

    path: str | None = None  # training file
    test_path: str | None = None  # test file
    dev_size: int = 0
    question: str = "question"  # column
    answer: str = "answer"  # column; with `options`, a 0-based number or a letter
    id: str | None = None  # column of unique names
    options: str | None = None  # column with a list of options
    form: Form = "auto"  # auto: option, yes/no, number, brackets or words, by the reference; math: LaTeX; text: a line
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
        first = len(rows) - self.dev_size if split == "dev" else 0
        if split == "dev" or (split == "train" and self.dev_size):
            rows = hold_out("file", rows, split, self.dev_size)
        problems = [
            self._problem(row, f"file/{'test' if split == 'test' else 'train'}/{first + i}", file.parent)
            for i, row in enumerate(rows)
        ]
        seen: dict[str, Row] = {}
        for problem, row in zip(problems, rows, strict=True):
            if problem.id in seen:
                raise DataError(f"{row.where}: the id {problem.id!r} is also that of {seen[problem.id].where}.")
            seen[problem.id] = row
        return problems

    def prompt(self, problem: Problem) -> list[Message]:
        shown = problem.metadata.get("images", ())
        return conversation(problem.question, self.instruction, worked_examples(self.examples), shown)

    def score(self, problem: Problem, text: str) -> Score:
        if self.form == "math":
            return score_math(problem.answer, text)
        if self.form == "text":
            return compare(parse_text(problem.answer), extract(text, parse_text))
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
        question, answer = row.text(self.question), row.text(self.answer)
        if self.options is not None:
            listed = row.texts(self.options)
            question, answer = with_options(question, listed), option_letter(row, self.answer, len(listed))
        return Problem(row.text(self.id) if self.id else name, question, answer, _shown(row, folder))


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
