"""Components by name with their settings: made when they are needed, described as JSON."""

from __future__ import annotations

import copy
import inspect
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gpo.config.presets import model_path
from gpo.config.registry import REGISTRIES, lookup
from gpo.errors import ConfigError, GPOError, naming, unknown
from gpo.storage.codec import to_json


@dataclass(frozen=True)
class Spec:
    """A component by its registered name, or as "module:Class"; it is imported and made when it is needed.

    A segmenter may be a function too: "module:function".

    Raises:
        ConfigError: there is no such kind, or the name is no text.
    """

    kind: str  # task, engine, segmenter, estimator or method
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)  # what holds where `settings` say nothing

    def __post_init__(self) -> None:
        if self.kind not in REGISTRIES:
            raise unknown("kind of component", str(self.kind), REGISTRIES)
        if not isinstance(self.name, str):
            raise ConfigError(f"The name of the {self.kind} is {self.name!r}, expected a text such as module:Class.")

    def component_class(self) -> Any:
        """The class, or a segmenter's function.

        Raises:
            ConfigError: there is no such component.
        """
        if ":" not in self.name:
            return lookup(self.kind, self.name)
        module, _, attribute = self.name.partition(":")
        if module == "__main__":
            raise ConfigError(
                f"The {self.kind} {self.name!r} is of a Python session. Go on there, or put it into a file."
            )
        form = "module:Class or module:function" if self.kind == "segmenter" else "module:Class"
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # an installed command does not look in the folder that it is called in
        try:
            found = getattr(import_module(module), attribute)
        except Exception as error:  # whatever the module does when it is imported
            what = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"There is no {self.kind} {self.name!r}: {what}. Expected {form}.") from error
        if not isinstance(found, type) and not (self.kind == "segmenter" and inspect.isfunction(found)):
            raise ConfigError(f"The {self.kind} {self.name!r} is a {type(found).__name__}. Expected {form}.")
        return found

    @property
    def ancestor(self) -> str | None:
        """The name of the registered component that this one is, or the nearest that it inherits from.

        Raises:
            ConfigError: there is no such component.
        """
        names = {home: name for name, home in REGISTRIES[self.kind].items()}
        if ":" not in self.name or self.name in names:  # known without an import
            return names.get(self.name, self.name)
        parents = getattr(self.component_class(), "__mro__", ())
        return next((names[home_of(parent)] for parent in parents if home_of(parent) in names), None)

    def suited(self, presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The settings that presets by registered names have for it: those of its ancestor that it leaves as they are.

        Raises:
            ConfigError: there is no such component.
        """
        name = self.ancestor
        if name is None or name == self.name or name not in presets:
            return dict(presets.get(name or "", {}))
        own, parent = self.component_class(), lookup(self.kind, name)
        known = setting_types(own)
        same = {key for key in known if getattr(own, key, None) == getattr(parent, key, None)}  # of equal defaults
        return {key: value for key, value in presets[name].items() if key in same}

    def check_settings(self) -> Any:
        """The class, which has a field for every setting.

        Raises:
            ConfigError: there is no such component, or a setting is unknown.
        """
        found = self.component_class()
        known = setting_types(found)
        for key, value in self.settings.items():
            if key not in known:
                raise unknown_setting(self.kind, self.name, key, found)
            if isinstance(value, Spec):
                value.check_settings()
        return found

    def make(self, **more: Any) -> Any:
        """The component with its settings; of `more`, what it has a field for that has no value of its own.

        Raises:
            ConfigError: there is no such component, or a setting is unknown, missing or refused.
        """
        made = self.check_settings()
        if not isinstance(made, type):
            return made
        known = setting_types(made)
        settled = {item.name for item in (fields(made) if is_dataclass(made) else ()) if not _is_open(item)}
        values = {key: value for key, value in more.items() if key in known and key not in settled} | {
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
            try:
                return made(**values)
            except GPOError:
                raise
            except (TypeError, ValueError) as error:
                why = str(error).rstrip(".") or type(error).__name__
                raise ConfigError(f"The {self.kind} {self.name!r} refuses its settings: {why}.") from error

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


def _is_open(item: Field[Any]) -> bool:
    """Whether a setting has no value of its own."""
    return item.default is None or (item.default is MISSING and item.default_factory is MISSING)


def setting_types(component: Any) -> dict[str, Any]:
    """The types of a component's settings by name: its dataclass fields, except those whose names begin with _."""
    if not is_dataclass(component):
        return {}
    hints = get_type_hints(component)
    return {item.name: hints[item.name] for item in fields(component) if item.init and not item.name.startswith("_")}


def unknown_setting(kind: str, name: str, key: str, component: Any) -> ConfigError:
    """The error for a setting that a component has not."""
    if known := setting_types(component):
        return unknown(f"setting of {kind} {name!r}", key, known)
    why = "" if is_dataclass(component) else ": settings are the fields of a dataclass, and it is none"
    return ConfigError(f"The {kind} {name!r} has no setting {key!r}, nor any other{why}.")


def make(kind: str, name: str, **settings: Any) -> Any:
    """A component by name: `make("engine", "hf", model="reasoner")`, `make("task", "gsm8k")`.

    Args:
        kind: task, engine, segmenter, estimator or method.

    Raises:
        ConfigError: there is no such component, it is none of its kind, or a setting is unknown, missing or refused.
    """
    from gpo.config.check import check_class  # which imports all contracts and this module

    spec = Spec(kind, name, settings)
    check_class(kind, spec.component_class(), name)
    return spec.make()


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
    """The name and every setting of a component given as a name, a `Spec` or an instance, as JSON.

    Raises:
        ConfigError: it is a function that no other process finds by a name.
    """
    if isinstance(component, str):
        return Spec(kind, component).describe()
    if isinstance(component, Spec):
        return component.describe()
    target = home_of(component if inspect.isfunction(component) else type(component))
    if inspect.isfunction(component) and "<" in target:
        raise ConfigError(
            f"The {kind} {target} has no name by which a run could tell it from another one. "
            "Write it as a def at the top of a file."
        )
    name = next((name for name, known in REGISTRIES[kind].items() if known == target), target)
    types = setting_types(type(component))
    return {"name": name} | {key: _described(kind, getattr(component, key), types[key]) for key in types}


def home_of(component: Any) -> str:
    """Where a class or a function is found again, "module:Class"; that of a script under the name of its file."""
    module = component.__module__
    return f"{main_name() if module == '__main__' else module}:{component.__qualname__}"


def main_name() -> str:
    """What another process imports the program as that runs here; "__main__" where it has no file."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name)
    return Path(file).stem if (file := getattr(main, "__file__", None)) else "__main__"


def refuse_class(kind: str, component: Any) -> None:
    """Raises: ConfigError if a class stands where an instance or a name belongs."""
    if isinstance(component, type):
        name = component.__name__
        raise ConfigError(f"The {kind} is the class {name}, expected an instance or a name. Give {name}().")


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


def words(kind: Any) -> str:
    """What a message says that a setting of this type is."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(words(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (tuple, list) and arguments:
        return f"a comma-separated list of {words(arguments[0])}"
    if origin is Mapping:
        return "a JSON object"
    names = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "none", str: "a text"}
    return names.get(kind, f"JSON of {getattr(kind, '__name__', kind)}")
