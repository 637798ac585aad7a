"""Settings of a run: components by name with their fields, and numbers, from Python or as JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any, Literal, get_type_hints

from gpo.errors import ConfigError, unknown
from gpo.registry import REGISTRIES, lookup
from gpo.segment import Segmenter
from gpo.store import to_json
from gpo.types import Engine, Estimator, Method, Task

EMBEDDED = "reasoner"  # the model that ships with the package
SHIPPED = {EMBEDDED: "weights", "reader": "reader"}  # names of models and where they are in gpo.reasoner
SEARCH = {"name": "adaptive", "rule": "drop", "rollouts": 4, "batch": 8, "certainty": 0.9, "smallest": 0.05}
ARMS: dict[str, dict[str, Any]] = {"plain": {"name": "none"}, "random": {"name": "random"}, "gpo": SEARCH}
COMPONENTS = ("task", "engine", "method", "segmenter")


@dataclass(frozen=True)
class Spec:
    """A component by its registered name, or as "module:Class"; it is imported and made when it is needed."""

    kind: str  # task, engine, segmenter, estimator or method
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def component_class(self) -> Any:
        """Raises: ConfigError if there is no such component."""
        if ":" not in self.name:
            return lookup(self.kind, self.name)
        module, _, attribute = self.name.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"There is no {self.kind} {self.name!r}: {error}. Expected module:Class.") from error

    def make(self, **more: Any) -> Any:
        """The component with its settings; of `more`, what it has a field for and what was not set.

        Raises:
            ConfigError: there is no such component, or a setting is unknown or missing.
        """
        made = self.component_class()
        known = setting_types(made)
        for key in self.settings:
            if key not in known:
                raise unknown(f"setting of {self.kind} {self.name!r}", key, known)
        values = {key: value for key, value in more.items() if key in known} | {
            key: value for key, value in self.settings.items() if value is not None or key not in more
        }
        for item in fields(made) if is_dataclass(made) else ():
            if item.init and item.default is MISSING and item.default_factory is MISSING and item.name not in values:
                raise ConfigError(f"The {self.kind} {self.name!r} needs --{self.kind}.{item.name}.")
        return made(**values)

    def describe(self) -> dict[str, Any]:
        """The name and every setting, defaults included, as JSON."""
        made = self.component_class()
        values = {}
        for item in fields(made) if is_dataclass(made) else ():
            if item.name in setting_types(made):
                default = item.default if item.default_factory is MISSING else item.default_factory()
                values[item.name] = to_json(self.settings.get(item.name, None if default is MISSING else default))
        return {"name": self.name} | values


def setting_types(component: Any) -> dict[str, Any]:
    """The types of a component's settings by name: its dataclass fields, except those whose names begin with _."""
    if not is_dataclass(component):
        return {}
    hints = get_type_hints(component)
    return {item.name: hints[item.name] for item in fields(component) if item.init and not item.name.startswith("_")}


def make(kind: str, name: str, **settings: Any) -> Any:
    """A component by name: `make("engine", "hf", model="reasoner")`, `make("task", "gsm8k")`.

    Args:
        kind: task, engine, segmenter, estimator or method.

    Raises:
        ConfigError: there is no such component, or a setting is unknown or missing.
    """
    if settings.get("model") in SHIPPED:
        settings["model"] = model_path(settings["model"])
    return Spec(kind, name, settings).make()


def model_path(model: str) -> str:
    """Where a model is: the directory of one that ships with the package for its name, else what was given."""
    return str(Path(__file__).parent / "reasoner" / SHIPPED[model]) if model in SHIPPED else model


def made(kind: str, component: Any, **more: Any) -> Any:
    """A component that may be changed freely: from a name, a `Spec`, or a copy of an instance.

    `more` are settings that the run gives, such as the model; an instance gets those that it has fields for.
    """
    if isinstance(component, str | Spec):
        spec = Spec(kind, component) if isinstance(component, str) else component
        return spec.make(**more)
    known = setting_types(type(component))
    values = {key: value for key, value in more.items() if getattr(component, key, value) is None and key in known}
    return replace(component, **values) if values else copy.copy(component)


