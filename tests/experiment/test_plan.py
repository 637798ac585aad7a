"""What a run will sample, said before it does."""

from __future__ import annotations

import io
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
from rich.console import Console

from gpo.cli import main
from gpo.config.options import resolve
from gpo.experiment.plan import foretell, foretell_training, look_ahead
from gpo.experiment.run import Run
from gpo.report.forecast import Forecast, in_words, print_look, training_ahead
from gpo.storage.directory import Partial, Progress
from gpo.types import PairSettings
from toy import toy_config


def test_a_plan_counts_what_each_arm_may_sample() -> None:
    config = toy_config(
        arms={"plain": "none", "random": "random_matched", "gpo": "adaptive"},
        rollouts=4, budget=2.5, locate_share=0.4, test_samples=3,
    )  # fmt: skip
    planned = foretell(config, 10, 20, 5.0)
    assert planned == {
        "first rollouts": 200,
        "plain": 300,
        "random": 300,
        "gpo": 300,
        "evaluation": 4 * 20 * 3 * 5,
    }


def test_later_rounds_sample_as_much_as_the_first() -> None:
    config = toy_config(arms={"gpo": "adaptive"}, rollouts=4, budget=2.0, rounds=3, round_problems=5)
    assert foretell(config, 10, 20, 5.0)["first rollouts"] == 100
    assert foretell(config, 10, 20, 5.0)["gpo"] == 3 * 200 - 100


def test_a_plan_is_about_what_a_run_samples(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    run.all()
    first = run.files.rollouts.read()
    tokens = sum(len(t.completion.token_ids) for group in first for t in group.trajectories)
    length = tokens / sum(len(group.trajectories) for group in first)
    planned = run.foretell(length)
    assert planned["first rollouts"] == pytest.approx(tokens, abs=1)
    for arm in run.config.arms:  # each pays for its search, whoever sampled it
        spent = run.spent(arm, 1) - tokens
        assert 0.8 * planned[arm] < spent < 1.1 * planned[arm]


def test_a_look_writes_nothing_and_shows_prompt_and_steps(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", toy_config())
    look = look_ahead(run, seconds=0.0)
    assert not (tmp_path / "run").exists()
    assert len(look.groups) == 1
    assert look.tokens == sum(len(t.completion.token_ids) for t in look.groups[0].trajectories)
    assert look.speed > 0
    console = Console(width=100, record=True, file=io.StringIO())
    print_look(console, run.config, look, run.engine().tokenizer)
    said = console.export_text()
    assert look.prompt in said
    assert f"{run.config.rollouts} responses to 1 questions" in said
    assert "in all" in said
    assert "Training comes on top.\nNothing was written" in said


def test_a_longer_look_asks_twice_as_many_questions_each_time(tmp_path: Path) -> None:
    run, asked = Run(tmp_path / "run", toy_config(problems=7)), []
    engine = run.engine()
    sample = engine.generate
    engine.generate = lambda requests, **settings: asked.append(len(requests)) or sample(requests, **settings)  # type: ignore[method-assign]
    assert len(look_ahead(run).groups) == 7
    assert asked == [1, 2, 4]


def test_training_is_bounded_by_pairs_or_by_what_may_be_sampled() -> None:
    config = toy_config(rollouts=4, budget=2.0, rounds=3, round_problems=5)
    pairs = foretell_training(config, 10, 20.0, 10.0, pairs=True)
    assert pairs == 3 * 5 * 16 * 2 * 30
    few = replace(config, pairs=PairSettings(most=8))
    assert foretell_training(few, 10, 20.0, 10.0, pairs=True) == 3 * 8 * 2 * 30
    # 20 responses, and tokens for 20 more, that are 40 behind a reset.
    assert foretell_training(config, 10, 20.0, 10.0, pairs=False) == 3 * 60 * 30


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo", "ppo"])
def test_how_long_training_takes_is_found_by_a_few_steps(method: str, tmp_path: Path) -> None:
    options = {"method": method, "task": "reasoner", "problems": "4", "test_problems": "4", "rollouts": "4"}
    run = Run(tmp_path / "run", resolve(options))
    look = look_ahead(run, seconds=0.0)
    tokens, speed = training_ahead(run, look)
    assert tokens > 0
    assert 10 < speed < 1e7
    assert not (tmp_path / "run").exists()
    console = Console(width=100, record=True, file=io.StringIO())
    print_look(console, run.config, look, run.engine().tokenizer, (tokens, speed))
    assert "by 2 steps that were thrown away" in console.export_text()


def test_training_in_processes_of_its_own_is_not_tried(tmp_path: Path) -> None:
    options = {"task": "reasoner", "problems": "4", "test_problems": "4", "launch": "torchrun --nproc_per_node 2 -m"}
    run = Run(tmp_path / "run", resolve(options))
    assert isnan(training_ahead(run, look_ahead(run, seconds=0.0))[1])


def test_the_command_looks_and_leaves_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "run",
        str(tmp_path / "run"),
        "--task",
        "chain",
        "--engine",
        "chain",
        "--method",
        "dpo",
        "--problems",
        "3",
    ]
    assert main([*command, "--dry-run"]) == 0
    assert "as the model is given it" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["locate", str(tmp_path / "run"), "--dry-run"]) == 2
    assert main([*command, "--dry-run", "--samples", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "--dry-run goes with gpo run" in said
    assert "takes what is sampled already" in said


def test_how_long_sampling_takes_is_said_once_with_the_first_rollouts() -> None:
    console, shown = Console(width=200, record=True, file=io.StringIO()), []
    forecast = Forecast(shown.append, console, lambda length: {"first rollouts": round(80 * length), "gpo": 600}, 8)
    begun = Partial("rollout", None, 0, 10, "problems", 0, 0.0, 10, 0)
    piece = Partial("rollout", None, 0, 10, "problems", 80, 4.0, 10, 400)  # of 2 questions, 5 tokens a response
    for progress in (begun, piece, piece, Progress("rollout", None, 10, 10, "problems", 400, 20.0)):
        forecast(progress)
    assert len(shown) == 4
    assert console.export_text().strip() == in_words({"first rollouts": 400, "gpo": 600}, 20.0)
    assert "0:50 in all at 20 tok/s (1000 tokens: first rollouts 400, gpo 600)" in in_words(
        {"first rollouts": 400, "gpo": 600}, 20.0
    )


def test_a_run_that_goes_on_or_is_fast_says_nothing() -> None:
    console = Console(record=True, file=io.StringIO())
    forecast = Forecast(lambda progress: None, console, lambda length: {}, 8)
    forecast(Progress("rollout", None, 5, 10, "problems", 400, 20.0))
    forecast(Partial("rollout", None, 5, 10, "problems", 80, 4.0, 5, 400))
    assert console.export_text() == ""
