"""`gpo advise` on toy processes and on the embedded reasoner: what it samples is gone on with."""

import json
import shlex
from itertools import count
from pathlib import Path

import pytest

from gpo.advice import advise as advising
from gpo.advice.advise import advise, command_of, fit_budget, sample_pilot
from gpo.cli import main
from gpo.config.components import Spec
from gpo.errors import ConfigError
from gpo.experiment.run import Run
from gpo.storage.directory import RunDirectory
from gpo.storage.rounds import RoundState
from toy import toy_config

TOY = (
    *("--task", "toy:ToyTask", "--engine", "chain", "--method", "toy:ToyMethod", "--rollouts", "4", "--budget", "6"),
    *("--locate_per_problem", "2", "--reset_rollouts", "4", "--test_samples", "2", "--estimator", "monte_carlo"),
    *("--locate_share", "0.4", "--reset_turns", "0"),
)


def test_a_pilot_may_search_more_than_a_run_of_its_questions(tmp_path: Path) -> None:
    """Of trajectories that little pays for, the cheap ones alone would be seen."""
    for share in (0.4, 1e-6):
        run = Run(tmp_path / str(share), toy_config(arms={"gpo": "monte_carlo"}, locate_share=share))
        sample_pilot(run, 4)
        assert len(run.files.scores("gpo").read()) > 1


def test_a_run_goes_on_with_all_that_a_pilot_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "run")
    assert main(["advise", directory, *TOY, "--questions", "4", "--budget_tokens", "1,000"]) == 0
    said = capsys.readouterr().out
    files = RunDirectory(tmp_path / "run")
    asked, searched = files.rollouts.path.read_bytes(), files.scores("gpo").path.read_bytes()
    assert len(files.rollouts.read()) == 4
    assert files.scores("gpo").read()
    assert all(len(line) <= 80 for line in said.splitlines() if directory not in line)
    assert "with groups there is base success 0.05 to 0.93" in " ".join(said.split())
    told = json.loads((tmp_path / "run/advice.json").read_text())
    assert told["model"] is None
    assert "operations and memory are not known" in " ".join(said.split())
    command = told["command"]
    assert command in said
    words = shlex.split(command)
    assert words[:3] == ["gpo", "run", directory]
    assert main(words[1:]) == 0
    again = RunDirectory(tmp_path / "run")
    assert again.rollouts.path.read_bytes().startswith(asked)
    assert again.scores("gpo").path.read_bytes().startswith(searched)
    arm = told["arm"]
    counted = sum(
        len(t.completion.token_ids) for group in RoundState.of(again, arm).groups() for t in group.trajectories
    )
    assert counted == pytest.approx(1000, rel=0.1)
    assert sum(told["arms"][arm]["work"]["sampled"].values()) == pytest.approx(counted, rel=0.2)


def test_the_same_advice_again_samples_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    first, _ = sample_pilot(run, 4)
    kept = run.files.rollouts.path.read_bytes()
    again, _ = sample_pilot(Run(tmp_path, toy_config()), 4)
    assert again == first
    assert run.files.rollouts.path.read_bytes() == kept


def test_a_slow_model_is_asked_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advising, "FIRST", 2)
    clock = count(step=30)
    config = toy_config(arms={"gpo": Spec("estimator", "monte_carlo", {"rollouts": 1})}, max_tokens=100)
    found, _ = sample_pilot(Run(tmp_path, config), 8, now=lambda: float(next(clock)))
    assert len(found.asked) == 4
    assert len(found.searched) == 4


def test_a_round_of_few_questions_is_not_asked_more(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(round_problems=3, rounds=2))
    found, _ = sample_pilot(run, 8)
    assert len(found.asked) == 3
    assert len(run.rollout()) == 3


def test_a_budget_is_spent_on_more_questions_or_on_fewer(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(problems=6))
    pilot, model = sample_pilot(run, 4)
    each = 4 * pilot.response
    assert fit_budget(run.config, pilot, round(6 * 5 * each), 8).problems == 5
    more = fit_budget(run.config, pilot, round(60 * 8 * each), 8)
    assert (more.problems, more.budget) == (8, pytest.approx(60, abs=0.05))
    fewer = fit_budget(run.config, pilot, round(3 * 4 * each), 8)
    assert (fewer.problems, fewer.budget) == (4, pytest.approx(3, abs=0.05))
    with pytest.raises(ConfigError, match="do not pay for"):
        fit_budget(run.config, pilot, round(4 * each), 8)
    found = advise(run, pilot, model, budget_tokens=round(6 * 5 * each))
    assert found.questions == 5
    assert "--problems 5" in found.command


def test_a_run_without_a_choice_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"only": Spec("estimator", "none")}))
    found = advise(run, *sample_pilot(run, 4))
    assert found.expected is None
    assert found.arm == "only"
    assert command_of("here", run.config, run.config, "only") == "gpo run here"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "tpu"], "h100"),
        (["--budget_tokens", "0"], "expected at least 1"),
        (["a", "b"], "one run directory"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["advise", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--budget_tokens N" in said
    assert "--rollouts" in said
    assert max(map(len, said.splitlines())) <= 80


def test_advice_on_the_embedded_reasoner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--problems", "9", "--rollouts", "4", "--questions", "6", "--gpu", "a100", "--max_tokens", "120"]
    assert main(["advise", str(tmp_path / "run"), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    told = json.loads((tmp_path / "run/advice.json").read_text())
    assert told["model"]["parameters"] == 952_000
    assert told["pilot"]["questions"] == 6
    assert 0 < told["pilot"]["repeat"] <= 1
    assert "shared paths" in said
    assert "GPU time" in said
    assert told["command"].startswith(f"gpo run {tmp_path / 'run'}")
    assert told["arms"]["gpo"]["operations"]["training"] == 6 * 952_000 * told["arms"]["gpo"]["work"]["trained"]