def default_arms() -> dict[str, Estimator | Spec | str]:
    """The plain baseline, the control, and the search that did best on development questions."""
    rest = {arm: {k: v for k, v in each.items() if k != "name"} for arm, each in ARMS.items()}
    return {arm: Spec("estimator", each["name"], rest[arm]) for arm, each in ARMS.items()}


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of: components as instances or by name. Tokens are sampled tokens."""

    task: Task | Spec | str = "reasoner"
    model: str = EMBEDDED  # directory or hub id, for engine and method alike; an engine with its own ignores it
    engine: Engine | Spec | str = "hf"
    method: Method | Spec | str = "dpo"
    segmenter: Segmenter | Spec | str = "newline"
    arms: Mapping[str, Estimator | Spec | str] = field(default_factory=default_arms)  # one trained model each
    problems: int = 120  # training problems, taken evenly from the sub-tasks
    rollouts: int = 8  # of each training problem, before anything is located
    budget: float = 2.5  # tokens of each arm, as a multiple of the first rollouts' tokens
    locate_share: float = 0.4  # of the budget, at most, for the search
    locate_per_problem: int = 4  # trajectories to search at most
    reset_rollouts: int = 8  # of each reset start when its turn comes
    reset_fraction: float = 1.0  # of the budget, at most, from reset starts; what is left goes to the questions again
    reuse: bool = True  # train on the search's rollouts too
    rounds: int = 1  # of sampling and training; the model that a round has trained samples in the next one
    round_problems: int | None = None  # training problems of each round, in turns; None: all
    test_problems: int | None = 360  # taken evenly from the sub-tasks; None: all
    test_samples: int = 4  # of each test problem
    test_split: Literal["dev", "test"] = "test"  # dev: to choose settings, so that the test questions stay unseen
    max_tokens: int = 512  # of a response
    temperature: float = 1.0
    chunk: int = 512  # rollouts between two writes, about
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "problems",
            "rollouts",
            "locate_per_problem",
            "reset_rollouts",
            "rounds",
            "test_samples",
            "max_tokens",
            "chunk",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name in ("test_problems", "round_problems"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1, or none for all.")
        if not 1 < self.budget < inf:
            raise ConfigError(f"budget is {self.budget}, expected a number above 1: the first rollouts are part of it.")
        if not 0 < self.locate_share < 1:
            raise ConfigError(f"locate_share is {self.locate_share}, expected a share between 0 and 1.")
        if not 0 <= self.reset_fraction <= 1:
            raise ConfigError(f"reset_fraction is {self.reset_fraction}, expected a share from 0 to 1.")
        if not 0 < self.temperature < inf:
            raise ConfigError(f"temperature is {self.temperature}, expected a number above 0: rollouts must differ.")
        if not self.arms:
            raise ConfigError(f"A run needs at least one arm, for instance {', '.join(ARMS)}.")
        for name in self.arms:
            if name == "base" or not name.replace("_", "").replace("-", "").isalnum():
                raise ConfigError(f"An arm cannot be called {name!r}: letters, digits, - and _ only, and not 'base'.")


def describe(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as JSON: what `resolve` takes as `stored`."""
    described = {item.name: getattr(config, item.name) for item in fields(config)}
    described |= {kind: describe_component(kind, described[kind]) for kind in COMPONENTS}
    described["arms"] = {name: describe_component("estimator", estimator) for name, estimator in config.arms.items()}
    return described


def describe_component(kind: str, component: Any) -> dict[str, Any]:
    """The name and every setting of a component given as a name, a `Spec` or an instance, as JSON."""
    if isinstance(component, str):
        return Spec(kind, component).describe()
    if isinstance(component, Spec):
        return component.describe()
    target = f"{type(component).__module__}:{type(component).__qualname__}"
    name = next((name for name, known in REGISTRIES[kind].items() if known == target), target)
    return {"name": name} | {key: _json_or_type(getattr(component, key)) for key in setting_types(type(component))}


def _json_or_type(value: Any) -> Any:
    try:
        return to_json(value)
    except TypeError:  # an object made in Python, such as a loaded model
        return f"<{type(value).__qualname__}>"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The dotted names of the settings that differ, each with its old and its new value."""
    found: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{where}.")
        elif before != after:
            found.append(f"{where} was {_short(before)}, now {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
