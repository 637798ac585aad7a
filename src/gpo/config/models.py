"""Which model a run means, resolved once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpo.config.components import Spec, made
from gpo.config.presets import located, model_path
from gpo.errors import ConfigError
from gpo.types import ModelRef

if TYPE_CHECKING:
    from gpo.config.run import RunConfig


def resolve_model(config: RunConfig) -> ModelRef:
    """The model before training: that of the engine where it has one of its own, else the run's.

    Raises:
        ConfigError: the engine does not say which model it has.
    """
    engine = config.engine
    if isinstance(engine, Spec | str):
        settings = {} if isinstance(engine, str) else engine.settings
        own, tokenizer = settings.get("model"), settings.get("tokenizer")
        ref = reference(config.model if own is None else own)
        # Beside a path, a tokenizer that is none may be that of an engine without a language model.
        fits = isinstance(tokenizer, str | Path) or not isinstance(ref.source, str | Path)
        return replace(ref, tokenizer=tokenizer) if tokenizer is not None and fits else ref
    try:
        ref = engine.model_ref
    except AttributeError as error:
        name = type(engine).__name__
        raise ConfigError(f"The engine {name} does not say which model it samples from: {error}.") from error
    in_memory = not isinstance(ref.source, str | Path) and ref.tokenizer is None
    return replace(ref, tokenizer=engine.tokenizer) if in_memory else ref


def search_of(config: RunConfig, arm: str, **more: Any) -> Any:
    """The search of an arm, given the model before training if `more` gives none.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """
    return made("estimator", config.arms[arm], **{"model": resolve_model(config).source, **more})


def reference(model: object) -> ModelRef:
    """What is meant by the name of a shipped model, a directory, a hub id, or a model in memory."""
    if isinstance(model, ModelRef):
        return model
    if isinstance(model, str | Path):
        name = located(str(model))
        return ModelRef(model_path(name), name)
    return ModelRef(model, f"{type(model).__name__} in memory")
