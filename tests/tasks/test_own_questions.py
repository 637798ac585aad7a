"""A user's own file, and reasoning-gym."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpo
from gpo.errors import ConfigError, DataError, MissingDependency


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def test_columns_are_named_by_fields(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"frage": f"{n}?", "antwort": n, "nr": f"q{n}"} for n in range(5)])
    test = write(tmp_path / "b.jsonl", [{"frage": "9?", "antwort": "yes", "nr": "z"}])
    task = gpo.make("task", "file", path=train, test_path=test, question="frage", answer="antwort", id="nr", dev_size=2)
    assert [p.id for p in task.problems("train")] == ["q0", "q1", "q2"]
    assert [p.id for p in task.problems("dev")] == ["q3", "q4"]
    problem = task.problems("test")[0]
    assert (problem.id, problem.question, problem.answer) == ("z", "9?", "yes")
    assert task.score(problem, "So the answer is Yes.").right
    assert task.score(problem, "So the answer is no.").verdict == "wrong"


@pytest.mark.parametrize(
    ("form", "answer", "right", "wrong"),
    [
        ("auto", "12", "The answer is 12.0", "The answer is 13"),
        ("auto", "(B)", "The answer is B.", "The answer is (A)."),
        ("math", r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{0.6}"),
        ("text", "a red fox", "The answer is A red fox.", "The answer is a fox."),
    ],
)
def test_forms_of_answers(tmp_path: Path, form: str, answer: str, right: str, wrong: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "Which?", "answer": answer}])
    task = gpo.make("task", "file", test_path=path, form=form)
    problem = task.problems("test")[0]
    assert task.score(problem, right).right
    assert task.score(problem, wrong).verdict == "wrong"


def test_options_are_listed_and_the_answer_is_a_letter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "Which?", "answer": 1, "o": ["red", "blue"]}])
    problem = gpo.make("task", "file", test_path=path, options="o").problems("test")[0]
    assert problem.question == "Which?\nOptions:\n(A) red\n(B) blue"
    assert problem.answer == "(B)"


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no 'train' questions: set --task\.path to a"):
        gpo.make("task", "file").problems("train")
    twice = write(tmp_path / "a.jsonl", [{"question": "1?", "answer": 1, "id": "x"}] * 2)
    with pytest.raises(DataError, match=r"line 2: the id 'x' is also that of .*line 1"):
        gpo.make("task", "file", path=twice, id="id").problems("train")
    with pytest.raises(ConfigError, match="form must be one of auto, math, text, got 'maths'"):
        gpo.make("task", "file", form="maths")


def test_reasoning_gym_generates_and_scores() -> None:
    pytest.importorskip("reasoning_gym")
    task = gpo.make("task", "reasoning_gym", generator="chain_sum", size=5)
    train, test = task.problems("train"), task.problems("test")
    assert task.problems("train") == train
    assert {p.question for p in train}.isdisjoint(p.question for p in test)
    problem = test[3]
    assert problem.id == "reasoning_gym/chain_sum/test/3"
    assert task.score(problem, f"Adding up.\n<answer>{problem.answer}</answer>").right
    assert task.score(problem, f"<answer>{int(problem.answer) + 1}</answer>").verdict == "wrong"
    assert task.score(problem, "Adding up.").verdict == "ungradable"


def test_reasoning_gym_takes_lists_among_its_settings() -> None:
    pytest.importorskip("reasoning_gym")
    task = gpo.make("task", "reasoning_gym", generator="basic_arithmetic", config={"operators": ["+"]}, size=5)
    assert all(set("*/").isdisjoint(p.question) for p in task.problems("train"))


def test_reasoning_gym_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=r"Unknown generator of reasoning-gym 'chain_sun'. Did you mean 'chain_sum'"):
        gpo.make("task", "reasoning_gym", generator="chain_sun").problems("train")
    with pytest.raises(ConfigError, match="reasoning-gym refuses the settings"):
        gpo.make("task", "reasoning_gym", config={"min_terms": -3}).problems("train")
    from gpo.tasks.reasoning_gym import _generator

    _generator.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gpo\[reasoning-gym\]'"):
        gpo.make("task", "reasoning_gym").problems("train")
