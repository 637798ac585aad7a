"""What is refused before anything is written or loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpo.config.check import check, check_class, check_component, check_launch
from gpo.config.components import Spec
from gpo.config.options import resolve
from gpo.config.registry import REGISTRIES, lookup
from gpo.contracts import Sample
from gpo.errors import ConfigError
from gpo.toy import ChainEngine
from gpo.types import Group, Problem, Score, StepScores, Trajectory
from toy import ToyMethod, ToyTask, toy_config


@dataclass(frozen=True)
class Forgetful(ToyTask):
    """Grades without being told the text."""

    def score(self, problem: Problem) -> Score:  # type: ignore[override]
        return Score(1.0, "right")


@dataclass
class Deaf(ToyMethod):
    """Is not told of the round."""

    def update(self, groups: Sequence[Group]) -> dict[str, float]:  # type: ignore[override]
        return {}


@dataclass
class Unsure(ToyMethod):
    trains_on = "rows"  # type: ignore[assignment]


@dataclass
class Careless:
    """Takes no evidence."""

    def __call__(self, trajectories: Sequence[Trajectory], sample: Sample) -> list[StepScores]:
        return []


class Calls:
    """Tells when it is made."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1


class Half:
    """An engine that only generates."""

    def generate(self, requests: Any, *, temperature: float = 1.0, logprobs: bool = False) -> list[Any]:
        return []


class Unclosed:
    """An engine that is no context manager."""

    tokenizer, model_ref, context_length, stop_ids, repeatable = None, None, 8, frozenset[int](), True
    generate, logprobs, load, close = ChainEngine.generate, ChainEngine.logprobs, ChainEngine.load, ChainEngine.close


class Nameless(ChainEngine):
    """Does not say which model it samples from."""

    model_ref = property()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": Forgetful()}, r"'Forgetful' is not a task: score\(problem, text\) cannot be called: too many"),
        ({"task": Spec("task", "test_check:Calls")}, r"'test_check:Calls' is not a task: it has no problems\(split\)"),
        ({"method": Deaf()}, r"'Deaf' is not a method: update\(groups, context\) cannot be called"),
        ({"method": Spec("method", "test_check:Unsure")}, r"trains_on is neither 'pairs' nor 'groups'"),
        ({"method": ToyTask()}, r"'ToyTask' is not a method: its trains_on"),
        ({"arms": {"gpo": Careless()}}, r"'Careless' is not an estimator: __call__\(trajectories, sample, evidence\)"),
        ({"arms": {"gpo": Spec("estimator", "toy:ToyTask")}}, r"'toy:ToyTask' is not an estimator: it has no __call__"),
        (
            {"segmenter": ToyTask()},
            r"'ToyTask' is not a segmenter: it has no __call__\(token_ids, tokenizer, ",
        ),
        (
            {"engine": Spec("engine", "test_check:Half")},
            r"is not an engine: it has no logprobs\(contexts, ",
        ),
        ({"engine": Half()}, r"'Half' is not an engine: it has no logprobs"),
        ({"engine": Unclosed()}, r"'Unclosed' is not an engine: it has no __enter__, __exit__\."),
        ({"engine": Nameless()}, r"'Nameless' .*model_ref"),
        ({"model": "./nowhere"}, r"There is no model in \./nowhere\. Give --model a directory"),
    ],
)
def test_what_is_no_such_component_is_told_by_what_it_lacks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(toy_config(**changes))
    assert Calls.made == 0, "what is no component was called"


@pytest.mark.parametrize(
    "options",
    [
        {"method": "dpo", "method.learning_rate": "-1"},
        {"method": "dpo", "method.loss_type": "foo"},
        {"method": "ppo", "method.max_length": "1"},
        {"estimator": "monte_carlo", "estimator.rollouts": "-1"},
        {"estimator": "adaptive", "estimator.critic": "fitted", "estimator.certainty": "7"},
        {"segmenter": "fixed_tokens", "segmenter.size": "0"},
        {"launch": "nosuchprogram -m"},
        {"launch": "'torchrun"},
    ],
    ids=lambda options: " ".join(f"--{name} {text}" for name, text in options.items()),
)
def test_a_setting_that_its_component_refuses_is_refused_without_a_model(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        check(resolve({"task": "chain", "engine": "chain", "arms": "plain,gpo", **options}))


def test_an_unknown_setting_from_python_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Unknown setting of engine 'hf' 'max_row'\. Did you mean 'max_rows'\?"):
        check(toy_config(engine=Spec("engine", "hf", {"max_row": 1})))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in REGISTRIES.items() for name in names])
def test_every_registered_component_fulfils_its_contract(kind: str, name: str) -> None:
    if kind == "engine":
        check_class(kind, lookup(kind, name), name)
    else:
        check_component(kind, name, model="somewhere")


def test_a_run_of_instances_passes(tmp_path: Path) -> None:
    check(toy_config(engine=ChainEngine(), task=ToyTask(), method=ToyMethod()))
    check(toy_config(model=str(tmp_path)))


def test_a_launch_of_no_words_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--launch is empty\. Expected such as"):
        check_launch(" ")
