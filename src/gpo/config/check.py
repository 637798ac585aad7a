"""Everything that a configuration can be refused for before anything is sampled."""

from __future__ import annotations

import inspect
from typing import Any

from gpo.config.components import Spec, made
from gpo.config.models import resolve_model
from gpo.config.run import RunConfig
from gpo.errors import ConfigError
from gpo.types import OfflineMethod, OnlineMethod, Task

NEEDS = {
    "task": "problems(split), prompt(problem) and score(problem, text)",
    "estimator": "to be called with trajectories, sample and evidence",
    "method": "trains_on, update(data, context) and save(path)",
    "segmenter": "to be called with token ids, tokenizer and log-probabilities",
}


def check(config: RunConfig) -> None:
    """Make every component but the engine, whose model takes long to load.

    Raises:
        ConfigError: one does not exist, refuses its settings, or is no such component.
    """
    model = resolve_model(config).source
    task = made("task", config.task)
    _expect("task", config.task, isinstance(task, Task), task)
    segmenter = made("segmenter", config.segmenter)
    _expect("segmenter", config.segmenter, _takes(segmenter, 3), segmenter)
    method = made("method", config.method)
    trains = isinstance(method, OfflineMethod | OnlineMethod) and method.trains_on in ("pairs", "groups")
    _expect("method", config.method, trains, method)
    for each in config.arms.values():
        estimator = made("estimator", each, model=model)
        _expect("estimator", each, _takes(estimator, 3), estimator)
    if isinstance(config.engine, str | Spec):
        engine = Spec("engine", config.engine) if isinstance(config.engine, str) else config.engine
        engine.check_settings()


def _takes(component: Any, arguments: int) -> bool:
    """Whether a component can be called with so many positional arguments."""
    try:
        inspect.signature(component).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True


def _expect(kind: str, given: Any, fits: bool, component: Any) -> None:
    if not fits:
        name = given if isinstance(given, str) else given.name if isinstance(given, Spec) else type(component).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise ConfigError(f"{name!r} is not {article} {kind}. {article.title()} {kind} needs {NEEDS[kind]}.")
