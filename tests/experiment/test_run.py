import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from gpo.cli import main
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.contracts import Sample
from gpo.errors import ConfigError, DataError, EngineError
from gpo.estimators.none import NoReset
from gpo.experiment.run import Run
from gpo.storage.codec import to_json
from gpo.storage.directory import RunDirectory
from gpo.storage.events import Progress
from gpo.storage.lock import Held, locked
from gpo.storage.rounds import RoundState
from gpo.toy import ChainEngine, ChainTask
from gpo.types import Evidence, ModelRef, Problem, Split, Stage, StepScores, Trajectory, tokens_of
from toy import ToyTask, toy_config

HERE = Path(__file__).parents[1]
RUN_OPTIONS = (
    *("--task", "toy:ToyTask", "--engine", "gpo.toy:ChainEngine", "--engine.padding", "2"),
    *("--estimator", "monte_carlo", "--method", "toy:ToyMethod"),
    *("--rollouts", "4", "--budget", "6", "--locate_per_problem", "2"),
    *("--locate_share", "0.4", "--reset_turns", "0"),
    *("--reset_rollouts", "4", "--test_samples", "8", "--chunk", "16"),
)  # toy_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run") / "whole", toy_config())
    run.all()
    return run


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the times and the lock."""
    files = (
        path
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("events.jsonl", "pieces.json", ".lock")
    )
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_a_run_writes_what_the_architecture_page_says(finished: Run) -> None:
    names = set(contents(finished.files.path))
    for arm in ("plain", "random", "gpo"):
        assert {f"arms/{arm}/{name}" for name in ("scores.jsonl", "resets.jsonl", "pairs.jsonl")} <= names
        assert f"arms/{arm}/model/chain.json" in names
        assert f"evaluation/{arm}.jsonl" in names
    assert {"config.json", "problems.jsonl", "rollouts.jsonl", "evaluation/base.jsonl"} <= names
    assert {"results.json", "table.md", "plots/accuracy.png", "plots/tokens.png", "plots/values.png"} <= names
    assert not [name for name in names if "partial" in name or "unfinished" in name]


def test_all_arms_sample_the_same_number_of_tokens(finished: Run) -> None:
    results = json.loads(finished.files.results.read_text())
    budget = 6 * tokens_of(finished.files.rollouts.read())
    for arm in results["arms"]:
        sampled = tokens_of(RoundState.of(finished.files, arm["name"]).groups())
        assert sum(arm["tokens"].values()) == sampled
        assert abs(sampled - budget) < 0.01 * budget
    assert results["arms"][0]["tokens"]["locate"] == 0
    assert results["arms"][2]["tokens"]["locate"] > 0


def test_the_plain_arm_resets_to_the_questions_only(finished: Run) -> None:
    assert all(group.start.prefix_ids == () for group in finished.files.resets("plain").read())
    assert any(group.start.prefix_ids for group in finished.files.resets("gpo").read())


def test_a_finished_stage_samples_nothing_again(finished: Run) -> None:
    before = contents(finished.files.path)
    seen: list[Progress] = []
    again = Run(finished.files.path, on_progress=seen.append)
    again.all()
    assert contents(finished.files.path) == before
    assert {progress.stage for progress in seen} == {"report"}


def test_a_run_is_the_same_every_time(finished: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "again", toy_config())
    other.all()
    assert contents(other.files.path) == contents(finished.files.path)


def test_the_same_command_goes_on_after_a_kill(finished: Run, tmp_path: Path) -> None:
    words = ["run", str(tmp_path / "killed"), *RUN_OPTIONS]
    command = [sys.executable, "-m", "gpo", *words]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (tmp_path / "killed/arms/random/resets.jsonl").exists():
        assert process.poll() is None, process.stderr
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert main(words) == 0
    assert contents(tmp_path / "killed") == contents(finished.files.path)


@pytest.mark.usefixtures("unplotted")
def test_models_answer_the_same_questions_with_the_same_random_numbers(tmp_path: Path) -> None:
    unchanged = Spec("method", "toy:ToyMethod", {"strength": 0.0})
    run = Run(tmp_path, toy_config(method=unchanged, arms={"plain": NoReset()}))
    results = run.all()
    base, plain = ([to_json(group) for group in run.files.evaluation(name).read()] for name in ("base", "plain"))
    for group in (*base, *plain):
        for trajectory in group["trajectories"]:
            del trajectory["policy_version"]
    assert base == plain
    assert results.models[1].against["base"].estimate == 0


def test_another_configuration_is_refused_by_name(finished: Run) -> None:
    with pytest.raises(ConfigError, match=r"made with other settings: arms\.gpo\.rollouts was 4, now 8"):
        Run(
            finished.files.path,
            toy_config(arms={"plain": "none", "random": "random_matched", "gpo": gpo_arm(rollouts=8)}),
        )
    with pytest.raises(ConfigError, match="seed was 0, now 1"):
        Run(finished.files.path, toy_config(seed=1))


def gpo_arm(**settings: Any) -> Spec:
    return Spec("estimator", "monte_carlo", settings)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run directory\. Start one with: gpo run"):
        Run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_arm_lists_the_known_ones(finished: Run) -> None:
    for stage in (finished.locate, finished.reset, finished.build, finished.train, finished.evaluate):
        with pytest.raises(ConfigError, match=r"no arm 'best'\. Its arms: plain, random, gpo"):
            stage("best")
    fresh = Run(finished.files.path.parent / "fresh", toy_config())
    for stage in (fresh.locate, fresh.train, fresh.evaluate):
        with pytest.raises(ConfigError, match="no arm 'best'"):
            stage("best")
    assert not fresh.files.path.exists()


def test_a_run_held_by_another_process_is_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config())
    with locked(tmp_path), pytest.raises(ConfigError, match="Another Run or thread of this process works in"):
        run.rollout()


class Waiting(ToyTask):
    """Gives its problems once it is told to."""

    def problems(self, split: Split) -> Sequence[Problem]:
        ASKED.set()
        assert GOES_ON.wait(60)
        return super().problems(split)


ASKED, GOES_ON = Event(), Event()


def test_a_run_is_for_one_thread_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(task=Waiting()))
    found: list[int] = []
    other = Thread(target=lambda: found.append(len(run.locate("gpo"))))
    other.start()
    try:
        assert ASKED.wait(60)
        with pytest.raises(Held, match="Another thread works in"):
            run.reset("gpo")
        with pytest.raises(Held, match="Another thread works in"):
            run.problems("train")
    finally:
        GOES_ON.set()
        other.join()
    assert found == [len(run.locate("gpo"))]
    assert len(run.problems("train")) == 8
    assert run.reset("gpo")


def test_problems_that_are_gone_are_missed(tmp_path: Path) -> None:
    Run(tmp_path, toy_config()).rollout()
    run = Run(tmp_path)
    with run.held():
        (tmp_path / "problems.jsonl").unlink()
        with pytest.raises(DataError, match=r"problems\.jsonl was removed\. Put it back"):
            run.problems("train")


@pytest.mark.parametrize("number", [0, -1, 3, 1.0, "1", True, None])
def test_a_round_that_a_run_does_not_have_is_refused_before_anything_is_written(tmp_path: Path, number: Any) -> None:
    run = Run(tmp_path / "run", toy_config(rounds=2))
    for stage in (run.rollout, run.locate, run.reset, run.build):
        with pytest.raises(ConfigError, match=f"no round {number!r}\\. Expected a round from 1 to 2"):
            stage("gpo", number)
    with pytest.raises(ConfigError, match=r"no round 2\. Expected 1, its only round"):
        Run(tmp_path / "run", toy_config()).locate("gpo", 2)
    assert not (tmp_path / "run").exists()


def test_a_later_round_is_trained_up_to(tmp_path: Path) -> None:
    config = toy_config(task=Spec("task", "toy:ToyTask", {"size": 3}), arms={"gpo": "monte_carlo"}, rounds=2)
    run = Run(tmp_path / "once", config)
    found = run.locate("gpo", 2)
    assert run.files.checkpoint("gpo", 1).exists()
    again = Run(tmp_path / "again", config)
    again.train("gpo")
    assert again.locate("gpo", 2) == found


@pytest.mark.parametrize("stages", [(), ("foo",), (Stage.LOCATE, Stage.REPORT), (None,)])
def test_what_is_no_stage_of_an_arm_is_refused(tmp_path: Path, stages: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match=r"Got the stages \[.*\], expected some of rollout, locate, reset, build, tr"):
        Run(tmp_path / "run", toy_config()).every(*stages)
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Nowhere(NoReset):
    """Finds no place to reset to."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = Evidence()
    ) -> list[StepScores]:
        return [replace(score, reset_boundary=None) for score in super().__call__(trajectories, sample)]


