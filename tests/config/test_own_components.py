"""Components of one's own, as classes and functions of a file: presets, settings, and what is stored of them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import pytest

import gpo
from gpo.config.check import check
from gpo.config.components import Spec, describe_component
from gpo.config.help import component_lines
from gpo.config.options import resolve, with_system
from gpo.config.parse import parse
from gpo.config.run import RunConfig, describe
from gpo.engines.hf import HFEngine
from gpo.errors import ConfigError
from gpo.estimators.none import NoReset
from gpo.methods.dpo import DPO
from gpo.methods.grpo import GRPO
from gpo.rollout.segmenters import Newline
from gpo.tasks.gsm8k import GSM8K
from gpo.toy import ChainTask
from toy import ToyTask, toy_config

HERE = "test_own_components"


@dataclass
class CautiousDPO(DPO):
    """Has a default of its own."""

    beta: float = 0.5


@dataclass
class Twice(GRPO):
    """Has a setting more."""

    times: int = 2


@dataclass
class MyHF(HFEngine):
    """Counts."""


@dataclass(frozen=True)
class Lines(Newline):
    """Cuts as the default."""


def of(config: RunConfig, kind: str) -> dict[str, Any]:
    described: dict[str, Any] = describe(config)[kind]
    return described


def test_a_class_of_ones_own_has_the_presets_of_what_it_inherits_from() -> None:
    theirs, own = of(resolve({"method": "dpo"}), "method"), of(resolve({"method": f"{HERE}:CautiousDPO"}), "method")
    assert own == {**theirs, "name": f"{HERE}:CautiousDPO", "beta": 0.5}
    assert own["learning_rate"] == 3e-4
    assert of(RunConfig(method=f"{HERE}:Twice"), "method")["minibatches"] == 4
    other = resolve({"model": "org/name", "method": f"{HERE}:Twice", "segmenter": f"{HERE}:Lines"})
    assert of(other, "method")["lora"] == 16
    assert of(other, "segmenter")["sentence_tokens"] == 30
    assert "learning_rate 0.0003" in " ".join(component_lines("method", f"{HERE}:Twice"))


def test_another_model_does_not_keep_the_presets_of_a_class_of_ones_own() -> None:
    stored = describe(resolve({"method": f"{HERE}:CautiousDPO"}))
    assert of(resolve({"model": "org/name"}, stored), "method")["learning_rate"] is None


def test_an_engine_of_ones_own_that_inherits_samples_the_shipped_models_as_its_parent() -> None:
    config = resolve({"engine": f"{HERE}:MyHF"})
    assert of(config, "method") == of(resolve({}), "method")
    assert config.suits_workers
    assert config.piece_seconds == 0.0
    assert of(resolve({"engine": "gpo.engines.hf:HFEngine"}), "method") == of(resolve({}), "method")


class Scale:
    """Has no form in JSON."""


@dataclass(frozen=True)
class Scaled(NoReset):
    scale: object = None
    usual: Scale = field(default_factory=Scale)
    most: float = inf
    mark: str = "<think>"


def test_what_json_does_not_hold_comes_back_as_the_default_or_not_at_all() -> None:
    def stored(own: Scaled) -> dict[str, Any]:
        return describe(toy_config(arms={"own": own}))

    again = resolve({}, stored(Scaled(mark="<b>")))
    made = Spec.make(again.arms["own"])  # type: ignore[arg-type]
    assert (made.most, made.mark, type(made.usual)) == (inf, "<b>", Scale)
    message = r'arms\.own\.scale is "<Scale>" in config\.json, .*Go on from Python, or give --arms\.own\.scale\.'
    with pytest.raises(ConfigError, match=message):
        resolve({}, stored(Scaled(scale=Scale())))
    given = resolve({"arms.own.scale": "3"}, stored(Scaled(scale=Scale())))
    assert given.arms["own"].settings["scale"] == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("problems", r"The stored problems is null, expected a whole number\. Put config\.json back"),
        ("pairs.per_start", r"The stored pairs\.per_start is null, expected a whole number\."),
        ("engine.padding", r"The stored engine\.padding is null, expected a whole number\."),
    ],
)
def test_a_stored_null_is_named(where: str, message: str) -> None:
    stored = describe(toy_config())
    owner, _, name = where.rpartition(".")
    (stored[owner] if owner else stored)[name] = None
    with pytest.raises(ConfigError, match=message):
        resolve({}, stored)


def halves(token_ids: Sequence[int], tokenizer: Any, logprobs: Sequence[float] | None = None) -> tuple[int, ...]:
    return tuple(end for end in (len(token_ids) // 2, len(token_ids)) if end)


def test_a_function_that_cuts_is_stored_by_its_name(tmp_path: Path) -> None:
    config = toy_config(segmenter=halves)
    assert of(config, "segmenter") == {"name": f"{HERE}:halves"}
    check(config)
    gpo.Run(tmp_path, config).rollout()
    [group, *_] = gpo.Run(tmp_path, resolve({}, describe(config))).rollout()
    ends = group.trajectories[0].step_ends
    assert ends == halves(range(ends[-1]), None)
    assert component_lines("segmenter", f"{HERE}:halves") == [f"Settings of segmenter {HERE}:halves:"]
    assert Spec("segmenter", f"{HERE}:halves").make() is halves


def test_a_function_without_a_name_is_for_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The segmenter .*<lambda> has no name .*def at the top of a file"):
        gpo.Run(tmp_path, toy_config(segmenter=lambda token_ids, tokenizer, logprobs=None: (len(token_ids),)))
    with pytest.raises(ConfigError, match=r"is a function\. Expected module:Class\."):
        Spec("task", f"{HERE}:halves").make()


def test_a_class_of_a_script_is_stored_under_the_name_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    main, script = sys.modules["__main__"], type("LeastSure", (NoReset,), {"__module__": "__main__"})
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.setattr(main, "__file__", "/there/own_search.py", raising=False)
    assert describe_component("estimator", script())["name"] == "own_search:LeastSure"
    monkeypatch.delattr(main, "__file__")
    typed = describe_component("estimator", script())["name"]
    with pytest.raises(ConfigError, match=r"LeastSure' is of a Python session\. Go on there, or put it into a file"):
        Spec("estimator", typed).make()


@dataclass(frozen=True)
class Terms(ToyTask):
    terms: int = 3

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"terms is {self.terms}")


class Plain(ChainTask):
    """Inherits the settings of a dataclass."""


class Bare:
    problems = prompt = score = staticmethod(lambda *_: [])


def test_a_refused_setting_is_told_as_such() -> None:
    with pytest.raises(ConfigError, match=rf"^The task '{HERE}:Terms' refuses its settings: terms is 0\.$"):
        gpo.make("task", f"{HERE}:Terms", terms=0)
    with pytest.raises(ConfigError, match=r"^The method 'dpo' refuses its settings: '>' not supported"):
        gpo.make("method", "dpo", learning_rate="fast")


def test_a_class_that_is_no_dataclass_has_no_settings() -> None:
    message = rf"'{HERE}:Bare' has no setting 'terms', nor any other: settings are the fields of a dataclass, and it is"
    with pytest.raises(ConfigError, match=message):
        resolve({"task": f"{HERE}:Bare", "task.terms": "5"})
    with pytest.raises(ConfigError, match=message):
        Spec("task", f"{HERE}:Bare", {"terms": 5}).make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpo.make("estimater", "none"), r"Unknown kind of component 'estimater'\. Did you mean 'estimator'\?"),
        (lambda: gpo.make("task", Plain), r"The name of the task is <class .*>, expected a text"),  # type: ignore[arg-type]
        (lambda: gpo.make("task", f"{HERE}:Scaled"), r"'test_own_components:Scaled' is not a task: it has no problems"),
        (lambda: RunConfig(arms="gpo"), r"arms is 'gpo', expected estimators by names"),  # type: ignore[arg-type]
        (lambda: RunConfig(problems="4"), r"problems is '4', expected a whole number\."),  # type: ignore[arg-type]
        (lambda: RunConfig(budget=None), r"budget is None, expected a number\."),  # type: ignore[arg-type]
        (lambda: RunConfig(credit="tale"), r"credit is 'tale', expected one of tail, step, tree\."),  # type: ignore[arg-type]
        (
            lambda: RunConfig(pairs=gpo.PairSettings(most="8")),  # type: ignore[arg-type]
            r"pairs\.most is '8', expected at least 1, or none for all\.",
        ),
        (lambda: RunConfig(task=Plain), r"The task is the class Plain, .*Give Plain\(\)\."),  # type: ignore[arg-type]
        (
            lambda: RunConfig(arms={"gpo": Scaled}),  # type: ignore[dict-item]
            r"The estimator of arm 'gpo' is the class Scaled, .*Give Scaled\(\)\.",
        ),
    ],
)
def test_what_python_gives_wrongly_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_setting_that_is_a_list_is_typed_as_one_that_is_a_tuple() -> None:
    assert parse(list[str], "a, b", "--x") == ["a", "b"]
    assert parse(list[int] | None, "[1, 2]", "--x") == [1, 2]
    with pytest.raises(ConfigError, match=r"--x is '1,b', expected a comma-separated list of a whole number\."):
        parse(list[int], "1,b", "--x")


class OwnSums(GSM8K):
    """As docs/tasks.md has it."""


def test_a_stored_task_gains_the_turn_of_the_system_where_it_has_one() -> None:
    stored = {"instruction": "Say it."}
    for name, gains in (("gsm8k", True), (f"{__name__}:OwnSums", True), ("not.there:Task", False)):
        assert ("system" in with_system({"name": name, **stored})) == gains
    assert with_system({"name": "gsm8k", "system": "Hello.", **stored})["system"] == "Hello."
