"""The rules that take an answer out of a response."""

from __future__ import annotations

import time

import pytest

from gpo.tasks.grading import answer_text, candidates, last_number, parse_number, score_bbh, solution_answer
from gpo.types import Problem

BOOKS = "At the end, Alice has\nOptions:\n(A) The Great Gatsby.\n(B) Ulysses.\n(C) A dog"


def verdict(reference: str, text: str, question: str = "") -> tuple[str, str | None]:
    score = score_bbh(Problem("p", question, reference), text)
    return score.verdict, score.answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So the answer is (A)", ("right", "(A)")),
        ("So the answer is (A) The Great Gatsby.", ("right", "(A)")),
        ("the answer is A", ("right", "(A)")),
        ("The answer is A.", ("right", "(A)")),
        ("the answer is: a)", ("right", "(A)")),
        ("**Answer**: (**A**), because she swapped twice", ("right", "(A)")),
        ("The correct option is A", ("right", "(A)")),
        ("the answer is option [a]", ("right", "(A)")),
        ("So the answer is most likely (A), not (B)", ("right", "(A)")),
        ("So the answer is the great gatsby", ("right", "(A)")),
        (r"\boxed{A}", ("right", "(A)")),
        (r"The final answer is $\boxed{\text{(A)}}$.", ("right", "(A)")),
        ("Alice has Ulysses.\n\n(A)\n", ("right", "(A)")),
        ("A", ("right", "(A)")),
        ("(A) The Great Gatsby.", ("right", "(A)")),
        ("The answer is (B). Wait, no.\nThe answer is (A).", ("right", "(A)")),
        ("So the answer is (A).\nI checked that the answer is fine.", ("right", "(A)")),
        ("So the answer is (A).\n\nQ: And Bob?\nA: So the answer is (B).", ("right", "(A)")),
        ("<think>the answer is (B)</think>So the answer is (A)", ("right", "(A)")),
        ("the answer is (B)", ("wrong", "(B)")),
        ("the answer is A dog", ("wrong", "(C)")),
        ("the answer is (A) or (B)", ("wrong", "(A) or (B)")),
        ("the answer is A/B", ("wrong", "A/B")),
        ("the answer is not (A)", ("ungradable", None)),
        ("the answer is a cat", ("ungradable", None)),
        ("A) Ulysses", ("ungradable", None)),
        ("<think>the answer is (A)", ("ungradable", None)),
        ("Alice and Bob swap: Alice: Ulysses", ("ungradable", None)),
        ("So the answer is", ("ungradable", None)),
        ("", ("ungradable", None)),
    ],
)
def test_options(text: str, expected: tuple[str, str | None]) -> None:
    assert verdict("(A)", text, BOOKS) == expected


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("Yes", "So the answer is Yes.", ("right", "yes")),
        ("Yes", "the answer is yes, because it returns", ("right", "yes")),
        ("yes", "YES", ("right", "yes")),
        ("Yes", "the answer is No", ("wrong", "no")),
        ("No", "None of these", ("ungradable", None)),
        ("True", "not False is True. So the answer is True", ("right", "true")),
        ("valid", "the answer is deductively valid", ("right", "valid")),
        ("invalid", "the answer is not valid", ("right", "invalid")),
        ("valid", "the answer is invalid", ("wrong", "invalid")),
        ("valid", "the answer is valid or invalid", ("wrong", "valid or invalid")),
    ],
)
def test_words_of_a_pair(reference: str, text: str, expected: tuple[str, str | None]) -> None:
    assert verdict(reference, text) == expected


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("-14", "the answer is A - B = 3 - 17 = -14.", ("right", "-14")),
        ("5", "the answer is 5 (since x=7)", ("right", "5")),
        ("1234", "#### $1,234.00", ("right", "1234")),
        ("-5", "the answer is −5", ("right", "-5")),
        ("5", "so we get\n$5$.", ("right", "5")),
        ("0.5", r"\boxed{1/2}", ("right", "1/2")),
        ("5", "the answer is 50", ("wrong", "50")),
        ("5", "the answer is 5 or 6", ("wrong", "5 or 6")),
        ("5", "I had 5 apples and so on", ("ungradable", None)),
        ("5", "the answer is 5/0", ("ungradable", None)),
    ],
)
def test_numbers(reference: str, text: str, expected: tuple[str, str | None]) -> None:
    assert verdict(reference, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('So, we need "]", ")", "}". So the answer is ] ) }', ("right", "] ) }")),
        ("The answer is `])}`.", ("right", "] ) }")),
        (r"$\boxed{] ) \}}$", ("right", "] ) }")),
        (r"\boxed{])}}", ("right", "] ) }")),
        ("] )}", ("right", "] ) }")),
        ("the answer is ] }", ("wrong", "] }")),
        ("the answer is nothing", ("ungradable", None)),
    ],
)
def test_brackets(text: str, expected: tuple[str, str | None]) -> None:
    assert verdict("] ) }", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So the answer is it&t o'connell zebra", ("right", "it&t o'connell zebra")),
        ("the answer is: it&t, o'connell, zebra.", ("right", "it&t o'connell zebra")),
        ('["it&t", "o\'connell", "zebra"]', ("right", "it&t o'connell zebra")),
        ("the answer is zebra it&t o'connell", ("wrong", "zebra it&t o'connell")),
        (" ", ("ungradable", None)),
    ],
)
def test_lists_of_words(text: str, expected: tuple[str, str | None]) -> None:
    assert verdict("it&t o'connell zebra", text) == expected


