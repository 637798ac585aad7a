"""A typed question."""

import pytest

import gpo
from gpo.errors import DataError
from gpo.tasks.question import Question
from gpo.types import Problem


def test_the_model_is_told_to_think_in_lines_and_where_the_answer_goes() -> None:
    task = gpo.make("task", "question", question="What is half of 5?", answer="5/2")
    [problem] = task.problems("dev")
    [message] = task.prompt(problem)
    assert message["content"].startswith("What is half of 5?\n\n")
    assert "step by step, one step on each line" in message["content"]
    assert message["content"].endswith("\\boxed{}.")
    assert task.score(problem, "Half of 5 is 5 / 2.\nSo it is \\boxed{2.5}").right


@pytest.mark.parametrize(
    ("answer", "text", "verdict"),
    [
        ("72", "\\boxed{72}", "right"),
        ("72", "\\boxed{72.0}", "right"),
        ("72", "So the answer is 72 apples.", "right"),
        ("72", "\\boxed{3}", "wrong"),
        ("72", "There are 72 of", "ungradable"),
        ("72", "", "ungradable"),
        (r"\frac{\pi}{2}", r"\boxed{\dfrac{\pi}{2}}", "right"),
        ("x^2+1", r"\boxed{1 + x^2}", "right"),
        ("Paris", r"\boxed{\text{paris}}", "right"),
        ("Paris", "The answer is **Paris**.", "right"),
        ("Paris", r"\boxed{Sirap}", "wrong"),
        ("True", r"\boxed{true}", "right"),
    ],
)
def test_answers_are_mathematics_or_words_by_the_reference(answer: str, text: str, verdict: str) -> None:
    score = Question().score(Problem("q", "?", answer), text)
    assert score.verdict == verdict
    assert score.value == float(verdict == "right")


def test_without_a_reference_nothing_is_right_and_equal_answers_have_one_form() -> None:
    task, problem = Question(), Problem("q", "?", "")
    scores = [task.score(problem, f"\\boxed{{{text}}}") for text in ("1/2", "0.5", r"\frac{1}{2}", ".50")]
    assert {score.answer for score in scores} == {"1/2"}
    assert not any(score.right for score in scores)
    assert task.score(problem, r"\boxed{\text{Paris}}").answer == task.score(problem, r"\boxed{paris}").answer
    assert task.score(problem, "I do not know").verdict == "ungradable"


def test_a_question_that_is_missing_is_said() -> None:
    with pytest.raises(DataError, match=r"has no question\. Ask one: gpo locate"):
        gpo.make("task", "question").problems("train")
