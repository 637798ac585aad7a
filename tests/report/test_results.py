import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from gpo.errors import DataError
from gpo.report.plots import accuracy_figure
from gpo.report.progress import print_results
from gpo.report.results import accuracy_rows, markdown, origin, percent, strata_rows, summarize, token_rows
from gpo.statistics import Interval
from gpo.storage.chunks import Chunks
from gpo.storage.directory import RunDirectory
from gpo.storage.files import read_json, write_json, write_text
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
    assert (base.mean_score, trained.mean_score) == (None, None)
    assert trained.verdicts == {"right": 2, "wrong": 0, "ungradable": 1, "failed": 1}


def test_results_are_told_by_how_often_a_question_was_solved_before_training_and_by_its_steps(
    files: RunDirectory,
) -> None:
    results = summarize(files)
    told = {each.name: each for each in results.strata}
    assert list(told) == ["never", "rarely", "sometimes", "nearly always", "always"]
    assert [(each.training, each.test) for each in results.strata] == [(0, 1), (0, 0), (1, 1), (0, 0), (0, 0)]
    assert told["sometimes"].models["gpo"].estimate == 1.0
    assert told["never"].models["gpo"].estimate == 0.0  # one wrong, one that could not be graded
    assert [(each.training, each.test) for each in results.horizons] == [(1, 2), (0, 0), (0, 0), (0, 0)]
    assert "compare the trained models with each other" in markdown(results)
    header, rows = strata_rows(results)
    assert header == ["before training", "training questions", "test questions", "base", "gpo"]
    assert [row[:3] for row in rows] == [["never", "0", "1"], ["sometimes", "1", "1"], ["up to 8 steps", "1", "2"]]
    assert "| sometimes | 1 | 1 | 50.0 [" in markdown(results)


def test_every_sampled_token_is_counted_once_for_each_arm(files: RunDirectory) -> None:
    plain, searched = summarize(files).arms
    assert plain.tokens == {"rollout": 4, "locate": 0, "reset": 0}
    assert searched.tokens == {"rollout": 4, "locate": 2, "reset": 8}
    assert (searched.located, searched.critical, searched.reset_starts, searched.pairs) == (1, 1, 0, 2)
    assert plain.pairs is None
    assert searched.budget == 16
    header, rows = token_rows(summarize(files))
    assert dict(zip(header, rows[1], strict=True)) == {
        "sampled tokens": "gpo (monte_carlo)",
        **{"rollout": "4", "locate": "2", "reset": "8", "all": "14", "of budget": "87.5%", "evaluation": "8"},
        **{"searched": "1", "critical": "1", "reset starts": "0", "pairs": "2"},
    }


def test_the_table_says_what_was_asked_and_found(files: RunDirectory) -> None:
    text = markdown(summarize(files))
    assert "Model m on task toy: 2 test questions (toy questions), 2 samples each" in text
    assert "| **all questions** | 25.0 [" in text
    assert "| minus base, paired |  | +25.0 [" in text
    assert "- gpo: 2 right, 0 wrong, 1 ungradable, 1 failed" in text


def test_one_sample_is_no_plural(files: RunDirectory) -> None:
    results = replace(summarize(files), samples=1, questions=1)
    assert (
        origin(results)
        == "Model m on task toy: 1 test question (toy questions), 1 sample each at the run's temperature."
    )
    assert accuracy_figure(results).axes[0].get_title().startswith("1 test question, 1 sample each")


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
    with pytest.raises(DataError, match=r"base\.jsonl has answers, and their questions are gone"):
        summarize(files)


def test_numbers_are_shown_in_percent() -> None:
    assert percent(Interval(0.5, 0.25, 0.755, 3)) == "50.0 [25.0, 75.5]"
    assert percent(Interval(-0.1, -0.2, 0.0, 3), signed=True) == "-10.0 [-20.0, +0.0]"
    assert percent(Interval(float("nan"), float("nan"), float("nan"), 0)) == "-"


