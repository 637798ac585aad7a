"""The generated families: worded like the real files, solved right, and never one of the real questions."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from random import Random

import pytest

from gpo.errors import ConfigError
from gpo.reasoner import boolean, dyck, long, navigate, tracking
from gpo.reasoner.example import NO_SLIPS, Slips
from gpo.reasoner.families import FAMILIES, SIZES, generate, held_out, question_hash
from gpo.reasoner.pretrain import DRILL, MIXTURE, SLIPS

DATA = Path(os.environ.get("GPO_DATA") or Path(__file__).parents[3] / "shared" / "data") / "bbh"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real BBH questions at {DATA}; set GPO_DATA")


def real(family: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((DATA / f"{family}.json").read_text())["examples"]
    return rows


def shape(question: str) -> str:
    """The wording with everything that varies taken out."""
    from gpo.reasoner.lies import NAMES as LIARS
    from gpo.reasoner.temporal import ACTIVITIES, PLACES
    from gpo.reasoner.temporal import NAMES as PEOPLE

    items = {item for theme in tracking.THEMES for item in theme.items}
    words = [*ACTIVITIES, *PLACES, *items, *LIARS, *PEOPLE, *tracking.NAMES]
    text = re.sub("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)), "X", question)
    text = re.sub(r"\d+(am|pm)?", "N", text)
    text = re.sub(r"True|False", "B", text)
    text = re.sub(r"tells the truth|lies", "V", text)
    text = re.sub(r"(?: [()\[\]{}<>])+$", " BRACKETS", text)
    return re.sub(r" [-+*] ", " o ", re.sub(r"-N", "N", text))


@needs_data
@pytest.mark.parametrize("family", FAMILIES)
def test_the_wording_is_that_of_the_real_questions(family: str) -> None:
    """Whatever has a fixed wording has exactly that of the real files; free forms share their sentences."""
    rng = Random(0)
    ours = {shape(generate(family, rng).question) for _ in range(3000)}
    theirs = {shape(row["input"]) for row in real(family)}
    if family in ("boolean_expressions", "navigate"):
        split = r"(?<=[.?]) |\n" if family == "navigate" else r" "
        ours = {part for text in ours for part in re.split(split, text)}
        theirs = {part for text in theirs for part in re.split(split, text)}
    assert theirs <= ours, sorted(theirs - ours)[:3]


@needs_data
@pytest.mark.parametrize("family", FAMILIES)
def test_no_real_question_is_ever_generated(family: str) -> None:
    rows = real(family)
    hashes = {question_hash(row["input"]) for row in rows}
    assert hashes <= held_out()
    rng = Random(1)
    for level in [None, 0.2, 0.6] * 500:
        assert question_hash(generate(family, rng, level).question) not in hashes


def test_a_held_out_question_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = generate("boolean_expressions", Random(5))
    monkeypatch.setattr("gpo.reasoner.families.held_out", lambda: {question_hash(first.question)})
    assert generate("boolean_expressions", Random(5)).question != first.question


@pytest.mark.parametrize("family", FAMILIES)
def test_without_slips_every_solution_ends_in_the_answer(family: str) -> None:
    rng = Random(2)
    for level in [None, 0.3, 1.0] * 200:
        example = generate(family, rng, level)
        assert example.solution.endswith(f"So the answer is {example.answer}")
        assert "" not in example.solution.split("\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_slips_spoil_solutions_and_never_answers(family: str) -> None:
    """The stated answers are those of independent solvers, in the tests below."""
    rng = Random(3)
    examples = [generate(family, rng, None, SLIPS) for _ in range(400)]
    wrong = [e for e in examples if not e.solution.endswith(f"So the answer is {e.answer}")]
    assert len(wrong) <= 0.75 * len(examples)
    assert wrong or family == "multistep_arithmetic_two"  # which needs no slips to be hard


@needs_data
@pytest.mark.parametrize("family", ["boolean_expressions", "multistep_arithmetic_two"])
def test_answers_agree_with_python(family: str) -> None:
    rng = Random(4)
    for _ in range(300):
        example = generate(family, rng, None, SLIPS)
        expression = example.question.removesuffix(" is").removesuffix(" =")
        assert str(eval(expression)) == example.answer


def test_dyck_answers_close_what_is_open() -> None:
    rng = Random(6)
    for _ in range(300):
        example = dyck.make(rng, None, NO_SLIPS)
        text = (example.question.removeprefix(dyck.QUESTION) + example.answer).replace(" ", "")
        while any(pair in text for pair in ("()", "[]", "{}", "<>")):
            for pair in ("()", "[]", "{}", "<>"):
                text = text.replace(pair, "")
        assert text == ""


def test_tracking_answers_agree_with_the_swaps_in_the_question() -> None:
    rng = Random(7)
    for _ in range(200):
        example = tracking.make(rng, None, Slips({"tracking.swap": 0.5}), objects=5)
        first, second = example.question.split("\n")[:2]
        theme = next(theme for theme in tracking.THEMES if theme.people in first)
        assigned = first.partition(theme.setting)[2].rstrip(".").replace(", and ", ", ").split(", ")
        holds = dict(part.strip().split(f" {theme.holds} ", 1) for part in assigned)
        for one, other in re.findall(r"(?:First|Then|Finally), (\w+) and (\w+) ", second):
            holds[one], holds[other] = holds[other], holds[one]
        asked = re.search(r"At the end of the \w+, (\w+) ", second)
        assert asked
        assert f"\n{example.answer} {holds[asked[1]]}\n" in example.question + "\n"


def test_navigate_answers_agree_with_complex_numbers() -> None:
    rng = Random(8)
    turns = {"Turn left": 1j, "Turn right": -1j, "Turn around": -1}
    aside = {"forward": 1, "backward": -1, "left": 1j, "right": -1j}
    for _ in range(300):
        example = navigate.make(rng, None, Slips({"navigate.turn_around": 0.5}))
        at, heading = 0j, 1 + 0j
        walk = example.question.removeprefix(navigate.QUESTION).split("\n")[0].removeprefix("Always face forward. ")
        for instruction in walk.rstrip(".").split(". "):
            if instruction in turns:
                heading *= turns[instruction]
            else:
                words = instruction.split()
                at += int(words[1]) * heading * (aside[words[3]] if len(words) > 3 else 1)
        assert example.answer == ("Yes" if at == 0 else "No")


def test_reduction_follows_python_precedence() -> None:
    tokens = "True or False and not True".split()
    assert boolean.reduce_once(tokens, Random(0), NO_SLIPS) == "True or False and False".split()


def test_unknown_families_are_named() -> None:
    with pytest.raises(ConfigError, match="navigate"):
        generate("navigat", Random(0))


def test_every_family_is_in_the_mixture() -> None:
    assert set(MIXTURE) == {*FAMILIES, DRILL}


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_every_size_are_solved(family: str) -> None:
    _, smallest, largest = SIZES[family]
    rng = Random(9)
    for size in (smallest, (smallest + largest) // 2, largest):
        for slips in (NO_SLIPS, long.SLIPS):
            for _ in range(20):
                example = generate(family, rng, None, slips, size)
                assert example.solution.rpartition("So the answer is ")[2]
                if slips is NO_SLIPS:
                    assert example.solution.endswith(f"So the answer is {example.answer}")
                if family == "multistep_arithmetic_two":
                    assert str(eval(example.question.removesuffix(" ="))) == example.answer
                    assert example.question.count("(") == size + 1
                if family.startswith("tracking"):
                    assert len(re.findall(r"(?:First|Then|Finally), ", example.question)) == size
    for size in (smallest - 1, largest + 1):
        with pytest.raises(ConfigError, match=f"expected {smallest} to {largest}"):
            generate(family, rng, size=size)


def test_every_family_has_sizes_and_a_share_of_the_long_questions() -> None:
    assert set(SIZES) == set(long.MIXTURE) == set(FAMILIES)
    assert set(long.SLIPS.rates) == set(SLIPS.rates)
