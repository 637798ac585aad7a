"""What is said of samples, worked out by hand."""

import pytest

from gpo.evaluation.scoreboard import count_rows, markdown, same_answer, score_models, score_rows
from gpo.tasks.math import MATH
from gpo.toy import ChainTask
from gpo.types import Completion, Group, Problem, Score, Start, Trajectory

RIGHT, WRONG, FAILED = Score(1.0, "right", "1"), Score(0.0, "wrong", "0"), Score(None, "failed", reason="OSError: x")


def group(number: int, *scores: Score) -> Group:
    start = Start(str(number), (1,))
    done = Completion((2,), "", "stop")
    return Group(start, tuple(Trajectory(f"s:{number}:{i}", start, done, s, (1,)) for i, s in enumerate(scores)))


def board(*groups: Group, task=None):
    problems = [Problem(g.start.problem_id, "", "") for g in groups]
    return score_models({"model": groups}, problems, task)


def wrong(answer: str) -> Score:
    return Score(0.0, "wrong", answer)


def test_answers_that_are_the_same_number_are_one_candidate() -> None:
    """Two right samples and three that say a half: written apart, the right answer had the majority."""
    found = board(group(0, RIGHT, RIGHT, wrong("1/2"), wrong("0.5"), wrong(".5")))
    assert found.models[0].majority.estimate == 0.0


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1/2", ".5", True),
        ("-0.50", "-1/2", True),
        ("1,000", "1000.0", True),
        ("Yes", " yes", True),
        ("1/2", "0.51", False),
        ("1/0", "0", False),
        ("1e9999999999", "1", False),
        ("12", "1 2", False),
        ("a", "b", False),
    ],
)
def test_the_same_answer(a: str, b: str, same: bool) -> None:
    assert same_answer(a, b) is same


def test_a_task_that_compares_says_which_answers_are_the_same() -> None:
    scores = (RIGHT, RIGHT, wrong(r"\frac{\pi}{2}"), wrong("π/2"), wrong(r"\frac{1}{2}\pi"))
    assert board(group(0, *scores)).models[0].majority.estimate == 1.0
    assert board(group(0, *scores), task=MATH()).models[0].majority.estimate == 0.0

    class Tens(ChainTask):
        def same(self, a: str, b: str) -> bool:
            return a[0] == b[0]

    found = board(group(0, RIGHT, RIGHT, wrong("31"), wrong("32"), wrong("33")), task=Tens())
    assert found.models[0].majority.estimate == 0.0


def test_answers_are_compared_only_where_it_matters() -> None:
    """Of k wrong answers that differ there are k(k-1)/2 comparisons, each in another process for mathematics."""

    class Never(ChainTask):
        def same(self, a: str, b: str) -> bool:
            raise AssertionError

    assert board(group(0, RIGHT, RIGHT, wrong("a"), FAILED), task=Never()).models[0].majority.estimate == 1.0
    assert board(group(0, wrong("a"), wrong("b"), wrong("c")), task=Never()).models[0].majority.estimate == 0.0


def test_questions_without_enough_graded_samples_are_counted_and_said() -> None:
    found = board(group(0, RIGHT, WRONG), group(1, RIGHT, FAILED), group(2, FAILED, FAILED), group(3))
    [model] = found.models
    assert model.passes[1].n == 2
    assert model.passes[2].n == 1
    assert model.short == {1: 2, 2: 3}
    assert dict(count_rows(found)[1])["questions left out"] == "2 of pass@1, 3 of pass@2"
    assert "pass@k leaves out a question with fewer than k graded samples" in markdown(found)
    whole = board(group(0, RIGHT, WRONG))
    assert dict(count_rows(whole)[1])["questions left out"] == "0"
    assert "leaves out" not in markdown(whole)


def test_accuracy_is_the_share_right_and_the_mean_score_stands_beside_it() -> None:
    partial = board(group(0, RIGHT, Score(0.5, "wrong", "a")), group(1, WRONG, Score(0.5, "wrong", "b")))
    [model] = partial.models
    assert model.passes[1].estimate == 0.25
    assert model.score is not None
    assert model.score.estimate == 0.5
    assert [row[0] for row in score_rows(partial)[1]] == ["pass@1", "pass@2", "mean score", "maj@2"]
    assert board(group(0, RIGHT, WRONG)).models[0].score is None


def test_where_all_questions_are_alike_the_interval_is_said_to_be_exact() -> None:
    nine = board(*(group(i, RIGHT) for i in range(9)))
    assert nine.models[0].passes[1].lower == pytest.approx(0.664, abs=1e-3)
    assert "by bootstrap over questions (exact, Clopper-Pearson, where all questions are alike)." in markdown(nine)
    mixed = board(group(0, RIGHT), group(1, WRONG), group(2, WRONG))
    assert "by bootstrap over questions." in markdown(mixed)


def test_what_a_grader_failed_on_is_no_sample_and_has_no_vote() -> None:
    failed = Score(None, "failed", "0", reason="OSError: x")
    [model] = board(group(0, RIGHT, WRONG, failed)).models
    assert (model.passes[1].estimate, model.passes[2].estimate) == (0.5, 1.0)
    assert model.majority.estimate == 0.5  # one of each


def test_a_gain_is_what_a_model_has_more_than_the_first() -> None:
    answers = {"first": [group(0, WRONG), group(1, WRONG)], "second": [group(0, RIGHT), group(1, WRONG)]}
    found = score_models(answers, [Problem("0", "", ""), Problem("1", "", "")])
    assert found.models[1].gain is not None
    assert found.models[1].gain.estimate == 0.5
