"""What a run checks before it writes anything, and what may change later."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gpo import __version__
from gpo.cli import main
from gpo.config.components import Spec
from gpo.errors import ConfigError, DataError, EngineError, GPOError
from gpo.experiment.command import work
from gpo.experiment.run import Run
from gpo.storage.directory import RunDirectory
from gpo.types import Problem, Score, Split, StepScores
from toy import ToyTask, toy_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": Spec("method", "dpo", {"learning_rate": -1.0})}, "learning_rate"),
        ({"method": Spec("method", "dpo", {"loss_type": "foo"})}, "loss_type"),
        ({"arms": {"gpo": Spec("estimator", "monte_carlo", {"rollouts": -1})}}, "rollouts"),
        ({"task": Spec("task", "toy:ToyMethod")}, "task"),
        ({"arms": {"gpo": Spec("estimator", "toy:ToyTask")}}, "estimator"),
    ],
)
def test_a_setting_that_a_later_stage_would_refuse_is_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Run(tmp_path / "run", toy_config(**changes)).rollout()
    assert not (tmp_path / "run/config.json").exists()


@dataclass(frozen=True)
class Empty(ToyTask):
    def problems(self, split: Split) -> Sequence[Problem]:
        return []


def test_a_call_that_cannot_work_leaves_nothing_that_stands_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train problems"):
        Run(tmp_path, toy_config(task=Empty())).rollout()
    with pytest.raises(GPOError):
        Run(tmp_path, toy_config(engine=Spec("engine", "hf", {"model": str(tmp_path / "nothing")}))).rollout()
    assert RunDirectory(tmp_path).config_or_none() is None
    Run(tmp_path, toy_config()).rollout()
    assert Run(tmp_path).config.rollouts == 4


def test_a_directory_that_has_sampled_nothing_takes_new_settings(tmp_path: Path) -> None:
    Run(tmp_path, toy_config(problems=3)).problems("train")
    again = Run(tmp_path, toy_config(problems=5))
    assert len(again.problems("train")) == 5
    again.rollout()
    with pytest.raises(ConfigError, match="rollouts was 4, now 5"):
        Run(tmp_path, toy_config(problems=5, rollouts=5))


def test_what_only_arms_use_may_change_until_one_has_sampled_more_than_searches(tmp_path: Path) -> None:
    first = Run(tmp_path, toy_config(problems=3))
    first.locate("gpo")
    asked = first.files.rollouts.path.read_bytes()
    changed = {
        "problems": 5,
        "budget": 7.0,
        "test_samples": 3,
        "fresh_least": 0.4,
        "arms": {"plain": "none", "gpo": "monte_carlo"},
    }
    again = Run(tmp_path, toy_config(**changed))
    assert [problem.id for problem in again.problems("train")] == list("01234")
    assert len(again.rollout()) == 5
    assert again.files.rollouts.path.read_bytes().startswith(asked)
    again.reset("plain")
    with pytest.raises(ConfigError, match=r"budget was 7\.0, now 8\.0"):
        Run(tmp_path, toy_config(**changed | {"budget": 8.0}))


def test_a_search_that_is_there_stays_what_it_was_or_goes_with_its_arm(tmp_path: Path) -> None:
    Run(tmp_path, toy_config()).locate("gpo")
    other = Spec("estimator", "monte_carlo", {"rollouts": 1})
    with pytest.raises(ConfigError, match=r"arms\.gpo\.rollouts was 4, now 1"):
        Run(tmp_path, toy_config(arms={"plain": "none", "gpo": other}))
    Run(tmp_path, toy_config(arms={"plain": "none"})).reset("plain")


def test_fewer_questions_than_were_asked_are_refused(tmp_path: Path) -> None:
    Run(tmp_path, toy_config(problems=4)).rollout()
    with pytest.raises(ConfigError, match="has asked 4 questions, which are not the first of the 3"):
        Run(tmp_path, toy_config(problems=3)).rollout()


def test_more_problems_than_there_are_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Run(tmp_path, toy_config(problems=999)).problems("train")
    assert "The task has 8 train problems; all of them are taken, 999 were asked for." in caplog.text


def test_the_method_may_change_until_a_model_is_trained(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    run.reset("gpo")
    stronger = toy_config(method=Spec("method", "toy:ToyMethod", {"strength": 5.0}))
    again = Run(tmp_path, stronger)
    again.train("gpo")
    assert json.loads((tmp_path / "config.json").read_text())["method"]["strength"] == 5.0
    with pytest.raises(ConfigError, match=r"method\.strength was 5\.0, now 3\.0"):
        Run(tmp_path, toy_config())


def test_test_samples_may_change_until_something_is_evaluated(tmp_path: Path) -> None:
    Run(tmp_path, toy_config()).train("gpo")
    more = toy_config(test_samples=3)
    Run(tmp_path, more).evaluate("gpo")
    with pytest.raises(ConfigError, match="test_samples was 3, now 5"):
        Run(tmp_path, toy_config(test_samples=5))


@pytest.mark.usefixtures("unplotted")
def test_a_run_without_test_questions_trains_and_evaluates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Run(tmp_path, toy_config(test_problems=0)).all()
    assert not found.models
    assert (tmp_path / "arms/gpo/model").exists()
    assert "no test questions were asked" in (tmp_path / "table.md").read_text()
    with pytest.raises(ConfigError, match="Add --test_problems NUMBER"):
        Run(tmp_path).evaluate("gpo")
    of_training = (tmp_path / "problems.jsonl").read_text()

    every = ToyTask.problems

    def problems(task: ToyTask, split: Split) -> Sequence[Problem]:
        assert split == "test", "what was trained on is not asked for again"
        return every(task, split)

    monkeypatch.setattr(ToyTask, "problems", problems)
    assert Run(tmp_path, toy_config(test_problems=2)).all().questions == 2
    assert (tmp_path / "problems.jsonl").read_text().startswith(of_training)


def test_samples_whose_settings_are_gone_are_not_gone_on_with(tmp_path: Path) -> None:
    Run(tmp_path / "run", toy_config()).rollout()
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(ConfigError, match=r"has samples and no config\.json"):
        Run(tmp_path / "run", toy_config(seed=7)).locate("gpo")
    assert not (tmp_path / "run/config.json").exists()


def test_problems_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    class Odd(ToyTask):
        given: Any = ()

        def problems(self, split: Split) -> list[Problem]:
            return list(self.given)

    problem = ToyTask().problems("train")[0]
    for given, said in (
        ([1, 2], "gave a int among its train"),
        ([problem, problem], "several train problems with"),
        ([replace(problem, answer=5)], "gave a problem whose answer is 5. Expected a text"),
        ([replace(problem, metadata={"seen": {1}})], "metadata that are no JSON"),
    ):
        Odd.given = given
        with pytest.raises(DataError, match=said):
            Run(tmp_path / "run", toy_config(task=Odd())).rollout()
    assert not (tmp_path / "run/config.json").exists()


def test_a_run_that_is_not_there_is_not_begun_by_a_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no run .*mistyped"):
        work("evaluate", tmp_path / "mistyped", {})
    with pytest.raises(ConfigError, match="--test_samples 2"):
        work("evaluate", tmp_path / "mistyped", {"samples": "2"})
    assert not (tmp_path / "mistyped").exists()


def test_test_questions_that_are_trained_on_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Same(ToyTask):
        def problems(self, split: Split) -> list[Problem]:
            return ToyTask().problems("train")[:4]

    Run(tmp_path, toy_config(task=Same(), problems=4, test_problems=4)).rollout()
    assert "4 of 4 test questions are training questions too" in caplog.text
    caplog.clear()

    class OtherPictures(ToyTask):
        def problems(self, split: Split) -> list[Problem]:
            return [replace(each, metadata={"cells": split}) for each in ToyTask().problems("train")[:4]]

    Run(tmp_path / "b", toy_config(task=OtherPictures(), problems=4, test_problems=4)).rollout()
    assert "training questions too" not in caplog.text


def test_questions_may_be_mended_until_one_was_asked(tmp_path: Path) -> None:
    class Mended(ToyTask):
        broken = True

        def problems(self, split: Split) -> list[Problem]:
            return [replace(each, answer="") if self.broken else each for each in ToyTask().problems(split)]

        def score(self, problem: Problem, text: str) -> Score:
            return Score(float(bool(1 / len(problem.answer))), "right", text[-1:])

    with pytest.raises(DataError, match="None of the first 16 answers could be graded: ZeroDivisionError"):
        Run(tmp_path, toy_config(task=Mended())).rollout()
    with pytest.raises(DataError, match="None of the first 16 answers"):
        (run := Run(tmp_path, toy_config(task=Mended()))).rollout()
    Mended.broken = False
    assert len(run.rollout()) == 8
    assert Run(tmp_path, toy_config(task=Mended())).locate("gpo")


@dataclass(frozen=True)
class Broken(ToyTask):
    def score(self, problem: Problem, text: str) -> Score:
        raise ZeroDivisionError("division by zero")


def test_a_grader_that_always_raises_stops_after_the_first_chunk(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(task=Broken()))
    with pytest.raises(DataError, match=r"None of the first 16 answers could be graded: ZeroDivisionError"):
        run.rollout()
    assert not run.files.rollouts.read()


@dataclass(frozen=True)
class AlwaysWrong(ToyTask):
    def score(self, problem: Problem, text: str) -> Score:
        return Score(0.0, "wrong", text[-1:])


def test_questions_that_are_never_solved_are_told_after_the_first_rollouts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Run(tmp_path, toy_config(task=AlwaysWrong())).rollout()
    assert "All 32 first rollouts are wrong: nothing can be learned from them. Take easier questions." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Run(tmp_path / "short", toy_config(task=AlwaysWrong(), max_tokens=3)).rollout()
    assert "32 of 32 first rollouts were cut off at 3 tokens" in caplog.text
    assert "Raise --max_tokens" in caplog.text
    assert "Take easier" not in caplog.text


def test_traces_are_searched_and_not_trained_on(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    run.rollout()
    (tmp_path / "traces.json").write_text("{}")
    scores: list[StepScores] = run.locate("gpo")
    assert scores
    with pytest.raises(ConfigError, match="solutions that somebody else wrote"):
        run.all()


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "toy:ToyTask", "--engine", "gpo.toy:ChainEngine", "--method", "dpo"]
    assert main(["run", str(tmp_path / "run"), *options, "--method.learning_rate", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_version_that_goes_on_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path, toy_config()).rollout()
    file = tmp_path / "config.json"
    Run(tmp_path).rollout()
    assert "was begun by GPO" not in caplog.text
    file.write_text(json.dumps(json.loads(file.read_text()) | {"gpo": "0.0.1"}))
    before = file.read_bytes()
    run = Run(tmp_path, toy_config())
    run.rollout()
    assert f"{tmp_path} was begun by GPO 0.0.1 and goes on with {__version__}." in caplog.text
    assert f'"gpo": "{__version__}"' in run.files.events.path.read_text()
    assert file.read_bytes() == before
    assert run.files.events.seconds().keys() == {"rollout"}


def test_a_damaged_checkpoint_of_the_run_itself_may_be_trained_again(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"plain": "none"}))
    model = run.train("plain")
    whole = (model / "chain.json").read_bytes()
    (model / "chain.json").unlink()
    with pytest.raises(EngineError, match=f"If {model} is damaged, delete it to have it trained again"):
        Run(tmp_path).evaluate("plain")
    model.rmdir()
    with pytest.raises(EngineError) as error:
        Run(tmp_path).engine(model)
    assert "is damaged" not in str(error.value)
    again = Run(tmp_path)
    again.evaluate("plain")
    assert (model / "chain.json").read_bytes() == whole
