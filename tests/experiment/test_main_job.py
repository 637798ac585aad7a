"""The main job as `make demo` does it, on a few questions: the shipped reasoner, its engine, DPO, the report."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpo.cli import main
from gpo.experiment.run import Run
from gpo.preferences.pairs import read_pairs
from gpo.storage.directory import RunDirectory
from gpo.storage.rounds import RoundState
from gpo.types import tokens_of

OPTIONS = (
    *("--problems", "9", "--rollouts", "4", "--test_problems", "9", "--test_samples", "2", "--test_split", "dev"),
    *("--locate_per_problem", "1", "--max_tokens", "300", "--method.batch_size", "4"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the command line, in a process of its own as a user has it."""
    directory = tmp_path_factory.mktemp("main") / "run"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "gpo", "run", str(directory), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    assert "Everything is in" in done.stdout
    return Run(directory)


def test_every_arm_has_sampled_the_same_number_of_tokens(run: Run) -> None:
    groups = run.files.rollouts.read()
    longest = max(len(t.completion.token_ids) for group in groups for t in group.trajectories)
    for arm in ("plain", "random", "gpo"):
        state = RoundState.of(run.files, arm)
        assert abs(tokens_of(state.groups()) - run.allowance(state)) <= longest


def test_the_shipped_reasoner_is_right_sometimes(run: Run) -> None:
    scores = [t.score.value for group in run.files.evaluation("base").read() for t in group.trajectories]
    assert 0 < sum(score or 0 for score in scores) < len(scores)


def test_pairs_share_their_prefix_and_differ_in_verdict(run: Run) -> None:
    known = {t.id: t for group in RoundState.of(run.files, "gpo").groups() for t in group.trajectories}
    pairs = read_pairs(run.files.pairs("gpo"))
    assert any(pair.prefix_ids for pair in pairs)
    for pair in pairs:
        chosen, rejected = known[pair.provenance["chosen_id"]], known[pair.provenance["rejected_id"]]
        assert chosen.score.right
        assert not rejected.score.right
        assert chosen.response_ids == pair.prefix_ids + pair.chosen_ids
        assert rejected.response_ids == pair.prefix_ids + pair.rejected_ids


def test_training_changed_each_arm_and_says_how(run: Run) -> None:
    weights = {(run.files.model(arm) / "model.safetensors").read_bytes() for arm in ("plain", "random", "gpo")}
    assert len(weights) == 3
    for arm in ("plain", "random", "gpo"):
        rows = [json.loads(line) for line in (run.files.arm(arm) / "training.jsonl").read_text().splitlines()]
        assert rows
        assert all(math.isfinite(row["loss"]) for row in rows)


def test_values_lie_between_0_and_1_and_end_at_the_reward(run: Run) -> None:
    known = {t.id: t for group in run.files.rollouts.read() for t in group.trajectories}
    scores = run.files.scores("gpo").read()
    assert scores
    for score in scores:
        assert score.values[-1] == known[score.trajectory_id].score.value
        assert all(0 <= value <= 1 for value in score.values if not math.isnan(value))


def test_doing_it_again_does_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in Path(run.files.path).rglob("*.jsonl") if "events" not in path.name
    }
    assert main(["evaluate", str(run.files.path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "gpo" in capsys.readouterr().out
    assert RunDirectory(run.files.path).results.exists()
