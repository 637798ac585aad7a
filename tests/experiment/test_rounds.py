import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from gpo.cli import main
from gpo.config.components import Spec
from gpo.config.options import resolve
from gpo.config.run import RunConfig, settled
from gpo.errors import ConfigError, DataError
from gpo.experiment.questions import questions_of
from gpo.experiment.resources import Resources
from gpo.experiment.run import ROUND, Run
from gpo.experiment.training import train
from gpo.preferences.pairs import read_pairs
from gpo.storage.events import Progress
from gpo.storage.rounds import RoundState
from gpo.types import Group, Problem, Stage, tokens_of
from toy import toy_config

HERE = Path(__file__).parents[1]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the times and the lock."""
    files = (
        path
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("events.jsonl", "pieces.json", ".lock")
    )
    return {str(path.relative_to(directory)): without_times(path) for path in files}


def without_times(path: Path) -> bytes:
    if path.name != "training.jsonl":
        return path.read_bytes()
    rows = training_rows(path)
    assert all(row.pop("tokens_per_second") > 0 for row in rows)
    return json.dumps(rows).encode()


def training_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rounds_config(**changes: Any) -> RunConfig:
    return toy_config(
        **{"rounds": 3, "reset_fraction": 0.3, "test_samples": 2, "reuse": True, "reset_turns": 0, **changes}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("rounds") / "whole", rounds_config())
    run.all()
    return run


def test_problems_take_turns_over_the_rounds() -> None:
    problems = [Problem(str(i), "", "") for i in range(5)]
    assert [[p.id for p in questions_of(problems, 2, n)] for n in (1, 2, 3)] == [["0", "1"], ["2", "3"], ["4", "0"]]
    assert questions_of(problems, None, 4) == questions_of(problems, 9, 1) == problems


def test_each_round_has_a_folder_and_the_last_one_the_model(finished: Run) -> None:
    names = set(contents(finished.files.path))
    for arm in ("plain", "random", "gpo"):
        files = {"scores.jsonl", "resets.jsonl", "more.jsonl", "training.json"}
        assert {f"arms/{arm}/{name}" for name in files | {"model/chain.json", "rounds.jsonl"}} <= names
        for number in (2, 3):
            assert {f"arms/{arm}/rounds/{number}/{name}" for name in files | {"rollouts.jsonl"}} <= names
    assert not [name for name in names if "unfinished" in name or "checkpoints" in name or "partial" in name]


def test_arms_sample_the_same_number_of_tokens_over_all_rounds(finished: Run) -> None:
    results = json.loads(finished.files.results.read_text())
    budget = 3 * 6 * tokens_of(finished.files.rollouts.read())
    for arm in results["arms"]:
        assert arm["budget"] == budget
        assert abs(sum(arm["tokens"].values()) - budget) < 0.01 * budget
        sampled = [tokens_of(RoundState.of(finished.files, arm["name"], number).groups()) for number in (1, 2, 3)]
        assert sum(arm["tokens"].values()) == sum(sampled)


def test_resets_take_their_share_and_the_questions_the_rest(finished: Run) -> None:
    for number in (1, 2, 3):
        resets, more = finished.files.resets("gpo", number).read(), finished.files.more("gpo", number).read()
        allowance = finished.allowance(RoundState.of(finished.files, "gpo", number))
        assert tokens_of(resets) == pytest.approx(0.3 * allowance, rel=0.1)
        assert {group.start.prefix_ids for group in more} == {()}
        assert any(group.start.prefix_ids for group in resets)


def test_every_rollout_names_the_policy_that_sampled_it(finished: Run) -> None:
    files = finished.files

    def versions(groups: Sequence[Group]) -> set[int | None]:
        return {each.policy_version for group in groups for each in group.trajectories}

    for arm in ("plain", "random", "gpo"):
        assert [versions(RoundState.of(files, arm, number).groups()) for number in (1, 2, 3)] == [{0}, {1}, {2}]
        assert versions(files.evaluation(arm).read()) == {3}
    assert versions(files.evaluation("base").read()) == {0}


def test_rollouts_of_an_older_policy_are_not_trained_on(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if (progress.stage, progress.arm) == (Stage.RESET, "plain 2"):
            raise Killed

    config = rounds_config(rounds=2, arms={"plain": "none"})
    with pytest.raises(Killed):
        Run(tmp_path, config, on_progress=stop).train("plain")
    path = tmp_path / "arms/plain/rounds/2/rollouts.jsonl"
    rows = path.read_text()
    path.write_text(rows.replace('"policy_version": 1}', '"policy_version": 0}', 1))
    message = (
        r"The rollout 'round2/rollout/0:0:0' of plain 2 was sampled by the policy after 0 rounds of training; "
        r"expected 1\. Put back the files of this round in .*/plain/rounds/2\."
    )
    with pytest.raises(DataError, match=message):
        Run(tmp_path, config).train("plain")
    assert not (tmp_path / "arms/plain/model").exists()


def test_a_run_whose_rollouts_name_no_policy_goes_on(tmp_path: Path) -> None:
    """As those of earlier versions, some of which could be told to train on older rollouts."""
    config = rounds_config(rounds=2, arms={"plain": "none"})
    whole = Run(tmp_path / "whole", config)
    whole.train("plain")
    Run(tmp_path / "old", config).reset("plain")
    for path in (tmp_path / "old").rglob("*.jsonl"):
        path.write_text(path.read_text().replace(', "policy_version": 0', ""))
    stored = json.loads((tmp_path / "old/config.json").read_text())
    (tmp_path / "old/config.json").write_text(json.dumps(stored | {"max_staleness": 0}))
    old = Run(tmp_path / "old", config)
    old.train("plain")
    known, expected = contents(old.files.path), contents(whole.files.path)
    assert known.keys() == expected.keys()
    differ = {name for name in known if known[name] != expected[name]}
    assert differ == {"config.json", "rollouts.jsonl", "arms/plain/resets.jsonl", "arms/plain/more.jsonl"}


def test_a_round_goes_on_from_the_model_of_the_round_before(finished: Run, tmp_path: Path) -> None:
    """Planted: rounds that all sample with the first model would not get better."""
    rows = [json.loads(line) for line in (finished.files.arm("gpo") / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["accuracy"] < rows[1]["accuracy"] < rows[2]["accuracy"]
    assert all(row["critical_advantage"] > 0 and sum(row["tokens"].values()) > 0 for row in rows)
    idle = Run(
        tmp_path, rounds_config(method=Spec("method", "toy:ToyMethod", {"strength": 0.0}), arms={"plain": "none"})
    )
    idle.train("plain")
    first, later = idle.files.rollouts.read(), idle.files.fresh("plain", 2).read()
    assert [g.start for g in first] == [g.start for g in later]
    assert first != later  # the same model, other random numbers


def test_search_rollouts_are_left_out_on_request(tmp_path: Path) -> None:
    counted = []
    for reuse in (True, False):
        run = Run(tmp_path / str(reuse), toy_config(reuse=reuse, arms={"gpo": "monte_carlo"}))
        run.train("gpo")
        groups = RoundState.of(run.files, "gpo").groups(search=reuse)
        right = sum(t.score.right * sum(i > 96 for i in t.response_ids) for g in groups for t in g.trajectories)
        counted.append((json.loads((run.files.arm("gpo") / "training.json").read_text())["counted"], right))
    assert counted[0][0] > counted[1][0] > 0


@pytest.mark.parametrize(
    ("method", "credit", "reused"),
    [
        ("dpo", "tail", True),
        ("ppo", "tail", False),
        ("grpo", "tail", False),
        ("rloo", "tail", False),
        ("grpo", "step", True),
    ],
)
def test_groups_of_whole_tails_leave_the_search_out_unless_it_is_said(
    tmp_path: Path, method: str, credit: Any, reused: bool
) -> None:
    assert Run(tmp_path / "a", toy_config(method=method, credit=credit)).config.reuse == reused
    assert Run(tmp_path / "b", toy_config(method=method, credit=credit, reuse=not reused)).config.reuse != reused


def test_a_run_of_before_the_search_was_left_out_goes_on_as_it_began(tmp_path: Path) -> None:
    config = toy_config(method="grpo", reuse=True)
    Run(tmp_path, config).rollout()
    assert Run(tmp_path, replace(config, reuse=None)).config.reuse is True
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["reuse"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert Run(tmp_path, replace(config, reuse=None)).config.reuse is True


def test_samples_keep_what_is_made_of_the_search_whatever_is_trained(tmp_path: Path) -> None:
    Run(tmp_path / "pairs", toy_config(method="dpo")).reset("gpo")
    config = json.loads((tmp_path / "pairs/config.json").read_text())
    assert settled(resolve({"method": "grpo"}, config)).reuse is True
    assert settled(resolve({"method": "grpo"})).reuse is False


def test_a_round_may_ask_some_of_the_problems(tmp_path: Path) -> None:
    run = Run(tmp_path, rounds_config(round_problems=3, arms={"plain": "none"}))
    run.train("plain")
    asked = [[g.start.problem_id for g in run.files.fresh("plain", n).read()] for n in (1, 2, 3)]
    assert len({problem for problems in asked for problem in problems}) == 8
    assert [len(problems) for problems in asked] == [3, 3, 3]


@pytest.mark.parametrize(
    "change", [{"rounds": 0}, {"reset_fraction": 1.5}, {"reset_fraction": -0.1}, {"round_problems": 0}]
)
def test_impossible_rounds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        toy_config(**change)


def test_a_run_of_a_version_without_rounds_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path, toy_config()).reset("plain")
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("rounds", "round_problems", "reuse", "reset_fraction"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"names what is no part of GPO: toy:ToyMethod, toy:ToyTask"):
        Run(tmp_path)  # not the file that was written here
    monkeypatch.setenv("GPO_TRUST", "1")
    assert Run(tmp_path).config.rounds == 1
    with pytest.raises(ConfigError, match="rounds was 1, now 2"):
        Run(tmp_path, toy_config(rounds=2))


LETTER_OPTIONS = {
    "task": "toy:LetterTask",
    "segmenter": "fixed_tokens",
    "segmenter.size": "2",
    "arms": "plain,gpo",
    "rollouts": "8",
    "locate_per_problem": "1",
    "reset_rollouts": "4",
    "test_samples": "8",
    "reuse": "true",
    "max_tokens": "6",
    "rounds": "3",
    "method.epochs": "2",
    "method.lora": "none",
    "method.minibatches": "2",
    "method.learning_rate": "1e-2",
}


def check_round_metrics(run: Run, metrics: list[dict[str, float]], more: set[str]) -> None:
    """Rows of `training.jsonl` tell what the arm `gpo` has sampled when it trained, and how fast."""
    named = {"reward", "entropy", "tokens_sampled", "tokens_per_second", "reset_share", "critical_advantage"}
    assert all(row.keys() >= named | more for row in metrics)
    rounds = training_rows(run.files.arm("gpo") / "rounds.jsonl")
    sampled = [sum(each["tokens"].values()) for each in rounds]  # type: ignore[attr-defined]
    assert [row["tokens_sampled"] for row in metrics] == [sum(sampled[: round(row["update"]) + 1]) for row in metrics]
    events = [json.loads(line) for line in (run.files.path / "events.jsonl").read_text().splitlines()]
    pieces = [event for event in events if event["stage"] in ("rollout", "locate", "reset")]
    speed = sum(event["tokens"] for event in pieces) / sum(event["seconds"] for event in pieces)
    assert metrics[-1]["tokens_per_second"] == pytest.approx(speed)
    assert all(0 < row["reward"] < 1 for row in metrics)
    assert all("tokens_per_second" not in each["training"] for each in rounds)  # type: ignore[operator]


def letter_run(path: Path, letters: Path, method: str, **more: Any) -> Run:
    config = resolve({**LETTER_OPTIONS, "model": str(letters), "method": method})
    return Run(path, config, **more)


class Killed(BaseException):
    pass


def test_online_rounds_learn_and_survive_kills(tmp_path: Path, letters: Path) -> None:
    whole = letter_run(tmp_path / "whole", letters, "ppo")
    whole.train("gpo")
    rows = [json.loads(line) for line in (whole.files.arm("gpo") / "rounds.jsonl").read_text().splitlines()]
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.15
    assert all(row["training"]["ratio_error"] < 1e-4 for row in rows)
    metrics = training_rows(whole.files.arm("gpo") / "training.jsonl")
    assert [row["update"] for row in metrics] == [0, 1, 2]
    check_round_metrics(whole, metrics, {"clip_fraction", "value_error", "kl"})
    for row, each in zip(metrics, rows, strict=True):
        assert 0 < row["reset_share"] < 1
        assert row["critical_advantage"] == pytest.approx(each["critical_advantage"])

    seen: list[Progress] = []

    def kill(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) % 7 == 0:
            raise Killed

    for _ in range(100):
        try:
            letter_run(tmp_path / "killed", letters, "ppo", on_progress=kill).train("gpo")
            break
        except Killed:
            continue
    assert len(seen) > 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_same_ppo_command_goes_on_after_a_kill(tmp_path: Path, letters: Path) -> None:
    options = {**LETTER_OPTIONS, "model": str(letters), "method": "ppo", "arms": "gpo", "rounds": "2"}
    words = ["train", str(tmp_path / "killed"), "--arm", "gpo"]
    words += [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "gpo", *words]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (tmp_path / "killed/arms/gpo/unfinished/update.pt").exists():
        assert process.poll() is None, process.stderr
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert main(words) == 0
    whole = Run(tmp_path / "whole", Run(tmp_path / "killed").config)
    whole.train("gpo")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_reference_of_a_second_offline_round_is_the_model_that_it_begins_with(
    tmp_path: Path, letters: Path
) -> None:
    """The first step's loss is log 2 in both rounds only if policy and reference are one model."""
    options = {name: text for name, text in LETTER_OPTIONS.items() if "minibatches" not in name}
    options |= {"method": "dpo", "method.batch_size": "4", "method.gradient_accumulation": "1"}
    options |= {"rounds": "2", "arms": "gpo"}
    run = Run(tmp_path, resolve({**options, "model": str(letters)}))
    run.train("gpo")
    rows = training_rows(run.files.arm("gpo") / "training.jsonl")
    check_round_metrics(run, rows, {"rewards/margins", "kl"})
    for update in (0, 1):
        losses = [row["loss"] for row in rows if row["update"] == update]
        assert losses[0] == pytest.approx(0.6931, abs=1e-4)
        assert losses[-1] < 0.68
    assert run.files.pairs("gpo", 2).exists()


