"""The reasoner's task: generated questions to train on, real ones to report on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpo.errors import ConfigError, DataError
from gpo.tasks.data import Hub
from gpo.tasks.generated import Generated
from gpo.types import Problem


def small(**settings: object) -> Generated:
    return Generated("navigate,web_of_lies", train_problems=5, dev_problems=3, test_problems=4, **settings)  # type: ignore[arg-type]


def test_training_questions_are_generated_and_repeat() -> None:
    problems = small().problems("train")
    assert problems == small().problems("train")
    assert [problem.metadata["subtask"] for problem in problems] == ["navigate"] * 5 + ["web_of_lies"] * 5
    assert {problem.metadata["source"] for problem in problems} == {"generated"}
    dev = {problem.question for problem in small().problems("dev")}
    assert not dev & {problem.question for problem in problems}
    assert small(seed=1).problems("train") != problems


def test_test_questions_are_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bbh").mkdir()
    for name in ("navigate", "web_of_lies"):
        rows = {"examples": [{"input": f"a {name} question", "target": "Yes"}]}
        (tmp_path / "bbh" / f"{name}.json").write_text(json.dumps(rows))
    monkeypatch.setenv("GPO_DATA", str(tmp_path))
    problems = small().problems("test")
    assert [problem.id for problem in problems] == ["bbh/navigate/0", "bbh/web_of_lies/0"]
    assert problems[0].metadata == {"subtask": "navigate", "source": "bbh"}


def test_without_real_questions_the_test_is_generated_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: Hub) -> None:
        raise DataError("no network")

    monkeypatch.delenv("GPO_DATA", raising=False)
    monkeypatch.setattr(Hub, "rows", unreachable)
    problems = small().problems("test")
    assert len(problems) == 8
    assert {problem.metadata["source"] for problem in problems} == {"generated"}


def test_a_path_without_questions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No data at"):
        small(path=str(tmp_path)).problems("test")


def test_a_small_family_gives_what_it_has() -> None:
    """Short expressions repeat; the task does not look for new ones for ever."""
    questions = [problem.question for problem in Generated("boolean_expressions", train_problems=50).problems("train")]
    assert len(questions) == len(set(questions)) == 50


def test_grading_and_prompt() -> None:
    problem = Problem("train/navigate/0", "Where?\nOptions:\n- Yes\n- No", "No", {"subtask": "navigate"})
    assert small().prompt(problem) == [{"role": "user", "content": problem.question}]
    assert small().score(problem, "(1, 0) is not the starting point. So the answer is No").right
    assert small().score(problem, "So the answer is Yes").verdict == "wrong"


def test_unknown_subtasks_are_named() -> None:
    with pytest.raises(ConfigError, match="navigate"):
        Generated("navigat")


def test_questions_of_chosen_sizes_are_kept_apart() -> None:
    task = Generated(sizes="web_of_lies 8-9, dyck_languages 3", train_problems=12, dev_problems=8, test_problems=8)
    questions = {split: task.problems(split) for split in ("train", "dev", "test")}  # type: ignore[arg-type]
    for problems in questions.values():
        lies = [problem for problem in problems if problem.subtask == "web_of_lies"]
        assert {problem.metadata["size"] for problem in lies} == {8, 9}
        assert all(problem.question.count(" says ") + 1 == problem.metadata["size"] for problem in lies)
        assert {problem.metadata["source"] for problem in problems} == {"generated"}
        assert all(len(p.question.split("Input: ")[1].split()) == 3 for p in problems if p.subtask == "dyck_languages")
    assert [problem.subtask for problem in questions["test"]][:9] == ["web_of_lies"] * 8 + ["dyck_languages"]
    texts = {split: {problem.question for problem in problems} for split, problems in questions.items()}
    assert not texts["train"] & texts["dev"]
    assert not texts["test"] & (texts["train"] | texts["dev"])
    # another seed and other sizes do not move a question into another split: short ones come up again
    other = Generated(sizes="dyck_languages 3-4", train_problems=200, seed=5).problems("train")
    assert {problem.question for problem in other} & texts["train"]
    assert not {problem.question for problem in other} & (texts["dev"] | texts["test"])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("navigat 3", "navigate"),
        ("web_of_lies 8-99", "people from 2 to 16"),
        ("web_of_lies", "people"),
        ("", "sub-task"),
    ],
)
def test_sizes_that_no_family_has_are_refused(sizes: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Generated(sizes=sizes)


def test_no_question_is_in_two_splits() -> None:
    task = Generated("boolean_expressions,navigate", path=None)  # few enough questions that splits would share some
    texts = [{problem.question for problem in task._generated(split)} for split in ("train", "dev", "test")]
    assert [len(each) for each in texts] == [500, 200, 500]
    assert not texts[0] & texts[1]
    assert not texts[2] & (texts[0] | texts[1])
