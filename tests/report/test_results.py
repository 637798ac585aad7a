from pathlib import Path

import pytest

from gpo.errors import DataError
from gpo.report.results import accuracy_rows, markdown, percent, summarize, token_rows
from gpo.statistics import Interval
from gpo.storage.directory import RunDirectory
from gpo.storage.files import write_json, write_text
from gpo.types import Completion, Group, Problem, Score, Start, StepScores, Trajectory, Verdict

VALUES: dict[Verdict, float | None] = {"right": 1.0, "wrong": 0.0, "ungradable": 0.0, "failed": None}


def group(problem: str, *verdicts: Verdict, prefix: tuple[int, ...] = ()) -> Group:
    start = Start(problem, (1,), prefix)
    return Group(
        start,
        tuple(
            Trajectory(f"{problem}{i}", start, Completion((5, 5), "", "stop"), Score(VALUES[v], v), (2,))
            for i, v in enumerate(verdicts)
        ),
    )


@pytest.fixture
def files(tmp_path: Path) -> RunDirectory:
    """Two arms; two questions of sub-task x and one of y, of which `gpo` was not asked the last yet."""
    files = RunDirectory(tmp_path)
    arms = {"plain": {"name": "none"}, "gpo": {"name": "monte_carlo"}}
    write_json(
        tmp_path / "config.json",
        {"gpo": "0", "task": {"name": "toy"}, "model": "m", "arms": arms, "budget": 4.0, "test_samples": 2},
    )
    questions = [Problem(name, "", "", {"subtask": name[0], "source": "toy questions"}) for name in ("x1", "y1", "x2")]
    files.write_problems({"train": [], "test": questions})
    files.rollouts.append([group("p", "right", "wrong")])
    search = (group("p", "right", prefix=(5,)),)
    files.scores("gpo").append([StepScores("p0", (0.5, 1.0), (1, 1), (0, 1), (1, 1), (0.5,), 0, 0, 2, search)])
    files.resets("gpo").append([group("p", "right", "right", "wrong"), group("p", "right")])
    write_text(files.pairs("gpo"), "{}\n{}\n")
    files.evaluation("base").append([group("x1", "right", "wrong"), group("y1", "wrong", "wrong")])
    files.evaluation("base").append([group("x2", "right", "right")])
    files.evaluation("gpo").append([group("x1", "right", "right"), group("y1", "ungradable", "failed")])
    return files


def test_accuracy_is_compared_on_the_questions_that_all_models_answered(files: RunDirectory) -> None:
    results = summarize(files)
    base, trained = results.models
    assert (base.name, trained.name, results.questions) == ("base", "gpo", 2)
    assert base.overall.estimate == 0.25
    assert trained.overall.estimate == 0.5
    assert trained.against["base"].estimate == 0.25
    assert base.against == {}
    assert {name: interval.estimate for name, interval in trained.subtasks.items()} == {"x": 1.0, "y": 0.0}
    assert trained.verdicts == {"right": 2, "wrong": 0, "ungradable": 1, "failed": 1}


def test_every_sampled_token_is_counted_once_for_each_arm(files: RunDirectory) -> None:
    plain, searched = summarize(files).arms
    assert plain.tokens == {"rollout": 4, "locate": 0, "reset": 0}
    assert searched.tokens == {"rollout": 4, "locate": 2, "reset": 8}
    assert (searched.located, searched.critical, searched.reset_starts, searched.pairs) == (1, 1, 1, 2)
    assert plain.pairs is None
    assert searched.budget == 16
    header, rows = token_rows(summarize(files))
    assert dict(zip(header, rows[1], strict=True)) == {
        "sampled tokens": "gpo (monte_carlo)",
        **{"rollout": "4", "locate": "2", "reset": "8", "all": "14", "of budget": "87.5%", "evaluation": "8"},
        **{"searched": "1", "critical": "1", "reset starts": "1", "pairs": "2"},
    }


def test_the_table_says_what_was_asked_and_found(files: RunDirectory) -> None:
    text = markdown(summarize(files))
    assert "Model m on task toy: 2 test questions (toy questions), 2 samples each" in text
    assert "| **all questions** | 25.0 [" in text
    assert "| minus base, paired |  | +25.0 [" in text
    assert "- gpo: 2 right, 0 wrong, 1 ungradable, 1 failed" in text


def test_a_run_without_evaluation_has_token_rows_only(tmp_path: Path) -> None:
    arms = {"plain": {"name": "none"}}
    write_json(
        tmp_path / "config.json", {"task": {"name": "t"}, "model": "m", "arms": arms, "budget": 2.0, "test_samples": 1}
    )
    results = summarize(RunDirectory(tmp_path))
    assert accuracy_rows(results) == (["accuracy in %"], [["**all questions**"]])
    assert token_rows(results)[1] == [["plain (none)", "0", "0", "0", "0", "-", "-", "0", "0", "0", "-"]]


def test_an_evaluated_problem_that_is_not_the_runs_is_refused(files: RunDirectory) -> None:
    files.write_problems({"train": [], "test": []})
    with pytest.raises(DataError, match=r"evaluated problem 'x1' is not in problems\.jsonl"):
        summarize(files)


def test_numbers_are_shown_in_percent() -> None:
    assert percent(Interval(0.5, 0.25, 0.755, 3)) == "50.0 [25.0, 75.5]"
    assert percent(Interval(-0.1, -0.2, 0.0, 3), signed=True) == "-10.0 [-20.0, +0.0]"
    assert percent(Interval(float("nan"), float("nan"), float("nan"), 0)) == "-"
