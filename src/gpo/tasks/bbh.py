"""BIG-Bench Hard: 27 sub-tasks, 250 questions each (fewer in three), a test split only.

A row of `navigate`:

    input   If you follow these instructions, do you return to the starting point? Take 1 step. Turn around. ...
            Options:
            - Yes
            - No
    target  No

Source: Suzgun et al. 2022, arXiv 2210.09261; github.com/suzgunmirac/BIG-Bench-Hard, MIT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpo.errors import unknown
from gpo.tasks.data import Hub, conversation, load_rows, names, refuse_training, worked_examples
from gpo.tasks.grading import score_bbh
from gpo.types import Message, Problem, Score, Split

SUBTASKS = tuple(
    (
        "boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies "
        "geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects "
        "logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting "
        "penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks "
        "sports_understanding temporal_sequences tracking_shuffled_objects_five_objects "
        "tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies word_sorting"
    ).split()
)

INSTRUCTION = 'Think step by step, one step on each line. End with the line "So the answer is ANSWER."'


@dataclass(frozen=True)
class BBH:
    """Questions of the chosen sub-tasks, in the order of the files. Ids are such as `bbh/navigate/17`."""

    subtasks: str | Sequence[str] = SUBTASKS  # names, or one string of names separated by commas
    path: str | None = None  # folder with SUBTASK.json, or with bbh/SUBTASK.json
    instruction: str = INSTRUCTION  # stands below each question; empty for models trained on bare questions
    system: str = ""  # stands before all else, as the turn of the system
    examples: str | None = None  # file of worked examples, columns question and response
    allow_test_training: bool = False

    def __post_init__(self) -> None:
        for name in names(self.subtasks):
            if name not in SUBTASKS:
                raise unknown("BBH sub-task", name, SUBTASKS)

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if `split` is not `test`, which is all that BBH has, or if there is no data."""
        refuse_training("BBH", split, self.allow_test_training)
        return [problem for name in names(self.subtasks) for problem in published(name, self.path)]

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(problem.question, self.instruction, worked_examples(self.examples), system=self.system)

    def score(self, problem: Problem, text: str) -> Score:
        return score_bbh(problem, text)


def published(name: str, path: str | None, **metadata: str) -> list[Problem]:
    """The questions of a sub-task. Raises: DataError if there is no data."""
    hub = Hub("lukaemon/bbh", "982bb89fd79532a8ac676a61fc42eb1aeec63f99", "test", name)
    return [
        Problem(f"bbh/{name}/{i}", row.text("input"), row.text("target"), {"subtask": name, **metadata})
        for i, row in enumerate(load_rows([f"bbh/{name}.json"], hub, path))
    ]
