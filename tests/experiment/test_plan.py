"""What a run will sample, said before it does."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpo.advice.pilot import pilot_of
from gpo.advice.work import Training, work_of
from gpo.cli import main
from gpo.config.options import resolve
from gpo.experiment.plan import foretell, look_ahead
from gpo.experiment.run import Run
from gpo.experiment.trial import Trial, try_training
from gpo.report.forecast import Forecast, in_words, print_look, training_in_words
from gpo.report.progress import short
from gpo.storage.events import Partial, Progress
from gpo.types import Completion, Pair, Request
from toy import toy_config

SMALL = {"task": "reasoner", "problems": "4", "test_problems": "4", "rollouts": "4"}


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
    assert f"{run.config.rollouts} responses to 1 question" in said
    assert "in all" in said
    narrow = Console(width=60, record=True, file=io.StringIO(), force_terminal=True)
    print_look(narrow, run.config, look, run.engine().tokenizer)
    said = narrow.export_text()
    own = said[said.index("responses to 1 question") :]
    assert max(map(len, own.splitlines())) <= 60
    assert look.prompt in said


@pytest.mark.parametrize(
    ("problems", "chunk", "calls"), [(8, 512, [1, 2, 4, 1]), (5, 2, [1] * 5), (6, 8, [1, 2, 2, 1])]
)
def test_a_longer_look_asks_twice_as_many_questions_each_time(
    problems: int, chunk: int, calls: list[int], tmp_path: Path
) -> None:
    run, asked = Run(tmp_path / "run", toy_config(problems=problems, chunk=chunk, rollouts=4)), []
    sample = run.engine().generate

    def generate(requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        asked.append(len(requests))
        time.sleep(0.2 if len(requests) == 1 else 0.05)
        return sample(requests, **settings)

    run.engine().generate = generate  # type: ignore[method-assign]
    look = look_ahead(run)
    assert len(look.groups) == problems
    assert asked == calls
    if calls[0] < max(calls):  # the last call, of a question that was left, does not count
        assert look.speed > look.tokens / problems / 0.2


@pytest.mark.parametrize(("method", "steps"), [("dpo", 2), ("kto", 5), ("grpo", 2), ("ppo", 2)])
def test_how_fast_training_is_is_found_by_a_few_steps(method: str, steps: int, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", resolve(SMALL | {"method": method, "method.trackers": "tensorboard"}))
    look, tokenizer = look_ahead(run, seconds=0.0), run.engine().tokenizer
    trial = try_training(run, look.groups, tokenizer)
    assert trial.steps == steps
    assert not (tmp_path / "run").exists()
    line = training_in_words(run, look, tokenizer, trial)
    assert f"({steps} steps that were timed and thrown away)" in line
    half = training_in_words(run, look, tokenizer, trial._replace(speed=trial.speed / 2))
    assert line != half


def test_pairs_of_a_trial_share_no_more_than_their_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one question, too: what sequences share is computed once, and its time would be that of fewer tokens."""
    given: list[Pair] = []
    monkeypatch.setattr("gpo.methods.dpo.DPO.update", lambda self, pairs, context: given.extend(pairs) or {})
    run = Run(tmp_path / "run", resolve(SMALL | {"method": "dpo"}))
    look = look_ahead(run, seconds=0.0)
    assert isnan(try_training(run, look.groups, run.engine().tokenizer).speed)  # it tells of no step
    assert len(given) == 3 * 16
    assert all(pair.chosen == run.engine().tokenizer.decode(pair.chosen_ids) for pair in given)
    responses = [ids for pair in given[:16] for ids in (pair.chosen_ids, pair.rejected_ids)]
    assert len(set(responses)) >= min(len(ids) for ids in responses)  # of 4 that were sampled, which may be alike


def test_a_trial_that_fails_costs_nothing_of_the_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, pairs: Any, context: Any) -> dict[str, float]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("gpo.methods.dpo.DPO.update", fail)
    command = [
        "run",
        str(tmp_path / "run"),
        "--task",
        "reasoner",
        "--problems",
        "2",
        "--test_problems",
        "2",
        "--dry-run",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "as the model is given it" in said
    assert "It was tried and failed" in said
    assert "out of memory" in said


@pytest.mark.parametrize("options", [{"launch": f"{sys.executable} -m"}, {"rollouts": "1"}])
def test_where_training_cannot_be_tried_it_comes_on_top(options: dict[str, str], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", resolve(SMALL | options))
    look, tokenizer = look_ahead(run, seconds=0.0), run.engine().tokenizer
    trial = try_training(run, look.groups, tokenizer)
    assert training_in_words(run, look, tokenizer, trial) == "Training comes on top."


def test_training_is_foretold_by_the_law_of_advise(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", resolve(SMALL | {"method": "dpo"}))
    look, tokenizer = look_ahead(run, seconds=0.0), run.engine().tokenizer
    pilot = pilot_of(look.groups, tokenizer)
    assert pilot is not None
    works = [work_of(run.config, arm, 4, pilot, Training.of(run.config)) for arm in run.config.arms]
    trained, scored = sum(work.trained for work in works), sum(work.scored for work in works)
    line = training_in_words(run, look, tokenizer, Trial((trained + scored / 3) / 83, 2))
    assert line.startswith(f"Training takes about 1:23 more: {short(trained)} tokens")
    unread = replace(look, groups=[replace(group, trajectories=()) for group in look.groups])
    assert training_in_words(run, unread, tokenizer, Trial(1.0, 2)) == "Training comes on top."


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
