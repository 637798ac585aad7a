"""BIG-Bench Hard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpo.config.registry import lookup
from gpo.contracts import Task
from gpo.errors import ConfigError, DataError
from gpo.tasks.bbh import BBH, SUBTASKS

ROWS = {
    "navigate": [{"input": "Take 1 step. Do you return?\nOptions:\n- Yes\n- No", "target": "No"}],
    "dyck_languages": [{"input": "Input: [ [", "target": "] ]"}, {"input": "Input: (", "target": ")"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bbh").mkdir()
    for name, rows in ROWS.items():
        (tmp_path / "bbh" / f"{name}.json").write_text(json.dumps({"canary": "x", "examples": rows}))
    return tmp_path


@pytest.mark.parametrize("subtasks", [["navigate", "dyck_languages"], "navigate, dyck_languages"])
def test_problems_of_the_chosen_subtasks(folder: Path, subtasks: str | list[str]) -> None:
    problems = BBH(subtasks=subtasks, path=str(folder)).problems("test")
    assert [(p.id, p.answer) for p in problems] == [
        ("bbh/navigate/0", "No"),
        ("bbh/dyck_languages/0", "] ]"),
        ("bbh/dyck_languages/1", ")"),
    ]
    assert problems[0].metadata == {"subtask": "navigate"}
    assert BBH("navigate", path=str(folder / "bbh")).problems("test") == problems[:1]


def test_the_folder_of_the_environment_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPO_DATA", str(folder))
    assert len(BBH(["navigate"]).problems("test")) == 1


def test_training_on_the_test_split_is_refused_unless_forced(folder: Path) -> None:
    for split in ("train", "dev"):
        with pytest.raises(DataError, match=rf"BBH has no '{split}' split.*allow_test_training"):
            BBH(["navigate"], path=str(folder)).problems(split)
    forced = BBH(["navigate"], path=str(folder), allow_test_training=True)
    assert forced.problems("train") == forced.problems("test")


def test_an_unknown_subtask_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Unknown BBH sub-task 'navigat'. Did you mean 'navigate'"):
        BBH(["navigat"])


def test_prompts(folder: Path, tmp_path: Path) -> None:
    bare = BBH(["navigate"], path=str(folder), instruction="")
    problem = bare.problems("test")[0]
    assert bare.prompt(problem) == [{"role": "user", "content": problem.question}]
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"question": "Turn around. Do you return?", "response": "I stay.\\nSo the answer is Yes."}\n')
    asked = BBH(["navigate"], path=str(folder), instruction="Think.", examples=str(shots)).prompt(problem)
    assert [turn["role"] for turn in asked] == ["user", "assistant", "user"]
    assert asked[0]["content"] == "Turn around. Do you return?\n\nThink."
    assert asked[2]["content"] == f"{problem.question}\n\nThink."


def test_it_is_a_registered_task(folder: Path) -> None:
    task = lookup("task", "bbh")(subtasks=["navigate"], path=str(folder))
    assert isinstance(task, Task)
    assert task.score(task.problems("test")[0], "So the answer is No.").right


def test_every_real_reference_is_right_in_every_usual_form(data: Path) -> None:
    task = BBH(path=str(data))
    problems = task.problems("test")
    assert len(problems) == 6_511
    assert len({p.metadata["subtask"] for p in problems}) == len(SUBTASKS) == 27
    forms = ["So the answer is {}.", "The answer is: **{}**.", "step\n\n{}\n", r"So $\boxed{{{}}}$.", "#### {}"]
    for problem in problems:
        for form in forms:
            score = task.score(problem, form.format(problem.answer))
            assert score.right, (problem.id, form, score)


def test_every_other_real_answer_is_refused(data: Path) -> None:
    task = BBH(path=str(data))
    for name in SUBTASKS:
        problems = [p for p in task.problems("test") if p.metadata["subtask"] == name]
        answers = sorted({p.answer for p in problems})
        for i, problem in enumerate(problems):
            other = answers[(answers.index(problem.answer) + 1 + i % (len(answers) - 1)) % len(answers)]
            score = task.score(problem, f"So the answer is {other}.")
            assert score.value == 0.0, (problem.id, other, score)
