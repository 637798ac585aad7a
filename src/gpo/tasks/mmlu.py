"""MMLU (four options, 57 subjects) and MMLU-Pro (up to ten options).

A row of MMLU and one of MMLU-Pro:

    question  A frameshift mutation is created when        question  The symmetric group $S_n$ has $n!$ elements ...
    choices   [telomeric sequences are removed, ...]       options   [0, 30, 3, 10, 12, 50, 2, 100, 20, 5]
    answer    2                                            answer    I
    subject   college_biology                              category  math

Sources: Hendrycks et al. 2021, arXiv 2009.03300; Wang et al. 2024, arXiv 2406.01574.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from gpo.errors import DataError
from gpo.tasks.data import Hub, Row, conversation, load_rows, names, refuse_training, worked_examples
from gpo.tasks.grading import score_bbh
from gpo.types import Message, Problem, Score, Split

INSTRUCTION = 'Think step by step, one step on each line. End with the line "So the answer is (LETTER)."'


@dataclass(frozen=True)
class MMLU:
    """`train` is the published auxiliary training split, `dev` the validation split. Ids are such as `mmlu/test/17`."""

    path: str | None = None  # file of the split that is asked for, or folder with mmlu/SPLIT.jsonl or mmlu_stem.jsonl
    subjects: str | Sequence[str] = ()  # only these; empty for all
    instruction: str = INSTRUCTION
    system: str = ""  # stands before all else, as the turn of the system
    examples: str | None = None  # file of worked examples, columns question and response

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if there is no data, a row is malformed, or no row has one of `subjects`."""
        published = {"train": "auxiliary_train", "dev": "validation", "test": "test"}[split]
        hub = Hub("cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe", published, "all")
        local = [f"mmlu/{split}.jsonl"] + (["mmlu_stem.jsonl"] if split == "test" else [])
        rows = load_rows(local, hub, self.path)
        return _problems(f"mmlu/{split}", rows, "choices", ("subject", "type"), names(self.subjects))

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(problem.question, self.instruction, worked_examples(self.examples), system=self.system)

    def score(self, problem: Problem, text: str) -> Score:
        return score_bbh(problem, text)


@dataclass(frozen=True)
class MMLUPro(MMLU):
    """`dev` is the published validation split of 70; nothing to train on. Ids are such as `mmlu_pro/test/17`."""

    path: str | None = None  # file of the split that is asked for, or folder with mmlu_pro/SPLIT.jsonl
    subjects: str | Sequence[str] = ()  # only these categories; empty for all
    allow_test_training: bool = False

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if `split` is `train`, there is no data, a row is malformed, or no row has a subject."""
        if split == "train":
            refuse_training("MMLU-Pro", split, self.allow_test_training)
        name = "dev" if split == "dev" else "test"
        published = {"dev": "validation", "test": "test"}[name]
        hub = Hub("TIGER-Lab/MMLU-Pro", "b189ec765aa7ed75c8acfea42df31fdae71f97be", published)
        rows = load_rows([f"mmlu_pro/{name}.jsonl"], hub, self.path)
        return _problems(f"mmlu_pro/{name}", rows, "options", ("category",), names(self.subjects))


def with_options(question: str, options: Sequence[str]) -> str:
    """The question with its options below, a line "(A) text" for each."""
    lines = [f"({letter}) {' '.join(option.split())}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, "Options:", *lines])


def option_letter(row: Row, column: str, count: int) -> str:
    """An answer given as 0-based number or as letter, as "(A)".

    Raises:
        DataError: it is not one of the `count` options, or these are more than there are letters.
    """
    if count > len(ascii_uppercase):
        raise DataError(f"{row.where}: at most {len(ascii_uppercase)} options, got {count}.")
    answer = row.text(column).strip()
    letters = ascii_uppercase[:count]
    if answer.isdecimal() and int(answer) < count:
        return f"({letters[int(answer)]})"
    if answer.strip("()") in tuple(letters):
        return f"({answer.strip('()')})"
    raise DataError(f"{row.where}: expected 0 to {count - 1} or a letter A to {letters[-1]} as answer, got {answer!r}.")


def _problems(
    name: str, rows: list[Row], options_column: str, subject_columns: Sequence[str], subjects: Sequence[str]
) -> list[Problem]:
    problems, seen = [], set()
    for i, row in enumerate(rows):
        subject = next((str(row.fields[c]) for c in subject_columns if c in row.fields), "")
        seen.add(subject)
        if subjects and subject not in subjects:
            continue
        options = row.texts(options_column)
        answer = option_letter(row, "answer", len(options))
        question = with_options(row.text("question"), options)
        problems.append(Problem(f"{name}/{i}", question, answer, {"subtask": subject}))
    missing = set(subjects) - seen
    if missing:
        raise DataError(f"{name}: no question of {', '.join(sorted(missing))}. Subjects: {', '.join(sorted(seen))}.")
    return problems
