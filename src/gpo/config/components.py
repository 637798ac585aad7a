"""Components by name with their settings: made when they are needed, described as JSON."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from gpo.config.presets import model_path
from gpo.config.registry import REGISTRIES, lookup
from gpo.errors import ConfigError, naming, unknown
from gpo.storage.codec import to_json


@dataclass(frozen=True)
class Spec:
    """A component by its registered name, or as "module:Class"; it is imported and made when it is needed."""

    kind: str  # task, engine, segmenter, estimator or method
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)  # what holds where `settings` say nothing

    def component_class(self) -> Any:
        """Raises: ConfigError if there is no such component."""
        if ":" not in self.name:
            return lookup(self.kind, self.name)
        module, _, attribute = self.name.partition(":")
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # an installed command does not look in the folder that it is called in
        try:
            found = getattr(import_module(module), attribute)
        except Exception as error:  # whatever the module does when it is imported
            what = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"There is no {self.kind} {self.name!r}: {what}. Expected module:Class.") from error
        if not isinstance(found, type):
            raise ConfigError(f"The {self.kind} {self.name!r} is a {type(found).__name__}. Expected module:Class.")
        return found

    def check_settings(self) -> Any:
        """The class, which has a field for every setting.

        Raises:
            ConfigError: there is no such component, or a setting is unknown.
        """
        found = self.component_class()
        known = setting_types(found)
        for key, value in self.settings.items():
            if key not in known:
                raise unknown(f"setting of {self.kind} {self.name!r}", key, known)
            if isinstance(value, Spec):
                value.check_settings()
        return found

    def make(self, **more: Any) -> Any:
        """The component with its settings; of `more`, what it has a field for and what was not set.

        Raises:
            ConfigError: there is no such component, or a setting is unknown or missing.
        """
        made = self.check_settings()
        known = setting_types(made)
        values = {key: value for key, value in more.items() if key in known} | {
            key: value
            for key, value in {**self.preset, **self.settings}.items()
            if value is not None or key not in more
        }
        if isinstance(values.get("model"), str):
            values["model"] = model_path(values["model"])
        for item in fields(made) if is_dataclass(made) else ():
            if item.init and item.default is MISSING and item.default_factory is MISSING and item.name not in values:
                raise ConfigError(f"The {self.kind} {self.name!r} needs --{self.kind}.{item.name}.")
        with naming(f"The {self.kind} {self.name!r}"):
            return made(**values)

    def describe(self) -> dict[str, Any]:
        """The name and every setting, defaults included, as JSON."""
        made = self.component_class()
        known, values, types = {**self.preset, **self.settings}, {}, setting_types(made)
        for item in fields(made) if is_dataclass(made) else ():
            if item.name in types:
                default = item.default if item.default_factory is MISSING else item.default_factory()
                value = known.get(item.name, None if default is MISSING else default)
                values[item.name] = _described(self.kind, value, types[item.name])
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
    return Spec(kind, name, settings).make()


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


def describe_component(kind: str, component: Any) -> dict[str, Any]:
    """The name and every setting of a component given as a name, a `Spec` or an instance, as JSON."""
    if isinstance(component, str):
        return Spec(kind, component).describe()
    if isinstance(component, Spec):
        return component.describe()
    target = f"{type(component).__module__}:{type(component).__qualname__}"
    name = next((name for name, known in REGISTRIES[kind].items() if known == target), target)
    types = setting_types(type(component))
    return {"name": name} | {key: _described(kind, getattr(component, key), types[key]) for key in types}


def is_component(kind: Any) -> bool:
    """Whether a setting of this type is a component by its name, of the same kind as the one that it belongs to."""
    return Spec in get_args(kind)


def _described(owner: str, value: Any, kind: Any) -> Any:
    if is_component(kind):
        return describe_component(owner, value)
    if kind is float and isinstance(value, int):
        value = float(value)  # as it is read again, so that the same settings are the same text
    try:
        return to_json(value)
    except TypeError:  # an object made in Python, such as a loaded model
        return f"<{type(value).__qualname__}>"
