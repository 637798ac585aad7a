"""Settings from texts: command-line options with dotted names, on top of a stored configuration or the default one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from gpo.config.components import Spec, is_component, setting_types, unknown_setting, words
from gpo.config.parse import Bare, parse
from gpo.config.presets import OTHERS, REASONER, SEGMENTS, located
from gpo.config.registry import REGISTRIES, lookup
from gpo.config.run import ARMS, COMPONENTS, RunConfig, with_whole_paths
from gpo.errors import ConfigError, DataError, unknown
from gpo.storage.codec import from_json, to_json
from gpo.types import PairSettings

T = TypeVar("T")
Settings = dict[str, Any]
RENAMED: tuple[tuple[Settings, Settings], ...] = (  # of an estimator: what an earlier version wrote, and now
    ({"name": "random"}, {"name": "random_unsearched"}),
    ({"name": "adaptive", "critic": None}, {"critic": "none"}),
)
GAINED: dict[str, dict[str, Any]] = {"none": {"order": "mixed"}}  # by estimator: what an earlier version did unsaid
NO_VALUE = ("help", "version")
# Stand for themselves; settings of components that are true or false do too.
FLAGS = (*NO_VALUE, "dry-run", "finished", "plan", "quick", "reuse", "watch")
FLAG_VALUES = ("true", "false", "none")
SHORT = {"estimator": "arms.gpo"}
ELSEWHERE = {  # what TRL, transformers and peft call an option
    "model_name_or_path": "model",
    "num_generations": "rollouts",
    "max_completion_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "dataset_name": "task",
    "lora_r": "lora",
    "lora_alpha": "lora",  # which is twice the rank
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "epsilon": "clip",
    "epsilon_high": "clip_high",
    "report_to": "trackers",
}
MOVED = {  # settings that belonged to methods, and what they are called in `pairs`
    "pairs_per_start": "per_start",
    "pairs_per_problem": "per_problem",
    "max_pairs": "most",
    "truncated": "truncated",
    "prefix_in": "prefix_in",
}


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names and options of a command line; an option without a value is "true".

    Raises:
        ConfigError: an option is given twice.
    """
    names: list[str] = []
    options: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if word == "-h":
            word = "--help"
        if word.startswith("-") and not word.startswith("--"):
            raise ConfigError(f"{word!r} is no option: they begin with --, such as --task NAME.")
        if not word.startswith("--"):
            names.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        kept = ".".join(name.split(".")[:2]) if name.startswith("arms.") else ""  # names of arms may have one
        name = kept + name.removeprefix(kept).replace("-", "_")
        name = "dry-run" if name == "dry_run" else name
        if not equals:
            # What stands for itself takes no name that comes behind it.
            given = left and not left[0].startswith("--") and (name not in FLAGS or left[0].lower() in FLAG_VALUES)
            if not given and name not in FLAGS and "." not in name:
                raise ConfigError(f"--{name} needs a value: --{name} VALUE.")
            value = left.pop(0) if given else Bare("true")
        if name in options:
            raise ConfigError(f"--{name} is given twice.")
        options[name] = value
    return names, options


def flag(options: dict[str, str], name: str) -> bool:
    """Take a flag out of options: whether it is given, and not as false.

    Raises:
        ConfigError: it is given as something else than true or false.
    """
    return bool(parse(bool, options.pop(name, "false"), f"--{name}"))


def take_data_folder(options: dict[str, str]) -> None:
    """Take `data` out of options: the folder is where tasks look for their data from now on.

    Raises:
        ConfigError: there is no such folder.
    """
    if (data := options.pop("data", None)) is not None:
        if not Path(data).is_dir():
            raise ConfigError(f"--data {data}: there is no such folder.")
        os.environ["GPO_DATA"] = str(Path(data).resolve())


