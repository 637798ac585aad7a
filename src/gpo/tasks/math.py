r"""MATH: competition problems. Train on the 7,500 published training problems, test on MATH-500.

A row of the test split (rows of the training split have no `answer`; it is the last `\boxed{}` of the solution):

    problem   Convert the point $(0,3)$ in rectangular coordinates to polar coordinates. ...
    solution  We have that $r = \sqrt{0^2 + 3^2} = 3.$ ... $\boxed{\left( 3, \frac{\pi}{2} \right)}.$
    answer    \left( 3, \frac{\pi}{2} \right)
    subject   Precalculus

`dev` is the last part of the published training split, and `train` the rest of it.

Sources: Hendrycks et al. 2021, arXiv 2103.03874, MIT; the 500 of Lightman et al. 2023, arXiv 2305.20050.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gpo.errors import ConfigError, DataError
from gpo.tasks.data import Hub, Row, conversation, hold_out, load_rows, worked_examples
from gpo.tasks.grading import braced
from gpo.tasks.math_grading import compare_math, score_math
from gpo.types import Message, Problem, Score, Split

INSTRUCTION = "Think step by step, one step on each line, and put the final answer in \\boxed{}."

TRAIN = tuple(
    Hub("EleutherAI/hendrycks_math", "21a5633873b6a120296cce3e2df9d5550074f4a3", "train", subject)
    for subject in (
        "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus"
    ).split()
)
TEST = Hub("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test")


@dataclass(frozen=True)
class MATH:
    """Ids are such as `math/train/17`, the number of the row in its published file."""

    path: str | None = None  # folder with math/train.jsonl and math500.jsonl, or the file of the split asked for
    instruction: str = INSTRUCTION
    system: str = ""  # stands before all else, as the turn of the system
    shots: int = 0  # solutions of the first `dev` questions as earlier turns
    examples: str | None = None  # file of worked examples instead, columns question and response
    dev_size: int = 500
    workers: int = 2  # processes that compare answers
    seconds: float = 5.0  # for one comparison

    def __post_init__(self) -> None:
        if self.workers < 1 or self.seconds <= 0:
            raise ConfigError(f"MATH: workers and seconds must be above 0, got {self.workers} and {self.seconds}.")

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if there is no data or a row has no answer."""
        if split == "test":
            name, rows = "test", load_rows(["math500.jsonl", "math/test.jsonl"], TEST, self.path)
        else:
            name, rows = "train", load_rows(["math/train.jsonl"], TRAIN, self.path)
        return [_problem(f"math/{name}/{i}", row) for i, row in hold_out("MATH", rows, split, self.dev_size)]

    def prompt(self, problem: Problem) -> list[Message]:
        examples = worked_examples(self.examples)
        examples = examples or tuple(shot for shot in self._shots if shot[0] != problem.question)[: self.shots]
        return conversation(problem.question, self.instruction, examples, system=self.system)

    def score(self, problem: Problem, text: str) -> Score:
        return score_math(problem.answer, text, self.workers, self.seconds)

    @property
    def parallel(self) -> int:
        """As many answers are graded at once as there are processes."""
        return self.workers

    def same(self, a: str, b: str) -> bool:
        return compare_math(a, b, self.workers, self.seconds).verdict == "right"

    @cached_property
    def _shots(self) -> list[tuple[str, str]]:
        first = self.problems("dev")[: self.shots + 1] if self.shots else []
        return [(p.question, p.metadata["solution"]) for p in first]


def _problem(name: str, row: Row) -> Problem:
    answer = row.text("answer") if "answer" in row.fields else boxed(row)
    subject = str(row.fields.get("subject") or row.fields.get("type") or "")
    solution = str(row.fields.get("solution") or "")
    return Problem(name, row.text("problem"), answer, {"subtask": subject, "solution": solution})


def boxed(row: Row) -> str:
    r"""The last `\boxed{}` of a solution; a single symbol may stand without braces.

    Raises:
        DataError: the solution has none.
    """
    solution = row.text("solution")
    _, mark, rest = solution.rpartition("\\boxed")
    if not mark:
        _, mark, rest = solution.rpartition("\\fbox")
    answer = braced(rest.lstrip()) if rest.lstrip().startswith("{") else rest.strip()[:1]
    if not mark or not answer or not answer.strip():
        raise DataError(f"{row.where}: the solution has no \\boxed{{}} answer; it ends with {solution[-60:]!r}.")
    return answer
