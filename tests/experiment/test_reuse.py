"""What one run has sampled serves another method."""

import json
from pathlib import Path

import pytest

from gpo.cli import main
from gpo.config.components import Spec
from gpo.config.options import resolve
from gpo.config.registry import ESTIMATORS
from gpo.errors import ConfigError
from gpo.experiment.reuse import arms_alike, copy_samples, take_samples
from gpo.experiment.run import Run
from gpo.types import Stage
from toy import toy_config

CHAIN = {
    "engine": "chain",
    "method": "toy:ToyMethod",
    "arms": "plain",
    "rollouts": "4",
    "test_samples": "2",
    "workers": "1",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("reuse") / "first", toy_config())
    run.all()
    return run


@pytest.mark.parametrize("name", ESTIMATORS)
def test_arms_of_every_search_may_be_alike(name: str) -> None:
    """Some need a model to be made at all."""
    arms = {"gpo": "bisect", "own": Spec("estimator", name)}
    assert arms_alike(toy_config(arms=arms), toy_config(arms=arms)) == {"gpo", "own"}


@pytest.mark.usefixtures("unplotted")
def test_a_second_method_trains_on_the_same_samples(source: Run, tmp_path: Path) -> None:
    target = tmp_path / "second"
    assert main(["run", str(target), "--samples", str(source.files.path), "--method.strength", "9"]) == 0
    again = Run(target)
    for arm in ("plain", "random", "gpo"):
        for name in ("scores.jsonl", "resets.jsonl"):
            assert (again.files.arm(arm) / name).read_bytes() == (source.files.arm(arm) / name).read_bytes()
        assert (again.files.model(arm) / "chain.json").read_bytes() != (
            source.files.model(arm) / "chain.json"
        ).read_bytes()
    assert again.files.evaluation("base").read() == source.files.evaluation("base").read()
    assert Stage.LOCATE not in again.files.events.seconds()
    assert again.config.method == Spec("method", "toy:ToyMethod", {"strength": 9.0, "tells": False, "model": None})


def test_some_of_the_arms_may_be_left_out(source: Run, tmp_path: Path) -> None:
    take_samples(source.files.path, tmp_path, {"arms": "plain,gpo"})
    run = Run(tmp_path)
    assert list(run.config.arms) == ["plain", "gpo"]
    assert run.files.resets("gpo").read() == source.files.resets("gpo").read()
    with pytest.raises(ConfigError, match=r"were made with other settings: arms\.other"):
        take_samples(source.files.path, tmp_path / "b", {"arms.other": "bisect", "arms": "plain,other"})


def test_pairs_may_be_made_otherwise_until_a_model_is_trained(source: Run, tmp_path: Path) -> None:
    take_samples(source.files.path, tmp_path, {})
    many = Run(tmp_path).build("gpo")
    few = Run(tmp_path, resolve({"pairs.per_start": "1", "pairs.most": "2"}, Run(tmp_path).described))
    assert len(few.build("gpo")) == 2 < len(many)


def test_other_test_questions_are_asked_anew(source: Run, tmp_path: Path) -> None:
    take_samples(source.files.path, tmp_path, {"test_samples": "3"})
    run = Run(tmp_path)
    assert not run.files.evaluation("base").read()
    assert {len(group.trajectories) for group in run.evaluate("base")} == {3}


def test_other_test_questions_are_not_those_of_the_source(tmp_path: Path) -> None:
    def options(test: str) -> dict[str, str]:
        rows = "".join(json.dumps({"question": str(i), "answer": str(i)}) + "\n" for i in (test, "6"))
        (tmp_path / f"test{test}.jsonl").write_text(rows)
        return {"task": "file", "task.path": str(tmp_path / "train.jsonl"), "task.instruction": "", **CHAIN} | {
            "task.test_path": str(tmp_path / f"test{test}.jsonl")
        }

    (tmp_path / "train.jsonl").write_text("".join(f'{{"question": "{i}", "answer": "{i}"}}\n' for i in range(4)))
    Run(tmp_path / "a", resolve(options("5"))).evaluate()
    copy_samples(tmp_path / "a", tmp_path / "b", resolve(options("7")))
    run = Run(tmp_path / "b")
    assert run.files.rollouts.read() == Run(tmp_path / "a").files.rollouts.read()
    assert [problem.question for problem in run.problems("test")] == ["7", "6"]
    assert not run.files.evaluation("base").read()


def test_what_would_change_the_samples_is_refused(source: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"were made with other settings: rollouts was 4, now 5"):
        take_samples(source.files.path, tmp_path / "a", {"rollouts": "5"})
    assert not (tmp_path / "a").exists()
    Run(tmp_path / "b", toy_config(seed=1)).rollout()
    with pytest.raises(ConfigError, match="has samples of its own"):
        take_samples(source.files.path, tmp_path / "b", {})
    with pytest.raises(ConfigError, match="is no run directory"):
        take_samples(tmp_path / "nothing", tmp_path / "c", {})


def test_damaged_pairs_are_built_again(source: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    take_samples(source.files.path, tmp_path, {})
    run = Run(tmp_path)
    pairs = run.build("gpo")
    path = run.files.pairs("gpo")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run.build("gpo") == pairs
    assert path.read_bytes() == whole
    assert "They are built again" in caplog.text