def resolve(options: Mapping[str, str], stored: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a stored run (or the default), changed by option texts with dotted names.

    `{"estimator": "monte_carlo", "estimator.rollouts": "8", "method.beta": "0.1", "problems": "100"}`.

    Raises:
        ConfigError: an unknown name, or a text that is not of the setting's type.
    """
    try:
        return _resolve(options, stored)
    except (AttributeError, KeyError, TypeError) as error:
        if stored is None:
            raise
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"The stored settings cannot be used ({what}). Put config.json back as it was.") from error


def _resolve(options: Mapping[str, str], stored: Mapping[str, Any] | None) -> RunConfig:
    base = _defaults() if stored is None else with_defaults(stored)
    for name in options:
        if _long(name) != name and _long(name) in options:
            raise ConfigError(f"--{name} and --{_long(name)} are the same option. Give one of them.")
    left = {_long(name): text for name, text in options.items()}
    if stored is not None and left.keys() & {"model", "engine", "engine.model"}:
        base = without_presets(base)
    arms = dict(base["arms"])
    for name in left:
        if name.startswith("arms."):
            arms.setdefault(name.split(".")[1], {})
    chosen = [name.strip() for name in left.pop("arms", ",".join(arms)).split(",")]
    if "" in chosen or len(set(chosen)) < len(chosen):
        what = "is empty" if not any(chosen) else "has an empty name" if "" in chosen else "names an arm twice"
        raise ConfigError(f"--arms {what}. Give names such as {','.join(arms)}, or make one: --arms.NAME ESTIMATOR.")
    made = (*COMPONENTS, "arms", "pairs")
    hints = {name: kind for name, kind in get_type_hints(RunConfig).items() if name not in made}
    for name in left:  # before a component is imported, which takes seconds
        if "." not in name and name not in hints and name not in COMPONENTS:
            chosen_now = {kind: left.get(kind, base[kind]["name"]) for kind in COMPONENTS}
            raise _unknown_option(name, (*hints, *COMPONENTS, *SHORT, "arms", "data"), chosen_now)
    values: dict[str, Any] = {
        name: parse(kind, left.pop(name), f"--{name}") if name in left else _stored(kind, base[name], name)
        for name, kind in hints.items()
    }
    values["pairs"] = from_options(PairSettings, "pairs", base["pairs"], left)
    RunConfig(**values, arms=dict.fromkeys(chosen, "none"))  # is checked before a component is imported, too
    values["arms"] = {name: spec_from_options("estimator", f"arms.{name}", arms.get(name, {}), left) for name in chosen}
    values |= {kind: spec_from_options(kind, kind, base[kind], left) for kind in COMPONENTS}
    for name in left:
        if name.startswith("arms."):
            given = next(option for option in options if _long(option) == name)
            arm, arms_given = name.split(".")[1], ", ".join(values["arms"])
            raise ConfigError(f"--{given} is for arm {arm!r}, and --arms has {arms_given} only. Add {arm} to --arms.")
        raise unknown("option", f"--{name}", [f"--{known}" for known in (*hints, *COMPONENTS, *SHORT, "arms", "data")])
    return RunConfig(**values)


def _unknown_option(name: str, known: Sequence[str], chosen: Mapping[str, str]) -> ConfigError:
    """The error for an option that no run has; it names the component whose setting is called so.

    Args:
        chosen: names of components by kind.
    """
    own = ELSEWHERE.get(name, name)
    meant = own if own in known else None
    if own == name and get_close_matches(name, known, n=1, cutoff=0.85):
        return unknown("option", f"--{name}", [f"--{each}" for each in known])  # no component need be imported
    for kind in COMPONENTS:
        with suppress(Exception):  # a component that is not there or lacks a package is another matter
            if meant is None and own in setting_types(Spec(kind, chosen[kind]).component_class()):
                meant = f"{kind}.{own}"
    if meant is not None:
        return ConfigError(f"Unknown option '--{name}'. It is called --{meant} here.")
    return unknown("option", f"--{name}", [f"--{each}" for each in known])


def from_options(kind: type[T], path: str, stored: Mapping[str, Any], left: dict[str, str]) -> T:
    """A dataclass of the stored settings and of the options below `path`, which are taken out of `left`."""
    known = get_type_hints(kind)
    values = {key: _stored(known[key], value, f"{path}.{key}") for key, value in stored.items()}
    for option in [option for option in left if option.startswith(f"{path}.")]:
        key = option.removeprefix(f"{path}.")
        if key not in known:
            raise unknown(f"setting of {path}", key, known)
        values[key] = parse(known[key], left.pop(option), f"--{option}")
    return kind(**values)


def _stored(kind: Any, value: Any, where: str) -> Any:
    """A setting of a stored configuration.

    Raises:
        ConfigError: it is of another type.
    """
    try:
        return from_json(kind, value)
    except DataError:
        raise ConfigError(
            f"The stored {where} is {json.dumps(value)}, expected {words(kind)}. Put config.json back as it was."
        ) from None


def _stands_in(key: str, kind: Any, value: Any) -> bool:
    """Whether a stored setting is not the value but stands for it: "<Characters>" for an object, null for infinity.

    What stands for a model or a tokenizer in memory is left to those who read it.
    """
    if kind is float and value is None:
        return True
    marked = isinstance(value, str) and value.startswith("<") and value.endswith(">")
    text = str in (kind, *get_args(kind)) or (kind in (Any, object) and key in ("model", "tokenizer"))
    return marked and not text


def _defaults() -> dict[str, Any]:
    """The default configuration by names only: no component is imported for it, and no preset is taken."""
    values = {item.name: item.default for item in fields(RunConfig) if item.name != "arms"}
    values |= {kind: {"name": values[kind]} for kind in COMPONENTS}
    return values | {"arms": dict(ARMS), "pairs": to_json(PairSettings())}


def with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration as this version writes it: what an earlier one called otherwise, or did not have.

    Settings of components are as they are stored: one that a component has gained since makes another run.
    """
    known = (
        _defaults()
        | ({"reuse": True, "reset_turns": 0, "locate_share": 0.4} if "arms" in stored else {})
        | dict(stored)
    )
    method, known["engine"] = map(with_whole_paths, (known["method"], known["engine"]))
    # A method of one's own may have a setting that is called so.
    moved = {} if "pairs" in stored else {new: method.pop(old) for old, new in MOVED.items() if old in method}
    arms = {
        arm: (GAINED.get(each["name"], {}) if "arms" in stored else {})
        | with_whole_paths(each)
        | next((now for was, now in RENAMED if was.items() <= each.items()), {})
        for arm, each in known["arms"].items()
    }
    own = known["engine"].get("model")
    if isinstance(own, str) and not own.startswith("<"):  # as a model in memory is stored
        known["model"] = own
    known["model"] = located(known["model"])
    known["task"] = with_system(known["task"])
    return known | {"method": method, "pairs": {**to_json(PairSettings()), **known["pairs"], **moved}, "arms": arms}


def with_system(task: Mapping[str, Any]) -> dict[str, Any]:
    """A stored task as this version writes it: those of GPO that give an instruction have a turn of the system too."""
    if "instruction" not in task or "system" in task:
        return dict(task)
    has = ":" not in task["name"]
    with suppress(ConfigError):  # what is not there any more is told where it is made
        has = has or "system" in setting_types(Spec("task", task["name"]).component_class())
    return {**({"system": ""} if has else {}), **task}


def without_presets(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings for another model: what a preset has set for the one before is open again."""
    left = {}
    for kind, presets in (("method", (REASONER, OTHERS)), ("segmenter", (SEGMENTS,))):
        known = [Spec(kind, stored[kind]["name"]).suited(preset) for preset in presets]
        tuned = [(key, value) for preset in known for key, value in preset.items()]
        left[kind] = {key: value for key, value in stored[kind].items() if (key, value) not in tuned}
    return {**stored, **left, "piece_seconds": None}


def _long(name: str) -> str:
    head, dot, rest = name.partition(".")
    return SHORT.get(head, head) + dot + rest


def spec_from_options(kind: str, path: str, stored: Mapping[str, Any], left: dict[str, str]) -> Spec:
    """One component of the stored settings and of the options below `path`, which are taken out of `left`."""
    name = left.pop(path, stored.get("name"))
    if isinstance(name, Bare) or isinstance(left.get(f"{path}.preset"), Bare):
        option = path if isinstance(name, Bare) else f"{path}.preset"
        raise ConfigError(f"--{option} needs a value: --{option} NAME.")
    if name is None:
        raise ConfigError(f"Which {kind}? Give --{path}: {', '.join(sorted(REGISTRIES[kind]))}.")
    component = Spec(kind, name).component_class()
    known = setting_types(component)
    same = name == stored.get("name")
    parts = [key for key in known if is_component(known[key])]
    kept = {key: stored[key] for key in known if same and key in stored and key not in parts}
    lost = {key: value for key, value in kept.items() if _stands_in(key, known[key], value)}
    values = {key: _stored(known[key], kept[key], f"{path}.{key}") for key in kept if key not in lost}
    if lost:
        usual = Spec(kind, name).describe()
        lost = {key: value for key, value in lost.items() if value != usual[key]}
    if (preset := left.pop(f"{path}.preset", None)) is not None:
        values, lost = _preset(Spec(kind, name), preset), {}
    for key in parts:
        inner = stored[key] if same and key in stored else {"name": getattr(component, key, None)}
        values[key] = spec_from_options(kind, f"{path}.{key}", inner, left)
    for option in [option for option in left if option.startswith(f"{path}.")]:
        key = option.removeprefix(f"{path}.")
        if kind == "method" and key in MOVED and key not in known:
            raise ConfigError(f"--{option} is now --pairs.{MOVED[key]}: pairs are made alike for all offline methods.")
        if key not in known and (own := ELSEWHERE.get(key)) in known:
            raise ConfigError(f"Unknown setting {key!r} of {kind} {name!r}. It is called --{path}.{own} here.")
        if key not in known:
            raise unknown_setting(kind, name, key, component)
        values[key] = parse(known[key], left.pop(option), f"--{option}")
    for key in lost.keys() - values.keys():
        raise ConfigError(
            f"{path}.{key} is {json.dumps(lost[key])} in config.json, which stands for what JSON does not hold, "
            f"such as an object made in Python. Go on from Python, or give --{path}.{key}."
        )
    return Spec(kind, name, values)


def _preset(spec: Spec, name: str) -> dict[str, Any]:
    """All settings of a preset: a class method without arguments that makes the component."""
    component = spec.component_class()
    known = presets_of(component)
    if not known:
        others = [other for other in REGISTRIES[spec.kind] if name in presets_of(lookup(spec.kind, other))]
        advice = f" That is one of {', '.join(others)}: --{spec.kind} {others[0]}." if others else ""
        raise ConfigError(f"The {spec.kind} {spec.name!r} has no presets, got {name!r}.{advice}")
    if name not in known:
        raise unknown(f"preset of {spec.kind} {spec.name!r}", name, known)
    instance = getattr(component, name)()
    return {key: getattr(instance, key) for key in setting_types(component)}


def presets_of(component: Any) -> list[str]:
    """The names of its class methods, each of which makes it with other settings."""
    return [key for key, value in vars(component).items() if isinstance(value, classmethod)]
