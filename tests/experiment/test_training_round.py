"""Training of a round: what it is told, what it does where nothing can be learned, and as a process of its own."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_rounds import LETTER_OPTIONS, contents

from gpo.config.components import Spec
from gpo.errors import EngineError
from gpo.experiment.resources import Resources
from gpo.experiment.run import Run
from gpo.experiment.training import method_of
from gpo.types import Group, Problem, RoundContext, Score
from toy import LetterTask, ToyMethod, toy_config


@dataclass(frozen=True)
class OneIsOpen(LetterTask):
    """Only what the plain arm samples from the questions can tell right from wrong."""

    def score(self, problem: Problem, text: str) -> Score:
        return Score(1.0, "right", text[:1])


class Told(ToyMethod):
    """Writes down the settings that it is told of."""

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        self.settings = context.settings
        return super().update(groups, context)

    def save(self, path: Path) -> None:
        super().save(path)
        (path / "settings.json").write_text(json.dumps(self.settings))


def test_a_method_is_told_the_settings_of_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(method=Spec("method", "test_training_round:Told"), arms={"plain": "none"}))
    told = json.loads((run.train("plain") / "settings.json").read_text())
    assert told.items() >= {"arm": "plain", **run.described}.items()


@dataclass
class Seeded:
    seed: int = 5
    model: Any = None


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_nothing_to_learn_is_a_result_and_the_run_goes_on(
    tmp_path: Path, letters: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    from gpo.config.options import resolve

    options = {key: text for key, text in LETTER_OPTIONS.items() if "minibatches" not in key or method == "grpo"}
    options |= {"model": str(letters), "method": method, "rounds": "1", "task": "test_training_round:OneIsOpen"}
    run = Run(tmp_path, resolve({**options, "problems": "2", "test_problems": "2", "rollouts": "2"}))
    results = run.all()
    said = "No pair to train on" if method == "dpo" else "Nothing to learn"
    for arm in ("plain", "gpo"):
        assert f"{arm}: {said}" in caplog.text
        metrics = json.loads((run.files.arm(arm) / "training.json").read_text())
        assert metrics["skipped"] == 1.0
        assert (run.files.model(arm) / "model.safetensors").exists()
    assert [model.name for model in results.models] == ["base", "plain", "gpo"]
    assert results.models[1].against["base"].estimate == 0
    assert "not trained" in (tmp_path / "table.md").read_text()


def test_a_round_trained_in_a_process_of_its_own_gives_the_same_files(
    tmp_path: Path,
    letters: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpo.config.options import resolve

    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parents[1]), *filter(None, sys.path)]))
    monkeypatch.setenv("GPO_TRUST", "1")
    options = {**LETTER_OPTIONS, "model": str(letters), "method": "grpo", "arms": "gpo", "rounds": "2"}
    found: list[dict[str, bytes]] = []
    for name, more in (("here", {}), ("there", {"launch": f"{sys.executable} -m"})):
        run = Run(tmp_path / name, resolve(options | more))
        run.train("gpo")
        files = contents(run.files.path)
        found.append({path: data for path, data in files.items() if path != "config.json"})
    assert found[0] == found[1]


def test_a_launch_that_fails_says_how(tmp_path: Path) -> None:
    run = Run(tmp_path, toy_config(launch=f"{sys.executable} -c 'import sys; sys.exit(\"no GPU here\")'"))
    with pytest.raises(EngineError, match=r"Training of gpo ended with code 1: no GPU here"):
        run.train("gpo")


def test_what_changes_how_training_is_started_does_not_change_the_run(tmp_path: Path) -> None:
    Run(tmp_path, toy_config()).rollout()
    Run(tmp_path, toy_config(launch="python -m"))


def test_the_seed_of_a_run_reaches_its_method(tmp_path: Path) -> None:
    """New adapters and the order of rows are drawn with it; a method's own seed is its own."""

    def seed_of(name: str, of_run: int, **settings: Any) -> Any:
        config = toy_config(method=Spec("method", "dpo", settings), seed=of_run)
        return method_of(Resources(tmp_path / name, config), 1)

    assert [seed_of("a", 3).seed, seed_of("b", 4).seed, seed_of("c", 4, seed=9).seed] == [3, 4, 9]
    orders = set()
    for seed in (0, 1):
        method = seed_of(f"orders{seed}", seed)
        for method.updates in (0, 1):
            orders.add(method._order_seed)
    assert len(orders) == 4


@dataclass
class Half(ToyMethod):
    """Dies half way through its first checkpoint; its metrics are of torch and numpy."""

    metric: Any = None
    calls: ClassVar[list[Path]] = []

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, Any]:
        more = {"entropy": torch.tensor(0.5), "loss": np.array([0.25]), "more": self.metric}
        return super().update(groups, context) | more

    def save(self, path: Path) -> None:
        self.calls.append(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "begun").touch()
        if len(self.calls) == 1:
            raise KeyboardInterrupt
        (path / "chain.json").write_text("{}")


def test_half_of_a_checkpoint_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Half, "calls", [])
    config = toy_config(method=Half(), arms={"plain": "none"})
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, config).train("plain")
    run = Run(tmp_path, config)
    assert not run.files.model("plain").exists()
    assert (run.train("plain") / "chain.json").exists()
    assert not list(run.files.arm("plain").glob("*partial*"))


def test_metrics_may_be_tensors_of_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Half, "calls", [tmp_path])
    run = Run(tmp_path / "run", toy_config(method=Half(), arms={"plain": "none"}))
    run.train("plain")
    written = json.loads((run.files.arm("plain") / "training.json").read_text())
    assert (written["entropy"], written["loss"]) == (0.5, 0.25)
    for name, metric in (("Tensor", torch.zeros(2)), ("object", object())):
        work = Run(tmp_path / name, toy_config(method=Half(metric=metric), arms={"plain": "none"}))
        with pytest.raises(EngineError, match=f"The method Half gave a {name} as its metric 'more'. Expected a number"):
            work.train("plain")
        assert not work.files.model("plain").exists()


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_weights_that_are_not_finite_are_not_kept(
    tmp_path: Path, letters: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpo.config.options import resolve
    from gpo.methods.dpo import DPO
    from gpo.methods.grpo import GRPO

    for kind in (DPO, GRPO):
        save = kind.save

        def broken(self: Any, path: Path, save: Any = save) -> None:
            next(self.policy.model.parameters()).data[0] = float("nan")
            save(self, path)

        monkeypatch.setattr(kind, "save", broken)
    options = {key: text for key, text in LETTER_OPTIONS.items() if "minibatches" not in key or method == "grpo"}
    options |= {"model": str(letters), "method": method, "rounds": "1", "arms": "plain"}
    run = Run(tmp_path, resolve({**options, "problems": "2", "rollouts": "2"}))
    with pytest.raises(EngineError, match=r"weights that are NaN or infinite.*Lower the learning rate"):
        run.train("plain")
    assert not run.files.model("plain").exists()


def test_a_stored_seed_of_a_method_stays_where_none_is_said(tmp_path: Path) -> None:
    """As runs have it that were begun when every method had seed 0."""
    Run(tmp_path, toy_config(method="dpo", seed=3)).rollout()
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["method"]["seed"] = 0
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = Resources(tmp_path, toy_config(method="dpo", seed=3))
    assert (again.described["method"]["seed"], method_of(again, 1).seed) == (0, 0)


def test_a_run_hands_over_what_a_component_has_no_value_for() -> None:
    spec = Spec("method", f"{__name__}:Seeded")
    assert (spec.make(seed=3, model="m").seed, spec.make(seed=3, model="m").model) == (5, "m")