def test_an_option_with_a_comma_that_broke_the_published_row_is_compared_as_text() -> None:
    question = "Find a movie similar to Shrek:\nOptions:\n(A) Monsters\n(B) Inc"
    assert verdict("Monsters, Inc", "So the answer is **Monsters, Inc**.", question)[0] == "right"
    assert verdict("Monsters, Inc", "So the answer is (A)", question)[0] == "wrong"


def test_numbers_have_one_form() -> None:
    assert [parse_number(text) for text in ("$1,234.50", "2469/2", "+7", ".5", "no")] == [
        "2469/2",
        "2469/2",
        "7",
        "1/2",
        None,
    ]


def test_candidates_come_last_first_and_braces_are_balanced() -> None:
    text = r"\boxed{\frac{1}{2}} is wrong. The answer is 7." + "\n" + r"\boxed{\{3\}}"
    assert list(candidates(text)) == [r"\{3\}", "7.", r"\frac{1}{2}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>7</answer>", ("right", "7")),
        ("<answer>\n7\n</answer>\nThat is all.", ("right", "7")),
        ("<think>8</think><ANSWER>7</ANSWER>", ("right", "7")),
        ("The answer is 8. <answer>The answer is 7</answer>", ("right", "7")),
        ("The answer is 7. <answer></answer>", ("right", "7")),
        ("The answer is 7. <answer>72", ("right", "7")),
        ("<answer>8</answer>", ("wrong", "8")),
        ("<answer>7", ("ungradable", None)),
    ],
)
def test_answers_in_tags(text: str, expected: tuple[str, str | None]) -> None:
    assert verdict("7", text) == expected


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("red", "The answer is red.\nSo the answer is ANSWER.", ("right", "red")),
        ("red", "So the answer is ANSWER.", ("ungradable", None)),
        ("red", "I add.\n#### NUMBER", ("ungradable", None)),
        ("red", "Red.\nANSWER", ("ungradable", None)),
        ("ANSWER", "So the answer is ANSWER.", ("right", "answer")),
        ("red", "The answer is red.\nThe answer is \\boxed{ANSWER}", ("right", "red")),
        ("red", "The answer is", ("ungradable", None)),
        ("7", "The answer is $\\boxed{7", ("ungradable", None)),
        ("7", "The answer is \\boxed{}.", ("ungradable", None)),
        ("7", "The answer is 7.\nThe answer is \\boxed{72", ("right", "7")),
    ],
)
def test_what_says_no_answer_is_passed_over(reference: str, text: str, expected: tuple[str, str | None]) -> None:
    assert verdict(reference, text) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 is 7", "7"),
        ("She pays $1,234.50.", "2469/2"),
        ("It is \\boxed{-7}", "-7"),
        ("9-7", "7"),
        ("- 7 apples", "7"),
        ("of them \\frac{1}{2} or 3/4", "3/4"),
        ("7. Step 2 says so", "2"),
        ("<think>7</think>none", None),
        ("seven", None),
    ],
)
def test_the_last_number_of_a_response(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("We work it out.\n#### 7", "7"),
        ("So it is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("#### 8\nNo: <answer> 7 </answer>", "7"),
        ("3 + 4 = 7.\nThe answer is 7.", "7."),
        ("The answer is 7.", "The answer is 7."),
        ("7", "7"),
    ],
)
def test_the_answer_of_a_worked_solution(solution: str, answer: str) -> None:
    assert solution_answer(solution) == answer


def test_thinking_that_never_ends_has_no_answer() -> None:
    assert answer_text("<think>so 5") is None
    assert answer_text("so</think> 5") == " 5"
    assert answer_text("so</think> 5 <think>or 6") is None


@pytest.mark.parametrize(
    "unit", ["{", "\\boxed{", "the answer is ", "answer ", "<think>", "9" * 50, "(", "\n", "A: x ", " "]
)
@pytest.mark.parametrize("reference", ["(A)", "5", "Yes", "] )", "a b"])
def test_a_megabyte_of_anything_costs_little(unit: str, reference: str) -> None:
    text = unit * (1_000_000 // len(unit))
    began = time.perf_counter()
    score = score_bbh(Problem("p", "", reference), text)
    assert not score.right
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "text",
    [
        r"The answer is 7. \boxed{7",
        r"The answer is $7$, in a box: $\boxed{7",
        r"The answer is 7, so we write \boxed{}",
        "#### 7 \\boxed{",
    ],
)
def test_what_stands_before_a_box_that_is_cut_off_counts(text: str) -> None:
    problem = Problem("0", "How many?", "7", {"subtask": "object_counting"})
    assert score_bbh(problem, text).verdict == "right"


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("7", "Question: how many?\nThe answer is 7.", ("right", "7")),  # asked again before it is answered
        ("Yes", "Therefore\nYes they do return", ("ungradable", None)),
        ("2", "the answer is 2^10", ("wrong", "2^10")),
        ("5", r"the answer is \sqrt 5", ("wrong", r"\sqrt 5")),
        ("5000000", "the answer is 5 million people", ("right", "5000000")),
        ("] )", "the answer is ] ) That is all", ("right", "] )")),
        ("] )", "the answer is ] ) and more", ("ungradable", None)),
    ],
)
def test_what_stands_around_an_answer_counts(reference: str, text: str, expected: tuple[str, str | None]) -> None:
    assert verdict(reference, text) == expected


def test_an_option_at_the_end_of_a_line_of_other_words_is_no_answer() -> None:
    assert verdict("(A)", "Alice and Bob swap: Alice has (A)", BOOKS) == ("ungradable", None)


def test_an_escaped_brace_closes_nothing() -> None:
    assert list(candidates(r"\boxed{[0, 1\} \cup x}")) == [r"[0, 1\} \cup x"]