def test_a_second_offline_round_samples_with_the_new_policy_and_reads_its_pairs_after_a_restart(
    tmp_path: Path, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {name: text for name, text in LETTER_OPTIONS.items() if "minibatches" not in name}
    options |= {"method": "dpo", "method.batch_size": "4", "method.gradient_accumulation": "1"}
    options |= {"rounds": "2", "arms": "gpo"}
    config = resolve({**options, "model": str(letters)})

    def kill(progress: Progress) -> None:
        if (progress.stage, progress.arm) == ("build", "gpo 2"):
            raise Killed

    with pytest.raises(Killed):
        Run(tmp_path, config, on_progress=kill).train("gpo")

    run = Run(tmp_path)
    groups = run.rollout("gpo", 2)
    sampled = [[t.completion.token_ids for t in group.trajectories] for group in groups]
    for checkpoint, same in ((run.files.checkpoint("gpo", 1), True), (None, False)):
        sampler = run.sampler(Stage.ROLLOUT, "train", 0, checkpoint, number=2)
        again = sampler([group.start for group in groups], config.rollouts)
        assert ([[t.completion.token_ids for t in group.trajectories] for group in again] == sampled) == same
    pairs = read_pairs(run.files.pairs("gpo", 2))
    known = {
        t.start.prefix_ids + t.completion.token_ids
        for g in RoundState.of(run.files, "gpo", 2).groups()
        for t in g.trajectories
    }
    assert all({pair.prefix_ids + ids for ids in (pair.chosen_ids, pair.rejected_ids)} <= known for pair in pairs)

    monkeypatch.setattr("gpo.experiment.stages.build_pairs", None)  # cannot be called
    run.train("gpo")
    rows = [row for row in training_rows(run.files.arm("gpo") / "training.jsonl") if row["update"] == 1]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # the reference is the model that was loaded
    trained = json.loads((run.files.arm("gpo", 2) / "training.json").read_text())
    assert trained["pairs"] == len(pairs)


def test_adapters_go_on_over_rounds_and_are_merged_at_the_end(tmp_path: Path, letters: Path) -> None:
    options = {**LETTER_OPTIONS, "method": "grpo", "method.lora": "2", "method.merge": "true", "arms": "gpo"}
    run = Run(tmp_path, resolve({**options, "model": str(letters), "method.learning_rate": "2e-2"}))
    model = run.train("gpo")
    rows = [json.loads(line) for line in (run.files.arm("gpo") / "rounds.jsonl").read_text().splitlines()]
    assert all(row["training"]["ratio_error"] < 1e-4 for row in rows)  # the engine samples with the adapters
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.1
    assert not (model / "adapter_config.json").exists()
    assert (model / "model.safetensors").exists()


def test_instances_go_round_too_and_the_reference_stays_the_first_model(tmp_path: Path, letters: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gpo.engines.hf import HFEngine
    from gpo.methods.grpo import GRPO
    from toy import LetterTask

    model = AutoModelForCausalLM.from_pretrained(letters)
    engine = HFEngine(model, AutoTokenizer.from_pretrained(letters))
    method = GRPO(None, learning_rate=3e-3, beta=0.01)
    config = RunConfig(
        LetterTask(), engine=engine, method=method, segmenter=Spec("segmenter", "fixed_tokens", {"size": 2}),
        arms={"plain": "none"}, rollouts=8, max_tokens=6, rounds=3, temperature=0.7,
    )  # fmt: skip
    run = Run(tmp_path, config)
    run.train("plain")
    rows = [json.loads(line) for line in (run.files.arm("plain") / "rounds.jsonl").read_text().splitlines()]
    assert all(row["training"]["ratio_error"] < 1e-4 for row in rows)  # at the run's temperature
    kl = [row["training"]["kl_reference"] for row in rows]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert 1e-4 < kl[1] < kl[2]
    assert engine.model is model
    before = AutoModelForCausalLM.from_pretrained(letters).state_dict()
    assert all((before[name] == weights).all() for name, weights in model.state_dict().items())


def test_the_critic_of_ppo_searches_from_the_second_round_on(tmp_path: Path, letters: Path) -> None:
    options = {**LETTER_OPTIONS, "method": "ppo", "arms": "gpo", "arms.gpo": "critic", "arms.gpo.trained": "true"}
    run = Run(tmp_path, resolve({**options, "model": str(letters), "rounds": "2"}))
    run.train("gpo")
    first, second = run.files.scores("gpo", 1).read(), run.files.scores("gpo", 2).read()
    assert not any(isnan(bound) for score in first for bound in score.lower)  # no critic yet: one is fitted
    assert all(isnan(score.lower[0]) and not isnan(score.values[0]) for score in second)
    assert sum(score.tokens for score in (*first, *second)) == 0
    assert any(group.start.prefix_ids for group in run.files.resets("gpo", 2).read())


def rows_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[int]:
    """Rows of all files once each round is trained."""
    counts: list[int] = []

    def counted(work: Resources, state: RoundState) -> None:
        train(work, state)
        counts.append(sum(len(chunk) for file in work.files._files.values() for chunk in file._chunks))

    monkeypatch.setitem(ROUND, Stage.TRAIN, counted)
    Run(path, toy_config(rounds=8, arms={"gpo": "halfway"}, test_problems=2, problems=3, **changes)).train("gpo")
    return counts


def test_memory_does_not_grow_with_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = rows_in_memory(tmp_path / "run", monkeypatch)
    assert counts[:-1] == [0] * 7  # nobody asks for them again but for the last ones
    changes = {"buffer": 2, "allocation": "stratum", "fresh_least": 0.5}
    counts = rows_in_memory(tmp_path / "kept", monkeypatch, **changes)
    assert 0 < max(counts[3:-1]) <= max(counts[:3])
