"""Everything that a configuration can be refused for before anything is sampled."""

from __future__ import annotations

import inspect
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from gpo.config.components import Spec, made, refuse_class
from gpo.config.models import resolve_model
from gpo.config.run import RunConfig
from gpo.contracts import Engine, Estimator, OfflineMethod, OnlineMethod, Task
from gpo.errors import ConfigError
from gpo.estimators.matched import MatchedRandom
from gpo.rollout.segmenters import Segmenter

CONTRACTS: dict[str, type] = {"task": Task, "engine": Engine, "estimator": Estimator, "segmenter": Segmenter}
METHODS: dict[Any, type] = {"pairs": OfflineMethod, "groups": OnlineMethod}  # by what a method `trains_on`


def check(config: RunConfig) -> None:
    """Make every component but the engine, whose model takes long to load, and hold it against its contract.

    Raises:
        ConfigError: one does not exist, refuses its settings, or is no such component; or the model's directory is not
            there; or two settings do not go together.
    """
    engine = Spec("engine", config.engine) if isinstance(config.engine, str) else config.engine
    if isinstance(engine, Spec):
        check_class("engine", engine.check_settings(), engine.name)
    else:
        check_calls("engine", engine, type(engine).__name__)
    model = resolve_model(config).source
    if isinstance(model, str) and model.startswith(("/", "./", "../", "~")) and not Path(model).exists():
        raise ConfigError(f"There is no model in {model}. Give --model a directory, a hub id, or reasoner.")
    for kind, given in (("task", config.task), ("segmenter", config.segmenter)):
        check_component(kind, given)
    method = check_component("method", config.method)
    if config.buffer and getattr(method, "train_prefix", False):
        raise ConfigError(
            "method.train_prefix gives kept prefixes loss, with buffer those of older policies too. Take one of both."
        )
    check_launch(config.launch)
    for arm, estimator in config.arms.items():
        check_control(arm, check_component("estimator", estimator, model=model), config.arms)


def check_launch(command: str | None) -> None:
    """Raises: ConfigError if the words that start a training name no program."""
    if command is None:
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--launch {command!r}: {error}. Expected such as: accelerate launch -m") from error
    if not words:
        raise ConfigError("--launch is empty. Expected such as: accelerate launch -m; or --launch none.")
    if shutil.which(words[0]) is None:
        raise ConfigError(
            f"--launch: there is no program {words[0]!r} here. Expected such as: accelerate launch -m; "
            "or --launch none."
        )


def check_control(arm: str, estimator: Any, arms: Collection[str]) -> None:
    """Raises: ConfigError if a matched control repeats the search of an arm that the run does not have."""
    if isinstance(estimator, MatchedRandom) and (estimator.arm not in arms or estimator.arm == arm):
        others = ", ".join(each for each in arms if each != arm) or "none"
        raise ConfigError(
            f"The arm {arm!r} repeats the search of arm {estimator.arm!r}, which this run does not have (other arms: "
            f"{others}). Add it, name another (--arms.{arm}.arm), or take --arms.{arm} random_unsearched."
        )


def check_component(kind: str, given: Any, **more: Any) -> Any:
    """Make a component, which must be one of its kind, and give it back. What `more` is, `made` says.

    Raises:
        ConfigError: it does not exist, refuses its settings, or is no such component.
    """
    refuse_class(kind, given)
    spec = Spec(kind, given) if isinstance(given, str) else given
    name = spec.name if isinstance(spec, Spec) else type(spec).__name__
    # Before it is made: what is no such component is not called either.
    check_class(kind, spec.component_class() if isinstance(spec, Spec) else type(spec), name)
    component = made(kind, spec, **more)
    check_calls(kind, component, name)
    return component


def check_instance(kind: str, given: Any) -> None:
    """Raises: ConfigError if a name, a class or something else stands where an instance belongs."""
    refuse_class(kind, given)
    if isinstance(given, str | Spec):
        name = given if isinstance(given, str) else given.name
        raise ConfigError(f"The {kind} is the name {name!r}, expected an instance: gpo.make({kind!r}, {name!r}).")
    check_calls(kind, given, type(given).__name__)


def check_class(kind: str, component: Any, name: str) -> None:
    """Raises: ConfigError if a class lacks a method of its contract; a segmenter's function lacks none."""
    if not isinstance(component, type):
        return
    for method, wanted in calls(kind, component, name):
        if not any(method in vars(parent) or "__getattr__" in vars(parent) for parent in component.__mro__):
            raise _misfit(kind, name, f"it has no {_shown(method, wanted)}")


def check_calls(kind: str, component: Any, name: str) -> None:
    """Raises: ConfigError if a component cannot be called as its contract says."""
    check_class(kind, type(component), name)
    for method, wanted in calls(kind, type(component), name):
        _, *taken = inspect.signature(wanted).parameters.values()
        positional = [each.name for each in taken if each.kind != each.KEYWORD_ONLY]
        named = {each.name: None for each in taken if each.kind == each.KEYWORD_ONLY}
        found = component if method == "__call__" else getattr(component, method)
        try:
            inspect.signature(found).bind(*positional, **named)
        except TypeError as error:
            raise _misfit(kind, name, f"{_shown(method, wanted)} cannot be called: {error}") from error
    if kind == "engine" and not isinstance(component, Engine):
        members = [each for each in vars(Engine) if each[0] != "_"]
        lacking = [each for each in (*members, "__enter__", "__exit__") if not hasattr(component, each)]
        raise _misfit(kind, name, f"it has no {', '.join(lacking)}")


def calls(kind: str, component: type, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods of a kind's contract.

    Raises:
        ConfigError: a method trains on neither pairs nor groups.
    """
    if kind == "method" and getattr(component, "trains_on", None) not in METHODS:
        raise _misfit(kind, name, "its trains_on is neither 'pairs' nor 'groups'")
    contract = METHODS[component.trains_on] if kind == "method" else CONTRACTS[kind]  # type: ignore[attr-defined]
    for method, wanted in vars(contract).items():
        if inspect.isfunction(wanted) and (method == "__call__" or method[0] != "_"):
            yield method, wanted


def _shown(method: str, wanted: Callable[..., Any]) -> str:
    """Such as `score(problem, text)`."""
    _, *taken = inspect.signature(wanted).parameters
    return f"{method}({', '.join(taken)})"


def _misfit(kind: str, name: str, why: str) -> ConfigError:
    article = "an" if kind[0] in "aeiou" else "a"
    home = "gpo/rollout/segmenters.py" if kind == "segmenter" else "gpo/contracts.py"
    return ConfigError(f"{name!r} is not {article} {kind}: {why}. {home} says what {article} {kind} has.")