@dataclass(frozen=True)
class AtTheEnd(NoReset):
    """Resets behind the last step, from where nothing can be sampled."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = Evidence()
    ) -> list[StepScores]:
        scores = super().__call__(trajectories, sample)
        return [replace(s, reset_boundary=len(t.step_ends)) for s, t in zip(scores, trajectories, strict=True)]


@dataclass(frozen=True)
class Dishonest(NoReset):
    """Samples without saying so."""

    def __call__(
        self, trajectories: Sequence[Trajectory], sample: Sample, evidence: Evidence = Evidence()
    ) -> list[StepScores]:
        sample([trajectories[0].prefix(0)], 1)
        return super().__call__(trajectories, sample)


def test_an_arm_that_resets_nowhere_samples_the_questions(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"nowhere": Nowhere()}))
    groups = run.reset("nowhere")
    assert tokens_of(groups) == round(run.config.budget * tokens_of(run.rollout())) - tokens_of(run.rollout())


def test_plain_sampling_takes_the_questions_in_their_order_or_mixed_ones_first(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"even": NoReset(), "mixed": NoReset("mixed")}, budget=2.0))
    first = run.rollout()
    questions = [group.start.key for group in first]
    open_ones = {g.start.key for g in first if len({t.score.right for t in g.trajectories}) == 2}
    even, mixed = ([group.start.key for group in run.reset(arm)] for arm in ("even", "mixed"))
    assert even[: len(questions)] == questions[: len(even)]
    assert 0 < len(open_ones) < len(questions)
    assert set(mixed[: len(open_ones)]) == open_ones


def test_a_reset_behind_the_last_step_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"end": AtTheEnd()}))
    with pytest.raises(EngineError, match=r"AtTheEnd gave reset_boundary 7 for 7 steps; expected an int from 0 to 6"):
        run.locate("end")


def test_an_estimator_must_say_what_it_sampled(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(arms={"dishonest": Dishonest()}))
    with pytest.raises(EngineError, match=r"2 results with 0 tokens for 2 trajectories and 26 sampled tokens"):
        run.locate("dishonest")


@dataclass(frozen=True)
class TrainOnly(ChainTask):
    def problems(self, split: Split) -> Sequence[Problem]:
        return super().problems(split) if split == "train" else []


def test_a_task_without_test_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The task has no test problems"):
        Run(tmp_path, toy_config(task=TrainOnly())).rollout()


def test_components_may_be_instances(tmp_path: Path) -> None:
    engine = ChainEngine(padding=1)
    config = RunConfig(ChainTask(), engine=engine, method=toy_config().method, arms={"gpo": "monte_carlo"}, rollouts=4)
    run = Run(tmp_path, config)
    processes = engine.processes
    run.train("gpo")
    run.evaluate("gpo")
    assert engine.processes is processes
    assert json.loads((tmp_path / "config.json").read_text())["engine"]["padding"] == 1


def test_times_are_kept_apart(finished: Run) -> None:
    seconds = RunDirectory(finished.files.path).events.seconds()
    assert set(seconds) == {"rollout", "locate", "reset", "build", "train", "evaluate", "report"}


@pytest.mark.usefixtures("unplotted")
def test_steps_cut_at_low_probabilities_go_through_every_stage(tmp_path: Path) -> None:
    cut = Spec("segmenter", "low_probability", {"probability": 0.99, "every": 1})
    run = Run(tmp_path, toy_config(segmenter=cut, arms={"gpo": "monte_carlo"}))
    assert run.all().models
    assert any(len(t.step_ends) > 1 for group in run.files.evaluation("gpo").read() for t in group.trajectories)


@dataclass
class Resting(ChainEngine):
    """Counts how often it rests and is made."""

    rests: int = 0

    def rest(self) -> None:
        self.rests += 1


@pytest.mark.parametrize("kind", [ChainEngine, Resting])
def test_an_engine_that_can_rest_is_kept_through_training(tmp_path: Path, kind: type[ChainEngine]) -> None:
    run = Run(tmp_path / "run", replace(toy_config(), engine=kind(padding=2), arms={"plain": "none"}, rounds=2))
    run.rollout()
    first = run.engine()
    run.train("plain")
    assert run.engine(run.files.model("plain")) is not first or kind is Resting
    assert getattr(run.engine(run.files.model("plain")), "rests", 2) == 2
    assert first._closed is (kind is ChainEngine)
    run.engine.release()


def test_every_piece_of_sampling_names_the_policy_that_made_it(tmp_path: Path) -> None:
    config = replace(toy_config(), arms={"plain": "none"}, rounds=3, test_samples=1)
    run = Run(tmp_path / "run", config)
    run.evaluate("plain")
    events = [json.loads(line) for line in (run.files.path / "events.jsonl").read_text().splitlines()]
    told = list(dict.fromkeys(event["policy"] for event in events if event["tokens"]))
    checkpoints = [run.files.checkpoint("plain", 1), run.files.checkpoint("plain", 2), run.files.model("plain")]
    assert told == ["toy processes", *map(str, checkpoints)]
    assert all("policy" not in event for event in events if not event["tokens"])


class Stuck(ChainEngine):
    """Takes no other weights."""

    def load(self, model: ModelRef) -> None:
        pass


def test_an_engine_that_stays_with_an_older_policy_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", replace(toy_config(), engine=Stuck(padding=2), arms={"plain": "none"}, rounds=2))
    with pytest.raises(EngineError, match=r"The engine Stuck samples from toy processes, expected .*/checkpoints/1"):
        run.train("plain")
