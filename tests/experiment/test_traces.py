"""Solutions that somebody else wrote become trajectories, are searched, and meet the marks of people."""

import json
from pathlib import Path

import pytest

from gpo.annotate.reading import read_mistakes
from gpo.errors import ConfigError, DataError
from gpo.experiment.run import Run
from gpo.experiment.traces import main, take
from gpo.rollout.segmenters import Newline
from gpo.storage.files import read_json
from gpo.tasks.data import read_rows
from gpo.types import Request

STEPS = [
    "[ ; stack: [",
    "( ; stack: [ (",
    'Now, we have reached the end. The final stack is "[ (".',
    "So the answer is ] )",
]
ROWS = [
    {"input": "[ (", "target": ") ]", "steps": STEPS, "mistake_index": 3},
    {"question": "[", "answer": "]", "steps": ["[ ; stack: [", "So the answer is ]"], "mistake_index": None},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dyck_languages.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_traces_are_the_trajectories_of_a_run(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    assert main([str(directory), "--file", str(file), "--estimator", "monte_carlo", "--seed", "7"]) == 0
    assert "2 traces, 1 right" in capsys.readouterr().out
    run = Run(directory)
    assert run.config.seed == 7
    first, second = [group.trajectories[0] for group in run.rollout()]
    assert first.completion.text == "\n".join(STEPS)
    assert (first.score.verdict, second.score.verdict) == ("wrong", "right")
    assert len(first.step_ends) == 4
    problem = run.problems("train")[0]
    assert problem.question.startswith("Complete the rest of the sequence")
    assert problem.question.endswith("Input: [ (")
    tokenizer = run.engine().tokenizer
    assert first.response_ids[-1] == tokenizer.eos_token_id
    assert Newline()(first.response_ids, tokenizer) == first.step_ends
    assert tokenizer.decode(first.response_ids[: first.step_ends[0]]) == STEPS[0] + "\n"
    # The log-probabilities are the model's own, as those of what it has sampled.
    [[sampled]] = run.engine().generate([Request(second.start.token_ids, 1, 60, 0)], logprobs=True)
    [given] = run.engine().logprobs([second.start.prompt_ids], [sampled.token_ids])
    assert given == pytest.approx(sampled.logprobs, abs=1e-3)
    assert second.completion.logprobs is not None
    assert read_json(directory / "traces.json") == {"source": "dyck_languages", "rows": 2, "traces": 2}
    assert len(second.completion.logprobs) == len(second.completion.token_ids)
    marks = read_mistakes(file, [first, second])
    assert [(mark.item, mark.step) for mark in marks] == [("dyck_languages/0", 3), ("dyck_languages/1", None)]


def test_they_are_searched_whatever_it_takes(tmp_path: Path, file: Path) -> None:
    run_directory = tmp_path / "run"
    take(run_directory, read_rows(file), "dyck_languages", {"estimator": "monte_carlo", "max_tokens": "60"})
    scores = Run(run_directory).locate("gpo")
    assert [score.trajectory_id for score in scores] == ["dyck_languages/0", "dyck_languages/1"]
    assert all(score.tokens > 0 for score in scores)


def test_a_response_is_cut_by_the_segmenter(tmp_path: Path) -> None:
    file = tmp_path / "dyck_languages.jsonl"
    row = {"input": "[ (", "target": "#### ) ]", "response": "\n".join(STEPS) + "\n"}
    file.write_text("\n".join(map(json.dumps, [row, {**ROWS[1]}])))
    options = {"segmenter": "newline", "segmenter.min_step_tokens": "6", "task": "file"}
    first, second = take(tmp_path / "run", read_rows(file), "x", options)
    [as_steps] = take(tmp_path / "other", read_rows(file)[1:], "x", options)
    assert first.completion.text == "\n".join(STEPS)
    assert 1 < len(first.step_ends) < 4
    assert first.step_ends[-1] == len(first.response_ids)
    assert second.step_ends == as_steps.step_ends
    assert len(second.step_ends) == 2
    assert Run(tmp_path / "run").problems("train")[0].answer == ") ]"
    file.write_text(json.dumps({"input": "1", "target": "1"}))
    with pytest.raises(DataError, match=r"expected a column steps or response, got input, target"):
        take(tmp_path / "third", read_rows(file), "x")


@pytest.mark.parametrize("task", ["file", "question", "gsm8k"])
def test_questions_come_from_the_file_whatever_the_task(
    tmp_path: Path, file: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPO_DATA", str(tmp_path / "nothing"))
    take(tmp_path / "run", read_rows(file), "x", {"task": task, "estimator": "monte_carlo", "max_tokens": "60"})
    run = Run(tmp_path / "run")
    assert [problem.id for problem in run.problems("train")] == ["x/0", "x/1"]
    assert run.problems("test") == []
    assert len(run.locate("gpo")) == 2


def test_another_model_is_given_an_instruction(tmp_path: Path, file: Path) -> None:
    from gpo.config.presets import model_path

    for model, task in (("reasoner", "reasoner"), (model_path("reasoner"), "question")):
        directory = tmp_path / task
        take(directory, read_rows(file), "x", {"model": model})
        assert read_json(directory / "config.json")["task"]["name"] == task


def test_what_cannot_be_taken_is_said(tmp_path: Path, file: Path) -> None:
    take(tmp_path / "run", read_rows(file), "x")
    with pytest.raises(ConfigError, match="has trajectories already"):
        take(tmp_path / "run", read_rows(file), "x")
    file.write_text('{"input": "1", "steps": ["a"]}\n')
    with pytest.raises(DataError, match=r"line 1: expected a column target or answer, got input, steps"):
        take(tmp_path / "other", read_rows(file), "x")
    file.write_text(json.dumps({"input": "1", "target": "1", "steps": ["word " * 2000]}))
    with pytest.raises(DataError, match="context of 1024 tokens holds none of the 1 traces"):
        take(tmp_path / "long", read_rows(file), "x")
    with pytest.raises(ConfigError, match=r"takes one directory, got 2: .* more"):
        main([str(tmp_path / "third"), "--file", str(file), "more"])


def test_the_text_before_a_question_is_that_of_the_generator() -> None:
    from gpo.config.presets import BEFORE_QUESTIONS
    from gpo.reasoner.dyck import QUESTION

    assert BEFORE_QUESTIONS["dyck_languages"] == QUESTION
