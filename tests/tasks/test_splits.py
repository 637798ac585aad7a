"""GSM8K, MATH, AIME, MMLU and MMLU-Pro on a few rows written by hand in the published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpo
from gpo.errors import ConfigError, DataError

WORD = {"question": "Ann has 2 pens and buys {n}. How many?", "answer": "2 + {n} = <<2+{n}={m}>>{m}\n#### 1,00{m}"}
MATH = {"problem": "What is $x{n}$?", "solution": "It is $\\boxed{{\\frac{{1}}{{{m}}}}}$.", "type": "Algebra"}
MMLU = {"question": "Which one is {n}?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "logic"}
PRO = {"question": "Which is {n}?", "options": list("abcdefghij"), "answer": "I", "category": "math"}


def rows(row: dict[str, Any], count: int) -> list[dict[str, Any]]:
    def filled(value: Any, n: int) -> Any:
        return value.format(n=n, m=n + 2) if isinstance(value, str) and "{" in value else value

    return [{key: filled(value, n) for key, value in row.items()} for n in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "gsm8k/train": rows(WORD, 6),
        "gsm8k/test": rows(WORD, 2),
        "math/train": rows(MATH, 6),
        "math500": [{"problem": "1?", "solution": "", "answer": "\\frac12", "subject": "Algebra"}],
        "aime/aime24": [{"problem": "1?", "answer": "025"}],
        "aime/aime25": [{"problem": "1?", "answer": "70"}],
        "mmlu/train": rows(MMLU, 3),
        "mmlu/dev": rows(MMLU, 2),
        "mmlu/test": [*rows(MMLU, 2), MMLU | {"subject": "law"}],
        "mmlu_pro/dev": rows(PRO, 2),
        "mmlu_pro/test": rows(PRO, 3),
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, content)) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "settings", "sizes", "answers"),
    [
        ("gsm8k", {"dev_size": 2}, (4, 2, 2), ["1002", "1003"]),
        ("math", {"dev_size": 1}, (5, 1, 1), ["\\frac12"]),
        ("mmlu", {}, (3, 2, 3), ["(C)", "(C)", "(C)"]),
        ("mmlu_pro", {"allow_test_training": True}, (3, 2, 3), ["(I)"] * 3),
    ],
)
def test_splits_are_kept_apart(
    folder: Path, name: str, settings: dict[str, Any], sizes: tuple[int, int, int], answers: list[str]
) -> None:
    task = gpo.make("task", name, path=str(folder), **settings)
    splits = [task.problems(split) for split in ("train", "dev", "test")]
    assert tuple(map(len, splits)) == sizes
    assert [p.answer for p in splits[2]] == answers
    if not settings.get("allow_test_training"):
        ids = [p.id for problems in splits for p in problems]
        assert len(set(ids)) == len(ids)
    for problem in splits[2]:
        assert problem.question in task.prompt(problem)[-1]["content"]
        assert task.score(problem, f"One line.\nSo the answer is $\\boxed{{{problem.answer}}}$").right
        assert task.score(problem, "I do not know.").verdict == "ungradable"


@pytest.mark.parametrize("name", ["aime24", "aime25", "mmlu_pro"])
def test_a_benchmark_without_training_questions_refuses_to_train(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"no 'train' split.*allow_test_training"):
        gpo.make("task", name, path=str(folder)).problems("train")
    forced = gpo.make("task", name, path=str(folder), allow_test_training=True)
    assert forced.problems("train") == forced.problems("test")


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_shots_are_development_questions_and_never_the_question_itself(folder: Path, name: str) -> None:
    task = gpo.make("task", name, path=str(folder), dev_size=3, shots=2)
    dev = task.problems("dev")
    for problem in [*dev, *task.problems("test")]:
        turns = task.prompt(problem)
        asked = [turn["content"].partition("\n")[0] for turn in turns if turn["role"] == "user"]
        assert len(asked) == 3
        assert asked.count(problem.question) == 1
        assert set(asked[:2]) <= {p.question for p in dev}
        assert "<<" not in turns[1]["content"]


def test_aime_answers_are_integers_compared_by_value(folder: Path) -> None:
    task = gpo.make("task", "aime24", path=str(folder))
    problem = task.problems("test")[0]
    assert problem.answer == "25"
    for right in ("25", "025", "25.0", "$25$"):
        assert task.score(problem, f"The answer is {right}").right
    for wrong in ("25.5", "250", "-25", "25 or 26"):
        assert task.score(problem, f"The answer is {wrong}").verdict == "wrong", wrong
    (folder / "aime" / "aime24.jsonl").write_text('{"problem": "1?", "answer": "1000"}\n')
    with pytest.raises(DataError, match=r"line 1: an answer is an integer from 0 to 999, got '1000'"):
        task.problems("test")


def test_mmlu_options_are_ten_at_most_here_and_graded_by_letter(folder: Path) -> None:
    task = gpo.make("task", "mmlu_pro", path=str(folder))
    problem = task.problems("test")[0]
    assert problem.question.splitlines()[1:] == ["Options:", *(f"({a.upper()}) {a}" for a in "abcdefghij")]
    assert task.score(problem, "The answer is (J).").verdict == "wrong"
    assert task.score(problem, "The answer is I.").right


def test_mmlu_subjects(folder: Path) -> None:
    assert len(gpo.make("task", "mmlu", path=str(folder), subjects="law").problems("test")) == 1
    with pytest.raises(DataError, match=r"no question of art. Subjects: law, logic"):
        gpo.make("task", "mmlu", path=str(folder), subjects="art").problems("test")
    (folder / "mmlu" / "test.jsonl").write_text(json.dumps(MMLU | {"answer": 4}))
    with pytest.raises(DataError, match="line 1: expected 0 to 3 or a letter A to D as answer, got '4'"):
        gpo.make("task", "mmlu", path=str(folder)).problems("test")


def test_rows_without_an_answer_are_named(folder: Path) -> None:
    (folder / "gsm8k" / "test.jsonl").write_text('{"question": "1?", "answer": "It is 2."}\n')
    with pytest.raises(DataError, match=r"line 1: expected '#### NUMBER' at the end of the answer, got 'It is 2.'"):
        gpo.make("task", "gsm8k", path=str(folder), dev_size=1).problems("test")
    (folder / "math" / "train.jsonl").write_text('{"problem": "1?", "solution": "It is 2."}\n' * 3)
    with pytest.raises(DataError, match=r"line \d: the solution has no \\boxed\{\} answer"):
        gpo.make("task", "math", path=str(folder), dev_size=1).problems("train")


def test_a_development_set_that_takes_all_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="GSM8K: dev_size must be from 1 to 5, got 6"):
        gpo.make("task", "gsm8k", path=str(folder), dev_size=6).problems("train")
