"""Which model is meant."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpo.config.components import Spec, made
from gpo.config.models import resolve_model
from gpo.config.options import resolve, with_defaults
from gpo.config.presets import model_path
from gpo.config.run import RunConfig, describe, differences
from gpo.errors import ConfigError
from gpo.toy import ChainEngine
from gpo.types import ModelRef
from toy import toy_config


class Network:
    """A model in memory."""


@dataclass
class Reads:
    """A component with a model."""

    model: Any = None


NETWORK, WORDS = Network(), object()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RunConfig(), ModelRef(model_path("reasoner"), "reasoner")),
        (RunConfig(model="reader"), ModelRef(model_path("reader"), "reader")),
        (RunConfig(model="org/name"), ModelRef("org/name", "org/name")),
        (RunConfig(model="runs/a/model"), ModelRef("runs/a/model", "runs/a/model")),
        (RunConfig(engine=Spec("engine", "hf", {"model": "org/own"})), ModelRef("org/own", "org/own")),
        (RunConfig(engine=Spec("engine", "hf", {"model": Path("a/b")})), ModelRef("a/b", "a/b")),
        (RunConfig(engine=Spec("engine", "hf", {"model": "reader"})), ModelRef(model_path("reader"), "reader")),
        (
            RunConfig(model="org/name", engine=Spec("engine", "hf", {"tokenizer": "words"})),
            ModelRef("org/name", "org/name", tokenizer="words"),
        ),
        (
            RunConfig(engine=Spec("engine", "hf", {"model": NETWORK, "tokenizer": WORDS})),
            ModelRef(NETWORK, "Network in memory", tokenizer=WORDS),
        ),
        (
            RunConfig(engine=Spec("engine", "hf", {"model": ModelRef("org/a", "a", "main")})),
            ModelRef("org/a", "a", "main"),
        ),
    ],
)
def test_an_engine_with_a_model_of_its_own_goes_before_the_runs(config: RunConfig, expected: ModelRef) -> None:
    assert resolve_model(config) == expected


def test_an_engine_in_memory_says_its_model_itself() -> None:
    engine = ChainEngine()
    found = resolve_model(RunConfig(engine=engine))
    assert (found.source, found.name) == (engine.processes, "toy processes")
    assert found.tokenizer is engine.tokenizer
    with pytest.raises(ConfigError, match=r"The engine Network does not say which model it samples from: .*model_ref"):
        resolve_model(RunConfig(engine=Network()))  # type: ignore[arg-type]


def test_the_configuration_names_the_model_that_is_meant() -> None:
    def name(**changes: Any) -> Any:
        return describe(toy_config(**changes))["model"]

    assert name() == "reasoner"
    assert name(engine=ChainEngine()) == "toy processes"
    assert name(engine=Spec("engine", "hf", {"model": "org/own"})) == "org/own"


def test_a_run_of_an_earlier_version_goes_on_with_the_model_of_its_engine() -> None:
    described = describe(resolve({"task": "chain", "engine.model": "org/own"}))
    assert differences(described, describe(resolve({}, {**described, "model": "reasoner"}))) == []
    in_memory = describe(RunConfig(engine=Spec("engine", "hf", {"model": NETWORK})))
    assert differences(with_defaults(in_memory), in_memory) == []


@pytest.mark.parametrize("kind", ["engine", "estimator"])
def test_a_shipped_model_may_be_named_in_a_setting(kind: str) -> None:
    spec = Spec(kind, "test_models:Reads", {"model": "reader"})
    assert made(kind, spec, model="another").model == model_path("reader")
    assert describe(RunConfig(engine=Spec("engine", "test_models:Reads", {"model": "reader"})))["engine"] == {
        "name": "test_models:Reads",
        "model": "reader",
    }


def test_a_directory_is_the_same_one_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "models/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    given = {"model": "models/a", "method.model": "models/a", "engine.tokenizer": "models/a", "method": "dpo"}
    whole = str(tmp_path / "here/models/a")
    described = describe(resolve(given))
    assert (described["model"], described["method"]["model"], described["engine"]["tokenizer"]) == (whole,) * 3
    assert describe(resolve({"engine.model": "models/a"}))["engine"]["model"] == whole
    assert resolve_model(RunConfig(model="models/a")) == ModelRef(whole, whole)
    monkeypatch.chdir(tmp_path / "there")
    assert describe(resolve({}, described)) == described
    assert differences(described, describe(resolve({"model": "models/a"}, described)))


def test_a_run_that_has_a_directory_as_it_was_given_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given in ({"model": "models/a", "method.model": "models/a"}, {"engine.model": "models/a"}):
        stored = json.loads(json.dumps(describe(resolve(given))).replace(str(tmp_path) + "/", ""))
        assert stored["model"] == "models/a"
        for settings in ({}, given):
            assert not differences(with_defaults(stored), describe(resolve(settings, stored)))


def test_a_model_that_ships_with_the_package_goes_before_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path)
    assert describe(RunConfig(model="reader"))["model"] == "reader"
