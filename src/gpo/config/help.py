"""What `--help` says of a command: its options, each with the comment that stands beside its field.

The command line is our own: which options there are depends on components that are named on it (`--method dpo` brings
`--method.beta`). tyro 1.0 does not take `--method` beside `--method.beta`, jsonargparse 4.53 shows no comments and puts
all options before every error; both leave registered names, arms, presets and stored settings to be written here.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from gpo.config.components import Spec, is_component, setting_types
from gpo.config.options import SHORT, presets_of
from gpo.config.presets import OTHERS, REASONER, SEGMENTS
from gpo.config.registry import REGISTRIES
from gpo.config.run import COMPONENTS, RunConfig
from gpo.types import PairSettings

WIDTH = 80
SAMPLING = ("max_tokens", "temperature", "chunk", "piece_seconds", "seed")
ALLOCATION = ("allocation", "fresh_least", "buffer")
OF_STAGE: Mapping[str, Sequence[str]] = {
    "rollout": ("model", "task", "engine", "segmenter", "problems", "rollouts", *SAMPLING),
    "locate": ("arms", "estimator", "budget", "locate_share", "locate_per_problem", *ALLOCATION),
    "reset": ("reset_rollouts", "reset_turns", "reset_fraction", "budget", *ALLOCATION),
    "build": ("credit", "pairs", "reuse"),
    "train": ("method", "rounds", "round_problems", "reuse", "launch", "workers"),
    "evaluate": ("test_problems", "test_skip", "test_samples", "test_split", "workers"),
    "results": (),
}


def options_text(command: str, options: Mapping[str, str]) -> str:
    """The options of a stage, or of a whole run, and the settings of the components that are named in `options`."""
    wanted = OF_STAGE.get(command)
    lines: list[str] = []
    for name in ("model", *(name for name in setting_types(RunConfig) if name != "model")):
        if name == "arms" or name in COMPONENTS or (wanted is not None and name not in wanted):
            continue
        lines += settings(PairSettings, "--pairs.") if name == "pairs" else settings(RunConfig, "--", only=name)
    for kind in (*COMPONENTS, *SHORT):
        if wanted is None or kind in wanted:
            lines += entry(f"--{kind}", ", ".join(REGISTRIES[kind]) + ", or module:Class of your own")
    if wanted is None or "arms" in wanted:
        lines += entry("--arms", "names, such as plain,gpo; --arms.NAME ESTIMATOR makes one, --estimator is --arms.gpo")
    if wanted is not None and command != "rollout":
        lines += ["", "A new directory also takes the options of the stages before: gpo run --help."]
    for kind in (*COMPONENTS, *SHORT):
        if kind in options:
            lines += ["", *component_lines(kind, options[kind])]
            for part in parts_of(kind, options[kind]):
                if f"{kind}.{part}" in options:
                    lines += ["", *component_lines(kind, options[f"{kind}.{part}"], f"{kind}.{part}")]
    return "\n".join(lines)


def parts_of(kind: str, name: str) -> list[str]:
    """The settings of a component that are components."""
    return [key for key, type_ in setting_types(Spec(kind, name).component_class()).items() if is_component(type_)]


def component_lines(kind: str, name: str, path: str | None = None) -> list[str]:
    """The settings of one component, which is named by the option `path`."""
    component, path = Spec(kind, name).component_class(), path or kind
    lines = [f"Settings of {kind} {name}:", *settings(component, f"--{path}.")]
    if known := presets_of(component):
        lines += entry(f"--{path}.preset", f"all of them at once: {', '.join(known)}")
    for model, presets in (("a model that ships with GPO", REASONER), ("another model", {**OTHERS, **SEGMENTS})):
        if kind in ("method", "segmenter") and (suited := Spec(kind, name).suited(presets)):
            tuned = ", ".join(f"{key} {value}" for key, value in suited.items())
            lines += textwrap.wrap(f"With {model}, unless told otherwise: {tuned}.", WIDTH)
    return lines


def settings(component: Any, prefix: str, only: str | None = None, skip: Sequence[str] = ()) -> list[str]:
    """Lines for the settings of a component, or for one or some of them: name, comment, choices, default."""
    known = comments(component)
    defaults = {item.name: item for item in fields(component)} if is_dataclass(component) else {}
    lines: list[str] = []
    for name, kind in setting_types(component).items():
        if only in (None, name) and name not in skip:
            said = "; ".join(filter(None, (known.get(name, ""), ", ".join(choices(kind)))))
            lines += entry(prefix + name, f"{said} ({default(defaults[name])})".strip())
    return lines


def comments(component: type) -> dict[str, str]:
    """The comment that stands beside each annotated field of a class and of its parents."""
    found: dict[str, str] = {}
    for parent in reversed(getattr(component, "__mro__", ())):
        try:
            source = textwrap.dedent(inspect.getsource(parent))
        except (OSError, TypeError):  # built in, or typed where there is no file
            continue
        said = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                comment = next((said[line] for line in lines if line in said), "")
                found[node.target.id] = comment or found.get(node.target.id, "")
    return found


def choices(kind: Any) -> list[str]:
    """The texts that a setting may be, where it may not be any."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [text for member in get_args(kind) for text in choices(member)]


def default(item: Field[Any]) -> str:
    """The default of a setting as it would be typed."""
    value = item.default if item.default_factory is MISSING else item.default_factory()
    if value is MISSING:
        return "must be given"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        text = ",".join(map(str, value)) or "none"
        return text if len(text) < WIDTH - 25 else f"{value[0]} and {len(value) - 1} more"
    return str(value) or "empty"


def entries(items: Mapping[str, str]) -> list[str]:
    """Lines for several options or commands."""
    return [line for name, text in items.items() for line in entry(name, text)]


def entry(name: str, text: str) -> list[str]:
    """An option and what it is, within 80 columns; a long name has a line of its own."""
    indent, fits = " " * 25, len(name) <= 22
    first = f"  {name:<22} " if fits else indent
    lines = textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False)
    return lines if fits else [f"  {name}", *lines]
