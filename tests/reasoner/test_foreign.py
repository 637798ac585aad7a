"""Solutions that somebody else began: faithful to the beginning, right where it is."""

from __future__ import annotations

import re
from random import Random

import pytest

from gpo.reasoner import expressions, foreign
from gpo.reasoner.tokenizer import build


def answered(example: object) -> str:
    return str(getattr(example, "solution", "")).rpartition("So the answer is")[2].strip()


@pytest.mark.parametrize("make", [foreign.shuffled, foreign.brackets])
def test_from_a_beginning_without_a_mistake_the_answer_is_right(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MISTAKEN", 0.0)
    rng = Random(1)
    examples = [make(rng) for _ in range(300)]
    assert all(answered(example) == example.answer for example in examples)
    assert 100 < sum(bool(example.given) for example in examples) < 290


@pytest.mark.parametrize("make", [foreign.shuffled, foreign.brackets, foreign.arithmetic])
def test_mistakes_are_gone_on_with(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MISTAKEN", 1.0)
    rng = Random(2)
    examples = [make(rng) for _ in range(300)]
    wrong = [example for example in examples if answered(example) != example.answer]
    assert len(wrong) > 30
    assert all(example.given for example in wrong)


def test_expressions_are_computed_as_python_computes_them() -> None:
    rng = Random(3)
    for depth in (1, 2, 3, 4):
        for _ in range(50):
            tree = expressions.bracket(rng, depth, rng.randint(2, 4))
            states = expressions.steps(tree)
            assert {eval(expressions.shown(state)) for state in states} == {states[-1]}
            assert len(states) == len(re.findall(r" [-+*] ", expressions.shown(tree))) + 1
            assert {eval(expressions.shown(state)) for state in expressions.steps(tree, by_parts=True)} == {states[-1]}


def test_products_of_long_numbers_are_computed_by_parts() -> None:
    shown = [expressions.shown(state) for state in expressions.steps([49, "*", -37], by_parts=True)]
    assert shown == [
        "(49 * -37)",
        "(49 * -30 + 49 * -7)",
        "(-1470 + 49 * -7)",
        "(-1470 + -343)",
        "-1813",
    ]
    assert expressions.in_parts(40, 19) is None
    assert expressions.in_parts(-120, 25) == [-120, "*", 20, "+", -120, "*", 5]


def test_others_leave_out_equations_and_keep_the_value() -> None:
    rng = Random(4)
    states = expressions.steps([-3, "+", -2, "*", 5, "-", -7])
    chains = {foreign.loosely(states, rng) for _ in range(200)}
    assert len(chains) > 20
    for chain in chains:
        assert chain.startswith("(-3 + -2 * 5 - -7) = ")
        assert {eval(link) for link in chain.split(" = ")} == {-6}


def test_the_last_equation_follows_from_the_values_that_were_given() -> None:
    rng = Random(5)
    for _ in range(200):
        example = foreign.arithmetic(rng)
        last = example.solution.splitlines()[-1]
        equation = last.removeprefix("Then, the final equation is ").partition(". So")[0]
        names, *links = equation.split(" = ")
        assert re.fullmatch(r"[A-D()+*\- ]+", names)
        assert {eval(link) for link in links} == {int(answered(example))}


def test_lines_are_whole_and_tokens_join() -> None:
    tokenizer = build(examples=40)
    rng = Random(6)
    for _ in range(60):
        example = foreign.make(rng)
        assert not example.given or example.given.endswith("\n")
        given, solution = tokenizer([example.given, example.solution])["input_ids"]
        assert given + solution == tokenizer(example.given + example.solution)["input_ids"]
