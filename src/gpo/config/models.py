"""Which model a run means, resolved once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpo.config.components import Spec
from gpo.config.presets import model_path
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
        own = settings.get("model")
        ref = reference(config.model if own is None else own)
        return ref if settings.get("tokenizer") is None else replace(ref, tokenizer=settings["tokenizer"])
    try:
        ref = engine.model_ref
    except AttributeError as error:
        name = type(engine).__name__
        raise ConfigError(f"The engine {name} does not say which model it samples from: {error}.") from error
    return ref if isinstance(ref.source, str) or ref.tokenizer is not None else replace(ref, tokenizer=engine.tokenizer)


def reference(model: object) -> ModelRef:
    """What is meant by the name of a shipped model, a directory, a hub id, or a model in memory."""
    if isinstance(model, ModelRef):
        return model
    if isinstance(model, str | Path):
        return ModelRef(model_path(str(model)), str(model))
    return ModelRef(model, f"{type(model).__name__} in memory")