def without_line(path: Path, line: int) -> None:
    """Remove a line; the first of a chunk of two, so that its other row looks like a chunk of one."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: line - 1] + lines[line:]))


def test_a_question_that_is_lost_or_there_twice_is_never_paired_with_another(files: RunDirectory) -> None:
    answers = files.evaluation("gpo")
    without_line(answers.path, 1)
    with pytest.raises(DataError, match=r"gpo\.jsonl:1: problem 'y1' where 'x1' .* Delete this line and all after it"):
        summarize(files)
    answers.path.unlink()
    Chunks(answers.path, Group).append([group("x1", "right", "right"), group("x1", "wrong", "wrong")])
    with pytest.raises(DataError, match=r"gpo\.jsonl:2: problem 'x1' where 'y1' of problems\.jsonl was expected"):
        summarize(files)


def test_the_number_of_samples_is_that_of_the_answers(files: RunDirectory) -> None:
    write_json(files.path / "config.json", files.config() | {"test_samples": 3})
    with pytest.raises(DataError, match=r"base\.jsonl:1: 2 samples of 'x1', but config\.json says 3"):
        summarize(files)


def test_a_search_of_a_trajectory_that_is_not_there_is_named(files: RunDirectory) -> None:
    unknown = replace(files.scores("gpo").read()[0], trajectory_id="elsewhere")
    files.scores("gpo").append([unknown])
    with pytest.raises(DataError, match=r"scores\.jsonl:2: trajectory 'elsewhere' is not in .*rollouts\.jsonl"):
        summarize(files)


def test_accuracy_is_the_share_right_and_partial_scores_have_a_line_of_their_own(files: RunDirectory) -> None:
    half = group("x1", "wrong", "right")
    scores = (Score(0.5, "wrong"), Score(1.0, "right"))
    trajectories = tuple(replace(t, score=score) for t, score in zip(half.trajectories, scores, strict=True))
    path = files.evaluation("gpo").path
    path.unlink()
    Chunks(path, Group).append([replace(half, trajectories=trajectories)])
    base, trained = summarize(files).models
    assert trained.overall.estimate == 0.5
    assert trained.mean_score is not None
    assert trained.mean_score.estimate == 0.75
    assert base.mean_score is None
    [row] = [row for row in accuracy_rows(summarize(files))[1] if row[0] == "mean score"]
    assert row[1] == ""
    assert row[2].startswith("75.0 [")


def test_the_model_is_the_one_that_the_engine_was_given(files: RunDirectory) -> None:
    write_json(files.path / "config.json", files.config() | {"engine": {"name": "hf", "model": "other"}})
    assert summarize(files).model == "other"
    assert "Model other on task toy" in markdown(summarize(files))


def test_an_update_that_was_skipped_is_told(files: RunDirectory) -> None:
    assert not any(row[0] == "training" for row in accuracy_rows(summarize(files))[1])
    write_json(files.arm("gpo") / "training.json", {"skipped": 1.0})
    assert accuracy_rows(summarize(files))[1][-1] == ["training", "", "not trained: no usable pair"]
    assert "| training |  | not trained: no usable pair |" in markdown(summarize(files))
    files.pairs("gpo").unlink()
    assert accuracy_rows(summarize(files))[1][-1] == ["training", "", "not trained: equal rewards"]
    write_json(files.arm("gpo", 2) / "training.json", {"skipped": 0.0})
    assert accuracy_rows(summarize(files))[1][-1] == ["training", "", "not trained in rounds 1 of 2: equal rewards"]


def test_tables_say_which_intervals_they_have_and_what_these_leave_out(files: RunDirectory) -> None:
    for text in (markdown(summarize(files)), printed(files)):
        words = " ".join(text.split())
        assert "Clopper and Pearson's where all came out alike" in words
        assert "not the training: another seed may differ by more" in words


def printed(files: RunDirectory) -> str:
    text = StringIO()
    print_results(Console(file=text, width=200, force_terminal=True, color_system=None), summarize(files))
    return text.getvalue()


def test_names_neither_steer_a_terminal_nor_are_taken_for_markup(files: RunDirectory) -> None:
    evil = "[red]x[/red]\x1b]0;owned\x07\u202e|"
    config = files.config() | {"model": evil, "task": {"name": evil}}
    write_json(files.path / "config.json", config | {"arms": {"gpo": {"name": evil}}})
    files.write_problems(
        {"test": [Problem(n, "", "", {"subtask": evil + n[0], "source": evil}) for n in ("x1", "y1", "x2")]}
    )
    shown = printed(files)
    for text in (shown, markdown(summarize(files))):
        assert not {"\x1b]", "\x07", "\u202e"} & set(text)
        assert "\x1b]" not in text
        assert text.count("[red]x[/red]⟨U+001B⟩]0;owned⟨U+0007⟩⟨U+202E⟩") >= 5


def test_every_separator_of_lines_may_be_in_what_a_table_says(files: RunDirectory) -> None:
    odd = "a\u2028b\u2029c\x85d\x0ce"
    files.write_problems({"test": [Problem(n, odd, odd, {"subtask": odd}) for n in ("x1", "y1", "x2")]})
    pair = json.dumps({"prompt": odd}, ensure_ascii=False)
    write_text(files.pairs("gpo"), f"{pair}\n{pair}\n")
    results = summarize(RunDirectory(files.path))
    assert results.arms[1].pairs == 2
    assert len(read_json(files.path / "config.json")["arms"]) == len(results.arms)
    assert not set("\u2028\u2029\x85\x0c") & set(markdown(results))
