"""Pictures of coloured squares."""

import pytest

from gpo.errors import ConfigError
from gpo.tasks.squares import Squares, draw


def test_answers_are_counted_in_what_is_drawn() -> None:
    colours = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
    for problem in Squares(rows=4, train_problems=20).problems("train"):
        cells = problem.metadata["cells"]
        pixels = draw(cells, 2)
        assert pixels.size == (8, 8)
        asked = problem.question.split()[2]
        seen = [pixels.getpixel((x, y)) for x in range(1, 8, 2) for y in range(0, 8, 2)]
        assert seen.count(colours[asked]) == int(problem.answer)


def test_splits_share_nothing_and_repeat() -> None:
    task = Squares(rows=2, train_problems=400, dev_problems=200, test_problems=200)
    whats = [{(p.question, p.metadata["cells"]) for p in task.problems(split)} for split in ("train", "dev", "test")]
    assert all(len(what) > 50 for what in whats)
    assert not whats[0] & whats[1] | whats[0] & whats[2] | whats[1] & whats[2]
    assert task.problems("dev") == task.problems("dev")
    assert Squares(seed=1).problems("dev") != Squares().problems("dev")


def test_a_prompt_has_the_picture_before_the_question_and_grading_reads_the_number() -> None:
    task = Squares()
    problem = task.problems("test")[0]
    [turn] = task.prompt(problem)
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert turn["content"][0]["image"].size == (24, 24)
    assert task.score(problem, f"Row 1 has 9.\nSo the answer is {problem.answer}.").right
    assert task.score(problem, "So the answer is 77.").verdict == "wrong"
    with pytest.raises(ConfigError, match="rows of at least 2"):
        Squares(rows=1)
