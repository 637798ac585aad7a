"""A user's own file, and reasoning-gym."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import gpo
from gpo.config.check import check_component
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.errors import ConfigError, DataError, MissingDependency
from gpo.experiment.questions import choose_problems
from gpo.rollout.scoring import checked_score
from gpo.storage.codec import from_json, to_json
from gpo.types import Problem


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
        ("number", "7", "3 + 4 is 7, as I said", "It is 8"),
        ("auto", "7 apples", "The answer is 7.", "The answer is 8 apples."),
        ("auto", "12 Angry Men", "The answer is 12 angry men.", "The answer is 12."),
        ("auto", "We work it out.\n#### 7", r"\boxed{7}", "The answer is 8"),
        ("auto", r"We work it out. The answer is $\boxed{7}$.", "The answer is 7", "The answer is 8"),
        ("auto", "We work it out.\nThe answer is yes.", "The answer is Yes", "The answer is no"),
        ("math", r"We work it out: $\boxed{\frac{1}{2}}$.", r"\boxed{0.5}", r"\boxed{0.6}"),
        ("math", "We work it out.\n#### 7", r"\boxed{7}", r"\boxed{8}"),
        ("number", "We work it out.\n#### 7 apples", "So 7", "So 8"),
    ],
)
def test_forms_of_answers(tmp_path: Path, form: str, answer: str, right: str, wrong: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "Which?", "answer": answer}])
    task = gpo.make("task", "file", test_path=path, form=form)
    problem = task.problems("test")[0]
    assert task.score(problem, right).right
    assert task.score(problem, wrong).verdict == "wrong"


def test_a_column_without_an_answer_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    rows = [{"question": "1?", "answer": "1"}, {"question": "2?", "answer": "We work it out.\nIt is seven."}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: column 'answer' must hold a number, or a solution"):
        gpo.make("task", "file", path=path, form="number").problems("train")
    for form in ("auto", "math"):  # told as a sentence
        said = gpo.make("task", "file", path=path, form=form).problems("train")[1].answer
        assert said == "We work it out. It is seven."
    assert gpo.make("task", "file", path=path, form="text").problems("train")[1].answer == rows[1]["answer"]


def test_sentences_as_answers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": "?", "answer": text} for text in ("red", "Tom now has 7 apples.", "it has 7 of them now")]
    gpo.make("task", "file", path=write(tmp_path / "a.jsonl", rows)).problems("train")
    [said] = caplog.messages
    assert said.startswith("2 of 3 answers in column 'answer' are sentences, such as 'Tom now has 7 apples.' (")
    assert "line 2): a response is right only where it says the same" in said
    caplog.clear()
    gpo.make("task", "file", path=write(tmp_path / "b.jsonl", rows[:1])).problems("train")
    assert not caplog.messages


def test_without_a_reference_no_response_is_right() -> None:
    for form in ("auto", "math", "number", "text"):
        score = gpo.make("task", "file", form=form).score(Problem("q", "?", ""), r"The answer is \boxed{7}")
        assert (score.verdict, score.value) == ("wrong", 0.0)
        assert "7" in str(score.answer)


def test_conversations_end_with_the_question(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "1 + 1?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    path = write(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": 2}, {"prompt": "2 + 2?", "answer": 4}])
    task = gpo.make("task", "file", path=path, question="prompt", instruction="Think.", system="Be kind.")
    first, second = task.problems("train")
    assert (first.question, second.question) == ("1 + 1?", "2 + 2?")
    asked = {"role": "user", "content": "1 + 1?\n\nThink."}
    kept = from_json(Problem, json.loads(json.dumps(to_json(first))))  # as a run reads it again
    assert task.prompt(first) == task.prompt(kept) == [*prompt[:3], asked]
    assert task.prompt(second)[0] == {"role": "system", "content": "Be kind."}
    for turns_now in ([], prompt[:3], [{"role": "user", "content": ["a", "b"]}]):
        path = write(tmp_path / "b.jsonl", [{"prompt": turns_now, "answer": 2}])
        with pytest.raises(DataError, match=r"line 1: column 'prompt' must be a text, or turns such as"):
            gpo.make("task", "file", path=path, question="prompt").problems("train")


@pytest.mark.parametrize(
    "name",
    ["aime25", "bbh", "file", "gsm8k", "math", "mmlu", "mmlu_pro", "question", "reasoning_gym"],
)
def test_every_task_of_other_models_takes_a_turn_of_the_system(name: str) -> None:
    task = gpo.make("task", name, system="Be brief.")
    system, user = task.prompt(Problem("p", "Which?", "7"))
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].startswith("Which?")
    assert len(gpo.make("task", name).prompt(Problem("p", "Which?", "7"))) == 1


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
    with pytest.raises(ConfigError, match="form must be one of auto, math, number, text, got 'maths'"):
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


def test_the_tasks_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    own, near = re.findall(r"```python\n(.*?)```", page, re.S)
    for name, code in (("my_sums", own), ("my_near", near)):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    sums = check_component("task", Spec("task", "my_sums:Sums", {"largest": 8}))
    config = RunConfig(problems=9, test_problems=9)
    chosen = choose_problems(sums, config)
    assert not {each.id for each in chosen["train"]} & {each.id for each in chosen["test"]}
    problem = Problem("p", "What is 3 + 4?", "7")
    assert sums.prompt(problem) == [{"role": "user", "content": "What is 3 + 4? End with the number."}]
    texts = ("It is 7.", "8", "I give up", "")
    assert [checked_score(sums, problem, text).verdict for text in texts] == ["right", "wrong", *["ungradable"] * 2]

    path = write(tmp_path / "a.jsonl", [{"question": "?", "answer": "We work it out.\n#### 100"}])
    task = check_component("task", Spec("task", "my_near:Near", {"path": path}))
    [problem] = task.problems("train")
    found = [checked_score(task, problem, text) for text in ("It is 100.", "109 then", "111", "none")]
    assert [(score.value, score.verdict) for score in found] == [
        (1.0, "right"),
        (0.5, "wrong"),
        (0.0, "wrong"),
        (0.0, "ungradable"),
    ]
