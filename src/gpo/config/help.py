"""What `--help` says of a command: its options, each with the comment that stands beside its field.

The command line is our own: which options there are depends on components that are named on it (`--method dpo` brings
`--method.beta`), which parsers that know all options beforehand do not take.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpo.config.components import Spec, setting_types
from gpo.config.options import SHORT
from gpo.config.registry import REGISTRIES
from gpo.config.run import COMPONENTS, RunConfig
from gpo.types import PairSettings

WIDTH = 80
SAMPLING = ("max_tokens", "temperature", "chunk", "piece_seconds", "seed")
OF_STAGE: Mapping[str, Sequence[str]] = {
    "rollout": ("model", "task", "engine", "segmenter", "problems", "rollouts", *SAMPLING),
    "locate": ("arms", "estimator", "budget", "locate_share", "locate_per_problem"),
    "reset": ("reset_rollouts", "reset_fraction", "budget"),
    "build": ("credit", "pairs", "reuse"),
    "train": ("method", "rounds", "round_problems", "reuse", "launch"),
    "evaluate": ("test_problems", "test_samples", "test_split"),
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
            lines += ["", f"Settings of {kind} {options[kind]}:"]
            lines += settings(Spec(kind, options[kind]).component_class(), f"--{kind}.")
    return "\n".join(lines)


def settings(component: Any, prefix: str, only: str | None = None) -> list[str]:
    """Lines for the settings of a component, or for one of them: name, comment, default."""
    known = {name: text for parent in reversed(component.__mro__[:-1]) for name, text in fields_of(parent)}
    lines: list[str] = []
    for name in setting_types(component):
        if only in (None, name):
            lines += entry(prefix + name, known.get(name, ""))
    return lines


def fields_of(component: type) -> Iterator[tuple[str, str]]:
    """The name of each annotated field of a class, with its comment and its default as they are written."""
    if component.__module__ == "builtins":
        return
    source = textwrap.dedent(inspect.getsource(component))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.end_lineno or node.lineno
            comment = next((comments[line] for line in range(node.lineno, last + 1) if line in comments), "")
            default = "" if node.value is None else ast.unparse(node.value)
            yield node.target.id, f"{comment} ({default})".strip() if default else comment


def entry(name: str, text: str) -> list[str]:
    """An option and what it is, within 80 columns."""
    first, rest = f"  {name:<22} ", " " * 25
    return textwrap.wrap(text or "-", WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False)
