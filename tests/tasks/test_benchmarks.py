"""The benchmarks of the paper on their real files: published verdicts and reference answers are reproduced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import gpo
from gpo.errors import ConfigError

DATA = Path(os.environ.get("GPO_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no benchmark data at {DATA}; set GPO_DATA")


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPO_DATA", str(DATA))


@needs_data
def test_all_published_verdicts_on_gsm8k_are_reproduced() -> None:
    task = gpo.make("task", "gsm8k")
    problems = {problem.question: problem for problem in task.problems("test")}
    rows = [
        json.loads(line) for line in (DATA / "gsm8k" / "model_solutions.jsonl").read_text().rstrip("\n").split("\n")
    ]
    verdicts = [
        (task.score(problems[row["question"]], solution["solution"]).right, solution["is_correct"])
        for row in rows
        for solution in row.values()
        if isinstance(solution, dict)
    ] or [(task.score(problems[row["question"]], row["solution"]).right, row["is_correct"]) for row in rows]
    assert len(verdicts) == 2638
    assert all(ours == theirs for ours, theirs in verdicts)


@needs_data
@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("aime25", 30), ("math", 500), ("gsm8k", 1319)])
def test_reference_answers_are_right_and_changed_ones_are_not(name: str, count: int) -> None:
    task = gpo.make("task", name)
    problems = task.problems("test")
    assert len(problems) == count
    for problem in problems:
        for form in (r"So the answer is \boxed{%s}", "The final answer is **%s**", "So the answer is %s."):
            assert task.score(problem, form % problem.answer).right, (form, problem)
            assert not task.score(problem, form % f"{problem.answer}7").right, (form, problem)
        assert task.score(problem, "I do not know").verdict == "ungradable"


@needs_data
def test_mmlu_options_are_graded_by_letter() -> None:
    task = gpo.make("task", "mmlu", path=str(DATA / "mmlu_stem.jsonl"))
    problems = task.problems("test")
    assert len(problems) == 3018
    for problem in problems[:200]:
        assert task.score(problem, f"The answer is ({problem.answer.strip('()')}).").right
        other = "A" if "A" not in problem.answer else "B"
        assert task.score(problem, f"The answer is ({other}).").verdict == "wrong"


@needs_data
def test_a_question_with_a_line_separator_is_one_row() -> None:
    task = gpo.make("task", "gsm8k")
    problems = task.problems("train")
    assert len(problems) + len(task.problems("dev")) == 7473
    assert [p.id for p in problems if "\u2028" in p.question + p.metadata["solution"]] == ["gsm8k/train/2381"]
    assert problems[2381].question in task.prompt(problems[2381])[-1]["content"]


@needs_data
def test_gsm8k_asks_for_a_boxed_answer_and_with_examples_for_theirs() -> None:
    def asked(**settings: object) -> str:
        task = gpo.make("task", "gsm8k", **settings)
        return str(task.prompt(task.problems("train")[0])[-1]["content"])

    assert asked().endswith("put your final answer within \\boxed{}.")
    assert asked(shots=1).endswith('End with the line "#### NUMBER".')
    assert asked(shots=1, instruction="Be brief.").endswith("Be brief.")
    assert asked(instruction="") == gpo.make("task", "gsm8k").problems("train")[0].question


@needs_data
def test_gsm8k_can_be_kept_to_short_solutions() -> None:
    everything = {problem.id: problem for problem in gpo.make("task", "gsm8k").problems("dev")}
    short = gpo.make("task", "gsm8k", most_steps=2).problems("dev")
    assert len(short) == 140
    assert all(everything[problem.id] == problem for problem in short)
    assert all(problem.metadata["solution"].count("\n") == 2 for problem in short)
    with pytest.raises(ConfigError, match="most_steps is 1"):
        gpo.make("task", "gsm8k", most_steps=1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Tom has 3 * 4 = 12 pens.", "3 boxes of 4 pens are 12 pens.", True),
        ("He pays 1,200 dollars.", "10 * 120 = 1200.0", True),
        ("He has 12 pens.", "#### 12", False),
        ("So 10-4 is left.", "That is 4", True),
        ("So 3 - 7 = -4.", "That is 4.", False),
        ("Let us think.", "let us  think.", True),
        ("Let us think.", "", False),
    ],
)
def test_a_step_of_gsm8k_means_what_it_works_out(one: str, other: str, same: bool) -> None:
    task = gpo.make("task", "gsm8k")
    assert (task.meaning(one) == task.meaning(other)) is same
